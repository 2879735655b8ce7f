"""Tests that mostly wait, for time or for programs that they have started: they run beside all the others."""

from __future__ import annotations

import inspect
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.once_more import OnceMore
    from tests.rig import Scene


class Meanwhile:
    """Runs the tests that are marked so, two at a time; `results` has what became of each, by its id.

    Such a test is about no time shorter than a tenth of a second, and has no arguments but these and its parameters.
    """

    def __init__(
        self,
        items: Sequence[pytest.Item],
        make_folder: Callable[[], Path],
        studio: Path,
        scene: Scene,
        once_more: OnceMore,
    ) -> None:
        self._make_folder = make_folder
        self._there: dict[str, Path | Scene] = {"studio": studio, "scene": scene}
        self._pool = ThreadPoolExecutor(2)
        self.results: dict[str, Future[None]] = {}
        for item in items:
            if is_meanwhile(item) and isinstance(item, pytest.Function):
                self.results[item.nodeid] = self._pool.submit(once_more.run, item.nodeid, partial(self._run, item))

    def _run(self, item: pytest.Function) -> None:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        there = {**self._there, **params, "tmp_path": self._make_folder()}
        item.obj(**{name: there[name] for name in inspect.signature(item.obj).parameters})

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def is_meanwhile(item: pytest.Item) -> bool:
    skipped = any(mark.args[0] for mark in item.iter_markers("skipif"))
    return item.get_closest_marker("meanwhile") is not None and not skipped


def politely(*words: str) -> list[str]:
    """The command of a program that lets all others go first: nothing that it does has a deadline."""
    return ["nice", "-n", "19", *words]
