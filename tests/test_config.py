from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mvla_daemon.config import Config
from mvla_daemon.config_load import load_config
from mvla_daemon.config_source import key_lines
from mvla_daemon.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).resolve().parent.parent
LEAST = """\
[camera]
source = "/dev/video0"
[policy]
manifest = "policy.toml"
[motor]
port = "/dev/ttyUSB0"
"""
"""Lines 1 to 6; what a test adds begins at line 7."""
CONFIG_ERROR = 78
per_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, text: str) -> Path:
    file = folder / "robot.toml"
    file.write_text(text, encoding="utf-8")
    return file


def load(folder: Path, added: str = "", overrides: Sequence[str] = ()) -> Config:
    return load_config(write(folder, LEAST + added), overrides)


def errors(file: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The error's lines, without the folder."""
    with pytest.raises(DaemonError) as caught:
        load_config(file, overrides)
    assert caught.value.exit_code == CONFIG_ERROR
    return str(caught.value).replace(f"{file.parent}/", "").splitlines()


def only_error(folder: Path, added: str = "", overrides: Sequence[str] = ()) -> str:
    (line,) = errors(write(folder, LEAST + added), overrides)
    return line


# What a file gives


def test_keys_that_are_left_out_have_the_values_of_the_design(tmp_path: Path) -> None:
    config = load(tmp_path)
    values = config.model_dump()
    assert values == {
        "path": tmp_path / "robot.toml",
        "control": {"rate_hz": 50, "deadline_ms": 20, "max_frame_age_ms": 100},
        "camera": {
            "source": "/dev/video0",
            "width": 640,
            "height": 480,
            "fps": 50,
            "format": None,
            "buffers": None,
            "sensor_mode": None,
            "rotation": 0,
            "flip": "none",
            "frozen_after_ms": 500,
            "latency_ms": None,
        },
        "policy": {"manifest": str(tmp_path / "policy.toml"), "backend": "onnxruntime", "instruction": None},
        "tensorrt": {"precision": "fp16", "workspace_mib": 1024, "dla_core": None, "cache": None},
        "motor": {
            "protocol": "mvla",
            "port": "/dev/ttyUSB0",
            "baud": 921600,
            "watchdog_ms": 100,
            "identify_timeout_s": 5,
        },
        "limits": {
            "linear_x": {"max": 0.5, "accel": 1.0},
            "linear_y": {"max": 0.5, "accel": 1.0},
            "angular_z": {"max": 1.5, "accel": 4.0},
        },
        "safety": {
            "arm": "manual",
            "bench_test": False,
            "stop_category": 1,
            "stop_timeout_ms": 1000,
            "recover": "auto",
            "recover_cycles": 25,
            "max_stops": 3,
            "stop_window_s": 60,
            "policy_dead_after_ms": 2000,
        },
        "realtime": {"scheduler": "fifo", "gate_priority": 80, "policy_priority": 70, "lock_memory": True},
        "log": {"format": "auto", "level": "info"},
        "sim": {"seed": 1, "picture": None},
    }


def test_half_a_limit_keeps_the_other_half_of_its_own_axis(tmp_path: Path) -> None:
    limits = load(tmp_path, "[limits]\nangular_z = { max = 1 }\nlinear_x.accel = 2.5").limits
    assert (limits.angular_z.max, limits.angular_z.accel) == (1.0, 4.0)
    assert (limits.linear_x.max, limits.linear_x.accel) == (0.5, 2.5)


def test_a_whole_number_may_stand_for_a_real_one(tmp_path: Path) -> None:
    config = load(tmp_path, "[limits.linear_x]\nmax = 1\naccel = 2")
    assert repr((config.limits.linear_x.max, config.motor.identify_timeout_s)) == "(1.0, 5.0)"


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        config.control.rate_hz = 10


@pytest.mark.parametrize(
    ("rate_hz", "deadline_ms", "period_ns", "ttl_ms"),
    [
        (50, 20, 20_000_000, 60),
        (60, 16, 16_666_667, 53),  # ceil(32.67) + 20
        (30, 20, 33_333_333, 74),  # ceil(53.33) + 20
        (100, 9.5, 10_000_000, 40),  # ceil(19.5) + 20
        (1000, 1, 1_000_000, 22),
    ],
)
def test_times_of_a_cycle(tmp_path: Path, rate_hz: float, deadline_ms: float, period_ns: int, ttl_ms: int) -> None:
    config = load(tmp_path, f"[control]\nrate_hz = {rate_hz}\ndeadline_ms = {deadline_ms}")
    assert config.control.period_ns == period_ns
    assert config.control.deadline_ns == deadline_ms * 1_000_000
    assert config.control.max_frame_age_ns == 100_000_000
    assert config.ttl_ms == ttl_ms


def test_the_slowest_cycle(tmp_path: Path) -> None:
    slow = ["control.max_frame_age_ms=60000", "camera.frozen_after_ms=0", "safety.policy_dead_after_ms=60000"]
    config = load(tmp_path, overrides=["control.rate_hz=0.1", "camera.fps=0.1", "motor.watchdog_ms=10040", *slow])
    assert (config.control.period_ns, config.ttl_ms) == (10_000_000_000, 10_040)


def test_relative_paths_are_relative_to_the_file_and_not_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "elsewhere").mkdir()
    text = LEAST.replace("/dev/video0", "file://clips/a.avi").replace("/dev/ttyUSB0", "sim://")
    write(tmp_path / "etc", text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(Path("../etc/robot.toml"))
    assert config.path == tmp_path / "etc/robot.toml"
    assert config.camera.file_path == tmp_path / "etc/clips/a.avi"
    assert config.camera.source == f"file://{tmp_path}/etc/clips/a.avi"
    assert config.policy.manifest == f"{tmp_path}/etc/policy.toml"
    assert config.resolve("x/y") == tmp_path / "etc/x/y"
    assert config.resolve("/x/y") == Path("/x/y")


@pytest.mark.parametrize(
    ("source", "device", "file"),
    [
        ("/dev/video0", "/dev/video0", None),
        ("/dev/v4l/by-id/usb-cam-index0", "/dev/v4l/by-id/usb-cam-index0", None),
        ("v4l2:///dev/video2", "/dev/video2", None),
        ("v4l2://0", "/dev/video0", None),
        ("v4l2://12", "/dev/video12", None),
        ("file:///clips/a b.avi", None, Path("/clips/a b.avi")),
    ],
)
def test_camera_sources(tmp_path: Path, source: str, device: str | None, file: Path | None) -> None:
    camera = load(tmp_path, overrides=[f'camera.source="{source}"', "motor.port=sim://"]).camera
    assert (camera.device, camera.file_path, camera.is_recorded) == (device, file, file is not None)


@pytest.mark.parametrize(
    "source",
    [
        *(
            "sim:",
            "csi:0",
            "csi://",
            "csi://-1",
            "csi:///dev/video0",
            "0",
            "",
            "video0",
            "clip.avi",
            "/home/me/clip.avi",
        ),
        *("/dev", "/dev/", "/dev/../tmp/clip.avi", "/dev/v4l/../../tmp/a", "v4l2://", "v4l2://video0", "v4l2:///tmp/a"),
        *("file://", "file:clip.avi", "FILE://clip.avi", "http://camera"),
    ],
)
def test_other_camera_sources_are_refused_naming_what_is_accepted(tmp_path: Path, source: str) -> None:
    line = only_error(tmp_path, overrides=[f'camera.source = "{source}"'])
    assert line.startswith("--set camera.source: ")
    if source:
        assert all(word in line for word in (repr(source), "/dev/video0", "v4l2:///dev/video0", "file://"))


@pytest.mark.parametrize("source", ["csi://0", "rtsp://me:secret@192.168.0.10:554/1?a=b", "gst:v4l2src ! jpegdec"])
def test_a_live_source_that_hides_its_delay_needs_it_stated(tmp_path: Path, source: str) -> None:
    named = [f"camera.source='{source}'", "camera.fps=30", "control.max_frame_age_ms=200"]
    line = only_error(tmp_path, overrides=named)
    assert line.startswith("--set camera.source: ")
    assert "camera.latency_ms" in line
    assert "secret" not in line
    camera = load(tmp_path, overrides=[*named, "camera.latency_ms=100"]).camera
    assert (camera.is_live, camera.device, camera.file_path) == (True, None, None)
    assert camera.latency_ns == 100_000_000


def test_no_network_camera_is_without_delay(tmp_path: Path) -> None:
    rest = ["camera.fps=30", "control.max_frame_age_ms=200", "camera.latency_ms=0"]
    assert "above 0" in only_error(tmp_path, overrides=["camera.source='rtsp://camera/1'", *rest])
    load(tmp_path, overrides=["camera.source='csi://0'", *rest])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("rtsp://", "name a host"),
        ("rtsp:///stream", "name a host"),
        ("rtsp://camera:port/1", "name a host"),
        ("rtsp://camera/a b", "name a host"),
        ("rtsp://me:se/cret@camera/1", "%2F and %40"),
        ("gst:", "a pipeline behind gst:"),
        ("gst: ", "a pipeline behind gst:"),
        ("gst:v4l2src ! appsink", "appsink"),
        ("gst:v4l2src !", "without a last '!'"),
    ],
)
def test_a_source_that_cannot_be_read_is_told_how_to_write_it(tmp_path: Path, source: str, words: str) -> None:
    line = only_error(tmp_path, overrides=[f"camera.source='{source}'", "camera.latency_ms=10"])
    assert line.startswith("--set camera.source: is ")
    assert words in line


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://me:secret@camera:port/1",
        "RTSP://me:secret@camera/1",
        "rtsps://me:secret@camera/1",
        "rtsp://me:a secret@camera/1",
        "gst:rtspsrc location=rtsp://me:secret@camera/1 ! appsink",
        "gst:rtspsrc user-id=secret user-pw=secret ! appsink",
    ],
)
def test_no_password_is_in_a_refusal(tmp_path: Path, source: str) -> None:
    (line,) = errors(write(tmp_path, LEAST), [f"camera.source='{source}'"])
    assert "secret" not in line


