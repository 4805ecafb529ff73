"""POSIX ACLs in the host's encoding (version 2 of `system.posix_acl_*`), and how they go with the mode."""

from __future__ import annotations

import struct
from typing import NamedTuple

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
_TAGS = frozenset((USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER))
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_VERSION = 2


class AclEntry(NamedTuple):
    """One entry; permissions are rwx bits, id counts for USER and GROUP only."""

    tag: int
    permissions: int
    id: int


def decode_acl(data: bytes) -> list[AclEntry] | None:
    """Read an ACL; None when it is not one."""
    body = len(data) - _HEADER.size
    if body < 0 or body % _ENTRY.size or _HEADER.unpack_from(data)[0] != _VERSION:
        return None
    entries = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(data[_HEADER.size :])]
    tags = [entry.tag for entry in entries]
    once = all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)) and tags.count(MASK) <= 1
    named = USER in tags or GROUP in tags
    valid = all(entry.tag in _TAGS and entry.permissions < 8 for entry in entries) and tags == sorted(tags)
    return entries if once and valid and (MASK in tags or not named) else None


def encode_acl(entries: list[AclEntry]) -> bytes:
    """Return the host's encoding."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def mode_of_acl(entries: list[AclEntry], mode: int) -> int:
    """Return the mode with the permissions that an access ACL shows: the mask, or else the group's, in the middle."""
    by_tag = {entry.tag: entry.permissions for entry in entries}
    group = by_tag.get(MASK, by_tag[GROUP_OBJ])
    return mode & ~0o777 | by_tag[USER_OBJ] << 6 | group << 3 | by_tag[OTHER]


def acl_of_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """Return an access ACL after chmod: owner, mask (or group) and other follow the mode."""
    group_tag = MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ
    shift = {USER_OBJ: 6, group_tag: 3, OTHER: 0}
    return [
        entry._replace(permissions=mode >> shift[entry.tag] & 7) if entry.tag in shift else entry for entry in entries
    ]


def inherited_acl(default: list[AclEntry], mode: int) -> tuple[list[AclEntry] | None, int]:
    """Return the access ACL and the mode of something made in a directory that has a default ACL, as Linux makes them.

    The ACL is the default one with what the mode asked for does not grant taken away; None where the mode says it all.
    There is no umask then.
    """
    shown = mode_of_acl(default, mode)
    granted = shown & mode
    entries = acl_of_mode(default, granted)
    is_plain = all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in entries)
    return None if is_plain else entries, mode & ~0o777 | granted & 0o777
