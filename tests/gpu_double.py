"""The doubles of TensorRT and CUDA put in place for a test in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DOUBLE = Path(__file__).parent / "double"
NAMES = ("tensorrt", "pycuda", "cuda", "fake_gpu")


@contextmanager
def double_in_place() -> Iterator[None]:
    """Imported anew inside, so that the environment's variables of the moment count, and gone afterwards."""
    forget()
    sys.path.insert(0, str(DOUBLE))
    try:
        yield
    finally:
        sys.path.remove(str(DOUBLE))
        forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]
