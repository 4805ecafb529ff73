"""The first words on a connection, from both sides: who calls for what, and whether it may."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, Final

from blockplane.model.errors import ConnectionLostError, NetworkError, UntrustedError
from blockplane.server.network.address import Address
from blockplane.server.network.channel import Channel, Ending, tune
from blockplane.server.network.codec import PROTOCOL, TICKET_BYTES, Kind, WireError, bytes_field, text_field
from blockplane.server.network.limits import Limits
from blockplane.server.network.rights import Identity
from blockplane.server.network.spoken import error_heard, shown
from blockplane.server.network.tls import Credentials, fingerprint_of, identity_of

RELEASE: Final = version("blockplane")
#: What TLS says when one side does not take the other for who it should be: trying again does not help.
_FINAL: Final = (
    "CERTIFICATE", "UNKNOWN_CA", "PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_VERSION_NUMBER", "HTTP_REQUEST",
    "ACCESS_DENIED", "NO_PROTOCOLS",
)  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """How a listener is called.

    expects : the name or the fingerprint (`sha256:HEX`) of its certificate; None: the host of its address.
    id : random; a listener ends what the same caller has left behind. source : address of ours to call from.
    ending : ends its connections.
    """

    address: Address
    credentials: Credentials | None
    limits: Limits
    expects: str | None = None
    id: bytes = field(default_factory=lambda: os.urandom(TICKET_BYTES))
    source: str | None = None
    ending: Ending = field(default_factory=Ending)

    @cached_property
    def _pin(self) -> bytes | None:
        return fingerprint_of(self.expects) if self.expects is not None and self.expects.startswith("sha256:") else None

    @cached_property
    def _context(self) -> ssl.SSLContext | None:
        return self.credentials.calling(checks_name=self._pin is None) if self.credentials is not None else None

    def control(self) -> Channel:
        """Return a connection that takes a request.

        Raises
        ------
        UnreachableError : nobody answers. UntrustedError : one side does not take the other for who it should be.
        ConnectionLostError : it ended early. NetworkError : another release; or what the other side says.
        """
        return self._greeted({"role": "control", "caller": self.id.hex()})

    def data(self, ticket: bytes) -> Channel:
        """Return a connection for the data of a transfer; raises as `control`."""
        channel = self._greeted({"role": "data", "ticket": ticket.hex()})
        channel.carry_data()
        return channel

    def _greeted(self, hello: dict[str, object]) -> Channel:
        if self.ending.is_over.is_set():
            raise ConnectionLostError(f"nobody calls {self.address} any more", "call it anew")
        deadline = time.monotonic() + self.limits.greeting_s
        sock = self.address.connect(self.limits.greeting_s, self.ending, self.source)
        try:
            tune(sock, self.limits)
            sock = self._secured(sock, deadline)
            channel = Channel(sock, self.limits, str(self.address), deadline)
            with contextlib.suppress(ConnectionLostError):  # why it is refused, reading says
                channel.tell(Kind.HELLO, {"protocol": PROTOCOL, "release": RELEASE, **hello})
            self._welcomed(channel)
            channel.deadline = None
            return channel
        except ConnectionLostError as error:
            sock.close()
            found = trusted_or_lost(error, str(self.address))
            if self.credentials is None and not found.hint:
                found.hint = "if it listens with TLS, say where the certificates are: --tls DIR"
            raise found from error
        except BaseException:
            sock.close()
            raise

    def _secured(self, sock: socket.socket, deadline: float) -> socket.socket:
        """Return the connection with TLS, where it is to have that; the other side is who it should be."""
        context = self._context
        if context is None or self.credentials is None:
            return sock
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        name = None if self._pin is not None else self.expects or self.address.host or None
        try:
            tls = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            sock = tls
            self.ending.watch(tls)
            tls.do_handshake()
            found = identity_of(tls, str(self.address))
        except (OSError, ValueError) as error:
            sock.close()
            raise trusted_or_lost(error, str(self.address)) from error
        if found.fingerprint in self.credentials.revoked:
            sock.close()
            raise UntrustedError(
                f"{self.address} shows the certificate sha256:{found.fingerprint.hex()}, which was revoked",
                "ask whoever runs it for another one",
            )
        if self._pin is not None and found.fingerprint != self._pin:
            sock.close()
            raise UntrustedError(
                f"{self.address} shows a certificate with the fingerprint sha256:{found.fingerprint.hex()}, which is "
                "not the one expected",
                "ask whoever runs it which is right, and name that",
            )
        return tls

    @staticmethod
    def _welcomed(channel: Channel) -> None:
        answer = channel.receive(Kind.WELCOME, Kind.FAILED)
        if answer.kind is Kind.FAILED:
            raise error_heard(answer.object)
        require_same_protocol(answer.object, channel.peer)


def trusted_or_lost(error: BaseException, peer: str) -> NetworkError | ConnectionLostError:
    """Return the error for a connection that failed before it was greeted: TLS may say that trust is what lacks."""
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLError):
        reason = str(cause.reason or "")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UntrustedError(
                f"the certificate of {peer} is not trusted: {shown(cause.verify_message or reason)}",
                "see that both sides' certificates are of one CA, and that its names are those it is called by",
            )
        if any(word in reason.upper() for word in _FINAL):
            return UntrustedError(
                f"{peer} and this side do not trust each other: {shown(reason.replace('_', ' ').lower())}",
                "see that both sides use TLS, with certificates of one CA: blockplane cert",
            )
    if isinstance(error, ConnectionLostError):
        return error
    if isinstance(error, (TimeoutError, ssl.SSLError)) or not isinstance(error, OSError):
        return ConnectionLostError(f"{peer} did not finish its greeting: {shown(str(error))}")
    return ConnectionLostError(f"{peer} did not finish its greeting: {error.strerror or shown(str(error))}")


def require_same_protocol(found: dict[str, Any], peer: str) -> None:
    """Raise NetworkError unless the other side speaks our protocol."""
    protocol, release = found.get("protocol"), shown(text_field(found, "release", 64))
    if protocol != PROTOCOL:
        raise NetworkError(
            f"{peer} runs blockplane {release}, which speaks protocol {protocol!r:.20}; this is {RELEASE} with "
            f"{PROTOCOL}",
            "run the same release on both sides",
        )


@dataclass(frozen=True, slots=True)
class Hello:
    """What a caller wants: a request to be taken (ticket is empty), or to bring a connection to a transfer."""

    caller: bytes
    ticket: bytes = b""


def wrapped(sock: socket.socket, context: ssl.SSLContext | None) -> socket.socket:
    """Return a connection that was taken, with TLS where there is a context; its handshake is still to be done."""
    return sock if context is None else context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def shake_hands(sock: socket.socket, address: str, deadline: float) -> Identity:
    """Do the listening side's part of a handshake; return who calls. OSError: it failed."""
    sock.settimeout(max(deadline - time.monotonic(), 0.001))
    if not isinstance(sock, ssl.SSLSocket):
        return Identity(address=address)
    sock.do_handshake()
    return identity_of(sock, address)


def heard(channel: Channel) -> Hello:
    """Receive what a caller wants.

    Raises
    ------
    WireError : that is not said. NetworkError : it speaks another protocol. ConnectionLostError : it says nothing.
    """
    found = channel.receive(Kind.HELLO).object
    require_same_protocol(found, "the caller")
    role = text_field(found, "role", 16)
    if role == "control":
        return Hello(bytes_field(found, "caller", TICKET_BYTES))
    if role == "data":
        return Hello(b"", bytes_field(found, "ticket", TICKET_BYTES))
    raise WireError("a caller says what it wants in words that this release does not know")


def welcome(channel: Channel) -> None:
    """Tell a caller that it may."""
    channel.tell(Kind.WELCOME, {"protocol": PROTOCOL, "release": RELEASE})
