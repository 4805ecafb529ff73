import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

_Int64s = npt.NDArray[np.int64]
_Bytes = npt.NDArray[np.uint8]

def read_plan(
    fd: int,
    dbn: _Int64s,
    n_blocks: _Int64s,
    buffer: _Bytes,
    positions: _Int64s,
    numbers: _Int64s | None = None,
    expected: npt.NDArray[np.uint32] | None = None,
    max_request_blocks: int = 256,
    max_gap_blocks: int = 0,
) -> tuple[int, int, int]: ...
def write_plan(
    fd: int,
    dbn: _Int64s,
    n_blocks: _Int64s,
    buffer: _Bytes,
    positions: _Int64s,
    end_block: int,
    max_request_blocks: int = 256,
) -> tuple[int, int]: ...
def write_gathered(
    fd: int,
    dbn: _Int64s,
    n_blocks: _Int64s,
    buffers: list[_Bytes],
    positions: _Int64s,
    end_block: int,
    max_request_blocks: int = 256,
) -> tuple[int, int]: ...
def writev_all(fd: int, buffers: list[Buffer]) -> int: ...
def writev_segments(fd: int, buffer: _Bytes, starts: _Int64s, lengths: _Int64s) -> int: ...
