"""From paths to the members of a volume, in order; whatever does not belong is named and refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from blockplane.disks.disk import Disk, FileDisk
from blockplane.disks.geometry import Geometry
from blockplane.disks.label import Label, MemberState, find_label
from blockplane.model.errors import (
    DiskDuplicateError,
    DiskForeignError,
    DiskMisplacedError,
    DiskMissingError,
    DiskShortError,
    DiskStaleError,
)

Leaving = Callable[[Sequence[Disk]], int | None]
#: Opens what a path leads to.
Opener = Callable[[str], Disk]


def nobody_leaves(disks: Sequence[Disk]) -> int | None:
    """Say that no group is being taken out."""
    return None


@dataclass(frozen=True, slots=True)
class Assembly:
    """The members of one volume, open, in the order of the geometry's disk indexes."""

    volume_id: bytes
    geometry: Geometry
    disks: tuple[Disk, ...]
    labels: tuple[Label, ...]
    #: per disk the raw blocks of ends that lost its label
    lost: tuple[tuple[int, ...], ...]
    #: whether a group was being taken out, and labels on the disks still name it
    is_reduced: bool = False

    @property
    def generation(self) -> int:
        """Newest label generation."""
        return max(label.generation for label in self.labels)

    @property
    def labels_are_settled(self) -> bool:
        """Whether the last label update ran to its end; if not, `write_labels` once more."""
        is_even = self.generation % 2 == 0 and not self.is_reduced
        return is_even and all(label.generation == self.generation for label in self.labels)

    def close(self) -> None:
        """Close all disks."""
        for disk in self.disks:
            disk.close()


def assemble(
    paths: Sequence[str],
    *,
    writable: bool = True,
    in_order: bool = True,
    volume_id: bytes | None = None,
    direct: bool = True,
    lock: bool = True,
    leaving: Leaving = nobody_leaves,
    opener: Opener | None = None,
) -> Assembly:
    """Open the disks of one volume.

    Parameters
    ----------
    in_order : the paths must stand in the order of the geometry; else they are sorted.
    volume_id : which volume it must be; default: the one of most of the disks.
    direct, lock : as for `FileDisk.open`.
    leaving : says which group, by its index, the disks' volume is without though their labels name it.
    opener : opens a path, where not each is a file or device.

    Raises
    ------
    DiskMissingError, DiskForeignError, DiskMisplacedError, DiskShortError, DiskStaleError, DiskDuplicateError :
        each names the disk and what was found; every disk is closed again.
    VolumeInUseError : someone else holds one.
    """
    refuse_same_file_twice(paths)
    opened: list[Disk] = []
    try:
        open_disk = opener or (lambda path: FileDisk.open(path, writable=writable, direct=direct, lock=lock))
        lost: list[DiskMissingError] = []
        for path in paths:  # one by one: what is open when the next one fails is closed below
            try:
                opened.append(open_disk(path))
            except DiskMissingError as error:
                lost.append(error)
        if lost:
            others = f"; nor can {', '.join(error.path for error in lost[1:])}" if lost[1:] else ""
            raise DiskMissingError(f"{lost[0].message}{others}", lost[0].path, lost[0].hint) from lost[0]
        return assemble_disks(opened, in_order=in_order, volume_id=volume_id, leaving=leaving)
    except BaseException:
        for disk in opened:
            disk.close()
        raise


def assemble_disks(
    disks: Sequence[Disk],
    *,
    in_order: bool = True,
    volume_id: bytes | None = None,
    leaving: Leaving = nobody_leaves,
) -> Assembly:
    """As `assemble`, with disks that are open already; they stay open on failure."""
    if not disks:
        raise DiskMissingError("no disks were named")
    ends = [find_label(disk) for disk in disks]
    labels = [end.label for end in ends]
    volume_id = volume_id or _most_common(label.volume_id for label in labels)
    _refuse_foreign(disks, labels, volume_id)
    found = labels
    labels = _without_left(disks, labels, leaving)
    newest = max(labels, key=lambda label: label.generation)
    geometry = newest.geometry()
    order = _order(disks, labels, geometry)
    _refuse_stale(disks, labels, newest)
    _refuse_short(disks, labels)
    missing = [index for index in range(geometry.n_disks) if index not in order]
    if missing:
        raise DiskMissingError(
            f"{len(missing)} of the volume's {geometry.n_disks} disks are missing: {_places_of(missing, geometry)}",
            hint="name every disk of the volume",
        )
    if in_order:
        _refuse_misplaced(disks, order, geometry)
    chosen = [order[index] for index in range(geometry.n_disks)]
    return Assembly(
        volume_id,
        geometry,
        tuple(disks[which] for which in chosen),
        tuple(labels[which] for which in chosen),
        tuple(ends[which].lost for which in chosen),
        is_reduced=labels != found,
    )


