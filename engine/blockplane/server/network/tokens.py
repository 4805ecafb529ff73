"""What one side has of an interrupted transfer, for the other to go on from."""

from __future__ import annotations

from blockplane.model.errors import RefusedError, StreamError
from blockplane.server.network.codec import WireError
from blockplane.transfer.resume import ResumeToken, interrupted_receives, resume_token
from blockplane.volume.live import LiveVolume

#: What any volume may have: 16 TiB.
_LEAST_BLOCKS = 1 << 32


def token_for(volume: LiveVolume, image_id: bytes | None, most_bytes: int) -> bytes:
    """Return the token of an image, or else of the receive that was interrupted last; empty: none was.

    Parameters
    ----------
    most_bytes : of a token; a longer one is not given, and what it says is sent again.
    """
    waiting = [found for found in interrupted_receives(volume) if not found.is_running]
    if not waiting:
        return b""
    chosen = next((found for found in waiting if found.image_id == image_id), waiting[-1])
    try:
        token = resume_token(volume, chosen.image_id.hex()).encode()
    except RefusedError:  # it ended meanwhile
        return b""
    return token if len(token) <= most_bytes else b""


def most_blocks_for(volume: LiveVolume) -> int:
    """Return how many block numbers another volume of the same numbering may speak of: they bound the memory."""
    return max(4 * max(volume.geometry.n_blocks, volume.active.space_blocks), _LEAST_BLOCKS)


def decode_token(data: bytes, n_blocks: int) -> ResumeToken | None:
    """Read what `token_for` gave; WireError: it is none.

    n_blocks : block numbers of the volume that it should be of; of fewer than 2^32 as many. They bound the memory.
    """
    if not data:
        return None
    try:
        return ResumeToken.decode(data, max(n_blocks, _LEAST_BLOCKS))
    except StreamError as error:
        raise WireError(f"a token cannot be read: {error.message}") from error
