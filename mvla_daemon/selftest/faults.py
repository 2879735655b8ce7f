"""The faults that can be brought about on a user's machine, with the times and limits of its configuration.

The rows' numbers are those of the project's table of faults.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from mvla_daemon.config import Config
from mvla_daemon.core.messages import MS, Reason
from mvla_daemon.gate import LATE_WAKE_NS
from mvla_daemon.selftest.fault import Bounds, Fault, Way

LATE, STALE = frozenset({Reason.DEADLINE_MISSED}), frozenset({Reason.FRAME_STALE})
GONE = LATE | {Reason.POLICY_LOST}
UNHEARD = frozenset({Reason.CONTROLLER_LOST, Reason.CONTROLLER_FAULT})
FAULTY = frozenset({Reason.CONTROLLER_FAULT})
OPERATOR, SHUTDOWN = frozenset({Reason.OPERATOR}), frozenset({Reason.SHUTDOWN})
MANY = 20
LARGE_MIB = 2048
SLOWEST_MPS = 0.2
"""A robot that cannot go faster than this cannot be told from a stuck one: 0.1 m/s off is allowed."""
_OUTRAGEOUS = "1e30"


def faults(config: Config) -> list[Fault]:
    """All rows, in their order."""
    parts = (_of_time, _of_processes, _of_pictures, _of_numbers, _of_the_line, _of_the_controller)
    rows = [row for part in parts for row in part(config)]
    rows += [*_of_messages(), *_of_stopping(config)]
    rows += [Fault(row, what, not_here=f"not injectable here: {why}") for row, what, why in _NOT_HERE]
    return sorted(rows, key=lambda fault: fault.row)


def _punctual(config: Config) -> Bounds:
    """A STOP for a missed deadline."""
    control = config.control
    return Bounds(0.5, 3.0, (control.period_ns + control.deadline_ns) / MS + 3.0)


def _of_time(config: Config) -> Iterator[Fault]:
    allowed_ms, bounds = config.control.deadline_ms, _punctual(config)
    long_ms = 10 * allowed_ms
    for ms in (allowed_ms + 1, 2 * allowed_ms, long_ms):
        way: Way = (f"policy compute {ms:g}",)
        yield Fault("F01", f"one inference takes {ms:g} ms longer", (way,), LATE, tries=MANY, bounds=bounds)
    way = ("policy compute forever",)
    yield Fault("F02", "an inference never returns", (way,), LATE, Reason.POLICY_LOST, tries=MANY, bounds=bounds)
    way = (f"policy loop {long_ms:g}",)
    yield Fault("F03", f"event loop blocked for {long_ms:g} ms", (way,), LATE, tries=MANY, bounds=bounds)
    way = (f"policy gil {long_ms:g}",)
    yield Fault("F04", f"Python's lock kept for {long_ms:g} ms", (way,), LATE, tries=MANY, bounds=bounds)
    way = ("signal policy SIGSTOP", "await stop", "signal policy SIGCONT")
    yield Fault("F05", "policy process frozen until the stop", (way,), LATE, tries=MANY, bounds=bounds)
    way = ("signal policy SIGSTOP",)
    yield Fault("F05", "policy process frozen for good", (way,), LATE, Reason.POLICY_LOST, bounds=bounds)
    way = (f"policy compute {allowed_ms:g}",)
    yield Fault("F39", "the cause is gone at once, the stop stands", (way,), LATE, tries=5, bounds=bounds)


def _of_processes(config: Config) -> Iterator[Fault]:
    bounds, lost = _punctual(config), Reason.POLICY_LOST
    ends = (("signal policy SIGKILL",), ("policy segfault",), ("policy exit 3",))
    yield Fault("F06", "policy process killed, crashed, ended", ends, GONE, lost, tries=MANY, bounds=bounds)
    large = f"killed with {LARGE_MIB / 1024:g} GiB to free"
    room_mib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    why = "" if room_mib > 2 * LARGE_MIB else f"not injectable here: only {room_mib} MiB of memory are free"
    yield Fault("F06", large, (ends[0],), GONE, lost, bounds=bounds, large_mib=LARGE_MIB, not_here=why)
    way: Way = ("signal gate SIGKILL", "await end")
    yield Fault("F07", "gate killed", (way,), must_stop=False, silences=True, exit_code=-9)
    asleep_ms = max(10 * config.control.period_ns, LATE_WAKE_NS) / MS + 100
    way = ("signal gate SIGSTOP", f"pause {asleep_ms:g}", "signal gate SIGCONT")
    reasons = frozenset({Reason.INTERNAL, Reason.CONTROLLER_FAULT})
    yield Fault("F08", f"gate frozen for {asleep_ms:g} ms", (way,), reasons, silences=True)
    way = ("policy spin 1", "pause 1100")
    yield Fault("F41", "policy process spins on its cores", (way,), LATE | STALE, must_stop=False)
    yield Fault("F41", "policy process ruins the board", (("policy board",),), GONE, lost)


def _of_pictures(config: Config) -> Iterator[Fault]:
    way: Way = ("policy stale on", "await stop", "policy stale off")
    yield Fault("F09", "every command from the same old frame", (way,), STALE, tries=MANY, bounds=Bounds(1.0))
    way = ("ground camera gone", "await camera_lost", "ground camera back")
    yield Fault("F10", "camera unplugged", (way,), STALE, Reason.CAMERA_LOST)
    way = ("ground camera silent on", "await camera_lost", "ground camera silent off")
    yield Fault("F11", "camera's read() does not return", (way,), STALE, Reason.CAMERA_LOST)
    way = ("ground camera freeze on", "await stop", "ground camera freeze off")
    why = (
        "" if config.camera.frozen_after_ms else "not injectable here: camera.frozen_after_ms = 0 turns this check off"
    )
    yield Fault("F12", "camera repeats a picture", (way,), frozenset({Reason.FRAME_FROZEN}), not_here=why)
    way = ("ground camera black on", "await stop", "ground camera black off")
    yield Fault("F13", "pictures are black", (way,), STALE)
    lies = (("repeat on", "repeat off"), ("backwards on", "backwards off"), ("skew 50", "skew 0"))
    ways = tuple((f"ground camera {begin}", "await stop", f"ground camera {end}") for begin, end in lies)
    yield Fault("F14", "capture times repeated, backwards, ahead", ways, STALE)


def _of_numbers(config: Config) -> Iterator[Fault]:
    places = ("{} 0 0", "0 {} 0", "0 0 {}")
    ways: tuple[Way, ...] = tuple(
        (f"policy wish {place.format(bad)} 1",) for bad in ("nan", "inf", "-inf") for place in places
    )
    ways += (("policy offer nan 0 0 1",),)
    yield Fault("F15", "NaN or infinity on an axis", ways, frozenset({Reason.NOT_FINITE}), tries=len(ways))
    limits = config.limits.by_axis()
    far = " ".join(f"{9 * limit.maximum:g}" for limit in limits)
    back = " ".join(f"{-9 * limit.maximum:g}" for limit in limits)
    pause = f"pause {config.control.period_ns / MS:g}"
    flips = (f"policy wish {far} 1", pause, f"policy wish {back} 1", pause) * 6
    ways = ((f"policy wish {far} 20", "pause 400"), flips)
    yield Fault("F16", "nine times the limits, sign flips", ways, must_stop=False)
    ways = tuple((f"policy wish {place.format(_OUTRAGEOUS)} 1",) for place in places)
    over = (place.format(f"{1.02 * limit.maximum:g}") for place, limit in zip(places, limits, strict=True))
    ways += tuple((f"policy offer {values} 1",) for values in over)
    x = limits[0]
    if x.maximum > 4 * x.accel * config.control.period_ns / 1e9:
        ways += ((f"policy offer {-x.maximum:g} 0 0 1",),)
    yield Fault(
        "F16", "1e30, or past the limits at the gate", ways, frozenset({Reason.LIMIT_VIOLATED}), tries=len(ways)
    )
    error = Reason.POLICY_ERROR
    yield Fault("F17", "the engine raises", (("policy raise",),), LATE | {error}, error)


def _of_the_line(config: Config) -> Iterator[Fault]:
    lost = Reason.PORT_LOST
    way: Way = ("ground hang_up", "await told", "pause 100", "ground plug_in")
    yield Fault("F19", "serial line unplugged and back", (way,), frozenset({lost}), silences=True)
    way = ("ground camera gone", "ground hang_up", "await told", "ground camera back", "pause 100", "ground plug_in")
    yield Fault("F44", "camera and serial line gone together", (way,), frozenset({lost}), silences=True)
    way = ("ground deaf on", "await told", "ground deaf off")
    yield Fault("F21", "nobody reads the other end", (way,), UNHEARD)
    way = ("ground mute on", "await stop", "pause 200", "ground mute off")
    yield Fault("F23", "no STATUS comes", (way,), frozenset({Reason.CONTROLLER_LOST}), unanswered_ms=200)
    for order, what in (("lose", "a fifth of all chunks lost"), ("corrupt", "a bit turned in a fifth of all chunks")):
        ways = tuple(
            (
                f"ground {order} 0.2 {seed}",
                "pause 200",
                "operator stop",
                "await stop",
                "pause 200",
                f"ground {order} 0 0",
            )
            for seed in range(1, 6)
        )
        yield Fault("F23", what, ways, UNHEARD | OPERATOR)
    ms = config.motor.watchdog_ms + 50
    way = (f"ground delay {ms}", "await stop", "ground delay 0")
    yield Fault("F23", f"each byte {ms} ms late, both ways", (way,), UNHEARD)


def _of_the_controller(config: Config) -> Iterator[Fault]:
    yield Fault("F24", "controller reset in motion", (("ground reset",),), frozenset({Reason.CONTROLLER_RESET}))
    ways: tuple[Way, ...] = tuple(
        (f"ground fault {bit} on", "await stop", "await rest", f"ground fault {bit} off", "ground reset")
        for bit in (0, 1, 2, 3, 4)
    )
    ways += tuple((f"ground state {state}", "await stop", "ground state -") for state in (2, 3, 4, 5))
    ways += (("ground fault 5 on", "await stop", "ground fault 5 off"), ("ground trip",))
    yield Fault("F25", "controller reports fault, trip, state", ways, FAULTY, tries=len(ways))
    x = config.limits.linear_x
    wish = (f"policy wish {x.max:g} 0 0 100000", f"pause {1000 * x.max / x.accel + 200:g}")
    hows = ("runaway", "stuck", "reversed") if x.max > SLOWEST_MPS else ("runaway",)
    ways = tuple(
        (*wish, f"ground measure {how}", "await stop", "ground measure true", "policy wish 0 0 0 0") for how in hows
    )
    yield Fault("F26", "robot moves otherwise than told", ways, FAULTY)


def _of_messages() -> Iterator[Fault]:
    error = Reason.SEQUENCE_ERROR
    ways: tuple[Way, ...] = tuple(
        (f"policy {lie}", "pause 200") for lie in ("cycle old", "cycle passed", "start future")
    )
    yield Fault("F28", "old and passed cycles, a start ahead", ways, must_stop=False)
    yield Fault("F28", "a start told too early or too late", (("policy start early",), ("policy start late",)), LATE)
    orders = ("cycle future", "cycle twice", "send 0102030405 1", "send ffffffff 1", "flood 20000")
    ways = tuple((f"policy {order}",) for order in orders)
    yield Fault("F28", "a future cycle, twice, garbage, a flood", ways, LATE | {error}, error, tries=len(ways))


def _of_stopping(config: Config) -> Iterator[Fault]:
    ways: tuple[Way, ...] = tuple((f"signal gate {name}", "await end") for name in ("SIGTERM", "SIGINT", "SIGHUP"))
    ways += (("signal gate SIGTERM", "pause 20", "signal gate SIGTERM", "await end"),)
    yield Fault("F33", "SIGTERM, SIGINT, SIGHUP, SIGTERM twice", ways, SHUTDOWN, tries=len(ways), exit_code=0)
    way: Way = (f"policy compute {2 * config.control.deadline_ms:g}", "await stop", "operator stop")
    yield Fault("F40", "a second stop during the first one", (way,), LATE, Reason.OPERATOR)
    way = ("operator stop", "await stop", "await rest", "operator arm", "pause 20", "operator stop")
    yield Fault("F40", "a stop while arming", (way,), OPERATOR)
    way = ("ground mute on", "operator stop", "await controller_fault", "ground mute off")
    unanswered_ms = config.safety.stop_timeout_ms
    name = "standstill is never reported"
    yield Fault("F40", name, (way,), OPERATOR, Reason.CONTROLLER_FAULT, unanswered_ms=unanswered_ms)


_TESTED = "the project's own tests do it"
_NOT_HERE = (
    ("F18", "wrong weights, wrong model", f"refused before anything moves; {_TESTED}"),
    ("F20", "port is another device", f"refused before anything moves; {_TESTED}"),
    ("F22", "partial writes, EINTR, EAGAIN", f"needs a kernel that does so on request; {_TESTED}"),
    ("F27", "controller sets no watchdog", f"refused before anything moves; {_TESTED}"),
    ("F29", "two daemons, one port", f"the second never gets to the port; {_TESTED}"),
    ("F30", "suspend and resume", "it would put this machine to sleep"),
    ("F31", "wall clock jumps", "it would set this machine's clock"),
    ("F32", "journal stopped, disk full", "it would stop and fill what others need"),
    ("F34", "crash loop of the policy", f"it ends the daemon; {_TESTED}"),
    ("F35", "wrong configuration", "refused at every start, at this one too"),
    ("F36", "status and arm hammered", _TESTED),
    ("F37", "memory pressure, all cores busy", "run the self-test beside the load that you expect"),
    ("F38", "arm asked for while moving", _TESTED),
    ("F42", "full speed at once after an arming", "judged at each arming of this run instead"),
    ("F43", "low light, old buffers", "it needs the camera itself"),
)
