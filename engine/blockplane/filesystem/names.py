"""Names and paths as bytes: UTF-8 with surrogateescape, so that every name of the host has a form as text and back."""

from __future__ import annotations

import os

from blockplane.filesystem.errors import BadNameError, NameTooLongError

NAME_BYTES = 255
TARGET_BYTES = 4095
AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def path_bytes(path: AnyPath) -> bytes:
    """Return a path as bytes.

    Raises
    ------
    BadNameError: it is empty or holds NUL.
    """
    raw = os.fspath(path)
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "surrogateescape")
    if not raw or b"\0" in raw:
        raise BadNameError(path_text(raw), f"{path_text(raw)!r} is not a path: {'it holds NUL' if raw else 'empty'}")
    return raw


def path_text(raw: bytes) -> str:
    """Return bytes of a name or path as text."""
    return raw.decode("utf-8", "surrogateescape")


def check_name(name: bytes) -> bytes:
    """Return a name that a directory may hold.

    Raises
    ------
    BadNameError: empty, `.`, `..`, or with a slash or NUL.
    NameTooLongError: more than 255 bytes.
    """
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise BadNameError(path_text(name), f"{path_text(name)!r} is not a name for a new entry")
    if len(name) > NAME_BYTES:
        raise NameTooLongError(path_text(name))
    return name


def name_is_valid(name: bytes) -> bool:
    """Whether a directory may hold the name; for metadata read from disk."""
    return 0 < len(name) <= NAME_BYTES and name not in (b".", b"..") and b"/" not in name and b"\0" not in name
