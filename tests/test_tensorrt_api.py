"""Every name and call of TensorRT that the package uses, held against the lists of what its versions have.

The code is read, not run: what stands for which of TensorRT's classes is the table below, and whatever the package
takes from one of them has to be in all three lists, with arguments that the lists allow.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "mvla_daemon"
LISTS = {path.stem: json.loads(path.read_bytes()) for path in (Path(__file__).parent / "data/tensorrt_api").glob("*")}
FILES = [PACKAGE / f"engines/{name}.py" for name in ("tensorrt", "tensorrt_library", "engine_build", "engine_store")]
MODULE = {"trt", "self.trt", "tensorrt.trt", "self._tensorrt.trt"}
ENUMS = {"types": "DataType", "self._modes": "TensorIOMode"}
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser.get_error(at)": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "config.get_timing_cache()": "ITimingCache",
    "runtime": "Runtime",
    "tensor": "ITensor",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
}
Use = tuple[int, str, str, "ast.Call | None"]


def uses(tree: ast.AST) -> Iterator[Use]:
    """Line, class (or "module", or an enum), name and the call, if it is one, of everything taken from TensorRT."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        receiver = ast.unparse(node.value)
        call = calls.get(id(node))
        if receiver in MODULE:
            yield node.lineno, "module", node.attr, call
        elif receiver in ENUMS:
            yield node.lineno, ENUMS[receiver], node.attr, None
        elif receiver in CLASSES:
            yield node.lineno, CLASSES[receiver], node.attr, call
        elif isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) in MODULE:
            # A base class's own __init__ is given the object itself, which no list counts.
            yield node.lineno, node.value.attr, node.attr, None if node.attr == "__init__" else call


def problem(listed: dict[str, Any], use: Use) -> str:
    """Why a version would not have it; empty when it has."""
    line, owner, name, call = use
    classes, enums = listed["classes"], listed["enums"]
    if owner == "module":
        if name == "__version__" or name in enums:
            return ""
        if name not in classes:
            return f"line {line}: the module has no {name}"
        entry = classes[name].get("__init__", {})
    elif owner in enums:
        return "" if name in enums[owner] else f"line {line}: {owner} has no {name}"
    elif name not in classes.get(owner, {}):
        return f"line {line}: {owner} has no {name}"
    else:
        entry = classes[owner][name]
    return misfit(entry.get("params"), call, f"line {line}: {owner}.{name}") if call is not None else ""


def misfit(params: list[str] | None, call: ast.Call, what: str) -> str:
    if params is None or "*args" in params:
        return ""
    names = [param.rstrip("?") for param in params]
    required = {param for param in params if not param.endswith("?")}
    given = set(names[: len(call.args)]) | {str(keyword.arg) for keyword in call.keywords}
    if len(call.args) > len(names) or not given <= set(names) or not required <= given:
        return f"{what} takes ({', '.join(params)}), given {', '.join(sorted(given))}"
    return ""


@pytest.mark.parametrize("version", sorted(LISTS))
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_that_is_used_of_tensorrt_is_there(path: Path, version: str) -> None:
    tree = ast.parse(path.read_text())
    assert [found for use in uses(tree) if (found := problem(LISTS[version], use))] == []


def test_the_uses_that_matter_are_among_those_that_are_checked() -> None:
    seen = {(owner, name) for path in FILES for _, owner, name, _ in uses(ast.parse(path.read_text()))}
    assert len(seen) > 45
    assert seen >= {
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_tensor_address"),
        ("Builder", "build_serialized_network"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("OnnxParser", "parse_from_file"),
        ("Runtime", "deserialize_cuda_engine"),
        ("MemoryPoolType", "WORKSPACE"),
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag has no FP16"),
        ("builder.max_batch_size = 1", "Builder has no max_batch_size"),
        ("self._context.execute_async_v2(1, 2)", "IExecutionContext has no execute_async_v2"),
        ("self._context.execute_async_v3()", "execute_async_v3 takes (stream_handle)"),
        ("network.get_input(at=1)", "get_input takes (index)"),
        ("trt.init_everything()", "the module has no init_everything"),
    ],
)
def test_what_a_version_lacks_is_found(line: str, why: str) -> None:
    found = [problem(LISTS["11.4"], use) for use in uses(ast.parse(line))]
    assert any(why in text for text in found)


@pytest.mark.parametrize("version", sorted(LISTS))
def test_what_tensorrt_calls_has_the_names_that_it_calls(version: str) -> None:
    checked = 0
    for path in FILES:
        for cls in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)):
            for base in (ast.unparse(base) for base in cls.bases):
                if not base.startswith("trt."):
                    continue
                listed = LISTS[version]["classes"][base.removeprefix("trt.")]
                for method in (item for item in cls.body if isinstance(item, ast.FunctionDef)):
                    if method.name != "__init__":
                        assert [argument.arg for argument in method.args.args[1:]] == listed[method.name]["params"]
                        checked += 1
    assert checked == 4


def test_nothing_but_the_tensorrt_engine_imports_tensorrt_or_cuda() -> None:
    names = ("tensorrt", "pycuda", "cuda.bindings")
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                imported = [ast.unparse(node.args[0]).strip("'")]
            else:
                continue
            if any(name == wanted or name.startswith(f"{wanted}.") for name in imported for wanted in names):
                found.add(path.relative_to(PACKAGE).as_posix())
    # The probe looks in a process of its own, which may crash.
    assert found == {"doctor/probe.py", "engines/cuda.py", "engines/tensorrt_library.py", "ops/check.py"}
