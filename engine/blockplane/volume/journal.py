"""The journal of a receive: what landed since the last consistency point, and what lies in stripes that are not whole.

Scratch, in the volume's directory: written after the disks have the blocks, not flushed, believed only where the
blocks are there. A process that is killed loses nothing of it; after a power cut what did not reach the disks shows
in the checks.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blockplane.model.checks import crc32c

_JOURNAL: Final = re.compile(r"incoming-[0-9a-f]{32}\.(journal|new)")
_MAGIC: Final = b"BPINJRNL"
_HEAD = struct.Struct("<8sI4x16s")
_VERSION: Final = 1
_RECORD = struct.Struct("<IIQIIII")
_RECORD_MAGIC: Final = 0x6C616E64
# A band has at most this many slots: what a damaged record may make its reader hold.
_MAX_SLOTS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class LandedSlots:
    """Slots of a band that the disks have.

    written : (n_data, n_stripes) bool. checks : of the written slots, bound to their VBNs, in slot order. is_whole :
    whether nothing else of the image is still to come to these stripes.
    """

    group: int
    dbn_start: int
    written: NDArray[np.bool_]
    checks: NDArray[np.uint32]
    is_whole: bool

    @property
    def n_blocks(self) -> int:
        """How many slots."""
        return len(self.checks)

    def encode(self) -> bytes:
        """Return the record."""
        body = np.packbits(self.written).tobytes() + self.checks.astype("<u4").tobytes()
        n_data, n_stripes = self.written.shape
        head = (_RECORD_MAGIC, self.group, self.dbn_start, n_stripes, n_data, self.n_blocks)
        return _RECORD.pack(*head, crc32c(body, crc32c(_RECORD.pack(*head, 0)))) + body


class LandingJournal:
    """The journal of one receive, appended to. It is given up where its file cannot be written."""

    def __init__(self, directory: Path, landing_id: bytes) -> None:
        self.path = journal_path(directory, landing_id)
        self._landing_id = landing_id
        self._fd = -1
        self.n_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a file that takes records."""
        return self._fd >= 0

    def restart(self, records: Iterable[LandedSlots]) -> None:
        """Begin anew with these records; the old journal stays until the new one is written."""
        self.close()
        new = self.path.with_suffix(".new")
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(new, flags, 0o600)
            self.n_bytes = 0
            self._write(_HEAD.pack(_MAGIC, _VERSION, self._landing_id))
            for record in records:
                self._write(record.encode())
            os.rename(new, self.path)

    def append(self, record: LandedSlots) -> None:
        """Add what the disks have."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._write(record.encode())

    def _write(self, data: bytes) -> None:
        if os.write(self._fd, data) < len(data):
            self.close()
        self.n_bytes += len(data)

    def close(self) -> None:
        """Release the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Take the file away."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def journal_path(directory: Path, landing_id: bytes) -> Path:
    """Return where the journal of a receive is."""
    return directory / f"incoming-{landing_id.hex()}.journal"


def clear_orphans(directory: Path, known: Callable[[], Iterable[bytes]]) -> None:
    """Remove journals of receives that have ended: their process was killed before it could.

    Parameters
    ----------
    known : gives the landing ids of those that have not; asked only where there is a journal.
    """
    found = [name for name in os.listdir(directory) if _JOURNAL.fullmatch(name)]
    wanted = {journal_path(directory, landing_id).name for landing_id in known()} if found else set()
    for name in found:
        if name not in wanted:
            with contextlib.suppress(OSError):
                (directory / name).unlink()


def read_journal(directory: Path, landing_id: bytes) -> Iterator[LandedSlots]:
    """Yield what a journal says, up to the first record that is not whole; nothing where there is none."""
    try:
        file = journal_path(directory, landing_id).open("rb")
    except OSError:
        return
    with file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or _HEAD.unpack(head) != (_MAGIC, _VERSION, landing_id):
            return
        while (record := _next(file.read)) is not None:
            yield record


def without_group(directory: Path, landing_id: bytes, index: int) -> None:
    """Leave out of a journal what it says of a RAID group that has gone; those behind it count one less."""
    slots = [each for each in read_journal(directory, landing_id) if each.group != index]
    if slots:
        journal = LandingJournal(directory, landing_id)
        journal.restart(replace(each, group=each.group - (each.group > index)) for each in slots)
        journal.close()


def _next(read: Callable[[int], bytes]) -> LandedSlots | None:
    raw = read(_RECORD.size)
    if len(raw) < _RECORD.size:
        return None
    magic, group, dbn_start, n_stripes, n_data, n_blocks, crc = _RECORD.unpack(raw)
    n_slots = n_stripes * n_data
    if magic != _RECORD_MAGIC or not 0 < n_blocks <= n_slots <= _MAX_SLOTS:
        return None
    n_bits = -(-n_slots // 8)
    body = read(n_bits + 4 * n_blocks)
    bare = _RECORD.pack(magic, group, dbn_start, n_stripes, n_data, n_blocks, 0)
    if len(body) < n_bits + 4 * n_blocks or crc32c(body, crc32c(bare)) != crc:
        return None
    written = np.unpackbits(np.frombuffer(body, np.uint8, n_bits), count=n_slots).astype(np.bool_)
    if int(written.sum()) != n_blocks:
        return None
    checks = np.frombuffer(body, "<u4", n_blocks, n_bits).astype(np.uint32)
    return LandedSlots(group, dbn_start, written.reshape(n_data, n_stripes), checks, is_whole=False)
