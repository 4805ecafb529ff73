"""What only the whole package can offer: a volume whose snapshots make images, a check of blocks and files."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Literal

from blockplane import image as images
from blockplane.filesystem import Difference, FileSystem, compare
from blockplane.filesystem.names import AnyPath
from blockplane.filesystem.owners import Owner, blocks_below, metadata_of, owners_of
from blockplane.image import BlockDifference, Freeing, Image, saved
from blockplane.image.planefiles import PlaneFile, plane_file, plane_files
from blockplane.image.saved import SavedImage
from blockplane.model import BlockplaneError, BlockSource, NoSuchSnapshotError, UsageError, VolumeDamagedError
from blockplane.planes import Plane
from blockplane.transfer import structure
from blockplane.transfer.based import BasedVolume
from blockplane.transfer.newvolume import Opening
from blockplane.volume import Volume as PlainVolume
from blockplane.volume import deleting, retention
from blockplane.volume.check import check as check_volume
from blockplane.volume.groups import DiskNames
from blockplane.volume.holders import ACTIVE, Holding, StateShare, holders, named_states, shares
from blockplane.volume.retention import Policy, PruneReport
from blockplane.volume.state import State


class Volume(BasedVolume):
    """A volume: made with `create`, opened with `open`; `image` chooses what to send."""

    def image(
        self,
        expression: str,
        *,
        older: Literal["all"] | Sequence[str] = (),
        with_: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        allow_active: bool = False,
    ) -> Image:
        """Return the storage image that an expression over snapshot names stands for; see `image.build`."""
        return images.build(
            self,
            expression,
            older=older,
            with_=with_,
            include=include,
            exclude=exclude,
            allow_active=allow_active,
        )

    @property
    def planes(self) -> list[PlaneFile]:
        """The planes that can be read as files: of snapshots, shadows, marks, stored images; see `image.planefiles`."""
        return plane_files(self)

    def plane_file(self, name: str) -> PlaneFile:
        """Return one of `planes` by its name; RefusedError: there is none."""
        return plane_file(self, name)

    def save_image(self, name: str, expression: str, *, with_: Sequence[str] = ()) -> None:
        """Store an image under a name that stands for its definition in expressions; see `image.saved.save`."""
        saved.save(self, name, expression, with_)

    @property
    def saved_images(self) -> list[SavedImage]:
        """The stored images as they are now, older first."""
        return saved.saved(self)

    def delete_image(self, name: str) -> None:
        """Drop a stored image; see `image.saved.delete`."""
        saved.delete(self, name)

    def prune(
        self, policy: Policy, *, dry_run: bool = False, zone: tzinfo | None = None, defer: bool = False
    ) -> PruneReport:
        """Delete the snapshots that a policy judges and does not keep; see `volume.retention`."""
        return retention.prune(self, policy, dry_run=dry_run, zone=zone, defer=defer)

    def diff(self, before: str, after: str | None = None, *, atime: bool = False) -> Difference:
        """Return what changed from a snapshot to another, or to the live file system: paths and kinds of change.

        Parameters
        ----------
        atime : list also files of which only the time of the last access changed.

        Raises
        ------
        NoSuchSnapshotError: there is none of that name.

        Notes
        -----
        See `filesystem.difference.compare`. Nothing can be changed or deleted meanwhile; the live file system is
        committed first where the volume may be written.
        """
        with self.lock:
            self._settle(after)
            return compare(self.state(before), self.state(after), atime)

    def block_diff(self, before: str, after: str | None = None) -> BlockDifference:
        """Return which blocks came and went from a snapshot to another, or to the live file system; see `diff`."""
        with self.lock:
            self._settle(after)
            return images.block_difference(self, before, after)

    def who(self, start: int, stop: int, owners: bool = True) -> list[BlockUse]:
        """Return who holds VBNs start..stop, and what they are: the newest of the states that hold each is asked.

        Parameters
        ----------
        owners : search for files; reads the inode file and all blocks of pointers of every state that is asked.
        """
        if not 0 <= start < stop:
            raise UsageError(f"{start} to {stop} are no blocks", "the first is 0; the range ends behind its start")
        with self.lock:
            self._settle(None)
            stop = min(stop, max(self.n_numbers, start + 1))
            held = list(holders(self, start, stop))
            return list(_with_owners(held, self._owners(held) if owners else {}))

    @property
    def n_numbers(self) -> int:
        """How many VBNs there are in any state, or places."""
        states = (state for _, state in named_states(self))
        return max(self.geometry.n_blocks, *(state.space_blocks for state in states))

    def _owners(self, held: Sequence[Holding]) -> dict[str, list[Owner]]:
        """Return, by the newest state of each holding, what the blocks are in it."""
        wanted: dict[str, list[tuple[int, int]]] = {}
        for holding in held:
            if holding.states:
                wanted.setdefault(holding.states[-1], []).append((holding.start, holding.stop))
        return {
            name: owners_of(self.state(None if name == ACTIVE else name), Plane.from_extents(extents, self.n_numbers))
            for name, extents in wanted.items()
        }

    def who_has(self, path: AnyPath, snapshot: str | None = None) -> FileUse:
        """Return which states hold the blocks of what lies at a path; of a directory with all below it.

        Of what has none, since it lies in its inode, they are those of the inode file.
        """
        with self.lock:
            self._settle(snapshot)
            source = self if snapshot is None else self.get_snapshot(snapshot)
            number = FileSystem(source).lstat(path).st_ino
            state = self.state(snapshot)
            vbns, is_in_inodes = blocks_below(state, number)
            plane = Plane.empty(self.n_numbers)
            plane.add_many(vbns)
            return FileUse(plane, tuple(shares(self, state, vbns)), is_in_inodes)

    def metadata(self, name: str) -> Plane:
        """Return the blocks of a snapshot that are no content of files: what lists it, and finds the rest.

        Notes
        -----
        In expressions `meta(NAME)`. Reads the inode file and all blocks of pointers; the snapshot is pinned meanwhile.
        """
        with self.pin(self.get_snapshot(name).record.id):
            return metadata_of(self.state(name), self.n_numbers)

    def _settle(self, name: str | None) -> None:
        """Commit where the live file system is to be looked at, and may be written."""
        if name is None and self.writable:
            self.commit()  # no more: what is to be looked at must not become a shadow now

    def freed_by(self, *names: str) -> int:
        """Return how many blocks deleting these snapshots together would free; nothing changes."""
        return deleting.freed_by(self, names)

    def freeing(self, *names: str) -> Freeing:
        """Return what deleting these snapshots together would free, and each alone; nothing changes."""
        return images.freeing(self, names)


def create_structure(
    path: str | os.PathLike[str],
    base: Sequence[str | os.PathLike[str]],
    *,
    disks: DiskNames = 1,
    size: int | str | None = None,
    parity: int | None = None,
    chunk: int | str | None = None,
    wipe: bool = False,
) -> Volume:
    """Make the volume of an incremental mirror on a base and open it; see `structure.create_structure`."""
    opening = Opening(Volume, verb="mirror")
    volume = structure.create_structure(
        path, base, disks=disks, size=size, parity=parity, chunk=chunk, wipe=wipe, opening=opening
    )
    assert isinstance(volume, Volume)
    return volume


def owners(source: BlockSource, extents: Sequence[tuple[int, int]]) -> list[Owner]:
    """Return what VBNs [start, stop) are in the state that a block source gives: which file's, or which metafile's.

    Notes
    -----
    Reads the inode file and every block of pointers of the state; no data.
    """
    wanted = Plane.from_extents(list(extents), max((stop for _, stop in extents), default=1))
    return owners_of(State.open(source), wanted)


@dataclass(frozen=True, slots=True)
class BlockUse:
    """Neighbouring blocks that the same states hold, and what they are; owners: in the newest of those states."""

    holding: Holding
    owners: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class FileUse:
    """The blocks of a file or tree (VBNs), and how many of them each state has, and it alone.

    is_in_inodes : they are blocks of the inode file, in which all of it lies.
    """

    plane: Plane
    shares: tuple[StateShare, ...]
    is_in_inodes: bool = False


def _with_owners(held: Sequence[Holding], owners: dict[str, list[Owner]]) -> Iterator[BlockUse]:
    """Yield holdings with the part of the owners, which ascend and do not overlap, that lies in each."""
    starts = {name: [owner.start for owner in found] for name, found in owners.items()}
    stops = {name: [owner.stop for owner in found] for name, found in owners.items()}
    for holding in held:
        name = holding.states[-1] if holding.states else ""
        first = bisect_right(stops.get(name, ()), holding.start)
        last = bisect_left(starts.get(name, ()), holding.stop)
        parts = (owner.part(holding.start, holding.stop) for owner in owners.get(name, [])[first:last])
        yield BlockUse(holding, tuple(part for part in parts if part is not None))


@dataclass(slots=True)
class FullCheck:
    """What a check of a whole volume found. problems: one sentence each; the rest are counts over all states."""

    problems: list[str] = field(default_factory=list)
    n_blocks: int = 0
    n_states: int = 0
    n_stripes: int = 0
    n_unsettled: int = 0
    n_inodes: int = 0
    n_files: int = 0
    n_directories: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(
    volume: PlainVolume,
    *,
    parity: bool = True,
    phase: Callable[[str], None] | None = None,
    step: Callable[[], None] = lambda: None,
) -> FullCheck:
    """Check everything: blocks, checksums, planes and parity, then inodes and directories of every state.

    Parameters
    ----------
    parity : recompute the parity of every stripe with a live block. phase : told what is being checked.
    step : called between reads; may raise, which ends the check.
    """
    tell = phase or (lambda _: None)
    tell("blocks and planes")
    blocks = check_volume(volume, parity=parity, step=step)
    report = FullCheck(list(blocks.problems), blocks.n_blocks, blocks.n_states, blocks.n_stripes, blocks.n_unsettled)
    if blocks.n_suppressed:
        report.problems.append(f"and {blocks.n_suppressed} more problems")
    for name in _states(volume):
        where = f"snapshot {name}" if name else "the live file system"
        tell(f"files of {where}")
        _check_files(volume, name, where, report, step)
    return report


def _states(volume: PlainVolume) -> list[str | None]:
    """Return the names of the states that can be looked into, None for the live one; the blocks' check says why not."""
    live: list[str | None] = [None] if volume.knows_live else []
    try:
        return [*live, *(snapshot.name for snapshot in volume.snapshots if not snapshot.shadowed_ns)]
    except VolumeDamagedError:
        return live


def _check_files(
    volume: PlainVolume, name: str | None, where: str, report: FullCheck, step: Callable[[], None]
) -> None:
    try:
        with _reading(volume, name):
            if name is not None and volume.get_snapshot(name).shadowed_ns:  # since the snapshots were listed
                return
            files = FileSystem(volume.state(name)).check(step)
    except NoSuchSnapshotError:  # deleted since the snapshots were listed
        return
    except BlockplaneError as error:
        report.problems.append(f"{where}: {error}")
        return
    report.problems += [f"{where}: {problem}" for problem in files.problems]
    report.n_inodes += files.n_inodes
    report.n_files += files.n_files
    report.n_directories += files.n_directories


@contextmanager
def _reading(volume: PlainVolume, name: str | None) -> Iterator[None]:
    """Pin a snapshot while it is read; whoever writes to the live file system waits: only its last two states stay."""
    with volume.pin(volume.get_snapshot(name).record.id) if name is not None else volume.lock:
        yield
