"""The unit, the udev rules and the scripts that lay them: what can be judged without systemd as the first process."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mvla_daemon.config_load import load_config
from tests.nobody import NOBODY

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "systemd" / "mvla-daemon.service"
RULES = ROOT / "systemd" / "60-mvla-daemon.rules"
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
MOST_EXPOSED = 2.0
LEFT_OFF = {
    "PrivateDevices",
    "RestrictRealtime",
    "PrivateUsers",
    "ProcSubset",
    "MemoryDenyWriteExecute",
    "SystemCallFilter",
}


def ran(*words: str | Path, **options: str | int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def tool(name: str, *proof: str) -> str:
    """Where it is; the test is skipped where it is not, or does not know a word that is needed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} here")
    if proof and proof[-1] not in ran(path, "--help").stdout:
        pytest.skip(f"the {name} here is too old for {proof[-1]}")
    return path


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is here, since systemd-analyze looks for it."""
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub("^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    return unit


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    verified = ran(tool("systemd-analyze"), "verify", "--man=no", unit)
    about_ours = [line for line in (verified.stdout + verified.stderr).splitlines() if UNIT.name in line]
    assert about_ours == []
    assert verified.returncode == 0


def test_the_service_is_hardened_as_far_as_motors_and_camera_allow(unit: Path) -> None:
    judged = ran(tool("systemd-analyze", "--offline"), "security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for mvla-daemon.service: ([0-9.]+)", judged.stdout)
    assert found is not None, judged.stderr
    assert float(found[1]) <= MOST_EXPOSED


def test_each_protection_that_is_left_off_has_its_reason_beside_it() -> None:
    text = UNIT.read_text()
    assert set(re.findall(r"^#   (\w+)=\S*  +\S", text, flags=re.MULTILINE)) == LEFT_OFF
    settings = re.findall(r"^(\w+)=", text, flags=re.MULTILINE)
    assert not LEFT_OFF - {"SystemCallFilter"} & set(settings)


def test_the_unit_is_what_the_daemon_and_the_scripts_count_on() -> None:
    """Restated by hand: the places of the client, of the installation and of the configuration, and the exit codes."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    service = parser["Service"]
    assert service["ExecStart"] == "/opt/mvla-daemon/bin/mvla-daemon --config /etc/mvla-daemon/config.toml"
    assert (service["RuntimeDirectory"], service["RuntimeDirectoryMode"]) == ("mvla-daemon", "0750")
    assert (service["Type"], service["NotifyAccess"], service["KillMode"]) == ("notify", "main", "mixed")
    assert service["RestartPreventExitStatus"] == "64 78"
    assert (service["User"], service["Group"]) == ("mvla", "mvla")
    # The longest of safety.stop_timeout_ms, and the reporter's last words.
    assert int(service["TimeoutStopSec"]) > 60 + 3


def test_udev_takes_the_rules() -> None:
    verified = ran(tool("udevadm", "verify"), "verify", RULES)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_each_rule_is_made_of_keys_and_values_and_what_is_left_out_is_left_out_by_a_comment() -> None:
    lines = [line for line in RULES.read_text().splitlines() if line and not line.startswith("#")]
    part = r'[A-Z]+(\{[A-Za-z_]+\})?(==|\+=|=)"[^"]+"'
    assert [line for line in lines if not re.fullmatch(rf"{part}(, {part})*", line)] == []
    assert not any("SYMLINK" in line for line in lines)


def test_the_robots_configuration_is_right_but_for_what_is_not_here() -> None:
    config = load_config(ROOT / "systemd" / "config.robot.toml")
    assert config.safety.arm == "manual"
    assert config.policy.manifest.startswith("/var/lib/mvla-daemon/")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(script: Path) -> None:
    assert ran(tool("bash"), "-n", script).stderr == ""
    assert re.search(r"^set -e?uo pipefail$", script.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_a_wrong_word_and_a_missing_right_are_told_before_anything_is_done(script: str) -> None:
    wrong = ran(ROOT / "scripts" / script, "--wat")
    assert (wrong.returncode, wrong.stderr) == (64, f"{script}: there is no option --wat; see --help.\n")
    assert f"sudo scripts/{script}" in ran(ROOT / "scripts" / script, "--help").stdout
    # Read from standard input: nobody may not look into a home folder.
    text = (ROOT / "scripts" / script).read_text().replace('cd "$(dirname "$0")/.."', "")
    nobody = ran("bash", "-s", input=text, **({"user": NOBODY} if os.geteuid() == 0 else {}))
    assert (nobody.returncode, nobody.stderr) == (77, f"{script}: this needs root: sudo scripts/{script}\n")


def test_a_robot_gets_the_versions_that_are_tested() -> None:
    """And all that the package needs there."""
    pins = {
        name: set(re.findall(r"^([a-z0-9-]+==[^\\]*?) *\\$", (ROOT / name).read_text(), flags=re.MULTILINE))
        for name in ("requirements.lock", "requirements.robot.lock")
    }
    assert pins["requirements.robot.lock"] < pins["requirements.lock"]
    wanted = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert wanted is not None
    names = {pin.split("==")[0] for pin in pins["requirements.robot.lock"]}
    assert set(re.findall(r'"([a-z0-9-]+)', wanted[1])) <= names
    assert "opencv-python-headless" in names
