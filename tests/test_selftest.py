"""The self-test: what it judges by, what it says of it, and a few of its faults through real processes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mvla_daemon.config import Config
from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import Reason
from mvla_daemon.motors.link_v1 import Arm, Body, Drive, KeepAlive, Packet, Stop
from mvla_daemon.selftest.bench import Report
from mvla_daemon.selftest.fault import Bounds, Fault
from mvla_daemon.selftest.faults import faults
from mvla_daemon.selftest.ground import Ground
from mvla_daemon.selftest.histogram import histogram
from mvla_daemon.selftest.judge import Evidence, Outcome, Terms, WireWatch, judge
from mvla_daemon.selftest.load import Load
from mvla_daemon.selftest.on_blocks import on_blocks
from mvla_daemon.selftest.page import page
from mvla_daemon.selftest.report import as_json, table
from mvla_daemon.selftest.results import Kind, Row, Totals
from mvla_daemon.selftest.wire_log import Timed, WireLog, drove_on_ms
from tests.far_end import CHUNK
from tests.wire import encode

ROOT = Path(__file__).parent.parent
MS = 1_000_000
TERMS = Terms(period_ns=20 * MS, deadline_ns=20 * MS, most=(500_000.0,) * 3, accel=(1_000_000.0,) * 3)
LATE = Fault("F05", "frozen", (("signal policy SIGSTOP",),), frozenset({Reason.DEADLINE_MISSED}))
PUNCTUAL = replace(LATE, bounds=Bounds(0.5, 3.0, 43.0))


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(ROOT / "config.toml")


def wire(*said: tuple[float, Body], session: int = 7) -> list[Timed]:
    """Packets read at these milliseconds, each after the one before."""
    frames = []
    before_ns = 0
    for seq, (at_ms, body) in enumerate(said, start=1):
        at_ns = round(at_ms * MS)
        after_ns = before_ns if not frames or frames[-1].at_ns != at_ns else frames[-1].after_ns
        frames.append(Timed(at_ns, after_ns, Packet(session, seq, body)))
        before_ns = at_ns
    return frames


def velocity(vx_umps: int = 0) -> Drive:
    return Drive(1, 60, vx_umps, 0, 0)


def stop(reason: int = 1) -> Stop:
    return Stop(1, reason)


DRIVE = ((100, Arm(100)), (120, velocity(10_000)), (140, velocity(20_000)))
STOPS = ((180, stop()), (190, stop()), (290, stop()), (390, stop()))


def judged(*said: tuple[float, Body], fault: Fault = LATE, injected_ms: float = 150, **known: object) -> Outcome:
    """A robot that drove until the fault came, 150 ms from the start on."""
    evidence = Evidence(wire(*said), round(injected_ms * MS))
    return judge(fault, replace(evidence, **known), WireWatch(TERMS))  # type: ignore[arg-type]


# --- the log of the wire ---


def test_the_log_gives_packets_with_the_readings_that_they_lie_between(tmp_path: Path) -> None:
    log = tmp_path / "wire.log"
    first, second = encode("HELLO", 0, 1, nonce=5), encode("STOP", 7, 2, category=1, reason=13)
    chunks = [(10, first + second[:4]), (30, second[4:] + b"\1\2\3\0")]
    data = b"".join(CHUNK.pack(at_ns, len(chunk)) + chunk for at_ns, chunk in chunks)
    log.write_bytes(data[:-1])
    reader = WireLog(log)
    assert [(timed.at_ns, timed.after_ns, timed.packet.seq) for timed in reader.read()] == [(10, 0, 1)]
    with log.open("ab") as rest:
        rest.write(data[-1:])
    assert [(timed.at_ns, timed.after_ns, timed.packet.body) for timed in reader.read()] == [(30, 10, Stop(1, 13))]
    assert reader.read() == []
    assert reader.damaged == 1


def status(session: int, uptime_ms: int, state: int = 1, faults: int = 0) -> bytes:
    fields = {"state": state, "faults": faults, "host_seq": 1, "uptime_ms": uptime_ms, "watchdog_ms": 100}
    return encode("STATUS", session, uptime_ms, **fields, vx=0, vy=0, wz=0, battery_mv=0)


@pytest.mark.parametrize(("state", "faults"), [(1, 1 << 5), (2, 0)])
def test_how_long_a_controller_drove_on_is_told_by_its_own_clock(state: int, faults: int) -> None:
    arm = wire((500, Arm(100)))[0]
    said = b"".join([status(6, 40, 3), *(status(7, ms) for ms in (200, 220, 240, 260, 280))])
    assert drove_on_ms(arm, 530 * MS, said) == math.inf
    assert drove_on_ms(arm, 530 * MS, said + status(7, 300, state, faults)) == 50


# --- one try ---


def test_a_stop_in_order_has_no_problem_and_its_times() -> None:
    outcome = judged(*DRIVE, *STOPS, (700, Arm(100)), told="deadline_missed", late_us=210)
    assert outcome == Outcome(reasons=(Reason.DEADLINE_MISSED,), late_ms=0.21, wire_ms=40.0)


def test_a_lateness_that_was_told_of_another_stop_is_no_measurement() -> None:
    assert judged(*DRIVE, *STOPS, told="operator", late_us=210).late_ms is None


@pytest.mark.parametrize(
    ("said", "after_stop"),
    [
        ((*DRIVE, *STOPS[:2], (200, velocity()), *STOPS[2:]), 1),
        ((*DRIVE, *STOPS, (400, KeepAlive()), (410, velocity()), (430, velocity())), 2),
        ((*DRIVE, *STOPS, (700, Arm(100)), (720, velocity())), 0),
        (((100, velocity()), *DRIVE, *STOPS), 1),
    ],
)
def test_a_velocity_outside_a_session_is_counted(said: tuple[tuple[float, Body], ...], after_stop: int) -> None:
    outcome = judged(*said)
    assert outcome.after_stop == after_stop
    assert ("a VELOCITY outside an armed session" in outcome.problems) == bool(after_stop)


def test_a_velocity_of_another_session_is_outside_too() -> None:
    watch = WireWatch(TERMS)
    for timed in [*wire(DRIVE[0]), *wire((120, velocity()), session=8)]:
        watch.follow(timed)
    assert watch.take().after_stop == 1
    assert watch.take().after_stop == 0


def test_speeds_beyond_the_limit_are_counted() -> None:
    watch = WireWatch(replace(TERMS, accel=(1e12,) * 3))
    for timed in wire((0, Arm(100)), (20, velocity(500_000)), (40, velocity(-500_002)), (60, velocity(500_003))):
        watch.follow(timed)
    assert watch.take().out_of_limits == 2


def test_what_rises_faster_than_time_and_lateness_allow_is_counted() -> None:
    watch = WireWatch(TERMS)
    # From the ARM's reading on at the earliest: 1 m/s² for 80 ms and T beside, that is 0.1 m/s.
    for timed in wire((80, KeepAlive()), (100, Arm(100)), (160, velocity(100_000))):
        watch.follow(timed)
    assert watch.take().out_of_limits == 0
    for timed in wire((80, KeepAlive()), (100, Arm(100)), (160, velocity(100_100))):
        watch.follow(timed)
    assert watch.take().out_of_limits == 1


def test_a_steady_climb_at_a_fifth_above_the_limit_is_noticed() -> None:
    for share, expected in ((1.0, False), (1.2, True)):
        watch = WireWatch(TERMS)
        climb = [(120 + 20 * n, velocity(round(20_000 * share * (n + 1)))) for n in range(20)]
        for timed in wire((100, Arm(100)), *climb):
            watch.follow(timed)
        assert bool(watch.take().out_of_limits) == expected


def test_a_reading_that_was_late_blames_nobody() -> None:
    watch = WireWatch(TERMS)
    climb = [(120 + 20 * n, velocity(20_000 * (n + 1))) for n in range(5)]
    held = [(400, velocity(20_000 * (n + 6))) for n in range(9)]  # written each 20 ms, and read at once
    for timed in wire((100, Arm(100)), *climb, *held):
        watch.follow(timed)
    assert watch.take().out_of_limits == 0


def test_coming_towards_zero_is_free_and_going_through_it_is_not() -> None:
    watch = WireWatch(TERMS)
    slow = [(120 + 20 * n, velocity(20_000 * (n + 1))) for n in range(10)]
    for timed in wire((100, Arm(100)), *slow, (330, velocity(0)), (350, velocity(20_000))):
        watch.follow(timed)
    assert watch.take().out_of_limits == 0
    for timed in wire((100, Arm(100)), *slow, (330, velocity(-200_000))):
        watch.follow(timed)
    assert watch.take().out_of_limits == 1


def test_no_stop_is_a_missed_stop() -> None:
    outcome = judged(*DRIVE, (160, velocity(30_000)))
    assert outcome.missed
    assert outcome.problems == ("no STOP came",)
    assert not judged(*DRIVE, (160, velocity(30_000)), fault=replace(LATE, must_stop=False)).missed


@pytest.mark.parametrize(
    ("fault", "said", "problem"),
    [
        (LATE, [(180, stop(13)), (190, stop(13))], "STOP operator came where deadline_missed is due"),
        (replace(LATE, last=Reason.POLICY_LOST), STOPS, "STOP policy_lost did not follow"),
        (LATE, [(180, stop()), (500, Arm(100))], "STOP was not repeated"),
        (replace(LATE, unanswered_ms=200), STOPS, "4 STOP in 200 ms without an answer, where one each 10 ms is due"),
        (replace(LATE, silences=True), [(160, velocity(30_000)), *STOPS], "a VELOCITY was written after the fault"),
        (
            LATE,
            [(180, velocity()), (180, velocity()), (180, velocity()), (180, velocity()), *STOPS],
            "an output buffer held 4 VELOCITY before the STOP, at most 3 are allowed",
        ),
    ],
)
def test_what_must_not_be_is_said(fault: Fault, said: list[tuple[float, Body]], problem: str) -> None:
    # After the injection at 150 ms one reading lies before 160 ms: what was read then was under way before.
    assert judged(*DRIVE, (155, KeepAlive()), *said, fault=fault).problems == (problem,)


def test_what_was_under_way_and_what_a_buffer_held_is_no_problem() -> None:
    assert judged(*DRIVE, (160, velocity(30_000)), *STOPS, fault=replace(LATE, silences=True)).problems == ()
    held = [(180, velocity()), (180, velocity()), (180, velocity())]
    outcome = judged(*DRIVE, *held, *STOPS)
    assert outcome.problems == ()
    assert outcome.wire_ms is None


def test_an_escalation_is_told_in_order() -> None:
    fault = replace(LATE, last=Reason.POLICY_LOST)
    outcome = judged(*DRIVE, *STOPS, (2180, stop(7)), fault=fault)
    assert outcome.reasons == (Reason.DEADLINE_MISSED, Reason.POLICY_LOST)
    assert outcome.problems == ()


def test_a_robot_that_had_stopped_by_itself_says_nothing_of_the_fault() -> None:
    assert judged(*DRIVE, (148, stop()), *STOPS).spoilt
    needless = judged(*DRIVE, *STOPS, fault=replace(LATE, reasons=frozenset({Reason.NOT_FINITE})))
    assert needless.spoilt
    assert needless.problems == ()
    assert not judged(*DRIVE, *STOPS).spoilt


def test_what_was_seen_beside_the_wire_is_a_problem_too() -> None:
    assert judged(*DRIVE, *STOPS, problems=("it did not drive again",)).problems == ("it did not drive again",)


# --- rows ---


def row(*outcomes: Outcome, fault: Fault = PUNCTUAL, **known: object) -> Row:
    return Row(fault, list(outcomes), **known)  # type: ignore[arg-type]


def timed(late_ms: float, wire_ms: float = 40.0) -> Outcome:
    return Outcome(reasons=(Reason.DEADLINE_MISSED,), late_ms=late_ms, wire_ms=wire_ms)


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ([timed(0.2)] * 19 + [timed(3.2)], "STOP after its deadline, p99 3.20 ms, promised 3 ms"),
        ([timed(0.6)] * 20, "STOP after its deadline, p50 0.60 ms, promised 0.5 ms"),
        ([timed(0.2)] * 19 + [timed(0.2, 43.5)], "last VELOCITY to STOP, p99 43.50 ms, promised 43 ms"),
        ([timed(0.2)] * 198 + [timed(9.0)], ""),
    ],
)
def test_times_are_judged_by_percentiles(outcomes: list[Outcome], why: str) -> None:
    verdict = row(*outcomes).verdict()
    assert verdict.kind is (Kind.BROKEN if why else Kind.HOLDS)
    assert verdict.why == why


def test_times_are_not_judged_where_they_say_nothing() -> None:
    few = row(*[timed(9.0)] * 19).verdict()
    assert (few.kind, few.why) == (Kind.HOLDS, "times not judged: 19 of 20 tries")
    loaded = row(*[timed(9.0)] * 20, not_judged="no real-time scheduling").verdict()
    assert loaded.kind is Kind.HOLDS
    assert loaded.why.startswith("late, not judged (no real-time scheduling): STOP after its deadline, p50 9.00 ms")


def test_a_second_attempt_counts_for_times_and_both_for_all_else() -> None:
    second = row(*[timed(9.0)] * 20, *[timed(0.2)] * 20, timed_from=20)
    assert second.verdict().kind is Kind.HOLDS
    second.outcomes[3] = replace(second.outcomes[3], after_stop=1, problems=("a VELOCITY outside an armed session",))
    assert second.verdict().kind is Kind.BROKEN
    assert second.verdict().why == "a VELOCITY outside an armed session (1 x)"
    assert second.after_stop == 1


def test_spoilt_tries_count_for_what_may_never_happen() -> None:
    spoilt = row(timed(0.2), spoilt=[Outcome(after_stop=2, problems=("a VELOCITY outside an armed session",))])
    totals = Totals.of([spoilt])
    assert (totals.injected, totals.after_stop, totals.needless) == (1, 2, 1)
    assert totals.broken == ("F05 (frozen)",)


# --- what is said of it ---


@pytest.fixture
def report(config: Config) -> Report:
    odd = replace(PUNCTUAL, row="F23", what="<bits> & bytes")
    return Report(
        config,
        policy="policy steady.toml",
        real_time=True,
        took_s=90.0,
        rows=[
            row(*[timed(0.2)] * 24, timed(2.0)),
            row(Outcome(wire_ms=12.0, missed=True, problems=("no STOP came",)), fault=odd),
            row(fault=Fault("F31", "wall clock jumps", not_here="not injectable here: it would set this clock")),
        ],
    )


def test_the_table_has_a_line_for_each_fault_and_the_totals(report: Report) -> None:
    lines = table(report).splitlines()
    assert any(re.match(r"F05 frozen +25 +0\.20 +2\.00 +2\.00 +40\.00 +40\.00 +0  holds$", line) for line in lines)
    assert any(re.match(r"F23 <bits> & bytes +1 +- +- +- +12\.00 +12\.00 +0  BROKEN$", line) for line in lines)
    assert "      no STOP came (1 x)" in lines
    assert any(re.match("F31 wall clock jumps +not here$", line) for line in lines)
    assert lines[-2].startswith(
        "26 faults injected: 0 VELOCITY after a stop, 0 numbers non-finite or out of limits, 1 "
    )
    assert lines[-1] == "BROKEN: F23 (<bits> & bytes)"


def test_the_json_has_every_time(report: Report) -> None:
    found = json.loads(as_json(report))
    assert found["totals"]["injected"] == 26
    assert found["totals"]["missed_stops"] == 1
    first, second, third = found["rows"]
    assert first["late_ms"]["p50"] == 0.2
    assert first["late_ms"]["all"] == [0.2] * 24 + [2.0]
    assert first["reasons"] == {"deadline_missed": 25}
    assert (second["verdict"], second["why"]) == ("BROKEN", "no STOP came (1 x)")
    assert third["verdict"] == "not here"
    assert found["config"]["control"]["rate_hz"] == 50


class _Reader(HTMLParser):
    """Checks that every tag is closed in order, and keeps what a test wants to know."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"href", "src"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"href", "src"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_shows_each_fault(report: Report) -> None:
    html = page(report)
    reader = _Reader()
    reader.feed(html)
    assert reader.open == []
    assert reader.links == []
    assert "script" not in reader.tags
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert reader.tags.count("svg") == 2
    assert "<bits> & bytes" in reader.text
    assert "Broken: F23" in reader.text
    assert "26faults injected" in reader.text


