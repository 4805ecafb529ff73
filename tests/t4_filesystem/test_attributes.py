"""Modes, owners, times, extended attributes, ACLs, DOS attributes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.filesystem import DOS_HIDDEN, DOS_READ_ONLY, FileSystem
from blockplane.filesystem.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, decode_acl, encode_acl
from blockplane.filesystem.attributes import decode_attributes, encode_attributes
from blockplane.filesystem.errors import InvalidRequestError, NoAttributeError, TooLargeError
from blockplane.model import NoSpaceError
from blockplane.volume import Volume

NONE = 0xFFFFFFFF
ACL = [
    AclEntry(USER_OBJ, 7, NONE), AclEntry(USER, 5, 1000), AclEntry(GROUP_OBJ, 6, NONE), AclEntry(MASK, 5, NONE),
    AclEntry(OTHER, 0, NONE),
]  # fmt: skip


def test_mode_owner_times(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/f", b"")
    fs.chmod("/f", 0o6751)
    fs.chown("/f", 12, 34)
    fs.chown("/f", -1, 4294967295)
    fs.utime("/f", ns=(-1, 1 << 62), created_ns=5)
    volume.sync()
    status = fs.stat("/f")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o6751, 12, 4294967295)
    assert (status.st_atime_ns, status.st_mtime_ns, status.st_birthtime_ns) == (-1, 1 << 62, 5)
    with pytest.raises(InvalidRequestError):
        fs.chown("/f", 1 << 32, 0)


@given(st.dictionaries(st.binary(min_size=1, max_size=255).filter(lambda n: b"\0" not in n), st.binary(max_size=2000)))
def test_the_byte_string_of_attributes(attributes: dict[bytes, bytes]) -> None:
    assert decode_attributes(encode_attributes(attributes), 5) == attributes


@pytest.mark.parametrize("size", [0, 1, 100, 113, 4096, 65536])
def test_attributes_of_all_sizes(volume: Volume, fs: FileSystem, size: int) -> None:
    fs.write_bytes("/f", b"content")
    fs.setxattr("/f", "user.a", b"v" * size)
    fs.setxattr("/f", b"security.b", b"w")
    volume.sync()
    assert fs.listxattr("/f") == ["security.b", "user.a"]
    assert (fs.getxattr("/f", "user.a"), fs.getxattr("/f", "security.b")) == (b"v" * size, b"w")
    assert fs.check().problems == []
    fs.removexattr("/f", "user.a")
    assert fs.listxattr("/f") == ["security.b"]
    fs.removexattr("/f", "security.b")
    volume.sync()
    assert fs.n_inodes == 2
    assert fs.check().problems == []


def test_attributes_go_with_the_file(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/f", b"")
    fs.setxattr("/f", "user.big", b"x" * 5000)
    assert fs.n_inodes == 3
    fs.unlink("/f")
    volume.sync()
    assert fs.n_inodes == 1
    assert fs.check().problems == []


def test_wrong_attributes_are_refused(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"")
    with pytest.raises(NoAttributeError) as caught:
        fs.getxattr("/f", "user.none")
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(NoAttributeError):
        fs.setxattr("/f", "user.a", b"", os.XATTR_REPLACE)
    fs.setxattr("/f", "user.a", b"")
    with pytest.raises(FileExistsError):
        fs.setxattr("/f", "user.a", b"", os.XATTR_CREATE)
    with pytest.raises(TooLargeError):
        fs.setxattr("/f", "user.a", b"x" * 65537)
    with pytest.raises(InvalidRequestError):
        fs.setxattr("/f", "nonamespace", b"")
    with pytest.raises(InvalidRequestError):
        fs.setxattr("/f", "system.posix_acl_access", b"junk")
    for i in range(15):
        fs.setxattr("/f", f"user.{i}", b"x" * 65536)
    with pytest.raises(TooLargeError):
        fs.setxattr("/f", "user.last", b"x" * 65536)
    assert len(fs.listxattr("/f")) == 16


def test_an_acl_and_the_mode_follow_each_other(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"")
    fs.chmod("/f", 0o644)
    fs.setxattr("/f", "system.posix_acl_access", encode_acl(ACL))
    assert stat.S_IMODE(fs.stat("/f").st_mode) == 0o750
    fs.chmod("/f", 0o604)
    entries = decode_acl(fs.getxattr("/f", "system.posix_acl_access"))
    assert entries == [
        ACL[0]._replace(permissions=6),
        *ACL[1:3],
        ACL[3]._replace(permissions=0),
        ACL[4]._replace(permissions=4),
    ]
    with pytest.raises(InvalidRequestError):
        fs.setxattr("/f", "system.posix_acl_default", encode_acl(ACL))
    fs.mkdir("/d")
    fs.setxattr("/d", "system.posix_acl_default", encode_acl(ACL))
    assert decode_acl(fs.getxattr("/d", "system.posix_acl_default")) == ACL


@pytest.fixture
def crowded(fs: FileSystem) -> FileSystem:
    """A file whose attributes take all that they may, but 6 bytes."""
    fs.mknod("/f", stat.S_IFREG | 0o600)
    for i in range(15):
        fs.setxattr("/f", f"user.{i:02}", b"x" * 65536)
    taken = 15 * (5 + len("user.00") + 65536)
    fs.setxattr("/f", "user.last", b"x" * ((1 << 20) - taken - 5 - len("user.last") - 6))
    return fs


def test_an_acl_that_is_refused_changes_no_mode(crowded: FileSystem) -> None:
    with pytest.raises(TooLargeError):
        crowded.setxattr("/f", "system.posix_acl_access", encode_acl(ACL))
    assert stat.S_IMODE(crowded.stat("/f").st_mode) == 0o600


def test_a_mode_that_is_refused_for_its_acl_is_not_set(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.mknod("/f", stat.S_IFREG | 0o600)
    fs.setxattr("/f", "system.posix_acl_access", encode_acl(ACL))

    def refuse(*_: object) -> None:
        raise NoSpaceError("the volume is full")

    monkeypatch.setattr(fs.store, "set_attributes", refuse)
    with pytest.raises(NoSpaceError):
        fs.chmod("/f", 0o604)
    assert stat.S_IMODE(fs.stat("/f").st_mode) == 0o750


@pytest.mark.parametrize(("before", "more", "n_left"), [(40, 400_000, 60), (4000, 40_000, 5), (40_000, 15_000, 9)])
def test_attributes_stay_where_others_find_no_room(
    tmp_path: Path, fill_up: Any, before: int, more: int, n_left: int
) -> None:
    with Volume.create(tmp_path / "vol", disks=1, size="16M") as volume:
        fs = FileSystem(volume)
        fs.mknod("/f", stat.S_IFREG | 0o600)
        fs.setxattr("/f", "user.kept", b"k" * before)
        volume.sync()
        fill_up(volume, n_left)
        inode, n_inodes = fs.resolver.find("/f"), fs.n_inodes
        attributes = fs.store.attributes(inode)
        with pytest.raises(NoSpaceError):
            fs.store.set_attributes(inode, attributes | {b"user.%d" % i: b"n" * (more // 8) for i in range(8)})
        fs.chmod("/f", 0o644)
        volume.sync()
        assert fs.store.attributes(inode) == attributes
        assert fs.n_inodes == n_inodes
        assert fs.check().problems == []


@pytest.mark.parametrize(
    "entries",
    [ACL[:3], ACL[1:], [*ACL, ACL[-1]], list(reversed(ACL)), [ACL[0]._replace(permissions=8), *ACL[1:]],
     [ACL[0], ACL[1]._replace(tag=3), *ACL[2:]]],
)  # fmt: skip
def test_impossible_acls(entries: list[AclEntry]) -> None:
    assert decode_acl(encode_acl(entries)) is None


def test_dos_attributes_and_nfs_acls_are_kept(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/f", b"")
    fs.set_dos_attributes("/f", DOS_READ_ONLY | DOS_HIDDEN)
    fs.setxattr("/f", "system.nfs4_acl", bytes(range(200)))
    snapshot = FileSystem(volume.snapshot("s"))
    assert snapshot.get_dos_attributes("/f") == DOS_READ_ONLY | DOS_HIDDEN
    assert snapshot.getxattr("/f", "system.nfs4_acl") == bytes(range(200))
    with pytest.raises(InvalidRequestError):
        fs.set_dos_attributes("/f", 64)


DEFAULTS = {
    "plain": [AclEntry(USER_OBJ, 7, NONE), AclEntry(GROUP_OBJ, 5, NONE), AclEntry(OTHER, 1, NONE)],
    "named": ACL,
    "mask alone": [
        AclEntry(USER_OBJ, 7, NONE), AclEntry(GROUP_OBJ, 7, NONE), AclEntry(MASK, 3, NONE), AclEntry(OTHER, 5, NONE)
    ],
}  # fmt: skip


@pytest.mark.parametrize("mode", [0o777, 0o666, 0o640, 0o070, 0])
@pytest.mark.parametrize("default", DEFAULTS)
def test_a_default_acl_is_passed_on_as_the_host_does(fs: FileSystem, tmp_path: Path, default: str, mode: int) -> None:
    host = tmp_path / "host"
    value = encode_acl(DEFAULTS[default])
    before = os.umask(0o077)  # which counts for nothing where a default ACL is
    try:
        for there in (os, fs):
            top = str(host) if there is os else "/host"
            there.mkdir(top, 0o755)
            there.setxattr(top, "system.posix_acl_default", value)
            there.mkdir(f"{top}/directory", mode | 0o700)  # an ordinary user must get in
            there.mkdir(f"{top}/directory/deeper", mode)
            there.mkfifo(f"{top}/fifo", mode)
            there.mknod(f"{top}/file", stat.S_IFREG | mode)
            there.symlink("file", f"{top}/link")
    finally:
        os.umask(before)
    for name in ("directory", "directory/deeper", "fifo", "file", "link"):
        theirs, ours = os.lstat(host / name), fs.lstat(f"/host/{name}")
        assert oct(ours.st_mode) == oct(theirs.st_mode), name
        names = [key for key in os.listxattr(host / name, follow_symlinks=False) if "posix_acl" in key]
        assert fs.listxattr(f"/host/{name}", follow_symlinks=False) == sorted(names), name
        for key in names:
            assert fs.getxattr(f"/host/{name}", key) == os.getxattr(host / name, key), (name, key)
    assert fs.check().problems == []


def test_a_umask_counts_only_without_a_default_acl(fs: FileSystem) -> None:
    fs.makedirs("/plain/inner", umask=0o022)
    assert stat.S_IMODE(fs.stat("/plain/inner").st_mode) == 0o755
    fs.setxattr("/plain", "system.posix_acl_default", encode_acl(ACL))
    fs.makedirs("/plain/new/inner", umask=0o077)
    assert stat.S_IMODE(fs.stat("/plain/new/inner").st_mode) == 0o750
    fs.write_bytes("/plain/new/file", b"x")
    assert stat.S_IMODE(fs.stat("/plain/new/file").st_mode) == 0o640
