"""An ONNX model in FP16 (half precision), as a strongly typed TensorRT engine is built from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from pathlib import Path


def cast_to_half(source: Path, target: Path) -> None:
    """Write the model in `source` to `target` with its weights and computations in FP16, its inputs and outputs kept.

    The weights of a model over 2 GB go to `<target>.data` beside it. Nothing is left behind when it fails. Raises
    DaemonError: NO_INPUT without the source, UNAVAILABLE without the converter or room, CONFIG when the model cannot be
    cast.
    """
    try:
        from mvla_daemon.engines import half_graph  # noqa: PLC0415 - only who casts needs the converter
    except ImportError as error:
        sentence = f"casting a model to FP16 needs {error.name}: pip install onnx onnxconverter-common"
        raise DaemonError(sentence, ExitCode.UNAVAILABLE) from None
    try:
        model = half_graph.read(source)
    except FileNotFoundError as error:
        sentence = f"there is no model {error.filename or source}: put it there, or mend its name"
        raise DaemonError(sentence, ExitCode.NO_INPUT) from None
    except half_graph.READ_ERRORS as error:
        sentence = f"{source} cannot be read as an ONNX model ({_brief(error)}): fetch or export it again"
        raise DaemonError(sentence, ExitCode.CONFIG) from None
    if problem := half_graph.out_of_range(model):
        sentence = f"{source} cannot be cast to FP16: {problem}: scale it down, or run the model in FP32"
        raise DaemonError(sentence, ExitCode.CONFIG)
    try:
        half_graph.write(half_graph.cast(model), target)
    except OSError as error:
        sentence = f"{target} cannot be written ({error.strerror}): mend its folder's permissions, or make room"
        raise DaemonError(sentence, ExitCode.UNAVAILABLE) from None
    except Exception as error:  # the converter's are of all kinds
        sentence = f"{source} cannot be cast to FP16 ({_brief(error)}): run it in FP32, or export it with other layers"
        raise DaemonError(sentence, ExitCode.CONFIG) from error


def _brief(error: Exception) -> str:
    """The first line of an error's text, without a full stop at its end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
