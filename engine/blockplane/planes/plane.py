"""`Plane`: a set of block numbers in one of two forms."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from blockplane.model import Extents, Numbers, Words
from blockplane.planes import portable
from blockplane.planes.builder import Bits, BitsBuilder, bits_of_extents
from blockplane.planes.dense import DenseBits
from blockplane.planes.expression import Expression, count, evaluate, evaluate_into
from blockplane.planes.numbers import as_numbers
from blockplane.planes.roaring import Bitmap, RoaringBits
from blockplane.planes.runs import as_extents, normalise
from blockplane.planes.words import WORD_BITS, MapMode, as_words, has_bits_from, map_words, words_for

_MAX_EXTENTS: Final = 65_536


class Form(StrEnum):
    """How a plane is held."""

    DENSE = "dense"
    ROARING = "roaring"


class Plane:
    """Block numbers from 0 to ``n_blocks``, some of them in.

    Two forms: ``dense`` (a bit per block in words, in memory or mapped from a file) for planes that change with
    allocation, and ``roaring`` (containers) for sparse planes, archives and the wire. Operators give the form that
    the result is bounded by: Roaring where a Roaring operand bounds it, dense otherwise. ``==`` compares blocks, not
    forms nor ``n_blocks``.

    Not safe for one thread to change while another looks. Dense kernels release the GIL, pyroaring's do not.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, bits: Bits) -> None:
        self.bits = bits

    # -- making one

    @classmethod
    def empty(cls, n_blocks: int, form: Form | str = Form.ROARING) -> Plane:
        """Return a plane of no blocks."""
        if n_blocks < 0:
            raise ValueError(f"a plane of {n_blocks} blocks")
        return cls(DenseBits.empty(n_blocks) if Form(form) is Form.DENSE else RoaringBits.empty(n_blocks))

    @classmethod
    def from_extents(cls, extents: npt.ArrayLike, n_blocks: int) -> Plane:
        """Return a plane of extents, in its cheapest form.

        Parameters
        ----------
        extents : (n, 2) half-open ranges in any order; they may touch and overlap.
        """
        ranges = as_extents(extents)
        if len(ranges) and (ranges.min() < 0 or ranges.max() > n_blocks):
            raise ValueError(f"an extent reaches outside the {n_blocks} blocks of the plane")
        return cls(bits_of_extents(normalise(ranges), n_blocks))

    @classmethod
    def from_words(cls, words: Words, n_blocks: int) -> Plane:
        """Return a dense plane over words, which are not copied and belong to the plane from now on.

        Raises
        ------
        ValueError : not ``n_blocks`` bits in whole words, or a bit past the end is set.
        """
        bits = DenseBits(as_words(words), n_blocks)
        bits.check()
        return cls(bits)

    @classmethod
    def from_roaring(cls, bitmap: Bitmap, n_blocks: int) -> Plane:
        """Return a Roaring plane over a bitmap, which belongs to the plane from now on if its width fits."""
        if len(bitmap) and bitmap.max() >= n_blocks:
            raise ValueError(f"block {bitmap.max()} lies outside the {n_blocks} blocks of the plane")
        bits = RoaringBits(bitmap, n_blocks)
        bits.fit_width()
        return cls(bits)

    @classmethod
    def open(cls, path: Path | str, n_blocks: int, mode: MapMode) -> Plane:
        """Return a dense plane mapped from a file of words: ``r`` to read, ``r+`` to change, ``w+`` to make one.

        Raises
        ------
        ValueError : the file is not as long as the plane, or a bit past the end is set.
        OSError : it cannot be opened.
        """
        bits = DenseBits(map_words(path, words_for(n_blocks), mode), n_blocks)
        bits.check()
        return cls(bits)

    @classmethod
    def builder(cls, n_blocks: int) -> PlaneBuilder:
        """Return a builder that takes ascending words."""
        return PlaneBuilder(n_blocks)

    @classmethod
    def deserialize(cls, data: bytes | bytearray | memoryview, n_blocks: int) -> Plane:
        """Return a Roaring plane read from the portable format: 32-bit form up to 2**32 blocks, 64-bit beyond.

        Raises
        ------
        PlaneFormatError : the bytes are no such bitmap, or hold a block outside the plane.
        """
        view = portable.as_bytes(data)
        portable.validate(view, portable.read_rows(view, portable.is_wide(n_blocks)), n_blocks)
        return cls(RoaringBits.from_portable(view.tobytes(), n_blocks))

    # -- what it is

    @property
    def n_blocks(self) -> int:
        """Size of the space, not of the set."""
        return self.bits.n_blocks

    @property
    def form(self) -> Form:
        """How it is held."""
        return Form.DENSE if isinstance(self.bits, DenseBits) else Form.ROARING

    @property
    def n_bytes(self) -> int:
        """Bytes that holding it takes."""
        return self.bits.n_bytes

    def __repr__(self) -> str:
        return f"Plane({len(self)} of {self.n_blocks} blocks, {self.form})"

    def __len__(self) -> int:
        return self.bits.count()

    def __bool__(self) -> bool:
        return self.bits.count() > 0

    def count(self, start: int = 0, stop: int | None = None) -> int:
        """Return how many blocks of ``[start, stop)`` are in."""
        if start == 0 and stop is None:
            return self.bits.count()
        return self.bits.count_range(*self._range(start, stop))

    def rank(self, number: int) -> int:
        """Return how many blocks below ``number`` are in."""
        return self.bits.count_range(*self._range(0, number))

    def select(self, index: int) -> int:
        """Return the block that has ``index`` blocks of the plane before it; IndexError where there is none."""
        return self.bits.select(index)

    def __contains__(self, number: int) -> bool:
        return 0 <= number < self.n_blocks and self.bits.contains(int(number))

    def contains_many(self, numbers: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return for each number whether it is in; numbers outside the plane are not."""
        return self.bits.contains_many(as_numbers(numbers))

    def extents(self, start: int = 0, stop: int | None = None) -> Extents:
        """Return the blocks of ``[start, stop)`` as fresh extents, cut at both ends."""
        return self.bits.extents(*self._range(start, stop))

    def iter_extents(
        self, max_extents: int = _MAX_EXTENTS, start: int = 0, stop: int | None = None
    ) -> Iterator[Extents]:
        """Yield the extents up to ``max_extents`` at a time, in memory bounded by them."""
        if max_extents < 1:
            raise ValueError(f"{max_extents} extents at a time")
        return self.bits.iter_extents(*self._range(start, stop), max_extents)

    def free_extents(
        self, start: int = 0, stop: int | None = None, *, min_blocks: int = 1, max_extents: int = _MAX_EXTENTS
    ) -> Extents:
        """Return the first runs of at least ``min_blocks`` blocks of ``[start, stop)`` that are not in."""
        return self.bits.free_extents(*self._range(start, stop), min_blocks, max_extents)

    def words(self) -> Words:
        """Return all words: a read-only view of a dense plane, a fresh array of a Roaring one."""
        return self.bits.view() if isinstance(self.bits, DenseBits) else self.bits.to_words()

    def word_range(self, first_word: int, n_words: int) -> Words:
        """Return a window of words, zero past the end: a read-only view where the form allows, else fresh."""
        if first_word < 0 or n_words < 0:
            raise ValueError(f"{n_words} words from word {first_word}")
        return self.bits.word_range(first_word, n_words)

    def roaring(self) -> Bitmap:
        """Return a bitmap: the plane's own, not to be changed, or a fresh one of a dense plane."""
        bits = self.to_roaring().bits
        assert isinstance(bits, RoaringBits)
        return bits.bitmap

    def serialize(self) -> bytes:
        """Return the portable Roaring format: 32-bit form up to 2**32 blocks, 64-bit form beyond."""
        if isinstance(self.bits, RoaringBits):
            return self.bits.serialize()
        return portable.from_words(self.bits.array, portable.is_wide(self.n_blocks)).tobytes()

    # -- copies and forms

    def copy(self) -> Plane:
        """Return an independent plane of the same form, in memory."""
        return Plane(self.bits.copy())

    def to_dense(self) -> Plane:
        """Return this plane if it is dense, else a dense one."""
        if isinstance(self.bits, DenseBits):
            return self
        return Plane(DenseBits(self.bits.to_words(), self.n_blocks, self.bits.count()))

    def to_roaring(self) -> Plane:
        """Return this plane if it is Roaring, else a Roaring one."""
        if isinstance(self.bits, RoaringBits):
            return self
        return Plane(RoaringBits.from_portable(self.serialize(), self.n_blocks))

    def flush(self) -> None:
        """Write a plane mapped from a file out to it."""
        if isinstance(self.bits, DenseBits) and isinstance(self.bits.array, np.memmap):
            self.bits.array.flush()

    # -- changes

    def add(self, start: int, stop: int) -> None:
        """Put ``[start, stop)`` in."""
        self.bits.fill(*self._range(start, stop), True)

    def remove(self, start: int, stop: int) -> None:
        """Take ``[start, stop)`` out."""
        self.bits.fill(*self._range(start, stop), False)

    def add_many(self, numbers: npt.ArrayLike) -> int:
        """Put blocks in, in any order; return how many were in already or came twice.

        Raises
        ------
        ValueError : a number lies outside the plane; nothing has changed then.
        """
        return self.bits.add_many(self._numbers_inside(numbers))

    def remove_many(self, numbers: npt.ArrayLike) -> int:
        """Take blocks out, in any order; return how many were not in or came twice.

        Raises
        ------
        ValueError : a number lies outside the plane; nothing has changed then.
        """
        return self.bits.remove_many(self._numbers_inside(numbers))

    def set_words(self, first_word: int, words: Words) -> None:
        """Put words into the plane; they may reach past its end if they are zero there.

        Raises
        ------
        ValueError : not words, or a bit past the end is set.
        """
        words = as_words(words)
        if first_word < 0 or has_bits_from(words, max(0, self.n_blocks - first_word * WORD_BITS)):
            raise ValueError(f"words from {first_word} on set a bit outside the {self.n_blocks} blocks of the plane")
        words = words[: max(0, words_for(self.n_blocks) - first_word)]
        if words.size:
            self.bits.set_words(first_word, words)

    # -- algebra

    def __or__(self, other: Plane) -> Plane:
        return Plane(evaluate(Expression((self.bits, other.bits))))

    def __sub__(self, other: Plane) -> Plane:
        return Plane(evaluate(Expression((self.bits,), minus=other.bits)))

    def __and__(self, other: Plane) -> Plane:
        return Plane(evaluate(Expression((self.bits,), within=other.bits)))

    def __xor__(self, other: Plane) -> Plane:
        return Plane(evaluate(Expression((self.bits, other.bits), exclusive=True)))

    def __ior__(self, other: Plane) -> Plane:
        return self.assign(Expression((self.bits, other.bits)))

    def __isub__(self, other: Plane) -> Plane:
        return self.assign(Expression((self.bits,), minus=other.bits))

    def __iand__(self, other: Plane) -> Plane:
        return self.assign(Expression((self.bits,), within=other.bits))

    def __ixor__(self, other: Plane) -> Plane:
        return self.assign(Expression((self.bits, other.bits), exclusive=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plane):
            return NotImplemented
        if len(self) != len(other):
            return False
        return count(Expression((self.bits,), minus=other.bits)) == 0

    def assign(self, expression: Expression) -> Plane:
        """Become the result of an expression, in the form this plane has; return this plane."""
        if expression.n_blocks > self.n_blocks:
            raise ValueError(f"{expression.n_blocks} blocks do not fit a plane of {self.n_blocks}")
        if isinstance(self.bits, DenseBits):
            evaluate_into(expression, self.bits)
        else:
            result = Plane(evaluate(expression)).roaring()
            self.bits.bitmap = result
            self.bits.fit_width()
        return self

    # -- judging arguments

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        stop = self.n_blocks if stop is None else stop
        if not 0 <= start <= stop <= self.n_blocks:
            raise ValueError(f"blocks {start} to {stop} are not a range of the {self.n_blocks} blocks of the plane")
        return start, stop

    def _numbers_inside(self, numbers: npt.ArrayLike) -> Numbers:
        array = as_numbers(numbers)
        if array.size and (array.min() < 0 or array.max() >= self.n_blocks):
            raise ValueError(f"a block lies outside the {self.n_blocks} blocks of the plane")
        return array


class PlaneBuilder:
    """Makes a plane from ascending words, in memory bounded by the result."""

    def __init__(self, n_blocks: int) -> None:
        self._bits = BitsBuilder(n_blocks)

    def append(self, first_word: int, words: Words) -> None:
        """Take words that follow all that were taken before.

        Raises
        ------
        ValueError : they do not follow, or a bit past the end is set.
        """
        self._bits.append(first_word, words)

    def finish(self) -> Plane:
        """Return the plane in its cheapest form; the builder is spent."""
        return Plane(self._bits.finish())
