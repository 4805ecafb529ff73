"""The Roaring form of a plane: pyroaring's bitmaps, 32-bit up to 2**32 blocks, 64-bit beyond.

Whatever looks at many blocks goes through the portable format and dense windows of it, so that the kernels see words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap, BitMap64

from blockplane.model import Bytes, Extents, Numbers, Words
from blockplane.planes import portable, runs
from blockplane.planes.numbers import distinct
from blockplane.planes.words import WORD_BITS, allocate_words, words_for

Bitmap: TypeAlias = BitMap | BitMap64

#: Containers decoded at a time: 512 KiB of words, which stay in the L2 cache while they are looked at.
WINDOW_CONTAINERS: Final = 64
WINDOW_WORDS: Final = WINDOW_CONTAINERS * portable.CONTAINER_WORDS
WINDOW_BLOCKS: Final = WINDOW_WORDS * WORD_BITS
#: What CRoaring keeps for a container beside its data: key, kind, pointer, capacity.
_CONTAINER_BYTES: Final = 32


def bitmap_type(n_blocks: int) -> type[Bitmap]:
    """Return the bitmap class for a plane of this many blocks."""
    return BitMap64 if portable.is_wide(n_blocks) else BitMap


class Windows:
    """Dense windows of a serialised bitmap, decoded one at a time into one buffer."""

    def __init__(self, data: Bytes, wide: bool) -> None:
        self._data = data
        self._rows = portable.read_rows(data, wide)
        self._keys = self._rows[:, 0]
        self._buffer = np.zeros(WINDOW_WORDS, np.uint64)

    def starts(self) -> npt.NDArray[np.int64]:
        """First words of the windows that hold a container, ascending."""
        return distinct(self._keys // WINDOW_CONTAINERS) * WINDOW_WORDS

    def window(self, first_word: int, n_words: int = WINDOW_WORDS) -> Words | None:
        """Return the window's words, or its first n_words, valid until the next call; None where they are empty."""
        first, n_containers = first_word // portable.CONTAINER_WORDS, -(-n_words // portable.CONTAINER_WORDS)
        low, high = np.searchsorted(self._keys, [first, first + n_containers])
        if low == high:
            return None
        return self._decoded(low, high, first, n_containers * portable.CONTAINER_WORDS)[:n_words]

    def head(self, first_word: int) -> Words:
        """Return the words of a window that holds a container, up to its last one; valid until the next call."""
        first = first_word // portable.CONTAINER_WORDS
        low, high = np.searchsorted(self._keys, [first, first + WINDOW_CONTAINERS])
        return self._decoded(low, high, first, (int(self._keys[high - 1]) + 1 - first) * portable.CONTAINER_WORDS)

    def _decoded(self, low: int, high: int, first: int, n_words: int) -> Words:
        words = self._buffer[:n_words]
        words.fill(0)
        portable.decode_window(self._data, self._rows[low:high], first, words)
        return words

    def into(self, words: Words) -> None:
        """Write all of the bitmap to zeroed words that begin with block 0."""
        portable.decode_window(self._data, self._rows, 0, words)


