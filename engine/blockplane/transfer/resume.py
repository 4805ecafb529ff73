"""Going on with an interrupted transfer: what its destination has, as a token that its source understands."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from blockplane.image.expression import is_name
from blockplane.image.image import Image
from blockplane.model.checks import crc32c
from blockplane.model.errors import RefusedError, StreamDamagedError, StreamError, StreamMissingError
from blockplane.planes import Plane, PlaneFormatError, combine
from blockplane.volume.codec import KIND_REGULAR, NAME_BYTES, NO_ID, SnapshotRecord
from blockplane.volume.deferred import reap
from blockplane.volume.holds import hold_by_id, release_all
from blockplane.volume.incoming import IncomingImage, leaves_of
from blockplane.volume.landed import LandedBlocks, vbns_at
from blockplane.volume.live import LiveVolume
from blockplane.volume.volume import Volume

#: As the stream's magic, but for one letter.
MAGIC: Final = b"\x89BPR\r\n\x1a\n"
VERSION: Final = 1
_HEAD = struct.Struct("<8sI16s16s16s16sQQQqBBH127s")
#: The plane is that of the blocks still to come, and not of those that came: others of the image never do.
_LISTS_WANTED: Final = 1
_CRC = struct.Struct("<I")
#: A token of so many bytes describes any plane of a volume of 64 TiB.
MAX_BYTES: Final = 1 << 31
#: How long the snapshots of a send are held that left a half-written file.
LEFT_S: Final = 30 * 86_400.0
#: Volumes and owners of holds of what is being sent: a volume has one process that writes. Guarded by its lock.
_sending: Final[set[tuple[int, str]]] = set()


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """What a destination has of an image.

    image_id : of the image, which follows from its snapshots and planes. n_image : its blocks that come. copied : the
    VBNs of those that are durable there. wanted : where a snapshot there lends the others, the VBNs still to come, and
    copied is empty. member_ids : of the snapshots that the image brings, newest first; not all, where they are many.
    """

    image_id: bytes
    space_id: bytes
    top_id: bytes
    base_id: bytes
    n_image: int
    top_name: str
    copied: Plane
    made_ns: int = 0
    wanted: Plane | None = None
    member_ids: tuple[bytes, ...] = ()

    @property
    def n_left(self) -> int:
        """How many blocks are still to come."""
        return self.n_image - len(self.copied) if self.wanted is None else len(self.wanted)

    @property
    def n_copied(self) -> int:
        """How many blocks came."""
        return self.n_image - self.n_left

    def rest_of(self, plane: Plane) -> Plane:
        """Return the VBNs of an image's plane that are still to be sent."""
        return combine([plane], minus=self.copied, within=self.wanted)

    def encode(self) -> bytes:
        """Return the token: a head, ids, the copied plane in the portable form of Roaring, a CRC32C."""
        name, listed = self.top_name.encode(), self.copied if self.wanted is None else self.wanted
        plane, flags = listed.serialize(), 0 if self.wanted is None else _LISTS_WANTED
        head = _HEAD.pack(
            MAGIC, VERSION, self.image_id, self.space_id, self.top_id, self.base_id, self.n_image,
            listed.n_blocks, len(plane), self.made_ns, flags, len(name), len(self.member_ids), name,
        )  # fmt: skip
        body = head + b"".join(self.member_ids) + plane
        return body + _CRC.pack(crc32c(body))

    @classmethod
    def decode(cls, data: bytes, most_blocks: int = 1 << 56) -> ResumeToken:
        """Read a token.

        Parameters
        ----------
        most_blocks : block numbers of a volume that a token may be of.

        Raises
        ------
        StreamError, StreamDamagedError : it is none, or it is damaged.
        """
        if data.startswith(MAGIC) and len(data) < _HEAD.size + _CRC.size:
            raise StreamDamagedError(f"the token ends after {len(data)} bytes", "it was cut off; copy it again")
        if not data.startswith(MAGIC):
            raise StreamError(
                f"this is not a token of an interrupted receive: it starts with {data[:8]!r}",
                "give what `blockplane receive VOL --have` wrote",
            )
        _, version, *ids, n_image, space_blocks, n_plane, made_ns, flags, n_name, n_ids, name = _HEAD.unpack_from(data)
        if version != VERSION:
            raise StreamError(f"the token has format version {version}; this release reads {VERSION}", "")
        body, crc = data[: -_CRC.size], _CRC.unpack_from(data, len(data) - _CRC.size)[0]
        at = _HEAD.size + n_ids * len(NO_ID)
        if len(body) != at + n_plane or crc32c(body) != crc or space_blocks > 1 << 56:
            raise StreamDamagedError("the token does not match its checksum", "write it again, or copy it again")
        if space_blocks > most_blocks:
            raise StreamDamagedError(f"the token is of {space_blocks} block numbers: there are {most_blocks}", "")
        top_name = name[:n_name].decode("utf-8", "replace")
        try:
            listed = Plane.deserialize(body[at:], space_blocks)
        except (PlaneFormatError, ValueError) as error:
            raise StreamDamagedError(f"the token's plane cannot be read: {error}", "write it again") from error
        if not is_name(top_name):
            raise StreamDamagedError(f"the token names the snapshot {top_name!r}", "write it again")
        copied, wanted = (Plane.empty(space_blocks), listed) if flags & _LISTS_WANTED else (listed, None)
        if len(listed) > n_image:
            raise StreamDamagedError(f"the token lists {len(listed)} of {n_image} blocks", "write it again")
        members = tuple(body[i : i + len(NO_ID)] for i in range(_HEAD.size, at, len(NO_ID)))
        return cls(ids[0], ids[1], ids[2], ids[3], n_image, top_name, copied, made_ns, wanted, members)


