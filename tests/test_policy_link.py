"""Between the gate and the policy process: messages, the board, the keeper, and what a policy process inherits."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.core.admission import Mode, Offer
from mvla_daemon.core.messages import Stage
from mvla_daemon.errors import ExitCode
from mvla_daemon.link import (
    BoardReader,
    BoardWriter,
    Doing,
    Failed,
    MalformedError,
    Ready,
    Started,
    create_board,
    pack_command,
    pack_failed,
    pack_mode,
    pack_ready,
    pack_start,
    socket_pair,
    unpack,
    unpack_mode,
)
from mvla_daemon.motors.serial_port import SerialPort
from mvla_daemon.ops.child import PolicyChild
from mvla_daemon.policy_keeper import PolicyKeeper

SECOND = 1_000_000_000
BOARD_BYTES = 32
U32 = st.integers(0, 2**32 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)

# --- messages ---


@given(epoch=U32, cycle=U32, at_ns=I64)
def test_a_start_arrives_as_it_was_sent(epoch: int, cycle: int, at_ns: int) -> None:
    assert unpack(pack_start(epoch, cycle, at_ns)) == Started(epoch, cycle, at_ns)


@given(epoch=U32, cycle=U32, at_ns=I64, crc=U32, values=st.tuples(st.floats(), st.floats(), st.floats()))
def test_a_command_arrives_bit_by_bit(
    epoch: int, cycle: int, at_ns: int, crc: int, values: tuple[float, float, float]
) -> None:
    got = unpack(pack_command(Offer(epoch, cycle, at_ns, crc, values)))
    assert isinstance(got, Offer)
    assert (got.epoch, got.cycle, got.captured_ns, got.picture_crc) == (epoch, cycle, at_ns, crc)
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(got.values, values, strict=True))


def test_the_rare_messages_arrive_too() -> None:
    about = {"name": "hallway", "weights": "trained", "camera": "Küche"}
    assert unpack(pack_ready(about)) == Ready(about)
    sentence = "engine failed: Ωμέγα"
    assert unpack(pack_failed(ExitCode.CONFIG, sentence)) == Failed(ExitCode.CONFIG, sentence)
    assert unpack_mode(pack_mode(2**32 - 1, Mode.REHEARSE)) == (2**32 - 1, Mode.REHEARSE)


@pytest.mark.parametrize("odd", [[1], {"deep": {}}, None, 7, "x" * 3000])
def test_of_what_it_says_of_itself_only_known_texts_are_kept(odd: object) -> None:
    got = unpack(pack_ready({"name": "hallway", "weights": odd, "secret": "text"}))
    assert got == Ready({"name": "hallway", **({"weights": odd} if isinstance(odd, str) else {})})


def test_a_long_farewell_is_cut_and_not_lost() -> None:
    message = pack_failed(ExitCode.INTERNAL, "ü" * 9000)
    assert len(message) <= 4096
    got = unpack(message)
    assert isinstance(got, Failed)
    assert got.sentence.startswith("üüü")


def test_a_farewell_about_a_name_that_is_no_text_arrives() -> None:
    sentence = "no such file: " + os.fsdecode(b"\xff.toml")
    assert unpack(pack_failed(ExitCode.CONFIG, sentence)) == Failed(ExitCode.CONFIG, "no such file: \\udcff.toml")


def judged(data: bytes) -> bool:
    """Whether these bytes are a message; anything but a message or MalformedError escapes."""
    try:
        unpack(data)
    except MalformedError:
        return False
    return True


@given(kind=st.integers(0, 255), rest=st.binary(max_size=80))
def test_bytes_are_a_message_or_malformed(kind: int, rest: bytes) -> None:
    judged(bytes([kind]) + rest)


@pytest.mark.parametrize(
    "message",
    [pack_start(1, 2, 3), pack_command(Offer(1, 2, 3, 4, (0.1, 0.2, 0.3))), pack_ready({"a": 1})],
    ids=["start", "command", "ready"],
)
def test_a_message_of_another_length_is_malformed(message: bytes) -> None:
    assert judged(message)
    for length in range(len(message)):
        assert not judged(message[:length])
    assert not judged(message + b"\0")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\x05" + b"\0" * 5,  # what only the gate says
        b"\x03[1]",
        b"\x03null",
        b"\x03\xff\xfe",
        b"\x03" + b"9" * 4090 + b"}",
        b"\x03" + b"[" * 4000,
        b"\x04",
        b"\x04\x07no such exit code",
    ],
)
def test_nonsense_is_malformed(data: bytes) -> None:
    assert not judged(data)


def test_the_socket_keeps_borders_and_never_blocks() -> None:
    gate, policy = socket_pair()
    with gate, policy:
        policy.send(b"one")
        policy.send(b"two")
        assert (gate.recv(100), gate.recv(100)) == (b"one", b"two")
        for end in (gate, policy):
            with pytest.raises(BlockingIOError):
                end.recv(100)
        for end in (gate, policy):
            with pytest.raises(BlockingIOError):
                [end.send(b"x" * 100) for _ in range(100_000)]


def test_the_socket_shows_the_end_after_the_last_message() -> None:
    gate, policy = socket_pair()
    with gate:
        policy.send(b"bye")
        policy.close()
        assert (gate.recv(100), gate.recv(100)) == (b"bye", b"")


# --- the board ---


@pytest.fixture
def board_fd() -> Iterator[int]:
    fd = create_board()
    yield fd
    os.close(fd)


@pytest.fixture
def reader(board_fd: int) -> Iterator[BoardReader]:
    reader = BoardReader(board_fd)
    yield reader
    reader.close()


def test_the_board_says_what_was_written_last(board_fd: int, reader: BoardReader) -> None:
    assert reader.read() is None
    writer = BoardWriter(board_fd)
    for cycle, stage in enumerate(Stage):
        writer.write(cycle, stage, 10 * cycle)
        assert reader.read() == Doing(cycle, stage, 10 * cycle, frame_ns=cycle - 1 if cycle else 0)
        writer.frame_came(cycle)
        assert reader.read() == Doing(cycle, stage, 10 * cycle, frame_ns=cycle)


@pytest.mark.parametrize("size", [0, 8, BOARD_BYTES - 1, BOARD_BYTES + 1, 1 << 20])
def test_nobody_can_resize_the_board(board_fd: int, reader: BoardReader, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(board_fd, size)
    assert os.fstat(board_fd).st_size == BOARD_BYTES
    assert reader.read() is None


def test_nobody_can_seal_the_board_against_its_writer(board_fd: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(board_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    BoardWriter(board_fd).write(1, Stage.COMPUTE, 2)


@pytest.mark.parametrize(
    ("version", "stage", "doing"),
    [
        (2, 3, Doing(8123, Stage.COMPUTE, -5)),
        (3, 3, Doing(8123, Stage.COMPUTE, -5)),  # frozen in the middle of a write: good enough for blame
        (0, 3, None),
        (2, 7, None),
        (2, 2**32 - 1, None),
    ],
)
def test_torn_and_odd_records(board_fd: int, reader: BoardReader, version: int, stage: int, doing: Doing) -> None:
    os.pwrite(board_fd, struct.pack("<IIQqq", version, stage, 8123, -5, 0), 0)
    assert reader.read() == doing


@given(garbage=st.binary(min_size=BOARD_BYTES, max_size=BOARD_BYTES))
def test_a_board_full_of_garbage_is_read_without_complaint(garbage: bytes) -> None:
    fd = create_board()
    reader = BoardReader(fd)
    os.pwrite(fd, garbage, 0)
    got = reader.read()
    assert got is None or got.stage in Stage
    reader.close()
    os.close(fd)


def test_a_board_that_never_rests_is_read_a_bounded_number_of_times(board_fd: int, reader: BoardReader) -> None:
    """Another process rewrites it all the time; each read ends, and what it gives is a stage."""
    scribble = "import mmap, sys\nm = mmap.mmap(int(sys.argv[1]), 32)\nprint(flush=True)\nn = 1\nwhile True:\n"
    scribble += "    n += 1\n    m[:8] = (n & 0xFFFFFFFF).to_bytes(4, 'little') + (n % 9).to_bytes(4, 'little')\n"
    command = [sys.executable, "-S", "-c", scribble, str(board_fd)]
    with subprocess.Popen(command, pass_fds=[board_fd], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = {doing.stage for doing in (reader.read() for _ in range(20_000)) if doing is not None}
        process.kill()
    assert seen <= set(Stage)
    assert seen


# --- the keeper, with small real processes ---


class SmallChild(PolicyChild):
    """A PolicyChild in all but what its process runs."""

    def __init__(self, code: str) -> None:
        self.socket, theirs = socket_pair()
        board_fd = create_board()
        self.board = BoardReader(board_fd)
        command = [sys.executable, "-S", "-c", code, str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        os.close(board_fd)


SLEEPER = "import time; time.sleep(60)"
ECHO = """
import socket, sys
gate = socket.socket(fileno=int(sys.argv[1]))
gate.setblocking(True)
gate.send(b"here")
while data := gate.recv(100):
    gate.send(data)
