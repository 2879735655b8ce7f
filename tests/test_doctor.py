"""The doctor looks at any machine, names what is wrong with what to type, and never fails or opens a port."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mvla_daemon.config_load import load_config
from mvla_daemon.devices.access import Holder
from mvla_daemon.devices.cameras import CameraFound
from mvla_daemon.devices.machine import Machine
from mvla_daemon.devices.v4l2 import Mode
from mvla_daemon.doctor import equipment, heat, jetson, memory, processors, rights, services, settings
from mvla_daemon.doctor.command import GROUPS, examine
from mvla_daemon.doctor.finding import Finding, Level, note, ok, problem
from mvla_daemon.doctor.report import as_json, as_text
from tests.machine_tree import LIMIT, Tree, orin, usb_port
from tests.rig import PATIENCE_S, ROOT, environment
from tests.test_devices import BY_ID, FTDI, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

GROUP_NAMES = {
    *("Software", "Jetson", "Processors", "Heat and power", "Memory and disk", "Rights", "Services"),
    *("Cameras", "Serial ports"),
}
SYSTEMCTL = """\
test "$1" = show || exit 1
cat <<END
LoadState={load}
ActiveState={active}
SubState=x
UnitFileState=enabled
Result={result}
ExecMainStatus={status}
NRestarts=3
LimitRTPRIO={priority}
END
"""
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max locked memory         {lock}              {lock}              bytes
Max nice priority         {nice}                    {nice}
Max realtime priority     {priority}                    {priority}
"""