@pytest.mark.parametrize(
    "pipeline", ["videotestsrc", "filesrc location=a.mp4 ! decodebin", "uridecodebin uri=file:///a"]
)
def test_a_pipeline_of_no_live_camera_drives_no_real_robot(tmp_path: Path, pipeline: str) -> None:
    named = [f"camera.source='gst:{pipeline}'", "camera.latency_ms=0"]
    assert "must not drive the real robot" in only_error(tmp_path, overrides=named)
    assert load(tmp_path, overrides=[*named, "safety.bench_test=true"]).bench_test_active


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("csi://0", "camera.format='MJPG'"),
        ("csi://0", "camera.buffers=2"),
        ("rtsp://camera/1", "camera.buffers=2"),
        ("gst:v4l2src", "camera.format='MJPG'"),
        ("rtsp://camera/1", "camera.sensor_mode=1"),
        ("/dev/video0", "camera.sensor_mode=1"),
    ],
)
def test_a_key_of_another_kind_of_camera_is_refused(tmp_path: Path, source: str, key: str) -> None:
    rest = ["camera.fps=30", "control.max_frame_age_ms=200", "camera.latency_ms=50"]
    line = only_error(tmp_path, overrides=[f"camera.source='{source}'", key, *rest])
    assert line.startswith(f"--set {key.partition('=')[0]}: ")
    assert "leave " in line
    load(tmp_path, overrides=["camera.source='file://a.avi'", key, *rest, "motor.port=sim://"])  # a try without it
    good = "csi://1" if "sensor_mode" in key else "/dev/video0"
    load(tmp_path, overrides=[f"camera.source='{good}'", key, *rest])


