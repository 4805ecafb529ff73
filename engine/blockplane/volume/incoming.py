"""Incoming images: what a receive that was interrupted has brought, and the places that stay reserved for the rest.

A receive writes to free places and changes nothing that anybody sees until its end. So that it can go on after its
process died, the local tree holds for each incoming image an entry: which image it is, the plane of the places reserved
for it, the plane of those at which its blocks are durable, and its place map.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.codec import NO_ID, TREE_ROOT_BYTES, TreeRoot
from blockplane.volume.leafbits import EMPTY_LEAF, Leaf, bits_of, by_leaf, clear_numbers, count, set_numbers
from blockplane.volume.placemap import EXTENT_BYTES, PlaceMap, moved
from blockplane.volume.state import read_all, write_all
from blockplane.volume.tree import BlockTree
from blockplane.volume.treeio import BlockReader

if TYPE_CHECKING:
    from blockplane.volume.local import LocalTree

_ID_BYTES: Final = len(NO_ID)
_ENTRY = struct.Struct("<16s16s16s16s16sQQQqIB127s")
INCOMING_BYTES: Final = 2048
_TREES_OFFSET: Final = 256
_LENDER_OFFSET: Final = _TREES_OFFSET + 3 * TREE_ROOT_BYTES
_MEMBERS_OFFSET: Final = _LENDER_OFFSET + _ID_BYTES + 16
#: Of an image's snapshots, so many of the newest are known here.
MAX_MEMBERS: Final = 48
#: The receive made the volume: giving it up removes what it made.
FLAG_MADE_VOLUME: Final = 1
#: Blocks were taken over from a receive of another image, or moved: they are held against this one's checks at the end.
FLAG_CARRIED: Final = 2
#: A pull began it, and no person: once a later pull has brought something, nobody goes on with it.
FLAG_PULLED: Final = 4
#: The receive made the volume in a folder that was there: giving it up leaves that.
FLAG_IN_FOLDER: Final = 8


@dataclass(slots=True)
class IncomingEntry:
    """An image on its way in (2,048 bytes).

    landing_id : random, of this receive. n_image, n_landed : blocks of the image that are to come, and those durable
    here. places, landed : planes of what is reserved, and of what landed. place_map : where blocks lie that are not at
    home. lender_id : the snapshot that has the image's other blocks. member_ids : of the snapshots that it brings, the
    newest first; not all, where they are many.
    """

    landing_id: bytes
    image_id: bytes
    space_id: bytes
    top_id: bytes
    base_id: bytes
    n_image: int
    n_landed: int
    space_blocks: int
    began_ns: int
    top_name: str
    flags: int = 0
    places: TreeRoot = field(default_factory=TreeRoot)
    landed: TreeRoot = field(default_factory=TreeRoot)
    place_map: TreeRoot = field(default_factory=TreeRoot)
    lender_id: bytes = NO_ID
    member_ids: tuple[bytes, ...] = ()

    @property
    def is_full(self) -> bool:
        """Whether the image has no base."""
        return self.base_id == NO_ID

    @property
    def made_volume(self) -> bool:
        """Whether the receive made the volume."""
        return bool(self.flags & FLAG_MADE_VOLUME)

    @property
    def how_made(self) -> int:
        """The flags that say whether the receive made the volume, and where."""
        return self.flags & (FLAG_MADE_VOLUME | FLAG_IN_FOLDER)

    @property
    def is_carried(self) -> bool:
        """Whether blocks of it came with another image, or moved after they came."""
        return bool(self.flags & FLAG_CARRIED)

    @property
    def was_pulled(self) -> bool:
        """Whether a pull began it."""
        return bool(self.flags & FLAG_PULLED)

    def encode(self) -> bytes:
        """Return the 2,048 bytes."""
        name = self.top_name.encode()
        fixed = _ENTRY.pack(
            self.landing_id, self.image_id, self.space_id, self.top_id, self.base_id, self.n_image, self.n_landed,
            self.space_blocks, self.began_ns, self.flags, len(name), name,
        )  # fmt: skip
        trees = self.places.encode() + self.landed.encode() + self.place_map.encode()
        head = (fixed.ljust(_TREES_OFFSET, b"\0") + trees + self.lender_id).ljust(_MEMBERS_OFFSET, b"\0")
        return (head + b"".join(self.member_ids[:MAX_MEMBERS])).ljust(INCOMING_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> IncomingEntry:
        """Read 2,048 bytes; VolumeDamagedError: the name is not one."""
        *ids, n_image, n_landed, space_blocks, began_ns, flags, n_name, name = _ENTRY.unpack_from(data)
        try:
            text = name[:n_name].decode()
        except UnicodeDecodeError:
            raise VolumeDamagedError(f"the name of an incoming image is not UTF-8: {name[:n_name]!r}", "") from None
        starts = range(_TREES_OFFSET, _TREES_OFFSET + 3 * TREE_ROOT_BYTES, TREE_ROOT_BYTES)
        trees = [TreeRoot.decode(data[at : at + TREE_ROOT_BYTES]) for at in starts]
        starts = range(_MEMBERS_OFFSET, _MEMBERS_OFFSET + MAX_MEMBERS * _ID_BYTES, _ID_BYTES)
        members = [bytes(data[at : at + _ID_BYTES]) for at in starts]
        return cls(
            ids[0], ids[1], ids[2], ids[3], ids[4], n_image, n_landed, space_blocks, began_ns, text, flags,
            trees[0], trees[1], trees[2], bytes(data[_LENDER_OFFSET : _LENDER_OFFSET + _ID_BYTES]),
            tuple(each for each in members if each != NO_ID),
        )  # fmt: skip


class IncomingImage:
    """An entry and its planes."""

    def __init__(self, entry: IncomingEntry, reader: BlockReader, local: LocalTree | None) -> None:
        self.entry = entry
        self.places = BlockTree(reader, entry.places, local)
        self.landed = BlockTree(reader, entry.landed, local)
        self._map_tree = BlockTree(reader, entry.place_map, local)

    @property
    def trees(self) -> tuple[BlockTree, BlockTree, BlockTree]:
        """All of its trees."""
        return self.places, self.landed, self._map_tree

    def placemap(self) -> PlaceMap:
        """Return where its blocks lie."""
        return PlaceMap.decode(read_all(self._map_tree, EXTENT_BYTES)) if self._map_tree.root.size_bytes else PlaceMap()

    def landed_leaf(self, leaf: int) -> Leaf:
        """Return at which places of a leaf's range its blocks are durable; do not write to it."""
        return self.landed.read_block(leaf).view(np.uint64)

    def fill(self, places: dict[int, Leaf], placemap: PlaceMap) -> None:
        """Write down what is reserved."""
        for leaf, words in places.items():
            self.places.edit_block(leaf).view(np.uint64)[:] = words
        if not placemap.is_empty:
            write_all(self._map_tree, placemap.encode())

    def relocate(self, old: NDArray[np.int64], new: NDArray[np.int64], landed: dict[int, Leaf]) -> None:
        """Take other places for some of those reserved; what has landed at the old ones, by leaf, has at the new."""
        before = self.placemap()
        came = bits_of(lambda leaf: landed.get(leaf, EMPTY_LEAF), old)
        write_all(self._map_tree, moved(before, before.to_vbns(old), new).encode())
        noted = bits_of(self.landed_leaf, old)
        for tree, gone, come in ((self.places, old, new), (self.landed, old[noted], new[came])):
            for leaf, low in by_leaf(gone):
                clear_numbers(tree.edit_block(leaf).view(np.uint64), low)
            for leaf, low in by_leaf(come):
                set_numbers(tree.edit_block(leaf).view(np.uint64), low)
        self.entry.n_landed += int(came.sum()) - int(noted.sum())

    def add_landed(self, leaf: int, words: Leaf) -> None:
        """Note places whose blocks are durable, the set bits of words."""
        into = self.landed.edit_block(leaf).view(np.uint64)
        self.entry.n_landed += count(words & ~into)
        into |= words


