"""The orders in which an image's blocks are read and sent.

Disk order, version 1, parameter `window_blocks` W. Of the image's r[d] blocks on disk d the one that has j blocks of
the image before it on that disk (by dbn) has the turn (2j + 1) / 2r[d]. Blocks are taken by turn, equal turns by the
disks' numbers, W of them a window, the last one perhaps shorter; within a window they ascend in VBN. So every disk
advances in proportion to what it still has to give, and all of them finish together.

Tape order, version 1: blocks ascend in VBN, W of them a window.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

import numpy as np

from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.image.extents import merged, n_blocks_in, numbers_in, split
from blockplane.image.layout import Layout, count_within, next_place, present_extents
from blockplane.model.addresses import Extents, Numbers
from blockplane.model.errors import UsageError
from blockplane.planes import Plane

DISK: Final = "disk"
TAPE: Final = "tape"
VERSION: Final = 1
#: 16 MiB: with four of them in flight every one of a dozen disks has a request of more than 1 MiB waiting. Half as much
#: took a quarter more CPU, twice as much left the caches.
WINDOW_BLOCKS: Final = 4096
#: Stripes decoded at a time.
_SPAN_STRIPES: Final = 1 << 16
#: Decoded spans kept a group: disks that advance together share them. More are, while they have few extents: 1.5 MiB.
_SPANS_KEPT: Final = 3
_ROWS_KEPT: Final = 1 << 16
#: So many blocks of a span, or fewer, are decoded one by one: a pass over words and disks takes 4 ms with 250 disks.
_FEW_BLOCKS: Final = 1024


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What one disk reads for a window: dbn and length of each extent, and the buffer block where it goes; (n,)
    int64.
    """

    disk: int
    dbn: Numbers
    n_blocks: Numbers
    positions: Numbers


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image that is read, and sent, together.

    extents : (n, 2) VBNs in the order of the buffer, ascending.
    disks : who reads what.
    """

    extents: Extents
    n_blocks: int
    disks: list[DiskPlan]


def windows(layout: Layout, plane: Plane, geometry: Geometry, order: str, window_blocks: int) -> Iterator[Window]:
    """Yield an image's windows.

    Notes
    -----
    Memory: a few spans of stripes and one window; nothing grows with the image.

    Raises
    ------
    UsageError : no such order.
    """
    if order == DISK:
        return _disk_windows(layout, geometry, window_blocks)
    if order == TAPE:
        return _tape_windows(layout, plane, geometry, window_blocks)
    raise UsageError(f"there is no order {order!r}", "take disk or tape")


def locations(plane: Plane, geometry: Geometry, order: str, window_blocks: int) -> Iterator[Extents]:
    """Yield the VBNs of each window of an image all of whose blocks lie at home, given its plane alone.

    Notes
    -----
    Cost follows the blocks, not the numbering: groups may be of any size.

    Raises
    ------
    UsageError : no such order.
    """
    if order == TAPE:
        return _tape_portions(plane, window_blocks)
    return (
        window.extents for window in windows(Layout(plane, [], plane.n_blocks), plane, geometry, order, window_blocks)
    )


def window_count(n_blocks: int, window_blocks: int) -> int:
    """Return how many windows an image has."""
    return -(-n_blocks // window_blocks)


# --- disk order ------------------------------------------------------------------------------------------------------


def _disk_windows(layout: Layout, geometry: Geometry, window_blocks: int) -> Iterator[Window]:
    counts = layout.blocks_per_disk(geometry)
    spans = [_Spans(layout.places, geometry, index) for index in range(len(geometry.groups))]
    homes = [geometry.home(disk) for disk in range(geometry.n_disks)]
    cursors = [_Cursor(spans[group], position) for group, position in homes]
    total, taken = sum(counts), [0] * len(cursors)
    for start in range(0, total, window_blocks):
        shares = shares_of_first(counts, min(start + window_blocks, total))
        yield _window(layout, [c.take(share - t) for c, share, t in zip(cursors, shares, taken, strict=True)])
        taken = shares


def shares_of_first(counts: Sequence[int], k: int) -> list[int]:
    """Return how many of the first k blocks in disk order lie on each disk, which hold `counts` of the image."""
    total = sum(counts)
    # every block whose turn is at most k / total, then back or on to exactly k, turn by turn
    shares = [(2 * count * k + total) // (2 * total) for count in counts]
    excess = sum(shares) - k
    if excess:
        _adjust(counts, shares, abs(excess), -1 if excess > 0 else 1)
    return shares


def _adjust(counts: Sequence[int], shares: list[int], n_blocks: int, side: Literal[-1, 1]) -> None:
    """Give back the blocks taken last (side -1), or take the next ones (1), turn by turn."""

    def turn(disk: int) -> tuple[Fraction, int]:
        """Twice the turn of the disk's last block taken, or of its first not taken, so that what is due is least."""
        return side * Fraction(2 * shares[disk] + side, counts[disk]), side * disk

    has_more = [bool(share) if side < 0 else share < count for share, count in zip(shares, counts, strict=True)]
    due = [turn(disk) for disk, more in enumerate(has_more) if more]
    heapq.heapify(due)
    for _ in range(n_blocks):
        disk = side * heapq.heappop(due)[1]
        shares[disk] += side
        if shares[disk] if side < 0 else shares[disk] < counts[disk]:
            heapq.heappush(due, turn(disk))


