"""From the bytes of an engine to inferences on a stream."""

from __future__ import annotations

import json
from typing import Any

import fake_gpu
import numpy as np
import onnx
import onnxruntime as ort

from tensorrt._build import MAGIC, TYPES
from tensorrt._names import ENUMS, VERSION, Listed
from tensorrt._objects import ILogger, need_driver, say, wrong

NUMPY = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


class Runtime(Listed):
    def __init__(self, logger: ILogger) -> None:
        need_driver()
        self.logger = logger

    def deserialize_cuda_engine(self, *args: Any) -> ICudaEngine | None:
        plan = bytes(args[0])
        if not plan.startswith(MAGIC):
            say(self.logger, ILogger.ERROR, "[runtime.cpp] Serialization assertion magicTagRead failed")
            return None
        head, _, model = plan.removeprefix(MAGIC).partition(b"\n")
        about = json.loads(head)
        if about["version"] != VERSION:
            say(self.logger, ILogger.ERROR, "[stdArchiveReader.cpp] Version tag does not match")
            return None
        return ICudaEngine(self.logger, onnx.load_from_string(model), about)


class ICudaEngine(Listed):
    def __init__(self, logger: ILogger, model: Any, about: dict[str, Any]) -> None:
        self._logger = logger
        self._context = fake_gpu.context()
        self._perturb = about["perturb"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would undo casts to FP16
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {value.name: (value, "INPUT") for value in model.graph.input}
        values |= {value.name: (value, "OUTPUT") for value in model.graph.output}
        self._values = {name: self._tensor(value, mode) for name, (value, mode) in values.items()}

    def _tensor(self, value: Any, mode: str) -> tuple[str, tuple[int, ...], str]:
        tensor = value.type.tensor_type
        shape = tuple(n.dim_value if n.HasField("dim_value") else -1 for n in tensor.shape.dim)
        return TYPES[tensor.elem_type], shape, mode

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return ENUMS["DataType"][self._values[name][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._values[name][1]

    def get_tensor_mode(self, name: str) -> Any:
        return ENUMS["TensorIOMode"][self._values[name][2]]

    def create_execution_context(self) -> IExecutionContext | None:
        assert fake_gpu.context() is self._context
        if wrong("no_context"):
            say(self._logger, ILogger.ERROR, "[executionContext.cpp] out of memory: requested 1073741824 bytes")
            return None
        return IExecutionContext(self)


class IExecutionContext(Listed):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes = {name: shape for name, (_, shape, _) in engine._values.items() if -1 not in shape}
        self._settled = False

    def set_input_shape(self, *args: Any) -> bool:
        name, shape = args[0], tuple(args[1])
        wanted = self._engine._values[name][1]
        if len(shape) != len(wanted) or any(w not in {-1, n} for w, n in zip(wanted, shape, strict=True)):
            say(self._engine._logger, ILogger.ERROR, f"[API Usage Error] shape {shape} does not fit {name} {wanted}")
            return False
        self._shapes[name] = shape
        return True

    def _shape(self, name: str) -> tuple[int, ...]:
        """What an output comes to; the fake GPU's outputs leave open the batch at most."""
        return tuple(1 if n == -1 else n for n in self._shapes.get(name, self._engine._values[name][1]))

    def _bytes(self, name: str) -> int:
        return int(np.prod(self._shape(name), dtype=int)) * np.dtype(NUMPY[self._engine._values[name][0]]).itemsize

    def get_max_output_size(self, name: str) -> int:
        assert self._engine._values[name][2] == "OUTPUT"
        return self._bytes(name)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._values or not memory:
            say(self._engine._logger, ILogger.ERROR, f"[API Usage Error] {name} is no tensor of this engine")
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        if fake_gpu.context() is not engine._context:
            raise fake_gpu.MisuseError("the engine belongs to another context")
        stream = fake_gpu.stream_of(stream_handle)
        if missing := engine._values.keys() - self._addresses.keys():
            raise fake_gpu.MisuseError(f"no address was set for {', '.join(sorted(missing))}")
        inputs = {name for name, (_, _, mode) in engine._values.items() if mode == "INPUT"}
        if missing := inputs - self._shapes.keys():
            raise fake_gpu.MisuseError(f"no shape was set for {', '.join(sorted(missing))}")
        if why := wrong("execute"):
            say(engine._logger, ILogger.ERROR, f"[executionContext.cpp] {why}")
            return False
        if stream.captured is not None and not self._settled:
            say(engine._logger, ILogger.ERROR, "[API Usage Error] captured before the first enqueue")
            return False
        for name in engine._values:  # what is too small shows when the device uses it; here already when it is asked to
            engine._context.view(self._addresses[name], self._bytes(name))
        self._settled = True
        stream.ask(self._compute)
        return True

    def _array(self, name: str) -> Any:
        dtype = NUMPY[self._engine._values[name][0]]
        raw = self._engine._context.view(self._addresses[name], self._bytes(name))
        return raw.view(dtype).reshape(self._shape(name))

    def _compute(self) -> None:
        if why := wrong("device"):
            raise RuntimeError(why)
        engine = self._engine
        fed = {name: self._array(name).copy() for name, (_, _, mode) in engine._values.items() if mode == "INPUT"}
        names = [output.name for output in engine._session.get_outputs()]
        for name, value in zip(names, engine._session.run(names, fed), strict=True):
            if name != wrong("unwritten"):
                self._array(name)[...] = value if not engine._perturb else value + engine._perturb
