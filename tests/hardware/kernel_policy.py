"""A policy that is one small CUDA kernel, where TensorRT's network would be: all else of the engine is the real thing.

The engine's code, its stream, its copies, its graph and its state are what runs on the robot; of TensorRT there are
only the few names that the engine asks for while it runs.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from typing_extensions import Self

from mvla_daemon.engines.manifest import Manifest, load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.engines.tensorrt import TensorRtEngine
from tests.onnx_models import SIZE, counting_model, write_manifest

PTX = (Path(__file__).parent / "policy.ptx").read_bytes()
PIXELS = SIZE[0] * SIZE[1]
THREADS = 256
SHAPES = {"images": (1, 3, *SIZE), "h0": (1, 1, 3), "actions": (1, 3), "hN": (1, 1, 3)}
INPUTS = ("images", "h0")


class DataType(IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64 = range(7)


class TensorIOMode(IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def check(driver: Any, answer: tuple[Any, ...]) -> Any:
    error, *values = answer
    assert error == driver.CUresult.CUDA_SUCCESS, error
    return values[0] if values else None


class KernelEngine:
    """What the engine asks of ICudaEngine. The kernel is launched `launches` times, as a network of so many layers."""

    num_io_tensors = len(SHAPES)

    def __init__(self, launches: int, function: bytes = b"policy") -> None:
        self.driver: Any = importlib.import_module("cuda.bindings.driver")
        self.module = check(self.driver, self.driver.cuModuleLoadData(PTX))
        self.function = check(self.driver, self.driver.cuModuleGetFunction(self.module, function))
        self.launches = launches

    def get_tensor_name(self, index: int) -> str:
        return list(SHAPES)[index]

    def get_tensor_dtype(self, _name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in INPUTS else TensorIOMode.OUTPUT

    def create_execution_context(self) -> KernelContext:
        return KernelContext(self)


class KernelContext:
    """What the engine asks of IExecutionContext."""

    def __init__(self, engine: KernelEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return SHAPES[name] == tuple(shape)

    def get_max_output_size(self, name: str) -> int:
        return 4 * 3 if name in SHAPES else 0

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, at = self._engine, self._addresses
        values = (at["images"], at["h0"], at["actions"], at["hN"], PIXELS)
        kinds = (*(ctypes.c_void_p,) * 4, ctypes.c_int)
        for _ in range(engine.launches):
            launched = engine.driver.cuLaunchKernel(
                engine.function, 3, 1, 1, THREADS, 1, 1, 0, stream_handle, (values, kinds), 0
            )
            check(engine.driver, launched)
        return True


class KernelStore:
    """In the place of an EngineStore."""

    def __init__(self, launches: int, function: bytes) -> None:
        self._launches, self._function = launches, function

    def open(self, _cuda: object, _tensorrt: object) -> KernelEngine:
        return KernelEngine(self._launches, self._function)

    def agreed(self, _subject: str) -> str:
        return ""

    def note_agreement(self, _subject: str, _found: str) -> None: ...


class KernelPolicy:
    """The policy and, while it is in use, the names of TensorRT that the engine needs."""

    def __init__(self, folder: Path) -> None:
        counting_model().save(folder / "hallway.onnx")
        self.manifest: Manifest = load_manifest(write_manifest(folder, state=[{"input": "h0", "output": "hN"}]))

    def engine(self, launches: int = 1, function: bytes = b"policy") -> TensorRtEngine:
        store: Any = KernelStore(launches, function)
        return TensorRtEngine(self.manifest, store, OnnxRuntimeEngine(self.manifest))

    def __enter__(self) -> Self:
        names: Any = ModuleType("tensorrt")
        names.__version__ = "10.3.0"
        names.DataType, names.TensorIOMode, names.ILogger = DataType, TensorIOMode, ILogger
        self._before = sys.modules.get("tensorrt")
        sys.modules["tensorrt"] = names
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is None:
            del sys.modules["tensorrt"]
        else:
            sys.modules["tensorrt"] = self._before
