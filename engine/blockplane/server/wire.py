"""Messages over a control socket: a length, then one JSON object; descriptors go with the first bytes.

| offset | size | field | meaning |
| --- | --- | --- | --- |
| 0 | 8 | magic | `BPCTRL1` and a zero byte |
| 8 | 4 | length | bytes of the object, big-endian |
| 12 | length | object | JSON, UTF-8 |

The owner greets, the client asks, the owner answers with an exit status. Every wait has an end.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Final

from blockplane.model.errors import BlockplaneError

#: For a verb that ended with the process that ran it.
ENDED_HINT: Final = "what it had not committed is undone; run it again"
#: Raised with every change of what is said; both sides must say the same.
PROTOCOL: Final = 1
MAGIC: Final = b"BPCTRL1\0"
_HEAD: Final = struct.Struct(">8sI")
#: A greeting or an answer; a request, whose arguments the kernel bounds likewise.
MAX_SMALL_BYTES: Final = 64 << 10
MAX_REQUEST_BYTES: Final = 8 << 20
MAX_DESCRIPTORS: Final = 4
DEADLINE_S: Final = 10.0


class WireError(BlockplaneError):
    """The other side of a control socket said something else than expected, or nothing."""

    kind = "control"


def send_message(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one object, and descriptors with it; OSError: the other side is gone, or does not read."""
    data = json.dumps(message).encode()
    sock.settimeout(DEADLINE_S)
    packed = _HEAD.pack(MAGIC, len(data)) + data
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = sock.sendmsg([packed], rights)
    if sent < len(packed):
        sock.sendall(packed[sent:])


def receive_message(
    sock: socket.socket, max_bytes: int = MAX_SMALL_BYTES, n_fds: int = 0, deadline_s: float | None = DEADLINE_S
) -> tuple[dict[str, Any], list[int]]:
    """Receive one object and exactly n_fds descriptors, which are the caller's to close.

    Parameters
    ----------
    deadline_s : for the whole message; None: wait as long as the other side lives.

    Raises
    ------
    WireError: it is too large, no object of ours, late, or comes with other descriptors; none stays open.
    """
    fds: list[int] = []
    end = None if deadline_s is None else time.monotonic() + deadline_s
    try:
        magic, length = _HEAD.unpack(_receive(sock, _HEAD.size, fds, end))
        if magic != MAGIC or length > max_bytes:
            raise WireError("what came over the control socket is no message of ours")
        message = json.loads(_receive(sock, length, fds, end))
        if not isinstance(message, dict) or len(fds) != n_fds:
            raise WireError("what came over the control socket is no message of ours")
        return message, fds
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, (OSError, ValueError, RecursionError)):
            raise WireError(f"the control socket: {error}") from error
        raise


def _receive(sock: socket.socket, n_bytes: int, fds: list[int], end: float | None) -> bytes:
    """Receive exactly so many bytes; descriptors that come with them are added to fds."""
    data = bytearray()
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    while len(data) < n_bytes:
        if end is not None and time.monotonic() >= end:
            raise TimeoutError("it says nothing")
        sock.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
        piece, rights, flags, _ = sock.recvmsg(min(n_bytes - len(data), 1 << 16), room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, packed in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(packed[: len(packed) - len(packed) % found.itemsize])
                fds.extend(found)
        if flags & socket.MSG_CTRUNC or len(fds) > MAX_DESCRIPTORS:
            raise WireError("too many descriptors came over the control socket")
        if not piece:
            raise ConnectionError("it was closed")
        data += piece
    return bytes(data)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return (process, user) of the other side, as the kernel knows them."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", packed)
    return pid, uid
