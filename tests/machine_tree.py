"""Files of a machine that is not here, laid out below a folder: a Jetson Orin Nano, as its kernel shows itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvla_daemon.devices.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

MODES = """\
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
ZONES = {"cpu-thermal": 52_500, "gpu-thermal": 51_000, "cv0-thermal": None, "tj-thermal": 53_000}
LIMIT = 99_000


class Tree:
    """Files of a machine, to be written one by one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machine = Machine(root)

    def write(self, path: str, content: str | int = "") -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
        return file

    def link(self, path: str, target: str) -> None:
        """A link; its target is a path of the machine, which need not be there yet."""
        link = self.root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.root / target.lstrip("/"))

    def command(self, name: str, script: str) -> None:
        file = self.write(f"/usr/bin/{name}", f"#!/bin/sh\n{script}")
        file.chmod(0o755)


def orin(root: Path) -> Tree:
    """A cool Orin Nano with JetPack 6.2 in its fastest mode, its clocks held, in good health."""
    tree = Tree(root)
    tree.write("/etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64")
    tree.write("/proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    tree.write("/etc/nvpmodel.conf", MODES)
    tree.write("/var/lib/nvpmodel/status", "pmode:0002")
    gpu = "/sys/class/devfreq/17000000.gpu"
    for name in ("min", "max", "cur"):
        tree.write(f"{gpu}/{name}_freq", 1_020_000_000)
    cpu = "/sys/devices/system/cpu"
    tree.write(f"{cpu}/online", "0-5")
    tree.write(f"{cpu}/present", "0-5")
    tree.write(f"{cpu}/isolated", "")
    for number in range(6):
        folder = f"{cpu}/cpu{number}/cpufreq"
        tree.write(f"{folder}/scaling_governor", "performance")
        for name in ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq"):
            tree.write(f"{folder}/{name}", 1_728_000)
    tree.write("/sys/devices/system/clocksource/clocksource0/current_clocksource", "arch_sys_counter")
    for number, (name, temperature) in enumerate(ZONES.items()):
        zone = f"/sys/class/thermal/thermal_zone{number}"
        tree.write(f"{zone}/type", name)
        if temperature is None:
            (root / zone.lstrip("/") / "temp").mkdir()  # a zone whose part is switched off: reading it is an error
        else:
            tree.write(f"{zone}/temp", temperature)
        tree.write(f"{zone}/trip_point_0_type", "passive")
        tree.write(f"{zone}/trip_point_0_temp", LIMIT)
    for number, name in enumerate(("pwm-fan", "cpufreq-cpu0", "gpu-throttle-alert")):
        tree.write(f"/sys/class/thermal/cooling_device{number}/type", name)
        tree.write(f"/sys/class/thermal/cooling_device{number}/cur_state", 0)
    for number in (1, 2, 3):
        tree.write(f"/sys/class/hwmon/hwmon4/oc{number}_event_cnt", 0)
    return tree


def usb_port(tree: Tree, node: str, *, driver: str = "ftdi_sio", latency_ms: int | None = 16, **about: str) -> None:
    """A USB serial adapter on the second plug of the first hub, as the kernel nests it."""
    usb = "/sys/devices/platform/bus@0/3610000.usb/usb1/1-2"
    for name, value in about.items():
        tree.write(f"{usb}/{name}", value)
    device = f"{usb}/1-2:1.0/{node}"
    tree.write(f"{device}/uevent")
    if latency_ms is not None:
        tree.write(f"{device}/latency_timer", latency_ms)
    tree.link(f"{device}/driver", f"/sys/bus/usb-serial/drivers/{driver}")
    tree.write(f"/sys/bus/usb-serial/drivers/{driver}/module")
    tree.link(f"/sys/class/tty/{node}/device", device)
    tree.write(f"/dev/{node}")
