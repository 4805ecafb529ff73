"""The plane of a snapshot, read out of streams: its blockmap file, as far as the streams hold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blockplane.model.errors import BlockplaneError, StreamDamagedError, StreamPartMissingError
from blockplane.planes import Plane
from blockplane.stream.source import StreamChain
from blockplane.volume.codec import FORM_TREE, NUMBER_MASK, ROOT_POINTERS
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS
from blockplane.volume.state import State
from blockplane.volume.treeread import FETCH_BLOCKS, NODE_SHIFT, TreeReader


@dataclass(frozen=True, slots=True)
class HeldPlane:
    """plane : what the leaves in the streams say. is_whole : no leaf is missing; else the others are the base's own."""

    plane: Plane
    is_whole: bool


def plane_in(chain: StreamChain) -> HeldPlane:
    """Return the plane of the snapshot that a chain is open at.

    Where the chain does not begin with a full stream, leaves that are in none of its streams are blocks of the base:
    there the snapshot holds what the base holds, so that nothing the streams bring is missing from the plane.

    Raises
    ------
    StreamDamagedError : the blockmap contradicts itself or the streams. StreamPartMissingError : it is not all there.

    Notes
    -----
    Reads the blockmap, a block for 32,768 blocks. Work is bounded by the blocks of the streams.
    """
    try:
        state = State.open(chain)
        return _read(chain, state.blockmap)
    except (StreamDamagedError, StreamPartMissingError):
        raise
    except (BlockplaneError, ValueError) as error:
        raise StreamDamagedError(
            f"the block map of {chain.snapshot.name} in the streams is damaged: {error}"
        ) from error


def _read(chain: StreamChain, tree: TreeReader) -> HeldPlane:
    space_blocks = max(file.map.header.space_blocks for file in chain.path)
    walk = _Walk(chain, tree, -(-space_blocks // LEAF_BLOCKS))
    builder = Plane.builder(space_blocks)
    leaves = list(walk.leaves())
    for at in range(0, len(leaves), FETCH_BLOCKS):
        batch = leaves[at : at + FETCH_BLOCKS]
        tree.fetch_blocks(batch)
        for leaf in batch:
            words = tree.read_block(leaf).view("u8")
            builder.append(leaf * LEAF_WORDS, words[: -(-space_blocks // 64) - leaf * LEAF_WORDS])
    return HeldPlane(builder.finish(), walk.is_whole)


class _Walk:
    """Down a blockmap tree, past what the streams do not hold."""

    def __init__(self, chain: StreamChain, tree: TreeReader, n_leaves: int) -> None:
        self._chain, self._tree, self._n_leaves = chain, tree, n_leaves
        self.is_whole = True
        #: a tree has each block once: one that leads in circles is noticed here
        self._seen: set[int] = set()

    def leaves(self) -> Iterator[int]:
        """Yield the leaves that are there, ascending."""
        if self._tree.root.form == FORM_TREE:
            yield from self._below(self._tree.root.depth, range(ROOT_POINTERS))

    def _below(self, level: int, indexes: range) -> Iterator[int]:
        for index in indexes:
            word, _ = self._tree.pointer(level, index) if index << NODE_SHIFT * level < self._n_leaves else (0, 0)
            if not word:
                continue
            number = word & NUMBER_MASK
            if not self._chain.holds(number):
                self.is_whole = False
                continue
            if number in self._seen:
                raise StreamDamagedError(f"the block map of {self._chain.snapshot.name} leads in circles")
            self._seen.add(number)
            if level == 0:
                yield index
            else:
                yield from self._below(level - 1, range(index << NODE_SHIFT, (index + 1) << NODE_SHIFT))
