"""Built engines in a folder: which one fits, why another one does not, and how one is kept without being half there.

An engine is good for one model, one GPU and one version of TensorRT only. Beside each lies a sidecar, JSON, that says
all that it was built for and its sha256; one that does not agree with its sidecar in every byte is never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvla_daemon.engines.files import cache_folder, sha256_of_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LOOK_AGAIN_S = 0.1
"""How often somebody who waits for another builder looks whether it is done."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the cache has for a key: the engine's bytes, or None and why not. `parity` is what was found before."""

    plan: bytes | None
    why: str
    parity: Mapping[str, Any] | None = None


class EngineCache:
    """The engines of one policy in a folder; `folder` of None is this user's cache (or systemd's CacheDirectory=)."""

    def __init__(self, folder: Path | None, policy: str) -> None:
        self.folder = folder or _default_folder()
        self._policy = re.sub(r"[^A-Za-z0-9._-]", "_", policy)

    def path(self, key: Mapping[str, str]) -> Path:
        """Where the engine for this key is or would be."""
        return self.folder / f"{self._policy}-{_digest(key)}.engine"

    def find(self, key: Mapping[str, str]) -> Found:
        """The engine for this key, whole and unchanged, or why there is none."""
        path = self.path(key)
        try:
            sidecar = json.loads(path.with_suffix(".json").read_bytes())
            plan = path.read_bytes()
        except FileNotFoundError:
            return Found(None, self._why_absent(key))
        except (OSError, ValueError) as error:
            return Found(None, f"{path} or its sidecar cannot be read ({error})")
        if not isinstance(sidecar, dict) or sidecar.get("key") != dict(key):
            return Found(None, f"the sidecar of {path} is another engine's")
        if sidecar.get("sha256") != sha256_of_bytes(plan):
            return Found(None, f"{path} is damaged: its sha256 is not the one in its sidecar")
        return Found(plan, f"{path} was built for just this", sidecar.get("parity"))

    def _why_absent(self, key: Mapping[str, str]) -> str:
        """How the newest engine of this policy differs from what is wanted."""
        for path in sorted(self._sidecars(), key=_age_ns):
            with suppress(OSError, ValueError, AttributeError):
                other = json.loads(path.read_bytes()).get("key")
                differences = [
                    f"{name} was {other.get(name, 'not given')}, is {wanted}"
                    for name, wanted in key.items()
                    if other.get(name) != wanted
                ]
                if differences:
                    return f"{path.with_suffix('.engine').name} was built for something else: {'; '.join(differences)}"
                return f"{path.with_suffix('.engine').name} is gone, only its sidecar is there"
        return f"none was built yet in {self.folder}"

    def _sidecars(self) -> list[Path]:
        try:
            return list(self.folder.glob(f"{self._policy}-*.json"))
        except OSError:
            return []

    def keep(self, key: Mapping[str, str], plan: bytes, about: Mapping[str, object], scratch: Path) -> Path:
        """Write an engine and its sidecar, each in one step; raises OSError, and then there is no new engine.

        The engine is written first: one whose sidecar is missing, or still an older one's, is never used.
        """
        path = self.path(key)
        sidecar = {"key": dict(key), "sha256": sha256_of_bytes(plan), **about}
        write_whole(path, plan, scratch)
        write_whole(path.with_suffix(".json"), json.dumps(sidecar, indent=1).encode(), scratch)
        return path

    def note_parity(self, key: Mapping[str, str], parity: Mapping[str, object]) -> None:
        """Write into the sidecar what came of the comparison, so that it need not be done at every start."""
        path = self.path(key).with_suffix(".json")
        with suppress(OSError, ValueError):  # what cannot be noted is compared again
            content = {**json.loads(path.read_bytes()), "parity": parity}
            write_whole(path, json.dumps(content, indent=1).encode(), self.folder)

    def timing(self, key: Mapping[str, str]) -> Path:
        """Where TensorRT's timing cache is, which engines of one GPU and version share."""
        return self.folder / f"timing-{_digest({name: key[name] for name in ('tensorrt', 'gpu')})}.cache"

    @contextmanager
    def alone(self, key: Mapping[str, str], told: Callable[[], None]) -> Iterator[Path]:
        """Only one builder of an engine at a time; `told` is called once if another is at it. Raises OSError.

        Gives an empty folder for what is not finished. What an interrupted builder left there is removed, since
        whoever holds the lock is the only one that can be using it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path(key).with_suffix(".lock").open("w") as file:
            if not _locked(file.fileno()):
                told()
                while not _locked(file.fileno()):
                    time.sleep(LOOK_AGAIN_S)
            scratch = self.path(key).with_suffix(".unfinished")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, data: bytes, scratch: Path) -> None:
    """Replace a file in one step, once it is whole and on the disk; raises OSError and leaves nothing behind.

    `scratch` is a folder of the same file system.
    """
    part = scratch / f"{path.name}.{secrets.token_hex(4)}.part"
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _digest(key: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:16]


def _age_ns(path: Path) -> int:
    try:
        return -path.stat().st_mtime_ns
    except OSError:
        return 0


def _default_folder() -> Path:
    """Systemd's CacheDirectory= (systemd.exec(5)), else this user's cache."""
    given = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    return (Path(given) if given.startswith("/") else cache_folder()) / "engines"
