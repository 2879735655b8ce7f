"""Policies on TensorRT: the engine of the robot, in one CUDA context and one stream.

Everything an inference does (copies in, the network, copies out, the recurrent state handed on) is asked for on one
stream, as one CUDA graph where the libraries allow, and waited for once, asleep, while other threads run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.core.messages import MS, Stage
from mvla_daemon.engines.base import DeviceTimes, EngineError, OutputGuard
from mvla_daemon.engines.cuda import Cuda, CudaError, Graph
from mvla_daemon.engines.files import sha256_of_bytes
from mvla_daemon.engines.parity import synthetic_pictures, worst_axis
from mvla_daemon.engines.signature import Signature, Tensor, match
from mvla_daemon.engines.tensorrt_library import TensorRt
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mvla_daemon.engines.base import Engine
    from mvla_daemon.engines.engine_store import EngineStore
    from mvla_daemon.engines.manifest import Manifest

WARM_UP_INFERENCES = 10
"""The first ones load kernels (CUDA loads them lazily) and raise the clocks."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """One tensor: its memory on the device, and the page-locked host array where somebody writes or reads it."""

    device: Any
    size: int
    host: NDArray[Any] | None = None


class TensorRtEngine:
    """An engine that `store` has or builds, of a policy; see `Engine` for how it is used.

    `reference` is the model on ONNX Runtime, not loaded, that its answers are held against. `instruction_embedding`,
    shape (d,), is the instruction's for a policy that takes one. `how` says after `load` how inferences are asked for
    (and why not as a graph where they are not), and how far the answers are from the reference's.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: EngineStore,
        reference: Engine,
        instruction_embedding: NDArray[np.float32] | None = None,
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._reference = reference
        self._embedding = instruction_embedding
        self.how = ""
        self._forget()

    def _forget(self) -> None:
        self._cuda: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._graph: Graph | None = None
        self._slots: dict[str, _Slot] = {}
        self._inputs: dict[str, NDArray[Any]] = {}
        self._outputs: dict[str, NDArray[Any]] = {}
        self._guard = OutputGuard({})

    @property
    def inputs(self) -> Mapping[str, NDArray[Any]]:
        """The image's and the instruction's page-locked buffers by tensor name, in the model's shapes."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """The page-locked buffers of the outputs that axes read, by tensor name, flattened to (n,)."""
        return self._outputs

    # --- loading ---

    def load(self) -> None:
        """Fetch or build the engine, allocate, record the graph, hold it against the reference; raises DaemonError."""
        needs_one = self._manifest.inputs.instruction is not None
        if needs_one != (self._embedding is not None):
            wrong = "needs an instruction" if needs_one else "takes no instruction"
            raise DaemonError(f"policy {self._manifest.name} {wrong}: mend policy.instruction", ExitCode.CONFIG)
        self._cuda = Cuda()
        self._tensorrt = TensorRt(self._cuda)
        self._engine = self._store.open(self._cuda, self._tensorrt)
        try:
            self._context = self._done(self._engine.create_execution_context())
            self._allocate(self._signature())
            self._enqueue()  # the first one settles what a graph must find settled
            self._cuda.wait()
            self._record()
            self._compare()
        except (CudaError, EngineError) as error:
            raise DaemonError(
                f"policy {self._manifest.name} cannot be made ready on {self._cuda.gpu} ({error}): free memory on the "
                "device, or use a smaller policy",
                ExitCode.UNAVAILABLE,
            ) from None

    def _done(self, answer: Any) -> Any:
        """What TensorRT gave; where that is None or False, its complaints are raised as CudaError."""
        if not answer:
            raise CudaError(self._tensorrt.complaints())
        return answer

    def _signature(self) -> Signature:
        tensors: dict[Any, list[Tensor]] = {mode: [] for mode in (self._modes.INPUT, self._modes.OUTPUT)}
        for name in self._names():
            shape = tuple(n if n >= 0 else "batch" for n in self._engine.get_tensor_shape(name))
            dtype = self._tensorrt.dtype_name(self._engine.get_tensor_dtype(name))
            tensors[self._engine.get_tensor_mode(name)].append(Tensor(name, dtype, shape))
        size = None if self._embedding is None else self._embedding.size
        return match(self._manifest, size, tensors[self._modes.INPUT], tensors[self._modes.OUTPUT])

    @property
    def _modes(self) -> Any:
        return self._tensorrt.trt.TensorIOMode

    def _names(self) -> Iterator[str]:
        return (self._engine.get_tensor_name(at) for at in range(self._engine.num_io_tensors))

    def _allocate(self, signature: Signature) -> None:
        """Memory for every tensor of the engine, whose addresses are told once and for all."""
        kept = {name for state in self._manifest.states for name in (state.input, state.output)}
        read = {axis.tensor for axis in self._manifest.axes}
        for name, buffer in signature.inputs.items():
            self._done(self._context.set_input_shape(name, buffer.shape))
            host = None if name in kept else self._cuda.host(buffer.shape, buffer.dtype)
            self._give(name, prod(buffer.shape) * np.dtype(buffer.dtype).itemsize, host)
            if host is not None:
                self._inputs[name] = host
        for name in self._names():
            if name not in signature.inputs:
                wanted = signature.outputs.get(name)
                host = self._cuda.host(wanted.shape, wanted.dtype) if wanted and name in read else None
                self._give(name, int(self._context.get_max_output_size(name)), host)
                if host is not None:
                    self._outputs[name] = host.reshape(-1)
        if self._manifest.inputs.instruction is not None and self._embedding is not None:
            self._inputs[self._manifest.inputs.instruction.tensor][0] = self._embedding
        self._guard = OutputGuard(self._outputs)

    def _give(self, name: str, size: int, host: NDArray[Any] | None) -> None:
        slot = _Slot(self._cuda.allocate(size), size, host)
        self._done(self._context.set_tensor_address(name, int(slot.device)))
        self._slots[name] = slot

    def _record(self) -> None:
        try:
            self._graph = self._cuda.capture(self._enqueue)
        except CudaError as error:
            self._tensorrt.complaints()
            self.how = f"without a CUDA graph ({error})"
        else:
            self.how = "as one CUDA graph"

    def _compare(self) -> None:
        """Hold the answers against ONNX Runtime's, unless that was done before for the same engine and manifest."""
        about = self._manifest.model_dump_json().encode()
        subject = sha256_of_bytes(about if self._embedding is None else about + self._embedding.tobytes())
        found = self._store.agreed(subject)
        if not found:
            pictures = synthetic_pictures(self._manifest.inputs.image.size)
            with self._reference as reference:
                reference.load()
                worst = worst_axis(self._manifest, self, reference, pictures)
            if worst.share > 1:
                raise DaemonError(
                    f"policy {self._manifest.name}: the engine's answers differ from the model's on ONNX Runtime, most "
                    f'of all {worst.line()}: set tensorrt.precision to "fp32", or train for FP16; the manifest\'s '
                    "parity_tolerance says what is allowed",
                    ExitCode.CONFIG,
                )
            found = f"off from ONNX Runtime most of all in {worst.line()}"
            self._store.note_agreement(subject, found)
        self.how += f", {found}"

    # --- an inference ---

    def warm_up(self) -> None:
        """Infer a few times, then zero the state; raises DaemonError when the model does not run."""
        try:
            for _ in range(WARM_UP_INFERENCES):
                self.infer(_ignore)
        except EngineError as error:
            sentence = f"policy {self._manifest.name} does not run: {error}: export {self._manifest.model.name} anew"
            raise DaemonError(sentence, ExitCode.CONFIG) from None
        self.reset_state()

    def infer(self, stage: Callable[[Stage], None]) -> None:
        """Compute the outputs from the inputs; raises EngineError.

        The stages are those of the host: H2D while the work is asked for, COMPUTE while it is waited for, with all its
        copies. `infer_timed` tells them apart.
        """
        if self._context is None:
            raise EngineError("the engine is not loaded")
        stage(Stage.H2D)
        self._guard.mark()
        try:
            if self._graph is None:
                self._enqueue()
            else:
                self._graph.launch()
            stage(Stage.COMPUTE)
            self._cuda.wait()
        except CudaError as error:
            raise EngineError(f"TensorRT: {error} ({self._tensorrt.complaints()})") from error
        stage(Stage.D2H)
        self._guard.check()

    def infer_timed(self) -> DeviceTimes:
        """One inference step by step, without the graph, with the device's own time of each; raises EngineError."""
        marks: list[Any] = []
        try:
            began_ns = monotonic_ns()
            self._enqueue(lambda: marks.append(self._cuda.event()))
            enqueued_ns = monotonic_ns()
            self._cuda.wait()
        except CudaError as error:
            raise EngineError(f"TensorRT: {error} ({self._tensorrt.complaints()})") from error
        h2d, compute, d2h = (self._cuda.between_ms(*pair) for pair in pairwise(marks))
        return DeviceTimes((enqueued_ns - began_ns) / MS, h2d, compute, d2h)

    def _enqueue(self, mark: Callable[[], None] | None = None) -> None:
        """Ask for one inference on the stream; `mark` is called before it and after each of its three parts.

        The outputs' host buffers are copied in as well, so that what the network does not write shows its mark.
        """
        mark = mark or _nothing
        mark()
        for slot in self._slots.values():
            if slot.host is not None:
                self._cuda.upload(slot.device, slot.host)
        mark()
        self._done(self._context.execute_async_v3(self._cuda.stream_handle))
        mark()
        for name in self._outputs:
            slot = self._slots[name]
            self._cuda.download(slot.host, slot.device)
        for state in self._manifest.states:
            given = self._slots[state.input]
            self._cuda.copy(given.device, self._slots[state.output].device, given.size)
        mark()

    def reset_state(self) -> None:
        """Zero the recurrent state, which lives on the device."""
        for state in self._manifest.states:
            slot = self._slots[state.input]
            self._cuda.clear(slot.device, slot.size)

    # --- the end ---

    def close(self) -> None:
        """Let go of everything on the device, last of all of the device; harmless when repeated."""
        cuda, graph = self._cuda, self._graph
        if graph is not None:
            graph.close()
        self._forget()
        if cuda is not None:
            cuda.close()

    def __enter__(self) -> Self:
        """The engine itself, not yet loaded."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _ignore(_: Stage) -> None:
    """The stage of a warm-up inference interests nobody."""


def _nothing() -> None:
    """No mark is wanted."""
