"""The journal: its datagrams, what gets lost while it is away, its catalog, and a real one that is asked."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import Reason, Stage, Velocity
from mvla_daemon.link import Doing
from mvla_daemon.ops.drops import DropBoard, create_drop_board
from mvla_daemon.ops.journal import MESSAGE_IDS, Journal, encode, fields_of
from mvla_daemon.ops.log import Log
from mvla_daemon.ops.reporter import Reporter
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import Lockstep, Unheard
from mvla_daemon.sim.lockstep_policy import LockstepPolicy
from tests.real_journal import NoJournalError, RealJournal
from tests.reporting import Enter, Room
from tests.rig import PATIENCE_S, ROOT, Rig, Scene, reasons

MS = 1_000_000
SECOND = 1_000_000_000
CATALOG = ROOT / "systemd/mvla-daemon.catalog"


# --- the native protocol ---


def parse(datagram: bytes) -> dict[str, bytes]:
    """The journal's native format, read as its page says."""
    fields = {}
    while datagram:
        line, datagram = datagram.split(b"\n", 1)
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", datagram)
            value, datagram = datagram[8 : 8 + size], datagram[8 + size :]
            assert datagram[:1] == b"\n"
            datagram = datagram[1:]
        fields[name.decode()] = value
    return fields


@given(values=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=5))
def test_any_text_can_be_a_value(values: list[str]) -> None:
    fields = {f"FIELD_{number}": value for number, value in enumerate(values)}
    assert parse(encode(fields)) == {name: value.encode() for name, value in fields.items()}


def test_a_value_with_a_newline_is_given_by_its_length() -> None:
    assert encode({"MESSAGE": "a\nb", "PRIORITY": "3"}) == b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nPRIORITY=3\n"


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "journal"))
        server.settimeout(5)
        yield server


@pytest.fixture
def journal(tmp_path: Path, journald: socket.socket) -> Iterator[Journal]:
    journal = Journal(str(tmp_path / "journal"))
    assert journald.fileno() >= 0
    yield journal
    journal.close()


def test_a_stop_can_be_found_by_its_fields(journal: Journal, journald: socket.socket) -> None:
    journal.write(
        {
            "event": "stop",
            "level": "error",
            "message": "STOP deadline_missed:\nlate",
            "reason": "deadline_missed",
            "stage": "compute",
            "cycle": 8123,
            "session": None,
            "duration_us": 17900,
            "late_us": 12,
            "why": "",
        }
    )
    fields = parse(journald.recv(65536))
    assert len(fields.pop("MESSAGE_ID")) == 32
    assert fields == {
        "MESSAGE": b"STOP deadline_missed:\nlate",
        "PRIORITY": b"3",
        "SYSLOG_IDENTIFIER": b"mvla-daemon",
        "MVLA_EVENT": b"stop",
        "MVLA_REASON": b"deadline_missed",
        "MVLA_STAGE": b"compute",
        "MVLA_CYCLE": b"8123",
        "MVLA_DURATION_US": b"17900",
        "MVLA_LATE_US": b"12",
    }


def test_what_is_no_text_is_told_as_what_it_is(journal: Journal, journald: socket.socket) -> None:
    journal.write({"event": "x", "message": "no such file: " + os.fsdecode(b"\xff"), "reason": [1], "stage": {}})
    fields = parse(journald.recv(65536))
    assert fields["MESSAGE"] == b"no such file: \\udcff"
    assert (fields["MVLA_REASON"], fields["MVLA_STAGE"]) == (b"[1]", b"{}")


@given(record=st.dictionaries(st.text(max_size=70), st.none() | st.integers() | st.text(max_size=20), max_size=300))
def test_whatever_a_record_holds_the_journal_takes_it(record: dict[str, object]) -> None:
    """Its rules: at most 1024 fields; names of A to Z, 0 to 9 and _, no digit or _ first, at most 64 characters."""
    fields = fields_of({**record, "event": "x", "level": "info", "message": "m"})
    assert len(fields) <= 1024
    assert all(re.fullmatch("[A-Z][A-Z0-9_]{0,63}", name) for name in fields)
    assert all(not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f]", value) for value in fields.values())
    assert {name: value.decode("utf-8") for name, value in parse(encode(fields)).items()}.keys() == fields.keys()


def test_a_record_with_too_many_fields_keeps_the_first_ones() -> None:
    fields = fields_of({"event": "x", "message": "m", **{f"n{number}": number for number in range(2000)}})
    assert len(fields) <= 1024
    assert (fields["MESSAGE"], fields["MVLA_EVENT"], fields["MVLA_N0"]) == ("m", "x", "0")