class Incoming:
    """The incoming images of a local tree, older first.

    Parameters
    ----------
    writes : whether the local tree is that of the open CP.
    """

    def __init__(self, local: LocalTree, reader: BlockReader, writes: bool) -> None:
        self._local = local
        self._reader = reader
        self._writer = local if writes else None
        self.table = BlockTree(reader, local.root.incoming, self._writer)
        self._images: list[IncomingImage] | None = None
        self._is_dirty = False

    @property
    def n_stored(self) -> int:
        """How many images the table had when it was last written."""
        return self.table.root.size_bytes // INCOMING_BYTES

    def images(self) -> list[IncomingImage]:
        """Return the images; the table is not read where there are none."""
        if self._images is None:
            data = read_all(self.table, INCOMING_BYTES) if self.table.root.size_bytes else b""
            starts = range(0, len(data), INCOMING_BYTES)
            self._images = [self._open(IncomingEntry.decode(data[at : at + INCOMING_BYTES])) for at in starts]
        return self._images

    def _open(self, entry: IncomingEntry) -> IncomingImage:
        return IncomingImage(entry, self._reader, self._writer)

    def trees(self) -> list[BlockTree]:
        """Return every tree of the images."""
        return [tree for image in self.images() for tree in image.trees]

    def find(self, landing_id: bytes) -> IncomingImage | None:
        """Return the image of a receive."""
        return next((image for image in self.images() if image.entry.landing_id == landing_id), None)

    def add(self, entry: IncomingEntry) -> IncomingImage:
        """Take up an image."""
        entry.places.size_bytes = entry.landed.size_bytes = self._local.held.size_bytes
        image = self._open(entry)
        self.images().append(image)
        self.changed()
        return image

    def remove(self, image: IncomingImage) -> None:
        """Give an image's entry and planes up."""
        self.images().remove(image)
        for tree in image.trees:
            tree.punch(0, tree.capacity_blocks())
        self.changed()

    def changed(self) -> None:
        """Note that an entry or a plane changed: the open CP writes it."""
        self._is_dirty = self._local.is_dirty = True

    def store(self) -> None:
        """Write planes and entries that changed; part of a commit of the local tree."""
        if not self._is_dirty:
            return
        for tree in self.trees():
            tree.flush()
        write_all(self.table, b"".join(image.entry.encode() for image in self.images()))
        self._is_dirty = False


