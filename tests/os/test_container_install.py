"""From `scripts/install.sh` to a robot that drives, on a systemd of its own; judged at the far end of the line."""

from __future__ import annotations

from tests.os.container_service import CONFIG, DAEMON, OPERATOR, OUTSIDER, THE_PORT, UNIT, Service, edited


def test_an_installation_enables_the_unit_and_starts_nothing(installed: Service) -> None:
    run = installed.container.run
    assert installed.show("UnitFileState") == "enabled"
    assert installed.show("ActiveState") == "inactive"
    assert installed.container.read(CONFIG) == run("cat", "/mnt/project/systemd/config.robot.toml").stdout
    assert {"mvla", "dialout", "video"} <= set(run("id", "--name", "--groups", "mvla").stdout.split())
    assert installed.read_wire() == []


def test_with_the_port_named_the_configuration_is_valid(installed: Service) -> None:
    """Camera and policy are the robot's own, and what is shipped names where they are; a container has neither."""
    shipped = installed.container.read("/mnt/project/systemd/config.robot.toml")
    installed.container.write(CONFIG, edited(shipped, THE_PORT))
    assert installed.container.run_as("mvla", *DAEMON, "check").returncode not in {64, 78}


def test_from_install_to_driving_with_nothing_edited_but_the_port(installed: Service) -> None:
    """Of a machine without a camera and without a policy; at the shipped 50 Hz and 20 ms."""
    container = installed.container
    container.run("rm", CONFIG)
    said = installed.install("--bench")
    assert "motor.port" in said
    assert "wheels off the ground" in said
    container.write(CONFIG, edited(container.read(CONFIG), THE_PORT))
    assert container.run_as("mvla", *DAEMON, "check").returncode == 0
    installed.mark()
    installed.systemctl("start", UNIT)
    assert (installed.show("ActiveState"), installed.show("SubState")) == ("active", "running")
    assert not {"ARM", "VELOCITY"} & set(installed.kinds())
    # A busy machine misses a rehearsal, and one try more is what its message asks for.
    installed.wait_until(lambda: container.run_as(OPERATOR, *DAEMON, "arm").returncode == 0, "arming")
    moves = installed.wait_for("VELOCITY", after=installed.begin, count=10)
    assert any(timed.frame.number("vx") or timed.frame.number("wz") for timed in moves)
    limits = {"vx": 100_000, "vy": 100_000, "wz": 500_000}
    assert all(abs(timed.frame.number(axis)) <= limit for timed in moves for axis, limit in limits.items())
    assert installed.records("MVLA_EVENT=start")[0]["MESSAGE"].startswith("BENCH TEST, wheels off the ground")
    installed.systemctl("stop", UNIT)


def test_from_start_to_driving_with_the_port_a_recording_and_its_policy_named(installed: Service) -> None:
    installed.configure()
    installed.mark()
    installed.systemctl("start", UNIT)
    assert (installed.show("ActiveState"), installed.show("SubState")) == ("active", "running")
    assert installed.show("NRestarts") == "0"
    assert installed.status()["state"] == "disarmed"
    assert not {"ARM", "VELOCITY"} & set(installed.kinds())
    installed.arm()
    moves = installed.wait_for("VELOCITY", after=installed.begin, count=10)
    assert any(timed.frame.number("vx") for timed in moves)
    installed.wait_until(lambda: installed.show("StatusText").startswith("armed"), "word of it in systemctl status")
    assert "ARM" in installed.kinds()[: installed.kinds().index("VELOCITY")]


def test_who_is_not_in_the_group_is_refused_and_the_robot_drives_on(driving: Service) -> None:
    for request in ("stop", "arm", "disarm", "status"):
        done = driving.container.run_as(OUTSIDER, *DAEMON, request)
        assert done.returncode == 77, done
        assert "usermod -aG mvla outsider" in done.stderr
        assert "Traceback" not in done.stderr
    driving.wait_for("VELOCITY", after=len(driving.read_wire()), count=3)
    assert driving.stop_reasons() == []


def test_whoever_is_in_the_group_may_stop(driving: Service) -> None:
    assert driving.container.run_as(OPERATOR, *DAEMON, "stop").returncode == 0
    driving.wait_for_state(3)
    assert driving.stop_reasons() == [13]


def test_another_installation_is_refused_while_the_robot_drives(driving: Service) -> None:
    run = driving.container.run
    run("cp", "-r", "/mnt/project", "/root/second")
    done = run("/root/second/scripts/install.sh", check=False)
    run("rm", "-rf", "/root/second")
    assert done.returncode == 75, done
    assert "disarm" in done.stderr
    driving.wait_for("VELOCITY", after=len(driving.read_wire()), count=3)
    assert driving.stop_reasons() == []


def test_another_installation_keeps_the_configuration_and_the_drop_ins(service: Service) -> None:
    drop_in = f"/etc/systemd/system/{UNIT}.service.d/mine.conf"
    service.container.write(drop_in, "[Service]\nEnvironment=MINE=1\n")
    service.container.write(CONFIG, service.container.read(CONFIG) + "# mine\n")
    before = service.container.read(CONFIG)
    service.install()
    assert service.container.read(CONFIG) == before
    assert service.container.read(drop_in).endswith("MINE=1\n")
    assert "MINE=1" in service.show("Environment")
    assert service.status()["state"] == "disarmed"
    service.container.run("rm", "-r", drop_in)
    service.systemctl("daemon-reload")
