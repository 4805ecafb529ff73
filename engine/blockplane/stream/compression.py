"""zstd for the payloads of data frames: one frame of zstd for one frame of the stream.

Nothing is decompressed before its CRC was compared, and never into more than the blocks that the frame claims.
"""

from __future__ import annotations

import re
import sys
import threading
from typing import TYPE_CHECKING, Final

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError, UsageError
from blockplane.stream.codec import FrameHead

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

#: Measured on one core, over C headers, Python sources and shared objects: level 1 leaves 20, 25, 42 % of the bytes, at
#: 500, 420, 430 MB/s; 3 leaves 16, 23, 39 %, at 430, 310, 250; 4 takes longer for nothing; 5 leaves 15, 22, 37 %, at
#: 180, 150, 120. Turn it down where what waits for the stream takes more than 250 MB/s for each core.
DEFAULT_LEVEL: Final = 3
MIN_LEVEL: Final = 1
MAX_LEVEL: Final = 19
#: A reader allows windows of 8 MiB, whatever a stream asks for; a writer's never exceed its frame.
_WINDOW_LOG_MAX: Final = 23
#: The bit of a zstd frame's descriptor that says that there is no window but its content, and no window descriptor.
_SINGLE_SEGMENT: Final = 0x20
#: What the probe compresses of a frame: 4 pieces of 16 KiB, spread over it.
_N_PROBES: Final = 4
_PROBE_BYTES: Final = 16 << 10
#: A frame that would keep more than this share of its bytes is sent as it is: less is gained than reading back costs.
_WORTH_SHARE: Final = 15 / 16

_local = threading.local()


def parse_compression(text: str) -> int:
    """Return the level of `zstd` or `zstd:LEVEL`; UsageError: it is neither."""
    match = re.fullmatch(r"zstd(?::(\d{1,2}))?", text)
    level = int(match[1]) if match and match[1] else DEFAULT_LEVEL
    if not match or not MIN_LEVEL <= level <= MAX_LEVEL:
        raise UsageError(f"no compression is called {text!r}", f"say zstd, or zstd:{MIN_LEVEL} to zstd:{MAX_LEVEL}")
    return level


def pack(payload: memoryview, level: int) -> bytes | None:
    """Return a frame's payload compressed, or None where it is not worth it.

    Notes
    -----
    Any number of threads, one compressor object each; the GIL is released.
    """
    compressor = _compressor(level)
    if len(payload) > 2 * _N_PROBES * _PROBE_BYTES and not _shrinks(payload, level):
        return None
    compressor.set_pledged_input_size(len(payload))
    packed: bytes = compressor.compress(payload, zstd.ZstdCompressor.FLUSH_FRAME)
    return packed if len(packed) < len(payload) * _WORTH_SHARE else None


def _shrinks(payload: memoryview, level: int) -> bool:
    """Try samples of a payload."""
    step = len(payload) // _N_PROBES
    sample = b"".join(payload[at : at + _PROBE_BYTES] for at in range(0, _N_PROBES * step, step))
    compressor = _compressor(level)
    compressor.set_pledged_input_size(len(sample))
    return len(compressor.compress(sample, zstd.ZstdCompressor.FLUSH_FRAME)) < len(sample) * _WORTH_SHARE


def _compressor(level: int) -> zstd.ZstdCompressor:
    """Return this thread's compressor."""
    mine: dict[int, zstd.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in mine:
        mine[level] = zstd.ZstdCompressor(level)
    return mine[level]


def unpack(head: FrameHead, stored: memoryview) -> bytes:
    """Return the blocks of a compressed frame, not yet held against their checks.

    Raises
    ------
    StreamDamagedError : the bytes do not match the head's CRC, are not one whole frame of zstd, or not of the blocks
        that the head claims.
    """
    if crc32c(stored) != head.payload_crc:
        raise StreamDamagedError(f"frame {head.sequence} does not match its checksum", "fetch the stream again")
    n_bytes = head.n_blocks * BLOCK_BYTES
    try:
        if zstd.get_frame_info(stored).decompressed_size != n_bytes:
            raise _wrong_size(head)
        if _window_bytes(stored) > 1 << _WINDOW_LOG_MAX:
            raise zstd.ZstdError("it asks for a window of more than 8 MiB")
        decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
        # one byte more than there may be: the end of the frame is seen even where the buffer is full
        data: bytes = decompressor.decompress(stored, n_bytes + 1)
    except zstd.ZstdError as error:
        message = f"frame {head.sequence} cannot be decompressed: {error}"
        raise StreamDamagedError(message, "fetch the stream again") from error
    if len(data) != n_bytes or not decompressor.eof or decompressor.unused_data:
        raise _wrong_size(head)
    return data


def _window_bytes(stored: memoryview) -> int:
    """Return the window a frame asks for (RFC 8878, 3.1.1.1.2), 0: its content. libzstd looks only when it must."""
    if stored[4] & _SINGLE_SEGMENT:
        return 0
    exponent, mantissa = stored[5] >> 3, stored[5] & 7
    return (1 << 10 + exponent) * (8 + mantissa) // 8


def _wrong_size(head: FrameHead) -> StreamDamagedError:
    return StreamDamagedError(
        f"frame {head.sequence} does not decompress to the {head.n_blocks} blocks that it claims",
        "fetch the stream again",
    )
