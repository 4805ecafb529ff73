"""A private CA and certificates of it: what `blockplane cert` makes, in one folder."""

from __future__ import annotations

import contextlib
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


def make_certificates(directory: str | os.PathLike[str], names: Sequence[str]) -> list[Certificate]:
    """Make a private CA, unless the folder has one, and a key and a certificate of it for each name.

    Parameters
    ----------
    directory : made where it is absent. ca.pem is what every host needs; ca.key stays here, for further names.
    names : host names or addresses; `NAME=OTHER,...` gives a certificate further ones. Its files are NAME.pem and
    NAME.key.

    Returns
    -------
    the certificate of the CA, where it was made, then those of the names.

    Raises
    ------
    UsageError : a name is none. KeyFileError : a file is there already, or one of the CA's is missing, or the CA has
    ended; nothing was made.

    Notes
    -----
    Keys are of the curve P-256, readable by their owner alone from the start. A certificate serves both sides, and ends
    with its CA at the latest. Durable on return; a file appears whole or not at all.
    """
    folder, wanted = Path(directory), [_names_of(name) for name in names]
    if not wanted:
        raise UsageError("no name is given", "name the hosts that are to have a certificate")
    _refuse_existing(folder, [listed[0] for listed in wanted])
    with _writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made, authority = _authority(folder)
        found = [*made, *(_issue(folder, authority, listed) for listed in wanted)]
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
                    f"{path} exists: a certificate is never overwritten", "name another host, or another folder"
                )
    if len(set(names)) < len(names):
        raise UsageError("a name is given twice", "name each host once")


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


def _issue(folder: Path, authority: _Authority, names: tuple[str, ...]) -> Certificate:
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
    made = _publish(folder, names[0], names, builder.sign(authority.key, hashes.SHA256()), secret)
    return replace(made, ends_with_ca=made.expires == issuer.not_valid_after_utc)


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name)


def _publish(
    folder: Path, name: str, names: tuple[str, ...], signed: x509.Certificate, secret: ec.EllipticCurvePrivateKey
) -> Certificate:
    """Write a key, then its certificate: a certificate that is there has its key beside it."""
    certificate, key = _paths(folder, name)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write_new(key, secret.private_bytes(pem, form, serialization.NoEncryption()), 0o600)
    try:
        _write_new(certificate, signed.public_bytes(pem), 0o644)
    except BaseException:
        key.unlink()
        raise
    return Certificate(names, signed.fingerprint(hashes.SHA256()), certificate, key, signed.not_valid_after_utc)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that appears whole and durable, or not at all; FileExistsError: the name is taken."""
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    finally:
        os.unlink(partial)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