def _without_left(disks: Sequence[Disk], labels: list[Label], leaving: Leaving) -> list[Label]:
    """Bring labels that still name a group which was taken out, or whose disks are not named any more, into line."""
    newest = max(labels, key=lambda label: label.generation)
    rows, gone = newest.groups, None
    for label in labels:
        if len(label.groups) == len(rows) + 1:
            gone = next((i for i in range(len(rows) + 1) if label.groups[:i] + label.groups[i + 1 :] == rows), None)
    if gone is None and len(rows) > 1:
        absent = [i for i in range(len(rows)) if all(label.group != i for label in labels)]
        if len(absent) == 1 and leaving(disks) == absent[0]:
            gone, rows = absent[0], rows[: absent[0]] + rows[absent[0] + 1 :]
    if gone is None:
        return labels
    brought = []
    for disk, label in zip(disks, labels, strict=True):
        if label.groups != rows and label.group == gone:
            raise DiskForeignError(f"{disk.path}: of a RAID group that was taken out of the volume", disk.path)
        moved = label.group - (label.group > gone) if label.groups != rows else label.group
        brought.append(replace(label, groups=rows, group=moved))
    return brought


def refuse_same_file_twice(paths: Sequence[str]) -> None:
    """Compare what the paths lead to.

    Raises
    ------
    DiskDuplicateError : two lead to one file or device.
    """
    seen: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        # two nodes of one device have different inodes
        key = (-1, status.st_rdev) if status.st_rdev else (status.st_dev, status.st_ino)
        if key in seen:
            raise DiskDuplicateError(f"{path}: the same disk as {seen[key]}", path, "name every disk once")
        seen[key] = path


def _most_common(ids: Iterable[bytes]) -> bytes:
    """The id that most disks have; of several, the first's."""
    found = list(ids)
    return max(found, key=found.count)


def _refuse_foreign(disks: Sequence[Disk], labels: Sequence[Label], volume_id: bytes) -> None:
    for disk, label in zip(disks, labels, strict=True):
        if label.volume_id != volume_id:
            raise DiskForeignError(
                f"{disk.path}: belongs to volume {label.volume_id.hex()}, not to {volume_id.hex()}",
                disk.path,
                "name the disks of one volume",
            )


def _order(disks: Sequence[Disk], labels: Sequence[Label], geometry: Geometry) -> dict[int, int]:
    """Geometry's disk index -> index into the disks given."""
    order: dict[int, int] = {}
    ids: dict[bytes, int] = {}
    for which, (disk, label) in enumerate(zip(disks, labels, strict=True)):
        if label.member_id in ids:
            other = disks[ids[label.member_id]].path
            raise DiskDuplicateError(f"{disk.path}: a copy of {other}: both are the same member", disk.path)
        ids[label.member_id] = which
        groups = geometry.groups
        if label.group >= len(groups) or label.position >= len(groups[label.group].disks):
            raise DiskForeignError(f"{disk.path}: says to be disk {_place(label)}, which the volume has not", disk.path)
        index = groups[label.group].disks[label.position]
        if index in order:
            other = disks[order[index]].path
            raise DiskDuplicateError(f"{disk.path}: says to be disk {_place(label)}, and so does {other}", disk.path)
        order[index] = which
    return order


def _refuse_stale(disks: Sequence[Disk], labels: Sequence[Label], newest: Label) -> None:
    for disk, label in zip(disks, labels, strict=True):
        judges = [other for other in labels if other.group == label.group and other.generation >= label.generation]
        judge = max(judges, key=lambda other: other.generation)
        if label.generation < newest.generation - 1 or judge.member_ids[label.position] != label.member_id:
            raise DiskStaleError(
                f"{disk.path}: stale: its label has generation {label.generation}, the volume's newest "
                f"{newest.generation}",
                disk.path,
                "it missed what the others wrote; it can come back only through a resync",
            )
        if judge.states[label.position] is not MemberState.IN:
            raise DiskStaleError(
                f"{disk.path}: recorded as {judge.states[label.position].name.lower()} by the other disks",
                disk.path,
                "it can come back only through a resync",
            )


def _refuse_short(disks: Sequence[Disk], labels: Sequence[Label]) -> None:
    for disk, label in zip(disks, labels, strict=True):
        if disk.n_blocks < label.n_blocks:
            raise DiskShortError(
                f"{disk.path}: too short: {disk.n_blocks} blocks, and its label says {label.n_blocks}", disk.path
            )


def _refuse_misplaced(disks: Sequence[Disk], order: dict[int, int], geometry: Geometry) -> None:
    for index in range(geometry.n_disks):
        if order[index] != index:
            disk = disks[index]
            found = next(own for own, which in order.items() if which == index)
            raise DiskMisplacedError(
                f"{disk.path}: stands in place of disk {_places_of([index], geometry)} and is disk "
                f"{_places_of([found], geometry)}",
                disk.path,
                "put the disks in the order in which the volume was created",
            )


def _place(label: Label) -> str:
    return f"{label.position} of group {label.group}"


def _places_of(indexes: Sequence[int], geometry: Geometry) -> str:
    homes = (geometry.home(index) for index in indexes)
    return ", ".join(f"{position} of group {group}" for group, position in homes)
