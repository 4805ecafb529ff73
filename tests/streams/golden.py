"""The recipe of the golden streams: a dictionary of blocks, ids and times that are fixed, every form that there is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np

from blockplane.disks import Geometry, GroupRecord
from blockplane.image.extents import numbers_in
from blockplane.image.gather import Gathered
from blockplane.image.order import locations
from blockplane.model.checks import fresh_checks
from blockplane.planes import Plane
from blockplane.stream import Key
from blockplane.stream.codec import PART_FEATURES, FrameKind, Header, Locations
from blockplane.stream.writer import StreamWriter
from blockplane.transfer import send
from blockplane.volume.codec import NO_ID, Branch, SnapshotRecord
from streams.storage import DictSending, DictStorage, plane_of

KEY = Key(bytes(range(32)), "golden.key")
WRITTEN_NS = 1_780_000_000 * 10**9
GROUPS = (GroupRecord(0, 2, 1, 64, 256, (0, 1, 2)), GroupRecord(65_536, 1, 0, 128, 128, (3,)))
OLD = frozenset({0, 1, 64, 200})
NEW = frozenset({0, 64, 130, 131, 300})


def storage() -> tuple[DictStorage, SnapshotRecord, SnapshotRecord]:
    """Two snapshots; 1 and 200 are dropped by the second, which brings 130, 131 and 300."""
    made = DictStorage()
    made.write(sorted(OLD), 1)
    old = made.snapshot("old", OLD, 1)
    made.write(sorted(NEW - OLD), 2)
    return made, old, made.snapshot("new", NEW, 2)


class Ordered(DictSending):
    """Blocks in disk order over two RAID groups."""

    order = "disk"

    def header(self) -> Header:
        return replace(super().header(), order=self.order, groups=GROUPS)

    def windows(self, *, read: bool = True) -> AbstractContextManager[Iterator[Gathered]]:
        return nullcontext(self._windows())

    def _windows(self) -> Iterator[Gathered]:
        yield from self._gathered_of(self.plane)

    def _gathered_of(self, plane: Plane) -> Iterator[Gathered]:
        for extents in locations(plane, Geometry(GROUPS), self.order, self.window_blocks):
            numbers = numbers_in(extents)
            data = np.frombuffer(b"".join(self.storage.blocks[vbn] for vbn in numbers.tolist()), np.uint8)
            yield Gathered(extents, fresh_checks(data, numbers), data)


class OnTape(Ordered):
    order = "tape"


@dataclass
class OfPart(Ordered):
    """Some of the blocks, as one of two parts."""

    chosen_vbns: frozenset[int] = frozenset()
    number: int = 0

    @property
    def chosen(self) -> Plane:
        return plane_of(self.chosen_vbns)

    def header(self) -> Header:
        n_blocks = len(self.chosen_vbns)
        return replace(super().header(), part=self.number, n_parts=2, features=PART_FEATURES, part_blocks=n_blocks)

    def _windows(self) -> Iterator[Gathered]:
        yield from self._gathered_of(self.chosen)


@contextmanager
def fixed() -> Iterator[None]:
    """Nothing random, nothing of today."""
    with (
        mock.patch("time.time_ns", return_value=WRITTEN_NS),
        mock.patch("secrets.token_bytes", side_effect=lambda n: bytes(range(n))),
        mock.patch("secrets.randbits", return_value=0x1122334455667788),
    ):
        yield


def golden_streams() -> dict[str, bytes]:
    """Return the streams by name."""
    made, old, new = storage()
    left_out = replace(old, id=b"gone".ljust(16, b"\0"), name="gone", cp=0)
    history = (Branch(b"b" * 16, NO_ID, 1, 0, 0),)
    full = Ordered(made, old, window_blocks=2)
    step = Ordered(made, new, old, window_blocks=2, left_out=(left_out,), history=history)
    implicit, tape = Locations.IMPLICIT, OnTape(made, new, old, window_blocks=2, locations=Locations.IMPLICIT)
    return {
        "full": stream_of(full),
        "increment": stream_of(step),
        "compressed": stream_of(full, compress="zstd:3"),
        "encrypted": stream_of(step, key=KEY),
        "compressed-encrypted": stream_of(full, compress="zstd:3", key=KEY),
        "implicit": stream_of(replace(full, locations=implicit), compress="zstd:3"),
        "tape": stream_of(tape, compress="zstd:3"),
        "section": with_section(full),
        "part-1": stream_of(OfPart(made, old, window_blocks=2, chosen_vbns=frozenset({0, 200}))),
        "part-2": stream_of(OfPart(made, old, window_blocks=2, chosen_vbns=frozenset({1, 64}), number=1)),
    }


def stream_of(sending: DictSending, **form: object) -> bytes:
    out = io.BytesIO()
    with fixed():
        send(sending, out, **form)
    return out.getvalue()


def with_section(sending: DictSending) -> bytes:
    """A stream of a later release: a section that this one does not know stands behind the planes."""
    write_plane = StreamWriter.write_plane

    def and_section(self: StreamWriter, kind: FrameKind, plane: object) -> None:
        write_plane(self, kind, plane)
        if kind is FrameKind.DROPPED_PLANE:
            self.write_section("of-a-later-release", b"anything")

    with mock.patch.object(StreamWriter, "write_plane", and_section):
        return stream_of(sending, compress="zstd:3")
