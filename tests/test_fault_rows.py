"""No fault of the table without a test, and none of its tests that does not exist."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from tests.fault_rows import ROWS

ROOT = Path(__file__).parent.parent
NUMBERS = [f"F{number:02}" for number in range(1, 45)]


def test_the_table_has_every_row_once() -> None:
    assert list(ROWS) == NUMBERS


@pytest.mark.parametrize("row", NUMBERS)
def test_a_row_has_tests_and_they_exist(row: str) -> None:
    says, tests = ROWS[row]
    assert says
    assert tests, f"{row} ({says}) has no test"
    assert len(set(tests)) == len(tests)
    always = 0
    for test in tests:
        path, _, name = test.partition("::")
        assert name in _tests_of(ROOT / path), f"{row} ({says}) names {test}, which does not exist"
        always += _tests_of(ROOT / path)[name]
    assert always, f"{row} ({says}) is only tested with MVLA_TEST_LONG"


@lru_cache
def _tests_of(path: Path) -> dict[str, bool]:
    """The tests of a module, and whether they are always run."""
    return {
        node.name: not any(isinstance(one, ast.Name) and one.id == "LONG" for one in node.decorator_list)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }
