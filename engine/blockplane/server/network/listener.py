"""The listening side: takes connections, finds out who calls, and serves volumes to those who have a right to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

from blockplane.server.network.limits import Limits
from blockplane.server.network.rights import Identity, Rights, Verb
from blockplane.server.network.tls import Credentials
from blockplane.transfer.peer import Brought
from blockplane.volume.volume import Volume


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a peer asks for: who, of which volume, by which verb."""

    identity: Identity
    volume: str
    verb: Verb


#: An open volume; or what gives one for the length of a `with`, and may refuse: a service notes there what goes on, and
#: holds it against what else does. Called in a session's thread, after the peer's right was found.
Opened = Volume | Callable[[Transfer], AbstractContextManager[Volume]]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: for logs and metrics.

    what : `refused` (before it was known who calls), `denied` (no right), `began`, `done`, `failed`. text : one line
    without control characters. transfer : None before it is known. brought : of `done`, what a transfer did.
    n_bytes : that went over the connections of the session, both ways.
    """

    what: str
    address: str
    text: str = ""
    transfer: Transfer | None = None
    brought: Brought | None = None
    n_bytes: int = 0


class Listener:
    """Serves volumes to peers over the network, from threads of its own, until it is stopped.

    Parameters
    ----------
    address : `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`. Port 0: any free one; `address` says which.
    volumes : name -> the open volume, or what gives it (see Opened). The mapping is looked at with each request: what
    is put in or taken out counts from the next one on. Names are `[A-Za-z0-9._-]{1,64}` without a dot at the front.
    rights : who may do what. May be replaced while it listens (`listener.rights = ...`): for requests from then on.
    credentials : whose certificate is shown, and whose CA is trusted; TLS 1.3 from the first byte, both sides with
    certificates. None: plain TCP, on a loopback address or a Unix socket alone.
    insecure_plaintext : plain TCP on any address; only without credentials.
    limits : bounds on everything a peer can do.
    rate : bytes a second for the data of all sessions together; None: as fast as it goes. Called for its present value.
    tell : told what happens, from any thread; must return at once.

    Raises
    ------
    UsageError : plain TCP that nobody asked for by name; a name that is none. OSError : the address cannot be had.

    Notes
    -----
    Listens from the constructor on, serves from `start` on (or `with`). `stop` takes no more connections and ends the
    sessions: what they receive is kept to be gone on with, and what commits is committed; it returns within
    `limits.stop_s` if the disks allow, True if all ended. It may be called from a signal handler's thread, twice, and
    before `start`. Volumes stay their owner's: he closes them after `stop`.
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
        rate: Callable[[], float | None] = lambda: None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.volumes, self.rights, self.limits = volumes, rights, limits or Limits()
        self.address = address
        self._credentials, self._rate, self._tell = credentials, rate, tell
        self._is_plain = insecure_plaintext

    def start(self) -> None:
        """Serve."""
        raise NotImplementedError

    def stop(self) -> bool:
        """Take no more connections, end the sessions; return whether all have ended."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
