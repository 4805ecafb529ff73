"""FORMAT.md says what the codecs do, and what they did before."""

from __future__ import annotations

import hashlib
import re
import stat
from pathlib import Path

from blockplane.filesystem import inode as inode_module
from blockplane.filesystem.attributes import encode_attributes
from blockplane.filesystem.directory_node import Node, hash_name, pack_target
from blockplane.filesystem.inode import INODE_BYTES, Inode

FORMAT = Path(inode_module.__file__).with_name("FORMAT.md").read_text()
GOLDEN = Path(__file__).with_name("golden") / "records.sha256"
SIGNED = {"atime_ns", "mtime_ns", "ctime_ns", "created_ns"}


def table(title: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each field of a section's table."""
    section = FORMAT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return {n: (int(o), int(s)) for o, s, n in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)}


def an_inode() -> Inode:
    inode = Inode(9, stat.S_IFREG | 0o640)
    for number, name in enumerate(("uid", "gid", "nlink", "rdev", "parent", "generation", "n_blocks", "n_entries"), 1):
        setattr(inode, name, number * 1_000_003)
    for number, name in enumerate(sorted(SIGNED), 1):
        setattr(inode, name, -number * 10**15)
    inode.dos_attributes, inode.flags = 0x27, 8
    inode.attributes = encode_attributes({b"user.a": b"value"})
    inode.inline, inode.size_bytes = b"content", 7
    return inode


def a_leaf() -> Node:
    node = Node(0)
    for i, name in enumerate(sorted([b"a", b"bc", b"\xff" * 255], key=hash_name)):
        node.insert(i, (hash_name(name), name), pack_target(i + 1, 8))
    return node


def a_branch() -> Node:
    node = Node(1)
    for i, key in enumerate([(0, b""), (1 << 63, b""), (1 << 63, b"name")]):
        node.insert(i, key, i + 1)
    return node


def test_fields_of_an_inode_lie_where_format_md_says() -> None:
    inode, fields = an_inode(), table("Inode record")
    raw = inode.encode()
    assert len(raw) == INODE_BYTES == sum(size for _, size in fields.values())
    ends = [offset + size for offset, size in fields.values()]
    assert [offset for offset, _ in fields.values()] == [0, *ends[:-1]]


def test_values_of_an_inode_lie_where_format_md_says() -> None:
    inode, fields = an_inode(), table("Inode record")
    raw = inode.encode()
    for name, (offset, size) in fields.items():
        part = raw[offset : offset + size]
        if name == "attributes":
            assert part.rstrip(b"\0") == inode.attributes
        elif name == "n_attributes":
            assert int.from_bytes(part, "little") == len(inode.attributes)
        elif name == "root":
            assert part[16:23] == b"content"
        elif name == "reserved":
            assert part == bytes(size)
        else:
            assert int.from_bytes(part, "little", signed=name in SIGNED) == getattr(inode, name), name


def test_attributes_are_laid_out_as_format_md_says() -> None:
    fields = table("Attributes")
    raw = encode_attributes({b"user.b": b"2" * 300, b"user.a": b"1"})
    assert fields == {"n_name": (0, 1), "n_value": (1, 4)}
    assert raw == b"\x06\x01\0\0\0user.a1" + b"\x06\x2c\x01\0\0user.b" + b"2" * 300


def test_a_node_is_laid_out_as_format_md_says() -> None:
    fields = table("Directory node")
    for node in (a_leaf(), a_branch()):
        raw = node.encode(77)
        values = {name: int.from_bytes(raw[at : at + size], "little") for name, (at, size) in fields.items()}
        expected = {"magic": 0x4442, "level": node.level, "reserved": 0, "n": 3, "owner": 77}
        assert values == expected | {"used_bytes": node.used_bytes}
        assert [int.from_bytes(raw[16 + 8 * i : 24 + 8 * i], "little") for i in range(3)] == node.hashes
        names = b"".join(node.names)
        assert raw[16 + node.used_bytes - len(names) : 16 + node.used_bytes] == names
    assert int.from_bytes(a_leaf().encode(7)[40:48], "little") == 1 | 8 << 48 | len(a_leaf().names[0]) << 56
    assert a_branch().encode(7)[40:55] == b"\1\0\0\0\2\0\0\0\3\0\0\0\0\0\4"


def test_the_golden_records_are_what_they_were() -> None:
    made = an_inode().encode() + a_leaf().encode(77) + a_branch().encode(77)
    assert hashlib.sha256(made).hexdigest() == GOLDEN.read_text().split()[0]
