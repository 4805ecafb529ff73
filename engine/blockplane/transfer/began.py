"""What was sent of an image before: by a token of its destination, or in a half-written file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from blockplane.image.image import Image
from blockplane.image.order import DISK
from blockplane.model.errors import RefusedError, StreamError, UsageError
from blockplane.planes import Plane, combine
from blockplane.stream.codec import LENT_FEATURES, PART_FEATURES, Header, Locations
from blockplane.stream.filenames import WHOLE, FileForm
from blockplane.stream.filesink import FileSink
from blockplane.stream.folder import PARTIAL
from blockplane.stream.input import FileInput
from blockplane.stream.keyfile import Key, keys_of
from blockplane.stream.partial import PartialStream, read_partial
from blockplane.stream.pieces import piece_name
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.stream.sink import SinkLike, folder_of
from blockplane.stream.stored import Stored
from blockplane.stream.written import Written
from blockplane.transfer.against import Lent
from blockplane.transfer.resume import ResumeToken
from blockplane.volume.codec import KIND_REGULAR, KIND_SHADOW, SnapshotRecord


@dataclass(frozen=True, slots=True)
class Began:
    """What an image's sending goes on from; nothing, where neither is given.

    token : what its destination has; image : of which the rest is asked for. partial : what its file holds, and name,
    the file. lent : what an offer proved to be at its destination; offered : where a file is gone on with, the snapshot
    that an offer is of.
    """

    token: ResumeToken | None = None
    partial: PartialStream | None = None
    name: str = ""
    lent: Lent | None = None
    image: Image | None = None
    offered: SnapshotRecord | None = None

    @property
    def written(self) -> Written | None:
        """What the writer goes on from."""
        return self.partial.written if self.partial is not None else None

    @property
    def n_windows(self) -> int:
        """How many windows of the image's order the file has, where that says what its frames hold; else 0."""
        if self.partial is None or self.partial.map.header.locations is not Locations.IMPLICIT:
            return 0
        return self.partial.written.n_blocks // self.partial.map.header.window_blocks

    @property
    def planned(self) -> Plane | None:
        """The VBNs that the windows are of, where these are counted; None: all of the image."""
        return self.partial.map.part if self.partial is not None else None

    def close(self) -> None:
        """Release scratch."""
        if self.partial is not None:
            self.partial.written.index.close()

    def rest_of(self, header: Header, plane: Plane, chosen: Plane | None = None) -> tuple[Header, Plane | None]:
        """Return the header of the stream to write, and the VBNs still to be sent; None: all.

        Parameters
        ----------
        chosen : of the image's plane, what the stream has as a part of it; None: it has all.

        Raises
        ------
        RefusedError : what was begun is another image, or another part of it.
        """
        if self.partial is None:
            return self._asked_for(header, plane, chosen)
        found = self.partial.map
        if found.header.image_id != header.image_id:
            raise RefusedError(
                f"{self.name} is a stream of {found.top.name}: another image than the one asked for",
                "name the same snapshots, or send without --resume, which begins anew",
            )
        asked, rest = self._asked_for(header, plane, chosen)
        what = lacks(found, asked, rest, self.offered)
        if what is not None:
            hint = f"{what[1]}, or send without --resume, which begins anew"
            raise RefusedError(f"{self.name} holds {what[0]}", hint)
        self._require_same_order(found.header, header)
        return found.header, combine([found.following], minus=self.partial.copied)

    def _asked_for(self, header: Header, plane: Plane, chosen: Plane | None) -> tuple[Header, Plane | None]:
        """Return the header of a stream of what is asked for, and its VBNs; None: all."""
        if self.lent is not None:
            rest = combine([plane], minus=self.lent.plane)
            return replace(header, features=header.features | LENT_FEATURES, part_blocks=len(rest)), rest
        if self.token is None:
            return header, chosen
        if self.token.image_id != header.image_id:
            return self._towards_another(header, self.token, plane)
        rest = self.token.rest_of(plane)
        return replace(header, features=header.features | PART_FEATURES, part_blocks=len(rest)), rest

    def _require_same_order(self, old: Header, new: Header) -> None:
        """What says where blocks belong must go on as it began, and what lists it too; `disk` may be the default."""
        if old.locations is not Locations.IMPLICIT:
            if new.locations is not old.locations or new.order not in (old.order, DISK):
                raise RefusedError(
                    f"{self.name} has its blocks in {old.order} order, with locations",
                    f"go on with --locations explicit --order {old.order}, or send without --resume, which begins anew",
                )
            return
        if new.groups != old.groups:
            raise RefusedError(
                f"{self.name} has its blocks in the order of RAID groups that are others by now",
                "send without --resume, which begins anew",
            )
        if (new.locations, new.order, new.window_blocks) != (old.locations, old.order, old.window_blocks):
            raise RefusedError(
                f"{self.name} has its blocks in {old.order} order, without locations",
                f"go on with --locations implicit --order {old.order}",
            )

    def _towards_another(self, header: Header, token: ResumeToken, plane: Plane) -> tuple[Header, Plane | None]:
        """Return the same towards another top: what came and is unchanged since counts (DESIGN.md, Applying).

        A snapshot that the token's image brought, and that is here still, says which those are; a shadow of it too: it
        has lost what was reused.
        """
        members = self._members(token, header.space_id)
        assert self.image is not None
        carried = combine([token.copied], within=self.image.held_by(members))
        if not carried:
            return header, None
        rest = combine([plane], minus=carried)
        features = header.features | PART_FEATURES
        return replace(header, features=features, part_blocks=len(rest), carried_id=token.image_id), rest

    def _members(self, token: ResumeToken, space_id: bytes) -> list[SnapshotRecord]:
        if token.space_id != space_id:
            raise RefusedError(
                f"the token is for an image of {token.top_name} of another volume, whose blocks have other numbers",
                "send from the volume that the interrupted transfer came from, or one that received from it",
            )
        assert self.image is not None
        if token.wanted is not None:  # what the destination's own snapshot lends is not in it
            raise RefusedError(
                f"the token is for an image of {token.top_name} that an offer began, and goes on with that one alone",
                "name the same snapshots as before; or send against a new offer, which begins anew",
            )
        known = (r for r in self.image.store.records() if r.kind in (KIND_REGULAR, KIND_SHADOW))
        members = [record for record in known if record.id in token.member_ids and record.space_id == space_id]
        if not members:
            raise RefusedError(
                f"the token is for an image of {token.top_name}, which is not here any more: nothing says what of it "
                "has stayed the same",
                "send without the token",
            )
        return members


