"""What of a stream has been written: the state from which its writer goes on."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from typing import IO, Final

from blockplane.stream.codec import Header
from blockplane.stream.encryption import Framing

#: An index larger than this waits in a temporary file: 16 MiB of it describe at least 700,000 extents.
INDEX_MEMORY_BYTES: Final = 16 << 20


def new_index() -> IO[bytes]:
    """Return where an index waits for the end of its stream."""
    return tempfile.SpooledTemporaryFile(max_size=INDEX_MEMORY_BYTES)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that a writer can go back to. counts : sequence, bytes, data frames, blocks, index entries."""

    sha: hashlib._Hash
    index_bytes: int
    counts: tuple[int, int, int, int, int]


@dataclass(slots=True)
class Written:
    """What of a stream has been written: what its writer needs to go on.

    framing : how frames lie, keys included.
    sha : over what the digest covers so far. index : the entries so far; the writer closes it.
    """

    header: Header
    framing: Framing
    sha: hashlib._Hash
    index: IO[bytes]
    sequence: int
    n_bytes: int
    n_data_frames: int = 0
    n_blocks: int = 0
    n_index: int = 0

    def mark(self) -> Mark:
        """Return where it stands."""
        counts = (self.sequence, self.n_bytes, self.n_data_frames, self.n_blocks, self.n_index)
        return Mark(self.sha.copy(), self.index.tell(), counts)

    def go_back(self, mark: Mark) -> None:
        """Forget what was noted since a mark."""
        self.sha = mark.sha
        self.index.seek(mark.index_bytes)
        self.index.truncate()
        self.sequence, self.n_bytes, self.n_data_frames, self.n_blocks, self.n_index = mark.counts
