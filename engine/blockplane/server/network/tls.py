"""Who we are to others, and how they prove who they are: TLS 1.3 from the first byte, both sides with certificates."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from blockplane.model.errors import KeyFileError, UsageError
from blockplane.server.network.certificates import certificate_beside
from blockplane.server.network.rights import Identity, one_form

_CA: Final = "ca.pem"
_MAX_BYTES: Final = 1 << 20
#: Who is told of the end of a certificate has so long to make a new one.
_SOON: Final = timedelta(days=30)
_FINGERPRINT: Final = re.compile(r"(?:sha256:)?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate, its key, and the private CA that both sides' certificates are of.

    ca, certificate, key : PEM files. revoked : SHA-256 fingerprints of certificates of the CA that are refused.
    """

    ca: Path
    certificate: Path
    key: Path
    revoked: frozenset[bytes] = frozenset()

    @classmethod
    def find(
        cls, directory: str | os.PathLike[str], name: str | None = None, revoked: Iterable[str] = ()
    ) -> Credentials:
        """Return what a folder has: ca.pem, and a NAME.pem with its NAME.key.

        Parameters
        ----------
        directory : the folder, or `FOLDER/NAME`. name : which certificate, where the folder has several; by default
        the one of this host's name. revoked : fingerprints, as `fingerprint_of` reads them.

        Raises
        ------
        KeyFileError : there is none, or several, or others than its owner may read the key.
        """
        folder = Path(directory)
        if name is None and not folder.is_dir() and (folder.parent / f"{folder.name}.pem").is_file():
            folder, name = folder.parent, folder.name
        name = name or _only_name(folder)
        found = cls(
            folder / _CA, folder / f"{name}.pem", folder / f"{name}.key", frozenset(map(fingerprint_of, revoked))
        )
        for path in (found.ca, found.certificate, found.key):
            if not path.is_file():
                raise KeyFileError(f"{path}: no such file", f"make it: blockplane cert {folder} {name}")
        if found.key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyFileError(f"others than its owner may read {found.key}", f"chmod 600 {found.key}")
        return found

    def warning(self) -> str:
        """Return what somebody should look at, in a sentence: a certificate that ended, or soon will; else nothing."""
        found, folder, name = [], self.certificate.parent, self.certificate.stem
        advice = {
            self.certificate: f"`blockplane cert --renew {folder} {name}`, where ca.key is, makes a new one",
            self.ca: f"move {folder} away, and make a new CA, and certificates of it for all hosts",
        }
        try:
            all_ends = self.ends()
        except KeyFileError as error:
            return error.message
        for path, ends in all_ends.items():
            if (left := ends - datetime.now(UTC)) < _SOON:
                found.append(f"{path} {'ended' if left < timedelta() else 'ends'} on {ends:%Y-%m-%d}: {advice[path]}")
        return "; ".join(found)

    def ends(self) -> dict[Path, datetime]:
        """Return when the certificate ends, and the CA's.

        Raises
        ------
        KeyFileError : one cannot be read.
        """
        found = {}
        for path in (self.certificate, self.ca):
            try:
                found[path] = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
            except (OSError, ValueError) as error:
                raise KeyFileError(f"{path} cannot be read: {error}") from error
        return found

    def listening(self) -> ssl.SSLContext:
        """Return the context of the side that is called: TLS 1.3 alone, a certificate of the CA asked for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # a session that is taken up again shows no certificate
        return self._loaded(context)

    def calling(self, *, checks_name: bool) -> ssl.SSLContext:
        """Return the context of the side that calls; without checks_name a pin must be held against what is found."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = checks_name
        return self._loaded(context)

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_COMPRESSION
        try:
            context.load_verify_locations(cadata=_text(self.ca))
            self._load_pair(context)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise KeyFileError(
                f"{self.certificate}, {self.key} and {self.ca} cannot be used: {error}", "make them: blockplane cert"
            ) from error
        return context

    def _load_pair(self, context: ssl.SSLContext) -> None:
        """Load the key and its certificate: where they are being renewed, the one in the key's own file."""
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except ssl.SSLError as error:
            if error.reason != "KEY_VALUES_MISMATCH" or not self._is_being_renewed():
                raise
            context.load_cert_chain(self.key, password=lambda: "")

    def _is_being_renewed(self) -> bool:
        """Whether the key's file has a certificate of the same name and CA: a key of somebody else's is refused."""
        beside = certificate_beside(self.key.read_bytes())
        if not beside:
            return False
        shown, other = map(x509.load_pem_x509_certificate, (self.certificate.read_bytes(), beside))
        return (shown.subject, shown.issuer) == (other.subject, other.issuer)


def _only_name(folder: Path) -> str:
    if not folder.is_dir():
        is_name = (folder.parent / _CA).is_file()
        words = f"{folder.parent} {folder.name}" if is_name else f"{folder} NAME"
        raise KeyFileError(f"{folder}: no such folder", f"make it: blockplane cert {words}")
    found = sorted(path.stem for path in folder.glob("*.pem") if path.name != _CA)
    names = [name for name in found if (folder / f"{name}.key").exists()]
    if len(names) == 1:
        return names[0]
    own = [name for name in names if name.lower() in (socket.gethostname().lower(), socket.getfqdn().lower())]
    if len(own) == 1:
        return own[0]
    if not names:
        raise KeyFileError(f"{folder} has no certificate with its key", f"make one: blockplane cert {folder} NAME")
    raise KeyFileError(f"{folder} has several certificates: {', '.join(names[:8])}", f"name one: {folder}/{names[0]}")


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES).decode("ascii", "replace")


def fingerprint_of(text: str) -> bytes:
    """Return the SHA-256 that hex digits stand for, with colons or not; UsageError: they do not."""
    match = _FINGERPRINT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text[:80]!r} is no SHA-256 fingerprint", "write its 64 hex digits, as `cert` showed them")
    return bytes.fromhex(match[1].replace(":", ""))


def identity_of(sock: ssl.SSLSocket, address: str) -> Identity:
    """Return who is at the other end of a connection whose handshake is done."""
    packed, shown = sock.getpeercert(binary_form=True), sock.getpeercert()
    if not packed or not shown or sock.version() != "TLSv1.3":
        raise ssl.SSLError("the other side showed no certificate")
    listed = shown.get("subjectAltName", ())
    names = [str(entry[1]) for entry in listed if entry[0] in ("DNS", "IP Address")]
    return Identity(tuple(map(one_form, names)), hashlib.sha256(packed).digest(), address)
