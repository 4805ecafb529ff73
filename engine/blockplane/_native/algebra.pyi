from typing import Final

import numpy as np
import numpy.typing as npt

STREAM_OUT_BYTES: Final[int]

def kernel_names() -> tuple[str, ...]: ...
def kernel_name() -> str: ...
def combine(
    plus: list[npt.NDArray[np.uint64]],
    minus: npt.NDArray[np.uint64] | None = None,
    within: npt.NDArray[np.uint64] | None = None,
    out: npt.NDArray[np.uint64] | None = None,
    *,
    exclusive: bool = False,
    kernel: str | None = None,
) -> int: ...
def read(words: npt.NDArray[np.uint64], *, kernel: str | None = None) -> int: ...
