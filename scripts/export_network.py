"""The network of a kind of policy with its weights: a checkpoint's, or random ones where those were asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from checkpoints import Checkpoint, fill, load_checkpoint
from read_network import read_network
from seed_networks import ClipHybridSmall, Sight, gpu_accurate, gpu_simple, kosmos_lstm, latency_surrogate

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from seed_kinds import Kind
    from torch import nn

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "clip-hybrid-small": ClipHybridSmall,
    "gpu-simple": gpu_simple,
    "gpu-accurate": gpu_accurate,
    "latency-surrogate": latency_surrogate,
}
"""Those that need nothing said beside their weights."""
_KOSMOS = ("kosmos2-lstm", "kosmos2-clip-hybrid")
_KOSMOS_PICTURE_IDS = (0, 64003)
_KOSMOS_END_ID = 64004


def build(kind: Kind, options: argparse.Namespace) -> tuple[nn.Module, Checkpoint | None]:
    """The network, and its checkpoint if it has one; raises DaemonError."""
    _check_options(kind, options)
    if kind.parameters is None:
        checkpoint = load_checkpoint(options.checkpoint)
        concat, bound, between = options.concat.split(","), options.bound == "tanh", options.between == "relu"
        network = read_network(options.checkpoint, checkpoint.state, concat, bound, between, sight(options))
        fill(network, checkpoint.state, options.checkpoint)
        return network, checkpoint
    make = MAKERS.get(kind.key) or (lambda: kosmos_lstm(sight(options)))
    assert_count(kind, make)
    if options.checkpoint is None:
        torch.manual_seed(options.random_weights)
        return make(), None
    checkpoint = load_checkpoint(options.checkpoint)
    network = make()
    fill(network, checkpoint.state, options.checkpoint)
    return network, checkpoint


def assert_count(kind: Kind, make: Callable[[], nn.Module]) -> None:
    """Hold the network's parameters against the known count, without allocating them; raises DaemonError, INTERNAL."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in make().parameters())
    if count != kind.parameters:
        sentence = f"{kind.key} has {count:,} parameters here, not {kind.parameters:,}: use another transformers"
        raise DaemonError(sentence, ExitCode.INTERNAL)


def _check_options(kind: Kind, options: argparse.Namespace) -> None:
    """Refuse what is missing or makes no sense for this kind; raises DaemonError, USAGE."""
    if kind.parameters is None and options.checkpoint is None:
        sentence = f"only a checkpoint knows the network of {kind.key}: give --checkpoint instead of --random-weights"
        raise DaemonError(sentence, ExitCode.USAGE)
    needed = [name for name in ("concat", "between", "bound") if kind.parameters is None]
    if kind.key in _KOSMOS and options.checkpoint is not None:
        needed.append("feature")
    taken = {*needed, *(("feature", "say", "tokenizer") if kind.key in _KOSMOS else ())}
    for name in ("concat", "between", "bound", "feature", "say", "tokenizer"):
        given = getattr(options, name) is not None
        if given and name not in taken:
            raise DaemonError(f"{kind.key} takes no --{name}: leave it out", ExitCode.USAGE)
        if not given and name in needed:
            sentence = f"{kind.key} needs --{name}, which no checkpoint tells: see how the policy was trained"
            raise DaemonError(sentence, ExitCode.USAGE)
    if (options.say is None) != (options.tokenizer is None):
        raise DaemonError("--say and --tokenizer go together: give both or none", ExitCode.USAGE)


def sight(options: argparse.Namespace) -> Sight:
    """What Kosmos-2 is asked; raises DaemonError, NO_INPUT, without the tokenizer that was named."""
    said = _ids(options.tokenizer, options.say) if options.say is not None else ()
    return Sight(_KOSMOS_PICTURE_IDS, (_KOSMOS_END_ID, *said), options.feature or "mean")


def _ids(folder: Path, sentence: str) -> tuple[int, ...]:
    """The token ids of a sentence, by a tokenizer in a local folder."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds, and only needed for a sentence

    if not folder.is_dir():  # else its name would be looked up among what was downloaded once
        raise DaemonError(f"there is no folder {folder}: check --tokenizer", ExitCode.NO_INPUT)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        brief = str(error).strip().splitlines()[0].rstrip(". ")
        raise DaemonError(f"{folder} holds no tokenizer ({brief}): check --tokenizer", ExitCode.NO_INPUT) from None
    return tuple(tokenizer(sentence, add_special_tokens=False)["input_ids"])