def test_the_simulated_camera_and_a_bundled_policy_are_named_by_themselves(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        overrides=[
            "camera.source='sim://'",
            "motor.port='sim://'",
            "policy.manifest='bundled:cup'",
            "sim.picture='a.png'",
        ],
    )
    assert (config.camera.is_simulated, config.camera.is_live, config.simulated) == (True, False, True)
    assert (config.camera.device, config.camera.file_path) == (None, None)
    assert config.policy.manifest == str(REPOSITORY / "mvla_daemon/bundled/cup/cup.toml")
    assert config.sim.picture == f"{tmp_path}/a.png"


@pytest.mark.parametrize("name", ["tea", "", "../cup", "cup/cup", "cup.toml", "CUP"])
def test_a_policy_that_does_not_come_with_the_package_is_refused_with_those_that_do(tmp_path: Path, name: str) -> None:
    line = only_error(tmp_path, overrides=[f"policy.manifest='bundled:{name}'"])
    assert line.startswith("--set policy.manifest: ")
    assert all(word in line for word in (f"'bundled:{name}'", '"bundled:cup"'))


def test_the_picture_of_a_drive_is_beside_the_file_unless_it_says_where(tmp_path: Path) -> None:
    assert load(tmp_path, "[sim]\npicture = 'drives/a.png'").sim.picture == f"{tmp_path}/drives/a.png"
    assert load(tmp_path, "[sim]\npicture = '/drives/a.png'").sim.picture == "/drives/a.png"
    assert load(tmp_path, "[sim]\nseed = 2147483647").sim.seed == 2_147_483_647


@pytest.mark.parametrize(
    "override", ["camera.width=320", "camera.height=240", "camera.rotation=180", "camera.flip=vertical"]
)
def test_the_simulated_camera_has_one_size_and_is_not_rotated(tmp_path: Path, override: str) -> None:
    line = only_error(tmp_path, overrides=["camera.source='sim://'", "motor.port='sim://'", override])
    assert line.startswith(f"--set {override.partition('=')[0]}: ")
    assert "640x480" in line
    load(tmp_path, overrides=["motor.port='sim://'", override])  # which is for other cameras as it was


def test_the_simulated_camera_drives_a_real_port_in_a_bench_test_only(tmp_path: Path) -> None:
    line = only_error(tmp_path, overrides=["camera.source='sim://'"])
    assert "a simulated camera must not drive the real robot" in line
    config = load(tmp_path, overrides=["camera.source='sim://'", "safety.bench_test=true"])
    assert (config.simulated, config.bench_test_active) == (False, True)
    config = load(tmp_path, overrides=["camera.source='sim://'", "motor.port='sim://'", "safety.bench_test=true"])
    assert (config.simulated, config.bench_test_active) == (True, False)


@pytest.mark.parametrize("seed", ["-1", "2147483648", "1.5", "true", "'7'"])
def test_a_room_is_named_by_a_whole_number(tmp_path: Path, seed: str) -> None:
    assert only_error(tmp_path, overrides=[f"sim.seed={seed}"]).startswith("--set sim.seed: ")


@pytest.mark.parametrize(
    "port", ["ttyUSB0", "/tmp/tty", "sim", "sim://x", "socket://host:1", "/dev/../etc/x", "", "/dev/"]
)
def test_other_ports_are_refused(tmp_path: Path, port: str) -> None:
    assert only_error(tmp_path, overrides=[f'motor.port="{port}"']).startswith("--set motor.port: ")