class RoaringBits:
    """A bitmap of blocks below ``n_blocks``."""

    def __init__(self, bitmap: Bitmap, n_blocks: int) -> None:
        self.bitmap = bitmap
        self.n_blocks = n_blocks

    @classmethod
    def empty(cls, n_blocks: int) -> RoaringBits:
        """No blocks."""
        return cls(bitmap_type(n_blocks)(), n_blocks)

    @classmethod
    def from_portable(cls, data: bytes, n_blocks: int) -> RoaringBits:
        """Read bytes that the caller has judged."""
        return cls(bitmap_type(n_blocks).deserialize(data), n_blocks)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory; O(containers)."""
        n = self.bitmap.get_statistics()
        data = n["n_bytes_array_containers"] + n["n_bytes_run_containers"] + n["n_bytes_bitset_containers"]
        return data + _CONTAINER_BYTES * n["n_containers"]

    def serialize(self) -> bytes:
        """Portable format, each container in its smallest kind."""
        self.bitmap.run_optimize()
        return self.bitmap.serialize()

    def fit_width(self) -> None:
        """Turn the bitmap into the class that ``n_blocks`` asks for."""
        if isinstance(self.bitmap, bitmap_type(self.n_blocks)):
            return
        data = self.bitmap.serialize()
        data = portable.widen(data) if portable.is_wide(self.n_blocks) else portable.narrow(data)
        self.bitmap = bitmap_type(self.n_blocks).deserialize(data)

    def windows(self, start: int = 0, stop: int | None = None) -> Windows:
        """Return the blocks ``[start, stop)`` as windows; a copy that later changes do not touch."""
        return Windows(portable.as_bytes(self.part(start, stop).serialize()), portable.is_wide(self.n_blocks))

    def part(self, start: int, stop: int | None) -> Bitmap:
        """Return the bitmap cut to ``[start, stop)``; itself where that is all of it."""
        stop = self.n_blocks if stop is None else stop
        if start == 0 and stop == self.n_blocks:
            return self.bitmap
        return self.bitmap & type(self.bitmap)(range(start, stop))  # type: ignore[operator]

    def to_words(self) -> Words:
        """Return fresh words."""
        words = allocate_words(words_for(self.n_blocks))
        self.windows().into(words)
        return words

    def copy(self) -> RoaringBits:
        """Return an independent copy."""
        return RoaringBits(self.bitmap.copy(), self.n_blocks)

    def count(self) -> int:
        """Return the number of blocks; O(containers)."""
        return len(self.bitmap)

    def count_range(self, start: int, stop: int) -> int:
        """Return the number of blocks in ``[start, stop)``."""
        return self.bitmap.range_cardinality(start, stop)

    def select(self, index: int) -> int:
        """Return the block with ``index`` blocks of the plane before it."""
        if not 0 <= index < len(self.bitmap):
            raise IndexError(f"there is no block of index {index}")
        return self.bitmap[index]

    def contains(self, number: int) -> bool:
        """Whether the block is in; ``number`` is within the plane."""
        return number in self.bitmap

    def contains_many(self, numbers: Numbers) -> npt.NDArray[np.bool_]:
        """Return one answer a number; O(n log n) in the numbers."""
        inside = numbers[(numbers >= 0) & (numbers < self.n_blocks)]
        hits = self.bitmap & self._of_numbers(inside)  # type: ignore[operator]
        item = np.uint64 if portable.is_wide(self.n_blocks) else np.uint32
        # The last value is one that no search finds by mistake.
        found = np.append(np.frombuffer(hits.to_array(), item).astype(np.int64), -1)
        answers: npt.NDArray[np.bool_] = (numbers >= 0) & (found[np.searchsorted(found[:-1], numbers)] == numbers)
        return answers

    def _of_numbers(self, numbers: Numbers) -> Bitmap:
        data = portable.from_numbers(distinct(numbers), portable.is_wide(self.n_blocks))
        return type(self.bitmap).deserialize(data.tobytes())

    def fill(self, start: int, stop: int, value: bool) -> None:
        """Add or remove ``[start, stop)``."""
        if value:
            self.bitmap.add_range(start, stop)
        else:
            self.bitmap.remove_range(start, stop)

    def add_many(self, numbers: Numbers) -> int:
        """Add blocks; return how many were in already or came twice."""
        before = len(self.bitmap)
        self.bitmap |= self._of_numbers(numbers)  # type: ignore[operator]
        return numbers.size - (len(self.bitmap) - before)

    def remove_many(self, numbers: Numbers) -> int:
        """Remove blocks; return how many were not in or came twice."""
        before = len(self.bitmap)
        self.bitmap -= self._of_numbers(numbers)  # type: ignore[operator]
        return numbers.size - (before - len(self.bitmap))

    def set_words(self, first_word: int, words: Words) -> None:
        """Put words into the plane; the caller has judged the range."""
        stop_block = min((first_word + words.size) * WORD_BITS, self.n_blocks)
        self.bitmap.remove_range(first_word * WORD_BITS, stop_block)
        first = first_word // portable.CONTAINER_WORDS
        lead = first_word - first * portable.CONTAINER_WORDS
        padded = np.concatenate([np.zeros(lead, np.uint64), words])
        rows = portable.measure(padded, first)
        data = portable.assemble(rows, portable.encode(padded, rows, first), portable.is_wide(self.n_blocks))
        self.bitmap |= type(self.bitmap).deserialize(data.tobytes())  # type: ignore[operator]

    def word_range(self, first_word: int, n_words: int) -> Words:
        """Return fresh words of the plane, zero past its end."""
        first = first_word // portable.CONTAINER_WORDS
        lead = first_word - first * portable.CONTAINER_WORDS
        out = np.zeros(lead + n_words, np.uint64)
        stop = min((first_word + n_words) * WORD_BITS, self.n_blocks)
        if first_word * WORD_BITS < stop:
            data = portable.as_bytes(self.part(first_word * WORD_BITS, stop).serialize())
            portable.decode_window(data, portable.read_rows(data, portable.is_wide(self.n_blocks)), first, out)
        return out[lead:]

    def extents(self, start: int, stop: int) -> Extents:
        """Runs of ``[start, stop)``."""
        chunks = list(runs.join_touching(self._window_extents(start, stop)))
        return np.concatenate(chunks) if chunks else runs.empty_extents()

    def iter_extents(self, start: int, stop: int, max_extents: int) -> Iterator[Extents]:
        """Runs of ``[start, stop)``, some at a time."""
        for chunk in runs.join_touching(self._window_extents(start, stop)):
            for at in range(0, len(chunk), max_extents):
                yield chunk[at : at + max_extents]

    def _window_extents(self, start: int, stop: int) -> Iterator[Extents]:
        windows = self.windows(start, stop)
        for first_word in windows.starts().tolist():
            words = windows.head(first_word)
            yield runs.extents_of(words, 0, words.size * WORD_BITS, first_word * WORD_BITS)

    def free_extents(self, start: int, stop: int, min_blocks: int, max_extents: int) -> Extents:
        """Runs of blocks of ``[start, stop)`` that are not in."""
        taken = self.extents(start, stop)
        edges: Extents = np.concatenate([[start], taken.ravel(), [stop]]).reshape(-1, 2)
        wide_enough: Extents = edges[edges[:, 1] - edges[:, 0] >= max(min_blocks, 1)]
        return wide_enough[:max_extents]
