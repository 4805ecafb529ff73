"""A private CA and certificates of it: what `blockplane cert` makes, in one folder."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blockplane.model.errors import KeyFileError, UsageError

CA: Final = "ca"
#: Both sides' clocks may be a day off, in either direction.
_BEFORE: Final = timedelta(days=2)
_CA_LASTS: Final = timedelta(days=3650)
_LASTS: Final = timedelta(days=1825)
#: More than any file made here has.
_MAX_BYTES: Final = 64 << 10
#: What a file is called until it is whole.
_PARTIAL: Final = re.compile(r"\..+\.(pem|key)\.[0-9a-f]{8}")
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
#: As host names are, but for the underscore that some have; the length that a common name may have.
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._:-]{0,62}[A-Za-z0-9_])?|::[0-9a-fA-F:]{1,40}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that was made.

    names : what peers call its owner. fingerprint : SHA-256, which may be pinned. ends_with_ca : whether it would last
    longer, if the CA did.
    """

    names: tuple[str, ...]
    fingerprint: bytes
    certificate: Path
    key: Path
    expires: datetime
    ends_with_ca: bool = False


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_certificates(
    directory: str | os.PathLike[str], names: Sequence[str], *, renew: bool = False
) -> list[Certificate]:
    """Make a private CA, unless the folder has one, and a key and a certificate of it for each name.

    Parameters
    ----------
    directory : made where it is absent. ca.pem is what every host needs; ca.key stays here, for further names.
    names : host names or addresses; `NAME=OTHER,...` gives a certificate further ones. Its files are NAME.pem and
    NAME.key. renew : in the place of those that are there; without `=` a certificate keeps its further names,
    with it has those that are said alone.

    Returns
    -------
    the certificate of the CA, where it was made, then those of the names.

    Raises
    ------
    UsageError : a name is none. KeyFileError : a file is there already, or one of the CA's is missing, or the CA has
    ended, or there is nothing to renew; nothing was made.

    Notes
    -----
    Keys are of the curve P-256, readable by their owner alone from the start. A certificate serves both sides, and ends
    with its CA at the latest. Durable on return; a file appears whole or not at all.
    A key's file has its certificate too, so that one rename replaces the pair: `Credentials` finds a key and a
    certificate that fit at any moment, also where this was killed half-way. NAME.pem follows.
    """
    folder, wanted = Path(directory), [_names_of(name) for name in names]
    if not wanted:
        raise UsageError("no name is given", "name the hosts that are to have a certificate")
    if len({listed[0] for listed in wanted}) < len(wanted):
        raise UsageError("a name is given twice", "name each host once")
    if renew:
        _require_existing(folder, [CA, *(listed[0] for listed in wanted)])
        wanted = [_kept_names(folder, listed) for listed in wanted]
    else:
        _refuse_existing(folder, [listed[0] for listed in wanted])
    with _writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder):
            made, authority = _authority(folder)
            found = [*made, *(_issue(folder, authority, listed, renew) for listed in wanted)]
            _sync(folder)
    return found


