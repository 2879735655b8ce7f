"""A virtual machine with devices that a test can plug in, unplug and break.

It begins from a snapshot that was taken when the machine had booted and the daemon's libraries had been read once, so
that it is there in seconds. No KVM is needed: qemu translates, at a few percent of this machine's speed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.os.image import recipe

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

QEMU = "qemu-system-x86_64"
PATIENCE_S = 120.0
"""Everything takes its time here, more so on a busy machine."""
WARM_UP = "python3 -c 'import cv2, numpy, onnxruntime, pydantic, serial, structlog, uvloop'"
MODULES = "modprobe -a videodev ftdi_sio videobuf2-vmalloc videobuf2-dma-contig v4l2-tpg"
KERNEL_LINE = "root=/dev/vda rw console=ttyS0 quiet mitigations=off panic=-1"
HARDWARE = (
    *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
    *("-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"),
    *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"),
    *("-chardev", "null,id=uart", "-device", "isa-serial,chardev=uart,index=1"),
    *("-device", "qemu-xhci,id=usb"),
    *("-append", KERNEL_LINE),
)
UART = "/dev/ttyS1"


class MachineError(Exception):
    """The machine did not do as it was told."""


def why_impossible() -> str:
    """Why there can be no machine here; empty when there can be one."""
    missing = [name for name in (QEMU, "qemu-img") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found: sudo apt install qemu-system-x86 qemu-utils"
    return ""


class Machine:
    """A running machine; use as a context manager. `disk` is written to, `state` is where it goes on from, if given."""

    def __init__(self, folder: Path, image: recipe.Image, disk: Path, state: Path | None = None) -> None:
        self.folder = folder
        self.console = folder / "console.log"
        self._words = [QEMU, *HARDWARE, "-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        self._words += ["-drive", f"file={disk},if=virtio,format=qcow2"]
        self._words += [
            "-chardev",
            f"file,id=console,path={self.console}",
            "-device",
            "isa-serial,chardev=console,index=0",
        ]
        self._words += ["-chardev", f"socket,id=agent,path={folder / 'agent'},server=on,wait=off"]
        self._words += ["-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
        if state is not None:
            self._words += ["-incoming", f"exec:cat {state}"]
        self._deleted: set[str] = set()
        self._lines: list[socket.socket] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self.folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(self._words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._qmp = Line(self._connected("qmp"))
            self._qmp.receive(PATIENCE_S)
            self.order("qmp_capabilities")
            self._agent = Line(self._connected("agent"))
            while self.order("query-status")["status"] == "inmigrate":
                time.sleep(0.05)
            self.order("cont")  # it was saved standing still
            self.run("true")  # the agent reads what it was told as soon as it has been started
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        for line in self._lines:
            line.close()
        self._lines.clear()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _connected(self, name: str) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        self._lines.append(line)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                line.connect(str(self.folder / name))
                return line
            assert self._process is not None
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise MachineError(f"qemu did not start: {(self.folder / 'qemu.log').read_text()}")

    # --- its hardware ---

    def order(self, command: str, **arguments: object) -> Any:
        """Have qemu do something (its QMP page lists what); what it returns."""
        self._qmp.send({"execute": command, "arguments": arguments} if arguments else {"execute": command})
        while True:
            said = self._qmp.receive(PATIENCE_S)
            if "error" in said:
                raise MachineError(f"qemu refuses {command}: {said['error']['desc']}")
            if "return" in said:
                return said["return"]
            self._note(said)

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "DEVICE_DELETED":
            self._deleted.add(str(event["data"].get("device")))

    def wire_uart(self, terminal: str) -> None:
        """Connect the far side of /dev/ttyS1 to a terminal of this machine."""
        self.order("chardev-change", id="uart", backend=_serial(terminal))

    def plug_in(self, name: str, terminal: str) -> None:
        """Plug a USB serial adapter in, with this serial number, whose far side is a terminal of this machine."""
        if not any(known["label"] == name for known in self.order("query-chardev")):
            self.order("chardev-add", id=name, backend=_serial(terminal))
        about = {"driver": "usb-serial", "bus": "usb.0", "id": f"{name}-usb", "chardev": name, "serial": name}
        self.order("device_add", **about, **{"always-plugged": True})

    def unplug(self, name: str) -> None:
        """Pull the adapter out; its far side is left as it is."""
        self._deleted.discard(f"{name}-usb")
        self.order("device_del", id=f"{name}-usb")
        while f"{name}-usb" not in self._deleted:
            self._note(self._qmp.receive(PATIENCE_S))

    def by_id(self, name: str) -> str:
        """The name by which the adapter is known, whatever its number."""
        return f"/dev/serial/by-id/usb-QEMU_QEMU_USB_SERIAL_{name}-if00-port0"

    def save(self, state: Path) -> None:
        """Write all that it holds in memory to a file, to go on from there; it stands still from then on."""
        self.order("stop")
        self.order("migrate-set-parameters", **{"max-bandwidth": 0})
        self.order("migrate", uri=f"exec:cat >{state}")
        while (status := self.order("query-migrate")["status"]) != "completed":
            if status == "failed":
                raise MachineError("the machine's state could not be written")
            time.sleep(0.1)
        self.order("quit")
        assert self._process is not None
        self._process.wait(PATIENCE_S)

    # --- what runs in it ---

    def run(self, text: str, given: bytes = b"", *, may_fail: bool = False, timeout_s: float = 60) -> tuple[int, str]:
        """Run a shell command as root: its exit status and output; MachineError when it fails and may not."""
        said = self._told({"run": text, "input": base64.b64encode(given).decode(), "timeout_s": timeout_s}, timeout_s)
        if said["code"] != 0 and not may_fail:
            raise MachineError(f"{text!r} has failed with {said['code']}: {said['output']}")
        return said["code"], said["output"]

    def ask(self, text: str, at: str) -> str:
        """What the SEQPACKET socket in a folder of the machine answers; empty where there is none."""
        said = self._told({"ask": text, "at": at}, 30)
        return str(said["output"]) if said["code"] == 0 else ""

    def _told(self, request: dict[str, object], timeout_s: float) -> Any:
        self._agent.send(request)
        try:
            return self._agent.receive(timeout_s + PATIENCE_S)
        except TimeoutError as error:
            console = self.console.read_text(errors="replace")[-2000:]
            raise MachineError(f"the machine does not answer; its console says:\n{console}") from error


class Line:
    """Lines of JSON over a socket."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._pending = b""

    def send(self, value: object) -> None:
        self._line.settimeout(PATIENCE_S)
        self._line.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, timeout_s: float) -> Any:
        self._line.settimeout(timeout_s)
        while b"\n" not in self._pending:
            data = self._line.recv(65536)
            if not data:
                raise MachineError("the machine has ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)


def _serial(terminal: str) -> dict[str, object]:
    return {"type": "serial", "data": {"device": terminal}}


def started_from_snapshot(folder: Path) -> Machine:
    """A machine that has just booted; enter it to run it. Image and snapshot are made where there are none."""
    image = recipe.image()
    snapshot = _snapshot(image)
    disk = folder / "disk.qcow2"
    _overlay(disk, snapshot / "disk.qcow2", "qcow2")
    return Machine(folder, image, disk, snapshot / "state")


def _snapshot(image: recipe.Image) -> Path:
    """The folder of a machine that has booted: valid for this qemu, this hardware and this image."""
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    about = "\n".join((version, *HARDWARE, WARM_UP, MODULES))
    folder = image.folder / f"booted-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    with recipe.locked(image.folder):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=image.folder, prefix="booting-") as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                _overlay(made / "disk.qcow2", image.disk, "raw")
                with Machine(Path(scratch), image, made / "disk.qcow2") as machine:
                    machine.run(MODULES)
                    machine.run(WARM_UP, timeout_s=180)
                    machine.run("sync")
                    machine.save(made / "state")
                made.rename(folder)
    return folder


def _overlay(disk: Path, below: Path, kind: str) -> None:
    """A disk that keeps what is written to it and leaves the one below as it is."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", kind, disk], check=True)
