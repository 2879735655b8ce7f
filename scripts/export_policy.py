"""Makes a policy that the daemon runs of a checkpoint of the Mobile VLA project: ONNX, the same in FP16, manifests.

    python scripts/export_policy.py --kind gpu-simple --checkpoint simple.pth --out policies/simple
    python scripts/export_policy.py --kind clip-hybrid-small --random-weights 1 --instructions table.npz --out /tmp/try

Without a checkpoint there is no policy: --random-weights SEED makes one of the right shape that drives nowhere, and
its manifest and every table say RANDOM WEIGHTS. Of kosmos2-clip-hybrid and clip-robovlms only the checkpoint knows the
network, and it is read from that. What no checkpoint tells has to be said: --feature, --concat, --between, --bound.
--torchscript adds the two files that `mvla-daemon bench` needs to measure PyTorch too.

Nothing is written when anything does not fit. Needs `pip install 'mvla-daemon[export]'`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from export_manifest import manifest_text
from seed_kinds import KINDS

from mvla_daemon.engines.half import cast_to_half
from mvla_daemon.engines.instruction import embedding_for, read_table
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from checkpoints import Checkpoint
    from seed_kinds import Kind

_LARGEST_SEED = 2**32


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, and say what was written; the exit code."""
    options = _parser().parse_args(arguments)
    if missing := [name for name in ("torch", "onnx", "onnxconverter_common", "transformers") if not find_spec(name)]:
        print(f"export_policy: {', '.join(missing)} missing: pip install 'mvla-daemon[export]'", file=sys.stderr)
        return ExitCode.UNAVAILABLE
    try:
        print(_export(KINDS[options.kind], options))
    except DaemonError as error:
        print(f"export_policy: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"export_policy: {options.out} cannot be written ({error.strerror})", file=sys.stderr)
        return ExitCode.UNAVAILABLE
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(KINDS), required=True)
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", type=Path, help="a .pth file of this kind")
    weights.add_argument("--random-weights", type=_seed, metavar="SEED", help="no policy, only its shape")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the policy's files")
    parser.add_argument("--instructions", type=Path, help="a table of embed_instruction.py, for those that take one")
    parser.add_argument("--torchscript", action="store_true", help="also as TorchScript, which bench runs on PyTorch")
    for_read = parser.add_argument_group("for kosmos2-clip-hybrid and clip-robovlms")
    for_read.add_argument("--concat", help="what is put side by side, in order: kosmos, image, projected, text")
    for_read.add_argument("--between", choices=("relu", "none"), help="what stands between two blocks of full layers")
    for_read.add_argument("--bound", choices=("tanh", "none"), help="what follows the last layer")
    parser.add_argument("--feature", choices=("mean", "last"), help="which of Kosmos-2's numbers training used")
    parser.add_argument("--tokenizer", type=Path, help="a folder with Kosmos-2's tokenizer, for --say")
    parser.add_argument("--say", help="the sentence that is built into a policy with Kosmos-2")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= _LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"is a whole number, 0 to {_LARGEST_SEED - 1}, not {text!r}")
    return int(text)


def _export(kind: Kind, options: argparse.Namespace) -> str:
    """Build, check and write everything; what was written, for the terminal. Raises DaemonError."""
    if (kind.instruction is None) != (options.instructions is None):
        needs = (
            "needs --instructions, a table of embed_instruction.py" if kind.instruction else "takes no --instructions"
        )
        raise DaemonError(f"{kind.key} {needs}", ExitCode.USAGE)
    from export_network import build  # noqa: PLC0415 - torch takes seconds
    from export_onnx import write_onnx  # noqa: PLC0415 - likewise
    from export_torchscript import write_torchscript  # noqa: PLC0415 - likewise

    network, checkpoint = build(kind, options)
    count = sum(parameter.numel() for parameter in network.parameters())
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=options.out) as folder:
        model = Path(folder) / f"{kind.key}.onnx"
        write_onnx(network, kind, model)
        if options.torchscript:
            write_torchscript(network, kind, model)
        del network  # what follows needs its room
        _write_others(kind, model, checkpoint, options.instructions)
        fresh = sorted(Path(folder).iterdir(), key=lambda path: path.suffix == ".toml")  # manifests name the others
        lines = [f"  {path.name:40} {path.stat().st_size:>14,} bytes" for path in fresh]
        for path in fresh:
            path.replace(options.out / path.name)
    whose = f"of {options.checkpoint}" if checkpoint else f"RANDOM WEIGHTS, seed {options.random_weights}"
    return "\n".join([f"{kind.key}: {count:,} parameters, {whose}, in {options.out}", *lines])


def _write_others(kind: Kind, model: Path, checkpoint: Checkpoint | None, given: Path | None) -> None:
    """Write the policy's other files beside its model, and load them as the daemon does."""
    half, table = model.with_name(f"{kind.key}.fp16.onnx"), None
    if given is not None:
        table = model.with_name("instructions.npz")
        shutil.copyfile(given, table)
    cast_to_half(model, half)
    for path, name in ((model, kind.key), (half, f"{kind.key}-fp16")):
        written = path.with_suffix(".toml")
        written.write_text(manifest_text(kind, name, path, table, checkpoint), "utf-8")
        _try_out(written)


def _try_out(path: Path) -> None:
    """Load and infer as the daemon will; raises DaemonError."""
    manifest = load_manifest(path)
    instruction = manifest.inputs.instruction
    sentence = read_table(instruction.table)[0][0] if instruction else None
    with OnnxRuntimeEngine(manifest, embedding_for(manifest, sentence)) as engine:
        engine.load()
        engine.warm_up()


if __name__ == "__main__":
    sys.exit(main())
