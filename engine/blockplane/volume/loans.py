"""Which states here lend blocks to an image that is on its way in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from blockplane.model.errors import ChecksumError, RefusedError, VolumeDamagedError
from blockplane.planes import Plane, combine
from blockplane.volume.borrowing import Borrowed, Sharing
from blockplane.volume.codec import TableEntry
from blockplane.volume.holds import release_offers
from blockplane.volume.incoming import IncomingEntry
from blockplane.volume.placemap import PlaceMap, union
from blockplane.volume.readers import PlaceReader
from blockplane.volume.state import State

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


class Loans:
    """See the module: nobody; or the snapshot that the stream names; or the newest state, for what turns out equal.

    Attributes
    ----------
    borrowed : what the stream takes. sharing : what finds equal blocks.
    """

    def __init__(self, volume: LiveVolume, image: Plane) -> None:
        self._volume, self._image = volume, image
        self._pins = ExitStack()
        self.borrowed: Borrowed | None = None
        self.sharing: Sharing | None = None

    def borrow(self, lender: TableEntry, own: Plane) -> None:
        """Take all of the image but some VBNs from a snapshot; it stays meanwhile."""
        self._pins.enter_context(self._volume.pin(lender.record.id))
        state = _alone(self._volume, self._volume.snapshot_state(lender))
        self.borrowed = Borrowed(state, lender.record, combine([self._image], minus=own))

    def share(self, space_id: bytes) -> None:
        """Have what arrives compared with what is here of the same numbering, if anything is."""
        volume = self._volume
        if self.borrowed is not None or not volume.was_written:
            return
        with suppress(VolumeDamagedError):
            if volume.committed.root.space_id == space_id:
                self.sharing = Sharing(volume, _alone(volume, volume.committed))
                return
        for entry in reversed(volume.local.regular()):
            state = volume.known_state(entry) if entry.record.space_id == space_id else None
            if state is not None:
                self._pins.enter_context(volume.pin(entry.record.id))
                self.sharing = Sharing(volume, _alone(volume, state))
                return

    @property
    def plane(self) -> Plane:
        """The VBNs that the stream takes."""
        return self.borrowed.plane if self.borrowed is not None else Plane.empty(self._image.n_blocks)

    @property
    def n_blocks(self) -> int:
        """How many blocks of the image were here already and are not written."""
        return len(self.plane) + (self.sharing.n_blocks if self.sharing is not None else 0)

    def placemap(self, own: PlaceMap) -> PlaceMap:
        """Return where all blocks of the image lie that are not at home, given the places that it was assigned."""
        if self.borrowed is not None:
            return union([self.borrowed.placemap(), own])
        if self.sharing is None or not self.sharing.n_blocks:
            return own
        shared = self.sharing.plane(self._image.n_blocks)
        return union([self.sharing.placemap(shared), own.within(combine([self._image], minus=shared))])

    @contextmanager
    def proving(self) -> Iterator[None]:
        """Read states that arrived; whatever of them is damaged is the stream's fault, which took it from here."""
        try:
            yield
        except ChecksumError as error:
            if self.borrowed is None:
                raise
            raise self.borrowed.error(error.message) from error

    def require_equal(self, state: State) -> None:
        """See `Borrowed`."""
        if self.borrowed is not None:
            self.borrowed.require_equal(state)

    def paid(self) -> None:
        """Give up what holds the lender for this image, in the open CP. The volume's lock is held."""
        if self.borrowed is not None:
            release_offers(self._volume, self.borrowed.snapshot_id)

    def close(self) -> None:
        """Give up pins."""
        self._pins.close()


def lender_of(volume: LiveVolume, entry: IncomingEntry) -> TableEntry:
    """Return the snapshot that lends blocks to an image whose receive was interrupted.

    Raises
    ------
    RefusedError : it is gone.
    """
    for found in volume.local.regular():
        if found.record.id == entry.lender_id:
            return found
    raise RefusedError(
        f"what an interrupted receive of {entry.top_name} into {volume.path} has cannot be completed: the snapshot it "
        f"was sent against is gone (id {entry.lender_id.hex()})",
        f"give it up: blockplane receive {volume.path} --abort",
    )


def _alone(volume: LiveVolume, state: State) -> State:
    """Return the same committed state, read by nobody else."""
    return State.read(PlaceReader(volume.array, state.placemap), state.pointer, state.placemap)
