"""The tests' TensorRT, on the fake GPU: networks run on ONNX Runtime, misuse is an error.

It has the names of the version in MVLA_DOUBLE_TENSORRT, as that version's list in tests/data/tensorrt_api gives them,
and no others: a class, a method or an attribute that the list lacks is not here.
"""

from __future__ import annotations

import os

from tensorrt._build import Builder, IBuilderConfig, INetworkDefinition, IOptimizationProfile, ITensor, OnnxParser
from tensorrt._names import ENUMS, VERSION, check_classes
from tensorrt._objects import IHostMemory, ILogger, IProgressMonitor, ITimingCache, ParserError
from tensorrt._run import ICudaEngine, IExecutionContext, Runtime

__version__ = os.environ.get("MVLA_DOUBLE_VERSION", VERSION)

globals().update(ENUMS)
check_classes(
    Builder,
    IBuilderConfig,
    ICudaEngine,
    IExecutionContext,
    IHostMemory,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITensor,
    ITimingCache,
    OnnxParser,
    ParserError,
    Runtime,
)
