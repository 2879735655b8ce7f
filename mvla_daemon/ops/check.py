"""`mvla-daemon check`: what was found of all that a run needs, a line each; nothing is moved.

The camera is asked for one picture, the motor controller who it is. What is missing is said with what to do about it,
and the exit code is that of the first thing missing.
"""

from __future__ import annotations

import importlib
import platform
import secrets
import select
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvla_daemon import __version__, assembly
from mvla_daemon.cameras.base import Camera, CameraError, PictureError
from mvla_daemon.config import Config
from mvla_daemon.core.messages import SECOND
from mvla_daemon.engines.base import EngineError
from mvla_daemon.engines.cuda import Cuda
from mvla_daemon.engines.jetpack import jetpack_release
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.engines.tensorrt_library import load_module
from mvla_daemon.equipment import camera_for, engine_for
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.motors.motor_port import MotorPort
from mvla_daemon.motors.serial_port import PortLostError
from mvla_daemon.opencv import is_built_with, load_opencv

PICTURES = 10
"""The first ones after a camera was opened may be torn."""


def check(config: Config) -> int:
    """Look at everything and print a line for each; the exit code of the first that is missing, or OK."""
    worst = ExitCode.OK
    for name, look in LOOKS.items():
        try:
            found, code = look(config), ExitCode.OK
        except DaemonError as error:
            found, code = str(error), error.exit_code
        mark = "ok " if code is ExitCode.OK else "NO "
        sys.stdout.write(f"{mark} {name:9} {found}\n")
        sys.stdout.flush()
        worst = worst or code
    return worst


def _versions(_config: Config) -> str:
    packages = ("numpy", "onnxruntime", "uvloop", "pyserial", "pydantic", "structlog")
    found = ", ".join(f"{name} {_version(name)}" for name in packages)
    return f"mvla-daemon {__version__}, Python {platform.python_version()}, Linux {platform.release()}, {found}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _opencv(_config: Config) -> str:
    cv2 = load_opencv()
    parts = {"V4L2": "v4l/v4l2", "GStreamer": "GStreamer", "FFMPEG": "FFMPEG"}
    has = {name: is_built_with(cv2, key) for name, key in parts.items()}
    return f"{cv2.__version__} from {Path(str(cv2.__file__)).parent}: " + ", ".join(
        f"{name} {'yes' if there else 'no'}" for name, there in has.items()
    )


def _gpu(config: Config) -> str:
    """What a TensorRT engine needs; for other engines only what is there."""
    release = jetpack_release()
    found = [f"Jetson Linux {release}" if release else "no Jetson"]
    if config.policy.backend != "tensorrt":
        return f'{found[0]}; policy.backend is "{config.policy.backend}", which needs none'
    cuda = Cuda()
    try:
        found += [cuda.gpu, f"CUDA {cuda.driver_version} in the driver"]
    finally:
        cuda.close()
    found += [f"TensorRT {load_module().__version__}", f"pycuda {_version('pycuda')}"]
    try:
        importlib.import_module("cuda.bindings.driver")
        found.append(f"cuda-bindings {_version('cuda-bindings')}")
    except ImportError as error:
        found.append(f"no cuda-bindings ({error}), so that inferences are not one graph")
    return ", ".join(found)


def _policy(config: Config) -> str:
    manifest = load_manifest(Path(config.policy.manifest))
    said: list[str] = []
    with engine_for(config, manifest, said.append) as engine:
        engine.load()
        engine.warm_up()
        began_s = time.monotonic()
        try:
            engine.infer(lambda _: None)
        except EngineError as error:
            raise DaemonError(f"policy {manifest.name} does not run: {error}.", ExitCode.CONFIG) from None
        took_ms = 1000 * (time.monotonic() - began_s)
    weights = "RANDOM WEIGHTS" if manifest.weights == "random" else "trained"
    return f"{manifest.name} ({weights}) on {config.policy.backend}, {took_ms:.1f} ms for one inference here" + "".join(
        f"; {sentence}" for sentence in said
    )


def _camera(config: Config) -> str:
    if config.camera.is_simulated or config.camera.is_null:
        return f"{config.camera.source} is made when it is needed"
    said: list[str] = []
    camera = camera_for(config, None, said.append)
    picture = np.empty((config.camera.height, config.camera.width, 3), np.uint8)
    camera.open()
    try:
        problem = ""
        for _ in range(PICTURES):
            problem = _read(camera, picture)
            if not problem:
                found = f"{camera.name}: a picture of {picture.shape[1]}x{picture.shape[0]}, times: {camera.clock}"
                return "; ".join([found, *said])
    finally:
        camera.close()
    raise DaemonError(f"{camera.name} gives no usable picture ({problem}); see camera.source.", ExitCode.UNAVAILABLE)


def _read(camera: Camera, picture: NDArray[np.uint8]) -> str:
    """What was wrong with the next picture; empty when nothing was."""
    try:
        camera.read(picture)
    except (CameraError, PictureError) as error:
        return str(error)
    return ""


def _motors(config: Config) -> str:
    """Only HELLO is said, for as long as a controller may take to boot."""
    if config.motor.is_simulated:
        return f"{config.motor.port} is made when it is needed"
    port = MotorPort(config.motor.port, config.motor.baud)
    try:
        return _introduce(config, port)
    except PortLostError as error:
        raise DaemonError(f"{error}; see that its cable is in and stays in.", ExitCode.UNAVAILABLE) from None
    finally:
        port.close()


def _introduce(config: Config, port: MotorPort) -> str:
    now_ns = time.monotonic_ns
    link = assembly.motor_link(config, lambda: secrets.randbits(32))
    began_ns = now_ns()
    link.opened(began_ns)
    patience_s = config.motor.identify_timeout_s or 5.0
    while now_ns() - began_ns < patience_s * SECOND:
        port.write(link.due(now_ns()))
        assert port.fd is not None
        if select.select([port.fd], [], [], 0.05)[0]:
            link.receive(port.read(), now_ns())
        if link.identity is not None:
            return f"{link.identity.text!r} on {port.path}, {link.why_not_ready() or 'at rest'}"
    raise DaemonError(
        f"{port.path} did not identify itself as a motor controller within {patience_s:g} s; check motor.port, "
        f"motor.baud ({port.baud}) and that its firmware speaks motor link v1.",
        ExitCode.UNAVAILABLE,
    )


LOOKS: dict[str, Callable[[Config], str]] = {
    "versions": _versions,
    "opencv": _opencv,
    "gpu": _gpu,
    "policy": _policy,
    "camera": _camera,
    "motors": _motors,
}
"""What is looked at, in this order; each gives what it found, or raises DaemonError."""
