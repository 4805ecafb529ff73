"""Where destinations stand: which snapshot each said it has, and which is on its way to it (DESIGN.md, law 10).

The patent's two planes take turns per destination: marks go to one while the other is sent; on success they swap, on
failure they are summed back. With one interval between any two positions, which all destinations share, that is a
table: a destination *stands at* the snapshot it acknowledged, and *goes to* the one that is sent. Both are positions,
unless the volume was too full for marks, and both are held for it. On success the old position is let go; on failure
the new one, whose interval is summed into the one before; as long as nobody knows, both stay. What else is held in its
name, as what its first image builds on, is let go on success too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from blockplane.model.errors import NoSpaceError, RefusedError, UsageError
from blockplane.volume.codec import NO_ID, Hold, TableEntry
from blockplane.volume.holds import refuse_deleting
from blockplane.volume.markcodec import (
    DESTINATION_NAME_BYTES,
    FLAG_ASKED,
    STATUS_IDLE,
    STATUS_NAMES,
    STATUS_UNDER_WAY,
    STATUS_UNKNOWN,
    DestinationRecord,
)
from blockplane.volume.positions import add_position, refuse_more

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]*")
#: The owner of a destination's holds.
OWNER: Final = "mirror:{}"
#: 192 bytes each.
MAX_DESTINATIONS: Final = 1024


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a destination stands.

    acknowledged : the snapshot it said it has. under_way : the one that is being sent, or was when nobody knew more.
    status : `idle`, `under way`, `unknown`. acknowledged_ns, begun_ns : when, ns since 1970.
    """

    name: str
    acknowledged: str | None
    under_way: str | None
    status: str
    acknowledged_ns: int
    begun_ns: int