# Every key by itself


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        (
            "control.rate_hz",
            ["20", "50", "49.9"],
            ["0", "-50", "0.0", "0.09", "1000.1", "inf", "-inf", "nan", '"50"', "true"],
        ),
        ("control.deadline_ms", ["0.5", "20"], ["0", "-1", "nan", "60001", '"20"', "false", "[]"]),
        ("control.max_frame_age_ms", ["60", "500"], ["0", "-1", "inf", "60001"]),
        ("camera.width", ["1", "8192"], ["0", "-640", "8193", "640.0", "true"]),
        ("camera.height", ["1", "8192"], ["0", "-480", "8193", "480.5"]),
        ("camera.fps", ["20", "1000"], ["0", "-1", "1001", "nan"]),
        ("camera.rotation", ["0", "90", "180", "270"], ["45", "360", "-90", "90.0", "false", '"90"']),
        ("camera.format", ['"MJPG"', '"YUYV"', '"Y16 "'], ['"MJPEG"', '""', '"JPG"', "1196444237", '"\\u00e4BCD"']),
        ("camera.buffers", ["1", "10"], ["0", "11", "2.0", "true"]),
        ("camera.sensor_mode", [], ["-1", "100", '"0"']),
        ("camera.flip", ['"none"', '"horizontal"', '"vertical"'], ['"both"', "true", "1"]),
        ("camera.frozen_after_ms", ["0", "100", "60000"], ["-1", "inf", "60001"]),
        ("camera.latency_ms", ["0", "40"], ["-1", "nan"]),
        ("policy.manifest", ['"/a/b.toml"'], ['""', "3", '"a\\u0000b"']),
        ("policy.backend", ['"onnxruntime"', '"tensorrt"'], ['"onnx"', '""', "1"]),
        ("tensorrt.precision", ['"fp16"', '"fp32"'], ['"int8"', "16"]),
        ("tensorrt.workspace_mib", ["1", "4096"], ["0", "1.5", "-1"]),
        ("tensorrt.dla_core", ["0", "1"], ["-1", '"0"']),
        ("policy.instruction", ['"go to the cup"'], ['""', "1", "true", '"a\\u0000b"']),
        ("motor.protocol", ['"mvla"'], ['"vesc"', "1"]),
        ("motor.baud", ["9600", "921600", "4000000"], ["0", "-1", "9599", "4000001", "115200.0", '"115200"']),
        ("motor.identify_timeout_s", ["0", "2.5"], ["-1", "nan", "true"]),
        ("motor.watchdog_ms", ["60", "65535"], ["0", "-1", "65536", "100.0", "true"]),
        ("limits.linear_x.max", ["0.01", "2000"], ["0", "-0.5", "nan", "inf", "2000.1", "true"]),
        ("limits.linear_y.accel", ["0.01", "100"], ["0", "-1", "inf"]),
        ("limits.angular_z.accel", ["0.01"], ["0", "-4", "nan"]),
        ("limits.angular_z.max", ["0.01", "2000"], ["0", "-1.5", "2001"]),
        ("limits.angular_z", [], ["1.5", "[1, 2]", '"fast"']),
        ("safety.arm", ['"manual"', '"auto"'], ['"no"', "true"]),
        ("safety.bench_test", ["true", "false"], ["0", "1", '"true"']),
        ("safety.stop_category", ["0", "1", "2"], ["-1", "3", "1.0", "true", '"1"']),
        ("safety.stop_timeout_ms", ["1", "60000"], ["0", "-1", "60001"]),
        ("safety.recover", ['"auto"', '"never"'], ['"always"', "false"]),
        ("safety.recover_cycles", ["1", "10000"], ["0", "-1", "10001", "2.5"]),
        ("safety.max_stops", ["1", "1000"], ["0", "-3", "1001"]),
        ("safety.stop_window_s", ["0.5", "86400"], ["0", "-60", "86401"]),
        ("safety.policy_dead_after_ms", ["1041", "60000"], ["0", "-1", "60001"]),
        ("realtime.scheduler", ['"fifo"', '"other"'], ['"rr"', "1"]),
        ("realtime.gate_priority", ["71", "99"], ["0", "-1", "100", "80.0", "true"]),
        ("realtime.policy_priority", ["1", "79"], ["0", "100"]),
        ("realtime.lock_memory", ["true", "false"], ["1", '"yes"']),
        ("sim.picture", ['"/a/b.png"'], ['""', "3", '"a\\u0000b"']),
        ("log.format", ['"auto"', '"journal"', '"console"', '"json"'], ['"text"', "1"]),
        ("log.level", ['"debug"', '"info"', '"warning"', '"error"'], ['"INFO"', '"trace"', "20"]),
    ],
)
def test_values_of_each_key(tmp_path: Path, key: str, good: list[str], bad: list[str]) -> None:
    section, name, *axis_key = key.split(".")
    for value in good:
        loaded = getattr(getattr(load(tmp_path, overrides=[f"{key}={value}"]), section), name)
        if axis_key:
            loaded = getattr(loaded, axis_key[0])
        assert loaded == json.loads(value)
    for value in bad:
        line = only_error(tmp_path, overrides=[f"{key}={value}"])
        assert line.startswith(f"--set {key}: is ")
        assert "but " in line


