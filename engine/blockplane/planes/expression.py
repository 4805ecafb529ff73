"""One-pass evaluation of expressions over planes' bits; the door to the algebra kernel.

Operands of one form meet in that form's own kernels. Mixed ones meet in dense windows of 512 KiB; a window to which no
summand contributes is not looked at. A plane counts as empty past its end, so that planes from before and after a
volume grew combine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import or_, xor
from typing import Any, Final, NamedTuple

import numpy as np

from blockplane._native import algebra as _kernel
from blockplane.model import Words
from blockplane.planes import portable
from blockplane.planes.builder import Bits, BitsBuilder
from blockplane.planes.dense import DenseBits
from blockplane.planes.roaring import WINDOW_WORDS, Bitmap, RoaringBits, Windows
from blockplane.planes.words import allocate_words, words_for

#: Name of the kernel that evaluates dense words on this machine.
KERNEL_NAME: Final = _kernel.kernel_name()
#: Words of each operand that one thread takes at a time: 32 MiB, so that out is still written around the caches. From
#: two pieces on all cores share them. One core reads 30 GB/s here and two read 34; where a core has less of the
#: memory's speed, threads win more.
PIECE_WORDS: Final = 4 << 20


class Expression(NamedTuple):
    """((plus[0] | plus[1] | ...) - minus) & within; with ``exclusive``, ``^`` between the summands."""

    plus: tuple[Bits, ...]
    minus: Bits | None = None
    within: Bits | None = None
    exclusive: bool = False

    @property
    def operands(self) -> list[Bits]:
        """All that are read."""
        return [*self.plus, *(bits for bits in (self.minus, self.within) if bits is not None)]

    @property
    def n_blocks(self) -> int:
        """Blocks of the largest summand: nothing of the result lies past them."""
        return max(bits.n_blocks for bits in self.plus)


def evaluate(expression: Expression) -> Bits:
    """Return the result in memory: Roaring where only Roaring bounds it, else dense."""
    if all(isinstance(bits, RoaringBits) for bits in expression.operands):
        return RoaringBits(_roaring(expression), expression.n_blocks)
    if _is_bounded_by_roaring(expression):
        return _build(expression)
    out = DenseBits.empty(expression.n_blocks)
    evaluate_into(expression, out)
    return out


def evaluate_into(expression: Expression, out: DenseBits) -> int:
    """Write the result to dense bits, which may be an operand; return the count."""
    words = out.writable()
    n_words = words_for(expression.n_blocks)
    if all(isinstance(bits, DenseBits) for bits in expression.operands):
        count = _dense(expression, words)
    else:
        count = sum(n for _, n in _mixed(expression, words))
    words[n_words:] = 0
    out.writable(count)
    return count


def count(expression: Expression) -> int:
    """Return the number of blocks of the result, which is not written anywhere."""
    if all(isinstance(bits, DenseBits) for bits in expression.operands):
        return _dense(expression, None)
    if all(isinstance(bits, RoaringBits) for bits in expression.operands):
        return _roaring_count(expression)
    return sum(n for _, n in _mixed(expression, None))


def _dense(expression: Expression, out: Words | None) -> int:
    """Run the kernel from each operand's end to the next one's: one span where all are of one length."""
    n_words = words_for(expression.n_blocks)
    ends = sorted({n_words, *(min(words_for(bits.n_blocks), n_words) for bits in expression.operands)})
    total, start = 0, 0
    for stop in ends:
        if start < stop:
            total += _dense_span(expression, start, stop, None if out is None else out[start:stop])
        start = stop
    return total


def _dense_span(expression: Expression, start: int, stop: int, out: Words | None) -> int:
    """Evaluate words that every operand either has, or ends before."""

    def cut(bits: Bits | None) -> Words | None:
        reaches = isinstance(bits, DenseBits) and bits.array.size >= stop
        return bits.array[start:stop] if reaches else None  # type: ignore[union-attr]

    within = cut(expression.within)
    plus = [words for words in map(cut, expression.plus) if words is not None]
    if not plus or (expression.within is not None and within is None):
        if out is not None:
            out.fill(0)
        return 0
    return _by_all_cores(plus, cut(expression.minus), within, out, expression.exclusive)


def _by_all_cores(
    plus: list[Words], minus: Words | None, within: Words | None, out: Words | None, exclusive: bool
) -> int:
    """Run the kernel over words of one length; pieces of a long span run side by side."""

    def piece(start: int) -> int:
        def cut(words: Words | None) -> Words | None:
            return None if words is None else words[start : start + PIECE_WORDS]

        terms = [words[start : start + PIECE_WORDS] for words in plus]
        return _kernel.combine(terms, cut(minus), cut(within), cut(out), exclusive=exclusive)

    operands = [*plus, *(words for words in (minus, within) if words is not None)]
    if plus[0].size < 2 * PIECE_WORDS or _overlap_in_part(out, operands):  # the kernel refuses the latter
        return _kernel.combine(plus, minus, within, out, exclusive=exclusive)
    with ThreadPoolExecutor(os.cpu_count(), "plane algebra") as threads:
        return sum(threads.map(piece, range(0, plus[0].size, PIECE_WORDS)))


def _overlap_in_part(out: Words | None, operands: list[Words]) -> bool:
    if out is None:
        return False
    return any(np.may_share_memory(out, words) and out.ctypes.data != words.ctypes.data for words in operands)


class _Operand:
    """Any bits, seen through dense windows."""

    def __init__(self, bits: Bits) -> None:
        self._dense = bits if isinstance(bits, DenseBits) else None
        self._windows: Windows | None = bits.windows() if isinstance(bits, RoaringBits) else None

    def window(self, start: int, stop: int) -> Words | None:
        """Return words ``[start, stop)``, or None where the operand is known to be empty."""
        if self._windows is not None:
            return self._windows.window(start, stop - start)
        assert self._dense is not None
        if start >= self._dense.array.size:
            return None
        return self._dense.word_range(start, stop - start)


def _mixed(expression: Expression, out: Words | None) -> Iterator[tuple[int, int]]:
    """Evaluate window by window: yields each window's first word and count once ``out`` holds it."""
    n_words = words_for(expression.n_blocks)
    plus = [_Operand(bits) for bits in expression.plus]
    minus, within = (None if b is None else _Operand(b) for b in (expression.minus, expression.within))
    for start in range(0, n_words, WINDOW_WORDS):
        stop = min(start + WINDOW_WORDS, n_words)
        target = None if out is None else out[start:stop]
        bound = within.window(start, stop) if within else None
        terms = [] if within and bound is None else [term.window(start, stop) for term in plus]
        summands = [words for words in terms if words is not None]
        if summands:
            less = minus.window(start, stop) if minus else None
            yield start, _kernel.combine(summands, less, bound, target, exclusive=expression.exclusive)
        elif target is not None:
            target.fill(0)
            yield start, 0