class Destinations:
    """The table of a volume; every call that changes it is one CP, durable on return."""

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume

    def list(self) -> list[Destination]:
        """Return all, in the order they were first named."""
        with self._volume.lock:
            return [self._shown(record) for record in self._volume.local.destinations()]

    def get(self, name: str) -> Destination:
        """Return one; RefusedError: there is none of that name."""
        with self._volume.lock:
            return self._shown(self._record(name))

    def begin(self, name: str, top: str, needs_marks: bool = True) -> Destination:
        """Note that a snapshot is about to be sent: it becomes a position, and is held; a name may be new.

        Parameters
        ----------
        needs_marks : where the volume is too full for them, it is refused; else it is held, and no position.

        Raises
        ------
        NoSuchSnapshotError: the top does not exist. RefusedError: it is a shadow, or being deleted, or another one is
        under way or unknown. NoSpaceError: there is no room for marks.
        """
        volume = self._volume
        if not _NAME.fullmatch(name) or len(name.encode()) > DESTINATION_NAME_BYTES:
            raise UsageError(f"{name!r} cannot name a destination", "take letters, digits and _ . : / @ -")
        with volume.lock:
            entry = volume.local.entry(top)
            known = {record.name: record for record in volume.local.destinations()}
            if name not in known and len(known) >= MAX_DESTINATIONS:
                raise UsageError(f"{volume.path} has {MAX_DESTINATIONS} destinations", "forget some")
            record = known.get(name, DestinationRecord(name))
            self._refuse_busy(record, entry)
            volume.snapshot_state(entry)  # a shadow is refused
            refuse_deleting(entry)
            if volume.local.marks.find(entry.record.id) is None:
                try:
                    refuse_more(volume)
                except NoSpaceError:
                    if needs_marks:
                        raise
                else:
                    volume.commit()
                    add_position(volume, entry, 0)
            now = time.time_ns()
            self._put(replace(record, under_way=entry.record.id, status=STATUS_UNDER_WAY, begun_ns=now))
            return self.get(name)

    def _refuse_busy(self, record: DestinationRecord, entry: TableEntry) -> None:
        if record.status == STATUS_IDLE or record.under_way == entry.record.id:
            return
        raise RefusedError(
            f"{self._name_of(record.under_way)} is {STATUS_NAMES[record.status]} to {record.name}",
            "say first whether it arrived: succeed, fail, or settle with what the destination has",
        )

    def succeed(self, name: str) -> Destination:
        """The top arrived: the destination stands at it, and the position before is let go."""
        with self._volume.lock:
            record = self._sent(name)
            now = time.time_ns()
            self._put(
                replace(
                    record, acknowledged=record.under_way, under_way=NO_ID, status=STATUS_IDLE, acknowledged_ns=now
                ),
                has_arrived=True,
            )
            return self.get(name)

    def fail(self, name: str) -> Destination:
        """The top did not arrive: the destination stands where it stood, and the marks since then are one again."""
        with self._volume.lock:
            self._put(replace(self._sent(name), under_way=NO_ID, status=STATUS_IDLE))
            return self.get(name)

    def unknown(self, name: str) -> Destination:
        """Nobody knows whether the top arrived: both snapshots and all marks stay until `settle`."""
        with self._volume.lock:
            self._put(replace(self._sent(name), status=STATUS_UNKNOWN))
            return self.get(name)

    def settle(self, name: str, snapshot_id: str) -> Destination:
        """Take a destination's word for which state it has: the top, as `succeed`; the one before, as `fail`.

        Parameters
        ----------
        snapshot_id : 32 hexadecimal digits; empty where it has none.

        Raises
        ------
        RefusedError: it is neither.
        """
        with self._volume.lock:
            record = self._sent(name)
            if snapshot_id == record.under_way.hex():
                return self.succeed(name)
            if (snapshot_id or NO_ID.hex()) == record.acknowledged.hex():
                return self.fail(name)
            raise RefusedError(
                f"{name} has snapshot {snapshot_id or '(none)'}, and should have {self._name_of(record.under_way)} "
                f"or {self._name_of(record.acknowledged) or 'none'}",
                "somebody else wrote to it: forget it here, and send it an image onto what it has",
            )

    def forget(self, name: str) -> None:
        """Drop a destination: its holds go, and positions that only it needed."""
        with self._volume.lock:
            self._put(replace(self._record(name), acknowledged=NO_ID, under_way=NO_ID), keep=False)

    # --- one CP for everything ---------------------------------------------------------------------------------------

    def _put(self, record: DestinationRecord, keep: bool = True, has_arrived: bool = False) -> None:
        """Replace a record, and bring positions and holds in line with it."""
        local = self._volume.local
        records = local.destinations()
        at = next((i for i, other in enumerate(records) if other.name == record.name), len(records))
        before = records[at] if at < len(records) else DestinationRecord(record.name)
        records[at : at + 1] = [record] if keep else []
        needed = {stop for other in records for stop in (other.acknowledged, other.under_way)}
        idle = [i.record for i in local.marks.intervals() if not i.record.flags & FLAG_ASKED]
        with self._volume.changing():
            local.set_destinations(records)
            self._hold(record, before if keep and not has_arrived else None)
            local.marks.give_up({r.snapshot_id for r in idle if r.snapshot_id not in needed})
            self._volume.commit()

    def _hold(self, record: DestinationRecord, before: DestinationRecord | None) -> None:
        """Let the destination hold the snapshots it stands at and goes to, and no other but what it held beside before.

        before : as it stood; None: what it held beside is let go.
        """
        local, owner = self._volume.local, OWNER.format(record.name)
        mine = {hold.snapshot_id: hold for hold in local.holds() if hold.owner == owner}
        beside = [stop for stop in mine if stop not in (before.acknowledged, before.under_way)] if before else []
        wanted = [stop for stop in dict.fromkeys((record.acknowledged, record.under_way, *beside)) if stop != NO_ID]
        rest = [hold for hold in local.holds() if hold.owner != owner]
        local.set_holds([*rest, *(mine.get(stop, Hold(stop, owner, time.time_ns())) for stop in wanted)])

    def _record(self, name: str) -> DestinationRecord:
        records: Iterable[DestinationRecord] = self._volume.local.destinations()
        for record in records:
            if record.name == name:
                return record
        raise RefusedError(f"no destination is named {name!r}", "`blockplane info` shows those there are")

    def _sent(self, name: str) -> DestinationRecord:
        record = self._record(name)
        if record.status == STATUS_IDLE:
            raise RefusedError(f"nothing is under way to {name}", "begin first")
        return record

    def _name_of(self, snapshot_id: bytes) -> str | None:
        entries = self._volume.local.entries()
        return next((entry.record.name for entry in entries if entry.record.id == snapshot_id), None)

    def _shown(self, record: DestinationRecord) -> Destination:
        stops = self._name_of(record.acknowledged), self._name_of(record.under_way)
        times = record.acknowledged_ns, record.begun_ns
        return Destination(record.name, *stops, STATUS_NAMES.get(record.status, "unknown"), *times)
