"""Planes made from words that come in ascending order, such as the leaves of a blockmap."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np

from blockplane.model import Extents, Words
from blockplane.planes import portable, runs
from blockplane.planes.dense import DenseBits
from blockplane.planes.roaring import WINDOW_BLOCKS, WINDOW_WORDS, RoaringBits, Windows
from blockplane.planes.words import WORD_BITS, WORD_BYTES, allocate_words, as_words, has_bits_from, words_for

Bits: TypeAlias = DenseBits | RoaringBits

#: Dense words are taken where Roaring would not save at least three quarters of them: fused expressions over dense
#: words run at the speed of memory, over Roaring containers four to ten times slower a byte.
_ROARING_SAVES: Final = 4
#: So many extents are added to a bitmap one by one (0.3 us each); more are worth a pass over windows.
_FEW_EXTENTS: Final = 1000


class BitsBuilder:
    """Collects ascending words as Roaring containers and gives the cheaper form in the end.

    One window of words is dense at a time; what lies before it is compressed already, so that memory is bounded by
    the result and 512 KiB.
    """

    def __init__(self, n_blocks: int) -> None:
        self._n_blocks = n_blocks
        self._window = np.zeros(WINDOW_WORDS, np.uint64)
        self._window_start = 0
        self._used = (0, 0)
        self._rows = [np.empty((0, 4), np.int64)]
        self._data = [np.empty(0, np.uint8)]

    def append(self, first_word: int, words: Words) -> None:
        """Take words that follow all that were taken before."""
        words = as_words(words)
        if first_word < self._window_start + self._used[1]:
            raise ValueError(f"word {first_word} does not follow word {self._window_start + self._used[1]}")
        if has_bits_from(words, self._n_blocks - first_word * WORD_BITS):
            raise ValueError(f"a bit past the {self._n_blocks} blocks of the plane is set")
        while words.size:
            start = first_word // WINDOW_WORDS * WINDOW_WORDS
            if start != self._window_start:
                self._compress()
                self._window_start = start
            at = first_word - start
            here = words[: WINDOW_WORDS - at]
            self._window[at : at + here.size] = here
            low, high = self._used
            self._used = (min(low, at) if high else at, at + here.size)
            first_word, words = first_word + here.size, words[here.size :]

    def append_extents(self, extents: Extents) -> None:
        """Take extents, ascending and apart, that follow all that was taken before; they are used up."""
        base = 0
        while len(extents):
            base = max(base, int(extents[0, 0]) // WINDOW_BLOCKS * WINDOW_BLOCKS)
            stop = base + WINDOW_BLOCKS
            n_here = int(np.searchsorted(extents[:, 0], stop))
            words = np.zeros(min(WINDOW_WORDS, words_for(self._n_blocks - base)), np.uint64)
            runs.fill_extents(words, np.minimum(extents[:n_here], stop), base)
            self.append(base // WORD_BITS, words)
            if extents[n_here - 1, 1] > stop:
                n_here -= 1
                extents[n_here, 0] = stop
            extents, base = extents[n_here:], stop

    def _compress(self) -> None:
        """Turn the window's words into containers and clear them."""
        low, high = self._used
        if high:
            low -= low % portable.CONTAINER_WORDS
            first = (self._window_start + low) // portable.CONTAINER_WORDS
            words = self._window[low:high]
            rows = portable.measure(words, first).copy()
            self._rows.append(rows)
            self._data.append(portable.encode(words, rows, first))
            words.fill(0)
        self._used = (0, 0)

    def finish(self) -> Bits:
        """Return what was collected, in the cheaper form; the builder is spent."""
        self._compress()
        wide = portable.is_wide(self._n_blocks)
        data = portable.assemble(np.concatenate(self._rows), np.concatenate(self._data), wide)
        self._rows, self._data = [], []
        if data.size * _ROARING_SAVES <= words_for(self._n_blocks) * WORD_BYTES:
            return RoaringBits.from_portable(data.tobytes(), self._n_blocks)
        words = allocate_words(words_for(self._n_blocks))
        Windows(data, wide).into(words)
        return DenseBits(words, self._n_blocks)


def bits_of_extents(extents: Extents, n_blocks: int) -> Bits:
    """Return bits of extents that are ascending, apart and used up by it, in the cheaper form."""
    if len(extents) > _FEW_EXTENTS:
        builder = BitsBuilder(n_blocks)
        builder.append_extents(extents)
        return builder.finish()
    bits = RoaringBits.empty(n_blocks)
    for start, stop in extents.tolist():
        bits.fill(start, stop, True)
    if bits.n_bytes * _ROARING_SAVES <= words_for(n_blocks) * WORD_BYTES:
        return bits
    return DenseBits(bits.to_words(), n_blocks)
