"""The files of a policy: what their sha256 is, and which other files an ONNX model takes its weights from."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from contextlib import suppress
from pathlib import Path

_LOCATION = b"\n\x08location\x12"
"""How a `StringStringEntryProto` with the key "location" begins; the length and the text of the value follow."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal digits; raises OSError.

    A file that has kept its size, times and inode since it was last hashed is not read again. What cannot be
    remembered is hashed at every start.
    """
    stat = path.stat()
    key = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    cached = _read_cache().get(str(path))
    if isinstance(cached, list) and cached[:-1] == key and isinstance(cached[-1], str):
        return cached[-1]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    _write_cache({**_read_cache(), str(path): [*key, digest.hexdigest()]})
    return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """The sha256 of what is in memory, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def external_files(model: Path) -> set[Path]:
    """The files beside an ONNX model that it takes weights from; raises OSError.

    ONNX names such a file in `TensorProto.external_data` under the key "location", relative to the model (onnx.proto,
    "Tensors: external_data"). Looking for the key's bytes finds every tensor, those inside subgraphs too, without
    parsing gigabytes in Python.
    """
    if model.stat().st_size == 0:  # which cannot be mapped
        return set()
    found: set[Path] = set()
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_LOCATION)
        while at >= 0:
            at += len(_LOCATION)
            length, start = _varint(data, at)
            found.add(model.parent / os.fsdecode(data[start : start + length]))
            at = data.find(_LOCATION, at)
    return found


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A protobuf length at `at` and where it ends; two bytes hold every path that a file system takes."""
    first, second = data[at : at + 1], data[at + 1 : at + 2]
    if not first or first[0] < 0x80 or not second:
        return (first[0] if first else 0), at + 1
    return (first[0] & 0x7F) | second[0] << 7, at + 2


def cache_folder() -> Path:
    """This user's cache (XDG Base Directory specification); raises RuntimeError where no home is known."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "mvla-daemon"


def _cache_path() -> Path:
    """Where hashes are remembered."""
    return cache_folder() / "sha256.json"


def _read_cache() -> dict[str, object]:
    try:
        content = json.loads(_cache_path().read_bytes())
    except (OSError, ValueError, RuntimeError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(content: dict[str, object]) -> None:
    """Replace the cache in one step, so that no reader sees half of it; a cache that cannot be written is no loss."""
    with suppress(OSError, RuntimeError):
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(content), "utf-8")
        unfinished.replace(path)
