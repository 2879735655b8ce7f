"""The serial ports of this machine, from /sys: opening one, to ask, would reset many boards.

pyserial's own list leaves out the ports of a system on a chip (ttyTHS of a Jetson), and cannot say who may use one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvla_daemon.devices.access import Access, Holders, access, holders
from mvla_daemon.devices.machine import Machine

_LATENCY_MS = 1
_NOT_FOR_MOTORS = ("ttyGS", "ttyTCU")
"""A Jetson's own USB plug towards another computer, and the console of its boot processor."""
_PLACEHOLDERS = "/serial8250"
"""Where the kernel keeps ttyS numbers for PC ports that may come; those that are there hang below another device."""


@dataclass(frozen=True, slots=True)
class PortFound:
    """A serial port. The USB fields are empty for one that is built in."""

    path: str
    lasting: str
    """A name that stays the same when other devices come and go, where there is one, else the path."""
    driver: str
    vendor_id: str
    product_id: str
    maker: str
    product: str
    serial_number: str
    access: Access | None
    """None when it went while it was looked at."""
    users: Holders
    latency_timer_ms: int | None
    """How long an FTDI chip waits for more before it sends what came; None for other chips."""
    is_console: bool
    """Whether the kernel writes its messages there."""

    @property
    def name(self) -> str:
        """Who is there, as far as it says so itself."""
        words = " ".join(word for word in (self.maker, self.product) if word)
        ids = f"{self.vendor_id}:{self.product_id}" if self.vendor_id else ""
        return words or ids or f"built in ({self.driver or 'unknown driver'})"

    @property
    def fix(self) -> str:
        """What to type so that this user may open it; empty when it may, or had better not."""
        if self.access is None or self.access.allowed or self.is_console:
            return ""
        return self.access.fix(self.path, "dialout")

    @property
    def latency_fix(self) -> str:
        """What to type so that input is not held back; empty where it is not."""
        if self.latency_timer_ms is None or self.latency_timer_ms <= _LATENCY_MS:
            return ""
        node = self.path.removeprefix("/dev/")
        return f"echo {_LATENCY_MS} | sudo tee /sys/bus/usb-serial/devices/{node}/latency_timer"

    @property
    def use(self) -> str:
        """Who has it open, and whether somebody might who cannot be seen."""
        if self.users.found:
            return f"in use by {', '.join(map(str, self.users.found))}"
        if self.users.unseen:
            return "free as far as this user sees, root sees more"
        return "free"

    def lines(self) -> list[str]:
        """What to write into the configuration."""
        return ["[motor]", f'port = "{self.lasting}"']


def find_ports(machine: Machine) -> list[PortFound]:
    """All real ports: USB adapters and boards first, as a motor controller most often is one."""
    nodes = [node for node in machine.glob("/sys/class/tty/*") if _is_real(machine, node)]
    return sorted((_port(machine, node) for node in nodes), key=lambda port: not port.vendor_id)


def _is_real(machine: Machine, node: Path) -> bool:
    device = node / "device"
    if node.name.startswith(_NOT_FOR_MOTORS) or not device.exists():
        return False
    if not node.name.startswith("ttyS"):
        return True
    kind = machine.number(node / "type")  # 0: nothing is there; only root may read it
    return _PLACEHOLDERS not in os.path.realpath(device) if kind is None else kind != 0


def _port(machine: Machine, node: Path) -> PortFound:
    path = machine.path(f"/dev/{node.name}")
    usb = _usb_device(machine, node / "device")

    def said(attribute: str) -> str:
        return (machine.text(usb / attribute) or "") if usb is not None else ""

    consoles = (machine.text("/sys/class/tty/console/active") or "").split()
    return PortFound(
        path=machine.name(path),
        lasting=_lasting(machine, path),
        driver=_driver(node / "device"),
        vendor_id=said("idVendor"),
        product_id=said("idProduct"),
        maker=said("manufacturer"),
        product=said("product"),
        serial_number=said("serial"),
        access=access(path),
        users=holders(machine, path),
        latency_timer_ms=machine.number(node / "device" / "latency_timer"),
        is_console=node.name in consoles,
    )


def _usb_device(machine: Machine, device: Path) -> Path | None:
    """The USB device that a port belongs to: the nearest folder above it with a vendor's number."""
    folder = Path(os.path.realpath(device))
    top = Path(os.path.realpath(machine.path("/sys")))
    while folder != top and top in folder.parents:
        if (folder / "idVendor").exists():
            return folder
        folder = folder.parent
    return None


def _driver(device: Path) -> str:
    """The driver's name; newer kernels put two of their own layers between a built-in port and its driver."""
    folder = Path(os.path.realpath(device))
    for at in (folder, *list(folder.parents)[:2]):
        link = at / "driver"
        name = Path(os.path.realpath(link)).name if link.exists() else ""
        if name not in {"", "port", "ctrl"}:
            return name
    return ""


def _lasting(machine: Machine, node: Path) -> str:
    links: Sequence[Path] = [
        *machine.glob("/dev/serial/by-id/*"),
        *machine.glob("/dev/serial/by-path/*"),
    ]
    same = (link for link in links if os.path.realpath(link) == os.path.realpath(node))
    return machine.name(next(same, node))
