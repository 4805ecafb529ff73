"""What an encrypted stream shows: the head of its header, and the fixed part of each frame; the rest is sealed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError, StreamError, StreamOrderError
from blockplane.stream.codec.header import HEADER_FIXED_BYTES, header_length, require_known, text_of
from blockplane.stream.codec.words import (
    FEATURE_SEALED,
    FRAME_FIXED_BYTES,
    MAX_HEAD_BYTES,
    MAX_PAYLOAD_BYTES,
)
from blockplane.volume.features import Features

SEALED_MAGIC: Final = b"BPse"
#: AES-256-GCM with tags of 16 bytes.
CIPHER_AES_256_GCM: Final = 1
#: What sealing adds to whatever is sealed.
SEAL_TAG_BYTES: Final = 16
KEY_ID_BYTES: Final = 16
SALT_BYTES: Final = 32

_CRC = struct.Struct("<I")
_FEATURES_OFFSET: Final = 16
_HEADER_BYTES_OFFSET: Final = 12
#: Fields of the header that say something of the contents: zeros where it can be read.
_HIDDEN: Final = ((88, 104), (160, 208), (224, 256), (264, HEADER_FIXED_BYTES))
_SHOWN = struct.Struct("<QQQ32s16s16s16s16s16sII")
_CREATED = struct.Struct("<Q")
_CREATED_OFFSET: Final = 256
_SEAL = struct.Struct("<HHI8x16s32s")
_CLEAR_BYTES: Final = HEADER_FIXED_BYTES + _SEAL.size


@dataclass(frozen=True, slots=True)
class Envelope:
    """What can be read of an encrypted stream without its key.

    clear : these bytes themselves, which opening the rest authenticates. sealed : the header, sealed.
    """

    writer: str
    stream_id: bytes
    space_id: bytes
    top_id: bytes
    base_id: bytes
    created_ns: int
    key_id: bytes
    salt: bytes
    clear: bytes
    sealed: bytes


def is_sealed(header: bytes) -> bool:
    """Tell whether a header is of an encrypted stream."""
    return bool(struct.unpack_from("<Q", header, _FEATURES_OFFSET)[0] & FEATURE_SEALED)


def encode_clear(header: bytes, key_id: bytes, salt: bytes) -> bytes:
    """Return what stands before the sealed header, given a stream's whole header."""
    clear = bytearray(header[:HEADER_FIXED_BYTES])
    for start, stop in _HIDDEN:
        clear[start:stop] = bytes(stop - start)
    n_sealed = len(header) + SEAL_TAG_BYTES
    _CRC.pack_into(clear, _HEADER_BYTES_OFFSET, _CLEAR_BYTES + n_sealed + _CRC.size)
    return bytes(clear) + _SEAL.pack(CIPHER_AES_256_GCM, 0, n_sealed, key_id, salt)


def encode_envelope(clear: bytes, sealed: bytes) -> bytes:
    """Return the header of an encrypted stream."""
    return clear + sealed + _CRC.pack(crc32c(clear + sealed))


def decode_envelope(data: bytes) -> Envelope:
    """Read the header of an encrypted stream, as far as it can be without its key.

    Raises
    ------
    StreamDamagedError : its CRC32C is wrong, or its lengths are impossible.
    StreamError : it needs features or a cipher that this release does not know.
    """
    if len(data) != header_length(data) or crc32c(data[:-4]) != _CRC.unpack_from(data, len(data) - 4)[0]:
        raise StreamDamagedError("the stream's header does not match its checksum", "fetch the stream again")
    if len(data) <= _CLEAR_BYTES + SEAL_TAG_BYTES + _CRC.size:
        raise StreamDamagedError(f"the stream's header of {len(data)} bytes holds no sealed one", "")
    features = Features(*_SHOWN.unpack_from(data, _FEATURES_OFFSET)[:3])
    require_known(features)
    cipher, zero, n_sealed, key_id, salt = _SEAL.unpack_from(data, HEADER_FIXED_BYTES)
    if cipher != CIPHER_AES_256_GCM or zero:
        raise StreamError(f"the stream is encrypted in an unknown way ({cipher})", "upgrade blockplane")
    if _CLEAR_BYTES + n_sealed + _CRC.size != len(data):
        raise StreamDamagedError(f"the stream's header of {len(data)} bytes claims {n_sealed} sealed ones", "")
    _, _, _, writer, stream_id, _, space_id, top_id, base_id, _, _ = _SHOWN.unpack_from(data, _FEATURES_OFFSET)
    created_ns = _CREATED.unpack_from(data, _CREATED_OFFSET)[0]
    return Envelope(
        text_of(writer), stream_id, space_id, top_id, base_id, created_ns, key_id, salt,
        data[:_CLEAR_BYTES], data[_CLEAR_BYTES : -_CRC.size],
    )  # fmt: skip


