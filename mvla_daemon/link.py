"""The socket and the board between the gate and the policy process.

The socket is a SEQPACKET pair: messages keep their borders, nobody ever waits, and the end of the other side is seen.
The board is a sealed memfd: the policy process writes down what it is doing, and the gate looks only after a stop, so
that it can blame a stage of a process that is frozen or gone. Nothing on the board decides anything.
"""

from __future__ import annotations

import json
import mmap
import socket
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

from mvla_daemon import sealed_memory
from mvla_daemon.core.admission import Mode, Offer
from mvla_daemon.core.messages import Stage
from mvla_daemon.errors import ExitCode

MAX_MESSAGE_BYTES = 4096
_START = struct.Struct("<BIIq")
_COMMAND = struct.Struct("<BIIqIddd")
_STARVED = struct.Struct("<BIq")
_MODE = struct.Struct("<BIB")
_START_TYPE, _COMMAND_TYPE, _READY_TYPE, _FAILED_TYPE, _MODE_TYPE, _STARVED_TYPE = 1, 2, 3, 4, 5, 6


@dataclass(slots=True)  # one for each cycle: a frozen one takes three times as long to make
class Started:
    """The policy process has begun a cycle."""

    epoch: int
    cycle: int
    announced_ns: int


@dataclass(frozen=True, slots=True)
class Starved:
    """The policy process is alive and has had no frame for T; `captured_ns` is when the newest one was captured."""

    epoch: int
    captured_ns: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The policy is loaded, warmed up and has a first picture; `about` describes it for people."""

    about: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The policy process gives up: before it was ready with the exit code of the whole daemon, later as a stop."""

    exit_code: ExitCode
    sentence: str


FromPolicy: TypeAlias = Started | Offer | Starved | Ready | Failed


_ABOUT = ("name", "weights", "engine", "camera")
"""What a policy process may say of itself, each a text; anything else is left out."""


class MalformedError(Exception):
    """Bytes from the policy process that are no message."""


def pack_start(epoch: int, cycle: int, started_ns: int) -> bytes:
    """A cycle begins."""
    return _START.pack(_START_TYPE, epoch, cycle, started_ns)


def pack_command(offer: Offer) -> bytes:
    """A command for the gate."""
    return _COMMAND.pack(_COMMAND_TYPE, offer.epoch, offer.cycle, offer.captured_ns, offer.picture_crc, *offer.values)


def pack_starved(epoch: int, captured_ns: int) -> bytes:
    """Alive, but without a frame."""
    return _STARVED.pack(_STARVED_TYPE, epoch, captured_ns)


def pack_ready(about: dict[str, Any]) -> bytes:
    """Loaded, warmed up, first picture seen."""
    return bytes([_READY_TYPE]) + json.dumps(about).encode()[: MAX_MESSAGE_BYTES - 1]


def pack_failed(exit_code: ExitCode, sentence: str) -> bytes:
    """Giving up, and why."""
    return bytes([_FAILED_TYPE, exit_code]) + sentence.encode("utf-8", "backslashreplace")[: MAX_MESSAGE_BYTES - 2]


def pack_mode(epoch: int, mode: Mode) -> bytes:
    """The gate tells the policy process what to do."""
    return _MODE.pack(_MODE_TYPE, epoch, mode)


def unpack_mode(data: bytes) -> tuple[int, Mode]:
    """The epoch and mode that the gate asks for."""
    _, epoch, mode = _MODE.unpack(data)
    return epoch, Mode(mode)


def unpack(data: bytes) -> FromPolicy:
    """A message of the policy process; raises MalformedError for anything else."""
    try:
        kind = data[0]
        if kind == _COMMAND_TYPE:
            _, epoch, cycle, captured_ns, crc, vx, vy, wz = _COMMAND.unpack(data)
            return Offer(epoch, cycle, captured_ns, crc, (vx, vy, wz))
        if kind == _START_TYPE:
            return Started(*_START.unpack(data)[1:])
        if kind == _STARVED_TYPE:
            return Starved(*_STARVED.unpack(data)[1:])
        if kind == _READY_TYPE:
            about = json.loads(data[1:])
            if isinstance(about, dict):
                return Ready({key: about[key] for key in _ABOUT if isinstance(about.get(key), str)})
        if kind == _FAILED_TYPE:
            return Failed(ExitCode(data[1]), data[2:].decode("utf-8", "replace"))
    except (struct.error, IndexError, ValueError, RecursionError) as error:
        raise MalformedError(f"{len(data)} bytes of no known message: {error}") from error
    raise MalformedError(f"a message of unknown type {kind}")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The gate's end and the policy process's end, neither of which ever blocks."""
    gate, policy = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    return gate, policy


_BOARD = struct.Struct("<IIQqq")
_FRAME = struct.Struct("<q")
_FRAME_AT = _BOARD.size - _FRAME.size
BOARD_BYTES = _BOARD.size


@dataclass(frozen=True, slots=True)
class Doing:
    """What the policy process last wrote down; `frame_ns` is when the newest frame came."""

    cycle: int
    stage: Stage
    since_ns: int
    frame_ns: int = 0


def create_board() -> int:
    """The descriptor of a new board, on which nothing is written yet."""
    return sealed_memory.create("mvla-board", BOARD_BYTES)


class BoardWriter:
    """The policy process's side; a sequence number that is odd while writing lets the reader notice a torn record."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, BOARD_BYTES)
        self._version = 0

    def write(self, cycle: int, stage: Stage, now_ns: int) -> None:
        """Say which stage of which cycle begins now."""
        self._version = (self._version + 2) & 0xFFFFFFFF
        struct.pack_into("<I", self._map, 0, self._version | 1)
        struct.pack_into("<IQq", self._map, 4, stage, cycle, now_ns)
        struct.pack_into("<I", self._map, 0, self._version)

    def frame_came(self, now_ns: int) -> None:
        """A frame is there for whoever waits for one; the capture thread says so, whatever the others do."""
        _FRAME.pack_into(self._map, _FRAME_AT, now_ns)


class BoardReader:
    """The gate's side: reads a bounded number of times and believes nothing but well-formed values."""

    _TRIES = 3

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, BOARD_BYTES, prot=mmap.PROT_READ)

    def read(self) -> Doing | None:
        """What the policy process was doing, or None where it has written nothing that makes sense."""
        record: Doing | None = None
        for _ in range(self._TRIES):
            version, stage, cycle, since_ns, frame_ns = _BOARD.unpack_from(self._map)
            if version == 0 or stage > max(Stage):
                continue
            record = Doing(cycle, Stage(stage), since_ns, frame_ns)
            # A process that was frozen in the middle of a write leaves an odd version for ever: good enough for blame.
            if version % 2 == 0 and _BOARD.unpack_from(self._map)[0] == version:
                break
        return record

    def close(self) -> None:
        """Let go of the mapping."""
        self._map.close()
