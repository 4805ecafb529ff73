"""Offers on the data connections of a pull: who shares no snapshot with what it asks for says first what it has.

The side that gives chooses the snapshot and compares; the side that asks reads it, and sends what it says of it. Then
the same connections bring the stream, with what differs alone. See WIRE.md, and OFFER.md for the bytes of an offer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from blockplane.image.image import Image
from blockplane.model.errors import (
    BlockplaneError,
    ChecksumError,
    ConnectionLostError,
    DiskError,
    RefusedError,
    StreamDamagedError,
)
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import Kind, WireError, bytes_field, decode_object, number_field
from blockplane.server.network.limits import Limits
from blockplane.server.network.spoken import error_heard
from blockplane.server.network.striped import Incoming, Outgoing
from blockplane.server.network.throttle import Throttle
from blockplane.server.network.tokens import most_blocks_for
from blockplane.stream.input import ObjectInput, arriving_whole
from blockplane.stream.offer import VERSION
from blockplane.transfer.against import Lent, compare_offer
from blockplane.transfer.began import Began
from blockplane.transfer.description import described
from blockplane.transfer.imagesending import ImageSending
from blockplane.transfer.offer import offer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import ResumeToken
from blockplane.transfer.standing import Standing
from blockplane.volume.codec import NO_ID, SnapshotRecord
from blockplane.volume.live import LiveVolume
from blockplane.volume.volume import Volume

#: An offer pays where the snapshot has at least this part of the image's blocks: both sides read what may be equal,
#: and the way up carries 0.2 % of it. Turn it up where disks are slow beside the network.
_PAYS: Final = 8
#: What came of an interrupted transfer is rather gone on with where it is at least this part of the image.
_GOES_ON: Final = 2
#: Who says something without pause is heard for so long at once.
_HEARING_S: Final = 1.0
#: What a request says of who makes offers.
CAPABILITY: Final = {"offers": VERSION}
#: The phase of progress in which a snapshot is read for one.
OFFER: Final = "offer"


class NotOfferedError(BlockplaneError):
    """What a volume has cannot be said: it is brought everything."""

    kind = "not offered"


@dataclass(frozen=True, slots=True)
class Asked:
    """Of which snapshot an offer is asked for, and how many block numbers it may speak of."""

    record: SnapshotRecord
    most_blocks: int

    @property
    def said(self) -> dict[str, object]:
        """What an answer says that asks for it."""
        return {"offer": self.record.id.hex(), "offer_blocks": self.most_blocks}


def newest_of(standing: Standing, space_id: bytes) -> SnapshotRecord | None:
    """Return the newest whole snapshot of a numbering; None: there is none."""
    return next((r for r in reversed(list(standing.whole.values())) if r.space_id == space_id), None)


# --- the side that gives ---------------------------------------------------------------------------------------------


def may_be_asked(request: Mapping[str, Any]) -> bool:
    """Whether who asks makes offers of the version that is read here; releases before this one do not say."""
    return "offers" in request and number_field(request, "offers") == VERSION


def asking(volume: LiveVolume, image: Image | None, standing: Standing, token: ResumeToken | None) -> Asked | None:
    """Return of what of who asks an offer is worth it, where an image would be brought whole; None: of nothing.

    Parameters
    ----------
    token : of what came of an interrupted transfer: where that goes on, it goes on as it began.
    """
    if image is None or image.base is not None:
        return None
    found = newest_of(standing, image.require_sendable().space_id)
    if found is None or found.n_blocks * _PAYS < image.n_blocks:
        return None
    if found.id in {record.id for record in image.arriving} or _goes_on(image, standing, token):
        return None
    return Asked(found, most_blocks_for(volume))


def _goes_on(image: Image, standing: Standing, token: ResumeToken | None) -> bool:
    """Whether what came before is gone on with: of the same image always, of another one where that spares enough."""
    header = described(ImageSending(image)).header
    if any(left.image_id == header.image_id for left in standing.interrupted):
        return True
    with suppress(RefusedError):
        rest = Began(token=token, image=image).rest_of(header, image.plane)[1]
        return rest is not None and (image.n_blocks - len(rest)) * _GOES_ON >= image.n_blocks
    return False


def heard_offer(incoming: Incoming, image: Image, asked: Asked) -> Lent:
    """Compare what comes with an image; return what need not be sent of it.

    Raises
    ------
    What `compare_offer` raises. ConnectionLostError : it is cut off, or was changed on the way.

    Notes
    -----
    The connections stay open, and what was said on them has been heard.
    """
    with arriving_whole(ObjectInput(incoming)):  # type: ignore[arg-type]
        lent = compare_offer(image, incoming, asked=asked.record.id, most_blocks=asked.most_blocks)  # type: ignore[arg-type]
        if incoming.readinto(memoryview(bytearray(1))):
            raise StreamDamagedError("the offer goes on after its end", "its writer is at fault")
    incoming.settle()
    return lent


# --- the side that asks ----------------------------------------------------------------------------------------------


def may_offer(standing: Standing, changes: LocalChanges) -> bool:
    """Whether a volume that stands so offers: it has something, and what is sent against it would be taken."""
    return bool(standing.whole) and (changes is not LocalChanges.REFUSE or standing.at != NO_ID)


def asked_for(answer: Mapping[str, Any], standing: Standing) -> Asked | None:
    """Return of which snapshot an answer asks for an offer; None: of none.

    Raises
    ------
    WireError : of another than the newest of its numbering, which it was told of.
    """
    if "offer" not in answer:
        return None
    record = standing.whole.get(bytes_field(answer, "offer"))
    if record is None or newest_of(standing, record.space_id) != record:
        raise WireError("the other side asks for an offer of what it was not told of")
    return Asked(record, number_field(answer, "offer_blocks"))


def send_offer(
    target: Volume,
    asked: Asked,
    channels: Sequence[Channel],
    control: Channel,
    limits: Limits,
    throttle: Throttle,
    progress: Progress,
) -> None:
    """Say what a volume has of a snapshot on data connections, which then are to bring the stream.

    Raises
    ------
    NotOfferedError : it cannot be said. ConnectionLostError : a connection is gone, or the other side takes nothing and
    does not say that it is at work. What else the other side has said that it failed by.
    """
    name, hearing = asked.record.name, _Hearing(control, limits)
    outgoing = Outgoing(channels, limits, throttle, hearing.is_at_work)

    def told(event: ProgressEvent) -> None:
        progress(replace(event, phase=OFFER))

    try:
        if target.get_snapshot(name).state.space_blocks > asked.most_blocks:
            raise NotOfferedError(f"snapshot {name} has more block numbers than {asked.most_blocks}")
        offer(target, outgoing, name, hold_s=None, progress=told)  # type: ignore[arg-type]
        outgoing.finish()
    except (ChecksumError, DiskError) as error:
        raise NotOfferedError(f"snapshot {name} cannot be read: {error.message}", error.hint) from error
    except ConnectionLostError as error:
        raise hearing.failed or error from error
    finally:
        outgoing.turn()


class _Hearing:
    """What the other side says on the control connection while it is sent something: that it is at work, or failed."""

    def __init__(self, control: Channel, limits: Limits) -> None:
        self._control, self._limits = control, limits
        self._alive_at, self._silent_s = float("-inf"), 0.0
        self.failed: BlockplaneError | None = None

    def is_at_work(self, seconds: float) -> bool:
        """Whether it says so, and has not for longer than it may in all; seconds : for which it took too little."""
        begun = time.monotonic()
        while self.failed is None and (head := self._control.receive_head_now(time.monotonic())) is not None:
            body = bytearray(head.n_bytes)
            self._control.receive_body(head, [memoryview(body)])
            if head.kind is Kind.FAILED:
                self.failed = error_heard(decode_object(body))
            elif head.kind is not Kind.ALIVE:
                raise WireError(f"{self._control.peer} says {head.kind.name} before it has what it asked for")
            self._alive_at = time.monotonic()
            if self._alive_at >= begun + _HEARING_S:
                break
        self._silent_s += seconds + time.monotonic() - begun
        is_alive = time.monotonic() - self._alive_at < self._limits.least_over_s
        return self.failed is None and is_alive and self._silent_s < self._limits.silent_s
