"""What a storage must offer to be sent or received into; a volume is one among others.

Sending needs a description and the blocks in windows. Receiving is a dialogue: the destination looks at the map of
the stream and accepts or refuses before a byte of data is read; a landing then says where each block goes, and
nothing that was there changes until it commits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from blockplane.image.gather import Gathered
from blockplane.model.addresses import Bytes, Checks, Extents
from blockplane.planes import Plane
from blockplane.stream.codec import Header, Role
from blockplane.stream.reader import StreamMap
from blockplane.volume.codec import Branch, SnapshotRecord


class Sendable(Protocol):
    """An image of some storage, ready to be sent.

    One that is sent as a part of its image has an attribute `chosen`, the VBNs of the part, which its header and its
    windows are of.
    """

    @property
    def plane(self) -> Plane:
        """The VBNs to send."""
        ...

    @property
    def dropped(self) -> Plane:
        """The VBNs of the base that are gone afterwards."""
        ...

    def header(self) -> Header:
        """Return the description; `send` fills in the counts and digests that follow from the rest."""
        ...

    def snapshots(self) -> Sequence[tuple[SnapshotRecord, Role]]:
        """Return the snapshot records and what becomes of each, top first."""
        ...

    def branches(self) -> Sequence[Branch]:
        """Return the branch history of the top, older first."""
        ...

    def windows(self, *, read: bool = True) -> AbstractContextManager[Iterator[Gathered]]:
        """Begin to read; the blocks come inside the context, every VBN of the plane once.

        Without `read` the buffers' bytes and checks mean nothing.
        """
        ...


class Landing(Protocol):
    """One image on its way into a storage. Nothing is visible before `commit`; `abort` leaves no trace.

    One that takes parts of images has an attribute `n_waiting`: how many blocks of the image have not come; while there
    are some, `suspend` is called in place of `commit` when a part has ended. One that takes up what landed before has
    an attribute `copied`: the VBNs of that; a damaged stream does not take it along. One that can have blocks which
    stay where `suspend` fails has an attribute `n_stored`: how many.
    """

    @property
    def here(self) -> Plane:
        """The VBNs of the image that are there already, and are passed over where they come."""
        ...

    def buffers(self, extents: Extents, checks: Checks) -> Sequence[Bytes] | None:
        """Return where the bytes of extents of VBNs go: buffers of whole blocks, in order; None: all of it is there.

        Parameters
        ----------
        checks : one a block, as the stream has them.
        """
        ...

    def landed(self) -> None:
        """Note that the buffers given longest ago, of those this was not called for yet, are full and verified."""
        ...

    def commit(self, arriving: Sequence[SnapshotRecord]) -> None:
        """Make the last of the records the live state, and all of them snapshots: durable on return."""
        ...

    def suspend(self) -> int:
        """Leave it to be continued; return how many blocks of the image stay here, 0 where that cannot be."""
        ...

    def abandon(self) -> None:
        """Give up what is in memory: the storage has stopped, and can note nothing."""
        ...

    def abort(self) -> None:
        """Give everything up; the storage is as it was."""
        ...


class Destination(Protocol):
    """A storage that can receive."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    def has_top(self, stream: StreamMap) -> bool:
        """Tell whether the top is there already, whole."""
        ...

    def accept(self, stream: StreamMap, *, discard: bool) -> None:
        """Return if the image fits what is there; change nothing.

        Raises
        ------
        RefusedError : something would be lost; the message says what, the hint how to agree to it.
        StreamMismatchError : the base is not here, or the history is not the top's.
        """
        ...

    def landing(self, stream: StreamMap) -> AbstractContextManager[Landing]:
        """Begin; what the image builds on stays while the context is open.

        Raises
        ------
        NoSpaceError : the image does not fit; nothing changed.
        """
        ...
