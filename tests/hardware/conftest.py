"""For a machine with a CUDA device; elsewhere each test here is skipped and says why."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from mvla_daemon.engines.tensorrt import TensorRtEngine
from tests.hardware.kernel_policy import KernelPolicy


def why_no_gpu() -> str:
    """What is missing; empty where there is a device that pycuda and cuda-bindings can use."""
    try:
        driver: Any = importlib.import_module("pycuda.driver")
        driver.init()
        importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        return str(error)
    except driver.Error as error:
        return str(error)
    return "" if driver.Device.count() else "no device"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "tests/hardware/" in item.nodeid]
    missing = why_no_gpu() if here else ""
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device: {missing}"))


@pytest.fixture
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPolicy]:
    with KernelPolicy(tmp_path_factory.mktemp("policy")) as policy:
        yield policy


@pytest.fixture
def engine(policy: KernelPolicy) -> Iterator[TensorRtEngine]:
    with policy.engine() as engine:
        engine.load()
        engine.warm_up()
        yield engine
