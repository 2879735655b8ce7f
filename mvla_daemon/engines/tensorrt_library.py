"""TensorRT itself: the module, imported where it is first needed, and what it says while it works.

Names and calls are those that 10.3 to 11.x share; the tests hold every one of them against TensorRT's own lists.
"""

from __future__ import annotations

import importlib
from collections import deque
from typing import TYPE_CHECKING, Any

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mvla_daemon.engines.cuda import Cuda

OLDEST = (10, 3)
"""JetPack 6.1's. Older ones lack strongly typed networks, INT64 or the present calls."""
_KEPT_LINES = 5


class TensorRt:
    """The library, and a logger that keeps its newest complaints for the error that follows them.

    Made with a CUDA context at hand, because without a driver some versions crash instead of raising. Raises
    DaemonError, UNAVAILABLE, where there is no TensorRT or one that is too old.
    """

    def __init__(self, cuda: Cuda) -> None:
        del cuda  # that there is one is what matters
        self.trt: Any = load_module()
        self._complaints: deque[str] = deque(maxlen=_KEPT_LINES)
        self.logger: Any = _logger(self.trt, self._complaints.append)

    def complaints(self) -> str:
        """What TensorRT has complained of since the last time this was asked, as one line."""
        said = "; ".join(self._complaints) or "TensorRT gave no reason"
        self._complaints.clear()
        return said

    def dtype_name(self, dtype: Any) -> str:
        """A tensor's element type as numpy calls it; TensorRT's own word for one that numpy lacks."""
        types = self.trt.DataType
        names: Mapping[Any, str] = {
            types.FLOAT: "float32",
            types.HALF: "float16",
            types.UINT8: "uint8",
            types.INT32: "int32",
            types.INT64: "int64",
            types.BOOL: "bool",
        }
        return names.get(dtype, str(dtype))


def load_module() -> Any:
    """The module; raises DaemonError, UNAVAILABLE, where it is not there or too old."""
    try:
        trt: Any = importlib.import_module("tensorrt")
    except ImportError as error:
        raise DaemonError(
            f'policy.backend is "tensorrt", which cannot be imported here ({error}): on a Jetson apt install '
            "python3-libnvinfer and make the environment with --system-site-packages; elsewhere set policy.backend to "
            '"onnxruntime"',
            ExitCode.UNAVAILABLE,
        ) from None
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise DaemonError(
            f"TensorRT {version} is too old, {OLDEST[0]}.{OLDEST[1]} is the oldest that will do: install JetPack 6.1 "
            "or newer",
            ExitCode.UNAVAILABLE,
        )
    return trt


def _logger(trt: Any, complain: Callable[[str], None]) -> Any:
    """A logger of TensorRT's own kind, that tells complaints and says nothing else.

    It is called from whatever thread TensorRT works on.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                complain(" ".join(msg.split()))

    return Logger()
