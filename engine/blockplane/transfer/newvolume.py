"""Volumes made for a stream: their disks, how they are opened, and how they go again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockplane.disks import HEAD_BLOCKS, TAIL_BLOCKS, GroupRecord
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import UsageError
from blockplane.stream.reader import StreamMap
from blockplane.transfer.based import BasedVolume
from blockplane.volume import making
from blockplane.volume.config import read_config
from blockplane.volume.groups import DiskNames, GroupWish, give_back
from blockplane.volume.lock import VolumeLock
from blockplane.volume.making import LOCK_NAME
from blockplane.volume.volume import Volume

#: A stream's own word for its geometry makes at most this many disk files; who wants more says so.
_MAX_DISKS: Final = 1024


@dataclass(frozen=True, slots=True)
class DiskWish:
    """What was asked of a volume that is made; None: as the source has it."""

    disks: DiskNames | None = None
    size: int | str | None = None
    parity: int | None = None
    chunk: int | str | None = None
    wipe: bool = False

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked."""
        return self.disks is None and self.size is None and self.parity is None and self.chunk is None

    def disks_to_make(self) -> list[Path]:
        """Return the disks that were named and are not there."""
        named = () if self.disks is None or isinstance(self.disks, int) else self.disks
        return [Path(disk) for disk in named if not os.path.exists(disk)]


@dataclass(frozen=True, slots=True)
class Opening:
    """How a receive opens a volume that it makes, or that is named by its directory.

    kind : the volume's class. around : called with the open volume; what it returns is entered as long as that is open.
    verb : what others are told that this process does.
    """

    kind: type[Volume] = BasedVolume
    around: Callable[[Volume], AbstractContextManager[object]] | None = None
    verb: str = "receive"

    def open(self, path: Path) -> Volume:
        """Open a volume that is there."""
        return self.kind.open(path, verb=self.verb, answers=self.around is not None)

    def create(
        self,
        path: Path,
        disks: DiskNames,
        size: int | str | None,
        parity: int | None,
        chunk: int | str | None,
        wipe: bool = False,
    ) -> Volume:
        """Make a volume."""
        answers = self.around is not None
        return self.kind.create(path, disks, size, parity, chunk, wipe, verb=self.verb, answers=answers)

    def entered(self, volume: Volume) -> AbstractContextManager[object]:
        """Return what goes round the use of an open volume."""
        return self.around(volume) if self.around is not None else nullcontext()


def create_like(path: Path, groups: Sequence[GroupRecord], wish: DiskWish, opening: Opening) -> Volume:
    """Make a volume: as asked, else with the geometry of other groups."""
    if _as_source(groups, wish):
        return _create_groups(path, groups, opening)
    disks, size, parity, chunk = _one_group(groups, wish)
    return opening.create(path, disks, size, parity, chunk, wish.wipe)


def widest(streams: Sequence[StreamMap]) -> Sequence[GroupRecord]:
    """Return the groups of the source when its numbering reached furthest: it may have grown between two streams."""
    return max((stream.header.groups for stream in streams), key=lambda groups: groups[-1].stop if groups else 0)


def planned_blocks(path: Path, groups: Sequence[GroupRecord], wish: DiskWish) -> tuple[int, int]:
    """Return how far the numbering of the volume that `create_like` would make reaches, and how many places it has.

    Nothing is made. Errors: as of `create_like`, but what named disks hold is not looked at.
    """
    if _as_source(groups, wish):
        _refuse_too_many(sum(len(group.disks) for group in groups))
        return groups[-1].stop, sum(group.n_blocks for group in groups)
    _, group = GroupWish(*_one_group(groups, wish), wish.wipe).plan(path)
    return group.stop, group.n_blocks


def has_disks(path: Path, groups: Sequence[GroupRecord], wish: DiskWish) -> bool:
    """Whether a volume that is there has the disks that options would make; what was not asked is as it has it."""
    names, group = GroupWish(*_one_group(groups, wish)).plan(path)
    return [group] == list(groups) and (wish.disks is None or tuple(names) == read_config(path).disks)


