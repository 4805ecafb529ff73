"""Where a volume's mirrors stand: how far behind, what is left, how fast, what went wrong, when next."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from blockplane.image.blockdiff import block_difference
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError
from blockplane.transfer.mirrors.listing import BROKEN_OFF, WAITING, MirrorDefinition, definitions
from blockplane.transfer.mirrors.peers import Peers
from blockplane.transfer.mirrors.running import due_ns, loop_of
from blockplane.transfer.mirrors.stepping import image_for, is_up_to_date, known_destination
from blockplane.transfer.mirrors.turns import turn_of
from blockplane.transfer.since import n_to_bring
from blockplane.transfer.standing import Standing
from blockplane.volume.destinations import Destination
from blockplane.volume.mirrorcodec import MIRROR, REHEARSING
from blockplane.volume.volume import Volume

#: For a shorter while what has moved says little about what will.
_MEASURED_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """Where one mirror stands, by what its source knows, as of the source's last consistency point.

    state : `never`, `idle`, `under way`, `unknown`: a step did not end, and the next one finds out; `waiting`, `broken
    off`: the destination was found in a rehearsal, or as a volume of its own. newest : the state
    it acknowledged, made_ns when that was made; None, 0: none. under_way : the one that is sent. is_current : it has
    all there is. lag_s, lag_blocks : how old, and how many blocks short of the live file system, newest is; where there
    is none, how long it has been a mirror.
    left_blocks : what has still to travel, snapshots between included, but for what landed of the one that is under
    way. bytes_per_second : of the transfer that goes on, or of the last; eta_s : what is left at that rate; None: there
    was none. next_ns : when the next step is due, ns since 1970; 0: at once. error, hint : of the last attempt; of one
    that goes on, what its peer was not reached by.
    """

    mirror: MirrorDefinition
    state: str
    newest: str | None
    made_ns: int
    under_way: str | None
    is_current: bool
    lag_s: float
    lag_blocks: int
    left_blocks: int
    bytes_per_second: float | None
    eta_s: float | None
    next_ns: int
    error: str
    hint: str = ""

    @property
    def left_bytes(self) -> int:
        """Bytes that have still to travel."""
        return self.left_blocks * BLOCK_BYTES


def status(volume: Volume, *, peers: Peers | None = None, now_ns: int | None = None) -> list[MirrorStatus]:
    """Return where each mirror of a volume stands, in the order in which they were added.

    Parameters
    ----------
    peers : asked what has landed of a transfer that did not end; where they cannot be reached, or none are given, all
    of it counts as left.

    Notes
    -----
    Counts are exact, by algebra: the cost follows what differs, no data is read.
    """
    now = now_ns if now_ns is not None else time.time_ns()
    return [_status(volume, mirror, peers, now) for mirror in definitions(volume.path)]


def _status(volume: Volume, mirror: MirrorDefinition, peers: Peers | None, now_ns: int) -> MirrorStatus:
    found = known_destination(volume, mirror)
    newest = found.acknowledged if found is not None else None
    made_ns = volume.get_snapshot(newest).created_ns if newest is not None else 0
    is_current = is_up_to_date(volume, mirror)
    lag_blocks = 0 if is_current else _behind(volume, newest)
    standing = None
    if found is not None and found.under_way is not None:
        standing = _standing(mirror, peers) if turn_of(volume, mirror.name).moved is None else None
        left = _left(volume, mirror, found, standing)
    else:
        left = 0 if is_current else n_to_bring(volume, newest)
    loop, waits_for = loop_of(volume), turn_of(volume, mirror.name).waits_for
    error, hint = mirror.last.error, mirror.last.hint
    if waits_for is not None:
        error, hint = f"{waits_for.message}; it is tried again", waits_for.hint
    rate = _rate(volume, mirror)
    return MirrorStatus(
        mirror, _state(volume, mirror, found, standing), newest, made_ns,
        found.under_way if found is not None else None, is_current,
        0.0 if is_current else _age_s(made_ns or mirror.added_ns, now_ns), lag_blocks, left, rate,
        left * BLOCK_BYTES / rate if rate else None,
        due_ns(mirror, loop.begun_ns(mirror.name) if loop is not None else None), error, hint,
    )  # fmt: skip


def _age_s(since_ns: int, now_ns: int) -> float:
    return max(now_ns - since_ns, 0) / 1e9 if since_ns else 0.0


def _standing(mirror: MirrorDefinition, peers: Peers | None) -> Standing | None:
    """Ask a destination where it stands; None: it cannot be reached."""
    with suppress(BlockplaneError, OSError):
        if peers is not None:
            with peers.open(mirror.dest) as peer:
                return peer.standing()
    return None


def _state(volume: Volume, mirror: MirrorDefinition, found: Destination | None, standing: Standing | None) -> str:
    record = standing.mirror if standing is not None else None
    if record is not None and record.state != MIRROR:
        return WAITING if record.state == REHEARSING else BROKEN_OFF
    if mirror.last.state and turn_of(volume, mirror.name).moved is None:
        return mirror.last.state
    if found is None or not (found.acknowledged or found.under_way):
        return "never"
    # who brings it there has the volume open for writing, and would answer in this one's place
    return "unknown" if found.status == "under way" and not volume.writable else found.status


def _rate(volume: Volume, mirror: MirrorDefinition) -> float | None:
    """Return bytes a second of what travels, or of what did last; None: nothing ever did."""
    moved, last = turn_of(volume, mirror.name).moved, mirror.last
    if moved is not None and moved.seconds >= _MEASURED_S and moved.done_bytes:
        return moved.done_bytes / moved.seconds
    return last.n_bytes / last.seconds if last.seconds and last.n_bytes else None


def _behind(volume: Volume, newest: str | None) -> int:
    """Return how many blocks the live file system has that a snapshot has not."""
    if newest is None:
        return volume.committed.root.n_blocks
    return len(block_difference(volume, newest, None).added)


def _left(volume: Volume, mirror: MirrorDefinition, found: Destination, standing: Standing | None) -> int:
    """Return how many blocks are left of what is under way, and of what came after it."""
    assert found.under_way is not None
    after = n_to_bring(volume, found.under_way)
    moved = turn_of(volume, mirror.name).moved
    if moved is not None:
        return max(moved.total_bytes - moved.done_bytes, 0) // BLOCK_BYTES + after
    if standing is not None:
        if volume.get_snapshot(found.under_way).record.id in standing.whole:
            return after
        n_landed = sum(r.n_landed for r in standing.interrupted if r.top_name == found.under_way)
        return image_for(volume, found.under_way, standing).n_blocks - n_landed + after
    return n_to_bring(volume, found.acknowledged, found.under_way) + after
