"""Checkpoints of trained policies, loaded weights-only and strictly: nothing in them runs, and nothing is left over."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mvla_daemon.engines.manifest import refusal
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from pathlib import Path

_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype("float64")),
    type(np.dtype("float32")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What a training's own settings and figures are made of, beside tensors and plain numbers."""
_STUMBLED = "WeightsUnpickler error:"
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network's parameters by name, and what was said of the training: None where it was not."""

    state: dict[str, Tensor]
    epoch: int | None = None
    val_mae: float | None = None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raises DaemonError: NO_INPUT where there is none, CONFIG for anything wrong inside."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        sentence = f"the checkpoint {path} cannot be read ({error.strerror}): check --checkpoint"
        raise DaemonError(sentence, ExitCode.NO_INPUT) from None
    except _UNREADABLE as error:
        why = _reason(error)
        sentence = f"{path} is no checkpoint that can be loaded without running code of it ({why}): save it anew"
        raise DaemonError(sentence, ExitCode.CONFIG) from None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        sentence = f'{path}: a checkpoint is a dict with the parameters under "model_state_dict": save it so'
        raise DaemonError(sentence, ExitCode.CONFIG)
    return Checkpoint(_without_places(state), _epoch(content), _val_mae(content))


def _reason(error: Exception) -> str:
    """What torch.load stumbled over, without its advice to load the file unsafely."""
    said = str(error).strip() or type(error).__name__
    said = said.partition(_STUMBLED)[2].strip() or said
    return said.splitlines()[0].partition(". ")[0].rstrip(".")


def _epoch(content: dict[str, Any]) -> int | None:
    epoch = content.get("epoch")
    return int(epoch) if isinstance(epoch, int | np.integer) and epoch >= 0 else None


def _val_mae(content: dict[str, Any]) -> float | None:
    error = content.get("val_mae")
    value = float(error) if isinstance(error, float | np.floating) or torch.is_tensor(error) else float("nan")
    return value if np.isfinite(value) and value >= 0 else None


def _without_places(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the numbers 0, 1, 2, ... of places, which older versions of transformers stored among the parameters."""
    return {
        name: tensor
        for name, tensor in state.items()
        if not (name.endswith(".position_ids") and torch.equal(tensor.flatten(), torch.arange(tensor.numel())))
    }


def fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give the network the checkpoint's parameters; raises DaemonError, CONFIG, with all keys that do not fit."""
    wanted = network.state_dict()
    problems = [f"missing: {name} {_shape(wanted[name])}" for name in wanted if name not in state]
    problems += [f"unexpected: {name} {_shape(state[name])}" for name in state if name not in wanted]
    for name, tensor in state.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            problems.append(f"misshaped: {name} is {_shape(tensor)}, the network's is {_shape(wanted[name])}")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"not finite: {name} {_shape(tensor)}")
    if problems:
        raise refusal(f"{path} does not fit this policy's network, check --kind", problems, ExitCode.CONFIG)
    network.load_state_dict(state, strict=True)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
