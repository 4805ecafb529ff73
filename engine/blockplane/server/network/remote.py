"""A volume behind a connection, as a peer of transfers."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, TypeVar

from blockplane.image.image import Image
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import (
    BlockplaneError,
    BusyError,
    ConnectionLostError,
    UnreachableError,
)
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.server.network.carrying import received, send_rest, taken_in
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import Kind, WireError, bytes_field, number_field
from blockplane.server.network.greeting import Caller
from blockplane.server.network.heartbeat import alive
from blockplane.server.network.limits import Limits
from blockplane.server.network.listener import allowed_place
from blockplane.server.network.mirroring import RemoteMirror
from blockplane.server.network.offering import (
    CAPABILITY,
    OFFER,
    NotOfferedError,
    asked_for,
    may_offer,
    send_offer,
)
from blockplane.server.network.rights import require_volume_name
from blockplane.server.network.serving import REASON_S
from blockplane.server.network.spoken import (
    brought_heard,
    error_heard,
    error_said,
    n_standing_bytes,
    name_heard,
    standing_heard,
    standing_said,
)
from blockplane.server.network.striped import Incoming, Outgoing
from blockplane.server.network.throttle import Rate, Throttle
from blockplane.server.network.tls import Credentials
from blockplane.server.network.tokens import decode_token, token_for
from blockplane.transfer.description import described
from blockplane.transfer.imagesending import ImageSending
from blockplane.transfer.peer import Brought, destination_of
from blockplane.transfer.replacing import LocalChanges, kept_by, made_ready
from blockplane.transfer.resume import ResumeToken, drop_unlent
from blockplane.transfer.standing import Standing, standing_of
from blockplane.volume.codec import NO_ID
from blockplane.volume.volume import Volume

#: Data connections of a transfer.
N_CONNECTIONS: Final = 4
#: After a failure it is waited so long, then twice as long, and so on; each time by up to half more or less.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
#: The same for one data connection of several, from and to.
_KNOCK_AGAIN_S: Final = (0.05, 0.25)
#: Attempts that moved something and left nothing durable, after which another such one is no progress.
_MOST_FRUITLESS: Final = 2
#: How often it is seen, while a call waits to be tried again, whether it is still wanted.
_POLL_S: Final = 0.25
#: How to go on, for a person, where contact was lost.
_AGAIN: Final = "run it again: what has arrived is passed over"
#: What may help itself when tried again.
_PASSING: Final = (ConnectionLostError, UnreachableError, BusyError, WireError)

T = TypeVar("T")


class RemotePeer(RemoteMirror):
    """A volume that a listener serves; a MirrorPeer.

    Parameters
    ----------
    address : of the listener: `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`. volume : its name there.
    credentials : whose certificate is shown, and whose CA is trusted. None: plain TCP, to this machine alone.
    expects : the name that the listener's certificate must have, or its fingerprint (`sha256:HEX`); by default the host
    of the address. insecure_plaintext : plain TCP to any address; only without credentials.
    n_connections : for the data of a transfer. patience_s : how long a call goes on trying since something last got
    through; 0: it tries once. reach_s : the same until a call was answered for the first time; None: as patience_s.
    require : called while a call waits to be tried again; may raise. rate : gives the bytes a second of its transfers,
    or is the Throttle that they take from, with others. source : the address of this machine to call from.

    Raises
    ------
    UsageError : plain TCP that nobody asked for by name; a name that is none.

    Notes
    -----
    Nothing is connected until a call, and nothing between calls. A transfer that is cut goes on in the middle: what the
    side that receives has durably does not travel again. Calls that fail for good raise what the other side says:
    NotAllowedError (no right, or no such volume), UntrustedError, and as Peer. One call at a time.

    Attributes
    ----------
    waits_for : what the last attempt of a call that goes on failed by, until it is answered; None: it did not.
    """

    def __init__(
        self,
        address: str,
        volume: str,
        credentials: Credentials | None,
        *,
        expects: str | None = None,
        insecure_plaintext: bool = False,
        limits: Limits | None = None,
        n_connections: int = N_CONNECTIONS,
        patience_s: float = 60.0,
        reach_s: float | None = None,
        require: Callable[[], None] = lambda: None,
        rate: Rate | Throttle = lambda: None,
        source: str | None = None,
    ) -> None:
        place = allowed_place(address, credentials, insecure_plaintext)
        self._limits, self._patience_s, self._require = limits or Limits(), patience_s, require
        self._reach_s, self._was_answered = patience_s if reach_s is None else reach_s, False
        self._volume, self._n_connections = require_volume_name(volume), n_connections
        self._caller = Caller(place, credentials, self._limits, expects, source=source)
        self._throttle = Throttle.of(rate)
        #: bytes of blocks that went or came, over all attempts of a call; blocks durable before its last attempt
        self._moved = self._durable = 0
        #: bytes that were read and told of in offers, over all attempts of a call
        self._offered = 0
        #: by a call: the snapshot that keeps the receiving side's own changes
        self._kept: str | None = None
        self.waits_for: BlockplaneError | None = None

    @property
    def name(self) -> str:
        """See Peer."""
        return f"{self._caller.address}/{self._volume}"

    def close(self) -> None:
        """See Peer. From any thread: a call that goes on ends as where contact is lost, and so does a later one."""
        self._caller.ending.end()

    # --- calls -------------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """See Peer."""
        return self._patiently(self._standing)

    def give_up(self, image_id: bytes) -> int:
        """Have it give up what an interrupted push of an image left; return how many blocks that frees.

        Raises
        ------
        RefusedError : there is none of that.
        """

        def ask() -> int:
            with self._asking("give up", {"image_id": image_id.hex()}) as (_, answer):
                return number_field(answer, "n_blocks")

        return self._patiently(ask)

    def take(
        self, image: Image, changes: LocalChanges, progress: Progress = ignore_progress, *, source_id: bytes = NO_ID
    ) -> Brought:
        """See Peer."""
        header = described(ImageSending(image)).header
        found = {
            "image_id": header.image_id.hex(), "top_id": header.top_id.hex(), "space_id": header.space_id.hex(),
            "changes": changes.value, "source_id": source_id.hex(), "n_connections": self._n_connections,
        }  # fmt: skip
        return self._transferring(lambda counted: self._take(image, found, counted), progress)

    def bring(
        self, wanted: str, target: Volume, changes: LocalChanges, progress: Progress = ignore_progress
    ) -> Brought:
        """See Peer. Where both have no snapshot in common, what is here is offered first, and what differs comes."""

        def attempts(*, offers: bool) -> Brought:
            return self._transferring(
                lambda counted: self._bring(wanted, target, changes, counted, offers=offers), progress
            )

        try:
            return attempts(offers=True)
        except NotOfferedError:
            return attempts(offers=False)

    def _transferring(self, attempt: Callable[[Progress], Brought], progress: Progress) -> Brought:
        """Make attempts; return what they did together."""
        self._moved, self._durable, self._offered, n_attempts, self._kept = 0, 0, 0, 0, None
        started = time.monotonic()

        def counted_attempt() -> Brought:
            nonlocal n_attempts
            n_attempts += 1
            before, offered = self._moved, self._offered

            def counted(event: ProgressEvent) -> None:
                if event.phase == "blocks":
                    self._moved = before + event.done_bytes
                if event.phase == OFFER:
                    self._offered = offered + event.done_bytes
                progress(replace(event, seconds=time.monotonic() - started))

            found = attempt(counted)
            self._kept = self._kept or found.kept
            return found

        brought = self._patiently(counted_attempt)
        return replace(
            brought, n_blocks=self._moved // BLOCK_BYTES, n_bytes=self._moved, seconds=time.monotonic() - started,
            already_there=brought.already_there and n_attempts == 1, kept=self._kept,
        )  # fmt: skip

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try until it works, does not help, or nothing has got through for too long.

        What moved counts as getting through; after some such attempts more must be durable at the side that receives.
        """
        try:
            return self._trying(attempt)
        finally:
            self.waits_for = None

    def _trying(self, attempt: Callable[[], T]) -> T:
        last_s, n_failed, durable, n_fruitless = time.monotonic(), 0, -1, 0
        while True:
            through = self._n_through
            try:
                return attempt()
            except _PASSING as error:
                now = time.monotonic()
                if self._durable > durable:
                    durable, n_fruitless = self._durable, 0
                if self._n_through > through and n_fruitless < _MOST_FRUITLESS:  # what of it is durable the next says
                    last_s, n_failed, n_fruitless = now, 0, n_fruitless + 1
                pause_s = min(_FIRST_PAUSE_S * 2**n_failed, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
                n_failed = min(n_failed + 1, 20)
                self.waits_for = error
                patience_s = self._patience_s if self._was_answered else self._reach_s
                if now + pause_s > last_s + patience_s or self._is_over_in(pause_s):
                    if isinstance(error, ConnectionLostError) and self._was_answered:
                        error.hint = _AGAIN
                    elif isinstance(error, UnreachableError) and self._n_through:
                        error.hint = f"{error.hint}, and {_AGAIN}"
                    raise

    def _is_over_in(self, seconds: float) -> bool:
        """Wait, as long as somebody wants it; return whether it was closed meanwhile."""
        is_over = self._caller.ending.is_over
        while not is_over.wait(max(min(seconds, _POLL_S), 0.0)) and seconds > 0:
            self._require()
            seconds -= _POLL_S
        return is_over.is_set()

    @property
    def _n_through(self) -> int:
        """What a call has got through, in bytes: of blocks, and of what was offered."""
        return self._moved + self._offered

    def _ask(self, what: str, said: dict[str, object]) -> Mapping[str, Any]:
        """See RemoteMirror."""

        def ask() -> Mapping[str, Any]:
            with self._asking(what, said) as (_, answer):
                return answer

        return self._patiently(ask)

    # --- one attempt -------------------------------------------------------------------------------------------------

    def _standing(self) -> Standing:
        with self._asking("standing") as (control, answer):
            return standing_heard(answer, control.receive_blob(n_standing_bytes(answer, self._limits.n_snapshots)))

    def _take(self, image: Image, found: Mapping[str, object], progress: Progress) -> Brought:
        with self._asking("take", found) as (control, answer):
            if "brought" in answer:
                return brought_heard(answer)
            self._kept = self._kept or name_heard(answer, "kept")
            blob = control.receive_blob(number_field(answer, "n_token_bytes", self._limits.token_bytes))
            token = decode_token(blob, image.plane.n_blocks)
            self._note_durable(token)
            try:
                with contextlib.closing(Outgoing(self._data(answer), self._limits, self._throttle)) as outgoing:
                    send_rest(image, outgoing, token, progress)
                    outgoing.finish()
                    return brought_heard(_answered(control))
            except ConnectionLostError as error:
                return brought_heard(_reason(control, error))

    def _note_durable(self, token: ResumeToken | None) -> None:
        """Note how far the side that receives had come before an attempt."""
        self._durable = max(self._durable, token.n_copied if token is not None else 0)

    def _bring(
        self, wanted: str, target: Volume, changes: LocalChanges, progress: Progress, *, offers: bool
    ) -> Brought:
        drop_unlent(target)
        standing = standing_of(target)
        said, blob = standing_said(standing)
        token = token_for(target, None, self._limits.token_bytes)
        self._note_durable(decode_token(token, 1 << 56))
        said |= {"wanted": wanted, "n_token_bytes": len(token), "n_connections": self._n_connections}
        offers = offers and may_offer(standing, changes)
        with (
            self._asking("bring", said | (CAPABILITY if offers else {}), blob, token) as (control, answer),
            _reasoned(control),
            contextlib.ExitStack() as stack,
        ):
            if "brought" in answer:
                return brought_heard(answer)
            channels: list[Channel] = []
            if offers and (asked := asked_for(answer, standing)) is not None:
                stack.enter_context(target.pin(asked.record.id))  # what was interrupted holds it beyond that
                channels = self._data(answer)
                stack.callback(_close, channels)
                send_offer(target, asked, channels, control, self._limits, self._throttle, progress)
                _answered(control)
            ready = made_ready(target, changes, progress)
            self._kept = self._kept or ready.kept
            incoming = Incoming(channels or self._data(answer), self._limits, self._throttle)
            with contextlib.closing(incoming), alive(control, self._limits.alive_s):
                report = taken_in(incoming, destination_of(target, pulls=True), changes, ready.progress)
                self._kept = self._kept or kept_by(target, ready)
                incoming.settle()
            with contextlib.suppress(BlockplaneError):  # it is durable here, whether the other side hears of it or not
                control.tell(Kind.ANSWER, {})
            return received(report, self._kept)

    @contextlib.contextmanager
    def _asking(
        self, verb: str, found: Mapping[str, object] | None = None, *blobs: bytes
    ) -> Iterator[tuple[Channel, dict[str, Any]]]:
        """Ask on a connection of its own; yield that and the answer. What fails here, the other side is told."""
        with contextlib.closing(self._caller.control()) as control:
            with contextlib.suppress(ConnectionLostError):  # why it was not taken, reading says
                control.tell(Kind.REQUEST, {"verb": verb, "volume": self._volume, **(found or {})})
                for blob in blobs:
                    control.send_blob(blob)
            answer = _answered(control)
            self._was_answered, self.waits_for = True, None
            try:
                yield control, answer
            except BlockplaneError as error:
                with contextlib.suppress(BlockplaneError):
                    control.tell(Kind.FAILED, error_said(error))
                raise

    def _data(self, answer: Mapping[str, Any]) -> list[Channel]:
        """Return the data connections of a transfer."""
        ticket, n_connections = bytes_field(answer, "ticket"), number_field(answer, "n_connections")
        if not 1 <= n_connections <= max(self._n_connections, 1):
            raise WireError("the other side asks for another number of connections than it was offered")
        opened: list[Channel] = []

        end = time.monotonic() + self._limits.greeting_s / 2

        def connect(_: int) -> None:
            while True:
                try:
                    return opened.append(self._caller.data(ticket))
                except ConnectionLostError:  # the door is full where several of one host come at once
                    is_over = self._caller.ending.is_over
                    if time.monotonic() >= end or is_over.wait(random.uniform(*_KNOCK_AGAIN_S)):
                        raise

        try:
            with ThreadPoolExecutor(min(n_connections, 3), "blockplane connects") as pool:
                list(pool.map(connect, range(n_connections)))
        except BaseException:
            _close(opened)
            raise
        return opened


def _close(channels: list[Channel]) -> None:
    for channel in channels:
        channel.close()


def _answered(control: Channel) -> dict[str, Any]:
    """Return what the other side says once it has done what it does in silence; raise what it failed by."""
    message = control.receive_answer()
    if message.kind is Kind.FAILED:
        raise error_heard(message.object)
    return message.object


@contextlib.contextmanager
def _reasoned(control: Channel) -> Iterator[None]:
    """Raise what the other side says that it ended a transfer by, where a connection is lost."""
    try:
        yield
    except ConnectionLostError as error:
        _reason(control, error)
        raise


def _reason(control: Channel, error: ConnectionLostError) -> dict[str, Any]:
    """Return the answer where a connection was lost after all was said; raise what the other side says, or the loss."""
    control.deadline = time.monotonic() + REASON_S
    try:
        answer = _answered(control)
    except ConnectionLostError:
        raise error from None
    finally:
        control.deadline = None
    if "brought" not in answer:
        raise error
    return answer
