"""The listening side: takes connections, finds out who calls, and serves volumes to those who have a right to."""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Self

from blockplane.image.feeds import Feeds
from blockplane.model.errors import (
    BlockplaneError,
    BusyError,
    ConnectionLostError,
    NotAllowedError,
    UntrustedError,
    UsageError,
)
from blockplane.server.network.address import Address
from blockplane.server.network.admission import Admission, Guest
from blockplane.server.network.channel import Channel, abort, part, tune
from blockplane.server.network.codec import Kind
from blockplane.server.network.greeting import heard, shake_hands, welcome, wrapped
from blockplane.server.network.limits import Limits
from blockplane.server.network.rights import Identity, Rights, Verb, require_volume_name
from blockplane.server.network.serving import REQUESTS, Dialogue, Opened, Transfer
from blockplane.server.network.spoken import error_said, shown
from blockplane.server.network.throttle import Rate, Throttle
from blockplane.server.network.tls import Credentials
from blockplane.transfer.peer import Brought

_BACKLOG = 128
#: Where descriptors or threads lack.
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: for logs and metrics.

    what : `refused` (before a session began), `denied` (no right), `began`, `done`, `failed`. text : one line
    without control characters: of `done`, what was asked for. transfer : None before it is known. brought : of `done`,
    what a transfer did. n_bytes : that went over the connections of the session so far, both ways. name : who calls, by
    its certificate; empty: it is not known.
    """

    what: str
    address: str
    text: str = ""
    transfer: Transfer | None = None
    brought: Brought | None = None
    n_bytes: int = 0
    name: str = ""

    @property
    def who(self) -> str:
        """Who calls, for a person."""
        return f"{self.name} at {self.address}" if self.name else self.address


class Listener:
    """Serves volumes to peers over the network, from threads of its own, until it is stopped.

    Parameters
    ----------
    address : `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`. Port 0: any free one; `address` says which.
    volumes : name -> the open volume, or what gives it (see Opened). The mapping is looked at with each request: what
    is put in or taken out counts from the next one on. Names are `[A-Za-z0-9._-]{1,64}` without a dot at the front.
    rights : who may do what. May be replaced while it listens (`listener.rights = ...`): who has lost the right to
    what goes on is told so, and it ends; what a push has brought is kept.
    credentials : whose certificate is shown, and whose CA is trusted; TLS 1.3 from the first byte, both sides with
    certificates. None: plain TCP, on a loopback address or a Unix socket alone. May be replaced while it listens, not
    by None: what goes on with a certificate that is revoked by then ends too.
    insecure_plaintext : plain TCP on any address; only without credentials.
    limits : bounds on everything a peer can do.
    rate : gives the bytes a second for the data of all sessions together, None: as fast as it goes, and is asked about
    once a second; or the Throttle that they take from, with others.
    tell : told what happens, from any thread; must return at once.

    Raises
    ------
    UsageError : plain TCP that nobody asked for by name; a name that is none. KeyFileError : the certificates cannot be
    used. OSError : the address cannot be had.

    Notes
    -----
    Listens from the constructor on, serves from `start` on (or `with`). `stop` takes no more connections and ends the
    sessions: what they receive is kept to be gone on with, and what commits is committed; it returns within
    `limits.stop_s` if the disks allow, True if all ended. It may be called from any thread, twice, and before `start`.
    Volumes stay their owner's: he closes them after `stop`.
    """

    def __init__(
        self,
        address: str,
        volumes: Mapping[str, Opened],
        rights: Rights,
        credentials: Credentials | None,
        *,
        insecure_plaintext: bool = False,
        limits: Limits | None = None,
        rate: Rate | Throttle = lambda: None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        for name in volumes:
            require_volume_name(name)
        self.volumes, self._rights, self.limits = volumes, rights, limits or Limits()
        self.throttle, self._tell, self.feeds = Throttle.of(rate), tell, Feeds()
        self._place = allowed_place(address, credentials, insecure_plaintext)
        self._set_credentials(credentials)
        self._admission = Admission(self.limits)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: guards all below
        self._changed = threading.Condition()
        self._guests: set[Guest] = set()
        self._dialogues: dict[bytes, Dialogue] = {}
        self._pushing: dict[str, Dialogue] = {}
        self._n_threads = 0
        self._is_over = False
        self._thread: threading.Thread | None = None
        try:
            self._listener = self._place.listen(_BACKLOG)
        except BaseException:
            os.close(self._wake_fd)
            raise
        self._listener.setblocking(False)
        if not self._place.path:
            self._place = Address(self._place.host, self._listener.getsockname()[1])

    @property
    def address(self) -> str:
        """Where it listens; a port that was left to chance is known."""
        return str(self._place)

    @property
    def credentials(self) -> Credentials | None:
        """Whose certificate is shown, and what is trusted."""
        return self._credentials

    @credentials.setter
    def credentials(self, credentials: Credentials | None) -> None:
        if (credentials is None) is not (self._credentials is None):
            raise UsageError("a listener stays encrypted, or plain, as long as it is there", "stop it, make another")
        self._set_credentials(credentials)
        self._end_without_right()

    @property
    def rights(self) -> Rights:
        """Who may do what."""
        return self._rights

    @rights.setter
    def rights(self, rights: Rights) -> None:
        self._rights = rights
        self._end_without_right()

    def _end_without_right(self) -> None:
        with self._changed:
            dialogues = list(self._dialogues.values())
        for dialogue in dialogues:
            dialogue.end_without_right()

    def right_to(self, identity: Identity, volume: str, request: str) -> Verb | None:
        """Return by which right a peer may ask for something now; None: by none."""
        if self._is_revoked(identity):
            return None
        return next((verb for verb in REQUESTS[request] if self._rights.allow(identity, volume, verb)), None)

    def _is_revoked(self, identity: Identity) -> bool:
        return self._credentials is not None and identity.fingerprint in self._credentials.revoked

    def _set_credentials(self, credentials: Credentials | None) -> None:
        self._context = credentials.listening() if credentials is not None else None
        self._credentials = credentials

    # --- beginning and end -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve."""
        with self._changed:
            if self._is_over or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._serve, name="blockplane listens", daemon=True)
            self._thread.start()

    def stop(self) -> bool:
        """Take no more connections, end the sessions; return whether all have ended."""
        deadline = time.monotonic() + self.limits.stop_s
        with self._changed:
            is_first, self._is_over = not self._is_over, True
            dialogues, guests = list(self._dialogues.values()), list(self._guests)
            self._changed.notify_all()  # who waits for its turn need not any more
        if is_first:
            os.eventfd_write(self._wake_fd, 1)
            if self._thread is not None:
                self._thread.join()
            self._place.forget()
            self._listener.close()
            os.close(self._wake_fd)
        for guest in guests:
            abort(guest.sock)
        for dialogue in dialogues:
            dialogue.abort()
        with self._changed:
            while self._n_threads and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return not self._n_threads

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # --- connections -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while not self._is_over:
            poll.poll()
            with contextlib.suppress(OSError):  # it was gone before it was taken; or there are no descriptors left
                self._accept()

    def _accept(self) -> None:
        try:
            sock, found = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            time.sleep(_PAUSE_S)  # out of descriptors: sessions that end give some back
            raise
        accepted_at = time.monotonic()
        address = str(found[0]) if found else "a Unix socket"
        guest = self._admission.enter(sock, address)
        with self._changed:
            if guest is None or self._is_over:
                sock.close()
                if guest is not None:
                    self._admission.leave(guest)
                return
            self._guests.add(guest)
            self._n_threads += 1
            self._changed.notify_all()  # who had to make room may wait for its turn
        thread = threading.Thread(
            target=self._receive, args=(guest, address, accepted_at), name="blockplane session", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # there are as many as the system allows: sessions that end give some back
            self._admission.leave(guest)
            sock.close()
            with self._changed:
                self._guests.discard(guest)
                self._n_threads -= 1
            time.sleep(_PAUSE_S)

    def _receive(self, guest: Guest, address: str, accepted_at: float) -> None:
        """Find out who calls, and serve; in a thread of its own."""
        try:
            dialogue = self._greeted(guest, address, accepted_at + self.limits.greeting_s)
            if dialogue is not None:
                try:
                    dialogue.run()
                finally:
                    with self._changed:
                        del self._dialogues[dialogue.ticket]
        finally:
            with self._changed:
                self._guests.discard(guest)
                self._n_threads -= 1
                self._changed.notify_all()

    def _greeted(self, guest: Guest, address: str, deadline: float) -> Dialogue | None:
        """Return the dialogue of a caller that may have one; None: it is a data connection, or it may not."""
        name = ""
        try:
            delay_s = self._admission.delay_s(address)
            if delay_s:
                self._pause(guest, min(delay_s, max(deadline - time.monotonic(), 0.0)))
            tune(guest.sock, self.limits)
            guest.sock = wrapped(guest.sock, self._context)
            if self._is_over or guest.is_gone:  # whoever said so may have had the socket as it was before
                raise ConnectionLostError("there is no room, or the listener stops")
            identity = shake_hands(guest.sock, address, deadline)
            name = shown(identity.names[0]) if identity.names else ""
            return self._admitted(guest, identity, deadline)
        except (OSError, ValueError, BlockplaneError) as error:
            if not isinstance(error, (ConnectionLostError, TimeoutError, ConnectionError, ssl.SSLEOFError, BusyError)):
                self._admission.failed(address)
            self._tell(Event("refused", address, shown(str(error)), name=name))
            part(guest.sock)
            return None
        finally:
            self._admission.leave(guest)

    def _pause(self, guest: Guest, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._changed:
            while not self._is_over and not guest.is_gone and (left_s := end - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _admitted(self, guest: Guest, identity: Identity, deadline: float) -> Dialogue | None:
        channel = Channel(guest.sock, self.limits, str(identity), deadline)
        try:
            self._require_known(identity)
            hello = heard(channel)
            if hello.ticket:
                self._join_data(hello.ticket, channel, identity)
                return None
            return self._begun(Dialogue(self, channel, identity, hello.caller), channel)
        except ConnectionLostError:
            raise
        except BlockplaneError as error:
            with contextlib.suppress(BlockplaneError):
                channel.tell(Kind.FAILED, error_said(error))
            raise

    def _require_known(self, identity: Identity) -> None:
        if self._is_revoked(identity):
            raise UntrustedError("this certificate was revoked", "ask whoever runs the service for another one")
        if not self.rights.knows(identity):
            raise NotAllowedError("this is not allowed", "ask whoever runs the service for the right")

    def _join_data(self, ticket: bytes, channel: Channel, identity: Identity) -> None:
        with self._changed:
            dialogue = self._dialogues.get(ticket)
        if dialogue is None or dialogue.over.is_set():
            raise NotAllowedError("this is not allowed", "the transfer that it was for has ended")
        welcome(channel)
        channel.carry_data()
        if not dialogue.join_data(channel, identity):
            channel.close()

    def _begun(self, dialogue: Dialogue, channel: Channel) -> Dialogue:
        with self._changed:
            of_one = [d for d in self._dialogues.values() if d.identity.fingerprint == dialogue.identity.fingerprint]
            is_full = len(self._dialogues) >= self.limits.n_sessions or len(of_one) >= self.limits.n_sessions_of_one
            if self._is_over or is_full:
                raise BusyError("there are as many sessions as there may be", "it is tried again by itself")
            self._dialogues[dialogue.ticket] = dialogue
        try:
            welcome(channel)
        except BaseException:
            with self._changed:
                del self._dialogues[dialogue.ticket]
            raise
        channel.deadline = None
        return dialogue

    # --- what dialogues ask for --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def take_turn(self, dialogue: Dialogue) -> Iterator[None]:
        """Hold a volume against other pushes; end what the same caller has left behind."""
        transfer = dialogue.transfer
        assert transfer is not None
        self._end_older(dialogue, transfer)
        if transfer.verb is Verb.READ or not dialogue.changes_volume:
            yield
            return
        with self._changed:
            if transfer.volume in self._pushing:
                raise BusyError(f"a transfer into {transfer.volume} is under way", "it is tried again by itself")
            self._pushing[transfer.volume] = dialogue
        try:
            yield
        finally:
            with self._changed:
                del self._pushing[transfer.volume]

    def _end_older(self, dialogue: Dialogue, transfer: Transfer) -> None:
        """End the sessions that a caller has lost and this side does not know of yet; wait until they have."""
        with self._changed:
            before = takewhile(lambda other: other is not dialogue, self._dialogues.values())
            older = [
                other
                for other in before
                if (other.caller, other.identity.fingerprint) == (dialogue.caller, dialogue.identity.fingerprint)
                and other.transfer is not None
                and (other.transfer.volume, other.transfer.verb) == (transfer.volume, transfer.verb)
            ]
        for other in older:
            other.abort()
            other.over.wait(self.limits.stop_s)

    def note(self, what: str, dialogue: Dialogue, text: str = "", brought: Brought | None = None) -> None:
        """Tell what happens."""
        who = dialogue.identity
        name = shown(who.names[0]) if who.names else ""
        self._tell(Event(what, who.address, shown(text), dialogue.transfer, brought, dialogue.n_bytes, name))


def allowed_place(address: str, credentials: Credentials | None, insecure_plaintext: bool) -> Address:
    """Return the address; UsageError: what goes there would leave the machine unencrypted, and nobody said so."""
    place = Address.parse(address)
    if credentials is not None and insecure_plaintext:
        raise UsageError("certificates and plain TCP were asked for at once", "leave one of them out")
    if credentials is None and not insecure_plaintext and not place.is_local:
        raise UsageError(
            f"{place} is not of this machine alone, and there are no certificates",
            "make some with `blockplane cert` and say --tls DIR, or say --insecure-plaintext",
        )
    return place