def test_a_histogram_has_its_bars_in_proportion() -> None:
    svg = histogram([0.2] * 30 + [0.21] * 10 + [25.0] * 20, {"p99": 3.0})
    bars = [float(tall) for tall in re.findall(r'<rect class="bar"[^>]* height="([0-9.]+)"', svg)]
    assert len(bars) == 2
    assert bars[1] == pytest.approx(bars[0] / 2, abs=0.1)
    xs = [float(x) for x in re.findall(r'<rect class="bar" x="([0-9.]+)"', svg)]
    bound = float(re.findall(r'<line class="bound" x1="([0-9.]+)"', svg)[0])
    assert xs[0] < bound < xs[1]
    assert "p99 ≤ 3 ms" in svg
    assert histogram([0.0], {}).count("<rect") == 1


# --- what it runs ---


def test_every_row_is_there_and_every_order_is_one(config: Config) -> None:
    table_of_faults = faults(config)
    assert {fault.row for fault in table_of_faults} == {f"F{number:02}" for number in range(1, 45)}
    now_ns = 0
    ground = Ground(now_ns)
    for fault in table_of_faults:
        assert bool(fault.not_here) or fault.ways
        assert fault.last is None or fault.must_stop
        for step in (step for way in fault.ways for step in way):
            kind, _, words = step.partition(" ")
            if kind == "ground" and words.split()[0] not in {"camera", "hang_up", "plug_in"}:
                ground.obey(words.split(), now_ns)
            elif kind == "signal":
                assert words.split()[0] in {"gate", "policy"}
                assert words.split()[1] in signal.Signals.__members__
            elif kind == "pause":
                assert float(words) > 0
            else:
                assert kind in {"ground", "policy", "operator", "await"}


