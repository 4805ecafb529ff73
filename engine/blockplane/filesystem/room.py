"""Room on the volume for what is buffered: inodes and directory nodes get their blocks only when a CP begins."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from blockplane.filesystem.content import DIRECT_BLOCKS, n_blocks_of
from blockplane.model import NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockplane.filesystem.inode_table import InodeTable
    from blockplane.volume.live import LiveVolume

# Available blocks that are left alone: the upper nodes of trees that a small change takes along.
_SPARE_BLOCKS = 32


class Room:
    """Lets changes in while the volume could commit them; volume is None for what is read-only."""

    def __init__(self, volume: LiveVolume | None, inodes: InodeTable) -> None:
        self._volume = volume
        self._inodes = inodes
        self._nodes: dict[int, int] = {}
        self._n_nodes = 0

    def note_nodes(self, directory: int, n_dirty: int) -> None:
        """Take note of how many nodes of a directory are dirty."""
        self._n_nodes += n_dirty - self._nodes.get(directory, 0)
        self._nodes[directory] = n_dirty

    def flushed(self) -> None:
        """Nothing is buffered any more."""
        self._nodes.clear()
        self._n_nodes = 0

    @property
    def n_buffered(self) -> int:
        """Blocks that the next CP takes for what is buffered now."""
        return self._inodes.n_dirty_blocks + self._n_nodes + _SPARE_BLOCKS

    @property
    def is_short(self) -> bool:
        """Whether what is buffered might not fit."""
        return self._volume is not None and self._volume.available_blocks < self.n_buffered

    @property
    def must_commit(self) -> bool:
        """Whether to commit before more of the reserve is needed: what is replaced becomes free only two CPs later."""
        return self.is_short and self._volume is not None and 4 * self.n_buffered > self._volume.info.reserve_blocks

    def require(self) -> None:
        """Raise NoSpaceError before an inode is made that a full volume could not commit."""
        if self.is_short:
            assert self._volume is not None
            raise NoSpaceError(
                f"the volume {self._volume.path} is full",
                self._volume.room_hint(),
            )

    def make(self, n_bytes: int = 0) -> None:
        """Commit where that frees what was deleted just now; everything must be consistent."""
        if self._volume is not None:
            self._volume.make_room(n_blocks_of(n_bytes) + DIRECT_BLOCKS + 2 * self.n_buffered)

    def admit(self, removes: bool = False, complete: Callable[[], None] = lambda: None) -> None:
        """Raise NoSpaceError before a change where the reserve, which it may draw on, is to be left alone.

        Parameters
        ----------
        removes : files go with it, for which more of the reserve is there. complete : called before a consistency point
            comes, for which everything must be consistent.
        """
        volume = self._volume
        if volume is not None and volume.over_floor(removes) < self.n_buffered - _SPARE_BLOCKS:
            complete()
            volume.keep_floor(removes)

    def removing(self) -> contextlib.AbstractContextManager[None]:
        """Let what is done inside draw on the volume's reserve: removing must work on a full volume."""
        return self._volume.dipping() if self._volume is not None else contextlib.nullcontext()
