import numpy as np
import numpy.typing as npt

_Int64s = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

def to_disk(groups: _Int64s, members: _Int64s, places: _Int64s, disk: _Int64s, dbn: _Int64s) -> int: ...
def from_disk(
    groups: _Int64s, members: _Int64s, homes: _Int64s, disk: _Int64s, dbn: _Int64s, places: _Int64s
) -> int: ...
def count_pieces(groups: _Int64s, members: _Int64s, extents: _Int64s) -> int: ...
def split_extents(
    groups: _Int64s,
    members: _Int64s,
    extents: _Int64s,
    disk: _Int64s,
    dbn: _Int64s,
    n_blocks: _Int64s,
    position: _Int64s,
) -> int: ...
def split_bands(groups: _Int64s, members: _Int64s, extents: _Int64s, n_stripes: int, out: _Int64s) -> int: ...
def count_window_extents(group_row: _Int64s, first: int, words: _Words, merge: bool, counts: _Int64s) -> None: ...
def window_extents(
    group_row: _Int64s,
    first: int,
    words: _Words,
    merge: bool,
    counts: _Int64s,
    dbn: _Int64s,
    n_blocks: _Int64s,
    place: _Int64s,
) -> None: ...
def stripe_busy(words: _Words, n_data: int, chunk_words: int, out: _Words) -> None: ...
def disk_words(words: _Words, chunk_words: int, out: _Words) -> None: ...
