"""The listening side of one control connection: a request, the transfer it is for, how that ended."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from blockplane.image.feeds import Feeds
from blockplane.image.image import Image
from blockplane.model.errors import (
    BlockplaneError,
    ConnectionLostError,
    NotAllowedError,
    RefusedError,
)
from blockplane.model.progress import ignore_progress
from blockplane.server.network import mirroring
from blockplane.server.network.carrying import received, send_rest, taken_in
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import (
    TICKET_BYTES,
    Kind,
    WireError,
    bytes_field,
    number_field,
    text_field,
)
from blockplane.server.network.heartbeat import alive
from blockplane.server.network.limits import Limits
from blockplane.server.network.offering import Asked, asking, heard_offer, may_be_asked
from blockplane.server.network.rights import Identity, Verb
from blockplane.server.network.spoken import (
    brought_said,
    error_heard,
    error_said,
    n_standing_bytes,
    standing_heard,
    standing_said,
)
from blockplane.server.network.striped import Incoming, Outgoing
from blockplane.server.network.throttle import Throttle
from blockplane.server.network.tokens import decode_token, most_blocks_for, token_for
from blockplane.transfer.against import Lent
from blockplane.transfer.peer import Brought, VolumePeer, destination_of, giving
from blockplane.transfer.replacing import forget_superseded, kept_by, made_ready, updating
from blockplane.transfer.resume import ResumeToken, drop_incoming
from blockplane.transfer.standing import Standing, standing_of
from blockplane.volume.codec import NO_ID
from blockplane.volume.replicas import records_of
from blockplane.volume.volume import Volume

#: How long a side whose data connections are gone waits to be told why.
REASON_S: Final = 2.0
#: What a request may ask for, and the right that it takes; a standing, either of two.
REQUESTS = {
    "standing": (Verb.READ, Verb.WRITE),
    "take": (Verb.WRITE,),
    "bring": (Verb.READ,),
    "give up": (Verb.ADMIN,),
    "become": (Verb.WRITE,),
    "let go": (Verb.WRITE,),
    "retain": (Verb.WRITE,),
    "go back": (Verb.WRITE,),
    "since": (Verb.READ, Verb.WRITE),
    "break": (Verb.ADMIN,),
    "end rehearsal": (Verb.ADMIN,),
}


def _nothing() -> None:
    """Do it."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a peer asks for: who, of which volume, by which right, in which request.

    in_vain : ends a push whose volume is a mirror no more. abort : ends it, whatever it is. From any thread.
    """

    identity: Identity
    volume: str
    verb: Verb
    request: str = ""
    in_vain: Callable[[], None] = _nothing
    abort: Callable[[], None] = _nothing


#: An open volume; or what gives one for the length of a `with`, and may refuse: a service notes there what goes on, and
#: holds it against what else does. Called in a session's thread, after the peer's right was found.
Opened = Volume | Callable[[Transfer], AbstractContextManager[Volume]]


class Serving(Protocol):
    """What a dialogue needs of its listener."""

    limits: Limits
    volumes: Mapping[str, Opened]
    throttle: Throttle
    #: of images that several ask for at about the same time
    feeds: Feeds

    def right_to(self, identity: Identity, volume: str, request: str) -> Verb | None:
        """Return by which right a peer may ask for something now; None: by none."""
        ...

    def take_turn(self, dialogue: Dialogue) -> AbstractContextManager[None]:
        """Hold a volume against other pushes; end what the same caller has left behind."""
        ...

    def note(self, what: str, dialogue: Dialogue, text: str = "", brought: Brought | None = None) -> None:
        """Tell what happens."""
        ...


class Dialogue:
    """One control connection, and the data connections that come to it.

    Parameters
    ----------
    caller : what the other side calls itself.
    """

    def __init__(self, serving: Serving, channel: Channel, identity: Identity, caller: bytes) -> None:
        self._serving, self._control, self.identity, self.caller = serving, channel, identity, caller
        self._limits = serving.limits
        self.ticket = os.urandom(TICKET_BYTES)
        self.transfer: Transfer | None = None
        self.over = threading.Event()
        #: whether it holds the volume against other pushes
        self.changes_volume = False
        #: guards the three below
        self._changed = threading.Condition()
        self._wanted, self._data = 0, list[Channel]()
        self._is_aborted = False
        #: why this side ended it, for the other one
        self._ended_by: BlockplaneError | None = None
        #: said when the volume was given back: others can use it then
        self._last_word: dict[str, object] | None = None
        #: for the log, where it is denied
        self._asked_for = ""
        #: where it lies, which is nobody else's business
        self._path = ""

    # --- from other threads ------------------------------------------------------------------------------------------

    def join_data(self, channel: Channel, identity: Identity) -> bool:
        """Take a data connection; return False where none is due, or it is somebody else's."""
        with self._changed:
            is_due = len(self._data) < self._wanted and not self._is_aborted
            if not is_due or identity.fingerprint != self.identity.fingerprint:
                return False
            self._data.append(channel)
            self._changed.notify_all()
            return True

    def abort(self) -> None:
        """End it: connections are shut, the transfer suspends or has committed."""
        with self._changed:
            self._is_aborted = True
            for channel in (self._control, *self._data):
                channel.abort()
            self._changed.notify_all()

    def end(self, why: BlockplaneError) -> None:
        """End it, and tell the other side why; what it has brought is kept."""
        with self._changed:
            self._ended_by, self._is_aborted = self._ended_by or why, True
            for channel in self._data:
                channel.abort()
            self._changed.notify_all()

    def end_in_vain(self) -> None:
        """End a push into what is a mirror no more."""
        name = self.transfer.volume if self.transfer is not None else "the volume"
        self.end(RefusedError(f"{name} was broken off meanwhile", "`mirror resync` joins it again"))

    def end_without_right(self) -> None:
        """End what its peer may not do any more, if it does."""
        if self.transfer is not None and self._right_to(self.transfer.request, self.transfer.volume) is None:
            self.end(_not_allowed())

    @property
    def n_bytes(self) -> int:
        """Bytes that went over its connections, both ways."""
        with self._changed:
            return sum(channel.n_sent + channel.n_received for channel in (self._control, *self._data))

    # --- the dialogue ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take one request and answer it."""
        try:
            request = self._control.receive(Kind.REQUEST).object
            self._answer(request)
        except BlockplaneError as error:
            why = self._ended_by or error
            self._tell_failed(why)
            is_denied = isinstance(why, NotAllowedError)
            self._serving.note("denied" if is_denied else "failed", self, self._asked_for if is_denied else why.message)
        except Exception as error:  # noqa: BLE001 - one session's defect must not end the service
            self._tell_failed(error)
            self._serving.note("failed", self, f"{type(error).__name__}: {error}")
        finally:
            with self._changed:
                self._is_aborted = True  # a connection that comes late is not let in
            for channel in self._data:
                channel.close()
            self.over.set()
            self._control.part()

    def _tell_failed(self, error: Exception) -> None:
        said = error_said(error)
        if self._path and self.transfer is not None:  # by the name that the other side knows
            said = {field: str(text).replace(self._path, self.transfer.volume) for field, text in said.items()}
        with contextlib.suppress(BlockplaneError):
            self._control.tell(Kind.FAILED, said)

    def _answer(self, request: dict[str, Any]) -> None:
        what, name = text_field(request, "verb", 16), text_field(request, "volume", 64)
        self._asked_for = f"{what} of {name} is not allowed"
        if what not in REQUESTS:
            raise WireError("a request asks for what this release does not know")
        verb = self._right_to(what, name)
        opened = self._serving.volumes.get(name) if verb is not None else None
        if verb is None or opened is None:
            raise _not_allowed()
        self.transfer = Transfer(self.identity, name, verb, what, self.end_in_vain, self.abort)
        self.end_without_right()  # it may have gone between the two
        self.changes_volume = what in ("take", "give up", "go back")
        run = {
            "standing": self._standing, "take": self._take, "bring": self._bring, "give up": self._give_up
        }.get(what, self._as_mirror)  # fmt: skip
        with self._serving.take_turn(self), _open(opened, self.transfer) as volume:
            self._path = str(volume.path)
            if self._is_aborted:  # while it waited; who asked may have asked again
                raise self._ended_by or ConnectionLostError(f"{self.identity} is gone")
            brought = run(volume, request)
        if self._last_word is not None:
            self._control.tell(Kind.ANSWER, self._last_word)
        self._serving.note("done", self, what, brought)

    def _right_to(self, request: str, volume: str) -> Verb | None:
        return self._serving.right_to(self.identity, volume, request)

    def _standing(self, volume: Volume, request: dict[str, Any]) -> None:
        del request
        said, blob = standing_said(standing_of(volume))
        self._control.tell(Kind.ANSWER, said)
        self._control.send_blob(blob)

    def _give_up(self, volume: Volume, request: dict[str, Any]) -> None:
        image_id = bytes_field(request, "image_id")
        self._control.tell(Kind.ANSWER, {"n_blocks": drop_incoming(volume, image_id.hex())})

    def _as_mirror(self, volume: Volume, request: dict[str, Any]) -> None:
        may_break = self.transfer is not None and self._right_to("break", self.transfer.volume) is not None
        with alive(self._control, self._limits.alive_s):
            self._last_word = mirroring.answer(
                VolumePeer(volume), text_field(request, "verb", 16), request, self.identity.key, may_break=may_break
            )

    # --- a push ------------------------------------------------------------------------------------------------------

    def _take(self, volume: Volume, request: dict[str, Any]) -> Brought:
        top_id, image_id = bytes_field(request, "top_id"), bytes_field(request, "image_id")
        changes, source_id = mirroring.changes_heard(request), _source_id(request)
        there = standing_of(volume).whole.get(top_id)
        if there is not None and there.space_id == bytes_field(request, "space_id"):
            brought = Brought(there.name, None, 0, 0, 0.0, already_there=True)
            self._control.tell(Kind.ANSWER, {"brought": brought_said(brought)})
            return brought
        with alive(self._control, self._limits.alive_s):
            ready = made_ready(volume, changes, ignore_progress, source_id)
            token = token_for(volume, image_id, self._limits.token_bytes)
        with self._data_connections(request, {"n_token_bytes": len(token), "kept": ready.kept}, token) as channels:
            incoming = Incoming(channels, self._limits, self._serving.throttle)
            with contextlib.closing(incoming):
                self._serving.note("began", self)
                with alive(self._control, self._limits.alive_s), updating(volume):
                    report = taken_in(incoming, destination_of(volume), changes, ready.progress)
                    kept = kept_by(volume, ready)
                    forget_superseded(volume, source_id)
                incoming.settle()
        brought = received(report, kept)
        self._control.tell(Kind.ANSWER, {"brought": brought_said(brought)})
        return brought

    # --- a pull ------------------------------------------------------------------------------------------------------

    def _bring(self, volume: Volume, request: dict[str, Any]) -> Brought:
        wanted = text_field(request, "wanted")
        standing, token = self._asked(volume, request)
        with contextlib.ExitStack() as stack:
            with alive(self._control, self._limits.alive_s):
                gift = stack.enter_context(giving(volume, wanted, standing, self.identity.key))
                asked = asking(volume, gift.image, standing, token) if may_be_asked(request) else None
            if gift.image is None:
                brought = Brought(gift.record.name, None, 0, 0, 0.0, already_there=True)
                self._control.tell(Kind.ANSWER, {"brought": brought_said(brought)})
                return brought
            feeds = self._serving.feeds if len(records_of(volume)) > 1 else None
            return self._give(gift.image, request, token, feeds, asked)

    def _give(
        self,
        image: Image,
        request: dict[str, Any],
        token: ResumeToken | None,
        feeds: Feeds | None,
        asked: Asked | None,
    ) -> Brought:
        """Send an image to who asked for it, without what its offer proves to be there; how that ended is heard."""
        found = {"top": image.top.name if image.top is not None else "", "n_blocks": image.n_blocks}
        with self._data_connections(request, found | (asked.said if asked is not None else {})) as channels:
            self._serving.note("began", self)
            lent = self._lent(image, asked, channels) if asked is not None else None
            outgoing = Outgoing(channels, self._limits, self._serving.throttle)
            with contextlib.closing(outgoing):
                with self._at_work():
                    report = send_rest(image, outgoing, token, feeds=feeds, lent=lent)
                    outgoing.finish()
                self._heard_durable()
        return Brought(report.top, report.base, report.n_blocks, report.n_bytes, report.seconds)

    def _lent(self, image: Image, asked: Asked, channels: list[Channel]) -> Lent:
        """Take the offer that was asked for, and say what comes."""
        incoming = Incoming(channels, self._limits, self._serving.throttle)
        with self._at_work():
            lent = heard_offer(incoming, image, asked)
            self._control.tell(Kind.ANSWER, {"n_blocks": image.n_blocks - len(lent.plane)})
        return lent

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Say that one is, while data go or come; where they are lost, raise why the other side gave them up."""
        try:
            with alive(self._control, self._limits.alive_s):
                yield
        except ConnectionLostError as error:
            raise self._reason(error) from error

    def _asked(self, volume: Volume, request: dict[str, Any]) -> tuple[Standing, ResumeToken | None]:
        """Return what the other side says of itself, and what it has of an interrupted transfer."""
        blob = self._control.receive_blob(n_standing_bytes(request, self._limits.n_snapshots))
        token = self._control.receive_blob(number_field(request, "n_token_bytes", self._limits.token_bytes))
        return standing_heard(request, blob), decode_token(token, most_blocks_for(volume))

    def _heard_durable(self) -> None:
        """Wait until the other side says that it has committed."""
        message = self._control.receive_answer()
        if message.kind is Kind.FAILED:
            raise error_heard(message.object)

    def _reason(self, lost: ConnectionLostError) -> BlockplaneError:
        """Return why the other side gave up the data connections, where it says so; else that they are gone."""
        if self._ended_by is not None:  # it was this side
            return self._ended_by
        self._control.deadline = time.monotonic() + REASON_S
        try:
            self._heard_durable()
        except BlockplaneError as error:
            return lost if isinstance(error, ConnectionLostError) else error
        finally:
            self._control.deadline = None
        return lost

    # --- data connections --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _data_connections(
        self, request: dict[str, Any], found: dict[str, object], blob: bytes = b""
    ) -> Iterator[list[Channel]]:
        """Answer with a ticket, and wait for the connections that come with it."""
        n_wanted = min(number_field(request, "n_connections", 1 << 16), self._limits.n_connections) or 1
        with self._changed:
            self._wanted = n_wanted
        ticket = {"ticket": self.ticket.hex(), "n_connections": n_wanted}
        self._control.tell(Kind.ANSWER, {**found, **ticket})
        self._control.send_blob(blob)
        deadline = time.monotonic() + self._limits.greeting_s
        with self._changed:
            while len(self._data) < n_wanted:
                left_s = deadline - time.monotonic()
                if self._is_aborted or left_s <= 0:
                    raise ConnectionLostError(f"{self.identity} brought {len(self._data)} of {n_wanted} connections")
                self._changed.wait(left_s)
        yield self._data


def _not_allowed() -> NotAllowedError:
    return NotAllowedError(
        "this is not allowed, or there is no such volume", "ask whoever runs the service for the right"
    )


def _source_id(request: Mapping[str, Any]) -> bytes:
    """Return whose mirror a push is for; releases before this one do not say."""
    return bytes_field(request, "source_id") if "source_id" in request else NO_ID


def _open(opened: Opened, transfer: Transfer) -> AbstractContextManager[Volume]:
    return contextlib.nullcontext(opened) if isinstance(opened, Volume) else opened(transfer)