class _Spans:
    """The extents of an image on one group's disks, decoded a span of stripes at a time."""

    def __init__(self, places: Plane, geometry: Geometry, index: int) -> None:
        self._places, self._geometry, self._index = places, geometry, index
        self.group: GroupRecord = geometry.groups[index]
        chunk = self.group.chunk_blocks
        self._striped = chunk <= _SPAN_STRIPES and self.group.n_data > 1
        self.stripes = _SPAN_STRIPES // chunk * chunk if self._striped else _SPAN_STRIPES
        self.n_spans = -(-self.group.disk_blocks // self.stripes)
        #: by span, and position of a disk that has blocks in it
        self._kept: OrderedDict[int, dict[int, Numbers]] = OrderedDict()
        self._n_rows = 0
        #: by position, the spans before the frontier in which the disk has blocks, and its cursor has not come to
        self._due: list[deque[int]] = [deque() for _ in range(self.group.n_data if self._striped else 0)]
        self._frontier = 0

    def read(self, span: int, position: int) -> Numbers:
        """Return (n, 3) dbn, length, place: the extents of a data disk in a span, each within one chunk."""
        if self._striped:
            return self._rows(span)[position]  # as `next_span` said
        return self._column(span, position)

    def next_span(self, span: int, position: int) -> int:
        """Return the first span, from this one on, in which the disk may have blocks: what is empty costs nothing.

        Of striped disks each asks for its spans once, in order; a span is looked into once for all of them.
        """
        group, dbn = self.group, span * self.stripes
        if self._striped:
            due = self._due[position]
            while not due and self._frontier < self.n_spans:
                self._look_ahead()
            return due.popleft() if due else self.n_spans
        chunk = group.chunk_blocks
        row, inside = divmod(dbn, chunk)
        low = group.first + (row * group.n_data + position) * chunk + inside
        place = next_place(self._places, low, group.stop)
        if place is None:
            return self.n_spans
        if place < low + chunk - inside:
            return (dbn + place - low) // self.stripes
        return max(row + 1, (place - group.first) // chunk // group.n_data) * chunk // self.stripes

    def _look_ahead(self) -> None:
        """Note for each disk that has blocks in the next span that it has."""
        group = self.group
        place = next_place(self._places, group.first + self._frontier * self.stripes * group.n_data, group.stop)
        if place is None:
            self._frontier = self.n_spans
            return
        span = (place - group.first) // group.n_data // self.stripes
        for position in self._rows(span):
            self._due[position].append(span)
        self._frontier = span + 1

    def _rows(self, span: int) -> dict[int, Numbers]:
        found = self._kept.get(span)
        if found is not None:
            self._kept.move_to_end(span)
            return found
        low, high = span * self.stripes, min((span + 1) * self.stripes, self.group.disk_blocks)
        start, stop = (self.group.first + dbn * self.group.n_data for dbn in (low, high))
        if count_within(self._places, start, stop) <= _FEW_BLOCKS:
            found = self._few(start, stop)
        else:
            found = {i: rows for i, rows in enumerate(self._decode(start, stop - start)) if len(rows)}
        self._kept[span] = found
        self._n_rows += sum(map(len, found.values()))
        while len(self._kept) > _SPANS_KEPT and self._n_rows > _ROWS_KEPT:
            self._n_rows -= sum(map(len, self._kept.popitem(last=False)[1].values()))
        return found

    def _few(self, start: int, stop: int) -> dict[int, Numbers]:
        """Return the extents of a range of places with few blocks, by position."""
        extents = np.concatenate([np.empty((0, 2), np.int64), *present_extents(self._places, start, stop)])
        pieces, places = self._geometry.split(extents), numbers_in(extents)
        rows = np.column_stack((pieces.dbn, pieces.n_blocks, places[pieces.position]))
        order = np.argsort(pieces.disk, kind="stable")
        disks, borders = np.unique(pieces.disk[order], return_index=True)
        parts = np.split(rows[order], borders[1:])
        return {self._geometry.home(disk)[1]: part for disk, part in zip(disks.tolist(), parts, strict=False)}

    def _column(self, span: int, position: int) -> Numbers:
        """Read a span whose stripes lie in one or a few large chunks: only the disk's own part of it."""
        parts, dbn = [], span * self.stripes
        stop = min(dbn + self.stripes, self.group.disk_blocks)
        chunk = self.group.chunk_blocks
        while dbn < stop:
            end = min(stop, (dbn // chunk + 1) * chunk)
            place = self.group.first + (dbn // chunk * self.group.n_data + position) * chunk + dbn % chunk
            parts.append(self._decode(place, end - dbn)[position])
            dbn = end
        return np.concatenate(parts)

    def _decode(self, place: int, n_blocks: int) -> list[Numbers]:
        if not count_within(self._places, place, place + n_blocks):
            return [_NOTHING] * self.group.n_data
        words = np.ascontiguousarray(self._places.word_range(place // 64, n_blocks // 64))
        disks = self._geometry.window_extents(self._index, place, words, merge=False)
        return [np.column_stack((d.dbn, d.n_blocks, d.place)) for d in disks]


_NOTHING: Final[Numbers] = np.empty((0, 3), np.int64)


class _Cursor:
    """One disk's blocks of an image, ascending."""

    def __init__(self, spans: _Spans, position: int) -> None:
        self._spans, self._position = spans, position
        self._next = 0
        self._extents = _NOTHING

    def take(self, n_blocks: int) -> Numbers:
        """Return the next n_blocks blocks as (n, 3) dbn, length, place; the disk must still have them."""
        parts: list[Numbers] = []
        while n_blocks:
            if not len(self._extents):
                if self._next < self._spans.n_spans:
                    self._next = self._spans.next_span(self._next, self._position)
                if self._next == self._spans.n_spans:
                    raise ValueError("a disk has fewer blocks of the image than were counted")
                self._extents = self._spans.read(self._next, self._position)
                self._next += 1
                continue
            ends = np.cumsum(self._extents[:, 1])
            whole = int(np.searchsorted(ends, n_blocks, side="right"))
            parts.append(self._extents[:whole])
            n_blocks -= int(ends[whole - 1]) if whole else 0
            self._extents = self._extents[whole:]
            if n_blocks and len(self._extents):
                head = self._extents[:1].copy()
                head[0, 1] = n_blocks
                rest = self._extents.copy()
                rest[0] += (n_blocks, -n_blocks, n_blocks)
                parts.append(head)
                self._extents, n_blocks = rest, 0
        return np.concatenate(parts) if parts else _NOTHING


# --- tape order ------------------------------------------------------------------------------------------------------


def _tape_windows(layout: Layout, plane: Plane, geometry: Geometry, window_blocks: int) -> Iterator[Window]:
    for extents in _tape_portions(plane, window_blocks):
        yield tape_window(layout, geometry, extents)


def _tape_portions(plane: Plane, window_blocks: int) -> Iterator[Extents]:
    pending = np.empty((0, 2), np.int64)
    for chunk in present_extents(plane, 0, plane.n_blocks):
        pending = np.concatenate((pending, chunk))
        *full, pending = _portions(pending, window_blocks)
        yield from full
    if len(pending):
        yield pending


def _portions(extents: Extents, most_blocks: int) -> list[Extents]:
    """Cut extents into portions of most_blocks; the last one may be shorter, or empty."""
    portions = split(extents, most_blocks)
    if not portions or n_blocks_in(portions[-1]) == most_blocks:
        portions.append(extents[:0])
    return portions


def tape_window(layout: Layout, geometry: Geometry, extents: Extents) -> Window:
    """Return the window of blocks that ascend in VBN, given by extents."""
    places = layout.to_places(extents)
    pieces = geometry.split(places)
    rows = np.column_stack((pieces.dbn, pieces.n_blocks, np.zeros_like(pieces.dbn)))
    plans = []
    for disk in np.unique(pieces.disk).tolist():
        mine = pieces.disk == disk
        order = np.argsort(rows[mine, 0], kind="stable")
        plans.append(DiskPlan(disk, rows[mine, 0][order], rows[mine, 1][order], pieces.position[mine][order]))
    return Window(extents, n_blocks_in(extents), plans)


# --- windows ---------------------------------------------------------------------------------------------------------


def _window(layout: Layout, pieces: list[Numbers]) -> Window:
    """Lay the pieces of all disks out in ascending VBN."""
    rows = np.concatenate(pieces)
    disk = np.repeat(np.arange(len(pieces), dtype=np.int64), [len(p) for p in pieces])
    vbns, source = layout.to_vbns(np.column_stack((rows[:, 2], rows[:, 2] + rows[:, 1])))
    sizes = vbns[:, 1] - vbns[:, 0]
    dbn = rows[source, 0] + _offsets(source, sizes)
    order = np.argsort(vbns[:, 0], kind="stable")
    positions = np.empty(len(vbns), np.int64)
    positions[order] = np.cumsum(sizes[order]) - sizes[order]
    owner = disk[source]
    borders = np.searchsorted(owner, np.arange(len(pieces) + 1))
    plans = [
        DiskPlan(d, dbn[a:b], sizes[a:b], positions[a:b])
        for d, (a, b) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))
        if a < b
    ]
    return Window(merged(vbns[order]), int(sizes.sum()), plans)


def _offsets(source: Numbers, sizes: Numbers) -> Numbers:
    """Return where in its source extent each piece begins."""
    before = np.cumsum(sizes) - sizes
    first = np.flatnonzero(np.concatenate(([True], source[1:] != source[:-1])))
    return before - np.repeat(before[first], np.diff(np.concatenate((first, [len(source)]))))
