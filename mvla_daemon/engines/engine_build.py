"""Building a TensorRT engine from an ONNX model: strongly typed, so that the model's own types say what is FP16.

One way for TensorRT 10.3 to 11.x, where BuilderFlag.FP16 is gone: the model is cast first (`half.py`), its inputs and
outputs staying as the manifest says. It takes minutes on a Jetson, so it says how far it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from mvla_daemon.engines.half import cast_to_half
from mvla_daemon.engines.signature import Tensor, match
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mvla_daemon.engines.manifest import Manifest
    from mvla_daemon.engines.tensorrt_library import TensorRt

MIB = 1 << 20
TELL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """What the configuration says of engines: `dla_core` of None is the GPU, `folder` of None the user's cache."""

    precision: str = "fp16"
    workspace_mib: int = 1024
    dla_core: int | None = None
    folder: Path | None = None


class EngineBuilder:
    """Builds the engine of a policy; `tell` is given a sentence every few seconds.

    `embedding_size` is the instruction's, None without one.
    """

    def __init__(
        self, manifest: Manifest, settings: BuildSettings, embedding_size: int | None, tell: Callable[[str], None]
    ) -> None:
        self._manifest = manifest
        self._settings = settings
        self._embedding_size = embedding_size
        self._tell = tell

    def build(self, tensorrt: TensorRt, timing: bytes, scratch: Path) -> tuple[bytes, bytes]:
        """The engine, and the timing cache that has grown with it; `scratch` is a folder for the model's cast.

        Raises DaemonError, CONFIG, when TensorRT refuses the model, with its own words; OSError of the disk.
        """
        model = self._manifest.model
        if self._settings.precision == "fp16":
            model = scratch / "half.onnx"
            cast_to_half(self._manifest.model, model)
        return self._build(tensorrt, model, timing)

    def _build(self, tensorrt: TensorRt, model: Path, timing: bytes) -> tuple[bytes, bytes]:
        trt = tensorrt.trt
        builder = trt.Builder(tensorrt.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, tensorrt.logger)
        if not parser.parse_from_file(str(model)):
            errors = "; ".join(parser.get_error(at).desc() for at in range(parser.num_errors))
            raise self._refused(errors or tensorrt.complaints())
        config = self._configure(tensorrt, builder)
        self._add_profile(tensorrt, builder, network, config)
        cache = config.create_timing_cache(timing)
        config.set_timing_cache(cache, ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refused(tensorrt.complaints())
        return bytes(memoryview(plan)), bytes(memoryview(config.get_timing_cache().serialize()))

    def _configure(self, tensorrt: TensorRt, builder: Any) -> Any:
        trt, settings = tensorrt.trt, self._settings
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
        config.clear_flag(trt.BuilderFlag.TF32)  # where something is computed in FP32, it is meant to be
        config.progress_monitor = _progress_monitor(trt, self._tell)
        if settings.dla_core is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = settings.dla_core
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # no DLA computes every kind of layer
        return config

    def _add_profile(self, tensorrt: TensorRt, builder: Any, network: Any, config: Any) -> None:
        """Hold the network against the manifest, and bind what it leaves open: a batch of one and nothing else."""
        inputs = [network.get_input(at) for at in range(network.num_inputs)]
        outputs = [network.get_output(at) for at in range(network.num_outputs)]
        signature = match(
            self._manifest,
            self._embedding_size,
            [_tensor(tensorrt, one) for one in inputs],
            [_tensor(tensorrt, one) for one in outputs],
        )
        if all(n >= 0 for one in inputs for n in one.shape):
            return
        profile = builder.create_optimization_profile()
        for one in inputs:
            shape = signature.inputs[one.name].shape
            profile.set_shape(one.name, shape, shape, shape)
        config.add_optimization_profile(profile)

    def _refused(self, why: str) -> DaemonError:
        return DaemonError(
            f"policy {self._manifest.name}: TensorRT cannot build {self._manifest.model.name} ({why}): export it with "
            'other operators, or set policy.backend to "onnxruntime"',
            ExitCode.CONFIG,
        )


def _tensor(tensorrt: TensorRt, tensor: Any) -> Tensor:
    """An input or output of the network; a dimension that it leaves open has its ONNX name."""
    shape = tuple(n if n >= 0 else tensor.get_dimension_name(at) or None for at, n in enumerate(tensor.shape))
    return Tensor(tensor.name, tensorrt.dtype_name(tensor.dtype), shape)


def _progress_monitor(trt: Any, tell: Callable[[str], None]) -> Any:
    """A monitor of TensorRT's own kind that tells how far the outermost phase is. It is called from several threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._told_s = monotonic() - TELL_EVERY_S  # the first step is told at once

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._steps.get(phase_name)
            if steps and monotonic() - self._told_s >= TELL_EVERY_S:
                self._told_s = monotonic()
                tell(f"building the engine: {100 * (step + 1) // steps} % of {phase_name}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
