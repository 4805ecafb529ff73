"""A storage that is not a volume: a dict of blocks. Streams go out of it and into it through the protocols alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from blockplane.image.extents import numbers_in, split
from blockplane.image.gather import Gathered
from blockplane.model import RefusedError, StreamMismatchError
from blockplane.model.checks import fresh_checks
from blockplane.planes import Plane
from blockplane.stream.codec import Header, Locations, Role
from blockplane.stream.reader import StreamMap
from blockplane.volume.codec import NO_ID, Branch, Pointer, SnapshotRecord

SPACE_BLOCKS = 1 << 16
SPACE_ID = b"space".ljust(16, b"\0")


def block(vbn: int, version: int) -> bytes:
    """Content that says which block of which age it is."""
    return (f"{vbn}:{version}:".encode() * 1366)[:4096]


@dataclass
class DictStorage:
    """Blocks by VBN, and snapshots as sets of VBNs."""

    name: str = "dict"
    blocks: dict[int, bytes] = field(default_factory=dict)
    snapshots: dict[bytes, tuple[SnapshotRecord, frozenset[int]]] = field(default_factory=dict)

    def write(self, vbns: Sequence[int], version: int) -> None:
        for vbn in vbns:
            self.blocks[vbn] = block(vbn, version)

    def snapshot(self, name: str, vbns: frozenset[int], cp: int) -> SnapshotRecord:
        root = min(vbns)
        check = int(fresh_checks(np.frombuffer(self.blocks[root], np.uint8), root)[0])
        identity = name.encode().ljust(16, b"\0")
        record = SnapshotRecord(
            identity, SPACE_ID, NO_ID, NO_ID, cp, 1_000_000 * cp, Pointer(root, check), len(vbns), name
        )
        self.snapshots[identity] = (record, vbns)
        return record

    # what `receive` asks

    def has_top(self, stream: StreamMap) -> bool:
        return stream.top.id in self.snapshots

    def accept(self, stream: StreamMap, *, discard: bool) -> None:
        if stream.base is not None and stream.base.id not in self.snapshots:
            raise StreamMismatchError(f"no {stream.base.name} here")
        if stream.base is None and self.blocks and not discard:
            raise RefusedError("content")

    @contextmanager
    def landing(self, stream: StreamMap) -> Iterator[DictLanding]:
        yield DictLanding(self, stream)


class DictLanding:
    """Blocks wait in buffers of their own until the commit."""

    def __init__(self, storage: DictStorage, stream: StreamMap) -> None:
        self.storage, self.stream = storage, stream
        self.waiting: list[list[tuple[int, np.ndarray]]] = []
        self.done: list[tuple[int, np.ndarray]] = []
        self.aborted = False
        self.here = Plane.empty(stream.header.space_blocks)

    def buffers(self, extents: np.ndarray, checks: np.ndarray) -> list[np.ndarray]:
        # in pieces of odd sizes, so that a reader cannot count on one buffer per extent
        handed = [
            (vbn, np.zeros(min(3, stop - vbn) * 4096, np.uint8))
            for start, stop in extents.tolist()
            for vbn in range(start, stop, 3)
        ]
        self.waiting.append(handed)
        return [buffer for _, buffer in handed]

    def landed(self) -> None:
        self.done += self.waiting.pop(0)

    def commit(self, arriving: Sequence[SnapshotRecord]) -> None:
        for vbn, buffer in self.done:
            for i, row in enumerate(buffer.reshape(-1, 4096)):
                self.storage.blocks[vbn + i] = row.tobytes()
        base = self.stream.base
        held = set(self.storage.snapshots[base.id][1]) if base is not None else set()
        now = frozenset(held - set(members(self.stream.dropped)) | set(members(self.stream.image)))
        for record in arriving:
            self.storage.snapshots[record.id] = (record, now)

    def suspend(self) -> int:
        self.abort()
        return 0

    def abandon(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.aborted = True


def members(plane: Plane) -> list[int]:
    return numbers_in(plane.extents()).tolist()


@dataclass
class DictSending:
    """An image of a DictStorage: top minus base."""

    storage: DictStorage
    top: SnapshotRecord
    base: SnapshotRecord | None = None
    window_blocks: int = 300
    stream_id: bytes = b"stream-of-a-test"
    left_out: tuple[SnapshotRecord, ...] = ()
    history: tuple[Branch, ...] = ()
    locations: Locations = Locations.EXPLICIT

    def _sets(self) -> tuple[frozenset[int], frozenset[int]]:
        base = self.storage.snapshots[self.base.id][1] if self.base is not None else frozenset()
        return self.storage.snapshots[self.top.id][1], base

    @property
    def plane(self) -> Plane:
        top, base = self._sets()
        return plane_of(top - base)

    @property
    def dropped(self) -> Plane:
        top, base = self._sets()
        return plane_of(base - top)

    def header(self) -> Header:
        base_id = self.base.id if self.base is not None else NO_ID
        return Header(
            "tests", self.stream_id, b"image".ljust(16, b"\0"), SPACE_ID, self.top.id, SPACE_BLOCKS, 0, self.top.root,
            base_id, order="tape", window_blocks=self.window_blocks, locations=self.locations,
        )  # fmt: skip

    def snapshots(self) -> list[tuple[SnapshotRecord, Role]]:
        base = [(self.base, Role.BASE)] if self.base is not None else []
        return [(self.top, Role.TOP), *base, *((record, Role.LEFT_OUT) for record in self.left_out)]

    def branches(self) -> tuple[Branch, ...]:
        return self.history

    def windows(self, *, read: bool = True) -> AbstractContextManager[Iterator[Gathered]]:
        return nullcontext(self._gathered())

    def _gathered(self) -> Iterator[Gathered]:
        for extents in split(self.plane.extents(), self.window_blocks):
            numbers = numbers_in(extents)
            data = np.frombuffer(b"".join(self.storage.blocks[vbn] for vbn in numbers.tolist()), np.uint8)
            yield Gathered(extents, fresh_checks(data, numbers), data)


def plane_of(vbns: frozenset[int]) -> Plane:
    plane = Plane.empty(SPACE_BLOCKS)
    plane.add_many(np.array(sorted(vbns), np.int64))
    return plane


def pair() -> tuple[DictStorage, SnapshotRecord, SnapshotRecord]:
    """A storage with two snapshots, `old` and `new`; blocks 0 to 14, the image about 64 KiB."""
    storage = DictStorage()
    storage.write(range(10), 1)
    old = storage.snapshot("old", frozenset(range(10)), 1)
    storage.write(range(20, 25), 2)
    new = storage.snapshot("new", frozenset(range(5)) | frozenset(range(20, 25)), 2)
    return storage, old, new


def renamed(record: SnapshotRecord, name: str) -> SnapshotRecord:
    return replace(record, name=name)
