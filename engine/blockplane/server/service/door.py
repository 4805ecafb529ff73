"""Where metrics are asked for: `GET /metrics` over HTTP/1.0, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from blockplane.server.service.exposition import CONTENT_TYPE

#: Who asks at once; one more is not heard. A scraper is one.
MAX_CLIENTS: Final = 8
#: How long a client may take for its question, and for taking the answer.
DEADLINE_S: Final = 5.0
MAX_QUESTION_BYTES: Final = 8192
#: Where there are no descriptors left: who asks stays at the door, and whoever waits there would not wait at all.
_PAUSE_S: Final = 0.05


class MetricsDoor:
    """Listens at an address; each question is answered by a thread of its own.

    Parameters
    ----------
    text : makes the answer.

    Raises
    ------
    OSError: nobody can listen there.
    """

    def __init__(self, host: str, port: int, text: Callable[[], str]) -> None:
        self._text = text
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=MAX_CLIENTS)
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def fileno(self) -> int:
        """What to wait at: readable when somebody asks."""
        return self._listener.fileno()

    def accept(self) -> None:
        """Answer who has come, in another thread."""
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            time.sleep(_PAUSE_S)
            return
        if not self._room.acquire(blocking=False):
            sock.close()
            return
        try:
            threading.Thread(target=self._answer, args=(sock,), name="blockplane metrics", daemon=True).start()
        except RuntimeError:  # there are as many as the system allows: who asks comes again
            sock.close()
            self._room.release()

    def _answer(self, sock: socket.socket) -> None:
        try:
            with sock, contextlib.suppress(OSError):
                question = _question(sock)
                sock.settimeout(DEADLINE_S)
                sock.sendall(_answer_to(question, self._text))
                sock.shutdown(socket.SHUT_WR)
        finally:
            self._room.release()

    def close(self) -> None:
        """Answer no more."""
        self._listener.close()


def _question(sock: socket.socket) -> bytes:
    """Return a request's head; TimeoutError: it does not come."""
    end = time.monotonic() + DEADLINE_S
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < MAX_QUESTION_BYTES:
        left_s = end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)
        piece = sock.recv(MAX_QUESTION_BYTES - len(head))
        if not piece:
            break
        head += piece
    return head


def _answer_to(question: bytes, text: Callable[[], str]) -> bytes:
    words = question.split(b"\n", 1)[0].split()
    if len(words) < 2 or words[0] not in (b"GET", b"HEAD"):
        return _response("400 Bad Request", "text/plain", b"GET /metrics is all there is\n")
    if words[1].partition(b"?")[0] != b"/metrics":
        return _response("404 Not Found", "text/plain", b"metrics are at /metrics\n")
    body = text().encode()
    found = _response("200 OK", CONTENT_TYPE, body)
    return found if words[0] == b"GET" else found[: -len(body)]


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
