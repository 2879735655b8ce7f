"""PyTorch, as an engine of this bench only: what was published was measured on it. It moves no robot."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.core.messages import MS, Stage
from mvla_daemon.engines.base import DeviceTimes, EngineError
from mvla_daemon.engines.manifest import Manifest
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

_WARM_UP = 3


class TorchEngine:
    """The TorchScript file beside a policy's model; see `Engine` for how it is used.

    `forward` takes the picture, then the instruction's `embedding` if the policy has one, and gives the tensors of the
    axes in the order of their first mention. A policy whose manifest keeps states is not for it.
    """

    def __init__(
        self, manifest: Manifest, script: Path, embedding: NDArray[np.float32] | None, *, half: bool, device: str
    ) -> None:
        self._manifest = manifest
        self._script = script
        self._embedding = embedding
        self._half = half
        self._device = device
        self._torch: Any = None
        self._module: Any = None
        self.inputs: Mapping[str, NDArray[Any]] = {}
        self.outputs: dict[str, NDArray[Any]] = {}
        self.how = f"TorchScript {script.name}, one thread" if device == "cpu" else f"TorchScript {script.name}"

    def load(self) -> None:
        """Open the file on the device, in its precision; raises DaemonError."""
        torch = self._torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        image = self._manifest.inputs.image
        arrays: dict[str, NDArray[Any]] = {image.tensor: np.zeros(image.shape, image.dtype)}
        if self._manifest.inputs.instruction is not None and self._embedding is not None:
            arrays[self._manifest.inputs.instruction.tensor] = self._embedding[None].copy()
        self.inputs = arrays
        try:
            module = torch.jit.load(str(self._script), map_location=self._device).eval()
            self._module = module.half() if self._half else module.float()
        except Exception as error:
            raise DaemonError(
                f"{self._script} is no TorchScript file that runs here ({_first_line(error)}): write it again with "
                "torch.jit.trace(network, inputs).save(file).",
                ExitCode.CONFIG,
            ) from error

    def warm_up(self) -> None:
        """Infer a few times; raises DaemonError when the network does not run."""
        try:
            for _ in range(_WARM_UP):
                self.infer(_ignore)
        except EngineError as error:
            name = self._script.with_suffix(".fp16.pt").name
            remedy = f"trace it in FP16 too, as {name}" if self._half else "trace it again with the policy's inputs"
            raise DaemonError(f"{self._script} does not run ({error}): {remedy}.", ExitCode.CONFIG) from None
        self.reset_state()

    def infer(self, stage: Callable[[Stage], None]) -> None:
        """Compute the outputs; `stage` is called as H2D, COMPUTE and D2H begin, the device idle each time."""
        try:
            with self._torch.inference_mode():
                stage(Stage.H2D)
                given = self._upload()
                self._wait()
                stage(Stage.COMPUTE)
                answer = self._module(*given)
                self._wait()
                stage(Stage.D2H)
                self._download(answer)
        except Exception as error:
            raise EngineError(f"PyTorch: {_first_line(error)}") from error

    def _upload(self) -> list[Any]:
        dtype = self._torch.float16 if self._half else self._torch.float32
        given = []
        for array in self.inputs.values():
            tensor = self._torch.from_numpy(array)
            given.append(tensor.to(self._device, dtype if tensor.is_floating_point() else None))
        return given

    def _download(self, answer: Any) -> None:
        tensors = list(answer) if isinstance(answer, tuple | list) else [answer]
        names = dict.fromkeys(axis.tensor for axis in self._manifest.axes)
        if len(tensors) < len(names):
            raise EngineError(f"it gives {len(tensors)} tensors, the axes read {len(names)}")
        for name, tensor in zip(names, tensors, strict=False):
            self.outputs[name] = tensor.float().cpu().numpy().reshape(-1)

    def _wait(self) -> None:
        if self._device != "cpu":
            self._torch.cuda.synchronize()

    def reset_state(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Let go of the network."""
        self._module = None

    def __enter__(self) -> Self:
        """The engine itself, not yet loaded."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class TorchCudaEngine(TorchEngine):
    """The same on a GPU, which has times of its own; every clock is read with the device idle."""

    def infer_timed(self) -> DeviceTimes:
        """One inference, with the times of its parts; raises EngineError."""
        try:
            with self._torch.inference_mode():
                self._wait()
                at = [perf_counter_ns()]
                given = self._upload()
                self._wait()
                at.append(perf_counter_ns())
                answer = self._module(*given)
                at.append(perf_counter_ns())
                self._wait()
                at.append(perf_counter_ns())
                self._download(answer)
                at.append(perf_counter_ns())
        except Exception as error:
            raise EngineError(f"PyTorch: {_first_line(error)}") from error
        began, uploaded, asked, computed, done = (ns / MS for ns in at)
        return DeviceTimes(asked - uploaded, uploaded - began, computed - uploaded, done - computed)


def torch_engine(manifest: Manifest, script: Path, embedding: NDArray[np.float32] | None, *, half: bool) -> TorchEngine:
    """On the GPU where PyTorch has one, else on the processor."""
    cuda = importlib.import_module("torch").cuda.is_available()
    kind = TorchCudaEngine if cuda else TorchEngine
    return kind(manifest, script, embedding, half=half, device="cuda" if cuda else "cpu")


def _first_line(error: Exception) -> str:
    """What PyTorch says last of an error inside TorchScript is what went wrong there."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")


def _ignore(_: Stage) -> None:
    """The stage of a warm-up inference interests nobody."""
