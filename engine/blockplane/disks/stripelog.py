r"""The stripe log: what the loss of a disk would take with it while a stripe that holds live blocks is being written.

A stripe is written in several requests to several disks, and a power cut between them leaves parity that no longer
explains the blocks that stayed. So before such a stripe is written, the parity *of the blocks that stay alone*, every
other slot taken as zeros, is put into the log of each parity disk, and flushed. Until the stripe is whole and flushed,
any member that is lost then can be worked out from the log and the other blocks that stay.

Each parity disk has its own log, behind its data area: records of one block and the parity blocks it lists, one after
the other from the start. When all that was logged is flushed, the next record goes to the start again. Nothing is ever
erased: what a record gives is taken for a block only when the block's check agrees.

| offset | size | meaning |
| --- | --- | --- |
| 0 | 8 | magic ``BPSTRIPE`` |
| 8 | 4 | version |
| 12 | 4 | CRC32C of the block with these four bytes zero |
| 16 | 16 | volume id |
| 32 | 8 | generation of the root record when it was written |
| 40 | 2 | group |
| 42 | 2 | which parity: 0 P, 1 Q |
| 44 | 2 | n_stripes |
| 46 | 18 | zero |
| 64 | 48 each | dbn u64, check of its parity block u32, zero u32, 256 bits: the data members counted |
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from blockplane.disks.array import DiskArray
from blockplane.disks.band import Band
from blockplane.disks.disk import HEAD_BLOCKS, aligned_buffer, fsinfo_tail_block
from blockplane.disks.geometry import GroupRecord
from blockplane.disks.parity import compute_parity
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.checks import crc32c, fresh_checks

MAGIC: Final = b"BPSTRIPE"
VERSION: Final = 1
#: 4 MiB: a band in which every stripe holds live blocks goes out in one round; more would lie idle.
MAX_LOG_BLOCKS: Final = 1024

_HEADER: Final = struct.Struct("<8sII16sQHHH18x")
_CRC_AT: Final = 12
_ENTRY: Final = np.dtype([("dbn", "<u8"), ("check", "<u4"), ("reserved", "<u4"), ("counted", "u1", (32,))])
#: Stripes that one record can list.
RECORD_STRIPES: Final = (BLOCK_BYTES - _HEADER.size) // _ENTRY.itemsize

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LoggedStripe:
    """The parity of some members of a stripe: ``counted`` (n_data,) says which; ``which`` is 0 for P, 1 for Q."""

    group: int
    which: int
    dbn: int
    counted: Mask
    parity: Bytes


def log_area(group: GroupRecord, n_blocks: int) -> tuple[int, int]:
    """Raw blocks [start, stop) of the log on a disk of n_blocks: from the data area's end, before the tail's slots."""
    start = HEAD_BLOCKS + group.disk_blocks
    return start, min(fsinfo_tail_block(n_blocks), start + MAX_LOG_BLOCKS)


class StripeLog:
    """The writing side. Not thread-safe: the volume's lock is held.

    Parameters
    ----------
    volume_id : 16 bytes that every record carries.
    """

    def __init__(self, array: DiskArray, volume_id: bytes) -> None:
        self._array = array
        self._volume_id = volume_id
        #: by group: blocks of the log that records of unflushed stripes have
        self._used: dict[int, int] = {}

    def capacity(self, group: int) -> int:
        """How many stripes of a group an empty log takes."""
        n_blocks = self._n_blocks(group)
        n_full, rest = divmod(n_blocks, RECORD_STRIPES + 1)
        return n_full * RECORD_STRIPES + max(rest - 1, 0)

    def _n_blocks(self, group: int) -> int:
        record = self._array.geometry.groups[group]
        areas = [log_area(record, self._array.disks[disk].n_blocks) for disk in record.disks[record.n_data :]]
        return min(stop - start for start, stop in areas)

    def settled(self) -> None:
        """Note that everything written before is flushed: no stripe needs its record any more."""
        self._used.clear()

    def protect(self, band: Band, stripes: Numbers, counted: Mask, generation: int) -> None:
        """Log what the loss of stripes of a band, about to be written, would lose; durable on return.

        Parameters
        ----------
        stripes : (n,) ascending, within the band; at most `capacity`.
        counted : (n_data, band.n_stripes): the slots that stay, which the band holds as their disks do.
        generation : of the root record.

        Raises
        ------
        the first failure of a write or flush: the stripes must not be written.
        """
        n_records = -(-len(stripes) // RECORD_STRIPES)
        if self._used.get(band.group, 0) + len(stripes) + n_records > self._n_blocks(band.group):
            self._array.drain()
            self._array.flush()
            self.settled()
        parity_disks = band.record.disks[band.record.n_data :]
        for at in range(0, len(stripes), RECORD_STRIPES):
            self._append(band, stripes[at : at + RECORD_STRIPES], counted, generation)
        self._array.flush(parity_disks)

    def _append(self, band: Band, stripes: Numbers, counted: Mask, generation: int) -> None:
        group, used = band.record, self._used.get(band.group, 0)
        blocks = np.ascontiguousarray(np.where(counted[:, stripes, None], band.data[:, stripes], np.uint8(0)))
        parity = np.empty((group.n_parity, len(stripes), BLOCK_BYTES), np.uint8)
        compute_parity(blocks, parity)
        for which, disk in enumerate(group.disks[group.n_data :]):
            start, _ = log_area(group, self._array.disks[disk].n_blocks)
            dbns = stripes + band.dbn_start
            checks = fresh_checks(parity[which].reshape(-1), dbns)
            head = encode_head(self._volume_id, generation, (band.group, which), dbns, checks, counted[:, stripes])
            record = aligned_buffer((1 + len(stripes)) * BLOCK_BYTES)
            record[:BLOCK_BYTES] = np.frombuffer(head, np.uint8)
            record[BLOCK_BYTES:] = parity[which].reshape(-1)
            self._array.write_raw([(disk, start + used)], record)
        self._used[band.group] = used + 1 + len(stripes)


def encode_head(
    volume_id: bytes, generation: int, owner: tuple[int, int], dbns: Numbers, checks: Checks, counted: Mask
) -> bytes:
    """Return the first block of a record; owner: the group, and 0 for P or 1 for Q; counted: (n_data, n)."""
    entries = np.zeros(len(dbns), _ENTRY)
    entries["dbn"], entries["check"] = dbns, checks
    bits = np.packbits(counted.T, axis=1, bitorder="little")
    entries["counted"][:, : bits.shape[1]] = bits
    head = _HEADER.pack(MAGIC, VERSION, 0, volume_id, generation, *owner, len(entries)) + entries.tobytes()
    block = bytearray(head.ljust(BLOCK_BYTES, b"\0"))
    struct.pack_into("<I", block, _CRC_AT, crc32c(bytes(block)))
    return bytes(block)


def decode_log(data: Bytes, volume_id: bytes) -> Iterator[LoggedStripe]:
    """Yield what a disk's log holds, from its start to the first block that is no record of this volume.

    Parameters
    ----------
    data : (n * 4096,) uint8, the blocks of the log.
    """
    at, n_blocks = 0, data.shape[0] // BLOCK_BYTES
    while at < n_blocks:
        head = data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES].tobytes()
        magic, version, crc, owner, _, group, which, n_stripes = _HEADER.unpack_from(head)
        zeroed = head[:_CRC_AT] + bytes(4) + head[_CRC_AT + 4 :]
        if (magic, version, owner) != (MAGIC, VERSION, volume_id) or crc != crc32c(zeroed):
            return
        if not 0 < n_stripes <= min(RECORD_STRIPES, n_blocks - at - 1):
            return
        entries = np.frombuffer(head, _ENTRY, n_stripes, _HEADER.size)
        blocks = data[(at + 1) * BLOCK_BYTES : (at + 1 + n_stripes) * BLOCK_BYTES]
        good = fresh_checks(blocks, entries["dbn"].astype(np.int64)) == entries["check"]
        counted = np.unpackbits(entries["counted"], axis=1, bitorder="little").astype(np.bool_)
        for i in np.flatnonzero(good).tolist():
            block = blocks[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
            yield LoggedStripe(group, which, int(entries["dbn"][i]), counted[i], block)
        at += 1 + n_stripes


def read_log(array: DiskArray, group: int, volume_id: bytes) -> dict[int, list[LoggedStripe]]:
    """Return what the logs of a group's parity disks hold, by dbn. One read of each."""
    record = array.geometry.groups[group]
    found: dict[int, list[LoggedStripe]] = {}
    for disk in record.disks[record.n_data :]:
        start, stop = log_area(record, array.disks[disk].n_blocks)
        data = aligned_buffer((stop - start) * BLOCK_BYTES)
        array.read_raw(disk, start, stop - start, data)
        for logged in decode_log(data, volume_id):
            if logged.group == group and logged.dbn < record.disk_blocks:
                found.setdefault(logged.dbn, []).append(logged)
    return found
