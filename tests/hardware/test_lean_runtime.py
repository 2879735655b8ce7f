"""The real library, as far as an ordinary package brings it: TensorRT's lean runtime refuses what is no engine.

It is installed as tests/test_lean_runtime.py says, which holds what needs no device of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest

from mvla_daemon.engines.cuda import Cuda
from mvla_daemon.engines.tensorrt_library import TensorRt


@pytest.fixture
def library() -> Iterator[TensorRt]:
    lean = pytest.importorskip("tensorrt_lean_bindings", reason="TensorRT's lean runtime is not installed")
    before = sys.modules.get("tensorrt")
    sys.modules["tensorrt"] = lean
    cuda = Cuda()
    try:
        yield TensorRt(cuda)
    finally:
        cuda.close()
        sys.modules.pop("tensorrt")
        if before is not None:
            sys.modules["tensorrt"] = before


@pytest.mark.parametrize("plan", [b"", b"no engine", bytes(100_000)])
def test_a_broken_engine_is_refused_in_the_librarys_own_words(library: TensorRt, plan: bytes) -> None:
    runtime = library.trt.Runtime(library.logger)
    try:
        assert runtime.deserialize_cuda_engine(plan) is None
    except (RuntimeError, TypeError):  # of nothing at all
        assert plan == b""
    else:
        assert library.complaints() != "TensorRT gave no reason"


def test_the_types_that_policies_have_are_known_to_it(library: TensorRt) -> None:
    types = library.trt.DataType
    known = [library.dtype_name(one) for one in (types.FLOAT, types.HALF, types.UINT8)]
    assert known == ["float32", "float16", "uint8"]
    assert importlib.import_module("tensorrt").__version__ == library.trt.__version__
