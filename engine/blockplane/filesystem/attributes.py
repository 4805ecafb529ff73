"""Extended attributes as one byte string: in the inode's record while they fit, else the content of an attribute inode.

Everything the host calls an extended attribute is kept under its own name: `user.*`, `security.*`, `trusted.*`, POSIX
ACLs (`system.posix_acl_access`, `system.posix_acl_default`) and NFSv4 ACLs (`system.nfs4_acl`). DOS attributes and the
creation time are fields of the inode.
"""

from __future__ import annotations

import struct

from blockplane.filesystem.errors import damaged

MAX_ATTRIBUTE_NAME_BYTES = 255
MAX_VALUE_BYTES = 65536
MAX_ATTRIBUTES_BYTES = 1 << 20

_HEADER = struct.Struct("<BI")


def encode_attributes(attributes: dict[bytes, bytes]) -> bytes:
    """Return the byte string of attributes, in order of their names."""
    parts = []
    for name in sorted(attributes):
        value = attributes[name]
        parts.append(_HEADER.pack(len(name), len(value)) + name + value)
    return b"".join(parts)


def decode_attributes(data: bytes, inode: int) -> dict[bytes, bytes]:
    """Read the byte string.

    Raises
    ------
    FileSystemDamagedError: lengths that do not fit, or names out of order.
    """
    attributes: dict[bytes, bytes] = {}
    at, last = 0, b""
    while at < len(data):
        if at + _HEADER.size > len(data):
            raise damaged(f"inode {inode}: its attributes are cut short")
        n_name, n_value = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        name = data[at : at + n_name]
        at += n_name
        if at + n_value > len(data) or not name or name <= last or b"\0" in name or n_value > MAX_VALUE_BYTES:
            raise damaged(f"inode {inode}: its attributes are damaged")
        attributes[name] = data[at : at + n_value]
        last, at = name, at + n_value
    return attributes
