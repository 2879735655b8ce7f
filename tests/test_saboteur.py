"""The saboteur in a real policy process: each order has the effect that the gate, which is this test, gets to see."""

from __future__ import annotations

import itertools
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from mvla_daemon.config_load import load_config
from mvla_daemon.core.admission import Mode, Offer
from mvla_daemon.core.messages import Stage
from mvla_daemon.link import Doing, Failed, MalformedError, Ready, Started, unpack
from mvla_daemon.ops.child import PolicyChild
from tests.rig import CONFIG, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MS = 1_000_000
PERIOD_MS, DEADLINE_MS = 50, 50
FATAL = ("exit", "raise", "segfault", "board")
Message = TypeVar("Message")
Found = TypeVar("Found")


class Gate:
    """The gate's end of a policy process with a saboteur, and where the saboteur takes its orders."""

    def __init__(self, folder: Path, config: Path, camera: str) -> None:
        self.path = folder / "sabotage"
        self.path.touch()  # as one that an earlier process has left
        self._theirs, self._telemetry = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.said = (folder / "said").open("w")
        settings = {
            "config": load_config(config).model_dump(mode="json"),
            "cores": [*os.sched_getaffinity(0), 1 << 16],  # the last one is the gate's: it may use all there are
            "gate_has_fifo": True,
            "simulated_camera": camera,
            "sabotage": str(self.path),
        }
        self.child = PolicyChild(settings, self._telemetry.fileno(), self.said.fileno())
        self._orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._orders.bind("")  # an address to be answered at (unix(7), autobind)
        self._orders.settimeout(PATIENCE_S)
        self.epoch = 0
        self.last_start = Started(0, 0, 0)

    @property
    def pid(self) -> int:
        return self.child.process.pid

    def begin(self) -> None:
        """Wait until it is ready, and have it drive."""
        self.wait_for(Ready, lambda _: True)
        self.epoch = 7
        self.child.order(self.epoch, Mode.DRIVE)
        self.wait_for(Offer, lambda _: True)

    def close(self) -> None:
        self.child.kill()
        self.child.process.wait(PATIENCE_S)
        self.child.close()
        for end in (self._theirs, self._telemetry, self._orders, self.said):
            end.close()

    def ask(self, order: str) -> None:
        """What it said before is forgotten."""
        while select.select([self.child.socket], [], [], 0)[0] and (data := self.child.receive()):
            self._understood(data)
        self._orders.sendto(order.encode(), str(self.path))

    def answer(self) -> list[str]:
        return self._orders.recv(4096).decode().split()

    def order(self, order: str) -> int:
        """When it began to take effect."""
        before_ns = time.monotonic_ns()
        self.ask(order)
        word, at_ns = self.answer()
        assert word == "done"
        assert before_ns <= int(at_ns) <= time.monotonic_ns()
        return int(at_ns)

    def messages(self) -> Iterator[object]:
        """What it says from now on, bytes that are no message included, until it hangs up."""
        end = time.monotonic() + PATIENCE_S
        while True:
            left_s = max(0, end - time.monotonic())
            assert select.select([self.child.socket], [], [], left_s)[0], "the policy process says nothing"
            assert left_s, "it says other things than expected"
            data = self.child.receive()
            if data == b"":
                return
            if data is not None:
                yield self._understood(data)

    def _understood(self, data: bytes) -> object:
        try:
            message = unpack(data)
        except MalformedError:
            return data
        if isinstance(message, Started):
            self.last_start = message
        return message

    def starts(self) -> Iterator[tuple[Started, Started]]:
        """Each from now on, after the one before it."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            before = self.last_start
            yield before, self.wait_for(Started, lambda _: True)

    def wait_for(self, kind: type[Message], wanted: Callable[[Message], bool]) -> Message:
        for message in self.messages():
            if isinstance(message, kind) and wanted(message):
                return message
        raise AssertionError(f"no such {kind.__name__}")

    def commands(self, count: int) -> list[Offer]:
        return [self.wait_for(Offer, lambda _: True) for _ in range(count)]

    def pause_after(self, at_ns: int, least_ms: int) -> tuple[Started, Started]:
        """The two starts, the second one of the next after that time, between which there were so many milliseconds."""
        later = (pair for pair in self.starts() if pair[1].announced_ns >= at_ns)
        pairs = list(itertools.islice(later, 4))
        return next(pair for pair in pairs if pair[1].announced_ns - pair[0].announced_ns >= least_ms * MS)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, studio: Path) -> Path:
    """At a calm pace and without real time, so that spinning starves nobody but this process."""
    config = tmp_path_factory.mktemp("config") / "config.toml"
    calm = {"rate_hz": 20, "deadline_ms": DEADLINE_MS, "max_frame_age_ms": 500, "watchdog_ms": 500}
    seen = {"source": "sim://", "width": 640, "height": 480, "fps": 40, "instruction": ""}
    text = CONFIG.format(manifest=studio / "steady.toml", port="sim://", **seen, **calm)
    config.write_text(text + '\n[realtime]\nscheduler = "other"\n')
    return config


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("camera") / "log"
    with subprocess.Popen(
        [sys.executable, "-m", "mvla_daemon.selftest.ground_process", "--log", str(log), "--fps", "40"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as ground:
        assert ground.stdout is not None
        yield ground.stdout.readline().split()[1]
        ground.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module", autouse=True)
def doomed(tmp_path_factory: pytest.TempPathFactory, config: Path, camera: str) -> Iterator[dict[str, Gate]]:
    """For each fatal order a process of its own; they load while the other tests run."""
    gates = {name: Gate(tmp_path_factory.mktemp(name), config, camera) for name in FATAL}
    yield gates
    for gate in gates.values():
        gate.close()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, config: Path, camera: str) -> Iterator[Gate]:
    gate = Gate(tmp_path_factory.mktemp("gate"), config, camera)
    gate.begin()
    yield gate
    gate.close()


# --- thinking ---


def test_an_inference_takes_longer_and_is_finished_all_the_same(gate: Gate) -> None:
    gate.order("compute 200")
    took_ns = []
    while len(took_ns) < 4:
        if gate.wait_for(Offer, lambda _: True).cycle == gate.last_start.cycle:
            took_ns.append(time.monotonic_ns() - gate.last_start.announced_ns)
    assert max(took_ns) >= 200 * MS


def test_a_wish_is_shaped_as_every_other(gate: Gate) -> None:
    gate.order("wish 0 0.25 -0.5 1000")
    assert gate.wait_for(Offer, lambda offer: offer.values[1] > 0).values[1] < 0.25
    gate.wait_for(Offer, lambda offer: offer.values == (0.0, 0.25, -0.5))
    gate.order("wish 0 0 0 0")
    gate.wait_for(Offer, lambda offer: offer.values[1] == 0)


@pytest.mark.parametrize(("wish", "seen"), [("nan", math.isnan), ("-inf", math.isinf), ("1e30", lambda x: x == 1e30)])
def test_a_wish_may_be_no_number_to_drive_by(gate: Gate, wish: str, seen: Callable[[float], bool]) -> None:
    gate.order(f"wish 0 0 {wish} 1")
    gate.wait_for(Offer, lambda offer: seen(offer.values[2]))
    gate.wait_for(Offer, lambda offer: abs(offer.values[2]) < 1)


def test_a_stale_policy_goes_on_thinking_about_the_frame_it_has(gate: Gate) -> None:
    gate.order("stale on")
    gate.commands(2)  # an inference may have been under way, and the next frame is the one that stays
    commands = gate.commands(4)
    assert len({(command.captured_ns, command.picture_crc) for command in commands}) == 1
    assert len({command.cycle for command in commands}) == 4
    gate.pause_after(gate.order("compute 200"), 200)  # it does infer
    gate.order("stale off")
    gate.wait_for(Offer, lambda offer: offer.captured_ns > commands[-1].captured_ns)


# --- sending ---


def test_an_offer_goes_to_the_gate_as_it_was_ordered(gate: Gate) -> None:
    gate.order("offer 9 nan -1e30 2")
    first = gate.wait_for(Offer, lambda offer: offer.values[0] == 9)
    second, third = gate.commands(2)
    for offer in (first, second):
        assert math.isnan(offer.values[1])
        assert offer.values[::2] == (9, -1e30)
    assert abs(third.values[0]) < 1


@pytest.mark.parametrize(
    ("kind", "epoch", "cycle"), [("old", -1, 0), ("passed", 0, -1), ("future", 0, 1), ("twice", 0, 0)]
)
def test_one_false_command_follows_a_true_one(gate: Gate, kind: str, epoch: int, cycle: int) -> None:
    gate.order(f"cycle {kind}")
    commands: list[Offer] = []
    for message in gate.messages():
        if isinstance(message, Started):
            if len(commands) == 2:
                break
            commands.clear()
        if isinstance(message, Offer):
            commands.append(message)
    true, false = commands
    assert (false.epoch, false.cycle) == (true.epoch + epoch, true.cycle + cycle)
    assert (false.values, false.captured_ns) == (true.values, true.captured_ns)
    later = [message for message in itertools.islice(gate.messages(), 4) if isinstance(message, Offer)]
    assert len({command.cycle for command in later}) == len(later)


def test_a_start_can_be_announced_for_a_second_later(gate: Gate) -> None:
    gate.order("start future")
    gate.wait_for(Started, lambda start: start.announced_ns > time.monotonic_ns() + 500 * MS)
    assert gate.wait_for(Started, lambda _: True).announced_ns <= time.monotonic_ns()


def test_a_start_can_be_announced_so_early_that_it_is_due(gate: Gate) -> None:
    def seen() -> tuple[Started, Started] | None:
        gate.order("start early")
        return next((pair for pair in itertools.islice(gate.starts(), 4) if is_early(*pair)), None)

    def is_early(before: Started, start: Started) -> bool:
        return start.announced_ns < before.announced_ns  # as far as cycles are shorter than the deadline

    pair = wait_until(seen)
    assert pair is not None
    before, early = pair
    assert early.cycle == before.cycle + 1
    assert early.announced_ns + DEADLINE_MS * MS <= time.monotonic_ns()


def test_a_start_can_be_announced_late_as_if_it_were_now(gate: Gate) -> None:
    gate.order("start late")
    pairs = list(itertools.islice(gate.starts(), 8))
    # The cycle after it has begun meanwhile and says when, so it seems to have begun before it.
    late, following = next(pair for pair in pairs if pair[1].announced_ns < pair[0].announced_ns)
    before = next(before for before, start in pairs if start == late)
    assert (before.cycle + 1, following.cycle) == (late.cycle, late.cycle + 1)
    assert late.announced_ns - before.announced_ns >= 3 * PERIOD_MS * MS


def test_raw_bytes_go_to_the_gate(gate: Gate) -> None:
    gate.order("send 07c0ffee 3")
    assert [gate.wait_for(bytes, lambda _: True) for _ in range(3)] == [bytes.fromhex("07c0ffee")] * 3


def test_a_flood_comes_whole_however_slowly_it_is_read(gate: Gate) -> None:
    gate.ask("flood 5000")
    drops = 0
    while drops < 5000:
        drops += gate.wait_for(Started, lambda start: start.epoch == 0).epoch == 0
    assert gate.answer()[0] == "done"


# --- the process ---


def test_a_blocked_loop_says_nothing_but_hears_its_orders(gate: Gate) -> None:
    at_ns = gate.order("loop 200")
    heard_ns = gate.order("stale off")
    _, after = gate.pause_after(at_ns, 200)
    assert heard_ns < after.announced_ns


def test_who_keeps_pythons_lock_keeps_everybody_waiting(gate: Gate) -> None:
    at_ns = gate.order("gil 200")
    assert time.monotonic_ns() - at_ns >= 200 * MS
    gate.pause_after(at_ns, 200)


def test_memory_grows_and_is_touched(gate: Gate) -> None:
    before = resident_kib(gate.pid)
    gate.order("grow 64")
    assert resident_kib(gate.pid) - before > 60 * 1024


def test_spinning_ends_when_it_should(gate: Gate) -> None:
    others = tasks(gate.pid)
    gate.order("spin 0.1")
    wait_until(lambda: not tasks(gate.pid) - others)


@pytest.mark.parametrize(
    "order",
    [
        *("", "dance", "compute", "compute x", "compute -1", "compute inf", "wish 1 2 3", "wish 1 2 x 1"),
        *("stale maybe", "offer 1 2 3 x", "cycle new", "start now", "send 0 1", "flood many", "loop", "gil x", "exit"),
        *("grow x", "grow 999999999", "spin inf"),
    ],
)
def test_what_is_no_order_is_said_to_be_none(gate: Gate, order: str) -> None:
    gate.ask(order)
    assert gate.answer() == ["unknown", *order.split()]


def test_nobody_has_to_be_answered(gate: Gate) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
        nobody.sendto(b"send 08 1", str(gate.path))
        gate.wait_for(bytes, lambda message: message == b"\x08")


# --- what it does not survive ---


def test_an_inference_that_never_ends_is_the_last_one_and_an_exit_is_an_exit(doomed: dict[str, Gate]) -> None:
    gate = doomed["exit"]
    gate.begin()
    at_ns = gate.order("compute forever")
    doing = wait_until(lambda: stuck_since(gate, at_ns))
    assert doing is not None
    gate.order("stale off")
    gate.ask("exit 7")
    last = [message.cycle for message in gate.messages() if isinstance(message, Offer)]
    assert doing.cycle not in last
    assert gate.child.process.wait(PATIENCE_S) == 7


def test_an_engine_that_raises_is_told_to_the_gate(doomed: dict[str, Gate]) -> None:
    gate = doomed["raise"]
    gate.begin()
    gate.order("raise")
    assert "the self-test asked for it" in gate.wait_for(Failed, lambda _: True).sentence
    assert gate.child.process.wait(PATIENCE_S) == 1


def test_every_processor_that_it_may_use_gets_a_spinning_thread(doomed: dict[str, Gate]) -> None:
    gate = doomed["segfault"]
    gate.begin()
    others = tasks(gate.pid)
    cores = processors(Path(f"/proc/{gate.pid}"))
    gate.order("spin 100")
    wait_until(lambda: {processors(task) for task in busy(tasks(gate.pid) - others)} == {frozenset({c}) for c in cores})


def test_a_segmentation_fault_is_a_real_one(doomed: dict[str, Gate]) -> None:
    gate = doomed["segfault"]
    gate.ask("segfault")
    assert gate.child.process.wait(PATIENCE_S) == -signal.SIGSEGV


def test_the_board_is_out_of_reach_but_for_who_lets_go_of_it(doomed: dict[str, Gate]) -> None:
    gate = doomed["board"]
    gate.begin()
    gate.ask("board")
    assert gate.child.process.wait(PATIENCE_S) == -signal.SIGSEGV
    assert gate.child.board.read() is not None


def test_a_policy_process_without_sabotage_loads_nothing_of_it() -> None:
    code = "import sys, mvla_daemon.policy; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert "mvla_daemon.policy" in told.stdout
    assert "mvla_daemon.selftest" not in told.stdout


def wait_until(look: Callable[[], Found]) -> Found:
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def stuck_since(gate: Gate, at_ns: int) -> Doing | None:
    doing = gate.child.board.read()
    stuck = doing is not None and doing.stage is Stage.COMPUTE and time.monotonic_ns() - doing.since_ns > 250 * MS
    return doing if doing is not None and stuck and doing.since_ns > at_ns else None


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def tasks(pid: int) -> set[Path]:
    return set(Path(f"/proc/{pid}/task").iterdir())


def busy(threads: set[Path]) -> set[Path]:
    """Those that have run for 50 ms and let go of the processor by themselves but a few times (see proc(5))."""
    return {thread for thread in threads if ran_ns(thread) > 50 * MS and rests(thread) < 50}


def ran_ns(thread: Path) -> int:
    return int((thread / "schedstat").read_text().split()[0])


def rests(thread: Path) -> int:
    status = (thread / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))


def processors(process: Path) -> frozenset[int]:
    return frozenset(os.sched_getaffinity(int(process.name)))
