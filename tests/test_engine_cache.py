"""Built engines kept in a folder: real files, real processes, a real full disk where one can be mounted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvla_daemon.engines.engine_cache import EngineCache, write_whole

KEY = {"sha256 of a.onnx": "0" * 64, "precision": "fp16", "tensorrt": "10.3.0", "gpu": "Orin 8.7"}
PLAN = bytes(range(256)) * 40
PATIENCE_S = 20.0


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", "my policy/1")


def keep(cache: EngineCache, plan: bytes = PLAN, key: dict[str, str] = KEY) -> Path:
    with cache.alone(key, lambda: None) as scratch:
        return cache.keep(key, plan, {"seconds": 1.5}, scratch)


def test_what_was_kept_is_found_with_what_is_known_of_it(cache: EngineCache) -> None:
    path = keep(cache)
    assert path.name.startswith("my_policy_1-")
    assert cache.find(KEY).plan == PLAN
    assert json.loads(path.with_suffix(".json").read_text())["seconds"] == 1.5
    assert cache.find(KEY).parity is None
    cache.note_parity(KEY, {"subject": "x"})
    assert cache.find(KEY).parity == {"subject": "x"}
    assert cache.find(KEY).plan == PLAN


def test_nothing_is_found_where_nothing_was_kept(cache: EngineCache) -> None:
    assert cache.find(KEY).plan is None
    assert cache.find(KEY).why == f"none was built yet in {cache.folder}"
    cache.note_parity(KEY, {})  # which is no harm
    assert not cache.folder.exists()


@pytest.mark.parametrize("part", sorted(KEY))
def test_an_engine_for_something_else_is_not_used_and_the_difference_is_named(cache: EngineCache, part: str) -> None:
    keep(cache)
    found = cache.find({**KEY, part: "another"})
    assert found.plan is None
    assert f"{part} was {KEY[part]}, is another" in found.why
    assert cache.timing({**KEY, "precision": "fp32"}) == cache.timing(KEY)
    assert cache.timing({**KEY, "gpu": "another"}) != cache.timing(KEY)


@pytest.mark.parametrize("at", [0, len(PLAN) // 2, len(PLAN) - 1])
def test_one_flipped_bit_is_damage(cache: EngineCache, at: int) -> None:
    path = keep(cache)
    damaged = bytearray(PLAN)
    damaged[at] ^= 1
    path.write_bytes(damaged)
    assert cache.find(KEY).plan is None
    assert "is damaged" in cache.find(KEY).why


def test_what_is_cut_short_gone_or_no_json_is_not_used(cache: EngineCache) -> None:
    path = keep(cache)
    sidecar = path.with_suffix(".json")
    whole = sidecar.read_text()
    path.write_bytes(PLAN[:-1])
    assert "is damaged" in cache.find(KEY).why
    path.unlink()
    assert "is gone, only its sidecar is there" in cache.find(KEY).why
    path.write_bytes(PLAN)
    for text, why in (("{", "cannot be read"), ("[]", "another engine's"), (whole.replace("Orin", "Thor"), "another")):
        sidecar.write_text(text)
        assert cache.find(KEY).plan is None
        assert why in cache.find(KEY).why
    sidecar.unlink()
    assert cache.find(KEY).plan is None


BUILDER = """
import sys, time
from pathlib import Path
from mvla_daemon.engines.engine_cache import EngineCache
cache = EngineCache(Path(sys.argv[1]), "my policy/1")
key = {key!r}
with cache.alone(key, lambda: print("waiting", flush=True)) as scratch:
    (scratch / "half.onnx").write_bytes(b"unfinished")
    print("alone", flush=True)
    sys.stdin.readline()
    cache.keep(key, sys.argv[2].encode(), {{}}, scratch)
print("kept", flush=True)
"""


def builder(cache: EngineCache, plan: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", BUILDER.format(key=KEY), str(cache.folder), plan]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_builders_take_turns_and_the_second_is_told_that_it_waits(cache: EngineCache) -> None:
    with builder(cache, "first") as first, builder(cache, "second") as second:
        by_word = {heard(process): process for process in (first, second)}
        assert set(by_word) == {"alone", "waiting"}
        say(by_word["alone"])
        assert heard(by_word["alone"]) == "kept"
        assert heard(by_word["waiting"]) == "alone"
        say(by_word["waiting"])
        assert heard(by_word["waiting"]) == "kept"
    assert cache.find(KEY).plan in {b"first", b"second"}


def test_a_builder_that_is_killed_leaves_nothing_that_lasts(cache: EngineCache) -> None:
    keep(cache)
    with builder(cache, "never kept") as process:
        assert heard(process) == "alone"
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in cache.folder.glob("*.unfinished/*")] == ["half.onnx"]
    assert cache.find(KEY).plan == PLAN
    keep(cache, b"another")
    assert cache.find(KEY).plan == b"another"
    assert not list(cache.folder.glob("*.unfinished"))


def test_a_reader_never_sees_half_an_engine(cache: EngineCache) -> None:
    """Whatever is found while others are writing is one of theirs, whole, or said to be none."""
    plans = {bytes([number]) * 300_000 for number in range(8)}
    keep(cache, bytes([0]) * 300_000)
    child = os.fork()
    if child == 0:
        for _ in range(20):
            for plan in sorted(plans):
                keep(cache, plan)
        os._exit(0)
    found = 0
    end_s = time.monotonic() + PATIENCE_S
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        assert time.monotonic() < end_s
        plan = cache.find(KEY).plan
        assert plan is None or plan in plans
        found += plan is not None
    assert found > 0
    assert cache.find(KEY).plan in plans


FULL = """
import resource, sys
from pathlib import Path
from tests.test_engine_cache import KEY, EngineCache, keep
cache = EngineCache(Path(sys.argv[1]), "my policy/1")
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    keep(cache, b"x" * 10_000)
except OSError as error:
    print(error.strerror)
"""


def test_a_disk_without_room_leaves_the_old_engine_and_no_remains(cache: EngineCache) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    keep(cache)
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(cache.folder)], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert ran.stdout.strip() == "File too large"
    assert cache.find(KEY).plan == PLAN
    assert {path.suffix for path in cache.folder.iterdir()} == {".engine", ".json", ".lock"}


def test_a_file_is_replaced_in_one_step_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one", tmp_path)
    with pytest.raises(FileNotFoundError):
        write_whole(path, b"two", tmp_path / "nowhere")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"CACHE_DIRECTORY": "/var/cache/mvla-daemon", "XDG_CACHE_HOME": "/x"}, "/var/cache/mvla-daemon/engines"),
        ({"CACHE_DIRECTORY": "/var/cache/a:/var/cache/b"}, "/var/cache/a/engines"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/mvla-daemon/engines"),
        ({"HOME": "/home/robot"}, "/home/robot/.cache/mvla-daemon/engines"),
    ],
)
def test_where_engines_are_kept_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert EngineCache(None, "cup").folder == Path(folder)
