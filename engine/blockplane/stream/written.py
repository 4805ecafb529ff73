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
