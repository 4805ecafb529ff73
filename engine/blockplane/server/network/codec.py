"""Messages between peers: the one module that knows their bytes. See WIRE.md."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from blockplane.model.checks import crc32c
from blockplane.model.errors import NetworkError

#: Raised with every change of what is said; both sides must say the same.
PROTOCOL: Final = 1
MAGIC: Final = b"BPW\x01"
#: magic, kind, flags, zero, length, sequence; then the CRC.
_HEAD: Final = struct.Struct(">4sBBHIQ")
_CRC: Final = struct.Struct(">I")
HEAD_BYTES: Final = _HEAD.size + _CRC.size
#: The CRC covers the body too; of what TLS keeps whole it need not, nor of what the stream's own checks cover.
FLAG_WHOLE: Final = 1
#: Shorter pieces of a stream are covered even so: its header is among them, and it costs nothing.
LONG_PIECE_BYTES: Final = 32 << 10
MAX_GREETING_BYTES: Final = 4 << 10
MAX_CONTROL_BYTES: Final = 64 << 10
MAX_PIECE_BYTES: Final = 1 << 20
TICKET_BYTES: Final = 16


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1  # who calls wants a control connection, or brings one for the data of a transfer
    WELCOME = 2  # the answer, where it may
    REQUEST = 3  # a verb and a volume
    ANSWER = 4  # to a request, or that what was asked for is done
    FAILED = 5  # the side that says it ends the transfer, and why
    ALIVE = 6  # at work, in silence
    BLOB = 7  # a piece of what a message before has announced
    PIECE = 8  # a piece of a stream, on a data connection
    END = 9  # no piece follows on this connection; the sequence is how many there were on all


#: What a body may be at most, by kind.
BOUNDS: Final[dict[Kind, int]] = {
    Kind.HELLO: MAX_GREETING_BYTES,
    Kind.WELCOME: MAX_GREETING_BYTES,
    Kind.REQUEST: MAX_CONTROL_BYTES,
    Kind.ANSWER: MAX_CONTROL_BYTES,
    Kind.FAILED: MAX_CONTROL_BYTES,
    Kind.ALIVE: MAX_GREETING_BYTES,
    Kind.BLOB: MAX_PIECE_BYTES,
    Kind.PIECE: MAX_PIECE_BYTES,
    Kind.END: 0,
}


class WireError(NetworkError):
    """What came over a connection is no message of ours."""

    kind = "wire"


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a body."""

    kind: Kind
    n_bytes: int
    sequence: int
    flags: int
    crc: int

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Head:
        """Read HEAD_BYTES; the body is not looked at.

        Raises
        ------
        WireError : it is no head of ours, or announces more than its kind may.
        """
        magic, kind, flags, zero, n_bytes, sequence = _HEAD.unpack_from(data)
        (crc,) = _CRC.unpack_from(data, _HEAD.size)
        if magic != MAGIC:
            raise WireError("what came over the connection is no message of ours", "see what listens there")
        if kind not in BOUNDS or flags & ~FLAG_WHOLE or zero:
            raise WireError(f"a message of kind {kind} came over the connection, which this release does not know")
        if n_bytes > BOUNDS[Kind(kind)]:
            raise WireError(f"a message announces {n_bytes} bytes, more than its kind may have")
        found = cls(Kind(kind), n_bytes, sequence, flags, crc)
        if not flags & FLAG_WHOLE and crc32c(bytes(data[: _HEAD.size])) != crc:
            raise WireError("the head of a message does not match its checksum")
        return found

    def require_whole(
        self, head: bytes | bytearray | memoryview, body: Iterable[bytes | bytearray | memoryview]
    ) -> None:
        """Hold a body, in parts, against the checksum, where that covers it; WireError: it does not match."""
        if not self.flags & FLAG_WHOLE:
            return
        crc = crc32c(bytes(head[: _HEAD.size]))
        for part in body:
            crc = crc32c(part, crc)
        if crc != self.crc:
            raise WireError("a message does not match its checksum")


def encode_head(kind: Kind, body: bytes | bytearray | memoryview = b"", sequence: int = 0, *, whole: bool) -> bytes:
    """Return the head of a message with a body.

    whole : its checksum covers the body too, but that of a long piece, whose blocks have theirs.
    """
    assert len(body) <= BOUNDS[kind], (kind, len(body))
    whole = whole and not (kind is Kind.PIECE and len(body) >= LONG_PIECE_BYTES)
    packed = _HEAD.pack(MAGIC, kind, FLAG_WHOLE if whole else 0, 0, len(body), sequence)
    crc = crc32c(packed)
    return packed + _CRC.pack(crc32c(body, crc) if whole else crc)


def encode_object(found: Mapping[str, object]) -> bytes:
    """Return the body of a message that says something."""
    return json.dumps(found, ensure_ascii=True, separators=(",", ":")).encode()


def decode_object(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Return what a body says; WireError: it is no object, or one nested without end."""
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise WireError("a message is not what it should be") from None
    if not isinstance(found, dict):
        raise WireError("a message is not what it should be")
    return found


def text_field(found: Mapping[str, Any], name: str, most: int = 255) -> str:
    """Return a field that is a text; WireError: it is not, or too long."""
    value = found.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise _not_understood(name)
    return value


def number_field(found: Mapping[str, Any], name: str, most: int = 1 << 63) -> int:
    """Return a field that is a whole number from 0 on; WireError: it is not, or too large."""
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise _not_understood(name)
    return value


def flag_field(found: Mapping[str, Any], name: str) -> bool:
    """Return a field that is true or false; WireError: it is neither."""
    value = found.get(name)
    if not isinstance(value, bool):
        raise _not_understood(name)
    return value


def list_field(found: Mapping[str, Any], name: str, most: int) -> list[dict[str, Any]]:
    """Return a field that is a list of objects; WireError: it is not, or too long."""
    value = found.get(name)
    if not isinstance(value, list) or len(value) > most or not all(isinstance(entry, dict) for entry in value):
        raise _not_understood(name)
    return value


def bytes_field(found: Mapping[str, Any], name: str, n_bytes: int = 16) -> bytes:
    """Return a field that is so many bytes in hex; WireError: it is not."""
    text = text_field(found, name, 2 * n_bytes)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != n_bytes:
        raise _not_understood(name)
    return value


def _not_understood(name: str) -> WireError:
    return WireError(f"a message has no {name} that this release understands")