_SEALED_FRAME = struct.Struct("<4sHHQIIQQI")
_AUTHENTICATED_BYTES: Final = 40


@dataclass(frozen=True, slots=True)
class SealedHead:
    """The fixed part of a sealed frame: where it stands, how long its sealed head and payload are, who wrote it.

    run : random, of the process that wrote the frame; names the key it is sealed with.
    """

    sequence: int
    head_bytes: int
    payload_bytes: int
    tag: int
    run: int
    payload_crc: int
    head_crc: int

    @property
    def rest_bytes(self) -> int:
        """Bytes of the sealed head, which follows."""
        return self.head_bytes - FRAME_FIXED_BYTES

    def fixed(self) -> bytes:
        """Return the fixed part but its last field."""
        return _SEALED_FRAME.pack(
            SEALED_MAGIC, 0, 0, self.sequence, self.head_bytes, self.payload_bytes, self.tag, self.run,
            self.payload_crc,
        )  # fmt: skip

    def authenticated(self) -> bytes:
        """Return what is authenticated beside the head and the payload."""
        return self.fixed()[:_AUTHENTICATED_BYTES]

    def encode(self, sealed: bytes) -> bytes:
        """Return the fixed part before a sealed head, and that."""
        fixed = self.fixed()
        return fixed + _CRC.pack(crc32c(sealed, crc32c(fixed))) + sealed


def decode_sealed_fixed(data: bytes) -> SealedHead:
    """Read the fixed part of a sealed frame; what follows is not there yet, so its CRC32C is not checked.

    Raises
    ------
    StreamDamagedError : no sealed frame starts here, or a length exceeds its cap.
    """
    magic, kind, flags, sequence, head_bytes, payload_bytes, tag, run, crc = _SEALED_FRAME.unpack_from(data)
    if magic != SEALED_MAGIC or kind or flags:
        raise StreamDamagedError("a frame of the stream does not start with its mark", "fetch the stream again")
    least = 2 * FRAME_FIXED_BYTES + SEAL_TAG_BYTES
    most = MAX_HEAD_BYTES + FRAME_FIXED_BYTES + SEAL_TAG_BYTES
    if not least <= head_bytes <= most or not SEAL_TAG_BYTES < payload_bytes <= MAX_PAYLOAD_BYTES + SEAL_TAG_BYTES:
        raise StreamDamagedError(f"frame {sequence} claims {head_bytes} bytes of head, {payload_bytes} of payload", "")
    head_crc = _CRC.unpack_from(data, FRAME_FIXED_BYTES - _CRC.size)[0]
    return SealedHead(sequence, head_bytes, payload_bytes, tag, run, crc, head_crc)


def require_next(head: SealedHead, sealed: bytes, tag: int, sequence: int) -> None:
    """Hold a sealed frame's head against its CRC32C and the stream it should be part of.

    Raises
    ------
    StreamDamagedError : its CRC32C is wrong.
    StreamOrderError : it is of another stream, or not the one that comes next.
    """
    if crc32c(sealed, crc32c(head.fixed())) != head.head_crc:
        raise StreamDamagedError(f"the head of frame {sequence} does not match its checksum", "fetch the stream again")
    if head.tag != tag:
        raise StreamOrderError(f"frame {sequence} belongs to another stream", "fetch the stream again")
    if head.sequence != sequence:
        raise StreamOrderError(
            f"frame {head.sequence} comes where frame {sequence} belongs: frames are missing, doubled or out of order",
            "fetch the stream again",
        )