class IncomingPlane:
    """The places that incoming images have reserved: of receives under way here, and of those interrupted."""

    def __init__(self, local_of: Callable[[], LocalTree]) -> None:
        self._local_of = local_of
        self._leaves: dict[int, Leaf] = {}
        #: landing ids of receives under way here: their places are in `_leaves`
        self._running: set[bytes] = set()

    def _waiting(self) -> Iterator[IncomingImage]:
        """Yield the images that no receive is bringing now."""
        for image in self._local_of().incoming.images():
            if image.entry.landing_id not in self._running:
                yield image

    @property
    def is_running(self) -> bool:
        """Whether a receive is under way."""
        return bool(self._leaves)

    def __bool__(self) -> bool:
        return bool(self._leaves) or any(True for _ in self._waiting())

    @property
    def n_blocks(self) -> int:
        """How many places are reserved."""
        return sum(count(words) for words in self._leaves.values()) + sum(w.entry.n_image for w in self._waiting())

    def leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range are reserved; do not write to it."""
        words = self._leaves.get(leaf, EMPTY_LEAF)
        for image in self._waiting():
            words = words | image.places.read_block(leaf).view(np.uint64)
        return words

    def reserve(self, leaf: int, words: Leaf) -> None:
        """Reserve places for a receive under way."""
        self._leaves[leaf] = self._leaves.get(leaf, EMPTY_LEAF) | words

    def give_up(self, leaf: int, words: Leaf) -> None:
        """Take back what was reserved."""
        rest = self._leaves.get(leaf, EMPTY_LEAF) & ~words
        if rest.any():
            self._leaves[leaf] = rest
        else:
            self._leaves.pop(leaf, None)

    def runs(self, landing_id: bytes) -> bool:
        """Whether a receive is under way."""
        return landing_id in self._running

    def start(self, landing_id: bytes) -> None:
        """Note that a receive has its places reserved here."""
        self._running.add(landing_id)

    def stop(self, landing_id: bytes) -> None:
        """Note that it has not."""
        self._running.discard(landing_id)


def leaves_of(tree: BlockTree) -> Iterator[tuple[int, Leaf]]:
    """Yield (index, bits) of a plane's leaves that exist and are not empty, fresh."""
    for start, stop in tree.data_extents().tolist():
        for leaf in range(start, stop):
            words = tree.read_block(leaf).view(np.uint64).copy()
            if words.any():
                yield leaf, words