def test_a_configuration_decides_what_can_be_tried(config: Config) -> None:
    camera = config.camera.model_copy(update={"frozen_after_ms": 0})
    frozen = next(fault for fault in faults(config.model_copy(update={"camera": camera})) if fault.row == "F12")
    assert "frozen_after_ms" in frozen.not_here
    control = config.control.model_copy(update={"rate_hz": 10, "deadline_ms": 80})
    late = next(fault for fault in faults(config.model_copy(update={"control": control})) if fault.row == "F01")
    assert late.bounds == Bounds(0.5, 3.0, 183.0)
    assert late.ways == (("policy compute 81",),)


ROBOT = """
[control]
rate_hz = 25
max_frame_age_ms = 120
[camera]
source = "/dev/video0"
width = 1280
height = 720
fps = 30
rotation = 180
latency_ms = 20
[policy]
manifest = "policy.toml"
instruction = "say \\"left\\" \\u007f\\n"
[motor]
port = "/dev/ttyACM0"
watchdog_ms = 150
[limits]
linear_x = { max = 0.125, accel = 0.5 }
"""


def test_no_real_device_is_left_and_the_rest_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "robot.toml").write_text(ROBOT)
    robot = load_config(tmp_path / "robot.toml")
    blocks = on_blocks(robot, tmp_path / "blocks.toml", bundled_policy=False)
    assert (blocks.camera.source, blocks.motor.port) == ("sim://", "sim://")
    assert "/dev/" not in (tmp_path / "blocks.toml").read_text()
    assert blocks.path != robot.path
    assert blocks.control == robot.control
    assert blocks.limits == robot.limits
    assert blocks.realtime == robot.realtime
    assert blocks.policy == robot.policy
    assert blocks.motor.watchdog_ms == 150
    assert blocks.camera.fps == 30
    assert blocks.safety.arm == "auto"
    bundled = on_blocks(robot, tmp_path / "blocks.toml", bundled_policy=True)
    assert bundled.policy.manifest.endswith("cup.toml")