@pytest.mark.parametrize(
    ("added", "line"),
    [
        ("[control]\nrate_hz = 0", "robot.toml:8: control.rate_hz: is 0, but must be greater than or equal to 0.1"),
        ("[control]\ndeadline_ms = -5", "robot.toml:8: control.deadline_ms: is -5, but must be greater than 0"),
        ('[control]\n\nrate_hz = "50"', "robot.toml:9: control.rate_hz: is '50', but must be a valid number"),
        ("[control]\nrate_hz = true", "robot.toml:8: control.rate_hz: is true, but must be a valid number"),
        ("[limits]\nlinear_x = 1", "robot.toml:8: limits.linear_x: is 1, but must be a table with keys"),
        ("[[safety]]\narm = 'auto'", "robot.toml:7: safety: is an array, but must be a table with keys"),
        (
            "[limits]\nlinear_y = { accel = 1,\tmax = -0.5 }",
            "robot.toml:8: limits.linear_y.max: is -0.5, but must be greater than 0",
        ),
        (
            "[log]\nlevel = 'loud'",
            "robot.toml:8: log.level: is 'loud', but must be 'debug', 'info', 'warning' or 'error'",
        ),
        (
            f"[log]\nlevel = '{'x' * 1000}'",
            f"robot.toml:8: log.level: is '{'x' * 59}..., but must be 'debug', 'info', 'warning' or 'error'",
        ),
        ("[control]\nrate_hz = 1979-05-27 07:32:00", None),
        (f"[safety]\nmax_stops = 0x{'f' * 9000}", None),
    ],
)
def test_a_wrong_value_is_shown_with_its_line(tmp_path: Path, added: str, line: str | None) -> None:
    found = only_error(tmp_path, added)
    assert found.startswith("robot.toml:8: ") if line is None else found == line


@pytest.mark.parametrize(
    ("added", "line"),
    [
        ("[control]\nrate_hzz = 5", 'robot.toml:8: control.rate_hzz: is an unknown key; did you mean "rate_hz"?'),
        ("[contrl]\nrate_hz = 5", 'robot.toml:7: contrl: is an unknown section; did you mean "control"?'),
        ("[safety]\nfps = 5", 'robot.toml:8: safety.fps: is an unknown key; did you mean "camera.fps"?'),
        ("[limits.linear_x]\nacel = 5", 'robot.toml:8: limits.linear_x.acel: is an unknown key; did you mean "accel"?'),
        ("[limits]\nlinear_z.max = 5", 'robot.toml:8: limits.linear_z: is an unknown key; did you mean "linear_y"?'),
        ("[log]\ncolour = 1", "robot.toml:8: log.colour: is an unknown key; known are format, level"),
        ('[log]\n"a\\nb.c" = 1', "robot.toml:8: log.'a\\nb.c': is an unknown key; known are format, level"),
        ("[metrics]\nport = 1", "robot.toml:7: metrics: is an unknown section; known are control, camera, policy, "),
        ("[recorder]", "robot.toml:7: recorder: is an unknown section; known are control, camera, policy, "),
        ("[path]", "robot.toml:7: path: is an unknown section; known are control, camera, policy, "),
    ],
)
def test_an_unknown_key_is_shown_with_the_nearest_known_one(tmp_path: Path, added: str, line: str) -> None:
    assert only_error(tmp_path, added).startswith(line)


def test_a_key_before_the_first_section_is_sent_to_its_section(tmp_path: Path) -> None:
    (line,) = errors(write(tmp_path, "rate_hz = 5\n" + LEAST))
    assert line == 'robot.toml:1: rate_hz: is an unknown section; did you mean "control.rate_hz"?'


def test_nothing_is_guessed_for_the_camera_the_policy_and_the_port(tmp_path: Path) -> None:
    found = errors(write(tmp_path, "\n[motor]\nbaud = 115200\n"))
    assert [line.split(", for")[0] for line in found] == [
        "robot.toml:1: camera.source: must be given",
        "robot.toml:1: policy.manifest: must be given",
        "robot.toml:2: motor.port: must be given",
    ]


def test_a_dla_computes_in_fp16_only(tmp_path: Path) -> None:
    load(tmp_path, overrides=["tensorrt.dla_core=0"])
    line = only_error(tmp_path, overrides=["tensorrt.dla_core=0", "tensorrt.precision=fp32"])
    assert line.startswith("--set tensorrt.precision")
    assert "leave tensorrt.dla_core out" in line


def test_engines_are_kept_beside_the_file_that_says_so(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=["tensorrt.cache=engines"]).tensorrt.cache == str(tmp_path / "engines")


# How keys go together: the last value that is accepted, and the first that is refused


