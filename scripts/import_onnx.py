"""Drafts the manifest of an ONNX file that somebody made elsewhere, and says what the file could not tell.

    python scripts/import_onnx.py policies/simple_gpu_model.onnx

The draft goes beside the file (simple_gpu_model.toml). Names, shapes and types are the file's. What a graph cannot
know (how pictures were normalised, what an output means, whose weights these are) is asked for: each question stands in
the draft above the keys that it is about, which are "?", and the daemon refuses the manifest while one of them is.
Needs `pip install onnx`.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Draft, print the questions; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the ONNX file")
    parser.add_argument("--force", action="store_true", help="write over a manifest that is there already")
    options = parser.parse_args(arguments)
    if find_spec("onnx") is None:
        print("import_onnx: onnx missing: pip install onnx", file=sys.stderr)
        return ExitCode.UNAVAILABLE
    from onnx_draft import draft  # noqa: PLC0415 - only once onnx is known to be there

    target = options.file.with_suffix(".toml")
    if target.exists() and not options.force:
        print(f"import_onnx: there is a {target} already: --force writes over it", file=sys.stderr)
        return ExitCode.USAGE
    try:
        text, questions = draft(options.file)
        target.write_text(text, "utf-8")
    except DaemonError as error:
        print(f"import_onnx: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"import_onnx: {target} cannot be written ({error.strerror})", file=sys.stderr)
        return ExitCode.UNAVAILABLE
    print(f"{target} is a draft. The file could not tell, and the daemon refuses it until you do:")
    print("".join(f"  {number}. {question}\n" for number, question in enumerate(questions, start=1)), end="")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
