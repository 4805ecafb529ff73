"""Checking what stands in several copies outside the numbering: labels at both ends of a disk, root records in both
halves.

Opening takes the newest good copy and needs no other, so that a bad one goes unnoticed until the good one is lost too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from blockplane.disks.disk import Disk
from blockplane.disks.label import Label, decode_label, label_blocks, read_raw_block
from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.fsinfo import FsInfo, decode
from blockplane.volume.rootslots import slots_of

T = TypeVar("T")

ENDS: Final = ("head", "tail")


def bad_labels(disks: list[Disk]) -> Iterator[str]:
    """Yield a sentence for each label that is damaged, or older than an update that was cut short would leave it."""
    found = [[_copy(disk, block, _label) for block in label_blocks(disk)] for disk in disks]
    good = [label for copies in found for label in copies if isinstance(label, Label)]
    newest = max((label.generation for label in good), default=0)
    for disk, copies in zip(disks, found, strict=True):
        for end, copy in zip(ENDS, copies, strict=True):
            if isinstance(copy, str):
                yield f"{disk.path}: the label at its {end} is bad: {copy}"
            elif copy.generation < newest - 1:
                yield f"{disk.path}: the label at its {end} has generation {copy.generation}, the newest {newest}"
        known = [copy for copy in copies if isinstance(copy, Label)]
        if len(known) == len(ENDS) and known[0].generation == known[1].generation and known[0] != known[1]:
            yield f"{disk.path}: the labels at its head and tail contradict each other"


def bad_records(disks: list[Disk], newest: FsInfo) -> Iterator[str]:
    """Yield a sentence for each root record that is damaged, or older than a commit that was cut short would leave it.

    A commit writes one half of all disks, then the other: where a half holds the record before too, a bad one in it was
    being written.
    """
    found = [[_copy(disk, block, decode) for block in slots_of(disk)] for disk in disks]
    for half, end in enumerate(ENDS):
        copies = [pair[half] for pair in found]
        generations = {copy.generation for copy in copies if isinstance(copy, FsInfo)}
        was_cut = newest.generation - 1 in generations
        for disk, copy in zip(disks, copies, strict=True):
            if isinstance(copy, str):
                yield f"{disk.path}: the root record at its {end} cannot be read: {copy}"
            elif copy is None and not was_cut:
                yield f"{disk.path}: the root record at its {end} is bad"
            elif copy is not None and copy.generation < newest.generation - 1:
                yield (
                    f"{disk.path}: the root record at its {end} has generation {copy.generation}, the newest "
                    f"{newest.generation}"
                )


def _label(block: bytes) -> Label | str:
    try:
        return decode_label(block)
    except ValueError as error:
        return f"{error} found"


def _copy(disk: Disk, block: int, read: Callable[[bytes], T]) -> T | str:
    """Return what a raw block holds, or why it cannot be read."""
    try:
        return read(read_raw_block(disk, block).tobytes())
    except VolumeDamagedError as error:  # a disk that cannot be read there, or a record of another version
        return str(error)