def _as_source(groups: Sequence[GroupRecord], wish: DiskWish) -> bool:
    """Whether the volume gets several groups, those of the source."""
    return wish.is_default and len(groups) > 1


def _one_group(
    groups: Sequence[GroupRecord], wish: DiskWish
) -> tuple[DiskNames, int | str | None, int | None, int | str]:
    """Return disks, size, parity and chunk of the one group that a volume gets."""
    if not groups and (wish.disks is None or wish.size is None):
        raise UsageError("the stream names no disks", "say --disks and --size")
    like = groups[0] if groups else GroupRecord(0, 1, 0, 64, 64, (0,))
    disks = wish.disks if wish.disks is not None else len(like.disks)
    n_disks = disks if isinstance(disks, int) else len(disks)
    parity = wish.parity
    if parity is None and wish.disks is None:
        parity = like.n_parity
    chunk = wish.chunk if wish.chunk is not None else _chunk_of(like)
    size = wish.size
    if size is None and isinstance(disks, int):
        n_parity = parity if parity is not None else int(n_disks >= 3)
        size = _size_for(groups, max(n_disks - n_parity, 1), like)
    _refuse_too_many(n_disks)
    return disks, size, parity, chunk


def _create_groups(path: Path, groups: Sequence[GroupRecord], opening: Opening) -> Volume:
    """Make a volume with the source's groups, one by one."""
    _refuse_too_many(sum(len(group.disks) for group in groups))
    first, *rest = groups
    missing = making.missing_of(path)
    volume = opening.create(path, len(first.disks), _disk_bytes(first), first.n_parity, _chunk_of(first))
    try:
        for group in rest:
            volume.grow(disks=len(group.disks), size=_disk_bytes(group), parity=group.n_parity, chunk=_chunk_of(group))
    except BaseException:
        remove(volume, missing)
        raise
    return volume


def _refuse_too_many(n_disks: int) -> None:
    if n_disks > _MAX_DISKS:
        raise UsageError(f"the source has {n_disks} disks", "say --disks and --size for the new volume")


def _disk_bytes(group: GroupRecord) -> int:
    return (group.disk_blocks + HEAD_BLOCKS + TAIL_BLOCKS) * BLOCK_BYTES


def _chunk_of(group: GroupRecord) -> int | str:
    return "disk" if group.chunk_blocks == group.disk_blocks else group.chunk_blocks * BLOCK_BYTES


def _size_for(groups: Sequence[GroupRecord], n_data: int, like: GroupRecord) -> int:
    """Return bytes a disk, so that n_data of them reach as far as the source's numbering."""
    reach = max(group.stop for group in groups)
    per_disk = -(-reach // n_data)
    chunk = like.chunk_blocks if like.chunk_blocks < like.disk_blocks else 64
    return (-(-per_disk // chunk) * chunk + HEAD_BLOCKS + TAIL_BLOCKS) * BLOCK_BYTES


def remove(volume: Volume, missing: Sequence[Path], new_disks: Sequence[Path] = ()) -> None:
    """Undo the making of a volume that is open: nobody comes in between. Disks that were there before are given back.

    missing : the directories that were not there, see `making.missing_of`. new_disks : that were made elsewhere.
    """
    paths = [Path(disk.path) for disk in volume.array.disks]
    try:
        making.clear(volume.path, missing, new_disks)
    finally:
        volume.abandon()
    _give_back(paths)


def remove_made(directory: Path, missing: Sequence[Path]) -> None:
    """Remove a volume that a receive made, unless it holds something by now.

    Raises
    ------
    VolumeInUseError : another process has it. BlockplaneError : it cannot be looked at.
    """
    with VolumeLock(directory / LOCK_NAME, "receive --abort"):
        if Volume.is_empty(directory):
            paths = [Path(name) for name in read_config(directory).paths(directory)]
            making.clear(directory, missing)
            _give_back(paths)


def _give_back(disks: Sequence[Path]) -> None:
    for disk in disks:
        if disk.exists():
            give_back(str(disk))
