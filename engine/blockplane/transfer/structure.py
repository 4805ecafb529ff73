"""Incremental mirrors: a base on tape or in files, and a volume that holds only what differs from it.

The volume, the *structure*, takes increments as any volume does; together with the base it is a complete state at every
moment. `copy` of its image onto another volume is the patent's reintegration.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from blockplane.model.errors import StreamMismatchError, UsageError
from blockplane.stream.source import open_stream
from blockplane.stream.stateplane import plane_in
from blockplane.transfer.coverage import prove_chain
from blockplane.transfer.newvolume import DiskWish, Opening, remove
from blockplane.transfer.targets import is_vacant
from blockplane.volume.basing import Base, adopt
from blockplane.volume.groups import DiskNames
from blockplane.volume.making import missing_of, unmark
from blockplane.volume.volume import Volume


def create_structure(
    path: str | os.PathLike[str],
    base: Sequence[str | os.PathLike[str]],
    *,
    disks: DiskNames = 1,
    size: int | str | None = None,
    parity: int | None = None,
    chunk: int | str | None = None,
    wipe: bool = False,
    opening: Opening | None = None,
) -> Volume:
    """Make the volume of an incremental mirror and open it; its state is the newest of the base.

    Parameters
    ----------
    path : where it is made: absent, or an empty folder.
    base : streams, a folder of them, or tapes in order: a whole chain with a full image, not encrypted. They stay where
        they are, and are read as long as the volume is used.
    disks, size, parity, chunk, wipe : its own disks, as for `Volume.create`; they take what differs.
    opening : how it is made: the class that reads it.

    Raises
    ------
    UsageError : something is there, or no size is said. StreamMismatchError : the base is no whole chain; nothing is
        made. StreamError and its kinds : it cannot be read.

    Notes
    -----
    Reads the block maps of the base and no other block.
    """
    directory, opening = Path(path), opening or Opening(verb="mirror")
    opening.kind.clear_half_made(directory)
    if not is_vacant(directory):
        raise UsageError(f"{directory} is there already", "name a folder that is not, or an empty one")
    missing, new_disks = missing_of(directory), DiskWish(disks).disks_to_make()
    names = tuple(os.path.abspath(name) for name in base)
    with ExitStack() as undo:
        chain = open_stream(*names)
        undo.callback(chain.close)
        proof = prove_chain(names)
        if not proof.ok:
            raise StreamMismatchError(f"the base is not whole: {proof.problems[0]}", "name every stream of its chain")
        top, plane = chain.snapshot, plane_in(chain).plane
        volume = opening.kind.create(
            directory, disks, size, parity, chunk, wipe, verb=opening.verb, answers=opening.around is not None,
            base=Base(chain, names, top.id, plane.n_blocks),
        )  # fmt: skip
        undo.pop_all()
    try:
        adopt(volume, top, plane)
        unmark(directory)
    except BaseException:
        remove(volume, missing, new_disks)
        raise
    return volume
