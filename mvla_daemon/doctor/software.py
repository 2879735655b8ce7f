"""Which programs and libraries are here, and whether they can be loaded; each is tried in a process of its own."""

from __future__ import annotations

import importlib.util
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

from mvla_daemon import __version__
from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem
from mvla_daemon.doctor.probe import ProbeError, probe
from mvla_daemon.engines.jetpack import RELEASE
from mvla_daemon.engines.tensorrt_library import OLDEST

_JETSON_SETUP = "scripts/setup_jetson.sh"
_PACKAGES = {"uvloop": "uvloop", "pyserial": "serial", "pydantic": "pydantic", "structlog": "structlog"}
"""What the package is called, and its module."""


def look(machine: Machine) -> list[Finding]:
    """The daemon, its interpreter and its libraries."""
    on_jetson = machine.exists(str(RELEASE))
    with ThreadPoolExecutor() as pool:
        probes = [
            pool.submit(_numpy),
            pool.submit(_opencv, on_jetson=on_jetson),
            pool.submit(_onnxruntime),
            pool.submit(_gpu, on_jetson=on_jetson),
            pool.submit(_tensorrt, on_jetson=on_jetson),
        ]
        return [_daemon(), _system(machine), _packages(), *(done.result() for done in probes), _cuda_packages()]


def _daemon() -> Finding:
    return ok("mvla-daemon", f"{__version__} on Python {platform.python_version()} ({sys.executable})")


def _system(machine: Machine) -> Finding:
    release = machine.text("/etc/os-release") or ""
    fields = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    name = fields.get("PRETTY_NAME", "unknown distribution").strip('"')
    return ok("system", f"{name}, Linux {platform.release()}, {platform.machine()}")


def _packages() -> Finding:
    missing = [name for name, module in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        return problem("packages", f"missing: {', '.join(missing)}", f"{_pip()} install {' '.join(missing)}")
    return ok("packages", ", ".join(f"{name} {_version(name) or 'of unknown version'}" for name in _PACKAGES))


def _numpy() -> Finding:
    try:
        return ok("numpy", probe("numpy")["version"])
    except ProbeError as error:
        return problem("numpy", f"cannot be imported: {error}", f"{_pip()} install --force-reinstall numpy")


def _opencv(*, on_jetson: bool) -> Finding:
    install = _JETSON_SETUP if on_jetson else f"{_pip()} install 'mvla-daemon[opencv]'"
    try:
        found = probe("opencv")
    except ProbeError as error:
        return problem("opencv", f"cannot be imported: {error}", install)
    text = (
        f"{found['version']} in {found['folder']}: V4L2 {found['v4l2']}, GStreamer {found['gstreamer']}, "
        f"FFMPEG {found['ffmpeg']}"
    )
    if found["v4l2"] == "no":
        return problem("opencv", f"{text}; it cannot open cameras", install)
    if on_jetson and found["gstreamer"] == "no":
        remove = f"{_pip()} uninstall opencv-python opencv-python-headless"
        return note("opencv", f"{text}; pip's hides JetPack's own, without which there is no CSI camera", remove)
    return ok("opencv", text)


def _onnxruntime() -> Finding:
    try:
        found = probe("onnxruntime")
    except ProbeError as error:
        return problem("onnxruntime", f"cannot be imported: {error}", f"{_pip()} install --force-reinstall onnxruntime")
    return ok("onnxruntime", f"{found['version']}, providers: {found['providers']}")


def _gpu(*, on_jetson: bool) -> Finding:
    try:
        found = probe("cuda")
    except ProbeError as error:
        absent = f"no CUDA driver ({error})"
        return problem("gpu", absent, "sudo apt install nvidia-jetpack") if on_jetson else ok("gpu", absent)
    if found["gpu"]:
        return ok("gpu", f"{found['gpu']}, CUDA {found['cuda']} in the driver")
    why = f"a CUDA driver, but no GPU that it can use ({found.get('error', 'none found')})"
    return problem("gpu", why, "sudo dmesg | grep -i nv") if on_jetson else note("gpu", why, "nvidia-smi")


def _tensorrt(*, on_jetson: bool) -> Finding:
    if importlib.util.find_spec("tensorrt") is None:
        absent = 'not here; needed only where policy.backend is "tensorrt"'
        return note("tensorrt", absent, _JETSON_SETUP) if on_jetson else ok("tensorrt", absent)
    try:
        version = probe("tensorrt")["version"]
    except ProbeError as error:
        known = f"{_version('tensorrt') or 'of unknown version'} is here, but cannot be imported: {error}"
        fix = "sudo apt install --reinstall python3-libnvinfer" if on_jetson else f"{_pip()} uninstall tensorrt"
        return problem("tensorrt", known, fix)
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if tuple(numbers) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return problem(
            "tensorrt", f"{version} is too old, {oldest} is the oldest that will do", "sudo apt full-upgrade"
        )
    return ok("tensorrt", version)


def _cuda_packages() -> Finding:
    found = [f"{name} {_version(name) or 'not here'}" for name in ("pycuda", "cuda-bindings")]
    return ok("cuda python", ", ".join(found))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _pip() -> str:
    return f"{sys.executable} -m pip"
