"""The core and the wire protocols touch nothing outside, and the gate stays small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

import mvla_daemon

PACKAGE = Path(mvla_daemon.__file__).parent
PURE = [
    *sorted(PACKAGE.glob("core/*.py")),
    PACKAGE / "motors/controller_watch.py",
    PACKAGE / "motors/link_v1.py",
    PACKAGE / "motors/motion_watch.py",
    PACKAGE / "motors/mvla.py",
]
SIMULATED = [
    PACKAGE / f"sim/{name}.py"
    for name in (
        *("room", "layout", "body", "world", "expert"),
        *("ramp", "motors", "controller", "robot", "timeline", "verdict"),
    )
]
"""Pure but for what they draw at random, always from a seed."""
ALLOWED = {
    "__future__",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "math",
    "operator",
    "struct",
    "typing",
    "zlib",
    "mvla_daemon.core",
    "mvla_daemon.errors",
    "mvla_daemon.motors.controller_watch",
    "mvla_daemon.motors.link_v1",
    "mvla_daemon.motors.motion_watch",
}
ALLOWED_FOR_SIMULATION = {"heapq", "itertools", "random", *(f"mvla_daemon.sim.{path.stem}" for path in SIMULATED)}
ALLOWED_FOR_PICTURES = {"numpy", "cv2", "mvla_daemon.opencv"}
BUILTINS_THAT_REACH_OUT = {"open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__"}


def reaches_out(source: str, also: AbstractSet[str] = frozenset()) -> list[str]:
    """The imports and calls in a module's source, wherever they stand, with which it is no longer pure."""
    allowed = ALLOWED | also
    found: list[str] = []
    nodes: list[list[ast.AST]] = [[ast.parse(source)]]
    while nodes:
        for node in nodes.pop():
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                nodes.append(list(node.orelse))
                continue
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names if not _is_among(alias.name, allowed)]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                found += [module] if not _is_among(module, allowed) else []
            elif isinstance(node, ast.Name) and node.id in BUILTINS_THAT_REACH_OUT:
                found.append(node.id)
            nodes.append(list(ast.iter_child_nodes(node)))
    return found


def _is_among(module: str, allowed: set[str]) -> bool:
    return module in allowed or (module.startswith("mvla_daemon.core.") and "mvla_daemon.core" in allowed)


@pytest.mark.parametrize("path", PURE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_pure_module_imports_no_io_no_clock_and_no_event_loop(path: Path) -> None:
    assert reaches_out(path.read_text(), ALLOWED_FOR_PICTURES if path.name == "image.py" else set()) == []


@pytest.mark.parametrize("path", SIMULATED, ids=lambda path: path.name)
def test_the_simulated_robot_is_a_function_of_its_seeds_and_of_what_it_is_told(path: Path) -> None:
    assert reaches_out(path.read_text(), ALLOWED_FOR_SIMULATION) == []
    assert unseeded(path.read_text()) == []


def unseeded(source: str) -> list[str]:
    """What a module takes of `random` other than a generator of its own, made from a seed that names what it is for."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            found.append("from random import")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random" and node.attr != "Random":
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "random.Random" and len(node.args) != 1:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import random\ndraw = random.Random(f'room {seed}')\nx = draw.random()", []),
        ("import random\nrandom.random()", ["random.random"]),
        ("import random\nrandom.seed(1)", ["random.seed"]),
        ("import random\nrandom.Random()", ["random.Random()"]),
        ("from random import Random", ["from random import"]),
    ],
)
def test_chance_without_a_seed_is_found(source: str, found: list[str]) -> None:
    assert unseeded(source) == found


def test_every_pure_module_is_looked_at() -> None:
    names = {path.stem for path in PURE}
    assert names >= {"messages", "session", "safety", "admission", "schedule", "freshness", "limits", "link_v1", "mvla"}


@pytest.mark.parametrize(
    "module",
    ["time", "os", "socket", "select", "threading", "asyncio", "serial", "subprocess", "pathlib", "signal", "random"],
)
@pytest.mark.parametrize(
    "source",
    ["import {}", "from {} import x", "def f():\n    import {}", "import math\ntry:\n    import {} as y\nexcept: 0"],
)
def test_an_impure_import_is_found_wherever_it_stands(source: str, module: str) -> None:
    assert reaches_out(source.format(module)) == [module]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import numpy", ["numpy"]),
        ("from mvla_daemon import gate", ["mvla_daemon"]),
        ("from mvla_daemon.motors.serial_port import SerialPort", ["mvla_daemon.motors.serial_port"]),
        ("from . import messages", ["."]),
        ("def f(path):\n    return open(path)", ["open"]),
        ("if TYPE_CHECKING:\n    import os\nelse:\n    import time", ["time"]),
    ],
)
def test_other_ways_out_are_found_too(source: str, found: list[str]) -> None:
    assert reaches_out(source) == found


@pytest.mark.parametrize(
    "module", ["mvla_daemon.daemon", "mvla_daemon.gate", "mvla_daemon.helm", "mvla_daemon.stand_ins"]
)
def test_the_gates_process_loads_neither_pictures_nor_an_engine_nor_an_event_loop(module: str) -> None:
    code = f"import sys, {module}; print(*(name.split('.')[0] for name in sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(process.stdout.split())
    assert "mvla_daemon" in loaded
    assert not loaded & {"numpy", "cv2", "onnxruntime", "asyncio", "uvloop", "tensorrt", "pycuda", "structlog"}
