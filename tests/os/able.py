"""What becomes of a test of the operating system on a machine that cannot run it."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def cannot(why: str) -> NoReturn:
    """Skipped, with the reason; where it was asked for by name (MVLA_TEST_OS=1, as `make test-os` sets), failed."""
    if os.environ.get("MVLA_TEST_OS") == "1":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)