def read_token(path: str | os.PathLike[str]) -> ResumeToken:
    """Read a token from a file.

    Raises
    ------
    StreamMissingError, StreamError, StreamDamagedError : there is none, or it cannot be read.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES)
    except FileNotFoundError as error:
        raise StreamMissingError(f"{name}: no such token", "write it: blockplane receive VOL --have > TOKEN") from error
    except OSError as error:
        raise StreamError(f"cannot read {name}: {error.strerror}") from error
    return ResumeToken.decode(data)


@dataclass(frozen=True, slots=True)
class InterruptedReceive:
    """A receive into a volume that began and did not end.

    n_image, n_landed : blocks of the image, and how many of them are durable at least: what the last consistency point
    knows. A token counts those too that wait for others of their stripes. is_full : it has no base. is_running : it is
    under way in this process.
    """

    top_name: str
    image_id: bytes
    n_image: int
    n_landed: int
    began_ns: int
    is_full: bool
    is_running: bool


def interrupted_receives(volume: LiveVolume) -> Sequence[InterruptedReceive]:
    """Return the receives that a volume keeps blocks of, older first; no block is read."""
    with volume.lock:
        return [
            InterruptedReceive(
                entry.top_name, entry.image_id, entry.n_image, entry.n_landed, entry.began_ns, entry.is_full,
                volume.incoming.runs(entry.landing_id),
            )
            for entry in (image.entry for image in volume.local.incoming.images())
        ]  # fmt: skip


def resume_token(volume: LiveVolume, top: str | None = None) -> ResumeToken:
    """Return what a volume has of an image whose receive was interrupted; durable on return.

    Parameters
    ----------
    top : of which, where there are several: the name of its top, or how its image id begins, in hex. By default of the
        one that began last.

    Raises
    ------
    RefusedError : no receive was interrupted here, none of that, or several of them.
    """
    with volume.lock:
        image = _waiting(volume, top)[-1]
        entry = image.entry
        copied, wanted = _landed(volume, image, store=True), None
        if entry.lender_id != NO_ID:
            due = vbns_at(dict(leaves_of(image.places)), image.placemap(), entry.space_blocks)
            copied, wanted = Plane.empty(entry.space_blocks), combine([due], minus=copied)
    return ResumeToken(
        entry.image_id, entry.space_id, entry.top_id, entry.base_id, entry.n_image, entry.top_name, copied,
        time.time_ns(), wanted, entry.member_ids,
    )  # fmt: skip


def landed_of(volume: LiveVolume, image_id: bytes, plane: Plane) -> Plane:
    """Return which blocks of an image a volume has from an interrupted receive of it; nothing is changed.

    Parameters
    ----------
    plane : the image's.
    """
    with volume.lock:
        image = next((i for i in volume.local.incoming.images() if i.entry.image_id == image_id), None)
        if image is None:
            return Plane.empty(plane.n_blocks)
        landed = _landed(volume, image, store=False)
        if image.entry.lender_id == NO_ID:
            return landed
        due = vbns_at(dict(leaves_of(image.places)), image.placemap(), image.entry.space_blocks)
        return combine([landed, combine([plane], minus=due)])


def _landed(volume: LiveVolume, image: IncomingImage, *, store: bool) -> Plane:
    """Return what is durable of an incoming image, its journal read back; store: have the local tree know of it too."""
    kept = LandedBlocks(volume, image.entry, dict(leaves_of(image.places)), image.placemap(), image)
    kept.recall(lambda _: None, store=store)
    try:
        return kept.plane()
    finally:
        kept.close()


def drop_incoming(volume: LiveVolume, top: str | None = None) -> int:
    """Give up what interrupted receives have left; return how many blocks that frees. Durable on return.

    Parameters
    ----------
    top : of which alone, as for `resume_token`; by default of all.

    Raises
    ------
    RefusedError : as `resume_token`.
    """
    with volume.lock:
        return _drop(volume, _waiting(volume, top))


def drop_pulled(volume: LiveVolume, but: Container[bytes] = ()) -> int:
    """Give up what interrupted pulls have left; return how many blocks that frees. Durable on return.

    but : ids of tops towards which something may stay.
    """
    with volume.lock:
        left = [e for e in volume.local.incoming.images() if e.entry.was_pulled and e.entry.top_id not in but]
        return _drop(volume, [image for image in left if not volume.incoming.runs(image.entry.landing_id)])


def drop_unlent(volume: LiveVolume) -> int:
    """Give up what is left of pulls whose lender, another snapshot here, is gone; return how many blocks that frees.

    Nothing can complete it, and it would be in the way of the next. Durable on return.
    """
    with volume.lock:
        there = {entry.record.id for entry in volume.local.regular()} | {NO_ID}
        left = [i for i in volume.local.incoming.images() if i.entry.was_pulled and i.entry.lender_id not in there]
        return _drop(volume, [image for image in left if not volume.incoming.runs(image.entry.landing_id)])


def _drop(volume: LiveVolume, images: Sequence[IncomingImage]) -> int:
    """Give incoming images up, a consistency point each; the volume's lock is held."""
    for image in images:
        if image.entry.made_volume:
            _hand_on(volume, image)
        LandedBlocks(volume, image.entry, {}, image.placemap(), None).give_up()
    if images:
        reap(volume)
    return sum(image.entry.n_image for image in images)


