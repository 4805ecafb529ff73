"""Serving the volumes to peers over the network: what a policy says of it, and the listener that follows it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blockplane.model.errors import KeyFileError, UsageError
from blockplane.server.network.address import Address
from blockplane.server.network.listener import Event, Listener
from blockplane.server.network.rights import Rights
from blockplane.server.network.serving import Opened
from blockplane.server.network.throttle import Schedule, Throttle
from blockplane.server.network.tls import Credentials, fingerprint_of
from blockplane.server.service.log import Log
from blockplane.server.service.reading import Table

#: peer, volume, verbs
Right = tuple[str, str, tuple[str, ...]]
_NO_VERBS: Final[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Where peers are listened to, who they are, what each may do. tls : a folder of `blockplane cert`, or FOLDER/NAME.

    revoked : fingerprints of certificates that are refused.
    """

    listen: str
    tls: Path | None = None
    is_insecure: bool = False
    rights: tuple[Right, ...] = ()
    revoked: tuple[str, ...] = ()

    def parsed_rights(self) -> Rights:
        """Return the rights; UsageError: there are none, or they cannot be understood."""
        if not self.rights:
            raise UsageError(
                "no peer has a right to anything", 'say who has, in a policy: [network.rights.PEER] pool = ["read"]'
            )
        rules: dict[str, dict[str, tuple[str, ...]]] = {}
        for peer, volume, verbs in self.rights:
            rules.setdefault(peer, {})[volume] = verbs
        return Rights(rules)

    def credentials(self) -> Credentials | None:
        """Return whose certificate is shown; None: connections are plain, which somebody asked for by name."""
        if (self.tls is None) is not self.is_insecure:
            raise UsageError(
                "a listener has either certificates or plain connections",
                "say --tls DIR with what `blockplane cert` made, or --insecure-plaintext",
            )
        return Credentials.find(self.tls, revoked=self.revoked) if self.tls is not None else None


def revoked_of(table: Table) -> tuple[str, ...]:
    """Return the fingerprints that a policy's table of the network refuses, of who calls and of who is called."""
    return table.take("revoked", _fingerprints, ())


def rate_of(table: Table) -> str:
    """Return how fast data may go, to and from who calls and who is called, as a policy's table of the network says."""
    return table.take("rate", _rate, "")


def network_of(table: Table, directory: Path, volumes: set[str], revoked: tuple[str, ...] = ()) -> NetworkPolicy | None:
    """Return what a policy's table says of the network; None: nothing of who may call. revoked : see `revoked_of`."""
    rights = [right for peer, inner in table.table("rights").tables() for right in _rights_of(peer, inner, volumes)]
    tls = table.take("tls", table.text, "")
    made = NetworkPolicy(
        listen=table.take("listen", _address, ""),
        tls=directory / tls if tls else None,
        is_insecure=table.take("insecure-plaintext", table.truth, False),
        rights=tuple(rights),
        revoked=revoked,
    )
    table.finish()
    if not (made.listen or made.rights or tls or made.is_insecure):
        return None
    table.require("rights", made.parsed_rights)
    if made.listen:
        table.require("tls", lambda: require_usable(made.credentials))
    return made


def require_usable(credentials: Callable[[], object]) -> None:
    """Raise UsageError, a mistake of a policy, where credentials cannot be had."""
    try:
        credentials()
    except KeyFileError as error:
        raise UsageError(error.message, error.hint) from None


def _rights_of(peer: str, table: Table, volumes: set[str]) -> list[Right]:
    found: list[Right] = []
    for volume in table.names():
        verbs = table.take(volume, table.texts, _NO_VERBS)
        if volume not in volumes:
            table.add(f"no volume is named {volume}", f"there are: {', '.join(sorted(volumes))}", volume)
        else:
            table.require(volume, lambda volume=volume, verbs=verbs: Rights({peer: {volume: verbs}}))  # type: ignore[misc]
        found.append((peer, volume, verbs))
    return found


def _fingerprints(value: Any) -> tuple[str, ...]:
    found = Table.texts(value)
    for text in found:
        fingerprint_of(text)
    return found


def _rate(value: Any) -> str:
    text = Table.text(value)
    Schedule.parse(text)
    return text


def shares_place(one: str, other: str) -> bool:
    """Whether two cannot listen at these addresses at once."""
    first, second = Address.parse(one), Address.parse(other)
    return (first.path, first.port) == (second.path, second.port)


def _address(value: Any) -> str:
    text = Table.text(value)
    if text:
        Address.parse(text)
    return text


class Endpoint:
    """A listener, kept as a policy says. throttle : what all data takes from.

    Attributes
    ----------
    n_transfers : that ended, by volume and outcome. n_bytes : that went over all connections, by volume.
    """

    def __init__(self, policy: NetworkPolicy, volumes: Mapping[str, Opened], log: Log, throttle: Throttle) -> None:
        self.policy, self._log = policy, log
        self._lock = threading.Lock()
        self.n_transfers: Counter[tuple[str, str]] = Counter()
        self.n_bytes: Counter[str] = Counter()
        self._ending: threading.Thread | None = None
        self._has_ended_well = True
        credentials = policy.credentials()
        self._listener = Listener(
            policy.listen,
            volumes,
            policy.parsed_rights(),
            credentials,
            insecure_plaintext=policy.is_insecure,
            rate=throttle,
            tell=self._tell,
        )
        self._listener.start()
        log.info("listening", f"peers are served at {self.address}")
        if credentials is not None and (warning := credentials.warning()):
            log.warning("certificate", warning)

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._listener.address

    def takes(self, policy: NetworkPolicy) -> bool:
        """Follow another policy, where the connections that there are can stay; return whether they can."""
        mine = self.policy
        if (mine.listen, mine.is_insecure) != (policy.listen, policy.is_insecure):
            return False
        rights, credentials = policy.parsed_rights(), policy.credentials()
        if credentials is not None:
            self._listener.credentials = credentials
        self._listener.rights, self.policy = rights, policy
        return True

    def stop(self) -> None:
        """Begin to end: connections are cut, what has come is kept to be gone on with. See `is_over`."""
        if self._ending is None:
            self._ending = threading.Thread(target=self._end, name="blockplane listener ends", daemon=True)
            try:
                self._ending.start()
            except RuntimeError:  # there are as many as the system allows: it ends here and now
                self._end()

    def _end(self) -> None:
        self._has_ended_well = self._listener.stop()

    def wait(self) -> None:
        """Wait until it has ended."""
        self.stop()
        if self._ending is not None and self._ending.ident is not None:
            self._ending.join()

    def _tell(self, event: Event) -> None:
        volume = event.transfer.volume if event.transfer is not None else ""
        about = {"volume": volume} if volume else {}
        text = f"{event.what}: {event.text or volume} ({event.who})"
        brought_nothing = event.what == "done" and (event.brought is None or event.brought.already_there)
        if event.what in ("done", "failed"):
            with self._lock:
                self.n_transfers[volume, event.what] += not brought_nothing
                self.n_bytes[volume] += event.n_bytes
        tell = self._log.info if event.what in ("began", "done") else self._log.warning
        tell = self._log.debug if brought_nothing else tell  # who asks every few seconds is worth no line each time
        tell(f"peer {event.what}", text, **about)
