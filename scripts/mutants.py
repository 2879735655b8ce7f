"""Mutation testing: makes each small change to the safety core, the limits and the codec, and runs their unit tests.

A change that no test notices is a hole in the tests. Each of those has to be killed by a better test, or stands in
`tests/data/surviving_mutants.toml` with the reason why it may live; that file is matched by function, line and change,
so that an excuse that has become wrong is noticed too. Ends with 1 when a mutant survives without an excuse, or an
excuse without its mutant.

The mutants are made of the syntax tree and never written to a file: each test run is a fork whose import of one module
finds the changed code. mutmut 3 was tried first: it changes function bodies only, so that constants, tables and wire
formats go untested, and it counts what runs at import time (the state machine's cells) as surviving.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

import hypothesis
import pytest
from mutations import Change, changes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
EXCUSES = ROOT / "tests/data/surviving_mutants.toml"
TESTS = {
    "core/safety.py": ("test_safety", "test_exploration"),
    "core/session.py": ("test_safety",),
    "core/admission.py": ("test_admission",),
    "core/schedule.py": ("test_schedule", "test_admission"),
    "core/freshness.py": ("test_freshness", "test_admission"),
    "core/limits.py": ("test_limits", "test_admission"),
    "core/action.py": ("test_action",),
    "motors/link_v1.py": ("test_link_v1", "test_mvla"),
    "motors/mvla.py": ("test_mvla",),
    "motors/controller_watch.py": ("test_mvla",),
    "motors/motion_watch.py": ("test_motion_watch",),
}
"""What is changed, and the tests that have to notice; each takes a few seconds."""
CPU_SECONDS = 60
"""Of processor time: a mutant that loops for ever is noticed, and a busy machine kills nobody."""
MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Mutant:
    """One change of one file, compiled."""

    file: str
    change: Change
    code: CodeType

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What an excuse has to say to mean this one (and its twins on equal lines)."""
        return (self.file, self.change.where, self.change.line, self.change.text)


class _Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module, as the mutant has it."""

    def __init__(self, file: str, code: CodeType) -> None:
        module = "mvla_daemon." + file.removesuffix(".py").replace("/", ".")
        importlib.machinery.SourceFileLoader.__init__(self, module, str(ROOT / "mvla_daemon" / file))
        self._code = code

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return (
            importlib.util.spec_from_file_location(self.name, self.path, loader=self) if fullname == self.name else None
        )

    def get_code(self, _fullname: str) -> CodeType:
        return self._code


def mutants_of(file: str) -> list[Mutant]:
    """Every mutant of a file of the package."""
    source = (ROOT / "mvla_daemon" / file).read_text()
    enums = "\n".join(path.read_text() for path in sorted((ROOT / "mvla_daemon").glob("[cm]o[rt]*/*.py")))
    return [Mutant(file, change, code) for change, code in changes(source, enums)]


def start(mutant: Mutant) -> int:
    """A process that ends with 0 when the mutant's tests notice nothing."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        sys.meta_path.insert(0, _Changed(mutant.file, mutant.code))
        code = int(pytest.main(_arguments(mutant.file)))
    finally:
        os._exit(code)


def _arguments(file: str) -> list[str]:
    tests = [str(ROOT / f"tests/{name}.py") for name in TESTS[file]]
    return ["-x", "-q", "--noconftest", "-p", "no:cacheprovider", "--assert=plain", "--tb=no", *tests]


def _unchanged(file: str) -> Mutant:
    path = ROOT / "mvla_daemon" / file
    return Mutant(file, Change("", 0, "", ""), compile(path.read_text(), str(path), "exec", dont_inherit=True))


def run(mutants: Iterable[Mutant], jobs: int, total: int) -> list[Mutant]:
    """Those that survive."""
    running: dict[int, Mutant] = {}
    survivors: list[Mutant] = []
    done, began_s = 0, time.monotonic()
    todo = iter(mutants)
    while True:
        while len(running) < jobs and (mutant := next(todo, None)) is not None:
            running[start(mutant)] = mutant
        if not running:
            return survivors
        pid, status = os.waitpid(-1, 0)
        mutant, done = running.pop(pid), done + 1
        code = os.waitstatus_to_exitcode(status)
        if code in {pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED}:
            sys.exit(f"pytest could not run the tests of {mutant.file} (it ended with {code})")
        if code == 0:
            survivors.append(mutant)
            if mutant.change.text:
                print(f"\r\033[K{described(mutant)}\n", flush=True)
        left_s = (time.monotonic() - began_s) / done * (total - done)
        print(f"\r\033[K{done}/{total} tried, about {left_s / 60:.0f} min left ", end="", flush=True)


def described(mutant: Mutant) -> str:
    """A survivor as an excuse for it would begin."""
    change = mutant.change
    return (
        f"[[mutant]]  # line {change.number}\nfile = '{mutant.file}'\nwhere = '{change.where}'\n"
        f"line = '''{change.line}'''\nchange = '''{change.text}'''"
    )


def judge(mutants: list[Mutant], survivors: list[Mutant], files: Sequence[str]) -> int:
    """Print the table, and what is wrong; the exit code."""
    with EXCUSES.open("rb") as stream:
        entries = tomllib.load(stream)["mutant"]
    excuses = {(e["file"], e["where"], e["line"], e["change"]) for e in entries if e["file"] in files and e["reason"]}
    unexcused = [mutant for mutant in survivors if mutant.key not in excuses]
    stale = excuses - {mutant.key for mutant in survivors}
    made, lived = Counter(m.file for m in mutants), Counter(m.file for m in survivors)
    bad = Counter(m.file for m in unexcused)
    print(f"\r\033[K{'file':30}{'made':>6}{'killed':>8}{'excused':>9}{'surviving':>11}")
    for file in files:
        print(f"{file:30}{made[file]:6}{made[file] - lived[file]:8}{lived[file] - bad[file]:9}{bad[file]:11}")
    for key in sorted(stale):
        print(f"This excuse excuses nothing, remove it from {EXCUSES.name}: {' | '.join(key)}")
    for mutant in unexcused:
        print(f"Survives without an excuse: {' | '.join(mutant.key)}")
    return 1 if unexcused or stale else 0


def main() -> int:
    """Run, and say what survived."""
    parser = argparse.ArgumentParser(description="changes the safety core in every small way and runs its tests")
    parser.add_argument("--file", action="append", choices=TESTS, help="this file only (may be given again)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="how many at once (as many as processors)"
    )
    arguments = parser.parse_args()
    files = arguments.file or list(TESTS)
    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = True
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    hypothesis.settings.load_profile("mutants")
    if len(run([_unchanged(file) for file in files], arguments.jobs, len(files))) != len(files):
        sys.exit("The tests fail without any change: mend them first (`make test`).")
    mutants = [mutant for file in files for mutant in mutants_of(file)]
    return judge(mutants, run(mutants, arguments.jobs, len(mutants)), files)


if __name__ == "__main__":
    sys.exit(main())