def _is_bounded_by_roaring(expression: Expression) -> bool:
    return isinstance(expression.within, RoaringBits) or all(isinstance(b, RoaringBits) for b in expression.plus)


def _build(expression: Expression) -> Bits:
    """Evaluate a mixed expression that Roaring operands bound, never holding all of it dense."""
    builder = BitsBuilder(expression.n_blocks)
    n_words = words_for(expression.n_blocks)
    window = allocate_words(min(WINDOW_WORDS, n_words))
    for start, n_blocks in _mixed(expression, _Everywhere(window)):  # type: ignore[arg-type]
        if n_blocks:
            builder.append(start, window[: min(WINDOW_WORDS, n_words - start)])
    return builder.finish()


class _Everywhere:
    """One window's words, whichever window is asked for."""

    def __init__(self, window: Words) -> None:
        self._window = window

    def __getitem__(self, words: slice) -> Words:
        return self._window[: words.stop - words.start]


def _roaring(expression: Expression) -> Bitmap:
    wide = portable.is_wide(expression.n_blocks)
    result: Bitmap = _sum_of_bitmaps(expression, wide)
    if expression.minus is not None:
        result = result - _bitmap(expression.minus, wide)
    if expression.within is not None:
        result = result & _bitmap(expression.within, wide)
    return result.copy() if len(expression.operands) == 1 else result


def _roaring_count(expression: Expression) -> int:
    wide = portable.is_wide(expression.n_blocks)
    result = _sum_of_bitmaps(expression, wide)
    if expression.within is not None and expression.minus is None:
        return int(result.intersection_cardinality(_bitmap(expression.within, wide)))
    if expression.within is not None:
        result = result & _bitmap(expression.within, wide)
    if expression.minus is not None:
        return int(result.difference_cardinality(_bitmap(expression.minus, wide)))
    return len(result)


def _sum_of_bitmaps(expression: Expression, wide: bool) -> Any:
    return reduce(xor if expression.exclusive else or_, (_bitmap(bits, wide) for bits in expression.plus))


def _bitmap(bits: Bits, wide: bool) -> Any:
    """Return the operand's bitmap, as wide as the result; Any, since one width at a time has the operators' types."""
    assert isinstance(bits, RoaringBits)
    if portable.is_wide(bits.n_blocks) == wide:
        return bits.bitmap
    fitting = RoaringBits(bits.bitmap, portable.NARROW_BLOCKS + 1)
    if not wide:
        fitting = RoaringBits(bits.part(0, portable.NARROW_BLOCKS), portable.NARROW_BLOCKS)
    fitting.fit_width()
    return fitting.bitmap
