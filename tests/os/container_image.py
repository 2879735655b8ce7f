"""A Debian root folder to boot as a container, and the packages that an installation in it needs: each made once.

They are kept in $MVLA_OS_CACHE, or ~/.cache/mvla-daemon/os, under a name that holds their recipe's hash. Mirror, index
and certificates are those that this machine's apt and pip use; $MVLA_OS_MIRROR names another mirror.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SUITE = "bookworm"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "udev", "python3", "python3-venv")
REPOSITORY = Path(__file__).parents[2]
LOCKS = ("requirements.robot.lock", "requirements.lock")
"""The first of these that is there is what an installation takes its packages from."""
PIP_SETTINGS = ("index-url", "extra-index-url", "proxy", "trusted-host", "cert")
TOOLS = ("systemd-nspawn", "debootstrap", "nsenter")
SETUP_S = 900


class CannotError(Exception):
    """This machine cannot do it; the sentence says why."""


def missing() -> str:
    """Why no container can run here, or nothing."""
    if os.geteuid() != 0:
        return "containers need root: use sudo"
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    if tools:
        return f"there is no {' and no '.join(tools)}: apt install systemd-container debootstrap util-linux"
    groups = Path("/sys/fs/cgroup")
    if not (groups / "cgroup.procs").exists() and not (groups / "unified/cgroup.procs").exists():
        return "no cgroup v2 is mounted under /sys/fs/cgroup"
    if not any(os.access(root, os.W_OK) for root in (groups / "cgroup.procs", groups / "unified/cgroup.procs")):
        return "the cgroups under /sys/fs/cgroup are read-only"
    return ""


def root_folder() -> Path:
    """The root; made where it is not there yet, in about a minute."""
    recipe = json.dumps([SUITE, PACKAGES, os.uname().machine, 1])
    with _made_once("root", recipe) as (folder, unfinished):
        if unfinished:
            _say(f"making a Debian {SUITE} in {folder} (once, about a minute)")
            words = ("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(unfinished))
            _call([*words, _mirror()], {**os.environ, **_apt_proxy()})
            for archive in (unfinished / "var/cache/apt/archives").glob("*.deb"):
                archive.unlink()
    return folder


def wheel_folder(root: Path) -> Path:
    """The locked packages, for the Python of `root`."""
    lock = next(REPOSITORY / name for name in LOCKS if (REPOSITORY / name).exists())
    recipe = root.name + hashlib.sha256(lock.read_bytes()).hexdigest()
    with _made_once("wheels", recipe) as (folder, unfinished):
        if unfinished:
            _say(f"fetching the packages of {lock.name} into {folder} (once)")
            _fetch_wheels(root, lock, unfinished)
    return folder


def _fetch_wheels(root: Path, lock: Path, into: Path) -> None:
    """By the root's own Python: which package it takes depends on the interpreter that asks."""
    workshop = into / "workshop"
    _call(["cp", "--archive", str(root), str(workshop)], os.environ)  # shutil would read its devices
    try:
        for name in ("/etc/resolv.conf", "/etc/hosts"):
            with suppress(FileNotFoundError):
                shutil.copyfile(name, workshop / name[1:])
        shutil.copyfile(lock, workshop / "requirements.lock")
        settings = _pip_settings()
        if certificates := settings.pop("cert", None):
            shutil.copyfile(certificates, workshop / "certificates.crt")
            settings["cert"] = "/certificates.crt"
        lines = [f"{key} = {value}" for key, value in settings.items()]
        (workshop / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        _call(["chroot", str(workshop), "python3", "-m", "venv", "/pip"], environment)
        download = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--require-hashes")
        what = ("--only-binary", ":all:", "--dest", "/wheels", "--requirement", "/requirements.lock")
        _call(["chroot", str(workshop), "/pip/bin/python", *download, *what], environment)
        for wheel in (workshop / "wheels").iterdir():
            wheel.rename(into / wheel.name)
    finally:
        shutil.rmtree(workshop)


def _pip_settings() -> dict[str, str]:
    """What this machine's pip is told, as far as it means anything in another root."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in PIP_SETTINGS and name.split(".")[0] in {"global", "download", ":env:"}:
            words = value.strip("'\"").replace("\\n", " ").split()
            settings[key] = " ".join(word for word in words if not word.startswith("file:"))
    return {key: value for key, value in settings.items() if value}


def _mirror() -> str:
    """Where this machine's apt has Debian from."""
    if named := os.environ.get("MVLA_OS_MIRROR"):
        return named
    words = ("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages")
    targets = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    sources = [line.split() for line in targets.splitlines()]
    mirrors = [source[2] for source in sources if len(source) == 3 and source[:2] == ["Debian", SUITE]]
    if not mirrors:
        raise CannotError(f"apt knows no mirror of Debian {SUITE}: run apt-get update, or name one with MVLA_OS_MIRROR")
    return mirrors[0]


def _apt_proxy() -> dict[str, str]:
    words = ("apt-config", "shell", "http_proxy", "Acquire::http::Proxy", "https_proxy", "Acquire::https::Proxy")
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    pairs = (word.partition("=") for word in shlex.split(said))
    return {name: value for name, _, value in pairs}


@contextmanager
def _made_once(kind: str, recipe: str) -> Iterator[tuple[Path, Path | None]]:
    """A folder of the cache, and the one to fill instead while it is not there; renamed once it is whole."""
    cache = Path(os.environ.get("MVLA_OS_CACHE") or Path.home() / ".cache/mvla-daemon/os")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{kind}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with (cache / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield folder, None
            return
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield folder, unfinished
        unfinished.rename(folder)


def _call(words: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=SETUP_S,
    )
    if done.returncode != 0:
        raise CannotError(f"{' '.join(words)} failed: {' / '.join(done.stdout.splitlines()[-5:])}")


def _say(text: str) -> None:
    print(f"test-os: {text}", file=sys.stderr, flush=True)
