"""The pressure policy: when space runs short, regular snapshots become shadows instead of writes failing.

Older first, as the snapshot table has them: on one line of history that is the order of their consistency points. Off
unless somebody sets it (DESIGN.md, law 13). One that would free hardly anything, whatever else goes, stays. It acts
after a consistency point that left less than its limit, and before an operation that lacks room. What it does is a
consistency point of its own, and noted in the table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import UsageError
from blockplane.model.sizes import format_size, parse_size
from blockplane.volume.codec import KIND_REGULAR, TableEntry
from blockplane.volume.demoting import freed_in_order, make_shadow
from blockplane.volume.demotioncodec import (
    LACKED_ROOM,
    SHARE_PARTS,
    UNDER_LIMIT,
    UNIT_BLOCKS,
    UNIT_SHARE,
    Demotion,
    PressureRecord,
)
from blockplane.volume.holds import needs
from blockplane.volume.mirrorstates import is_own
from blockplane.volume.needed import needed_here

if TYPE_CHECKING:
    from blockplane.volume.capacity import Capacity
    from blockplane.volume.live import LiveVolume

#: A snapshot stays that would free fewer blocks. The consistency point that makes one a shadow writes five of its own,
#: and of a snapshot that nothing was written for no more comes free than a dozen metafile blocks. Where it is higher,
#: more snapshots stay when writes fail.
LEAST_YIELD: Final = 16
#: Names that an error spells out.
_MAX_NAMED: Final = 4
_TOO_LITTLE: Final = f"would free less than {LEAST_YIELD} blocks"
#: Of snapshots that a policy keeps: more than a volume can have.
MAX_KEEP: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class PressurePolicy:
    """Which snapshots become shadows when space runs short, and when.

    under : how much there is to be for files: bytes, a size ("10G"), or a share of the volume ("5%").
    keep : how many of the newest stay, of those that only names; what mirrors make for themselves does not count.
    only : patterns of the names that may go.
    """

    under: int | str
    keep: int = 1
    only: tuple[str, ...] = ("*",)

    def record(self) -> PressureRecord:
        """Return it as the local tree has it; UsageError: it says something impossible."""
        if not 1 <= self.keep <= MAX_KEEP:
            raise UsageError(f"keep {self.keep}", f"keep 1 or more: the newest snapshot stays; at most {MAX_KEEP}")
        if not self.only or any(not pattern or "\n" in pattern for pattern in self.only):
            raise UsageError("an empty pattern names no snapshot", "write for example --only 'auto-*'")
        if any(not is_text(pattern) for pattern in self.only):
            raise UsageError("a pattern is not UTF-8, and no snapshot's name is", "write for example --only 'auto-*'")
        unit, limit = _limit(self.under)
        if not limit:
            raise UsageError(f"demote under {self.under}: that is never", "say how much is to be free: 10G, or 5%")
        made = PressureRecord(unit, limit, self.keep, tuple(self.only))
        made.encode()  # what is too long is refused here
        return made

    @classmethod
    def of(cls, record: PressureRecord) -> PressurePolicy:
        """Return what a record says."""
        if record.unit == UNIT_SHARE:
            return cls(f"{record.limit * 100 / SHARE_PARTS:g}%", record.keep, record.only)
        return cls(record.limit * BLOCK_BYTES, record.keep, record.only)

    def __str__(self) -> str:
        """Say it as `snapshot policy` takes it."""
        under = self.under if isinstance(self.under, str) else format_size(self.under)
        only = "" if self.only == ("*",) else f", only {' or '.join(self.only)}"
        return f"snapshots become shadows under {under} free, the newest {self.keep} stay{only}"


def is_text(name: str) -> bool:
    """Whether a name can be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _limit(under: int | str) -> tuple[int, int]:
    """Return the unit and the limit in it."""
    if isinstance(under, str) and under.endswith("%"):
        try:
            parts = round(float(under[:-1]) * SHARE_PARTS / 100)
        except (ValueError, OverflowError):
            parts = -1
        if not 0 <= parts < SHARE_PARTS:
            raise UsageError(f"{under!r} is no share of a volume", "write for example 5% or 12.5%")
        return UNIT_SHARE, parts
    n_bytes = parse_size(under) if isinstance(under, str) else under
    if n_bytes < 0:
        raise UsageError(f"{n_bytes} bytes", "say a size that is not negative")
    return UNIT_BLOCKS, -(-n_bytes // BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class DemotionPlan:
    """What a policy would do now.

    room_blocks : how many blocks files may take once the next two consistency points have passed; wanted_blocks : how
    many there should be. going : (name, blocks that frees) in order; kept : (name, why it stays) of the others.
    """

    room_blocks: int
    wanted_blocks: int
    going: tuple[tuple[str, int], ...]
    kept: tuple[tuple[str, str], ...]

    @property
    def freed_blocks(self) -> int:
        """What all of them free."""
        return sum(n_blocks for _, n_blocks in self.going)

    @property
    def is_enough(self) -> bool:
        """Whether there is as much as there should be then."""
        return self.room_blocks + self.freed_blocks >= self.wanted_blocks


def limit_blocks(volume: Capacity, policy: PressureRecord) -> int:
    """Return how many blocks there should be for files."""
    if policy.unit == UNIT_SHARE:
        return -(-volume.n_blocks * policy.limit // SHARE_PARTS)
    return policy.limit


def set_policy(volume: LiveVolume, policy: PressurePolicy | None) -> None:
    """Set, or with None drop, a volume's policy. Durable on return; it acts from the next consistency point on.

    Raises
    ------
    UsageError: it says something impossible, or wants as much free as there is in all.
    """
    record = policy.record().at(time.time_ns()) if policy is not None else None
    if record is not None and limit_blocks(volume, record) > volume.n_blocks:
        wanted, there = (format_size(n * BLOCK_BYTES) for n in (limit_blocks(volume, record), volume.n_blocks))
        raise UsageError(f"demote under {wanted}: {volume.path} has {there} in all", "say less: 10G, or 5%")
    with volume.changing():
        volume.local.root.pressure = record
        volume.local.is_dirty = True
        volume.commit()


def plan(volume: LiveVolume, policy: PressurePolicy | None = None, wanted_blocks: int = 0) -> DemotionPlan:
    """Return what a policy, by default the volume's, would do now; nothing changes.

    Parameters
    ----------
    wanted_blocks : what an operation needs, where that is more than the limit.
    """
    with volume.lock:
        record = policy.record() if policy is not None else volume.local.root.pressure
        if volume.writable:
            volume.commit()
        going, kept = judge(volume, record) if record is not None else ([], [])
        wanted = max(limit_blocks(volume, record) if record is not None else 0, wanted_blocks)
        freed = freed_in_order(volume, going, LEAST_YIELD)
        known = freed_in_order(volume, going).keys() - freed.keys()
        chosen = _chosen(volume, going, freed, wanted)
        named = [(entry.record.name, n_blocks) for entry, n_blocks in chosen]
        gone = {name for name, _ in named}
        others = [entry.record for entry in going if entry.record.name not in gone]
        for other in others:
            why = "is not needed" if other.id in freed else _TOO_LITTLE if other.id in known else "is damaged"
            kept.append((other.name, why))
        return DemotionPlan(volume.coming_blocks, wanted, tuple(named), tuple(kept))


def _chosen(
    volume: LiveVolume, going: Sequence[TableEntry], freed: dict[bytes, int], wanted: int
) -> list[tuple[TableEntry, int]]:
    """Return those that go, in order, and what each frees: until there is enough, and none at the end for little."""
    missing = wanted - volume.coming_blocks
    chosen: list[tuple[TableEntry, int]] = []
    for entry in going:
        is_enough = missing <= 0 and (not chosen or chosen[-1][1] >= LEAST_YIELD)
        if entry.record.id in freed and not is_enough:
            chosen.append((entry, freed[entry.record.id]))
            missing -= freed[entry.record.id]
    while chosen and chosen[-1][1] < LEAST_YIELD:
        chosen.pop()
    return chosen


def judge(volume: LiveVolume, policy: PressureRecord) -> tuple[list[TableEntry], list[tuple[str, str]]]:
    """Return the snapshots that may become shadows, in the order in which they do; and the others, with why they stay.

    Shadows, and what is being deleted, are neither.
    """
    regular = [entry for entry in volume.local.entries() if entry.record.kind == KIND_REGULAR]
    named = [e for e in regular if any(fnmatchcase(e.record.name, pattern) for pattern in policy.only)]
    newest = {e.record.id for e in [e for e in named if not is_own(e.record.name)][-policy.keep :]}
    matching = {entry.record.id for entry in named}
    needed = needed_here(volume)
    going: list[TableEntry] = []
    kept: list[tuple[str, str]] = []
    for entry in regular:
        key = entry.record.id
        why = next((need for need, _ in needs(volume, entry)), "") or needed.get(key, "")
        if not why and key not in matching:
            why = "is not named by the policy"
        if not why and key in newest:
            why = f"is one of the newest {policy.keep}"
        if not why and volume.known_state(entry) is None:
            why = "is damaged"
        if why:
            kept.append((entry.record.name, why))
        else:
            going.append(entry)
    return going, kept


def relieve(volume: LiveVolume, n_blocks: int = 0) -> list[str]:
    """Let the policy act where less is free than its limit, or than n_blocks; return the names of the new shadows.

    The volume's lock is held, and everything is consistent. Where all that may go would not make n_blocks free, which
    are not there, nothing goes.
    """
    policy = volume.local.root.pressure
    if policy is None or volume.coming_blocks >= max(limit_blocks(volume, policy), n_blocks):
        return []
    volume.commit()
    gone: list[str] = []
    while chosen := _relieving(volume, policy, n_blocks):  # the point takes some metafile blocks itself
        room, wanted = volume.coming_blocks, max(limit_blocks(volume, policy), n_blocks)
        how = Demotion(LACKED_ROOM if room < n_blocks else UNDER_LIMIT, room, wanted)
        for entry, _ in chosen:
            make_shadow(volume, entry, how)
        volume.commit()
        gone += [entry.record.name for entry, _ in chosen]
    return gone


def _relieving(volume: LiveVolume, policy: PressureRecord, n_blocks: int) -> list[tuple[TableEntry, int]]:
    """Return the snapshots that become shadows in the next consistency point, and what each frees."""
    room, wanted = volume.coming_blocks, max(limit_blocks(volume, policy), n_blocks)
    going, _ = judge(volume, policy) if room < wanted else ([], [])
    # what did not help does not while the same is held, by the same
    ids = tuple(tuple(entry.record.id for entry in entries) for entries in (volume.local.regular(), going))
    of_what = room < n_blocks, volume.local.root.held.encode(), ids
    if not going or (volume.futile_relief[0] == of_what and volume.futile_relief[1] <= wanted - room):
        return []
    chosen = _chosen(volume, going, freed_in_order(volume, going, LEAST_YIELD), wanted)
    if not chosen or room + sum(n for _, n in chosen) < n_blocks:
        volume.futile_relief = of_what, wanted - room
        return []
    return chosen


def kept_text(volume: LiveVolume) -> str:
    """Return what a full volume's error says of the policy: which snapshots stay, and why; empty without a policy."""
    policy = volume.local.root.pressure
    if policy is None:
        return ""
    going, kept = judge(volume, policy)
    told = [f"{name} {why}" for name, why in kept[:_MAX_NAMED]]
    told += [f"{len(kept) - _MAX_NAMED} more stay"] if len(kept) > _MAX_NAMED else []
    freed = freed_in_order(volume, going, LEAST_YIELD)
    if freed:
        n_blocks = sum(freed.values())
        told.append(f"the other {len(freed)} would free {n_blocks} blocks together, and all that is asked for is more")
    if len(freed) < len(going):
        told.append(f"{len(going) - len(freed)} more would hardly free any, or cannot be read")
    return f"; no more snapshots become shadows: {', '.join(told) or 'there are none'}"
