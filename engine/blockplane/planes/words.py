"""The words of dense planes: how many, where they lie in memory, which bits of the last one are no blocks."""

from __future__ import annotations

import mmap
from itertools import count
from pathlib import Path
from typing import Final, Literal

import numpy as np

from blockplane.model import Words

WORD_BITS: Final = 64
WORD_BYTES: Final = 8

MapMode = Literal["r", "r+", "w+"]

#: From here on words get pages of their own.
_MAPPED_BYTES: Final = 4 << 20
#: Large planes begin at different offsets of a page. Equal offsets make equal positions of all operands fall into the
#: same cache sets: four operands of 128 MiB were read at 24 GB/s, and at 31 with 512 bytes between their offsets.
_COLOUR_WORDS: Final = 64
_N_COLOURS: Final = 8
_ALIGN_WORDS: Final = 8
_colours = count()


def words_for(n_blocks: int) -> int:
    """Words that hold one bit for each of ``n_blocks``."""
    return -(-n_blocks // WORD_BITS)


def allocate_words(n_words: int) -> Words:
    """Fresh zero words, aligned to 64 bytes; pages of large ones take no memory until written."""
    if n_words * WORD_BYTES < _MAPPED_BYTES:
        raw = np.zeros(n_words + _ALIGN_WORDS, np.uint64)
        start = -(raw.ctypes.data // WORD_BYTES) % _ALIGN_WORDS
    else:
        start = next(_colours) % _N_COLOURS * _COLOUR_WORDS
        pages = mmap.mmap(-1, (start + n_words) * WORD_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(pages, np.uint64)
    return raw[start : start + n_words]


def map_words(path: Path | str, n_words: int, mode: MapMode) -> Words:
    """Words in a file: ``r`` to read, ``r+`` to change, ``w+`` to make a new file of zeros.

    Raises
    ------
    ValueError : the file does not have exactly ``n_words`` words.
    OSError : it cannot be opened.
    """
    path = Path(path)
    if mode != "w+" and path.stat().st_size != n_words * WORD_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a plane of {n_words} words has {n_words * 8}")
    if n_words == 0:
        path.touch()
        return np.zeros(0, np.uint64)
    return np.memmap(path, np.uint64, mode, shape=(n_words,))


def has_bits_from(words: Words, n_blocks: int) -> bool:
    """Whether a bit at or past ``n_blocks`` is set."""
    whole, rest = divmod(n_blocks, WORD_BITS)
    if whole >= words.size:
        return False
    if rest and int(words[whole]) >> rest:
        return True
    return bool(words[whole + (rest > 0) :].any())


def as_words(words: object) -> Words:
    """View an array as little-endian words.

    Raises
    ------
    ValueError : not a one-dimensional, C-contiguous array of uint64.
    """
    if not isinstance(words, np.ndarray) or words.dtype != np.uint64 or words.ndim != 1:
        raise ValueError("words are not a one-dimensional array of uint64")
    if not words.flags.c_contiguous:
        raise ValueError("words are not contiguous")
    return words
