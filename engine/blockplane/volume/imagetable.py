"""Stored images in the local tree: definitions over snapshot ids, and the planes they had when they were saved."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import UsageError, VolumeDamagedError
from blockplane.planes import Plane
from blockplane.volume.codec import NAME_BYTES, TREE_ROOT_BYTES, TreeRoot
from blockplane.volume.leafbits import LEAF_WORDS
from blockplane.volume.markplane import MarkPlane
from blockplane.volume.state import read_all, write_all
from blockplane.volume.tree import BlockTree, touched
from blockplane.volume.treeio import BlockReader
from blockplane.volume.waiting import leaves_of_plane

if TYPE_CHECKING:
    from blockplane.volume.local import LocalTree

_IMAGE = struct.Struct("<16sqQHHB127s")
_PLANE = 192
_DEFINITION = 512
#: Of the definition's text, and of the same with the names that it was given with.
TEXT_BYTES = 3840
IMAGE_BYTES = _DEFINITION + 2 * TEXT_BYTES
#: 8 KiB each.
MAX_IMAGES = 256


@dataclass(slots=True)
class StoredImage:
    """An image that was saved (8,192 bytes).

    definition : the expression, each snapshot by its id, each stored image by its own. written : with names, as it was
    saved. n_blocks : how many blocks it held then; plane: which.
    """

    id: bytes
    name: str
    definition: str
    written: str
    n_blocks: int
    made_ns: int
    plane: TreeRoot = field(default_factory=TreeRoot)

    def encode(self) -> bytes:
        """Return the 8,192 bytes."""
        name, texts = self.name.encode(), (self.definition.encode(), self.written.encode())
        head = _IMAGE.pack(self.id, self.made_ns, self.n_blocks, *map(len, texts), len(name), name)
        front = (head.ljust(_PLANE, b"\0") + self.plane.encode()).ljust(_DEFINITION, b"\0")
        return front + b"".join(text.ljust(TEXT_BYTES, b"\0") for text in texts)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> StoredImage:
        """Read 8,192 bytes; VolumeDamagedError: a text is not one."""
        own, made_ns, n_blocks, n_definition, n_written, n_name, name = _IMAGE.unpack_from(data)
        starts = (_DEFINITION, _DEFINITION + TEXT_BYTES)
        sizes = (min(n_definition, TEXT_BYTES), min(n_written, TEXT_BYTES))
        try:
            texts = [bytes(data[at : at + n]).decode() for at, n in zip(starts, sizes, strict=True)]
            text = name[:n_name].decode()
        except UnicodeDecodeError:
            raise VolumeDamagedError("the text of a stored image is not UTF-8", "run `blockplane check`") from None
        plane = TreeRoot.decode(data[_PLANE : _PLANE + TREE_ROOT_BYTES])
        return cls(own, text, texts[0], texts[1], n_blocks, made_ns, plane)


class ImageTable:
    """The stored images of a local tree.

    Parameters
    ----------
    writer : the local tree where it is that of the open CP, else None. note : told that something changed.
    """

    def __init__(
        self, table: BlockTree, reader: BlockReader, writer: LocalTree | None, note: Callable[[], None]
    ) -> None:
        self._table = table
        self._reader = reader
        self._writer = writer
        self._note = note

    def all(self) -> list[StoredImage]:
        """Return the stored images, older first."""
        data = read_all(self._table, IMAGE_BYTES)
        return [StoredImage.decode(data[at : at + IMAGE_BYTES]) for at in range(0, len(data), IMAGE_BYTES)]

    def trees(self) -> list[BlockTree]:
        """Return their planes."""
        if not self._table.size_bytes:
            return []
        return [BlockTree(self._reader, image.plane) for image in self.all()]

    def plane(self, image: StoredImage) -> MarkPlane:
        """Return the blocks that an image held when it was saved."""
        return MarkPlane([BlockTree(self._reader, image.plane)])

    def refuse(self, image: StoredImage) -> None:
        """Refuse an image that cannot be stored.

        Raises
        ------
        UsageError: there are too many, or its text is too long.
        """
        if len(self.all()) >= MAX_IMAGES:
            raise UsageError(f"there are {MAX_IMAGES} stored images", "delete some: image delete VOL NAME")
        if max(len(image.definition.encode()), len(image.written.encode())) > TEXT_BYTES:
            raise UsageError(
                f"the definition of {image.name} is too long to be stored: at most {TEXT_BYTES} bytes, and each "
                "snapshot counts as 34",
                "use ranges, or store parts of it and join them by name",
            )

    def add(self, image: StoredImage, plane: Plane) -> None:
        """Store an image that `refuse` lets pass, and its plane as a blockmap."""
        assert len(image.name.encode()) <= NAME_BYTES
        images = self.all()
        tree = BlockTree(self._reader, image.plane, self._writer)
        for leaf in leaves_of_plane(plane):
            words = plane.word_range(leaf * LEAF_WORDS, min(LEAF_WORDS, -(-plane.n_blocks // 64) - leaf * LEAF_WORDS))
            tree.edit_block(leaf).view(np.uint64)[: len(words)] = words
            tree.size_bytes = (leaf + 1) * BLOCK_BYTES
        tree.flush()
        self._write([*images, image])

    def remove(self, image: StoredImage) -> None:
        """Drop an image and its plane."""
        tree = BlockTree(self._reader, image.plane, self._writer)
        tree.punch(0, tree.capacity_blocks())
        self._write([other for other in self.all() if other.id != image.id])

    def touch_within(self, start: int, stop: int, most: int) -> int:
        """See `LocalTree.touch_within`."""
        images, n_touched = self.all() if self._table.size_bytes else [], 0
        for image in images:
            tree = BlockTree(self._reader, image.plane, self._writer)
            n_touched += touched(tree, start, stop, most - n_touched, self._note)
        if n_touched:
            self._write(images)
        return n_touched

    def _write(self, images: list[StoredImage]) -> None:
        write_all(self._table, b"".join(image.encode() for image in images))
        self._note()
