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


def bad_records(disks: list[Disk], newest: FsInfo, *, is_settled: bool) -> Iterator[str]:
    """Yield a sentence for each root record that is damaged, or older than a commit that was cut short would leave it.

    A commit writes one half of all disks, then the other. Where the volume was not closed, or a record of the commit
    before shows that one was under way, what is bad in one half alone was being written; the next writer settles it. So
    it does with a group that not each record knows yet.

    Parameters
    ----------
    is_settled : whoever asks has the volume open for writing, which left no record behind.
    """
    found = [[_copy(disk, block, decode) for block in slots_of(disk)] for disk in disks]
    good = [copy for pair in found for copy in pair if isinstance(copy, FsInfo)]
    was_cut = not newest.clean or any(copy.generation == newest.generation - 1 for copy in good)
    was_cut = was_cut and not is_settled
    if not is_settled:  # behind what each says are disks of a group that a grow, cut short, was giving records to
        last = [copy.geometry.n_disks for copy in good if copy.generation >= newest.generation - 1]
        disks, found = disks[: min(last, default=None)], found[: min(last, default=None)]
    halves_with_bad = {half for pair in found for half, copy in enumerate(pair) if copy is None}
    for disk, pair in zip(disks, found, strict=True):
        for end, copy in zip(ENDS, pair, strict=True):
            where = f"{disk.path}: the root record at its {end}"
            if isinstance(copy, str):
                yield f"{where} cannot be read: {copy}"
            elif copy is None:
                if not (was_cut and len(halves_with_bad) == 1):
                    yield f"{where} is bad"
            elif copy.generation < newest.generation - 1:
                yield f"{where} has generation {copy.generation}, the newest {newest.generation}"


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
