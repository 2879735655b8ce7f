"""The scenes of the whole-daemon tests: a small clip with something moving in it, and small real policies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import settings

from tests.fault_rows import ROWS
from tests.forgiving import TALLY
from tests.meanwhile import Meanwhile, is_meanwhile
from tests.once_more import OnceMore
from tests.onnx_models import ModelFile
from tests.proving import Beside, Proving, is_beside
from tests.reporting import Enter, Room, start_reporter
from tests.rig import GroundRig, Scene
from tests.rows_run import RowsRun

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SIZE = (120, 160)
ONCE_MORE = OnceMore(lambda item: is_meanwhile(item) or is_beside(item))
MEANWHILE = pytest.StashKey[dict[str, "Future[None]"]]()

MANIFEST = """\
name = "{name}"
model = "{name}.onnx"
sha256 = {{ "{name}.onnx" = "{sha256}" }}
weights = "random"

[inputs.image]
tensor = "images"
layout = "NCHW"
dtype = "float32"
size = [32, 32]
color = "RGB"
resize = "squash"
scale = 0.00392156862745098
{state}
[[axis]]
name = "linear_x"
tensor = "actions"
index = 0
scale = 1.0
offset = 0.0
unit = "m/s"

[[axis]]
name = "angular_z"
tensor = "actions"
index = 1
scale = 1.0
offset = 0.0
unit = "rad/s"
"""
STATE = """
[[state]]
input = "count"
output = "counted"
"""


def write_clip(path: Path, pictures: int, *, still: bool = False, noisy: bool = False) -> Path:
    height, width = SIZE
    random = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 50, (width, height))
    assert writer.isOpened()
    for number in range(pictures):
        # Noise makes a file that is larger than what a reader keeps of it in memory.
        picture = (
            random.integers(30, 90, (height, width, 3), np.uint8)
            if noisy
            else np.full((height, width, 3), 60, np.uint8)
        )
        at = 0 if still else (number * 7) % (width - 20)
        picture[40:80, at : at + 20] = 200
        writer.write(picture)
    writer.release()
    return path


def write_manifest(folder: Path, name: str, *, state: bool = False) -> Path:
    digest = hashlib.sha256((folder / f"{name}.onnx").read_bytes()).hexdigest()
    manifest = folder / f"{name}.toml"
    manifest.write_text(MANIFEST.format(name=name, sha256=digest, state=STATE if state else ""))
    return manifest


def steady_model(gain: float) -> ModelFile:
    """Actions [1, 2]: the mean brightness of the picture times a gain, and a small turn."""
    return (
        ModelFile()
        .input("images", "float32", [1, 3, 32, 32])
        .output("actions", "float32", [1, 2])
        .constant("gain", [[gain, 0.1]])
        .node("ReduceMean", "images", "mean", axes=[1, 2, 3], keepdims=0)
        .constant("shape", [1, 1], "int64")
        .node("Reshape", "mean shape", "brightness")
        .node("Mul", "brightness gain", "actions")
    )


def counting_model(cycles: int) -> ModelFile:
    """As the steady one, but from its `cycles`-th inference after a reset on its answer is NaN: sqrt(cycles - n)."""
    return (
        ModelFile()
        .input("images", "float32", [1, 3, 32, 32])
        .input("count", "float32", [1, 1])
        .output("actions", "float32", [1, 2])
        .output("counted", "float32", [1, 1])
        .constant("one", [[1.0]])
        .constant("limit", [[float(cycles)]])
        .constant("gain", [[0.3, 0.1]])
        .constant("zero", [[0.0]])
        .node("ReduceMean", "images", "mean", axes=[1, 2, 3], keepdims=0)
        .constant("shape", [1, 1], "int64")
        .node("Reshape", "mean shape", "brightness")
        .node("Add", "count one", "counted")
        .node("Sub", "limit counted", "left")
        .node("Sqrt", "left", "root")
        .node("Mul", "root zero", "nothing")
        .node("Add", "brightness nothing", "poisoned")
        .node("Mul", "poisoned gain", "actions")
    )


def slow_model(products: int) -> ModelFile:
    """As the steady one, after so many products of 512x512 matrices (one takes about a millisecond and more)."""
    model = steady_model(0.3)
    model.nodes.pop()
    model.constant("matrix", np.eye(512)).constant("flat", [1, 1, 1, 1], "int64").constant("ones", np.ones((512, 512)))
    model.node("Reshape", "mean flat", "scalar4").constant("square", [1, 1], "int64").node(
        "Reshape", "scalar4 square", "scalar"
    ).node("Mul", "ones scalar", "product0")
    for number in range(products):
        model.node("MatMul", f"product{number} matrix", f"product{number + 1}")
    model.node("ReduceMean", f"product{products}", "average", axes=[0, 1], keepdims=1)
    return model.node("Mul", "average gain", "actions")


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clip and the policies that most tests share."""
    folder = tmp_path_factory.mktemp("studio")
    write_clip(folder / "moving.avi", 100)
    write_clip(folder / "still.avi", 100, still=True)
    write_clip(folder / "noisy.avi", 200, noisy=True)
    for name, model in {
        "steady": steady_model(0.5),
        "outrageous": steady_model(1e30),
        "slow": slow_model(40),
    }.items():
        model.save(folder / f"{name}.onnx")
        write_manifest(folder, name)
    counting_model(60).save(folder / "poisoned.onnx")
    write_manifest(folder, "poisoned", state=True)
    return folder