def test_only_the_time_of_others_is_load(tmp_path: Path) -> None:
    def write(machine: str, ours: int, child: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {machine}\ncpu0 1 2 3\n")
        (me / "stat").write_text(f"{os.getpid()} (a name) S {'0 ' * 10}{ours} 0 0 0 0\n")
        (tmp_path / "77" / "stat").write_text(f"77 (x) y) S {'0 ' * 10}0 {child} 0 0 0\n")

    me = tmp_path / str(os.getpid())
    (me / "task" / "1").mkdir(parents=True)
    (tmp_path / "77" / "task").mkdir(parents=True)
    (me / "task" / "1" / "children").write_text("77 ")
    write("100 0 100 1000 50 0 0 10 5 5", 10, 20)
    load = Load(tmp_path)
    # 100 ticks idle, 100 of work: 40 ours, 30 our child's, 20 of others, 10 stolen.
    write("180 0 110 1100 50 0 0 20 5 5", 50, 50)
    assert load.of_others() == pytest.approx(30 / 200)


def selftest(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "mvla_daemon", "selftest", "--config", str(config), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    refused = selftest(ROOT / "config.toml", "--fault", "F99", "--out", str(tmp_path / "out"))
    assert refused.returncode == 64
    assert refused.stderr.startswith("mvla-daemon: --fault F99: the self-test knows F01, F02,")
    assert not (tmp_path / "out").exists()
    assert selftest(ROOT / "config.toml", "--tries", "0").returncode == 64


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = selftest(ROOT / "config.toml", "--out", str(tmp_path / "file" / "out"))
    assert refused.returncode == 77
    assert "name a folder that you may write" in refused.stderr


CALM = """
[control]
rate_hz = 20
deadline_ms = 50
max_frame_age_ms = 300
[camera]
source = "/dev/video0"
fps = 20
[policy]
manifest = "{manifest}"
[motor]
port = "/dev/ttyACM0"
watchdog_ms = 300
"""


@pytest.mark.meanwhile
def test_faults_through_real_processes(tmp_path: Path, studio: Path) -> None:
    config = tmp_path / "robot.toml"
    config.write_text(CALM.format(manifest=studio / "steady.toml"))
    done = selftest(config, "--fault", "F07,F15,F31,f33", "--tries", "1", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 faults injected: 0 VELOCITY after a stop" in done.stdout
    found = json.loads((tmp_path / "out" / "selftest.json").read_text())
    # On a busy machine a stop may have become a stricter one later.
    reasons = {row["row"]: [told.split(", ")[0] for told in row.get("reasons", {})] for row in found["rows"]}
    assert reasons == {"F07": ["none"], "F15": ["not_finite"], "F31": [], "F33": ["shutdown"]}
    assert found["policy"] == f"policy {studio / 'steady.toml'}"
    assert "Does the robot stop?" in (tmp_path / "out" / "selftest.html").read_text()


@pytest.mark.meanwhile
def test_a_policy_that_cannot_drive_is_replaced_openly(tmp_path: Path, studio: Path) -> None:
    config = tmp_path / "robot.toml"
    config.write_text(CALM.format(manifest=studio / "nowhere.toml"))
    done = selftest(config, "--fault", "F24", "--tries", "1", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"policy bundled:cup instead of {studio / 'nowhere.toml'}, which does not drive here" in done.stdout