def _hand_on(volume: LiveVolume, given_up: IncomingImage) -> None:
    """Let another receive stand for the one that made the volume: giving up the last removes it."""
    for image in [image for image in volume.local.incoming.images() if image is not given_up][:1]:
        image.entry.flags |= given_up.entry.how_made
        volume.local.incoming.changed()


@contextmanager
def held(volume: LiveVolume, image: Image, seconds: float, to: str = "") -> Iterator[None]:
    """Keep the snapshots that an image is made of while it is sent; where that fails, so many seconds from its start.

    What is sent again with a token, or into a half-written file, must still be there. A later try of the same transfer,
    held too, takes the hold over, and gives it up when it is done; those of other transfers stay.

    Parameters
    ----------
    to : where it goes, spelled alike each time: what tells one transfer of the image from another. Without, it is told
        from those that go on beside it alone.
    """
    with volume.lock:
        owner = _owner_for(volume, image, to)
        _sending.add((id(volume), owner))
    try:
        with volume.lock:
            _hold(volume, _regular(image), owner, seconds)
            volume.commit()
        yield
        with volume.lock:
            release_all(volume, owner)
            volume.commit()
    finally:
        _sending.discard((id(volume), owner))


def hold_left(volume: Volume, image: Image, to: str = "", seconds: float = LEFT_S) -> str:
    """Keep the snapshots of an image for so long whose send ended early, and left what can be gone on with.

    Returns who holds them, as `held` does. Durable on return; a volume that was opened for reading is written to from
    now on.

    Raises
    ------
    VolumeInUseError, ReadOnlyError, DiskError: it cannot be written to. RefusedError: a snapshot went meanwhile.
    """
    volume.take_for_writing()
    with volume.lock:
        owner, there = _owner_for(volume, image, to), {entry.record.id for entry in volume.local.regular()}
        records = _regular(image)
        gone = [record.name for record in records if record.id not in there]
        if gone:
            raise RefusedError(f"{', '.join(gone)} went meanwhile", "")
        _hold(volume, records, owner, seconds)
        volume.commit(clean=True)  # whoever failed does not close it as one should
    return owner


