"""From an ONNX file to the bytes of an engine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import onnx

from tensorrt._names import ENUMS, VERSION, Listed
from tensorrt._objects import IHostMemory, ILogger, ITimingCache, ParserError, need_driver, say, wrong

MAGIC = b"double\n"
TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.BOOL: "BOOL",
}


class ITensor(Listed):
    def __init__(self, value: Any) -> None:
        tensor = value.type.tensor_type
        self.name = value.name
        self.dtype = ENUMS["DataType"][TYPES[tensor.elem_type]]
        self.shape = tuple(n.dim_value if n.HasField("dim_value") else -1 for n in tensor.shape.dim)
        self._open = [n.dim_param for n in tensor.shape.dim]

    def get_dimension_name(self, index: int) -> str:
        return str(self._open[index])


class INetworkDefinition(Listed):
    def __init__(self) -> None:
        self._model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._model.graph.input[index])

    def get_output(self, index: int) -> ITensor:
        return ITensor(self._model.graph.output[index])


class OnnxParser(Listed):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    def parse_from_file(self, model: str) -> bool:
        if operator := wrong("unsupported"):
            self._errors.append(ParserError(f"In node 3: No importer registered for op: {operator}"))
            return False
        self._network._model = onnx.load(str(Path(model)))
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile(Listed):
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert tuple(min) == tuple(opt) == tuple(max)
        self._shapes[input] = tuple(opt)


class IBuilderConfig(Listed):
    def __init__(self) -> None:
        self._profiles: list[IOptimizationProfile] = []
        self._flags = {ENUMS["BuilderFlag"]["TF32"]}
        self._pools: dict[int, int] = {}
        self._timing: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: int, pool_size: int) -> None:
        assert pool in ENUMS["MemoryPoolType"].__members__.values()
        self._pools[pool] = pool_size

    def set_flag(self, flag: int) -> None:
        self._flags.add(ENUMS["BuilderFlag"](flag))

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(ENUMS["BuilderFlag"](flag))

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._timing = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        assert self._timing is not None
        return self._timing


class Builder(Listed):
    def __init__(self, logger: ILogger) -> None:
        need_driver()
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << ENUMS["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"]
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        tensors = [network.get_input(at) for at in range(network.num_inputs)]
        shapes = config._profiles[0]._shapes if config._profiles else {}
        unbound = [one.name for one in tensors if -1 in one.shape and one.name not in shapes]
        if unbound:
            say(self.logger, ILogger.ERROR, f"[network.cpp::validate] no profile for {', '.join(unbound)}")
            return None
        if why := wrong("build"):
            say(self.logger, ILogger.ERROR, f"[optimizer.cpp::computeCosts] {why}")
            return None
        self._tell(getattr(config, "progress_monitor", None))
        time.sleep(float(wrong("slow_build") or 0))
        assert config._timing is not None
        config._timing._content = config._timing._content or b"timings"
        about = {"version": VERSION, "shapes": shapes, "perturb": float(wrong("perturb") or 0)}
        model = network._model.SerializeToString()
        return IHostMemory(MAGIC + json.dumps(about).encode() + b"\n" + model)

    def _tell(self, monitor: Any) -> None:
        if monitor is None:
            return
        assert monitor._made
        monitor.phase_start("Building Engine", None, 4)
        monitor.phase_start("Tactic Selection", "Building Engine", 2)
        for step in range(4):
            assert monitor.step_complete("Building Engine", step)
        monitor.phase_finish("Tactic Selection")
        monitor.phase_finish("Building Engine")
