"""The machine's disk: a small Debian with its own kernel and the packages that the daemon is locked to.

Built once, in a few minutes, and kept under a hash of all that goes into it. The daemon itself is no part of it: it is
sent to the running machine. Packages come from wherever apt and pip of this machine get theirs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
SUITE = "bookworm"
DEBIAN = ("linux-image-amd64", "initramfs-tools", "udev", "kmod", "python3", "v4l-utils")
PYTHON = "3.11.2"
"""Of that Debian."""
GLIBC_MINOR = 36
MARKERS = {
    "python_version": "3.11",
    "python_full_version": PYTHON,
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "os_name": "posix",
}
EARLY_MODULES = ("virtio_pci", "virtio_blk", "ext4")
"""All that the kernel needs to find its disk; the fewer, the sooner."""
SIZE = "2G"
TOOLS = {"debootstrap": "debootstrap", "mke2fs": "e2fsprogs", "chroot": "coreutils"}
KEPT_S = 7 * 86_400


class RecipeError(Exception):
    """The image can't be made; the sentence says what to do."""


@dataclass(frozen=True)
class Image:
    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


def cache() -> Path:
    chosen = os.environ.get("MVLA_OS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache/mvla-daemon/os"


def image() -> Image:
    """The image, built first where there is none; raises RecipeError."""
    pins = locked_packages()
    digest = hashlib.sha256(pins.encode())
    for part in ("recipe.py", "agent.py", "init"):
        digest.update((HERE / part).read_bytes())
    folder = cache() / f"machine-{digest.hexdigest()[:16]}"
    with locked(cache()):
        if not folder.exists():
            _check_tools()
            _forget_old_ones()
            with tempfile.TemporaryDirectory(dir=cache(), prefix="building-") as scratch:
                _build(Path(scratch), pins)
                (Path(scratch) / "image").rename(folder)
        os.utime(folder)
    return Image(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One builder at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_tools() -> None:
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise RecipeError(f"the machine's image needs {' and '.join(missing)}: sudo apt install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise RecipeError("the machine's image is made by root only (debootstrap): run this once with sudo")


def _forget_old_ones() -> None:
    for old in cache().glob("machine-*"):
        if time.time() - old.stat().st_mtime > KEPT_S:
            shutil.rmtree(old)


def _build(scratch: Path, pins: str) -> None:
    root, image = scratch / "root", scratch / "image"
    image.mkdir()
    _do("debootstrap", "--variant=minbase", f"--include={','.join(DEBIAN)}", SUITE, str(root), *_mirror())
    _install(root, pins, scratch)
    for name, at in (("agent.py", "opt/agent.py"), ("init", "sbin/init")):
        shutil.copy(HERE / name, root / at)
    _do("chroot", str(root), "useradd", "--create-home", "--groups", "dialout,video", "robot")
    _make_small_initrd(root)
    for name in ("vmlinuz", "initrd"):
        shutil.copy(next((root / "boot").glob(f"{name}*")), image / name)
    for rest in ("var/cache/apt", "var/lib/apt/lists", "boot"):
        shutil.rmtree(root / rest)
    _do("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(image / "disk.raw"), SIZE)


def _mirror() -> list[str]:
    """Where this machine's own apt gets that Debian from; elsewhere debootstrap knows a mirror by itself."""
    try:
        sites = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Codename: {SUITE}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []
    return sites[:1]


def locked_packages() -> str:
    """The lines of the lock that the daemon with OpenCV needs on the machine's Python, hashes included."""
    pins: dict[str, str] = {}
    for entry in (ROOT / "requirements.lock").read_text().replace("\\\n", "").splitlines():
        if entry.startswith("#"):
            continue
        line, *hashes = (word.strip() for word in entry.split("--hash="))
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(MARKERS):
            pins[requirement.name] = f"{line.split(';')[0].strip()} {' '.join(f'--hash={one}' for one in hashes)}"
    wanted, seen = ["mvla-daemon"], {"mvla-daemon"}
    for name in wanted:
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            where = {**MARKERS, "extra": "opencv" if name == "mvla-daemon" else ""}
            fits = needed.marker is None or needed.marker.evaluate(where)
            if fits and needed.name in pins and needed.name not in seen:
                wanted.append(needed.name)
                seen.add(needed.name)
    return "".join(f"{pins[name]}\n" for name in sorted(seen - {"mvla-daemon"}))


def _install(root: Path, pins: str, scratch: Path) -> None:
    lock = scratch / "packages.lock"
    lock.write_text(pins)
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC_MINOR, 16, -1)] + ["manylinux2014_x86_64"]
    target = root / "usr/local/lib/python3.11/dist-packages"
    words = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile", "--quiet", f"--target={target}"]
    words += [f"--python-version={PYTHON}", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none"]
    words += [f"--platform={platform}" for platform in platforms]
    _do(sys.executable, "-m", "pip", "install", *words, f"--requirement={lock}")
    _do("chroot", str(root), "python3", "-m", "compileall", "-q", "/usr/local/lib/python3.11")


def _make_small_initrd(root: Path) -> None:
    (root / "etc/initramfs-tools/conf.d/small").write_text("MODULES=list\nBUSYBOX=n\nFSTYPE=ext4\n")
    (root / "etc/initramfs-tools/modules").write_text("".join(f"{module}\n" for module in EARLY_MODULES))
    _do("chroot", str(root), "update-initramfs", "-u")


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RecipeError(f"{words[0]} has failed while the machine's image was made:\n{last}")
