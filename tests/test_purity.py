"""The core and the wire protocols touch nothing outside, and the gate stays small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mvla_daemon

PACKAGE = Path(mvla_daemon.__file__).parent
PURE = [
    *sorted(PACKAGE.glob("core/*.py")),
    PACKAGE / "motors/controller_watch.py",
    PACKAGE / "motors/link_v1.py",
    PACKAGE / "motors/mvla.py",
]
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
}
ALLOWED_FOR_PICTURES = {"numpy", "cv2", "mvla_daemon.opencv"}
BUILTINS_THAT_REACH_OUT = {"open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__"}


def reaches_out(source: str, *, pictures: bool = False) -> list[str]:
    """The imports and calls in a module's source, wherever they stand, with which it is no longer pure."""
    allowed = ALLOWED | ALLOWED_FOR_PICTURES if pictures else ALLOWED
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
    assert reaches_out(path.read_text(), pictures=path.name == "image.py") == []


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


@pytest.mark.parametrize("module", ["mvla_daemon.daemon", "mvla_daemon.gate", "mvla_daemon.helm"])
def test_the_gates_process_loads_neither_pictures_nor_an_engine_nor_an_event_loop(module: str) -> None:
    code = f"import sys, {module}; print(*(name.split('.')[0] for name in sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(process.stdout.split())
    assert "mvla_daemon" in loaded
    assert not loaded & {"numpy", "cv2", "onnxruntime", "asyncio", "uvloop", "tensorrt", "pycuda", "structlog"}