@pytest.mark.parametrize(
    ("accepted", "refused", "blamed", "words"),
    [
        (["control.deadline_ms=20"], ["control.deadline_ms=20.001"], "control.deadline_ms", ["20 ms", "at most 20 "]),
        (["control.rate_hz=50"], ["control.rate_hz=50.1"], "control.rate_hz", ["20 is longer", "19.96 ms"]),
        (
            ["control.rate_hz=60", "control.deadline_ms=16.666"],
            ["control.rate_hz=60", "control.deadline_ms=16.667"],
            "control.deadline_ms",
            ["at most 16.666 "],
        ),
        (["motor.watchdog_ms=60"], ["motor.watchdog_ms=59"], "motor.watchdog_ms", ["= 60 ms", "at least 60,"]),
        (
            ["control.rate_hz=30", "motor.watchdog_ms=74"],
            ["control.rate_hz=30", "motor.watchdog_ms=73"],
            "motor.watchdog_ms",
            ["at least 74,"],
        ),
        (
            ["control.max_frame_age_ms=60"],
            ["control.max_frame_age_ms=59.999"],
            "control.max_frame_age_ms",
            [
                "20 (1000 / camera.fps) + 20 (T = 1000 / control.rate_hz) + 20 (control.deadline_ms) = 60 ms",
                "at least 60",
            ],
        ),
        (["camera.fps=16.7"], ["camera.fps=16.6"], "camera.fps", ["60.241 (1000 / camera.fps)", "at least 100.241"]),
        (
            ["camera.fps=30", "control.max_frame_age_ms=73.334"],
            ["camera.fps=30", "control.max_frame_age_ms=73.333"],
            "control.max_frame_age_ms",
            ["at least 73.334"],
        ),
        (["camera.latency_ms=40"], ["camera.latency_ms=40.5"], "camera.latency_ms", ["40.5 (camera.latency_ms)"]),
        (["camera.frozen_after_ms=100"], ["camera.frozen_after_ms=99"], "camera.frozen_after_ms", ["100", "0 to turn"]),
        (
            ["safety.policy_dead_after_ms=1040.001"],
            ["safety.policy_dead_after_ms=1040"],
            "safety.policy_dead_after_ms",
            ["1040 ms"],
        ),
        (
            ["realtime.gate_priority=71"],
            ["realtime.gate_priority=70"],
            "realtime.gate_priority",
            ["policy_priority = 70"],
        ),
        (
            ["realtime.policy_priority=79"],
            ["realtime.policy_priority=80"],
            "realtime.policy_priority",
            ["= 80 has to be"],
        ),
        (
            ["camera.source=file://a.avi", "safety.bench_test=true"],
            ["camera.source=file://a.avi", "safety.bench_test=false"],
            "camera.source",
            ["recording", "live camera", "sim://", "safety.bench_test = true"],
        ),
        (
            ["camera.source=file://a.avi", "motor.port=sim://"],
            ["camera.source=file://a.avi", "motor.port=/dev/ttyACM0"],
            "camera.source",
            ["recording"],
        ),
    ],
)
def test_keys_that_do_not_go_together(
    tmp_path: Path, accepted: list[str], refused: list[str], blamed: str, words: list[str]
) -> None:
    load(tmp_path, overrides=accepted)
    line = only_error(tmp_path, overrides=refused)
    assert line.startswith(f"--set {blamed}: ")
    assert all(word in line for word in words), line


def test_a_conflict_is_shown_at_the_key_that_the_file_gives(tmp_path: Path) -> None:
    assert only_error(tmp_path, "\n[control]\nrate_hz = 51").startswith(
        "robot.toml:9: control.rate_hz: deadline_ms = 20 "
    )
    assert only_error(tmp_path, "[control]\nrate_hz = 40\ndeadline_ms = 26").startswith(
        "robot.toml:9: control.deadline_ms:"
    )


def test_a_recording_with_a_real_port_is_a_bench_test_and_with_the_simulated_one_a_simulation(tmp_path: Path) -> None:
    def modes(*overrides: str) -> tuple[bool, bool]:
        config = load(tmp_path, overrides=overrides)
        return config.simulated, config.bench_test_active

    recording = "camera.source=file://a.avi"
    assert modes() == (False, False)
    assert modes("safety.bench_test=true") == (False, False)
    assert modes("safety.bench_test=true", recording) == (False, True)
    assert modes("safety.bench_test=true", recording, "motor.port=sim://") == (True, False)
    assert modes("motor.port=sim://") == (True, False)


# All errors at once


def test_all_errors_are_shown_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
[realtime]
gate_priority = 60       # under the policy's
[motor]
watchdog_ms = 59
port = "COM3"
[control]
deadline = 20
rate_hz = 50.0