def test_records_that_people_search_for_have_an_id_each() -> None:
    records: list[dict[str, object]] = [{"event": "stop"}, {"event": "engine_built"}]
    records += [{"event": "state", "state": state} for state in ("armed", "latched")]
    ids = [fields_of(record)["MESSAGE_ID"] for record in records]
    assert len(set(ids)) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", known) for known in ids)
    for other in ({"event": "state", "state": "disarmed"}, {"event": "armed_guard"}, {"event": "x", "state": "armed"}):
        assert "MESSAGE_ID" not in fields_of(other)


@pytest.mark.parametrize(("level", "priority"), [("debug", b"7"), ("info", b"6"), ("warning", b"4"), ("error", b"3")])
def test_levels_are_the_journals(journal: Journal, journald: socket.socket, level: str, priority: bytes) -> None:
    journal.write({"event": "x", "level": level, "message": "m"})
    assert parse(journald.recv(65536))["PRIORITY"] == priority


def test_what_is_too_large_for_a_datagram_is_handed_over_as_a_sealed_file(
    journal: Journal, journald: socket.socket
) -> None:
    text = "a long story\n" * 300_000
    assert journal.write({"event": "x", "message": text})
    data, passed, *_ = journald.recvmsg(1, socket.CMSG_SPACE(4))
    ((_, kind, fds),) = passed
    assert (data, kind) == (b"", socket.SCM_RIGHTS)
    (fd,) = struct.unpack("i", fds)
    with os.fdopen(fd, "rb") as file:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert sealed == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        file.seek(0)
        assert parse(file.read())["MESSAGE"] == text.encode()


@pytest.mark.alone
def test_a_journal_that_is_not_there_takes_nothing_of_any_size(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "nothing"))
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    assert not journal.write({"event": "x"})
    assert not journal.write({"event": "x", "message": "y" * 10_000_000})
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    journal.close()


def test_a_journal_that_does_not_read_is_never_waited_for(journal: Journal, journald: socket.socket) -> None:
    took = [journal.write({"event": "x", "message": f"message {number}"}) for number in range(1000)]
    assert took == sorted(took, reverse=True)
    assert 0 < took.count(False) < 1000
    for number in range(took.count(True)):
        assert parse(journald.recv(65536))["MESSAGE"] == f"message {number}".encode()
    assert journal.write({"event": "x", "message": "back again"})
    assert parse(journald.recv(65536))["MESSAGE"] == b"back again"


# --- through the reporter ---


def sent(room: Room, *messages: str, level: str = "info") -> None:
    """As the gate sends, and taken by the reporter."""
    for message in messages:
        room.gate.event("x", message, level)
    room.settle()


def taken(journald: socket.socket, last: str) -> list[dict[str, bytes]]:
    """What the journal is sent, up to that message."""
    got: list[dict[str, bytes]] = []
    while not got or got[-1]["MESSAGE"] != last.encode():
        got.append(parse(journald.recv(65536)))
    return got


def test_the_level_holds_for_the_journal_too(enter: Enter, journald: socket.socket, tmp_path: Path) -> None:
    room = enter("--journal", str(tmp_path / "journal"), style="journal", level="warning")
    for level in ("debug", "info", "warning", "error"):
        sent(room, level, level=level)
    assert [fields["MESSAGE"] for fields in taken(journald, "error")] == [b"warning", b"error"]


def test_json_lines_and_the_journal_have_the_same_fields(enter: Enter, journald: socket.socket, tmp_path: Path) -> None:
    rooms = [enter("--journal", str(tmp_path / "journal"), style=style) for style in ("json", "journal")]
    for room in rooms:
        room.gate.event("state", "armed: driving", state="armed", reason="", before="arming", session=77)
        room.gate.event("stop", "STOP", "error", reason="frame_stale", cycle=5, late_us=12, session=77, why=None)
        room.policy.event("camera_lost", "gone", "warning")
        room.settle()
    lines, (_, said) = rooms[0].events(), rooms[1].last_words()
    assert said == ""
    while lines:
        line, fields = lines.pop(0), parse(journald.recv(65536))
        del line["timestamp"], fields["SYSLOG_IDENTIFIER"]
        fields.pop("MESSAGE_ID", None)
        levels = {"info": "6", "warning": "4", "error": "3"}
        told = {"MESSAGE": line.pop("event"), "PRIORITY": levels[line.pop("level")], "MVLA_EVENT": line.pop("kind")}
        told |= {f"MVLA_{name.upper()}": value for name, value in line.items()}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}
        assert texts == {name: value.decode() for name, value in fields.items()}
        assert fields["MVLA_SESSION"] == b"77"


