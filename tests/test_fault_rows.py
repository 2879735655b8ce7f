"""No fault of the table without a test, and none of its tests that does not exist."""

from __future__ import annotations

import ast
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
    for test in tests:
        path, _, name = test.partition("::")
        assert name in _tests_of(ROOT / path), f"{row} ({says}) names {test}, which does not exist"


def _tests_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }
