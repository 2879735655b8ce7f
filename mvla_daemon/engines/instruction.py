"""The sentence that a policy is told, as the embedding that its table holds for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile
from zlib import error as zlib_error

import numpy as np

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mvla_daemon.engines.manifest import Manifest


def embedding_for(manifest: Manifest, instruction: str | None) -> NDArray[np.float32] | None:
    """The embedding of `instruction`, shape (d,); None where the policy takes no instruction and none is given.

    Raises DaemonError, CONFIG: an instruction for a policy that takes none, none for one that needs it, one that its
    table does not list, or a table that is not what it should be.
    """
    needed = manifest.inputs.instruction
    if needed is None:
        if instruction is None:
            return None
        raise DaemonError(f"policy {manifest.name} takes no instruction: remove policy.instruction", ExitCode.CONFIG)
    texts, embeddings = read_table(needed.table)
    if instruction in texts:
        embedding: NDArray[np.float32] = embeddings[texts.index(instruction)]
        return embedding
    wrong = f"does not know the instruction {instruction!r}" if instruction else "needs an instruction"
    listed = "\n  ".join(texts)
    raise DaemonError(f"policy {manifest.name} {wrong}: set policy.instruction to one of\n  {listed}", ExitCode.CONFIG)


def instructions_of(manifest: Manifest) -> list[str]:
    """The sentences that the policy knows; empty for one that takes none. Raises DaemonError, CONFIG."""
    needed = manifest.inputs.instruction
    return [] if needed is None else read_table(needed.table)[0]


def read_table(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """The sentences of an npz table and their embeddings, shape (n, d)."""
    try:
        with path.open("rb") as file:
            table = np.load(file, allow_pickle=False)
            texts, embeddings = table["texts"], table["embeddings"]
    except (OSError, ValueError, LookupError, EOFError, BadZipFile, zlib_error) as error:
        sentence = f"{path} is no table of instructions ({error}): write it with numpy.savez(texts=…, embeddings=…)"
        raise DaemonError(sentence, ExitCode.CONFIG) from None
    if problem := _table_problem(texts, embeddings):
        raise DaemonError(f"{path}: {problem}: write the table anew", ExitCode.CONFIG)
    return texts.tolist(), embeddings


def _table_problem(texts: NDArray[Any], embeddings: NDArray[Any]) -> str:
    """What is wrong with a table, or nothing."""
    if texts.ndim != 1 or texts.dtype.kind != "U":
        return f"texts must be (n,) unicode, it is {texts.shape} {texts.dtype}"
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        return f"embeddings must be (n, d) float32, it is {embeddings.shape} {embeddings.dtype}"
    if len(texts) != len(embeddings) or embeddings.size == 0:
        return f"{len(texts)} texts do not go with embeddings of shape {embeddings.shape}"
    if len(set(texts.tolist())) != len(texts):
        return "two texts are the same"
    if not np.isfinite(embeddings).all():
        return "an embedding is not finite"
    return ""
