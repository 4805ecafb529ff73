"""The .tap format: what we write, read by a reader of the tests' own; and files of other origin, read or refused."""

from __future__ import annotations

import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockplane.model import BlockplaneError, StreamMissingError, TapeError
from blockplane.model.checks import crc32c
from blockplane.stream.media import Found, Kind, MediumFullError, TapFile, codec
from blockplane.stream.media.codec import NO_FRAME
from rig.simh import FILEMARK, objects, tap


def everything(path, n_room: int = 1 << 20) -> list[bytes | str]:
    """All that a TapFile reads of a file."""
    medium, found, buffer = TapFile(str(path)), [], memoryview(bytearray(n_room))
    while (its := medium.read(buffer)).kind not in (Kind.END, Kind.CUT):
        found.append(bytes(buffer[: its.n_bytes]) if its.kind is Kind.RECORD else its.kind)
    assert medium.position == len(found)
    medium.close()
    return found


#: Each example syncs a file: a quarter of what others get.
FEWER = settings(max_examples=settings().max_examples // 4)

CONTENT = st.lists(st.one_of(st.binary(min_size=1, max_size=300), st.just(FILEMARK)), max_size=150)


@FEWER
@given(content=CONTENT)
def test_what_is_written_is_read_record_for_record_by_both(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("tap") / "a.tap"
    medium = TapFile(str(path), writable=True)
    for part in content:
        if part == FILEMARK:
            medium.write_filemark(wait=False)
        else:
            medium.write([part[:7], part[7:]])
    medium.finish()
    assert medium.position == len(content)
    medium.close()
    assert objects(path) == content
    assert everything(path) == [Kind.FILEMARK if part == FILEMARK else part for part in content]


@FEWER
@given(content=CONTENT, data=st.data())
def test_any_position_is_found_again_and_what_is_written_there_cuts_the_rest_off(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("tap") / "a.tap"
    path.write_bytes(tap(*content, 0xFFFFFFFF))
    medium, buffer = TapFile(str(path), writable=True), memoryview(bytearray(400))
    for position in data.draw(st.lists(st.integers(0, max(len(content) - 1, 0)), max_size=20)) if content else ():
        medium.seek(position)
        its = medium.read(buffer)
        expected = content[position]
        assert (its.kind, medium.position) == (
            Kind.FILEMARK if expected == FILEMARK else Kind.RECORD, position + 1,
        )  # fmt: skip
        assert expected == FILEMARK or bytes(buffer[: its.n_bytes]) == expected
    medium.seek_end()
    assert medium.position == len(content)
    cut = data.draw(st.integers(0, len(content)))
    medium.seek(cut)
    medium.write([b"new"])
    medium.finish()
    medium.close()
    assert objects(path) == [*content[:cut], b"new"]


def test_pieces_are_the_callers_again_when_all_is_settled(tmp_path, rng):
    path, parts = tmp_path / "a.tap", [rng.bytes(300_000 + i) for i in range(40)]
    medium, buffer = TapFile(str(path), writable=True), bytearray(300_100)
    for i, part in enumerate(parts):
        buffer[: len(part)] = part
        medium.write([memoryview(buffer)[: len(part)]])
        medium.settle()
        buffer[:] = bytes(len(buffer))
        assert medium.position == i + 1
    medium.seek(0)
    room = memoryview(bytearray(300_100))
    assert [bytes(room[: medium.read(room).n_bytes]) for _ in parts] == parts  # read before anything was finished
    medium.seek(20)
    for part in parts[:15]:  # more than goes out in one call
        medium.write([part])
    medium.finish()
    medium.close()
    assert objects(path) == [*parts[:20], *parts[:15]]


def test_what_does_not_fit_on_the_disk_is_said_when_it_is_settled(tmp_path, rng):
    path, part = tmp_path / "a.tap", rng.bytes(100_000)
    medium = TapFile(str(path), writable=True)
    medium.write([part])
    medium.settle()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        medium.write([part])
        with pytest.raises(BlockplaneError, match=r"cannot write .*a\.tap: File too large"):
            medium.settle()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    medium.close()
    assert path.stat().st_size == 150_000
    assert everything(path) == [part]


def test_marks_are_passed_by_themselves(tmp_path):
    path = tmp_path / "a.tap"
    path.write_bytes(tap(b"one", FILEMARK, b"two", b"three", FILEMARK, b"four"))
    medium = TapFile(str(path))
    assert [(medium.pass_filemark(), medium.position) for _ in range(3)] == [(True, 2), (True, 5), (False, 6)]


GAP = 0xFFFFFFFE
OTHERS = {
    "no marker at the end": (tap(b"abc"), [b"abc"]),
    "two filemarks and a marker": (tap(b"abc", FILEMARK, FILEMARK, 0xFFFFFFFF), [b"abc", Kind.FILEMARK, Kind.FILEMARK]),
    "what lies behind the marker is not on the tape": (tap(b"abc", 0xFFFFFFFF, b"def"), [b"abc"]),
    "an erase gap": (tap(b"abc", *[GAP] * 40_000, b"def", GAP), [b"abc", b"def"]),
    # written from the middle of a word of a gap on: read from there, 16 bits of the gap stand in front of a whole word
    "half a gap": (tap(b"abc", GAP) + struct.pack("<I", 0xFFFEFFFF)[:2] + tap(GAP, b"def"), [b"abc", b"def"]),
    "a record read in error": (
        struct.pack("<I", 0x80000004) + b"ruin" + struct.pack("<I", 0x80000004) + tap(b"abc"),
        [Kind.BAD, b"abc"],
    ),
    "private records and markers": (
        struct.pack("<I", 0x10000002) + b"me" + struct.pack("<I", 0x10000002) + tap(b"abc", 0xE0000001, b"def"),
        [b"abc", b"def"],
    ),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_origin_are_read(tmp_path, name):
    raw, found = OTHERS[name]
    path = tmp_path / "a.tap"
    path.write_bytes(raw)
    assert everything(path) == found


def test_a_record_longer_than_asked_for_is_passed_as_damaged(tmp_path):
    path = tmp_path / "a.tap"
    path.write_bytes(tap(b"x" * 500, b"abc"))
    assert everything(path, 100) == [Kind.BAD, b"abc"]


REFUSED = {
    "lengths that differ": tap(b"abcd")[:-4] + struct.pack("<I", 5),
    "big-endian lengths": struct.pack(">I", 0x70) + bytes(0x70) + struct.pack(">I", 0x70),
    "odd records that are not padded": struct.pack("<I", 3) + b"abc" + struct.pack("<I", 3) + bytes(9),
    "a reserved word": tap(0xFF000001, b"abc"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_tape_image_is_refused_from_the_byte_on(tmp_path, name):
    path = tmp_path / "a.tap"
    path.write_bytes(tap(b"first") + REFUSED[name])
    medium, buffer = TapFile(str(path)), memoryview(bytearray(100))
    assert medium.read(buffer) == Found(Kind.RECORD, 5)
    with pytest.raises(TapeError, match=f"from byte {len(tap(b'first'))} on"):
        medium.read(buffer)


def test_a_file_that_was_cut_off_anywhere_says_so(tmp_path, rng):
    raw = tap(b"one", FILEMARK, rng.bytes(1000), b"three")
    path = tmp_path / "a.tap"
    n_cut = 0
    borders = {0, 12, 16, 16 + 1008, len(raw)}
    for length in range(len(raw) + 1):
        path.write_bytes(raw[:length])
        medium, buffer = TapFile(str(path)), memoryview(bytearray(2000))
        while (its := medium.read(buffer)).kind not in (Kind.END, Kind.CUT):
            pass
        assert its.kind is (Kind.END if length in borders else Kind.CUT), length
        n_cut += its.kind is Kind.CUT
        medium.close()
    assert n_cut == len(raw) + 1 - len(borders)


def test_a_tape_of_a_size_is_full_when_it_is(tmp_path):
    path = tmp_path / "a.tap"
    medium = TapFile(str(path), writable=True, size_bytes=1000)

    def fill() -> None:
        while True:
            medium.write([b"x" * 92])

    with pytest.raises(MediumFullError):
        fill()
    assert medium.position == 9
    medium.finish()
    medium.close()
    assert objects(path) == [b"x" * 92] * 9
    assert path.stat().st_size <= 1000


def test_a_new_file_that_holds_nothing_is_gone_and_one_that_is_not_there_is_named(tmp_path):
    TapFile(str(tmp_path / "a.tap"), writable=True).close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StreamMissingError, match=r"a\.tap: no such tape"):
        TapFile(str(tmp_path / "a.tap"))
    with pytest.raises(TapeError, match="neither a file nor a tape device"):
        TapFile(str(tmp_path))


def test_two_writers_do_not_share_a_tape(tmp_path):
    first = TapFile(str(tmp_path / "a.tap"), writable=True)
    first.write([b"x"])
    with pytest.raises(TapeError, match="being written by another process"):
        TapFile(str(tmp_path / "a.tap"))
    first.close()


def test_only_what_is_read_counts(tmp_path, rng):
    path = tmp_path / "a.tap"
    path.write_bytes(tap(*[rng.bytes(5000) for _ in range(100)]))
    medium = TapFile(str(path))
    medium.seek(90)
    assert medium.read_bytes == 0
    medium.read(memoryview(np.empty(6000, np.uint8)))
    assert medium.read_bytes == 5000


# --- records together ---


@pytest.mark.parametrize("n_bytes", [500, 70_000])
def test_records_that_are_written_together_lie_as_those_that_are_written_alone(tmp_path, n_bytes, rng):
    payload, size = memoryview(rng.bytes(70 * n_bytes)), 70 * n_bytes + 70 * 88 + 1000
    crcs = [crc32c(payload[at : at + n_bytes]) for at in range(0, len(payload), n_bytes)]
    first = codec.RecordHead(
        codec.RecordKind.DATA, bytes(range(16)), 3, n_bytes, 2**40, 2**41, 1, 0, NO_FRAME, 7, crcs[0]
    )
    each = [
        first._replace(sequence=2**40 + i, offset=2**41 + i * n_bytes, position=1 + i, payload_crc=crc)
        for i, crc in enumerate(crcs)
    ]
    heads = codec.encode_heads(first, crcs)
    assert [row.tobytes() for row in heads] == [head.encode() for head in each]
    alone, together = (TapFile(str(tmp_path / name), writable=True, size_bytes=size) for name in ("a.tap", "b.tap"))
    for medium in (alone, together):
        medium.write([b"label"])
    for number, head in enumerate(each):
        alone.write([head.encode(), payload[number * n_bytes : (number + 1) * n_bytes]])
    assert together.write_records(heads, payload) == 70
    for medium in (alone, together):
        medium.write_filemark(wait=False)
        medium.finish()
    assert (together.position, together.room_bytes) == (alone.position, alone.room_bytes)
    assert (tmp_path / "a.tap").read_bytes() == (tmp_path / "b.tap").read_bytes()
    together.seek(66)
    assert together.read(memoryview(bytearray(80_000))) == Found(Kind.RECORD, 80 + n_bytes)
    together.seek(72)
    assert together.write_records(heads, payload) == 0  # no room
    assert together.room_bytes == alone.room_bytes
    for medium in (alone, together):
        medium.close()


def test_records_of_odd_lengths_are_not_written_together(tmp_path, rng):
    medium = TapFile(str(tmp_path / "a.tap"), writable=True)
    assert medium.write_records(np.zeros((2, 80), np.uint8), memoryview(rng.bytes(2 * 501))) == 0
    assert medium.position == 0
    medium.close()
