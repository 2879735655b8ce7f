"""Turns sentences into the numbers that a policy is told them by, with CLIP's text encoder from a folder on this disk.

    python scripts/embed_instruction.py --encoder clip-vit-base-patch32 --out table.npz "go to the cup"
    python scripts/embed_instruction.py --encoder clip-vit-base-patch32 --out table.npz --add "go left" "go right"

The folder is what transformers saves CLIP in: config.json, the weights, the tokenizer's files. Nothing is downloaded.
The numbers are those after CLIP's text projection (--numbers projected, 512 for ViT-B/32) or before it (pooled); a
policy has to be told those that it was trained with. The table keeps the sentences and which encoder made the numbers.
Needs `pip install 'mvla-daemon[export]'`.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.engines.instruction import read_table
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed, and write the table; the exit code."""
    options = _parser().parse_args(arguments)
    if missing := [name for name in ("torch", "transformers") if not find_spec(name)]:
        print(f"embed_instruction: {', '.join(missing)} missing: pip install 'mvla-daemon[export]'", file=sys.stderr)
        return ExitCode.UNAVAILABLE
    try:
        texts, embeddings = _embed_all(options)
        write_table(options.out, texts, embeddings, encoder_name(options.encoder, options.numbers))
    except DaemonError as error:
        print(f"embed_instruction: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"embed_instruction: {options.out} cannot be written ({error.strerror})", file=sys.stderr)
        return ExitCode.UNAVAILABLE
    print(
        f"{options.out}: {len(texts)} sentences, {embeddings.shape[1]} numbers each; its sha256 belongs in a manifest"
    )
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="+", help="in the words that policy.instruction will have")
    parser.add_argument("--encoder", type=Path, required=True, help="the folder with CLIP")
    parser.add_argument("--out", type=Path, required=True, help="the table, an npz file")
    parser.add_argument("--numbers", choices=("projected", "pooled"), default="projected", help="(projected)")
    parser.add_argument("--add", action="store_true", help="keep the sentences that the table has already")
    return parser


def _embed_all(options: argparse.Namespace) -> tuple[list[str], NDArray[np.float32]]:
    """All sentences of the new table and their numbers; raises DaemonError."""
    name = encoder_name(options.encoder, options.numbers)
    kept: list[str] = []
    rows = np.empty((0, 0), np.float32)
    if options.add:
        kept, rows = read_table(options.out)
        with np.load(options.out) as table:
            by = str(table["encoder"]) if "encoder" in table else "nobody knows whom"
        if by != name:
            sentence = f"the numbers in {options.out} were made by {by}, not by {name}: write another table"
            raise DaemonError(sentence, ExitCode.CONFIG)
    fresh = list(dict.fromkeys(sentence for sentence in options.sentences if sentence not in kept))
    if blank := [sentence for sentence in fresh if not sentence.strip()]:
        raise DaemonError(f"a sentence has at least one word, not {blank[0]!r}", ExitCode.USAGE)
    if not fresh:
        return kept, rows
    added = embed(fresh, options.encoder, projected=options.numbers == "projected")
    return [*kept, *fresh], np.concatenate([rows, added]) if kept else added


def encoder_name(folder: Path, numbers: str) -> str:
    """How a table names its encoder: the folder's name, without where it lay, and which numbers were taken."""
    return f"{folder.resolve().name}, {numbers}"


def embed(sentences: Sequence[str], folder: Path, *, projected: bool) -> NDArray[np.float32]:
    """The sentences' numbers, (n, d), not scaled; raises DaemonError."""
    import torch  # noqa: PLC0415 - seconds
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, logging  # noqa: PLC0415 - likewise

    logging.set_verbosity_error()  # it tells at length of the weights for pictures, which are not needed here
    logging.disable_progress_bar()
    if not folder.is_dir():  # else its name would be looked up among what was downloaded once
        raise DaemonError(f"there is no folder {folder}: --encoder is where CLIP's files are", ExitCode.NO_INPUT)
    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        loaded: Any = CLIPTextModelWithProjection.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        brief = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
        sentence = f"{folder} holds no CLIP text encoder ({brief}): fetch all of its files"
        raise DaemonError(sentence, ExitCode.NO_INPUT) from None
    encoder, report = loaded
    if absent := sorted(report["missing_keys"]):
        sentence = f"{folder} lacks weights of the text encoder ({', '.join(absent)}): fetch all of its files"
        raise DaemonError(sentence, ExitCode.CONFIG)
    limit = encoder.config.max_position_embeddings
    words = tokenizer(list(sentences), padding=True, return_tensors="pt")
    if words["input_ids"].shape[1] > limit:
        raise DaemonError(f"a sentence is longer than the encoder's {limit} tokens: shorten it", ExitCode.USAGE)
    with torch.no_grad():
        answer = encoder.eval()(**words)
        pooled = encoder.text_model(**words).pooler_output
    numbers: NDArray[np.float32] = (answer.text_embeds if projected else pooled).numpy().astype(np.float32)
    return numbers


def write_table(path: Path, texts: Sequence[str], embeddings: NDArray[np.float32], encoder: str) -> None:
    """Write the table in one step, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    with unfinished.open("wb") as file:
        np.savez(file, texts=np.array(texts), embeddings=embeddings, encoder=np.array(encoder))
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
