"""Policies on ONNX Runtime: the engine that runs everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from mvla_daemon.core.messages import Stage
from mvla_daemon.engines.base import EngineError, OutputGuard
from mvla_daemon.engines.signature import Tensor, match
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mvla_daemon.engines.manifest import Manifest

WARM_UP_INFERENCES = 3
"""The first inference plans its memory and the second uses the plan; the third is as fast as all others."""
_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's words for the element types that a policy can have, and numpy's."""
_ERROR_SEVERITY = 3


class OnnxRuntimeEngine:
    """An ONNX model on one thread of ONNX Runtime; see `Engine` for how it is used.

    `instruction_embedding`, shape (d,), is the instruction's for a policy that takes one. The first of `providers`
    must be there: nothing falls back to another device unasked.
    """

    def __init__(
        self,
        manifest: Manifest,
        instruction_embedding: NDArray[np.float32] | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._manifest = manifest
        self._embedding = instruction_embedding
        self._providers = list(providers)
        self._copies_inputs = self._providers[0] != "CPUExecutionProvider"
        self.how = ""
        self._forget()

    def _forget(self) -> None:
        self._session: Any = None
        self._binding: Any = None
        self._inputs: dict[str, NDArray[Any]] = {}
        self._outputs: dict[str, NDArray[Any]] = {}
        self._states: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._guard = OutputGuard({})

    @property
    def inputs(self) -> Mapping[str, NDArray[Any]]:
        """The model's input buffers by tensor name, in the model's shapes."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """The model's output buffers by tensor name, flattened to (n,)."""
        return self._outputs

    def load(self) -> None:
        """Open the model, hold it against the manifest and allocate; raises DaemonError."""
        needs_one = self._manifest.inputs.instruction is not None
        if needs_one != (self._embedding is not None):
            wrong = "needs an instruction" if needs_one else "takes no instruction"
            raise DaemonError(f"policy {self._manifest.name} {wrong}: mend policy.instruction", ExitCode.CONFIG)
        self._session = self._open()
        signature = match(
            self._manifest,
            None if self._embedding is None else self._embedding.size,
            [_tensor(node) for node in self._session.get_inputs()],
            [_tensor(node) for node in self._session.get_outputs()],
        )
        self._inputs = {name: np.zeros(buffer.shape, buffer.dtype) for name, buffer in signature.inputs.items()}
        shaped = {name: np.zeros(buffer.shape, buffer.dtype) for name, buffer in signature.outputs.items()}
        self._outputs = {name: array.reshape(-1) for name, array in shaped.items()}
        self._guard = OutputGuard(self._outputs)
        self._states = [(self._inputs[state.input], shaped[state.output]) for state in self._manifest.states]
        if self._manifest.inputs.instruction is not None and self._embedding is not None:
            self._inputs[self._manifest.inputs.instruction.tensor][0] = self._embedding
        self._binding = self._session.io_binding()
        for name, array in shaped.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._bind_inputs()

    def _open(self) -> Any:
        available = ort.get_available_providers()
        if absent := [name for name in self._providers if name not in available]:
            sentence = (
                f"ONNX Runtime has no {' and no '.join(absent)} here, only {', '.join(available)}: "
                "install the onnxruntime that has it"
            )
            raise DaemonError(sentence, ExitCode.UNAVAILABLE)
        try:
            session = ort.InferenceSession(
                str(self._manifest.model), _options(), providers=self._providers, enable_fallback=0
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no narrower base
            sentence = (
                f"policy {self._manifest.name}: ONNX Runtime cannot load {self._manifest.model}: fetch the file again, "
                f"or export it anew and put its sha256 in the manifest ({_first_line(error)})"
            )
            raise DaemonError(sentence, ExitCode.CONFIG) from None
        if session.get_providers()[0] != self._providers[0]:
            sentence = f"ONNX Runtime could not start {self._providers[0]}: its libraries or its device are not there"
            raise DaemonError(sentence, ExitCode.UNAVAILABLE)
        return session

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
        """Compute the outputs from the inputs; `stage` is called as H2D, COMPUTE and D2H begin; raises EngineError.

        A bound input is copied to the provider's device when it is bound, not when the model runs, so for a device each
        inference binds its inputs; on the CPU nothing is copied, and binding once is enough. An output bound to host
        memory is copied back by the run itself.
        """
        if self._binding is None:
            raise EngineError("the engine is not loaded")
        stage(Stage.H2D)
        self._guard.mark()
        try:
            if self._copies_inputs:
                self._bind_inputs()
            stage(Stage.COMPUTE)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"ONNX Runtime: {_first_line(error)}") from error
        stage(Stage.D2H)
        self._guard.check()
        for given, kept in self._states:
            np.copyto(given, kept)

    def _bind_inputs(self) -> None:
        for name, array in self._inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def reset_state(self) -> None:
        """Zero the recurrent state."""
        for given, _ in self._states:
            given.fill(0)

    def close(self) -> None:
        """Let go of the model and its buffers; harmless when repeated."""
        self._forget()

    def __enter__(self) -> Self:
        """The engine itself, not yet loaded."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _options() -> ort.SessionOptions:
    """One thread, the caller's, that never spins: the gate and the camera need the other cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _ERROR_SEVERITY
    return options


def _tensor(node: Any) -> Tensor:
    return Tensor(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _ignore(_: Stage) -> None:
    """The stage of a warm-up inference interests nobody."""