def release_left(volume: Volume, image: Image, to: str = "") -> None:
    """Give up what holds the snapshots of an image for a send that ended early, now that it came to its end.

    Where nothing does, nothing is written. Raises what `hold_left` raises.
    """
    with volume.lock:
        owner = _owner_for(volume, image, to)
        if all(hold.owner != owner or hold.has_expired for hold in volume.local.holds()):
            return
    volume.take_for_writing()
    with volume.lock:
        release_all(volume, owner)
        volume.commit()


def _regular(image: Image) -> list[SnapshotRecord]:
    return [record for record in image.records() if record.kind == KIND_REGULAR]


def _hold(volume: LiveVolume, records: Sequence[SnapshotRecord], owner: str, seconds: float) -> None:
    for record in records:
        hold_by_id(volume, record.id, owner, time.time_ns() + int(seconds * 1e9))


def _owner_for(volume: LiveVolume, image: Image, to: str) -> str:
    """Return who holds for a transfer, as `snapshot list` shows it: where one was interrupted, who did for that."""
    top, base = image.top, image.base
    names = f"send:{top.name if top is not None else ''}{f'-{base.name}' if base is not None else ''}"
    transfer = sha256(b"".join(record.id for record in _regular(image)) + os.fsencode(to)).hexdigest()[:8]
    first = f"{names.encode()[: NAME_BYTES - 16].decode(errors='ignore')}:{transfer}"
    waiting = [hold.owner for hold in volume.local.holds() if hold.owner.startswith(first)]
    fresh = (f"{first}.{number}" for number in itertools.count(2))  # others go on beside it
    return next(owner for owner in itertools.chain(waiting, [first], fresh) if (id(volume), owner) not in _sending)


def _waiting(volume: LiveVolume, top: str | None) -> list[IncomingImage]:
    """Return the images whose receive was interrupted, older first: all of them, or the one that is meant."""
    waiting = [i for i in volume.local.incoming.images() if not volume.incoming.runs(i.entry.landing_id)]
    if not waiting and volume.incoming.is_running:
        raise RefusedError(
            f"a receive into {volume.path} is under way, and none before it was interrupted",
            "wait for its end, or interrupt it first: what came is kept",
        )
    if not waiting:
        raise RefusedError(
            f"no receive into {volume.path} was interrupted: there is nothing to go on with", "receive the stream whole"
        )
    return waiting if top is None else [_meant(volume, waiting, top)]


def _meant(volume: LiveVolume, waiting: Sequence[IncomingImage], top: str) -> IncomingImage:
    """Return the image of a top's name, or, where no top is named so, of the id that begins so."""
    named = [image for image in waiting if image.entry.top_name == top]
    named = named or [image for image in waiting if top and image.entry.image_id.hex().startswith(top.lower())]
    if len(named) == 1:
        return named[0]
    there = ", ".join(f"{i.entry.top_name} (image id {i.entry.image_id.hex()})" for i in named or waiting)
    if not named:
        raise RefusedError(f"no receive of {top} into {volume.path} was interrupted", f"these were: {there}")
    raise RefusedError(f"several receives of {top} into {volume.path} were interrupted", f"say the image id: {there}")


def made_by_receive(volume: LiveVolume) -> bool:
    """Tell whether a volume holds nothing but what a receive, which made it, has begun."""
    with volume.lock:
        return not volume.was_written and any(image.entry.made_volume for image in volume.local.incoming.images())
