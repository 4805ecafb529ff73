"""How much of an open volume is taken, and who may take more.

Files may, up to the reserve. Of that a quarter is for commits and for what only frees, such as deleting snapshots; one
more for removing files; and the other half for whatever else takes little: snapshots, and changes of what is there.
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blockplane.disks.geometry import Geometry
from blockplane.model.errors import NoSpaceError

if TYPE_CHECKING:
    from blockplane.volume.active import ActiveState
    from blockplane.volume.fsinfo import FsInfo
    from blockplane.volume.incoming import IncomingPlane
    from blockplane.volume.local import LocalTree
    from blockplane.volume.space import Space

#: Quarters of the reserve that are left alone by removing files, and by other changes and snapshots: what a snapshot
#: holds is not free when a consistency point writes it anew, so that without an end to that the reserve would be gone.
REMOVING_LEAVES, OTHERS_LEAVE = 1, 2


class Capacity:
    """The counting part of a volume; `LiveVolume` sets what is named here."""

    path: Path
    lock: threading.RLock
    info: FsInfo
    geometry: Geometry
    space: Space
    active: ActiveState
    local: LocalTree
    incoming: IncomingPlane
    #: of the used blocks, those that lie in the base (`volume.basing`) and take no place here
    n_in_base: int = 0
    _claimed: int = 0
    _dipping: int = 0
    #: names of the snapshots that the pressure policy made shadows while the volume was open
    demoted: list[str]
    #: what the policy could not help with last: an operation or not, what was held, by whom, who might go; how much
    futile_relief: tuple[object, int] = (None, 0)

    @abstractmethod
    def commit(self, force: bool = False, clean: bool = False) -> None:
        """Bring the volume to its next consistency point."""

    @abstractmethod
    def _require_writable(self) -> None:
        """Refuse what changes a volume that is read-only, or stopped."""

    @property
    def n_blocks(self) -> int:
        """How many places the volume has; those of a group that is to be taken out are not counted."""
        leaving = self.info.leaving
        return self.geometry.n_usable - (self.geometry.groups[leaving].n_blocks if leaving is not None else 0)

    @property
    def used_blocks(self) -> int:
        """Places that the live state, snapshots and the local tree occupy."""
        return self.active.root.n_blocks + self.local.root.n_held + self.local.root.n_local - self.n_in_base

    @property
    def free_blocks(self) -> int:
        """Places nothing occupies, the reserve and what two CPs still keep included."""
        return self.n_blocks - self.used_blocks

    @property
    def available_blocks(self) -> int:
        """Places a file may take now."""
        waiting = self.space.n_pending + self.space.n_freed_open + self._claimed + self.n_incoming
        return max(self.free_blocks - waiting - self.info.reserve_blocks, 0)

    @property
    def coming_blocks(self) -> int:
        """Places a file may take when two consistency points have passed: what waits for them included."""
        return max(self.free_blocks - self._claimed - self.n_incoming - self.info.reserve_blocks, 0)

    def over_floor(self, removes: bool = False) -> int:
        """Places that changes which take little may take now, or those that remove files; less than 0 below."""
        waiting = self.space.n_pending + self.space.n_freed_open + self._claimed + self.n_incoming
        quarters = REMOVING_LEAVES if removes else OTHERS_LEAVE
        return self.free_blocks - waiting - self.info.reserve_blocks * quarters // 4

    @property
    def n_incoming(self) -> int:
        """Places that receives, under way or interrupted, have reserved."""
        return self.incoming.n_blocks

    def _claim(self, n_blocks: int) -> None:
        self._require_writable()
        if not self._dipping and self.available_blocks < n_blocks:
            raise self._no_space(n_blocks)
        self._claimed += n_blocks

    def _claim_run(self, n_blocks: int) -> None:
        self._require_writable()
        if not self._dipping and self.available_blocks < n_blocks:
            raise self._no_space(n_blocks)

    def _no_space(self, n_blocks: int) -> NoSpaceError:
        return NoSpaceError(
            f"the volume {self.path} is full: {n_blocks} blocks asked, {self.available_blocks} available",
            self.room_hint(),
        )

    @abstractmethod
    def relieve(self, n_blocks: int = 0) -> None:
        """Let the pressure policy make room, where there is one."""

    @abstractmethod
    def room_hint(self, what: str = "files or snapshots") -> str:
        """Return what can be done about a full volume; what : that can still be deleted."""

    def make_room(self, n_blocks: int) -> None:
        """Commit where that makes n_blocks available: what was deleted just now is free only two CPs later.

        Where they are not there even then, the pressure policy may make snapshots shadows.
        """
        with self.lock:
            if self.available_blocks < n_blocks:
                self.relieve(n_blocks)
            for _ in range(2):
                waiting = self.space.n_pending + self.space.n_freed_open + self._claimed
                if self.available_blocks >= n_blocks or not waiting:
                    return
                self.commit(force=True)

    def keep_floor(self, removes: bool = False) -> None:
        """Refuse a change where as much of the reserve is taken as such may take, before anything changes.

        A commit comes before, and makes room where it can, and so does the pressure policy.

        Parameters
        ----------
        removes : files go with it. Where there is no snapshot, they always may.

        Raises
        ------
        NoSpaceError: the rest is for commits and for what frees.
        """
        with self.lock:
            self.commit()
            self.relieve()
            if self.over_floor(removes) < 0 and self.space.n_pending:
                self.commit(force=True)
            if self.over_floor(removes) < 0 and not (removes and not self.local.entries()):
                raise NoSpaceError(
                    f"the volume {self.path} is full, and what is left of its reserve is for deleting",
                    self.room_hint("snapshots" if removes else "files or snapshots"),
                )

    @contextlib.contextmanager
    def dipping(self) -> Iterator[None]:
        """Let what runs inside draw on the reserve: deleting must work on a full volume."""
        self._dipping += 1
        try:
            yield
        finally:
            self._dipping -= 1