def test_a_journal_that_stops_reading_goes_and_comes_back_costs_records_that_are_counted_and_told(
    enter: Enter, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    room = enter("--journal", str(path), style="journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(path))
        full.settimeout(PATIENCE_S)
        for number in range(0, 100, 10):  # each of them large, so that the journal's queue is soon full
            sent(room, *(f"{n} {'x' * 6000}" for n in range(number, number + 10)))
        room.wait_until(lambda: room.lost("log") > 0)
        queued = [parse(full.recv(65536)) for _ in range(5)]
        sent(room, "reads again")
        queued += taken(full, "reads again")
    path.unlink()
    sent(room, "to nobody")
    missing = [int(fields["MVLA_DROPPED_RECORDS"]) for fields in queued if b"records_dropped" in fields.values()]
    numbers = [int(fields["MESSAGE"].split()[0]) for fields in queued if fields["MESSAGE"].endswith(b"xxx")]
    assert numbers == sorted(numbers)
    assert sum(missing) == 100 - len(numbers) > 0
    room.wait_until(lambda: room.lost("log") == sum(missing) + 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as new:
        new.bind(str(path))
        new.settimeout(PATIENCE_S)
        sent(room, "to a new one")
        gap, record = taken(new, "to a new one")
        assert (gap["MVLA_DROPPED_RECORDS"], gap["PRIORITY"], record["MVLA_EVENT"]) == (b"1", b"4", b"x")
        assert room.gate.dropped == 0  # nobody waited
        room.last_words()
        summary = parse(new.recv(65536))
        assert int(summary["MVLA_DROPPED_RECORDS_LOG"]) == sum(missing) + 1
        assert f"RECORDS LOST: log {sum(missing) + 1}" in summary["MESSAGE"].decode()


def test_what_the_reporter_was_too_slow_for_is_in_the_summary_and_in_the_status(enter: Enter) -> None:
    room = enter()
    room.stand_still()
    room.cycles(1000)
    gate, policy = room.gate.dropped, room.policy.dropped
    assert gate > 0 < policy
    assert room.gate.losses()["dropped_records_by_sink"] == {"gate": gate, "policy": 0, "log": 0}
    room.go_on()
    room.settle()
    room.gate.event("x", "as good as new")
    room.policy.event("x", "as good as new")
    counts = {"gate": gate, "policy": policy, "log": 0}
    summary = room.events()[-1]
    assert {sink: summary[f"dropped_records_{sink}"] for sink in counts} == counts
    assert room.gate.losses() == {"dropped_records": gate + policy, "dropped_records_by_sink": counts}


def test_a_policy_process_that_talks_without_end_does_not_push_the_gates_records_out(
    enter: Enter, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    with told.open("wb") as log:
        room = enter(stderr=log.fileno())
    os.write(room.output_fd, b"x\n" * 8000)
    room.wait_until(lambda: room.lost("policy") > 0)
    room.gate.event("x", "still here")
    room.gate.event("end", "")
    room.leave()
    assert room.process.wait(PATIENCE_S) == 0
    records = [json.loads(line) for line in told.read_text().splitlines()]
    noise = [record for record in records if record["kind"] == "policy_output"]
    assert len(noise) < 10_000 - 30 * 100  # what the journal takes of a unit in 30 s, less what comes in that time
    assert len(noise) + records[-1]["dropped_records_policy"] == 8000
    assert [record["event"] for record in records if record["kind"] == "x"] == ["still here"]


# --- what is recorded ---


class Notebook(Unheard):
    """Telemetry that keeps the events."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def event(self, name: str, message: str, level: str = "info", /, **fields: Any) -> None:
        self.records.append({"event": name, "message": message, "level": level, **fields})


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.label)
def test_each_stop_is_one_record_with_reason_stage_cycle_and_duration(
    monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    """The board is a boundary here: in simulated time there is none."""
    notebook = Notebook()
    config = load_config(ROOT / "config.toml", ("safety.recover_cycles=2", 'safety.recover="never"'))
    drive = Lockstep(config, make_room(3), None, lambda _: Velocity(0.2), telemetry=notebook, longest_ns=2 * SECOND)
    helm, now = drive.gate.helm, drive.timeline.now_ns

    def doing(_: LockstepPolicy) -> Doing:
        return Doing(8123, Stage.COMPUTE, now() - 5 * MS)

    def happen() -> None:
        assert helm.state.phase.name == "ARMED"
        if reason is Reason.OPERATOR:
            drive.gate.operate("stop", 1000, 1)
        elif reason is Reason.SHUTDOWN:
            helm.end(helm._ending, "", now())
        else:
            helm.fault(reason, "it just happened", now())

    monkeypatch.setattr(LockstepPolicy, "doing", doing)
    drive.timeline.at(600 * MS, happen)
    drive.run()
    stops = [record for record in notebook.records if record["event"] == "stop"]
    assert [record["reason"] for record in stops] == list(dict.fromkeys([reason.label, "shutdown"]))
    stop = stops[0]
    assert (stop["stage"], stop["cycle"]) == ("compute", 8123)
    assert 5000 <= stop["duration_us"] < 6000
    assert stop["session"] == helm.status(now())["session"] > 0
    states = [record for record in notebook.records if record["event"] == "state"]
    assert all(before["state"] == after["before"] for before, after in itertools.pairwise(states))
    edges = [(record["before"], record["state"]) for record in states]
    assert len(set(edges)) == len(edges)  # one record for each change, none for what stays
    armed = [record["state"] for record in states].index("armed")
    assert all(record["session"] == stop["session"] for record in states[armed:])


class Pages(Log):
    """A log that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("json", "info")
        self.records: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def test_there_is_one_summary_a_minute() -> None:
    pages, fd = Pages(), create_drop_board()
    reporter = Reporter(pages, None, DropBoard(fd), live=False)
    os.close(fd)
    began_ns = time.monotonic_ns()
    for second in range(5 * 60 + 30):
        reporter.tick(began_ns + second * SECOND)
    assert [record["event"] for record in pages.records] == ["summary"] * 5


# --- the catalog ---


def entries() -> dict[str, str]:
    """By message id, the text of each entry."""
    _, *pieces = re.split("^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def test_every_message_id_has_an_entry_and_no_other() -> None:
    assert set(entries()) == set(MESSAGE_IDS.values())
    for text in entries().values():
        assert re.match("Subject: .+\nDefined-By: mvla-daemon\n\n", text)


def test_every_reason_is_explained_in_the_stops_entry() -> None:
    explained = re.findall("^([a-z_]+)\n    [A-Z]", entries()[MESSAGE_IDS["stop"]], re.MULTILINE)
    assert explained == [reason.label for reason in Reason]


def test_what_catalog_and_readme_name_is_there() -> None:
    texts = CATALOG.read_text() + (ROOT / "README.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "mvla_daemon").rglob("*.py"))
    for event in set(re.findall("MVLA_EVENT=([a-z_]+)", texts)):
        assert f'"{event}"' in source, event
    for field in set(re.findall(r"MVLA_([A-Z0-9_]+[A-Z0-9])", texts)) - {"EVENT", "TEST_LONG", "OS_CACHE"}:
        name = field.lower().removesuffix("_gate")
        assert re.search(rf"""\b{name}(["=_])""", source), field
    settings = load_config(ROOT / "config.toml").model_dump()
    for section, key in re.findall(r"\b(control|camera|safety|motor)\.(\w+)", CATALOG.read_text()):
        assert key in settings[section], f"{section}.{key}"


def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("this machine has no journalctl")
    for folder in ("usr/lib/systemd/catalog", "var/lib/systemd/catalog"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(CATALOG, tmp_path / "usr/lib/systemd/catalog")
    journalctl = ["journalctl", f"--root={tmp_path}"]
    subprocess.run([*journalctl, "--update-catalog"], check=True, timeout=PATIENCE_S)
    listed = subprocess.run(
        [*journalctl, "--list-catalog"], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert {line.split()[0] for line in listed.stdout.splitlines()} == set(MESSAGE_IDS.values())


# --- a real journal ---


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealJournal]:
    journal = RealJournal(tmp_path)
    try:
        journal.start()
    except NoJournalError as error:
        pytest.skip(str(error))
    yield journal
    journal.stop()


def queries() -> list[list[str]]:
    """The README's, each as words."""
    section = (ROOT / "README.md").read_text().partition("### Reading the journal")[2]
    return [shlex.split(line, comments=True)[1:] for line in re.findall("^journalctl .+", section, re.MULTILINE)[:5]]


def test_the_readmes_queries_find_what_they_say(enter: Enter, real: RealJournal) -> None:
    room = enter("--journal", str(real.path), style="journal")
    room.gate.event("start", "mvla-daemon")
    room.gate.event("operator", "arm asked for by user 0", request="arm", operator_uid=0, operator_pid=1)
    room.gate.event("state", "armed: driving", state="armed", before="arming", session=4711)
    late = {"reason": "deadline_missed", "stage": "compute", "cycle": 8123, "duration_us": 17_900}
    room.gate.event("stop", "STOP deadline_missed:\nlate", "error", **late, session=4711)
    room.gate.event("stop", "STOP frame_stale", "error", reason="frame_stale", stage="wait_frame", session=4711)
    room.gate.event("state", "latched", "warning", state="latched", before="stopping", reason="x", session=4711)
    room.last_words()
    real.wait_for("MVLA_EVENT=summary")
    newest, missed, session, operator, summary = queries()
    assert real.ask(*newest[:-1], "-o", "json")[0]["MESSAGE"] == "mvla-daemon"
    assert "STOP deadline_missed:\n" in real.printed(*newest)
    (stop,) = real.ask(*missed)
    assert (stop["MVLA_STAGE"], stop["MVLA_DURATION_US"], "MESSAGE" in stop) == ("compute", "17900", False)
    events = [record["MVLA_EVENT"] for record in real.ask(*session)]
    assert events == ["state", "stop", "stop", "state", "summary"]
    assert real.printed(*operator).startswith("arm asked for by user root (0)")
    assert "MVLA_DROPPED_RECORDS_LOG=0" in real.printed(*summary)
    ids = [record.get("MESSAGE_ID") for record in real.ask(*session)]
    assert ids == [*(MESSAGE_IDS[kind] for kind in ("armed", "stop", "stop", "latched")), None]


def test_a_real_journal_takes_any_text_and_any_size(real: RealJournal) -> None:
    journal = Journal(str(real.path))
    odd = "nul \0, bell \a, a line\nand more \x1b[1m, \x85, \r, ö"
    story = "a long story, " * 300_000
    assert journal.write({"event": "odd", "level": "info", "message": odd, "why": odd})
    assert journal.write({"event": "story", "level": "info", "message": story})
    many = {f"n{number}": number for number in range(2000)}
    assert journal.write({"event": "many", "level": "info", "message": "m", **many, "-odd name": 1})
    (record,) = real.wait_for("MVLA_EVENT=odd")
    shown = "nul \\x00, bell \\x07, a line\nand more \\x1b[1m, \\x85, \\x0d, ö"
    assert (record["MESSAGE"], record["MVLA_WHY"]) == (shown, shown)
    assert real.wait_for("MVLA_EVENT=story")[0]["MESSAGE"] == story
    assert real.wait_for("MVLA_EVENT=many")[0]["MVLA_N99"] == "99"
    journal.close()


def test_a_journal_that_is_started_again_needs_no_new_daemon(enter: Enter, real: RealJournal) -> None:
    room = enter("--journal", str(real.path), style="journal")
    sent(room, "before")
    real.wait_for("MVLA_EVENT=x")
    real.stop()
    sent(room, "meanwhile")
    room.wait_until(lambda: room.lost("log") == 1)
    real.start()
    sent(room, "afterwards")
    (gap,) = real.wait_for("MVLA_EVENT=records_dropped")
    assert gap["MVLA_DROPPED_RECORDS"] == "1"
    assert [record["MESSAGE"] for record in real.ask("MVLA_EVENT=x")] == ["before", "afterwards"]


def test_a_journal_that_stands_still_costs_the_drive_nothing(real: RealJournal, tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        try:
            rig.within = real.within()
        except NoJournalError as error:
            pytest.skip(str(error))
        rig.start_driving('--set=log.format="journal"')
        real.freeze()
        before = len(rig.read_wire())
        for _ in range(30):  # more than the journal's socket holds; what of it is not told is counted in others
            rig.ask("arm")
            rig.ask("status")
        rig.wait_for("VELOCITY", after=before, count=8)
        assert reasons(rig, before) == []
        lost = rig.ask("status")["dropped_records_by_sink"]["log"]
        real.thaw()
        session = rig.ask("status")["session"]
        os.kill(rig.pid, signal.SIGTERM)
        assert rig.wait() == 0
        assert rig.said() == ""
    (summary,) = real.wait_for("MVLA_EVENT=summary")
    assert int(summary["MVLA_DROPPED_RECORDS_LOG"]) >= lost
    gaps = [int(gap["MVLA_DROPPED_RECORDS"]) for gap in real.ask("MVLA_EVENT=records_dropped")]
    assert str(sum(gaps)) == summary["MVLA_DROPPED_RECORDS_LOG"]
    (stop,) = real.ask("MVLA_EVENT=stop")
    assert (stop["MVLA_REASON"], stop["MVLA_SESSION"]) == ("shutdown", str(session))