def lacks(
    found: StreamMap, asked: Header, rest: Plane | None, offered: SnapshotRecord | None
) -> tuple[str, str] | None:
    """Return what a file holds that has not all that is asked for of its image, and what to say to mean it; or None.

    Parameters
    ----------
    asked, rest : the header of the stream that would be written, and its VBNs; None: all. offered : the snapshot that
    an offer is of, if one was named.
    """
    header, top = found.header, found.top.name
    if header.is_lent:
        if offered is not None and found.lender is not None and offered.id == found.lender.id:
            return None  # a snapshot's id and numbering say all that it holds
        lender = found.lender.name if found.lender is not None else "a snapshot of its own"
        return f"of {top} only what a destination lacks that has {lender}", "name its offer with --against"
    if found.following == (found.image if rest is None else rest) and header.carried_id == asked.carried_id:
        return None
    if header.is_part and not header.is_one_of_parts:
        return f"of {top} only the rest of an interrupted transfer", "name its token with --resume TOKEN"
    return f"another part of {top} than the one asked for", "divide the image as before"


def began_in(sink: FileSink, key: Key | None = None) -> Began:
    """Return what a file that is gone on with holds, and place its writer behind that.

    Parameters
    ----------
    key : what the file is to be encrypted with, and is as far as it goes.

    Raises
    ------
    StreamError : it is no stream. StreamKeyError, UsageError : it is encrypted otherwise, or not at all.
    """
    with closing(sink.stored()) as stored:
        partial = _read(stored, key)
    sink.go_on_from(partial.written.n_bytes if partial is not None else 0)
    return Began(partial=partial, name=sink.partial_name)


def began_beside(target: SinkLike, key: Key | None = None, form: FileForm = WHOLE) -> Began:
    """Return what an interrupted send has left beside a file; nothing is changed."""
    stored = _left_beside(target, form)
    if stored is None:
        return Began()
    with closing(stored):
        return Began(partial=_read(stored, key), name=stored.name)


def _left_beside(target: SinkLike, form: FileForm) -> Stored | None:
    """Return the bytes that an interrupted send has left beside a file, for the caller to close; None: none are."""
    file = folder_of(target)
    if file is None:
        return None
    folder, base = file
    pieces = (piece_name(base, number) for number in itertools.count())
    names: Iterable[str] = pieces if form.split_bytes else [base]
    found = list(itertools.takewhile(folder.has_file, (name + PARTIAL for name in names)))
    return folder.stored(found) if found else None


def map_beside(target: SinkLike, key: Key | None = None, form: FileForm = WHOLE) -> StreamMap | None:
    """Return what stands before the data in what an interrupted send has left beside a file; None: nothing that can be
    read, with the key and in the form that are named.
    """
    stored = _left_beside(target, form)
    if stored is None:
        return None
    with suppress(StreamError), closing(stored):
        stream = StreamReader(FileInput(stored), keys_of(key)).read_map()
        return stream if stream.header.is_sealed is (key is not None) else None
    return None


def _read(stored: Stored, key: Key | None) -> PartialStream | None:
    partial = read_partial(stored, [key] if key is not None else [])
    if partial is not None and key is not None and not partial.map.header.is_sealed:
        partial.written.index.close()
        hint = "send without --encrypt, or without --resume, which begins anew"
        raise UsageError(f"{stored.name} is not encrypted", hint)
    return partial


def is_finished(target: SinkLike, form: FileForm = WHOLE) -> bool:
    """Whether a file has the name of the stream itself, and nothing half-written is beside it."""
    file = folder_of(target)
    if file is None:
        return False
    folder, base = file
    name, names = base if form.split_bytes is None else piece_name(base, 0), folder.names()
    return name in names and name + PARTIAL not in names