def _names_of(text: str) -> tuple[str, ...]:
    first, _, others = text.partition("=")
    listed = tuple(dict.fromkeys([first, *(others.split(",") if others else ())]))
    for name in listed:
        if not _NAME.fullmatch(name) or (":" in name and not _is_address(name)):
            raise UsageError(
                f"{name[:80]!r} is no name of a host", "write a host name or an address, or NAME=OTHER,OTHER"
            )
    if first.lower() == CA:
        raise UsageError(f"{CA!r} is the name of the CA itself", "name the host otherwise")
    return listed


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refuse_existing(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        for path in _paths(folder, name):
            if os.path.lexists(path):
                raise KeyFileError(
                    f"{path} exists: a certificate is never overwritten",
                    "name another host, or another folder; --renew makes a new one in its place",
                )


def _require_existing(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not any(os.path.lexists(path) for path in _paths(folder, name)):
            raise KeyFileError(
                f"{folder / name}.pem is not there: there is nothing to renew", "make it, without --renew"
            )


def _kept_names(folder: Path, listed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that a new certificate is to have: those of the old one, where only the first is given."""
    certificate, _ = _paths(folder, listed[0])
    if len(listed) > 1 or not certificate.is_file():
        return listed
    try:
        old = x509.load_pem_x509_certificate(_read(certificate)).extensions
        found = old.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise KeyFileError(
            f"{certificate} cannot be read: {error}", f"say its names: {listed[0]}={listed[0]},OTHER"
        ) from error
    return tuple(dict.fromkeys([listed[0], *(str(name.value) for name in found)]))


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.pem", folder / f"{name}.key"


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise KeyFileError(
            f"{error.filename2 or error.filename} exists: a certificate is never overwritten", "run it again"
        ) from error
    except OSError as error:
        raise KeyFileError(f"cannot write into {folder}: {error.strerror}", "") from error


def _authority(folder: Path) -> tuple[list[Certificate], _Authority]:
    """Return the CA of a folder, made where it has none; and what was made."""
    certificate, key = _paths(folder, CA)
    if key.exists() and not certificate.exists() and (pem := certificate_beside(_read(key))):
        _write(certificate, pem, 0o644)  # whoever made the CA was ended between the two
    if certificate.exists() and key.exists():
        return [], _read_authority(certificate, key)
    if certificate.exists() or key.exists():
        here, missing = (certificate, key) if certificate.exists() else (key, certificate)
        raise KeyFileError(
            f"{here} is there, and {missing} is not: no certificate of that CA can be made",
            "fetch it from where the CA was made, or name a new folder",
        )
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"blockplane {os.urandom(4).hex()}")])
    builder = (
        _builder(subject, subject, secret.public_key(), datetime.now(UTC) + _CA_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    signed = builder.sign(secret, hashes.SHA256())
    made = _publish(folder, CA, (CA,), signed, secret)
    return [made], _Authority(signed, secret)


def _read_authority(certificate: Path, key: Path) -> _Authority:
    try:
        found = x509.load_pem_x509_certificate(_read(certificate))
        secret = serialization.load_pem_private_key(_read(key), None)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"the CA in {certificate.parent} cannot be read", "name a new folder") from error
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or secret.public_key() != found.public_key():
        raise KeyFileError(f"{key} is not the key of {certificate}", "put the CA's own files there")
    if found.not_valid_after_utc <= datetime.now(UTC):
        raise KeyFileError(
            f"the CA {certificate} ended on {found.not_valid_after_utc:%Y-%m-%d}: nobody takes its certificates",
            f"move {certificate.parent} away and run it again for all hosts: each needs the new CA's files",
        )
    return _Authority(found, secret)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BEFORE)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def certificate_beside(key: bytes) -> bytes:
    """Return the certificate that a key's file has, as PEM; empty: none."""
    start = key.find(_BEGIN)
    return key[start:] if start >= 0 else b""


def _issue(folder: Path, authority: _Authority, names: tuple[str, ...], renew: bool) -> Certificate:
    """Make a key and a certificate for it that names a host, and serves both sides."""
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    issuer = authority.certificate
    ends = min(datetime.now(UTC) + _LASTS, issuer.not_valid_after_utc)
    builder = (
        _builder(subject, issuer.subject, secret.public_key(), ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    made = _publish(folder, names[0], names, builder.sign(authority.key, hashes.SHA256()), secret, renew)
    return replace(made, ends_with_ca=made.expires == issuer.not_valid_after_utc)


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name)


def _publish(
    folder: Path,
    name: str,
    names: tuple[str, ...],
    signed: x509.Certificate,
    secret: ec.EllipticCurvePrivateKey,
    renew: bool = False,
) -> Certificate:
    """Write a key with its certificate, then the certificate: one that is there has its key beside it."""
    certificate, key = _paths(folder, name)
    form, nothing = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = signed.public_bytes(serialization.Encoding.PEM)
    _write(key, secret.private_bytes(serialization.Encoding.PEM, form, nothing) + pem, 0o600, replaces=renew)
    if renew:
        _sync(folder)  # the pair is durable before the other file changes
    try:
        _write(certificate, pem, 0o644, replaces=renew)
    except BaseException:
        if not renew:
            key.unlink()
        raise
    return Certificate(names, signed.fingerprint(hashes.SHA256()), certificate, key, signed.not_valid_after_utc)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have nobody else make certificates in a folder meanwhile, and take away what one that was killed left half."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        for left in folder.iterdir():
            if _PARTIAL.fullmatch(left.name):
                left.unlink()
        yield
    finally:
        os.close(fd)


def _write(path: Path, data: bytes, mode: int, *, replaces: bool = False) -> None:
    """Write a file that appears whole and durable, or not at all; FileExistsError: the name is taken."""
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (os.replace if replaces else os.link)(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
