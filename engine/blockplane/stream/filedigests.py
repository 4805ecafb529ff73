"""The SHA-256 of files while they are written, and the lines that `sha256sum -c` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from blockplane.stream.fdsink import Buffer
from blockplane.stream.stored import Stored

_READ_BYTES: Final = 1 << 20


class FileDigests:
    """One digest a file, numbered from 0; a thread of its own works on them beside the one that writes."""

    def __init__(self) -> None:
        self._digests: list[hashlib._Hash] = []
        self._pool = ThreadPoolExecutor(1, "blockplane digests")

    def take_up(self, file: Stored) -> None:
        """Begin the next file with what it holds already: it is read."""
        digest, buffer, at = hashlib.sha256(), memoryview(bytearray(_READ_BYTES)), 0
        while n_read := file.read_into(buffer, at):
            digest.update(buffer[:n_read])
            at += n_read
        self._digests.append(digest)

    @contextmanager
    def updating(self, number: int, buffers: Sequence[Buffer]) -> Iterator[None]:
        """Take buffers in while they are written within the context."""
        while len(self._digests) <= number:
            self._digests.append(hashlib.sha256())
        done = self._pool.submit(_update, self._digests[number], buffers)
        try:
            yield
        finally:
            done.result()

    def lines(self, names: Sequence[str]) -> bytes:
        """Return what `sha256sum NAMES...` prints."""
        digests = [digest.hexdigest() for digest in self._digests]
        return "".join(_line(digest, name) for digest, name in zip(digests, names, strict=True)).encode(
            errors="surrogateescape"
        )

    def close(self) -> None:
        """Release the thread."""
        self._pool.shutdown()


def _update(digest: hashlib._Hash, buffers: Sequence[Buffer]) -> None:
    for buffer in buffers:
        digest.update(buffer)


def _line(digest: str, name: str) -> str:
    """Return a line; one whose name holds a backslash or a line's end begins with a backslash."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n"
