"""From what lies in a stream to a data frame's blocks: authenticated and decrypted first, decompressed then."""

from __future__ import annotations

import threading

from blockplane.stream.codec import MAX_PAYLOAD_BYTES, FrameHead
from blockplane.stream.compression import unpack

_local = threading.local()


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


def passing_contents(head: FrameHead, stored: memoryview) -> bytes | memoryview:
    """Return the same, to be used before this thread asks again: decrypted into memory that the thread keeps."""
    if head.sealing is None:
        return unpack(head, stored)
    scratch: memoryview = _local.__dict__.setdefault("scratch", memoryview(bytearray(MAX_PAYLOAD_BYTES)))
    opened = scratch[: head.sealing.into(stored, scratch)]
    return unpack(head, opened) if head.is_packed else opened
