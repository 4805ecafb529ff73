"""What an open volume begins with: the roots of its two trees, read from where its root record says."""

from __future__ import annotations

import os
from collections.abc import Callable

from blockplane.disks.array import DiskArray
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import DiskError, VolumeDamagedError
from blockplane.volume.active import ActiveState, blank_root
from blockplane.volume.capacity import Capacity
from blockplane.volume.codec import LocalRoot, Pointer, StateRoot
from blockplane.volume.leafbits import LEAF_BLOCKS
from blockplane.volume.local import LocalTree
from blockplane.volume.names import Names
from blockplane.volume.openmap import OpenMap
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.placer import Placer
from blockplane.volume.readers import LiveReader, PlaceReader
from blockplane.volume.state import State, read_root


class Roots(Capacity):
    """The loading part of a volume; `LiveVolume` sets what is named here."""

    array: DiskArray
    writable: bool
    placer: Placer
    names: Names
    damage: list[str]
    knows_live: bool
    knows_local: bool
    committed: State
    committed_local: LocalTree

    def _load_local(self, places: PlaceReader) -> None:
        """Take up the local tree; for reading, that of the CP before where the last one's root is damaged."""
        pointers = (self.info.local, self.info.previous_local, Pointer.none())
        for pointer in dict.fromkeys(pointers):
            try:
                root = self._local_root(pointer)
            except VolumeDamagedError as error:
                self.knows_local = False
                self._go_on_without("the root of the snapshot table and the other local trees", error)
                continue
            self.committed_local = LocalTree(places, root)
            own = LocalRoot.decode(root.encode())
            self.local = LocalTree(self._live_reader(PlaceMap), own, self.placer, self.space.release)
            return

    def _load_live(self) -> None:
        """Take up the live state; for reading, an empty one where its root is damaged, which `require_live` refuses."""
        try:
            self.committed = self._committed_state(self.info.state, self.committed_local)
            self.active = self._live_state(self.committed, self.committed_local.active_map())
        except VolumeDamagedError as error:
            self.knows_live = False
            self._go_on_without("the root of the live file system", error)
            self.committed = self._committed_state(Pointer.none(), self.committed_local)
            self.active = self._live_state(self.committed, PlaceMap())

    def _go_on_without(self, what: str, error: VolumeDamagedError) -> None:
        """Note that a root is damaged; nothing is built on it by writing."""
        if self.writable and isinstance(error, DiskError):  # a disk that does not answer now is no damage
            raise error
        if self.writable:
            raise VolumeDamagedError(
                f"{self.path}: {what} is damaged: {error}",
                "it can still be read: `blockplane check` says what is whole, `blockplane get` takes files out",
            ) from error
        self.damage.append(f"{what} is damaged: {error}")

    def require_live(self) -> None:
        """Refuse to show an empty live file system where the real one cannot be read.

        Raises
        ------
        VolumeDamagedError: its root is damaged.
        """
        if not self.knows_live:
            raise VolumeDamagedError(
                f"{self.path}: {'; '.join(self.damage)}", "its snapshots may be whole: `blockplane info` lists them"
            )

    def _live_reader(self, placemap: Callable[[], PlaceMap | OpenMap]) -> LiveReader:
        return LiveReader(self.array, self.placer, self.lock, placemap)

    def _local_root(self, pointer: Pointer) -> LocalRoot:
        root = LocalRoot()
        if pointer.exists:
            root = LocalRoot.decode(read_root(PlaceReader(self.array, PlaceMap()), pointer))
        # as far as the numbering reaches: further than when it was written, where the volume has grown
        root.held.size_bytes = root.local.size_bytes = -(-self.geometry.n_blocks // LEAF_BLOCKS) * BLOCK_BYTES
        return root

    def _committed_state(self, pointer: Pointer, local: LocalTree) -> State:
        if not pointer.exists:
            blank = blank_root(self.geometry.n_blocks, bytes(16), bytes(16))
            return State(PlaceReader(self.array, PlaceMap()), blank, pointer)
        placemap = local.active_map()
        return State.read(PlaceReader(self.array, placemap), pointer, placemap)

    def _live_state(self, committed: State, placemap: PlaceMap) -> ActiveState:
        """Return a live state that goes on from a committed one, with a root of its own."""
        if committed.pointer.exists:
            root = StateRoot.decode(committed.root.encode())
        else:
            root = blank_root(self.geometry.n_blocks, os.urandom(16), os.urandom(16))
        reader = self._live_reader(lambda: self.active.open_map())
        return ActiveState(
            reader, root, committed.pointer, placemap, self.placer, self.space, self._claim, self._claim_run, self.names
        )
