"""What the package uses of cuda.bindings.driver, on the fake GPU: graphs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import IntEnum

import fake_gpu

if os.environ.get("MVLA_DOUBLE_GRAPHS") == "absent":
    raise ImportError("No module named 'cuda.bindings'")


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


OK = (CUresult.CUDA_SUCCESS,)
Graph = Sequence[fake_gpu.Work]


class Executable:
    def __init__(self, graph: Graph) -> None:
        self.graph: Graph | None = tuple(graph)


def cuStreamBeginCapture(handle: int, mode: CUstreamCaptureMode) -> tuple[CUresult]:
    assert mode is CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    stream = fake_gpu.stream_of(handle)
    if os.environ.get("MVLA_DOUBLE_GRAPHS") == "refused":
        return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
    assert stream.captured is None
    stream.captured = []
    return OK


def cuStreamEndCapture(handle: int) -> tuple[CUresult, Graph]:
    stream = fake_gpu.stream_of(handle)
    assert stream.captured is not None
    graph, stream.captured = stream.captured, None
    return (CUresult.CUDA_SUCCESS, graph)


def cuGraphInstantiate(graph: Graph, flags: int) -> tuple[CUresult, Executable]:
    assert flags == 0
    return (CUresult.CUDA_SUCCESS, Executable(graph))


def cuGraphDestroy(graph: Graph) -> tuple[CUresult]:
    return OK


def cuGraphLaunch(executable: Executable, handle: int) -> tuple[CUresult]:
    if executable.graph is None:
        raise fake_gpu.MisuseError("launch of a destroyed graph")
    stream = fake_gpu.stream_of(handle)
    for work in executable.graph:
        stream.ask(work)
    return OK


def cuGraphExecDestroy(executable: Executable) -> tuple[CUresult]:
    executable.graph = None
    return OK
