"""A tape drive: its calls, against a double of the `st` driver, and TAPE.md and the ioctls against their numbers."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest

from blockplane.model import TapeError
from blockplane.stream.media import Found, Kind, MediumFullError, codec, mtio
from blockplane.stream.media.drive import TapeDrive
from rig.drive import MTIOCGET, MTIOCPOS, MTIOCTOP, DoubleDrive, Tape

FORMAT = Path(codec.__file__).with_name("TAPE.md").read_text()
BUFFER = memoryview(bytearray(1000))


def test_the_ioctls_are_those_of_mtio_h():
    assert (mtio.MTIOCTOP, mtio.MTIOCGET, mtio.MTIOCPOS) == (MTIOCTOP, MTIOCGET, MTIOCPOS)
    assert mtio.encode_op(mtio.Op.SEEK, 7) == struct.pack("@hi", 22, 7)
    state = mtio.decode_state(struct.pack("@lllllii", 0x72, 0, 512, 0x49000000, 0, 3, 4))
    assert (state.status, state.block_bytes) == (mtio.Status.END_OF_DATA | mtio.Status.ONLINE, 512)


def drive_of(tape: Tape | None, *, writable: bool = True) -> tuple[TapeDrive, DoubleDrive]:
    double = DoubleDrive(tape)
    return TapeDrive("/dev/nst9", writable=writable, calls=double), double


def test_it_begins_in_variable_blocks_at_the_beginning():
    _, double = drive_of(Tape())
    assert double.log == [("open", os.O_RDWR), ("op", (20, 0)), ("op", (6, 1))]


def test_one_write_is_one_record_and_one_copy():
    tape = Tape()
    drive, double = drive_of(tape)
    drive.write([b"head", memoryview(b"body")])
    drive.write_filemark(wait=True)
    drive.write_filemark(wait=False)
    assert tape.objects == [b"headbody", None, None]
    assert [what for what in double.log if what[0] == "write"] == [("write", 8)]
    assert [count for what, count in double.log if what == "op"][-2:] == [(5, 1), (35, 1)]
    assert drive.position == 3


def test_reading_tells_records_marks_the_end_and_what_is_bad_apart():
    drive, _ = drive_of(Tape([b"one", None, b"two", b"x" * 2000, b"three"], bad={2}), writable=False)
    found = [drive.read(BUFFER) for _ in range(7)]
    assert found == [
        Found(Kind.RECORD, 3), Found(Kind.FILEMARK), Found(Kind.BAD), Found(Kind.BAD), Found(Kind.RECORD, 5),
        Found(Kind.END), Found(Kind.END),
    ]  # fmt: skip
    assert (drive.position, drive.read_bytes) == (5, 8)


def test_it_seeks_by_itself():
    drive, double = drive_of(Tape([b"one", None, b"two", None, b"three"]), writable=False)
    drive.seek(2)
    assert drive.read(BUFFER) == Found(Kind.RECORD, 3)
    assert (drive.pass_filemark(), drive.position) == (True, 4)
    assert (drive.pass_filemark(), drive.position) == (False, 5)
    drive.seek_end()
    assert drive.position == 5
    drive.seek(0)
    assert [op for what, op in double.log if what == "op"][-5:] == [(1, 1), (1, 1), (12, 1), (12, 1), (22, 0)]
    with pytest.raises(TapeError, match="failed to seek"):
        drive.seek(99)


def test_the_early_warning_is_no_loss_and_the_end_is_the_end():
    tape = Tape(capacity=1000, warning=300)
    drive, _ = drive_of(tape)
    seen = []

    def fill() -> None:
        while True:
            drive.write([b"x" * 90])
            seen.append(drive.is_near_end)

    with pytest.raises(MediumFullError):
        fill()
    assert seen == [False] * 7 + [True] * 4
    assert tape.objects == [b"x" * 90] * 11
    assert drive.position == 11


@pytest.mark.parametrize(
    ("tape", "writable", "message"),
    [
        (None, False, "there is no tape in /dev/nst9"),
        (Tape(protected=True), True, "the tape in /dev/nst9 is write-protected"),
    ],
)
def test_a_drive_that_cannot_says_why(tape, writable, message):
    with pytest.raises(TapeError, match=message):
        drive_of(tape, writable=writable)


def test_what_is_no_tape_drive_is_refused_by_name():
    with pytest.raises(TapeError, match="/dev/null is no tape drive"):
        TapeDrive("/dev/null")


def test_other_errors_are_named(monkeypatch):
    drive, double = drive_of(Tape([b"one"]))

    def fail(*_: object) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(double, "write", fail)
    with pytest.raises(Exception, match="cannot write /dev/nst9: Operation not permitted"):
        drive.write([b"x"])
    monkeypatch.setattr(double, "read_into", fail)
    with pytest.raises(TapeError, match="cannot read /dev/nst9: Operation not permitted"):
        drive.read(BUFFER)


# --- TAPE.md ---


def rows(title: str) -> list[tuple[int, int, str]]:
    section = FORMAT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [(int(o), int(s), n) for o, s, n in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)]


HEAD = codec.RecordHead(codec.RecordKind.TABLE, b"S" * 16, 2, 3, 4, 5, 6, 7, 8, 9, 10)
LABEL = codec.Label(b"T" * 16, b"P" * 16, 1, 2, 3, 1 << 16, 4, 5, 6, b"I" * 16, "w" * 32, 7, 8, b"G" * 16)
RUN = codec.Run(1, 2, 3, 4, 5, 6)
IMAGE = codec.ImageEntry(
    1, b"a" * 16, b"b" * 16, b"c" * 16, b"d" * 16, b"e" * 16, 2, 3, 4, 5, 6, "top", "base", True, 7, 8, 9
)
SAMPLES = {
    "Record": (HEAD.encode(), {"magic": int.from_bytes(b"BPtr", "little"), "version": 0, "kind": 4, "tape": 2,
        "payload_bytes": 3, "sequence": 4, "offset": 5, "position": 6, "blocks_before": 7, "first_frame": 8, "image": 9,
        "payload_crc": 10}),
    "Label": (LABEL.encode(), {"created_ns": 1, "written_ns": 2, "previous_ns": 3, "record_bytes": 1 << 16, "image": 4,
        "first_sequence": 5, "offset": 6, "part": 7, "n_parts": 8}),
    "Table": (IMAGE.encode(), {"number": 1, "flags": 1, "stream_bytes": 2, "n_blocks": 3, "n_frames": 4,
        "data_offset": 5, "created_ns": 6, "start_tape": 7, "start_records": 8, "start_position": 9}),
    "End": (codec.End(1, 2, 3, 4).encode(), {"tape": 1, "n_records": 2, "position": 3, "n_bytes": 4}),
}  # fmt: skip


@pytest.mark.parametrize("title", SAMPLES)
def test_fields_lie_where_tape_md_says(title):
    raw, expected = SAMPLES[title]
    fields = {name: raw[offset : offset + size] for offset, size, name in rows(title)}
    assert {name: int.from_bytes(fields[name], "little") for name in expected} == expected
    layout = [(offset, size) for offset, size, _ in rows(title)]
    assert [offset for offset, _ in layout] == [sum(s for _, s in layout[:i]) for i in range(len(layout))]
    assert sum(size for _, size in layout) == len(raw)


def test_ids_and_names_lie_where_tape_md_says():
    fields = {name: IMAGE.encode()[offset : offset + size] for offset, size, name in rows("Table")}
    ids = ("stream_id", "image_id", "space_id", "top_id", "base_id")
    assert [fields[name] for name in ids] == [c * 16 for c in (b"a", b"b", b"c", b"d", b"e")]
    assert [fields[name].rstrip(b"\0") for name in ("top", "base")] == [b"top", b"base"]
    label = {name: LABEL.encode()[offset : offset + size] for offset, size, name in rows("Label")}
    assert [label[name] for name in ("tape_id", "previous_id", "stream_id", "group_id")] == [
        c * 16 for c in (b"T", b"P", b"I", b"G")
    ]


def test_contents_runs_and_tables_are_as_tape_md_says():
    contents = codec.Contents((RUN,), (codec.FrameEntry(9, b"headhead"),))
    raw = contents.encode()
    assert raw[:8] == struct.pack("<II", 1, 1)
    assert raw[8:48] == struct.pack("<IIQQQQ", *range(1, 7))
    assert raw[48:] == struct.pack("<QI", 9, 8) + b"headhead"
    assert codec.decode_contents(raw) == contents
    assert [size for _, size, _ in rows("Contents")[-6:]] == [4, 4, 8, 8, 8, 8]
    table = codec.Table((codec.TapeEntry(b"T" * 16, 1, 2),), (IMAGE,), (codec.Run(1, 1, 3, 4, 0, 2),))
    assert codec.decode_table(table.encode()) == table
    assert table.encode()[:48] == struct.pack("<IIQ16sqQ", 1, 1, 1, b"T" * 16, 1, 2)
    assert codec.decode_record_head(HEAD.encode()) == HEAD
    assert codec.decode_label(LABEL.encode()) == LABEL
    assert codec.decode_end(codec.End(1, 2, 3, 4).encode()) == codec.End(1, 2, 3, 4)
