"""Who may do what to which volume: a list, and whatever it does not say is refused."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from blockplane.model.errors import UsageError
from blockplane.volume.replicas import PLAIN_KEY

#: What a rule calls peers of plain connections, who can prove nothing. No certificate has such a name.
PLAINTEXT: Final = "@plaintext"
_FINGERPRINT: Final = re.compile(r"sha256:([0-9a-f]{2}:?){31}[0-9a-f]{2}", re.IGNORECASE)
_PEER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}")
_VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class Verb(Enum):
    """What a peer may do to a volume."""

    READ = "read"  # see what it has, pull images from it
    WRITE = "write"  # push images into it, see what it has
    ADMIN = "admin"  # give up what an interrupted push left, break a mirror off


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at the other end.

    names : of its certificate, as that lists them. fingerprint : SHA-256 of the certificate; empty: the connection is
    plain, and the peer proved nothing. address : where it calls from, for messages alone.
    """

    names: tuple[str, ...] = ()
    fingerprint: bytes = b""
    address: str = ""

    def __str__(self) -> str:
        return f"{self.names[0] if self.names else 'somebody'} at {self.address}"

    @property
    def key(self) -> bytes:
        """What it is remembered by: 16 bytes of the digest of its first name, which a renewed certificate has too."""
        if not self.fingerprint:
            return PLAIN_KEY
        name = one_form(self.names[0]) if self.names else self.fingerprint.hex()
        return hashlib.sha256(name.encode()).digest()[:16]

    @property
    def keys(self) -> frozenset[str]:
        """What rules may call it."""
        if not self.fingerprint:
            return frozenset({PLAINTEXT})
        names = {one_form(name) for name in self.names if _is_peer_name(name)}
        return frozenset(names | {f"sha256:{self.fingerprint.hex()}"})


@dataclass(frozen=True)
class Rights:
    """A list of (peer, volume, verbs).

    Parameters
    ----------
    rules : peer -> volume -> verbs. A peer is a name of its certificate, `sha256:` and its certificate's fingerprint in
    hex, or `@plaintext`. A verb is `read`, `write` or `admin`, or the Verb.

    Raises
    ------
    UsageError : a rule cannot be understood; then none holds.
    """

    rules: Mapping[str, Mapping[str, Iterable[Verb | str]]] = field(default_factory=dict)
    _allowed: dict[tuple[str, str], frozenset[Verb]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for peer, volumes in self.rules.items():
            key = peer_key(peer)
            for volume, verbs in volumes.items():
                at = key, require_volume_name(volume)
                self._allowed[at] = self._allowed.get(at, frozenset()) | _verbs(verbs, peer, volume)

    def allow(self, identity: Identity, volume: str, verb: Verb) -> bool:
        """Whether a peer may do something to a volume."""
        return any(verb in self._allowed.get((key, volume), ()) for key in identity.keys)

    def knows(self, identity: Identity) -> bool:
        """Whether a peer may do anything at all."""
        keys = identity.keys
        return any(key in keys and verbs for (key, _), verbs in self._allowed.items())


def one_form(name: str) -> str:
    """Return a peer's name as it is compared: in small letters, an address as short as it can be written."""
    address = _address(name)
    return str(address) if address is not None else name.lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name) if "%" not in name else None
    except ValueError:
        return None


def _is_peer_name(name: str) -> bool:
    """Whether a name cannot be taken for a fingerprint, or for what is no name."""
    is_name = _PEER_NAME.fullmatch(name) is not None and not name.lower().startswith("sha256:")
    return is_name or _address(name) is not None


def peer_key(peer: str) -> str:
    """Return what a rule calls a peer, in one form; UsageError: it is neither a name nor a fingerprint."""
    if peer == PLAINTEXT:
        return peer
    if _FINGERPRINT.fullmatch(peer):
        return "sha256:" + peer[7:].replace(":", "").lower()
    if not _is_peer_name(peer):
        raise UsageError(
            f"{peer!r} is no peer", f"write a certificate's name, sha256: and its fingerprint, or {PLAINTEXT}"
        )
    return one_form(peer)


def require_volume_name(name: str) -> str:
    """Return a volume's name on the network; UsageError: it is none."""
    if not _VOLUME_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a volume on the network",
            "write up to 64 letters, digits, `.`, `_` and `-`, without a dot at the front",
        )
    return name


def _verbs(verbs: Iterable[Verb | str], peer: str, volume: str) -> frozenset[Verb]:
    try:
        listed = [verbs] if isinstance(verbs, str) else verbs
        return frozenset(Verb(verb) for verb in listed)
    except ValueError:
        known = ", ".join(verb.value for verb in Verb)
        raise UsageError(f"the rights of {peer} to {volume} cannot be understood", f"these are: {known}") from None
