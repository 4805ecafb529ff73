import numpy as np
import numpy.typing as npt

_Int64s = npt.NDArray[np.int64]

def read_segments(
    fd: int, offsets: _Int64s, lengths: _Int64s, buffer: npt.NDArray[np.uint8], positions: _Int64s
) -> int: ...
def read_blocks(
    fd: int,
    offsets: _Int64s,
    buffer: npt.NDArray[np.uint8],
    numbers: _Int64s,
    expected: npt.NDArray[np.uint32],
) -> tuple[int, int]: ...