"""


@pytest.fixture
def keep() -> Iterator[Callable[[str], PolicyKeeper]]:
    keepers = []

    def keeper(code: str) -> PolicyKeeper:
        keepers.append(PolicyKeeper(lambda: SmallChild(code)))
        keepers[-1].begin()
        return keepers[-1]

    yield keeper
    for one in keepers:
        one.stop()


def watch(keeper: PolicyKeeper, now_ns: int = 0) -> str:
    """What the keeper says once the process that it keeps has ended."""
    assert keeper.child is not None
    process, said = keeper.child.process, ""
    while keeper.child is not None and keeper.child.process is process:
        readable = set(select.select(keeper.filenos(), [], [], 10)[0])
        assert readable, "the process never ended"
        said += keeper.watch(readable, now_ns, may_start=True)
    return said


def receive(keeper: PolicyKeeper) -> bytes:
    assert keeper.child is not None
    assert select.select([keeper.child.socket], [], [], 10)[0]
    data = keeper.child.receive()
    assert data is not None
    return data


def test_five_restarts_a_minute_and_then_no_more(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep("import sys; sys.exit(3)")
    for number in range(5):
        assert watch(keeper, number * 11 * SECOND) == "the policy process ended with status 3"
        assert (keeper.restarts, keeper.given_up) == (number + 1, "")
        assert not keeper.ready
    watch(keeper, 60 * SECOND - 1)
    assert "ended 6 times within a minute" in keeper.given_up
    assert keeper.child is None
    assert keeper.filenos() == []
    assert keeper.watch({0, 1, 2}, 70 * SECOND, may_start=True) == ""
    keeper.renew()
    keeper.order(1, Mode.REHEARSE)
    assert (keeper.restarts, keeper.child) == (5, None)


def test_restarts_that_are_far_enough_apart_go_on(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep("pass")
    for number in range(7):
        watch(keeper, number * 12 * SECOND)
    assert (keeper.restarts, keeper.given_up) == (7, "")


def test_a_dismissed_process_counts_as_a_restart(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep(SLEEPER)
    for _ in range(6):
        keeper.renew()
        assert watch(keeper) == ""
    assert keeper.given_up


def test_a_dead_process_is_replaced_once_though_the_gate_renews_it_too(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep(SLEEPER)
    assert keeper.child is not None
    keeper.child.kill()
    assert select.select(keeper.filenos(), [], [], 10)[0]
    keeper.child.process.wait()
    assert keeper.watch(set(keeper.filenos()), 0, may_start=True) == "the policy process ended by signal 9"
    keeper.renew()  # what the gate does about a lost policy
    assert watch(keeper) == ""
    assert keeper.child.ended() is None
    assert keeper.restarts == 1


def test_a_new_process_is_not_started_before_it_may_be_and_nobody_is_woken_for_it(
    keep: Callable[[str], PolicyKeeper],
) -> None:
    keeper = keep(SLEEPER)
    assert keeper.child is not None
    first = keeper.child.process
    keeper.renew()
    readable = set(select.select(keeper.filenos(), [], [], 10)[0])
    for _ in range(3):
        assert keeper.watch(readable, 0, may_start=False) == ""
        assert keeper.child.process is first
        assert keeper.filenos() == []
    assert keeper.watch(set(), 0, may_start=True) == ""
    assert keeper.child.process is not first
    assert (keeper.restarts, len(keeper.filenos())) == (1, 2)


def test_nothing_that_a_dismissed_process_has_still_to_say_is_heard(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep(ECHO)
    assert receive(keeper) == b"here"
    assert keeper.child is not None
    for word in (b"one", b"two", b"three"):
        keeper.child.socket.send(word)
    heard = []
    readable = set(select.select([keeper.child.socket], [], [], 10)[0])
    while len(heard) < 1:
        for message in keeper.messages({keeper.child.socket.fileno()}):
            heard.append(message)
            keeper.renew()
    assert readable
    assert heard == [b"one"]


def test_the_signal_that_ended_it_is_named(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep("import os; os.kill(os.getpid(), 11)")
    assert watch(keeper) == "the policy process ended by signal 11"


def test_the_board_of_a_process_that_ended_is_read_before_the_next_one_is_started(
    keep: Callable[[str], PolicyKeeper],
) -> None:
    """And its place is not taken by another before the robot was stopped for it."""
    keeper = keep("import sys; sys.exit(3)")
    child = keeper.child
    assert child is not None
    readable = set(select.select([fd for fd in keeper.filenos() if fd != child.socket.fileno()], [], [], 10)[0])
    assert keeper.watch(readable, 0, may_start=True) == "the policy process ended with status 3"
    assert keeper.child is child
    assert keeper.doing() is None  # nothing was written on it, but it is there
    assert (keeper.ready, keeper.restarts) == (False, 0)
    keeper.renew()
    assert keeper.watch(readable, 0, may_start=True) == ""
    assert keeper.child is not child
    assert keeper.restarts == 1


def test_a_process_that_lives_is_left_alone(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep(ECHO)
    assert receive(keeper) == b"here"
    pid = keeper.child.process.pid if keeper.child is not None else 0
    assert keeper.watch(set(), 0, may_start=True) == ""
    assert keeper.watch(set(keeper.filenos()), 0, may_start=True) == ""
    assert keeper.child is not None
    assert keeper.child.process.pid == pid


@pytest.mark.parametrize("number", [signal.SIGSTOP, 0])
def test_renewal_ends_a_process_whatever_it_does(keep: Callable[[str], PolicyKeeper], number: int) -> None:
    keeper = keep("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    child = keeper.child
    assert child is not None
    keeper.on_ready()
    child.process.send_signal(number)
    keeper.renew()
    keeper.renew()
    assert not keeper.ready
    assert child.socket.fileno() not in keeper.filenos(), "a dismissed process must not be listened to"
    assert watch(keeper) == ""
    assert child.process.returncode == -9
    assert child.socket.fileno() == -1
    assert keeper.child is not None
    assert keeper.child.socket.fileno() in keeper.filenos()
    assert (keeper.restarts, keeper.ready) == (1, False)


def test_orders_are_kept_until_the_process_is_ready(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep(ECHO)
    assert receive(keeper) == b"here"
    keeper.order(4, Mode.REHEARSE)
    keeper.order(5, Mode.IDLE)
    assert keeper.child is not None
    assert not select.select([keeper.child.socket], [], [], 0.05)[0]
    keeper.on_ready()
    assert unpack_mode(receive(keeper)) == (5, Mode.IDLE)
    keeper.order(6, Mode.DRIVE)
    assert unpack_mode(receive(keeper)) == (6, Mode.DRIVE)
    keeper.renew()
    watch(keeper)
    assert receive(keeper) == b"here"
    keeper.order(7, Mode.REHEARSE)
    keeper.on_ready()
    assert unpack_mode(receive(keeper)) == (7, Mode.REHEARSE)


def test_orders_to_a_process_that_never_reads_do_not_block(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep(SLEEPER)
    keeper.on_ready()
    for epoch in range(20_000):
        keeper.order(epoch, Mode.REHEARSE)


def test_what_a_process_said_and_its_end_are_read_without_waiting(keep: Callable[[str], PolicyKeeper]) -> None:
    keeper = keep("import socket, sys; socket.socket(fileno=int(sys.argv[1])).send(b'bye')")
    child = keeper.child
    assert child is not None
    child.process.wait()
    assert (child.receive(), child.receive(), child.receive()) == (b"bye", b"", b"")
    keeper = keep(SLEEPER)
    assert keeper.child is not None
    assert keeper.child.receive() is None


def test_the_last_words_of_a_process_that_ended_with_an_order_unread_are_heard(
    keep: Callable[[str], PolicyKeeper],
) -> None:
    keeper = keep(
        "import select, socket, sys; gate = socket.socket(fileno=int(sys.argv[1]));"
        "select.select([gate], [], []); gate.send(b'bye')"
    )
    child = keeper.child
    assert child is not None
    keeper.order(3, Mode.REHEARSE)
    keeper.on_ready()
    child.process.wait()
    assert (child.receive(), child.receive()) == (b"bye", b"")


def test_a_socket_that_was_closed_is_not_watched_any_more_but_its_process_is(
    keep: Callable[[str], PolicyKeeper],
) -> None:
    keeper = keep("import os, sys, time; os.close(int(sys.argv[1])); time.sleep(60)")
    child = keeper.child
    assert child is not None
    readable = set(select.select([child.socket], [], [], 10)[0])
    assert list(keeper.messages({sock.fileno() for sock in readable})) == []
    assert child.socket.fileno() not in keeper.filenos()
    assert not select.select(keeper.filenos(), [], [], 0)[0], "a gate that waits for these would spin"
    assert child.ended() is None
    child.kill()
    assert watch(keeper) == "the policy process ended by signal 9"
    assert keeper.child is not None
    assert keeper.child.socket.fileno() in keeper.filenos()


def test_a_process_that_cannot_be_started_again_is_given_up() -> None:
    children = [SmallChild("import sys; sys.exit(3)")]

    def start() -> PolicyChild:
        if not children:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return children.pop()

    keeper = PolicyKeeper(start)
    keeper.begin()
    assert watch(keeper) == "the policy process ended with status 3"
    assert "could not be started again" in keeper.given_up
    assert "Resource temporarily unavailable" in keeper.given_up
    assert (keeper.child, keeper.filenos(), keeper.ready) == (None, [], False)
    keeper.renew()
    keeper.order(1, Mode.REHEARSE)
    keeper.stop()


@pytest.mark.alone
def test_nothing_is_left_of_a_keeper(keep: Callable[[str], PolicyKeeper]) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    keeper = keep(SLEEPER)
    pid = keeper.child.process.pid if keeper.child is not None else 0
    keeper.renew()
    watch(keeper)
    keeper.stop()
    keeper.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


# --- the real policy process ---


def link(pid: int | str, fd: int | str) -> str:
    """What a descriptor of a process is."""
    return str(Path(f"/proc/{pid}/fd/{fd}").readlink())


def test_the_policy_process_inherits_nothing_but_what_is_named(tmp_path: Path) -> None:
    """The port, the control socket, even a descriptor that somebody has marked as inheritable: none of them."""
    master, slave = os.openpty()
    port = SerialPort(os.ttyname(slave), 921_600)
    os.close(slave)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.bind(str(tmp_path / "control"))
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    ours, telemetry = socket.socketpair()
    output, stdio = os.pipe()
    child = PolicyChild({"config": {}, "cores": [0]}, telemetry.fileno(), stdio)
    try:
        child.process.send_signal(signal.SIGSTOP)
        pid = child.process.pid
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        links = {int(path.name): link(pid, path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        held = {fd: to for fd, to in links.items() if not to.endswith((".py", ".pyc", ".so", ".zip"))}
        memory = [to for to in held.values() if to.startswith("/memfd:mvla-board")]
        sockets = [to for to in held.values() if to.startswith("socket:")]
        assert (held.pop(1), held.pop(2)) == (link("self", stdio),) * 2
        assert held.pop(0).startswith("pipe:")
        assert len(memory) == 1
        assert len(sockets) == 2
        assert link("self", telemetry.fileno()) in sockets
        assert link("self", control.fileno()) not in sockets
        assert link("self", child.socket.fileno()) not in sockets
        assert not [to for to in links.values() if to.startswith("/dev/") or to == str(tmp_path)]
    finally:
        child.kill()
        child.process.wait()
        child.close()
        port.close()
        for fd in (master, leaked, output, stdio):
            os.close(fd)
        for sock in (control, ours, telemetry):
            sock.close()


def test_a_policy_process_whose_parent_is_another_ends_at_once() -> None:
    """Its gate died before the kernel was asked to tell of that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = theirs.fileno()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-m", "mvla_daemon.policy", "1", *[str(fd)] * 3],
            pass_fds=[fd],
            input=json.dumps({}).encode(),
            capture_output=True,
            check=False,
        )
        theirs.close()
        assert unpack(ours.recv(8192)) == Failed(
            ExitCode.UNAVAILABLE, "the process 1 is not the parent: start it from there"
        )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert done.returncode == 1
