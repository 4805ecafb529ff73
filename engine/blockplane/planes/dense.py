"""The dense form of a plane: one bit per block in 64-bit words, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from blockplane._native import bits as _kernel
from blockplane.model import Extents, Numbers, ReadOnlyError, Words
from blockplane.planes import runs
from blockplane.planes.words import WORD_BITS, allocate_words, has_bits_from, words_for


class DenseBits:
    """Words and, while it is known, the number of bits set in them.

    Bits past ``n_blocks`` are zero at all times, so every kernel may run over whole words. Nobody else writes to the
    words: ``view`` gives them out read-only.
    """

    def __init__(self, words: Words, n_blocks: int, count: int | None = None) -> None:
        self.array = words
        self.n_blocks = n_blocks
        self._count = count

    @classmethod
    def empty(cls, n_blocks: int) -> DenseBits:
        """No blocks."""
        return cls(allocate_words(words_for(n_blocks)), n_blocks, 0)

    @property
    def n_bytes(self) -> int:
        """Bytes of address space; pages never written take no memory."""
        return self.array.nbytes

    def view(self) -> Words:
        """Return the words themselves, read-only."""
        view = self.array.view()
        view.flags.writeable = False
        return view

    def writable(self, count: int | None = None) -> Words:
        """Return the words for a change that leaves ``count`` bits set (None: not known)."""
        if not self.array.flags.writeable:
            raise ReadOnlyError("a plane that is mapped for reading cannot be changed")
        self._count = count
        return self.array

    def copy(self) -> DenseBits:
        """Return an independent copy in memory."""
        words = allocate_words(self.array.size)
        words[:] = self.array
        return DenseBits(words, self.n_blocks, self._count)

    def count(self) -> int:
        """Bits set; O(n) once, then remembered until a change whose effect is not known."""
        if self._count is None:
            self._count = _kernel.count(self.array, 0, self.n_blocks)
        return self._count

    def count_range(self, start: int, stop: int) -> int:
        """Bits set in ``[start, stop)``."""
        return _kernel.count(self.array, start, stop)

    def select(self, index: int) -> int:
        """Return the block with ``index`` blocks of the plane before it."""
        return _kernel.select(self.array, index)

    def contains(self, number: int) -> bool:
        """Whether the bit is set; ``number`` is within the plane."""
        return bool(int(self.array[number // WORD_BITS]) >> number % WORD_BITS & 1)

    def contains_many(self, numbers: Numbers) -> npt.NDArray[np.bool_]:
        """Return one answer a number."""
        out = np.empty(numbers.size, np.uint8)
        _kernel.contains_many(self.array, numbers, out)
        return out.view(np.bool_)

    def fill(self, start: int, stop: int, value: bool) -> None:
        """Set or clear ``[start, stop)``."""
        known = self._count
        if known is not None:
            known += (stop - start if value else 0) - self.count_range(start, stop)
        runs.fill_extents(self.writable(known), np.array([[start, stop]], np.int64), value=value)

    def add_many(self, numbers: Numbers) -> int:
        """Set bits; return how many were set already or came twice."""
        known = self._count
        same = _kernel.add_many(self.writable(), numbers)
        self._count = None if known is None else known + numbers.size - same
        return same

    def remove_many(self, numbers: Numbers) -> int:
        """Clear bits; return how many were clear already or came twice."""
        known = self._count
        same = _kernel.remove_many(self.writable(), numbers)
        self._count = None if known is None else known - (numbers.size - same)
        return same

    def set_words(self, first_word: int, words: Words) -> None:
        """Put words into the plane; the caller has judged the range."""
        target = self.array[first_word : first_word + words.size]
        known = self._count
        if known is not None:
            n_bits = target.size * WORD_BITS
            known += _kernel.count(words, 0, n_bits) - _kernel.count(target, 0, n_bits)
        self.writable(known)[first_word : first_word + words.size] = words

    def word_range(self, first_word: int, n_words: int) -> Words:
        """Return words of the plane: a read-only view, or a padded copy where they reach past its end."""
        if first_word + n_words <= self.array.size:
            return self.view()[first_word : first_word + n_words]
        out = np.zeros(n_words, np.uint64)
        rest = self.array[first_word:]
        out[: rest.size] = rest
        return out

    def extents(self, start: int, stop: int) -> Extents:
        """Runs of ``[start, stop)``."""
        return runs.extents_of(self.array, start, stop)

    def iter_extents(self, start: int, stop: int, max_extents: int) -> Iterator[Extents]:
        """Runs of ``[start, stop)``, some at a time."""
        return runs.iter_extents(self.array, start, stop, max_extents)

    def free_extents(self, start: int, stop: int, min_blocks: int, max_extents: int) -> Extents:
        """Runs of clear bits of ``[start, stop)``."""
        return runs.free_extents(self.array, start, stop, min_blocks, max_extents)

    def check(self) -> None:
        """Refuse words that say something about blocks past the end.

        Raises
        ------
        ValueError : a bit past ``n_blocks`` is set, or the number of words is another one.
        """
        if self.array.size != words_for(self.n_blocks):
            raise ValueError(
                f"{self.array.size} words; a plane of {self.n_blocks} blocks has {words_for(self.n_blocks)}"
            )
        if has_bits_from(self.array, self.n_blocks):
            raise ValueError(f"a bit past the {self.n_blocks} blocks of the plane is set")
