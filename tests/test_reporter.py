"""What people are told: percentiles, the reporter as a real process, and what gets dropped."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.ops.statistics import Statistics, percentile
from mvla_daemon.ops.telemetry import Dropped, GateCycle, PolicyCycle, Telemetry, unpack_record
from tests.reporting import AFTER, CHECKED, COMPUTED, FROM_DEVICE, PREPARED, SENT, TO_DEVICE, WAITED, Enter, halves

MS = 1_000_000
SECOND = 1_000_000_000


# --- percentiles ---


def smallest_that_enough_are_not_above(values: list[float], share: str) -> float:
    """The definition, counted out."""
    enough = Fraction(share) / 100 * len(values)
    return min(value for value in values if sum(other <= value for other in values) >= enough)


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=60), share=st.sampled_from(["50", "90", "99", "99.9"]))
def test_a_percentile_is_its_definition(values: list[float], share: str) -> None:
    assert percentile(sorted(values), float(share)) == smallest_that_enough_are_not_above(values, share)


@pytest.mark.parametrize("share", ["0", "1", "50", "90", "99", "99.9", "100"])
def test_a_percentile_has_its_rank_for_every_number_of_values(share: str) -> None:
    for count in range(1, 4000):
        rank = max(1, -(-Fraction(share) * count // 100))
        assert percentile(range(1, count + 1), float(share)) == rank, count


def test_a_share_finer_than_a_tenth_of_a_per_cent_has_its_rank_too() -> None:
    assert percentile(range(1, 100_001), 99.999) == 99_999


def test_the_percentile_of_nothing_is_0() -> None:
    assert percentile([], 99) == 0


# --- statistics ---


@given(data=st.data(), count=st.integers(1, 40))
def test_halves_find_each_other_in_any_order(data: st.DataObject, count: int) -> None:
    records = [record for cycle in range(count) for record in halves(cycle)]
    statistics = Statistics()
    matched = [found for record in data.draw(st.permutations(records)) if (found := statistics.add(record))]
    assert sorted(found.gate.cycle for found in matched) == list(range(count))
    assert all((found.gate, found.policy) == halves(found.gate.cycle) for found in matched)
    assert statistics.commands == count
    assert len(statistics.stage_ms("compute")) == count


def test_a_stage_is_the_time_between_its_edges() -> None:
    statistics = Statistics()
    for record in halves(1):
        statistics.add(record)
    stages = {
        "wait_frame": WAITED,
        "preprocess": PREPARED,
        "h2d": TO_DEVICE,
        "compute": COMPUTED,
        "d2h": FROM_DEVICE,
        "postprocess": AFTER,
        "send": SENT,
        "gate": CHECKED,
    }
    assert {name: statistics.stage_ms(name)[0] for name in stages} == stages
    assert statistics.stage_ms("frame_to_wire") == [pytest.approx(sum(stages.values()))]
    assert [line.split()[0] for line in statistics.table()[1:-1]] == [*stages, "frame_to_wire"]


def test_only_commands_that_were_written_from_a_new_frame_are_timed() -> None:
    statistics = Statistics()
    for cycle, (hold, written) in enumerate([(False, True), (True, True), (False, False), (True, False)]):
        for record in halves(cycle, hold=hold, written=written):
            statistics.add(record)
    assert (statistics.commands, statistics.holds, len(statistics.stage_ms("send"))) == (2, 1, 1)


def test_a_half_of_another_epoch_is_another_cycle() -> None:
    gate, policy = halves(5)
    statistics = Statistics()
    assert statistics.add(replace(gate, epoch=2)) is None
    assert statistics.add(policy) is None
    assert statistics.add(gate) is not None


@pytest.mark.parametrize(("others", "found"), [(200, True), (300, False)])
def test_halves_without_their_other_half_are_forgotten_in_the_end(others: int, *, found: bool) -> None:
    gate, policy = halves(0)
    statistics = Statistics()
    statistics.add(policy)
    for cycle in range(1, others + 1):
        statistics.add(halves(cycle)[cycle % 2])
    assert (statistics.add(gate) is not None) is found


def test_memory_is_bounded_and_the_newest_are_kept() -> None:
    statistics = Statistics()
    for cycle in range(66_000):
        gate, policy = halves(cycle, compute_ms=1 if cycle < 65_990 else 2)
        statistics.add(gate)
        statistics.add(policy)
    kept = statistics.stage_ms("compute")
    assert len(kept) == 65_536
    assert len(statistics.gaps_ms()) == 65_535
    assert statistics.commands == 66_000
    assert kept.count(2) == 10
    assert statistics.stage_ms("compute", 10) == [2] * 10


def test_the_rate_counts_the_last_second_and_gaps_leave_pauses_out() -> None:
    statistics = Statistics()
    for cycle in (0, 1, 2, 3, 200, 201):
        statistics.add(halves(cycle)[0])
    newest_ns = halves(201)[0].written_ns
    assert statistics.rate_hz(newest_ns) == 2
    assert statistics.rate_hz(newest_ns + 2 * SECOND) == 0
    assert statistics.gaps_ms() == [20] * 4


# --- records ---


@pytest.mark.parametrize("record", halves(7, hold=True))
def test_cycles_arrive_as_they_were_sent(record: GateCycle | PolicyCycle) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Telemetry(ours).cycle(record)
        assert unpack_record(theirs.recv(8192)) == record


@given(data=st.binary(max_size=120))
def test_other_bytes_are_a_value_error(data: bytes) -> None:
    try:
        record = unpack_record(data)
    except ValueError:
        return
    assert isinstance(record, (dict, Dropped, GateCycle, PolicyCycle))


# --- the process ---


def test_json_has_every_field_and_console_has_the_sentence(enter: Enter) -> None:
    rooms = [enter(style=style) for style in ("json", "auto", "console")]
    for room in rooms:
        room.gate.event("port", "serial port lost: gone", "error", port="/dev/ttyUSB0", tries=3)
        room.policy.event("camera", "camera is back")
    for room in rooms[:2]:
        port, camera, _ = room.events()
        assert (port["kind"], port["event"], port["level"]) == ("port", "serial port lost: gone", "error")
        assert (port["port"], port["tries"]) == ("/dev/ttyUSB0", 3)
        assert port["timestamp"].endswith("Z")
        assert (camera["kind"], camera["event"], camera["level"]) == ("camera", "camera is back", "info")
    console = rooms[2].last_words()[1].splitlines()
    assert len(console) == 3
    assert "serial port lost: gone" in console[0]
    assert "ttyUSB0" not in console[0]
    assert "\x1b" not in "".join(console)


def test_what_is_below_the_level_is_not_written(enter: Enter) -> None:
    room = enter(level="warning")
    for level in ("debug", "info", "warning", "error"):
        room.gate.event("x", level, level)
    assert [event["event"] for event in room.events()] == ["warning", "error"]


def test_a_stop_is_told_beside_the_usual_time_of_its_stage(enter: Enter) -> None:
    room = enter()
    for cycle in range(100):
        gate, policy = halves(cycle, compute_ms=1 + cycle / 10)
        room.policy.cycle(policy)
        room.gate.cycle(gate)
    room.gate.event("stop", "STOP deadline_missed: late", "error", reason="deadline_missed", stage="compute")
    room.gate.event("stop", "STOP frame_stale: old", "error", reason="frame_stale", stage="wait_frame")
    room.gate.event("stop", "STOP operator", reason="operator")
    late, old, asked, summary = room.events()
    assert late["event"] == "STOP deadline_missed: late (p99 is 10.8 ms)"
    assert (old["event"], asked["event"]) == ("STOP frame_stale: old", "STOP operator")
    assert summary["stops"] == {"deadline_missed": 1, "frame_stale": 1, "operator": 1}
    assert summary["commands"] == 100
    assert summary["frame_to_wire_p50_ms"] == pytest.approx(sum((3, 2, 0.25, 5.9, 0.5, 0.125, 1, 0.0625)), abs=1e-3)


def test_the_trace_holds_every_cycle_that_both_have_told_of(enter: Enter, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    room = enter("--trace", str(path))
    room.cycles(20, hold=True)
    room.gate.cycle(halves(99)[0])
    room.last_words()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    columns = "epoch,cycle,hold,frame,captured_ns,arrived_ns,started_ns,preprocess_ns,h2d_ns,compute_ns,d2h_ns,"
    columns += "postprocess_ns,sent_ns,received_ns,deadline_ns,written_ns"
    assert list(rows[0]) == columns.split(",")
    assert [int(row["cycle"]) for row in rows] == list(range(20))
    for row in rows:
        for half in halves(int(row["cycle"]), hold=True):
            for name, value in row.items():
                assert int(value) == getattr(half, name, int(value))


def test_the_live_line_and_the_table_go_to_stdout(enter: Enter) -> None:
    room = enter("--live")
    room.gate.event("state", "armed: driving", state="armed")
    room.cycles(50)
    out, _ = room.last_words()
    assert "50 commands (0 of them holds); stops: none" in out
    assert [name in out for name in ("wait_frame", "compute", "frame_to_wire", "command gap")] == [True] * 4
    assert "Hz" in out
    assert "\x1b" not in out


def test_what_the_policy_process_prints_becomes_records(enter: Enter) -> None:
    room = enter()
    os.write(room.output_fd, b"libfoo: half a li")
    room.gate.event("x", "between")
    os.write(room.output_fd, b"ne\nsecond \xff\xfe line\n")
    told = {event["event"]: event for event in room.events()}
    assert told["policy process: libfoo: half a line"]["level"] == "warning"
    assert told["policy process: second \ufffd\ufffd line"]["kind"] == "policy_output"


def test_a_line_that_never_ends_is_told_in_pieces(enter: Enter, tmp_path: Path) -> None:
    """A progress bar must not fill the reporter's memory."""
    told = tmp_path / "told"
    with told.open("wb") as log:
        room = enter(stderr=log.fileno())
    for _ in range(100):
        os.write(room.output_fd, b"x" * 4096)
    room.gate.event("end", "")
    room.leave()
    assert room.process.wait(20) == 0
    events = [json.loads(line)["event"] for line in told.read_text().splitlines()]
    pieces = [event.removeprefix("policy process: ") for event in events[:-1]]
    assert "".join(pieces) == "x" * 409_600
    assert max(map(len, pieces)) < 70_000  # what a pipe holds at the end, and no more


