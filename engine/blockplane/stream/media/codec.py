"""Byte layout of tapes, version 1; TAPE.md beside this page is its description. The one place that knows the offsets.

All integers are little-endian. Decoding holds every field against its cap before anything is sized by it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

from blockplane.model.addresses import Bytes, Checks
from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError

MAGIC: Final = b"BPtr"
#: 0 is the development format, which no release reads.
VERSION: Final = 0
MIN_RECORD_BYTES: Final = 64 << 10
MAX_RECORD_BYTES: Final = 1 << 20
DEFAULT_RECORD_BYTES: Final = 256 << 10
NO_FRAME: Final = 0xFFFFFFFF
NO_ID: Final = bytes(16)
#: Tapes and images of a set, and runs of records: nothing is sized by a count before.
MAX_TAPES: Final = 1 << 16
MAX_IMAGES: Final = 1 << 16
MAX_RUNS: Final = 1 << 24
#: Sets that are written side by side: a drive each.
MAX_PARTS: Final = 256

_BARE_HEAD = struct.Struct("<4sHH16sIIQQQQIII")
_HEAD = struct.Struct(_BARE_HEAD.format + "I")
HEAD_BYTES: Final = _HEAD.size
_CRC_AT: Final = HEAD_BYTES - 4
_LABEL = struct.Struct("<16s16sqqqIIQQ16s32sII16s104x")
LABEL_BYTES: Final = _LABEL.size
#: Which of its fields is text.
_WRITER: Final = 10
_CONTENTS = struct.Struct("<II")
_RUN = struct.Struct("<IIQQQQ")
RUN_BYTES: Final = _RUN.size
_ENTRY = struct.Struct("<QI")
_TABLE = struct.Struct("<IIQ")
_TAPE = struct.Struct("<16sqQ")
_IMAGE = struct.Struct("<II16s16s16s16s16sQQQQq128s128sIIQ")
IMAGE_BYTES: Final = _IMAGE.size
_END = struct.Struct("<IIQQ")
END_BYTES: Final = _END.size


class RecordKind(IntEnum):
    """What a record holds."""

    LABEL = 1
    DATA = 2
    CONTENTS = 3
    TABLE = 4
    END = 5
    CONTINUES = 6
    START = 7


#: The same as an array has it.
_HEADS: Final = np.dtype(
    [
        ("fixed", "V24"), ("tape", "<u4"), ("payload_bytes", "<u4"), ("sequence", "<u8"), ("offset", "<u8"),
        ("position", "<u8"), ("blocks_before", "<u8"), ("first_frame", "<u4"), ("image", "<u4"),
        ("payload_crc", "<u4"), ("head_crc", "<u4"),
    ]
)  # fmt: skip
assert _HEADS.itemsize == HEAD_BYTES, "an array of heads is heads"


class RecordHead(NamedTuple):
    """What each record begins with, in the order of its bytes behind the version.

    tape, image : numbers in the set, from 1; image 0 in labels. sequence : of all records of the set. position : of
    the record on its tape. offset : in the image's stream, of the first byte of the payload; of contents and tables
    their part's number. blocks_before : blocks of the stream in frames before the first one that begins here.
    first_frame : where in the payload that is, or NO_FRAME.
    """

    kind: RecordKind
    set_id: bytes
    tape: int
    payload_bytes: int
    sequence: int
    offset: int
    position: int
    blocks_before: int
    first_frame: int
    image: int
    payload_crc: int

    def encode(self) -> bytes:
        """Return the bytes."""
        head = _BARE_HEAD.pack(MAGIC, VERSION, *self)
        return head + crc32c(head).to_bytes(4, "little")


def encode_heads(first: RecordHead, crcs: Sequence[int] | Checks) -> Bytes:
    """Return the heads of full data records that follow each other, in which no frame begins: (n, HEAD_BYTES), fresh.

    first : the head of the first one. crcs : of the payload of each.
    """
    raw = bytearray(first.encode() * len(crcs))
    heads = np.frombuffer(raw, _HEADS)
    steps = np.arange(len(crcs), dtype=np.uint64)
    heads["sequence"] += steps
    heads["position"] += steps
    heads["offset"] += steps * np.uint64(first.payload_bytes)
    heads["payload_crc"] = crcs
    heads["head_crc"] = [crc32c(raw[at : at + _CRC_AT]) for at in range(0, len(raw), HEAD_BYTES)]
    return np.frombuffer(raw, np.uint8).reshape(len(crcs), HEAD_BYTES)


def decode_record_head(data: bytes) -> RecordHead:
    """Read a record's head; StreamDamagedError: it is none, or damaged."""
    if len(data) < HEAD_BYTES or data[:4] != MAGIC:
        raise StreamDamagedError(f"it starts with {bytes(data[:4])!r}")
    _, version, kind, set_id, tape, n_payload, sequence, offset, position, before, first, image, crc, own = (
        _HEAD.unpack_from(data)
    )  # fmt: skip
    if own != crc32c(data[:_CRC_AT]):
        raise StreamDamagedError("its head does not match its checksum")
    if version != VERSION or kind not in RecordKind.__members__.values():
        raise StreamDamagedError(f"it is of kind {kind} of format version {version}; this release reads {VERSION}")
    if n_payload > MAX_RECORD_BYTES - HEAD_BYTES or not 1 <= tape <= MAX_TAPES or image > MAX_IMAGES:
        raise StreamDamagedError(f"it claims {n_payload} bytes of image {image} on tape {tape}")
    return RecordHead(
        RecordKind(kind), set_id, tape, n_payload, sequence, offset, position, before, first, image, crc
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Label:
    """What stands at a tape's beginning.

    tape_id : random, of this writing of this tape. previous_id, previous_ns : of the tape before. created_ns : when the
    set was begun. image, offset : what goes on here: where in which image's stream. first_sequence : of the record
    behind the label. part, n_parts, group_id : which part of every image the set has, from 0, and what the sets of the
    others have in common.
    """

    tape_id: bytes
    previous_id: bytes
    created_ns: int
    written_ns: int
    previous_ns: int
    record_bytes: int
    image: int
    first_sequence: int
    offset: int
    stream_id: bytes
    writer: str
    part: int = 0
    n_parts: int = 1
    group_id: bytes = NO_ID

    def encode(self) -> bytes:
        """Return the bytes."""
        return _LABEL.pack(
            self.tape_id, self.previous_id, self.created_ns, self.written_ns, self.previous_ns, self.record_bytes,
            self.image, self.first_sequence, self.offset, self.stream_id, self.writer.encode()[:32], self.part,
            self.n_parts, self.group_id,
        )  # fmt: skip


def decode_label(data: bytes) -> Label:
    """Read a label; StreamDamagedError: it contradicts itself."""
    if len(data) != LABEL_BYTES:
        raise StreamDamagedError(f"it has {len(data)} bytes")
    fields = list(_LABEL.unpack(data))
    fields[_WRITER] = fields[_WRITER].rstrip(b"\0").decode("utf-8", "replace")
    label = Label(*fields)
    if not MIN_RECORD_BYTES <= label.record_bytes <= MAX_RECORD_BYTES or label.image > MAX_IMAGES:
        raise StreamDamagedError(f"it claims records of {label.record_bytes} bytes")
    if not label.part < label.n_parts <= MAX_PARTS:
        raise StreamDamagedError(f"it claims part {label.part} of {label.n_parts}")
    return label


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one image that follow each other on a tape, all as long as records may be but for the last one.

    offset, n_bytes : what of the stream they hold. position, sequence : of the first.
    """

    tape: int
    image: int
    position: int
    sequence: int
    offset: int
    n_bytes: int

    @property
    def stop(self) -> int:
        """Where in the stream the next run begins."""
        return self.offset + self.n_bytes

    def encode(self) -> bytes:
        """Return the bytes."""
        return _RUN.pack(self.tape, self.image, self.position, self.sequence, self.offset, self.n_bytes)


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """A frame of a group: where in the stream its head lies, and the head as it lies there."""

    offset: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What closes a group: where its bytes lie, and the heads of its frames, which say which VBNs they hold."""

    runs: tuple[Run, ...]
    frames: tuple[FrameEntry, ...]

    def encode(self) -> bytes:
        """Return the bytes."""
        entries = b"".join(_ENTRY.pack(f.offset, len(f.head)) + f.head for f in self.frames)
        return _CONTENTS.pack(len(self.runs), len(self.frames)) + b"".join(r.encode() for r in self.runs) + entries


def entry_bytes(n_head: int) -> int:
    """Return how much a frame adds to the contents of its group."""
    return _ENTRY.size + n_head


def contents_bytes(n_runs: int) -> int:
    """Return what contents take beside their frames."""
    return _CONTENTS.size + n_runs * RUN_BYTES


def decode_contents(data: bytes) -> Contents:
    """Read contents; StreamDamagedError: they contradict themselves."""
    try:
        n_runs, n_frames = _CONTENTS.unpack_from(data)
        if n_runs * RUN_BYTES + n_frames * _ENTRY.size > len(data):
            raise StreamDamagedError(f"they claim {n_runs} runs and {n_frames} frames")
        runs = tuple(_runs(data, _CONTENTS.size, n_runs))
        at, frames = _CONTENTS.size + n_runs * RUN_BYTES, []
        for _ in range(n_frames):
            offset, n_head = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            if at + n_head > len(data):
                raise StreamDamagedError("a frame of theirs is cut off")
            frames.append(FrameEntry(offset, bytes(data[at : at + n_head])))
            at += n_head
    except struct.error as error:
        raise StreamDamagedError("they are cut off") from error
    return Contents(runs, tuple(frames))


def _runs(data: bytes, at: int, n_runs: int) -> Iterator[Run]:
    for i in range(n_runs):
        yield Run(*_RUN.unpack_from(data, at + i * RUN_BYTES))


@dataclass(frozen=True, slots=True)
class TapeEntry:
    """A tape of a set: which writing of it, when, and the sequence of the first record behind its label."""

    tape_id: bytes
    written_ns: int
    first_sequence: int


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image of a set.

    top, base : names; empty where the stream is encrypted. data_offset : where its data frames begin. start_tape,
    start_records, start_position : where what stands before them lies once more; no records: nowhere.
    """

    number: int
    stream_id: bytes
    image_id: bytes
    space_id: bytes
    top_id: bytes
    base_id: bytes
    stream_bytes: int
    n_blocks: int
    n_frames: int
    data_offset: int
    created_ns: int
    top: str = ""
    base: str = ""
    is_sealed: bool = False
    start_tape: int = 0
    start_records: int = 0
    start_position: int = 0

    def encode(self) -> bytes:
        """Return the bytes."""
        return _IMAGE.pack(
            self.number, int(self.is_sealed), self.stream_id, self.image_id, self.space_id, self.top_id, self.base_id,
            self.stream_bytes, self.n_blocks, self.n_frames, self.data_offset, self.created_ns, self.top.encode(),
            self.base.encode(), self.start_tape, self.start_records, self.start_position,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """What of a set lies where: its tapes, the images that are whole, their runs in the order of their streams."""

    tapes: tuple[TapeEntry, ...] = ()
    images: tuple[ImageEntry, ...] = ()
    runs: tuple[Run, ...] = field(default=(), repr=False)

    def encode(self) -> bytes:
        """Return the bytes."""
        return b"".join(
            [
                _TABLE.pack(len(self.tapes), len(self.images), len(self.runs)),
                *(_TAPE.pack(t.tape_id, t.written_ns, t.first_sequence) for t in self.tapes),
                *(image.encode() for image in self.images),
                *(run.encode() for run in self.runs),
            ]
        )

    def runs_of(self, image: int) -> list[Run]:
        """Return the runs of an image."""
        return [run for run in self.runs if run.image == image]


def table_bytes(table: Table, n_runs: int) -> int:
    """Return how long a table will be with so many runs, and one more image and tape."""
    return (
        _TABLE.size + (len(table.tapes) + 1) * _TAPE.size + (len(table.images) + 1) * IMAGE_BYTES + n_runs * RUN_BYTES
    )


def decode_table(data: bytes) -> Table:
    """Read a table; StreamDamagedError: it contradicts itself."""
    try:
        n_tapes, n_images, n_runs = _TABLE.unpack_from(data)
        sizes = n_tapes * _TAPE.size, n_images * IMAGE_BYTES, n_runs * RUN_BYTES
        if len(data) != _TABLE.size + sum(sizes):
            raise StreamDamagedError(f"it claims {n_tapes} tapes, {n_images} images, {n_runs} runs")
        at = _TABLE.size
        tapes = tuple(TapeEntry(*_TAPE.unpack_from(data, at + i * _TAPE.size)) for i in range(n_tapes))
        at += sizes[0]
        images = tuple(_image(_IMAGE.unpack_from(data, at + i * IMAGE_BYTES)) for i in range(n_images))
        runs = tuple(_runs(data, at + sizes[1], n_runs))
    except struct.error as error:
        raise StreamDamagedError("it is cut off") from error
    _require_sane(tapes, images, runs)
    return Table(tapes, images, runs)


def _image(fields: Sequence[object]) -> ImageEntry:
    number, flags, *rest, top, base, tape, n_records, position = fields
    names = [bytes(name).rstrip(b"\0").decode("utf-8", "replace") for name in (top, base)]  # type: ignore[call-overload]
    values = [number, *rest, *names, bool(flags), tape, n_records, position]
    return ImageEntry(*values)


def _require_sane(tapes: Sequence[TapeEntry], images: Sequence[ImageEntry], runs: Sequence[Run]) -> None:
    """Hold runs against each other: those of an image follow each other from 0 to the end of its stream."""
    ends = {image.number: 0 for image in images}
    for run in runs:
        if ends.get(run.image) != run.offset or not 1 <= run.tape <= len(tapes) or not run.n_bytes:
            raise StreamDamagedError(
                f"its run at byte {run.offset} of image {run.image} does not follow the one before"
            )
        ends[run.image] = run.stop
    if any(ends[image.number] != image.stream_bytes for image in images) or len(ends) != len(images):
        raise StreamDamagedError("its runs do not hold its images")


@dataclass(frozen=True, slots=True)
class End:
    """What says where the table lies. tape, position : of its first record; n_records, n_bytes : of it."""

    tape: int
    n_records: int
    position: int
    n_bytes: int

    def encode(self) -> bytes:
        """Return the bytes."""
        return _END.pack(self.tape, self.n_records, self.position, self.n_bytes)


def decode_end(data: bytes) -> End:
    """Read an end record's payload; StreamDamagedError: it is of another length."""
    if len(data) != END_BYTES:
        raise StreamDamagedError(f"it has {len(data)} bytes")
    return End(*_END.unpack(data))