[camera]
width = "wide"
[limits]
linear_x = { max = 0, accel = -1, min = 3 }
"""
    found = errors(write(tmp_path, text), ["log.level=loud", "nonsense", "safety.arm=auto"])
    assert [line.split(": ")[:2] for line in found] == [
        ["robot.toml:1", "policy.manifest"],
        ["robot.toml:2", "realtime.gate_priority"],
        ["robot.toml:4", "motor.watchdog_ms"],
        ["robot.toml:5", "motor.port"],
        ["robot.toml:7", "control.deadline"],
        ["robot.toml:10", "camera.source"],
        ["robot.toml:11", "camera.width"],
        ["robot.toml:13", "limits.linear_x.max"],
        ["robot.toml:13", "limits.linear_x.accel"],
        ["robot.toml:13", "limits.linear_x.min"],
        ["--set 'nonsense'", "is not section.key=value, for example --set control.rate_hz=30"],
        ["--set log.level", "is 'loud', but must be 'debug', 'info', 'warning' or 'error'"],
    ]


# Files that cannot be read


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[control]\nrate_hz 50\n", "robot.toml:2: is not valid TOML: Expected '=' after a key"),
        (b"[control]\n[control]\n", "robot.toml:2: is not valid TOML: Cannot declare"),
        (b"[control]\r\nrate_hz = 1\r\nrate_hz = 2\r\n", "robot.toml:3: is not valid TOML: Cannot overwrite a value"),
        (b"[control]\nrate_hz = [1,\n", "robot.toml:3: is not valid TOML: "),
        (b"a = 1\n\x00", "robot.toml:2: is not valid TOML: "),
        (b"[log]\nlevel = '\xff'", "robot.toml:2: is not UTF-8 text; save the file as UTF-8"),
        (b"x = " + b"9" * 5000, "robot.toml:1: is not valid TOML: "),
        (b"x = " + b"[" * 100_000 + b"]" * 100_000, "robot.toml:1: brackets are nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_line(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "robot.toml"
    file.write_bytes(content)
    (found,) = errors(file)
    assert found.startswith(line)


def test_a_mark_of_the_editor_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "robot.toml"
    file.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode() + b"[log]\r\nlevl = 1\r\n")
    assert errors(file) == ['robot.toml:8: log.levl: is an unknown key; did you mean "level"?']


def test_a_missing_file_is_named_with_the_option_that_names_it(tmp_path: Path) -> None:
    (line,) = errors(tmp_path / "none.toml")
    assert (
        line == "none.toml: cannot be read (No such file or directory); name the configuration file with --config FILE"
    )


def test_a_directory_a_loop_and_a_file_under_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    write(tmp_path, LEAST)
    for name, why in (("", "Is a directory"), ("loop", "Too many levels"), ("robot.toml/x", "Not a directory")):
        (line,) = errors(tmp_path / name)
        assert f"cannot be read ({why}" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_the_right_to_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, LEAST)
    file.chmod(0)
    assert "cannot be read (Permission denied)" in errors(file)[0]


# Overrides


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("control.rate_hz=60", "control", "rate_hz", 60),
        (" control.rate_hz = 60 ", "control", "rate_hz", 60),
        ("camera.source=/dev/video9", "camera", "source", "/dev/video9"),
        ("camera.source = /dev/video9", "camera", "source", "/dev/video9"),
        ('camera.source="/dev/video9"', "camera", "source", "/dev/video9"),
        ("policy.instruction=go to the cup = left # now", "policy", "instruction", "go to the cup = left # now"),
        ("policy.instruction=1\nbaud = 2", "policy", "instruction", "1\nbaud = 2"),
        ("safety.bench_test=true", "safety", "bench_test", True),
    ],
)
def test_an_override_takes_the_place_of_the_files_value(
    tmp_path: Path, override: str, section: str, key: str, value: object
) -> None:
    config = load(tmp_path, "[control]\nrate_hz = 55\ndeadline_ms = 10\n[safety]\nbench_test = false", [override])
    assert getattr(getattr(config, section), key) == value
    assert config.control.deadline_ms == 10


def test_an_override_mends_what_is_wrong_in_the_file(tmp_path: Path) -> None:
    added = "[limits]\nlinear_x = { max = -1 }\n[log]\nlevel = 'loud'"
    config = load(tmp_path, added, ["log.level=debug", "limits.linear_x.max=0.25", "limits.linear_y={max=2}"])
    assert (config.limits.linear_x.max, config.limits.linear_y.max) == (0.25, 2.0)


def test_of_two_overrides_of_a_key_the_last_one_counts(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=["motor.baud=1", "motor.baud=115200"]).motor.baud == 115200
    assert only_error(tmp_path, overrides=["motor.baud=115200", "motor.baud=1"]).startswith(
        "--set motor.baud: is 1, but"
    )


@pytest.mark.parametrize(
    ("added", "override", "line"),
    [
        ("", "control.rate_hz=5O", "--set control.rate_hz: is '5O', but must be a valid number"),
        ("", "control.rate_hz=", "--set control.rate_hz: is '', but must be a valid number"),
        ("", "log.levl=info", '--set log.levl: is an unknown key; did you mean "level"?'),
        ("", "logs.level=info", '--set logs.level: logs: is an unknown section; did you mean "log"?'),
        ("", "limits.linear_x={max=0}", "--set limits.linear_x: limits.linear_x.max: is 0, but must be greater than 0"),
        (
            "[limits]\nlinear_x = {max = 1}",
            "limits.linear_x={max=0}",
            "--set limits.linear_x: limits.linear_x.max: is 0, but must be greater than 0",
        ),
        (
            "[control]\nrate_hz = 50",
            "control.rate_hz.x=1",
            "--set control.rate_hz.x: control.rate_hz is a value, not a t",
        ),
        ("", "rate_hz=50", "--set 'rate_hz=50': is not section.key=value, for example "),
        ("", "control.rate_hz", "--set 'control.rate_hz': is not section.key=value, "),
        ("", "control.=50", "--set 'control.=50': is not section.key=value, "),
        ("", "=50", "--set '=50': is not section.key=value, "),
        ("", "", "--set '': is not section.key=value, "),
    ],
)
def test_an_error_of_an_override_names_the_override(tmp_path: Path, added: str, override: str, line: str) -> None:
    assert only_error(tmp_path, added, [override]).startswith(line)


def test_a_key_missing_in_a_section_that_an_override_opened_is_no_fault_of_the_override(tmp_path: Path) -> None:
    text = LEAST.replace('[camera]\nsource = "/dev/video0"\n', "")
    (line,) = errors(write(tmp_path, text), ["camera.fps=30"])
    assert line.startswith("robot.toml:1: camera.source: must be given, for example source = ")


# Any text at all


_KEYS = st.sampled_from(["control.rate_hz", "camera.source", "policy.instruction", "limits.linear_x", "log.a", "b.c"])


@per_file
@given(st.text() | st.builds("{}={}".format, _KEYS, st.text()))
@example("control.rate_hz=0x" + "f" * 9000)
@example("control.rate_hz=" + "[" * 100_000)
@example("control.rate_hz=" + "9" * 5000)
@example("camera.source=/dev/video0\0")
@example("control.rate_hz=1")
def test_any_override_is_taken_or_refused_with_a_line_for_each_rule_it_breaks(tmp_path: Path, override: str) -> None:
    try:
        load(tmp_path, overrides=[override])
    except DaemonError as error:
        lines = str(error).splitlines()
    else:
        lines = ["--set accepted"]
    assert all(line.startswith("--set ") for line in lines)
    assert len(lines) == len(set(lines))
    assert len(lines) == 1 or override.startswith(("control.rate_hz=", "limits.linear_x="))


@per_file
@given(st.binary(max_size=200) | st.text(alphabet="[]{}='\".,#\n ab1", max_size=60).map(str.encode))
def test_any_file_is_refused_in_sentences(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "robot.toml"
    file.write_bytes(content)
    assert all(line.startswith("robot.toml:") for line in errors(file))


_NAMES = st.sampled_from(
    [("a", "a"), ("b-1", "b-1"), ("'c d'", "c d"), ('"e#[]="', "e#[]="), ("2", "2"), (r'"\u0041\""', 'A"'), ("''", "")]
)
_SCALARS = st.sampled_from(
    [
        *("1", "-1.5e3", "true", "1979-05-27 07:32:00.5", "1979-05-27T07:32:00Z", "07:32:00", "inf", "'#=[{'", '""'),
        *('"\\"]}"', '"""\nx = 1\n""""', "'''\n[y]\n'''''", '"""\\""" # """', "[]", "{}"),
    ]
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[ # x = 1\n" + ",\n".join(items) + "\n]"),
    max_leaves=4,
)


