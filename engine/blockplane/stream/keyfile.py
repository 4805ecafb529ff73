"""Key files: a secret of 256 bits as text, readable by its owner alone.

    blockplane-key 1
    id 9f0c...
    key 5b1e...

The id follows from the key and gives nothing of it away; streams name it, so that a wrong key is known at once.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from blockplane.model.errors import KeyFileError, UsageError

#: What every key file begins with.
KEY_MAGIC: Final = b"blockplane-key "
_VERSION: Final = "blockplane-key 1"
_SECRET_BYTES: Final = 32
#: More than any key file has.
_MAX_BYTES: Final = 4096
_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Key:
    """A key for streams. name : what a person calls it."""

    secret: bytes = field(repr=False)
    name: str = field(default="the key", compare=False)

    @property
    def id(self) -> bytes:
        """16 bytes that name the key."""
        return hmac.digest(self.secret, b"blockplane key id 1", "sha256")[:_ID_BYTES]


#: What stands for a key in the calls: itself, or its file.
KeyLike = Key | str | os.PathLike[str]
Keys = KeyLike | Sequence[KeyLike] | None


def create_key(path: str | os.PathLike[str]) -> Key:
    """Make a key file; it must not exist.

    Raises
    ------
    KeyFileError : something is there, or it cannot be written.

    Notes
    -----
    Durable on return; readable by its owner alone from the start.
    """
    key = Key(secrets.token_bytes(_SECRET_BYTES), os.fspath(path))
    text = f"{_VERSION}\nid {key.id.hex()}\nkey {key.secret.hex()}\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise KeyFileError(f"{key.name} exists: a key is never overwritten", "name another file") from error
    except OSError as error:
        raise KeyFileError(f"cannot write {key.name}: {error.strerror}", "name a file in an existing folder") from error
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        os.unlink(path)
        raise KeyFileError(f"cannot write {key.name}: {error.strerror}", "") from error
    return key


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_key(path: str | os.PathLike[str]) -> Key:
    """Read a key file.

    Raises
    ------
    KeyFileError : there is none, it is damaged, or others than its owner may read it.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(_MAX_BYTES)
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {name}: {error.strerror}", "") from error
    mode = stat.S_IMODE(status.st_mode)
    if text.startswith(KEY_MAGIC) and stat.S_ISREG(status.st_mode) and mode & 0o077:
        raise KeyFileError(f"{name} can be read by others (mode {mode:04o})", f"chmod 600 {name}")
    return _parse(text, name)


def _parse(raw: bytes, name: str) -> Key:
    lines = raw.decode("ascii", "replace").splitlines()
    version = lines[0].strip() if lines else ""
    if version != _VERSION:
        if raw.startswith(KEY_MAGIC):
            raise KeyFileError(f"{name} is a key file of a later release", "upgrade blockplane")
        raise KeyFileError(f"{name} is no key file", f"make one: blockplane key create {name}.key")
    fields = dict(line.strip().partition(" ")[::2] for line in lines[1:] if line.strip() and not line.startswith("#"))
    try:
        key = Key(bytes.fromhex(fields["key"]), name)
        is_right = len(key.secret) == _SECRET_BYTES and bytes.fromhex(fields["id"]) == key.id
    except (KeyError, ValueError):
        is_right = False
    if not is_right:
        raise KeyFileError(f"the key file {name} is damaged: its key is not the one its id names", "take a copy of it")
    return key


class SealedOnly(tuple[Key, ...]):
    """Keys of whoever takes no stream that is not encrypted with one of them."""

    __slots__ = ()


def keys_of(keys: Keys, require_encrypted: bool = False) -> tuple[Key, ...]:
    """Return keys, read from their files where those were named; with require_encrypted as SealedOnly, which stays."""
    if keys is None:
        named: Sequence[KeyLike] = ()
    else:
        named = [keys] if isinstance(keys, (Key, str, os.PathLike)) else keys
    found = tuple(each if isinstance(each, Key) else read_key(each) for each in named)
    return SealedOnly(found) if require_encrypted or isinstance(keys, SealedOnly) else found


def key_of(key: KeyLike) -> Key:
    """Return one key."""
    found = keys_of(key)
    if len(found) != 1:
        raise UsageError("one key encrypts a stream", "name one key file")
    return found[0]