def test_what_was_on_its_way_when_the_gate_ended_is_told(enter: Enter) -> None:
    room = enter()
    for number in range(50):
        room.policy.event("x", f"event {number}")
    os.write(room.output_fd, b"line\n" * 2000 + b"Segmentation fault")
    told = [event["event"] for event in room.events()]
    assert [event for event in told if event.startswith("event")] == [f"event {number}" for number in range(50)]
    assert told.count("policy process: line") == 2000
    assert told[-2] == "policy process: Segmentation fault"


def test_a_gate_that_ends_without_a_word_is_told_of(enter: Enter) -> None:
    silent, polite = enter(), enter()
    silent.leave()
    _, err = silent.process.communicate(timeout=20)
    assert silent.process.returncode == 0
    gone = json.loads(err.splitlines()[0])
    assert (gone["kind"], gone["level"]) == ("gate_gone", "error")
    assert [event["kind"] for event in polite.events()] == ["summary"]


def test_it_ends_with_the_gate_though_the_policy_process_lives(enter: Enter) -> None:
    room = enter()
    room.gate.event("end", "")
    room.gate_socket.close()
    room.process.communicate(timeout=20)
    assert room.process.returncode == 0


def test_it_outlives_the_end_of_a_policy_process(enter: Enter) -> None:
    room = enter()
    room.policy_socket.close()
    os.close(room.output_fd)
    room.output_fd = -1
    room.gate.event("x", "still here")
    room.wait_for("still here")
    room.gate.event("x", "and still")
    assert room.events()[0]["event"] == "and still"