@st.composite
def toml_texts(draw: st.DrawFn) -> tuple[str, dict[tuple[str, ...], int]]:
    """A TOML text, and the line that each of its keys was written on."""
    text = draw(st.sampled_from(["", "# x = 1\n\n", "\r\n"]))
    lines: dict[tuple[str, ...], int] = {}
    for number in range(draw(st.integers(0, 4))):
        table, (name, plain), value = f"t{number}", draw(_NAMES), draw(_VALUES)
        opening, closing = draw(st.sampled_from([("[", "]"), ("[[", "]]"), ("[ ", " ] # [u]")]))
        lines[table,] = text.count("\n") + 1
        text += f"{opening}{table}{closing}\n"
        form = draw(st.sampled_from(["plain", "dotted", "inline"]))
        lines[table, plain] = text.count("\n") + 1
        if form == "plain":
            text += f"{name}={value} # {name} = 2"
        else:
            lines[table, plain, "in"] = text.count("\n") + 1
            text += f"  {name} . in = {value}" if form == "dotted" else f"{name} = {{ in = {value}"
        if form == "inline":
            lines[table, plain, "z"] = text.count("\n") + 1
            text += ", z = 1 }"
        text += "\n"
    return text, lines


@given(toml_texts())
def test_the_line_of_every_key_is_found(written: tuple[str, dict[tuple[str, ...], int]]) -> None:
    text, lines = written
    assert key_lines(text) == lines


def test_a_table_that_is_named_several_times_is_where_it_first_stands() -> None:
    assert key_lines("[a.b]\n[a.c]\nd.e = 1\nd.f = 2\n") == {
        ("a",): 1,
        ("a", "b"): 1,
        ("a", "c"): 2,
        ("a", "c", "d"): 3,
        ("a", "c", "d", "e"): 3,
        ("a", "c", "d", "f"): 4,
    }


# The files that are shipped


def test_the_simulators_configuration_moves_no_robot() -> None:
    config = load_config(REPOSITORY / "config.toml")
    assert config.simulated
    assert not config.bench_test_active
    assert config.camera.is_simulated
    assert (config.camera.width, config.camera.height, config.camera.fps) == (640, 480, 50)
    assert config.policy.manifest == str(REPOSITORY / "mvla_daemon/bundled/cup/cup.toml")
    assert (config.safety.arm, config.log.format) == ("auto", "console")


def test_the_robots_configuration_arms_by_hand_and_drives_by_a_live_camera() -> None:
    config = load_config(REPOSITORY / "systemd/config.robot.toml")
    assert not config.simulated
    assert not config.bench_test_active
    assert config.camera.device == "/dev/video0"
    assert config.motor.port.startswith("/dev/serial/by-id/")
    assert (config.safety.arm, config.safety.bench_test, config.policy.backend) == ("manual", False, "onnxruntime")


def test_the_bench_configuration_drives_a_real_port_slowly_and_armed_by_hand() -> None:
    config = load_config(REPOSITORY / "systemd/config.bench.toml")
    assert not config.simulated
    assert config.bench_test_active
    assert config.motor.port.startswith("/dev/serial/by-id/")
    assert config.policy.manifest == str(REPOSITORY / "mvla_daemon/bundled/cup/cup.toml")
    assert (config.safety.arm, config.safety.bench_test) == ("manual", True)
    assert [limit.maximum for limit in config.limits.by_axis()] == [0.1, 0.1, 0.5]


def test_the_gate_can_read_its_configuration_without_the_libraries_of_the_policy() -> None:
    code = "import sys, mvla_daemon.config; print({'numpy', 'cv2', 'onnxruntime', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