def named(findings: Sequence[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


# --- the command ---


@pytest.mark.meanwhile
def test_this_machine_as_it_is(tmp_path: Path) -> None:
    done = told(tmp_path, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert {line for line in done.stdout.splitlines() if line and not line.startswith(" ")} > GROUP_NAMES
    for line in done.stdout.splitlines():
        assert len(line) <= 80 or " " not in line.strip()
    assert "No serial port was opened" in done.stdout.splitlines()[-1]


@pytest.mark.meanwhile
def test_the_same_for_programs(tmp_path: Path) -> None:
    done = told(tmp_path, "doctor", "--json", "--config", "config.toml")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert {finding["group"] for finding in report["findings"]} == {*GROUP_NAMES, "Configuration"}
    assert sum(report["counts"].values()) == len(report["findings"])
    for finding in report["findings"]:
        assert finding["level"] in {"ok", "note", "problem"}
        assert finding["text"]
        assert finding["level"] != "problem" or finding["fix"]
    looked = {finding["name"]: finding for finding in report["findings"] if finding["group"] == "Configuration"}
    assert looked["file"]["level"] == looked["policy"]["level"] == looked["camera"]["level"] == "ok"
    assert "cup (trained) on onnxruntime" in looked["policy"]["text"]


@pytest.mark.meanwhile
def test_an_installation_without_its_libraries_is_a_finding(tmp_path: Path) -> None:
    code = "import sys; from mvla_daemon.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],  # without site-packages
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["packages"]["level"] == "problem"
    assert "uvloop, pyserial, pydantic, structlog" in found["packages"]["text"]


@pytest.mark.meanwhile
def test_a_library_that_crashes_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcublas.so.12: cannot open shared object file')")
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.5.2'")
    done = told(tmp_path, "doctor", "--json", path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["opencv"]["level"] == found["onnxruntime"]["level"] == found["tensorrt"]["level"] == "problem"
    assert "SIGSEGV" in found["opencv"]["text"]
    assert "libcublas.so.12" in found["onnxruntime"]["text"]
    assert "8.5.2 is too old" in found["tensorrt"]["text"]


def test_each_mistake_in_a_configuration_is_a_problem_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text((ROOT / "config.toml").read_text().replace("rate_hz = 50 ", "rate_hertz = 50 "))
    found = settings.look_with(config, ["motor.baud=fast"])(Machine())
    assert [finding.level for finding in found] == [Level.PROBLEM] * 2
    assert "rate_hertz" in f"{found[0].text}{found[1].text}"
    assert "motor.baud" in f"{found[0].text}{found[1].text}"
    (missing,) = settings.look_with(tmp_path / "nothing.toml", [])(Machine())
    assert missing.level is Level.PROBLEM


def test_a_missing_port_camera_and_policy(tmp_path: Path) -> None:
    robot = ["camera.source=/dev/video987", "motor.port=/dev/ttyUSB0", "policy.manifest=nothing.toml"]
    found = settings.look_with(ROOT / "config.toml", robot)(Machine(tmp_path))
    assert {named(found, name).level for name in ("motors", "policy", "camera")} == {Level.PROBLEM}
    assert named(found, "motors").fix == "mvla-daemon find-port"


@pytest.mark.parametrize(("baud", "level", "says"), [(921_600, Level.OK, "0.35 ms"), (115_200, Level.NOTE, "2.8 ms")])
def test_the_time_of_a_command_on_the_line(tmp_path: Path, baud: int, level: Level, says: str) -> None:
    """VELOCITY: 8 of header, 18 of body, 4 of CRC, 1 of COBS and a zero are 32 bytes of 10 bits."""
    tree = Tree(tmp_path)
    usb_port(tree, "ttyUSB0", **FTDI)
    robot = ["camera.source=/dev/video0", "motor.port=/dev/ttyUSB0", f"motor.baud={baud}"]
    found = settings.look_at_motors(tree.machine, load_config(ROOT / "config.toml", robot))
    assert named(found, "motors").level is Level.OK
    assert named(found, "line speed").level is level
    assert says in named(found, "line speed").text


# --- any machine ---


def test_a_machine_without_a_single_file_is_looked_at(tmp_path: Path) -> None:
    groups = {name: look for name, look in GROUPS.items() if name != "Software"}
    found = examine(Machine(tmp_path), groups)
    assert set(found) == GROUP_NAMES - {"Software"}
    for findings in found.values():
        assert findings
        assert all(finding.name != "doctor" for finding in findings)
        assert all(finding.level is not Level.PROBLEM for finding in findings)


def test_files_with_nonsense_in_them_are_looked_at(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    usb_port(tree, "ttyUSB0", **FTDI)
    tree.write("/proc/meminfo", "MemTotal: lots")
    tree.write("/proc/stat", "cpu what")
    tree.write("/proc/loadavg", "none")
    tree.write("/proc/self/limits", "Max realtime priority     many   many")
    tree.write("/proc/self/cgroup", "0::/user\nx")
    tree.write("/proc/self/status", "CapEff:\txyz")
    for file in tmp_path.rglob("*"):
        if file.is_file() and "dev/tty" not in str(file) and "nv_tegra" not in str(file):
            file.write_bytes(b"\xff\0nonsense 17")
    groups = {name: look for name, look in GROUPS.items() if name != "Software"}
    for findings in examine(tree.machine, groups).values():
        assert all(finding.name != "doctor" for finding in findings), findings


def test_what_hangs_or_fails_keeps_nothing_else_back() -> None:
    let_go = threading.Event()

    def hangs(_: Machine) -> list[Finding]:
        let_go.wait()
        return []

    def fails(_: Machine) -> list[Finding]:
        raise ValueError("an odd file")

    found = examine(Machine(), {"A": hangs, "B": fails, "C": lambda _: [ok("c", "well")]}, within_s=0.2)
    let_go.set()
    assert "A gave no answer in time" in found["A"][0].text
    assert "ValueError: an odd file" in found["B"][0].text
    assert found["C"] == [ok("c", "well")]


def test_a_problem_without_a_fix_cannot_be_reported() -> None:
    for kind in (problem, note):
        with pytest.raises(ValueError, match="no fix"):
            kind("camera", "gone", "")


def test_the_report_counts_and_breaks_no_word() -> None:
    link = f"/dev/serial/by-id/{'x' * 90}"
    found = {
        "Ports": [
            problem("ttyUSB0", f"{link} is gone", f"ls {link}"),
            note("b", "two words " * 20, "true"),
            ok("c", "ok"),
        ]
    }
    text = as_text(found)
    assert link in text
    assert text.splitlines()[-1].startswith("1 problem, 1 note, 1 ok.")
    assert all(len(line) <= 80 for line in text.splitlines() if link not in line)
    copied = text.split("fix: ")[1].split("\n  note")[0]
    assert " ".join(copied.replace("\\\n", " ").split()) == f"ls {link}"
    assert json.loads(as_json(found))["counts"] == {"ok": 1, "note": 1, "problem": 1}


# --- a Jetson ---


def test_a_jetson_in_good_health_has_nothing_to_do(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    found = [*jetson.look(tree.machine), *processors.look(tree.machine), *heat.look(tree.machine)]
    assert [finding for finding in found if finding.level is not Level.OK] == []
    assert "R36.4.3 (JetPack 6)" in named(found, "release").text
    assert named(found, "power mode").text == "MAXN_SUPER (2)"
    assert "1020 MHz" in named(found, "gpu clock").text
    assert named(found, "temperature").text == "tj-thermal 53 °C, slowed down from 99 °C on"


def test_a_slow_power_mode_names_the_fastest_of_this_module(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    tree.write("/var/lib/nvpmodel/status", "pmode:0000")
    tree.write("/sys/devices/system/cpu/online", "0-3")
    for number in range(4):
        tree.write(f"/sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor", "schedutil")
        tree.write(f"/sys/devices/system/cpu/cpu{number}/cpufreq/scaling_max_freq", 1_510_400)
    tree.write("/sys/class/devfreq/17000000.gpu/min_freq", 306_000_000)
    found = [*jetson.look(tree.machine), *processors.look(tree.machine)]
    assert named(found, "power mode") == note(
        "power mode",
        "15W (0) slows the processors; MAXN_SUPER does not, and needs power and cooling for it",
        "sudo nvpmodel -m 2",
    )
    assert named(found, "gpu clock").fix == named(found, "governor").fix == "sudo jetson_clocks"
    assert named(found, "cores").text == "4 of 6 are switched on"
    assert "bounded to 1510 MHz where 1728 are possible" in named(found, "clock speed").text


def test_the_power_mode_is_asked_of_nvpmodel_where_its_file_is_closed(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    assert named(jetson.look(tree.machine), "power mode").level is Level.NOTE
    tree.command("nvpmodel", 'test "$1" = -q && printf "NV Fan Mode:cool\\nNV Power Mode: 25W\\n1\\n"')
    assert named(jetson.look(tree.machine), "power mode").fix == "sudo nvpmodel -m 2"
    tree.command("nvpmodel", "exit 1")
    assert named(jetson.look(tree.machine), "power mode").text.startswith("unknown")


def test_a_release_that_is_too_old(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    tree.write("/etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref")
    release = named(jetson.look(tree.machine), "release")
    assert release.level is Level.PROBLEM
    assert "R35.4.1 (JetPack 5)" in release.text


@pytest.mark.parametrize(
    ("temperature", "level"), [(LIMIT, Level.PROBLEM), (LIMIT - 4_000, Level.NOTE), (LIMIT - 6_000, Level.OK)]
)
def test_heat_near_the_point_where_the_kernel_slows_down(tmp_path: Path, temperature: int, level: Level) -> None:
    tree = orin(tmp_path)
    tree.write("/sys/class/thermal/thermal_zone1/temp", temperature)
    found = named(heat.look(tree.machine), "temperature")
    assert found.level is level
    assert found.text.startswith("gpu-thermal")


@pytest.mark.parametrize(("device", "slowed"), [(0, False), (1, True), (2, True)])
def test_only_a_cooling_device_that_is_no_fan_is_throttling(tmp_path: Path, device: int, slowed: bool) -> None:
    tree = orin(tmp_path)
    tree.write(f"/sys/class/thermal/cooling_device{device}/cur_state", 1)
    found = named(heat.look(tree.machine), "throttled")
    assert found.level is (Level.PROBLEM if slowed else Level.OK)


def test_a_weak_power_supply_is_told_from_its_events(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    tree.write("/sys/class/hwmon/hwmon4/oc3_event_cnt", 12)
    found = named(heat.look(tree.machine), "power supply")
    assert found.level is Level.PROBLEM
    assert "oc3 12 times" in found.text


# --- other machines ---


@pytest.mark.parametrize(
    ("files", "name", "level"),
    [
        ({"/sys/devices/system/cpu/online": "0", "/sys/devices/system/cpu/present": "0"}, "cores", Level.NOTE),
        ({"/proc/stat": "cpu  10 0 10 70 0 0 0 10 0 0"}, "virtual", Level.PROBLEM),
        (
            {"/proc/stat": "cpu  10 0 10 80 0 0 0 0 0 0", "/proc/cpuinfo": "flags: fpu hypervisor"},
            "virtual",
            Level.NOTE,
        ),
        ({"/proc/stat": "cpu  10 0 10 80 0 0 0 0 0 0"}, "virtual", Level.OK),
        (
            {
                "/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet",
                "/sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm",
            },
            "time from",
            Level.PROBLEM,
        ),
        ({"/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc"}, "time from", Level.OK),
        ({"/sys/devices/system/cpu/online": "0-1", "/proc/loadavg": "1.90 1 1 2/90 3"}, "load", Level.NOTE),
        ({"/sys/devices/system/cpu/online": "0-1", "/proc/loadavg": "0.40 1 1 2/90 3"}, "load", Level.OK),
        ({"/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"}, "governor", Level.PROBLEM),
        (
            {
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "intel_pstate",
            },
            "governor",
            Level.NOTE,
        ),
    ],
)
def test_processors(tmp_path: Path, files: dict[str, str], name: str, level: Level) -> None:
    tree = Tree(tmp_path)
    for path, content in files.items():
        tree.write(path, content)
    assert named(processors.look(tree.machine), name).level is level


@pytest.mark.parametrize(
    ("available_mib", "swap_free_mib", "levels"),
    [
        (4000, 4096, {"memory": Level.OK, "swap": Level.OK}),
        (300, 4096, {"memory": Level.PROBLEM, "swap": Level.OK}),
        (4000, 2000, {"memory": Level.OK, "swap": Level.NOTE}),
    ],
)
def test_memory(tmp_path: Path, available_mib: int, swap_free_mib: int, levels: dict[str, Level]) -> None:
    tree = Tree(tmp_path)
    tree.write(
        "/proc/meminfo",
        f"MemTotal: 8000000 kB\nMemAvailable: {available_mib * 1024} kB\nSwapTotal: {4096 * 1024} kB\n"
        f"SwapFree: {swap_free_mib * 1024} kB",
    )
    found = memory.look(tree.machine)
    assert {name: named(found, name).level for name in levels} == levels


@pytest.mark.parametrize(
    ("limits", "capabilities", "level"),
    [
        ({"lock": "8388608", "nice": "0", "priority": "0"}, "0", Level.NOTE),
        ({"lock": "unlimited", "nice": "40", "priority": "99"}, "0", Level.OK),
        ({"lock": "8388608", "nice": "0", "priority": "0"}, f"{1 << 23 | 1 << 14:x}", Level.OK),
    ],
)
def test_rights(tmp_path: Path, limits: dict[str, str], capabilities: str, level: Level) -> None:
    tree = Tree(tmp_path)
    tree.write("/proc/self/limits", LIMITS.format(**limits))
    tree.write("/proc/self/status", f"Name:\tpython\nCapEff:\t{capabilities:0>16}")
    found = rights.look(tree.machine)
    assert {named(found, name).level for name in ("real time", "memory lock", "precedence")} == {level}


@pytest.mark.parametrize(
    ("files", "name", "level"),
    [
        ({"/proc/sys/kernel/sched_rt_runtime_us": "0"}, "rt share", Level.PROBLEM),
        ({"/proc/sys/kernel/sched_rt_runtime_us": "950000"}, "rt share", Level.OK),
        ({"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/a/cpu.max": "50000 100000"}, "cpu quota", Level.PROBLEM),
        ({"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/a/cpu.max": "max 100000"}, "cpu quota", Level.OK),
        (
            {"/proc/self/cgroup": "3:cpu,cpuacct:/a\n0::/", "/sys/fs/cgroup/cpu/a/cpu.rt_runtime_us": "0"},
            "cpu quota",
            Level.PROBLEM,
        ),
        ({"/sys/kernel/realtime": "1"}, "kernel", Level.OK),
    ],
)
def test_the_kernels_scheduler(tmp_path: Path, files: dict[str, str], name: str, level: Level) -> None:
    tree = Tree(tmp_path)
    for path, content in files.items():
        tree.write(path, content)
    assert named(rights.look(tree.machine), name).level is level


# --- services and devices ---


def failed(tree: Tree) -> None:
    tree.command(
        "systemctl", SYSTEMCTL.format(load="loaded", active="failed", result="exit-code", status=78, priority=0)
    )


def running(tree: Tree) -> None:
    tree.command("systemctl", SYSTEMCTL.format(load="loaded", active="active", result="success", status=0, priority=99))


def absent(tree: Tree) -> None:
    tree.command(
        "systemctl", SYSTEMCTL.format(load="not-found", active="inactive", result="success", status=0, priority=0)
    )


def silent(tree: Tree) -> None:
    tree.command("systemctl", "exit 1")


@pytest.mark.parametrize(
    ("state", "level", "says"),
    [
        (failed, Level.PROBLEM, "last exit 78 (exit-code), 3 restarts"),
        (running, Level.OK, "active (x), enabled"),
        (absent, Level.OK, "not installed"),
        (silent, Level.NOTE, "does not answer"),
    ],
)
def test_the_unit(tmp_path: Path, state: Callable[[Tree], None], level: Level, says: str) -> None:
    tree = Tree(tmp_path)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    state(tree)
    found = services.look(tree.machine)
    assert named(found, "unit").level is level
    assert says in named(found, "unit").text
    assert ("unit limits" in {finding.name for finding in found}) == (state is failed)


def test_a_journal_that_is_lost_at_every_start(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    assert named(services.look(tree.machine), "journal").level is Level.OK
    tree.write("/run/systemd/journal/socket")
    assert "mkdir -p /var/log/journal" in named(services.look(tree.machine), "journal").fix
    tree.write("/var/log/journal/x")
    assert named(services.look(tree.machine), "journal").level is Level.OK


def test_programs_that_grab_ports(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    assert named(services.look(tree.machine), "grabbers").level is Level.OK
    tree.write("/proc/700/comm", "ModemManager")
    tree.write("/proc/701/comm", "agetty")
    tree.write("/proc/701/cmdline", "/sbin/agetty\0-\x00115200\0ttyTHS1\0")
    tree.write("/usr/lib/udev/rules.d/85-brltty.rules")
    found = services.look(tree.machine)
    assert {"ModemManager", "nvgetty", "brltty"} <= {finding.name for finding in found}
    assert named(found, "brltty").level is Level.NOTE
    tree.write("/proc/702/comm", "brltty")
    assert named(services.look(tree.machine), "brltty").level is Level.PROBLEM


def test_a_camera_is_told_with_its_sizes_and_who_has_it() -> None:
    listed = [Mode("YUYV", width, 480, (30.0, 15.0)) for width in range(600, 608)] + [Mode("MJPG", 640, 480, (60.0,))]
    found = CameraFound("/dev/video0", "HD Pro Webcam", "uvcvideo", "/dev/video0", "/dev/v4l/by-id/x", listed)
    told = equipment.camera_finding(found)
    assert told.level is Level.OK
    assert "YUYV 600x480@30 601x480@30" in told.text
    assert "and 2 more" in told.text
    assert "MJPG 640x480@60" in told.text
    assert 'source = "/dev/v4l/by-id/x"' in told.text
    busy = equipment.camera_finding(replace(found, users=[Holder(7, "cheese")]))
    assert busy.level is Level.NOTE
    assert "cheese (process 7)" in busy.text
    assert equipment.camera_finding(replace(found, source="")).level is Level.NOTE


def test_ports_and_cameras_are_told_each_in_a_line(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    assert named(equipment.look_at_ports(tree.machine), "port").fix == "mvla-daemon find-port"
    assert named(equipment.look_at_cameras(tree.machine), "camera").fix == "mvla-daemon find-cameras"
    usb_port(tree, "ttyUSB0", **FTDI)
    tree.link(BY_ID, "/dev/ttyUSB0")
    tree.write("/dev/video0")
    tree.write("/proc/device-tree/tegra-camera-platform/modules/module0/badge", "imx219_bottom_liyoba\0")
    (port,) = equipment.look_at_ports(tree.machine)
    assert BY_ID in port.text
    assert "holds input back 16 ms" in port.text
    assert port.level is Level.NOTE
    tree.write("/sys/devices/platform/bus@0/3610000.usb/usb1/1-2/1-2:1.0/ttyUSB0/latency_timer", 1)
    assert equipment.look_at_ports(tree.machine)[0].level is Level.OK
    video, csi = equipment.look_at_cameras(tree.machine)
    assert (video.name, video.level, csi.level) == ("video0", Level.PROBLEM, Level.PROBLEM)
    assert "imx219_bottom_liyoba" in csi.text