@pytest.fixture(scope="session")
def scene(studio: Path) -> Scene:
    return Scene(studio / "moving.avi", studio / "steady.toml")


@pytest.fixture(scope="session")
def proving(studio: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proving]:
    proving = Proving(lambda: tmp_path_factory.mktemp("proving"), studio / "steady.toml")
    yield proving
    proving.close()


@pytest.fixture(scope="session")
def beside(request: pytest.FixtureRequest, studio: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    second = Proving(lambda: tmp_path_factory.mktemp("beside"), studio / "steady.toml")
    beside = Beside(second, request.session.items, ONCE_MORE)
    yield beside
    beside.close()


@pytest.fixture(scope="session")
def meanwhile(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """What becomes of the tests that mostly wait, by their ids; they begin before all others and are asked for last."""
    if not any(map(is_meanwhile, request.session.items)):
        yield {}
        return
    studio, scene = request.getfixturevalue("studio"), request.getfixturevalue("scene")
    meanwhile = Meanwhile(request.session.items, lambda: tmp_path_factory.mktemp("meanwhile"), studio, scene, ONCE_MORE)
    request.config.stash[MEANWHILE] = meanwhile.results
    yield meanwhile.results
    meanwhile.close()


@pytest.fixture(autouse=True)
def _others_may_begin(request: pytest.FixtureRequest) -> None:
    if not is_alone(request.node):
        request.getfixturevalue("meanwhile")


@pytest.fixture
def ground(request: pytest.FixtureRequest, proving: Proving, beside: Beside) -> Iterator[GroundRig | Future[None]]:
    """A robot that drives on the proving ground; many tests share it. Of a test beside it, what becomes of that."""
    if is_beside(request.node):
        yield beside.results[request.node.nodeid]
    else:
        yield proving.ready()
        proving.judge()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "beside: runs on a second proving ground, beside the others")
    config.addinivalue_line(
        "markers", "meanwhile: mostly waits, for time or for other programs, so it runs beside all others"
    )
    config.addinivalue_line("markers", "needs(*modules): takes packages that only `make test-export` installs")
    config.addinivalue_line("markers", "alone: counts what the whole process has, so it runs before any runs beside it")
    config.pluginmanager.register(TALLY)
    config.pluginmanager.register(ONCE_MORE)
    config.pluginmanager.register(RowsRun(ROWS))


def is_alone(item: pytest.Item) -> bool:
    """Whether nothing may run beside it: it changes the process for its time, or measures all of it."""
    return item.get_closest_marker("alone") is not None or "monkeypatch" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has to be alone comes first; what runs beside the others is asked for last, when it has been done."""
    for item in items:
        _skip_without_its_packages(item)
    items.sort(key=lambda item: (not is_alone(item), is_meanwhile(item), is_beside(item)))


def _skip_without_its_packages(item: pytest.Item) -> None:
    """Where all of them are promised (MVLA_TEST_NEEDS, of `make test-export`) a missing one is an error."""
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    if missing := ", ".join(name for name in names if find_spec(name) is None):
        if os.environ.get("MVLA_TEST_NEEDS"):
            raise pytest.UsageError(f"{item.nodeid} needs {missing}, which should be installed here")
        item.add_marker(pytest.mark.skipif(True, reason=f"{missing} not installed: make test-export"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that runs beside the others has been called by its own thread."""
    if is_meanwhile(pyfuncitem):
        pyfuncitem.config.stash[MEANWHILE][pyfuncitem.nodeid].result()
        return True
    if is_beside(pyfuncitem):
        pyfuncitem.funcargs["ground"].result()
        return True
    return None


@pytest.fixture
def enter() -> Iterator[Enter]:
    """Starts reporters; they end with the test."""
    rooms: list[Room] = []

    def start(*words: str, **options: Any) -> Room:
        rooms.append(start_reporter(*words, **options))
        return rooms[-1]

    yield start
    for room in rooms:
        room.leave()
        room.process.kill()
        room.process.communicate()
