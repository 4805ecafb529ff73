import numpy as np
import numpy.typing as npt

def count(words: npt.NDArray[np.uint64], start: int, stop: int) -> int: ...
def runs(
    words: npt.NDArray[np.uint64],
    start: int,
    stop: int,
    out: npt.NDArray[np.int64],
    *,
    base: int = 0,
    zeros: bool = False,
    min_blocks: int = 1,
) -> tuple[int, int]: ...
def fill(
    words: npt.NDArray[np.uint64], extents: npt.NDArray[np.int64], *, base: int = 0, value: bool = True
) -> None: ...
def take(words: npt.NDArray[np.uint64], extents: npt.NDArray[np.int64], *, base: int = 0) -> int: ...
