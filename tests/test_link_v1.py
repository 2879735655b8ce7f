"""Motor link v1's bytes: the package's codec against the contract's vectors and an independent decoder."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.motors.link_v1 import (
    Arm,
    Decoder,
    Drive,
    Hello,
    Identity,
    KeepAlive,
    Packet,
    Status,
    Stop,
    encode,
    newer,
)
from tests import wire

VECTORS = json.loads((Path(__file__).parent / "data" / "motor_link_v1_vectors.json").read_text())
BODIES: dict[str, type[Any]] = {
    "HELLO": Hello,
    "ARM": Arm,
    "VELOCITY": Drive,
    "STOP": Stop,
    "KEEPALIVE": KeepAlive,
    "IDENTITY": Identity,
    "STATUS": Status,
}
DAMAGE = {
    "one bit of the body flipped": "crc",
    "truncated": "cobs",
    "unknown version, CRC right": "version",
    "unknown type, CRC right": "type",
    "one byte too long, CRC right": "length",
    "one byte too short, CRC right": "length",
    "COBS block past the end": "cobs",
    "over 64 bytes": "too_long",
}
GOOD = Packet(0x1234, 77, KeepAlive())

U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
I32 = st.integers(-(2**31), 2**31 - 1)
STRATEGY_OF: dict[int, st.SearchStrategy[Any]] = {
    1: U8,
    2: U16,
    4: U32,
    -4: I32,
    16: st.binary(min_size=16, max_size=16),
}


def values_of(vector: dict[str, Any]) -> list[int | bytes]:
    return [value.encode().ljust(16, b"\0") if isinstance(value, str) else value for value in vector["body"]]


@st.composite
def kind_and_values(draw: st.DrawFn) -> tuple[str, int, int, list[int | bytes]]:
    kind = draw(st.sampled_from(sorted(wire.LAYOUT)))
    values = [draw(STRATEGY_OF[width]) for _, width in wire.LAYOUT[kind][1]]
    return kind, draw(U16), draw(U32), values


def wire_encode(kind: str, session: int, seq: int, values: list[int | bytes]) -> bytes:
    names = [name for name, _ in wire.LAYOUT[kind][1]]
    return wire.encode(kind, session, seq, **dict(zip(names, values, strict=True)))


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: f"{v['frame']}-{v['seq']}")
def test_a_valid_vector_reads_and_writes_the_same_on_both_sides(vector: dict[str, Any]) -> None:
    data, values = bytes.fromhex(vector["hex"]), values_of(vector)
    packet = Packet(vector["session"], vector["seq"], BODIES[vector["frame"]](*values))

    assert encode(packet) == data
    assert Decoder().feed(data) == [packet]
    assert wire_encode(vector["frame"], vector["session"], vector["seq"], values) == data
    (frame,) = wire.decode_stream(data)
    assert (frame.kind, frame.session, frame.seq) == (vector["frame"], vector["session"], vector["seq"])
    assert list(frame.fields.values()) == values


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda v: v["why"])
def test_an_invalid_vector_is_dropped_and_its_damage_named(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    decoder, reader = Decoder(), wire.WireReader()

    assert decoder.feed(data) == []
    assert {kind: count for kind, count in decoder.counts.items() if count} == {DAMAGE[vector["why"]]: 1}
    assert reader.feed(data) == []
    assert len(reader.undecodable) == 1


def test_every_type_of_the_contract_has_a_vector() -> None:
    assert {vector["frame"] for vector in VECTORS["valid"]} == set(BODIES) == set(wire.LAYOUT)


@given(kind_and_values())
def test_what_one_side_writes_the_other_reads(drawn: tuple[str, int, int, list[int | bytes]]) -> None:
    kind, session, seq, values = drawn
    packet = Packet(session, seq, BODIES[kind](*values))
    data = encode(packet)

    assert data == wire_encode(kind, session, seq, values)
    assert len(data) <= 65
    assert data.index(0) == len(data) - 1
    assert Decoder().feed(data) == [packet]
    (frame,) = wire.decode_stream(b"\0" + data)
    assert list(frame.fields.values()) == values
    assert (frame.offset_start, frame.offset_end) == (1, 1 + len(data))


def only_good_one_survives(damaged: bytes) -> None:
    decoder, reader = Decoder(), wire.WireReader()
    stream = damaged + b"\0" + encode(GOOD)

    assert decoder.feed(stream) == [GOOD]
    assert [frame.seq for frame in reader.feed(stream)] == [GOOD.seq]
    assert sum(decoder.counts.values()) == len(reader.undecodable) >= 1


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: f"{v['frame']}-{v['seq']}")
def test_no_flipped_bit_makes_a_packet(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    for bit in range(8 * (len(data) - 1)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        only_good_one_survives(bytes(damaged))


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: f"{v['frame']}-{v['seq']}")
def test_a_flipped_closing_zero_loses_that_frame_alone(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    for bit in range(8):
        only_good_one_survives(data[:-1] + bytes([1 << bit]))


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: f"{v['frame']}-{v['seq']}")
def test_no_truncation_makes_a_packet(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    for kept in range(1, len(data) - 1):
        only_good_one_survives(data[:kept])
        only_good_one_survives(data[-1 - kept : -1])


@given(
    st.lists(kind_and_values(), min_size=1, max_size=4),
    st.binary(max_size=100),
    st.lists(st.integers(1, 40), max_size=30),
)
def test_where_reads_split_does_not_matter(
    drawn: list[tuple[str, int, int, list[int | bytes]]], garbage: bytes, sizes: list[int]
) -> None:
    packets = [Packet(session, seq, BODIES[kind](*values)) for kind, session, seq, values in drawn]
    stream = garbage + b"\0" + b"".join(encode(packet) for packet in packets)
    whole, pieces, single = Decoder(), Decoder(), Decoder()
    split = []
    at = 0
    for size in [*sizes, len(stream)]:
        split += pieces.feed(stream[at : at + size])
        at += size

    assert whole.feed(stream) == split == [p for i in range(len(stream)) for p in single.feed(stream[i : i + 1])]
    assert split[-len(packets) :] == packets
    assert whole.counts == pieces.counts == single.counts


@given(st.binary(max_size=300))
def test_both_decoders_make_the_same_of_garbage(garbage: bytes) -> None:
    decoder, reader = Decoder(), wire.WireReader()

    packets, frames = decoder.feed(garbage), reader.feed(garbage)

    assert [(p.session, p.seq) for p in packets] == [(f.session, f.seq) for f in frames]
    assert sum(decoder.counts.values()) == len(reader.undecodable)


@given(st.binary(max_size=60))
def test_both_decoders_judge_a_payload_with_a_right_crc_alike(payload: bytes) -> None:
    data = wire.seal(payload)
    decoder, reader = Decoder(), wire.WireReader()

    assert len(decoder.feed(data)) == len(reader.feed(data))
    assert decoder.counts["crc"] == 0


@pytest.mark.parametrize(("length", "expected"), [(64, {"too_long": 0, "cobs": 1}), (65, {"too_long": 1, "cobs": 0})])
@pytest.mark.parametrize("step", [1, 64, 1000])
def test_the_longest_run_has_64_bytes(length: int, expected: dict[str, int], step: int) -> None:
    decoder = Decoder()
    stream = b"A" * length + b"\0" + encode(GOOD)

    packets = [p for at in range(0, len(stream), step) for p in decoder.feed(stream[at : at + step])]

    assert packets == [GOOD]
    assert {kind: decoder.counts[kind] for kind in expected} == expected


def test_a_run_without_end_is_one_damage_and_holds_no_memory() -> None:
    decoder = Decoder()
    for _ in range(1000):
        assert decoder.feed(b"B" * 1000) == []
    assert decoder.feed(b"\0" + encode(GOOD)) == [GOOD]
    assert sum(decoder.counts.values()) == decoder.counts["too_long"] == 1


def test_empty_frames_are_dropped_silently() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\0\0\0" + encode(GOOD) + b"\0\0") == [GOOD]
    assert set(decoder.counts.values()) == {0}


def test_a_value_that_its_field_cannot_hold_is_refused() -> None:
    for packet in (
        Packet(0x10000, 1, KeepAlive()),
        Packet(0, 2**32, KeepAlive()),
        Packet(0, -1, KeepAlive()),
        Packet(1, 1, Arm(0x10000)),
        Packet(1, 1, Drive(0, 60, 2**31, 0, 0)),
        Packet(1, 1, Stop(256, 1)),
    ):
        with pytest.raises(struct.error):
            encode(packet)


def test_a_name_is_shown_even_when_it_is_no_text() -> None:
    assert Identity(0, "größe".encode().ljust(16, b"\0"), 1, 0, 20, 1000, 2000, 8000).text == "größe"
    assert Identity(0, b"a\xffb".ljust(16, b"\0"), 1, 0, 20, 1000, 2000, 8000).text == "a\\xffb"


@given(U32, U32)
def test_newer_is_rfc_1982s(seq: int, than: int) -> None:
    # Section 3.2, "i1 is said to be less than i2", with SERIAL_BITS 32 and here i1 = than, i2 = seq.
    rfc = (than < seq and seq - than < 2**31) or (than > seq and than - seq > 2**31)
    assert newer(seq, than) == rfc


@pytest.mark.parametrize(
    ("seq", "than", "expected"),
    [
        (1, 0, True),
        (0, 1, False),
        (5, 5, False),
        (0, 0xFFFFFFFF, True),
        (0xFFFFFFFF, 0, False),
        (0x7FFFFFFF, 0, True),
        (0x80000000, 0, False),  # half the circle apart: the RFC leaves it open, here neither is newer
        (0, 0x80000000, False),
        (0x80000001, 0, False),
        (0, 0x80000001, True),
    ],
)
def test_newer_at_its_edges(seq: int, than: int, expected: bool) -> None:
    assert newer(seq, than) is expected
