"""Trees on the host with one of everything that the process may make."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockplane.filesystem.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, encode_acl

NONE = 0xFFFFFFFF
ACL = encode_acl([
    AclEntry(USER_OBJ, 6, NONE), AclEntry(USER, 4, 12), AclEntry(GROUP_OBJ, 4, NONE), AclEntry(GROUP, 6, 34),
    AclEntry(MASK, 6, NONE), AclEntry(OTHER, 0, NONE),
])  # fmt: skip


@contextmanager
def inside(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def sparse_file(path: Path, pieces: dict[int, bytes], size: int) -> None:
    with path.open("wb") as file:
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
        file.truncate(size)


def make_everything(top: Path, seed: int = 1) -> None:
    """Files of all sizes, sparse ones, links of both kinds, fifos, sockets, odd names, modes and times, attributes."""
    rnd = random.Random(seed)
    top.mkdir()
    for i, size in enumerate([0, 1, 255, 256, 257, 4095, 4096, 4097, 65536, 70000, 300_000, 1 << 20, 5_000_001]):
        (top / f"file{i}").write_bytes(rnd.randbytes(size))
    sparse_file(top / "sparse", {8192: b"x" * 5000, 1 << 20: b"y" * 4096}, (2 << 20) + 17)
    sparse_file(top / "starts with a hole", {12288: b"z" * 70000}, 12288 + 70000)
    sparse_file(top / "all hole", {}, 40 << 20)
    sparse_file(top / "small hole", {}, 200)
    sparse_file(top / "hole that attributes hide", {4096: b"x" * 70000}, 4096 + 70000)
    sparse_file(top / "small hole that attributes hide", {}, 4000)
    sub = top / "sub" / "deeper"
    sub.mkdir(parents=True)
    for i in range(300):
        (sub / f"n{i:04}").write_bytes(rnd.randbytes(rnd.randrange(3000)))
    os.link(top / "file9", sub / "hard link")
    os.link(top / "file9", top / "another")
    os.symlink("sub/deeper", top / "link")
    os.symlink("/nowhere/" + "x" * 400, top / "long link")
    os.link(top / "link", top / "link to the link", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o640)
    os.link(top / "fifo", top / "fifo again")
    with inside(top), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (top / "x").with_name("n" * 255).write_bytes(b"long name")
    Path(os.fsdecode(bytes(top) + b"/\xff\xfe not UTF-8 \n")).write_bytes(b"odd")
    (top / "empty").mkdir()
    _attributes(top, sub)
    if os.geteuid() == 0:
        _devices_and_owners(top)
    os.utime(sub, ns=(987654321, 123456789))
    os.utime(top, ns=(1_000_000_000_000_000_001, 1_600_000_000_123_456_789))


def _attributes(top: Path, sub: Path) -> None:
    os.setxattr(top / "file3", "user.small", b"value")
    os.setxattr(top / "file4", "user.large", b"v" * 2000)
    os.setxattr(top / "file5", "user.empty", b"")
    os.setxattr(top / "hole that attributes hide", "user.large", b"w" * 3000)
    os.setxattr(top / "small hole that attributes hide", "user.large", b"w" * 3000)
    os.setxattr(sub, "user.on a directory", b"d")
    os.setxattr(top / "file6", "system.posix_acl_access", ACL)
    os.setxattr(top / "empty", "system.posix_acl_default", ACL)
    os.chmod(top / "file7", 0o400)
    os.chmod(top / "file8", 0o7777)
    os.chmod(top / "empty", 0o500 if os.geteuid() == 0 else 0o700)
    for i in range(10):
        os.utime(top / f"file{i}", ns=(i * 10**9 + 1, i * 10**15 + 999_999_999))
    os.utime(top / "file10", ns=(-5, -(10**9)))
    os.utime(top / "link", ns=(1, 2), follow_symlinks=False)


def _devices_and_owners(top: Path) -> None:
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.chown(top / "file1", 1234, 5678)
    os.chown(top / "link", 99, 98, follow_symlinks=False)
    os.chown(top / "sub", 77, 66)
    os.setxattr(top / "file2", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(top / "file2", "trusted.note", b"t")
