"""An uninstallation leaves a machine as it was. The last test of all that share the container."""

from __future__ import annotations

from tests.os.container_service import UNIT, Service


def test_an_uninstallation_stops_the_robot_and_leaves_nothing(driving: Service, files_before: set[str]) -> None:
    run = driving.container.run
    run("/opt/mvla-daemon/share/uninstall.sh")
    driving.wait_for_state(3)
    assert driving.stop_reasons() == [14]
    assert driving.files() - files_before == set()
    assert files_before - driving.files() == set()
    for database in ("passwd", "group"):
        assert run("getent", database, "mvla", check=False).returncode != 0
    assert run("systemctl", "cat", UNIT, check=False).returncode != 0
    assert run("sh", "-c", "ls -d /run/mvla-daemon* /run/systemd/system/mvla* 2>/dev/null", check=False).stdout == ""
    failed = run("systemctl", "--failed", "--no-legend", "--plain").stdout
    assert UNIT not in failed
