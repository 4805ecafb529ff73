"""Volumes that are opened with what they are built on: streams or tapes, which are read as long as the volume is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from blockplane.model.blocks import BlockSource
from blockplane.model.errors import StreamMismatchError
from blockplane.stream.source import StreamChain, open_stream
from blockplane.volume.volume import Volume


class BasedVolume(Volume):
    """A volume, with its base where it has one."""

    @classmethod
    def open_base(cls, names: Sequence[str], snapshot_id: bytes) -> BlockSource:
        """Open the streams or tapes that a volume is built on; see `open_base`."""
        return open_base(names, snapshot_id)


def open_base(names: Sequence[str], snapshot_id: bytes) -> StreamChain:
    """Open what a structure is built on, at its snapshot.

    Raises
    ------
    StreamMismatchError : the snapshot is not in it. StreamError and its kinds : it is not there, or damaged.
    """
    with ExitStack() as undo:
        chain = open_stream(*names, chooses=False)
        undo.callback(chain.close)
        found = next((record for record in chain.snapshots if record.id == snapshot_id), None)
        if found is None:
            raise StreamMismatchError(
                f"{', '.join(names)}: not what the volume is built on: it has no snapshot of id {snapshot_id.hex()}",
                "put the base back, or say in volume.toml where it is",
            )
        undo.pop_all()
    return chain.at(found)
