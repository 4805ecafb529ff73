"""From what lies in a stream to a data frame's blocks: authenticated and decrypted first, decompressed then."""

from __future__ import annotations

from blockplane.stream.codec import FrameHead
from blockplane.stream.compression import unpack


def contents(head: FrameHead, stored: memoryview) -> bytes:
    """Return the blocks of a frame that does not lie bare, not yet held against their checks.

    Raises
    ------
    StreamDamagedError : what is stored is not what was written, or not of the blocks that the head claims.
    """
    if head.sealing is None:
        return unpack(head, stored)
    opened = head.sealing.open(stored)
    return unpack(head, memoryview(opened)) if head.is_packed else opened