def test_signals_are_for_the_gate(enter: Enter) -> None:
    room = enter()
    room.gate.event("x", "ready")
    room.wait_for("ready")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        room.process.send_signal(number)
    room.gate.event("x", "unmoved")
    assert room.events()[0]["event"] == "unmoved"


def test_bytes_that_are_no_record_are_told_and_survived(enter: Enter) -> None:
    room = enter()
    garbage = [b"\x01", b"\x02" * 500, b"\xff\xfe", b"{", b"[1]", b"null", b'"event"', b"9" * 5000, b"\1" + b"\0" * 47]
    garbage.append(b"[" * 8000)
    for data in garbage:
        room.gate_socket.send(data)
    room.gate.event("x", "still here")
    told = [event["event"] for event in room.events()]
    assert "still here" in told
    assert sum("no known record" in event for event in told) == len(garbage)


WHOLE = {"event": "x", "message": "m", "level": "info"}


@pytest.mark.parametrize("style", ["json", "console"])
def test_objects_that_are_no_event_are_told_and_survived(enter: Enter, style: str) -> None:
    room = enter(style=style)
    garbage: list[dict[str, Any]] = [{key: WHOLE[key] for key in WHOLE if key != left_out} for left_out in WHOLE]
    garbage += [{}, {"event": "stop"}, {"event": "stop", "reason": []}, {"event": "state"}]
    garbage += [{**WHOLE, key: value} for key in WHOLE for value in ([], 5, None)]
    garbage += [{**WHOLE, "level": level} for level in ("bogus", "exception", "_context", "INFO")]
    for record in garbage:
        room.policy_socket.send(json.dumps(record).encode())
    room.policy.event("x", "still here")
    _, err = room.last_words()
    assert "still here" in err
    assert err.count("bytes of no known record") == len(garbage)


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "stop"},
        {"event": "stop", "reason": [], "stage": []},
        {"event": "stop", "reason": "r", "stage": "no such stage"},
        {"event": "state"},
        {"event": "state", "state": {}},
        {"self": 1},
        {"method_name": "x"},
        {"message": "%s", "args": 1, "kind": None, "timestamp": [], "exc_info": 1},
    ],
    ids=str,
)
def test_an_event_with_odd_fields_is_told(enter: Enter, fields: dict[str, Any]) -> None:
    room = enter()
    room.policy_socket.send(json.dumps({**WHOLE, **fields}).encode())
    room.policy.event("x", "still here")
    assert [event["event"] for event in room.events()[:2]] == [fields.get("message", "m"), "still here"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_is_gone_is_survived(enter: Enter, tmp_path: Path, stream: str) -> None:
    path = tmp_path / "trace.csv"
    room = enter("--live", "--trace", str(path))
    room.gate.event("x", "ready")
    room.wait_for("ready")
    pipe = getattr(room.process, stream)
    pipe.close()
    for number in range(5):
        room.gate.event("x", f"event {number}")
    room.cycles(30)
    room.gate.event("end", "")
    room.leave()
    left = room.process.stderr if stream == "stdout" else room.process.stdout
    assert left is not None
    said = left.read().decode()
    assert room.process.wait(20) == 0
    assert "Exception" not in said
    assert path.read_text().count("\n") == 31
    assert ("event 4" if stream == "stdout" else "30 commands") in said


@pytest.mark.parametrize("count", [3, 100])
def test_a_trace_on_a_full_disk_ends_and_nothing_else_does(enter: Enter, count: int) -> None:
    """With few cycles it is the closing that fails."""
    room = enter("--trace", "/dev/full")
    room.cycles(count)
    room.gate.event("x", "still here")
    told = [event["event"] for event in room.events()]
    assert told.count("still here") == 1
    assert told.count("the trace ends here: No space left on device") == (count > 3)


def test_a_log_on_a_full_disk_ends_nothing(enter: Enter, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    full = os.open("/dev/full", os.O_WRONLY)
    room = enter("--trace", str(path), stderr=full)
    os.close(full)
    for number in range(10):
        room.gate.event("x", f"event {number}")
    room.cycles(20)
    room.gate.event("end", "")
    room.leave()
    assert room.process.wait(20) == 0
    assert path.read_text().count("\n") == 21


# --- what does not fit ---


def test_a_reporter_that_stands_still_holds_nobody_up(enter: Enter) -> None:
    room = enter()
    room.stand_still()
    cycle = halves(1)[0]
    for number in range(3000):
        room.gate.event("x", f"event {number}")
        room.gate.cycle(cycle)
    dropped = room.gate.dropped
    assert 0 < dropped < 6000
    room.go_on()
    room.wait_for("event 0")

    def is_taken() -> bool:
        lost = room.gate.dropped
        room.gate.event("x", "as good as new")
        return room.gate.dropped == lost

    room.wait_until(is_taken)
    room.wait_for("as good as new")


def test_a_reader_that_never_reads_holds_only_the_reporter_up(enter: Enter) -> None:
    room = enter()
    for _ in range(2000):
        room.gate.event("x", "a long story " * 50)
    assert room.gate.dropped > 0


def test_a_reporter_that_is_gone_is_counted() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours:
        telemetry = Telemetry(ours)
        telemetry.event("x", "to nobody")
        telemetry.cycle(halves(1)[0])
    telemetry.event("x", "through nothing")
    assert telemetry.dropped == 3


def test_an_event_of_any_size_is_one_record_or_none() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Telemetry(ours).event("x", "y" * 1_000_000, path=Path("/dev/ttyUSB0"))
        assert len(theirs.recv(1_000_000)) <= 8192
