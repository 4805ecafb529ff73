"""Files in a volume, a snapshot or a stream: ls, cat, stat, rm, mv, mkdir."""

from __future__ import annotations

import itertools
import os
import stat as modes
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.completion import FileName
from blockplane.cli.naming import (
    Target,
    file_of,
    live_file_of,
    open_files,
    open_volume,
    open_volumes,
    parse_target,
    plane_name,
)
from blockplane.cli.options import json_option, key_option, wait_option
from blockplane.cli.planefiles import list_planes, read_plane, show_plane
from blockplane.cli.text import count, iso, moment, print_json, print_table, printable

if TYPE_CHECKING:
    from blockplane.filesystem import StatResult

_COPY_BYTES = 1 << 20
#: What others may not, where no default ACL says it: the same whoever makes a directory.
_UMASK = 0o022

_TYPES = {
    modes.S_IFREG: "file",
    modes.S_IFDIR: "directory",
    modes.S_IFLNK: "symlink",
    modes.S_IFIFO: "fifo",
    modes.S_IFSOCK: "socket",
    modes.S_IFCHR: "character device",
    modes.S_IFBLK: "block device",
}


def type_name(mode: int) -> str:
    """Return the word for a mode's type."""
    return _TYPES.get(modes.S_IFMT(mode), "unknown")


@click.command()
@click.argument("path", metavar="VOL[@SNAP]:/PATH", type=FileName())
@click.option("-l", "is_long", is_flag=True, help="Show type, permissions, links, owner, size, time.")
@click.option("-d", "itself", is_flag=True, help="Show a directory itself, not what is in it.")
@click.option("-R", "--recursive", "is_deep", is_flag=True, help="List all that is below, by paths from there.")
@json_option
@key_option
@wait_option
def ls(
    path: str, is_long: bool, itself: bool, is_deep: bool, as_json: bool, keys: Sequence[str], wait_s: float
) -> None:
    """List a directory.

    Of a volume, a snapshot or a stream.

    \b
    blockplane ls -l pool@june1:/include
    blockplane ls -R june1.bps:/
    blockplane ls -l pool:/.planes                    snapshots, shadows and marks as bitmaps
    """
    target = parse_target(path)
    if (plane := plane_name(target)) is not None:
        list_planes(target, plane, is_long, as_json, wait_s)
        return
    with open_files(target, "ls", wait_s, keys) as files:
        names = _names(files, target.path or "/", itself, is_deep)
        if as_json:
            print_json({"path": target.path or "/", "entries": [_entry(files, name, full) for name, full in names]})
        elif is_long:
            rows = [_long(files, name, full) for name, full in names]
            if rows:
                print_table(rows, right=(1, 2, 3, 4))
        else:
            for name, _ in names:
                print(printable(name))


def _names(files: bp.FileSystem, path: str, itself: bool, is_deep: bool) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of what is to be shown; is_deep: directory by directory, a name being the path from there."""
    path = path.rstrip("/") or "/"
    if itself or not files.is_dir(path):
        files.lstat(path)
        yield path.rpartition("/")[2] or "/", path
        return
    listings = files.walk(path) if is_deep else [(path, files.listdir(path), [])]
    for folder, *names in listings:
        for name in sorted(itertools.chain(*names)):
            full = f"{folder.rstrip('/')}/{name}"
            yield full.removeprefix(path).lstrip("/"), full


def _entry(files: bp.FileSystem, name: str, path: str) -> dict[str, object]:
    return {"name": name, **describe_file(files, path)}


def describe_file(files: bp.FileSystem, path: str) -> dict[str, object]:
    """Return a file's attributes for programs; times in nanoseconds and as text."""
    found = files.lstat(path)
    shown: dict[str, object] = {
        "type": type_name(found.st_mode),
        "mode": modes.S_IMODE(found.st_mode),
        "inode": found.st_ino,
        "n_links": found.st_nlink,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "n_bytes": found.st_size,
        "n_blocks": found.st_blocks * 512 // bp.BLOCK_BYTES,
        "mtime_ns": found.st_mtime_ns,
        "mtime": iso(found.st_mtime_ns),
    }
    if modes.S_ISLNK(found.st_mode):
        shown["target"] = files.readlink(path)
    if modes.S_ISCHR(found.st_mode) or modes.S_ISBLK(found.st_mode):
        shown["device"] = found.st_rdev
    return shown


def _long(files: bp.FileSystem, name: str, path: str) -> list[str]:
    found = files.lstat(path)
    arrow = f" -> {printable(files.readlink(path))}" if modes.S_ISLNK(found.st_mode) else ""
    return [
        modes.filemode(found.st_mode),
        str(found.st_nlink),
        str(found.st_uid),
        str(found.st_gid),
        _extent(found),
        moment(found.st_mtime_ns),
        printable(name) + arrow,
    ]


def _extent(found: StatResult) -> str:
    """Return a file's size, or a device's two numbers, as `ls` does."""
    if modes.S_ISCHR(found.st_mode) or modes.S_ISBLK(found.st_mode):
        return f"{os.major(found.st_rdev)}, {os.minor(found.st_rdev)}"
    return f"{found.st_size:,}"


@click.command()
@click.argument("paths", metavar="VOL[@SNAP]:/PATH...", nargs=-1, required=True, type=FileName())
@key_option
@wait_option
def cat(paths: Sequence[str], keys: Sequence[str], wait_s: float) -> None:
    """Write files to standard output."""
    if sys.stdout is None:
        raise bp.errors.UsageError("standard output is closed", "send it somewhere")
    targets = [file_of(path) for path in paths]
    with ExitStack() as stack:
        opened: dict[tuple[str, str | None], bp.FileSystem] = {}  # all of them before anything is written
        for target in targets:
            if plane_name(target) is None and (target.place, target.snapshot) not in opened:
                files = stack.enter_context(open_files(target, "cat", wait_s, keys))
                opened[target.place, target.snapshot] = files
        for target in targets:
            if (plane := plane_name(target)) is not None:
                sys.stdout.buffer.write(read_plane(target, plane, "cat", wait_s)[2])
                continue
            with opened[target.place, target.snapshot].open(target.path or "/", "rb") as source:
                while piece := source.read(_COPY_BYTES):
                    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


@click.command("stat")
@click.argument("path", metavar="VOL[@SNAP]:/PATH", type=FileName())
@json_option
@key_option
@wait_option
def stat_(path: str, as_json: bool, keys: Sequence[str], wait_s: float) -> None:
    """Show all attributes of a file."""
    target = file_of(path)
    if (plane := plane_name(target)) is not None:
        show_plane(target, plane, as_json, wait_s)
        return
    with open_files(target, "stat", wait_s, keys) as files:
        name = target.path or "/"
        found = files.lstat(name)
        attributes = {key: files.getxattr(name, key, follow_symlinks=False) for key in _xattrs(files, name)}
        if as_json:
            print_json({"path": name, **describe_file(files, name), **_more(found), "xattrs": _hex(attributes)})
        else:
            _print_stat(files, name, found, attributes)


def _xattrs(files: bp.FileSystem, path: str) -> list[str]:
    return files.listxattr(path, follow_symlinks=False)


def _more(found: StatResult) -> dict[str, object]:
    return {
        "atime_ns": found.st_atime_ns,
        "ctime_ns": found.st_ctime_ns,
        "birthtime_ns": found.st_birthtime_ns,
        "dos_attributes": found.dos_attributes,
        "generation": found.generation,
    }


def _hex(attributes: dict[str, bytes]) -> dict[str, str]:
    return {key: value.hex() for key, value in attributes.items()}


def _print_stat(files: bp.FileSystem, path: str, found: StatResult, attributes: dict[str, bytes]) -> None:
    arrow = f" -> {printable(files.readlink(path))}" if modes.S_ISLNK(found.st_mode) else ""
    mode = f"{modes.filemode(found.st_mode)} ({modes.S_IMODE(found.st_mode):04o})"
    rows = [
        ["path", printable(path) + arrow],
        ["type", type_name(found.st_mode)],
        ["size", f"{found.st_size:,} bytes in {count(found.st_blocks * 512 // bp.BLOCK_BYTES, 'block')}"],
        ["inode", f"{found.st_ino}, {found.st_nlink} link{'s' * (found.st_nlink != 1)}"],
        ["mode", f"{mode}, uid {found.st_uid}, gid {found.st_gid}"],
        ["modified", _precise(found.st_mtime_ns)],
        ["changed", _precise(found.st_ctime_ns)],
        ["accessed", _precise(found.st_atime_ns)],
        ["made", _precise(found.st_birthtime_ns)],
    ]
    rows += [["attribute", f"{printable(key)} ({len(value)} bytes)"] for key, value in attributes.items()]
    print_table(rows)


def _precise(ns: int) -> str:
    return f"{moment(ns)}.{ns % 10**9:09d}"


@click.command()
@click.argument("paths", metavar="VOL:/PATH...", nargs=-1, required=True, type=FileName())
@click.option("-r", "recursive", is_flag=True, help="Remove directories with all that is in them.")
@click.option("-f", "force", is_flag=True, help="Do not mind what is not there.")
@json_option
@wait_option
def rm(paths: Sequence[str], recursive: bool, force: bool, as_json: bool, wait_s: float) -> None:
    """Remove files; snapshots keep what they hold."""
    targets = [live_file_of(path) for path in paths]
    with open_volumes([target.place for target in targets], "rm", wait_s) as volumes:
        removed = [
            path
            for path, target in zip(paths, targets, strict=True)
            if _removes(bp.FileSystem(volumes[target.place]), target, recursive, force)
        ]
    if as_json:
        print_json({"removed": removed})


def _removes(files: bp.FileSystem, target: Target, recursive: bool, force: bool) -> bool:
    """Remove a file; return whether there was one."""
    path = target.path or "/"
    if force and not files.lexists(path):
        return False
    if recursive:
        files.rmtree(path)
    elif modes.S_ISDIR(files.lstat(path).st_mode):
        raise bp.errors.UsageError(f"{path} is a directory", "say -r to remove it with all that is in it")
    else:
        files.unlink(path)
    return True


@click.command()
@click.argument("paths", metavar="VOL:/SRC... VOL:/DEST", nargs=-1, required=True, type=FileName())
@click.option("-n", "no_clobber", is_flag=True, help="Leave alone what would replace something.")
@json_option
@wait_option
def mv(paths: Sequence[str], no_clobber: bool, as_json: bool, wait_s: float) -> None:
    """Move or rename within a volume.

    Into DEST where that is a directory, else to DEST itself, which a file replaces. All of it, or nothing.

    
    blockplane mv pool:/draft pool:/final
    blockplane mv pool:/a pool:/b pool:/folder
    """
    if len(paths) < 2:
        raise bp.errors.UsageError("mv needs a source and a destination", "write VOL:/SRC VOL:/DEST")
    *sources, dest = (live_file_of(path) for path in paths)
    for source in sources:
        if source.place.rstrip("/") != dest.place.rstrip("/"):
            hint = "copy from one to the other with get and put"
            raise bp.errors.UsageError(f"{source.place} and {dest.place} are two volumes", hint)
    with open_volume(dest.place, "mv", wait_s, writable=True) as volume:
        found = _moves(bp.FileSystem(volume), [s.path or "/" for s in sources], dest.path or "/", no_clobber)
    if as_json:
        print_json({"moved": [{"from": old, "to": new} for old, new in found]})


def _moves(files: bp.FileSystem, sources: Sequence[str], dest: str, no_clobber: bool) -> list[tuple[str, str]]:
    """Move files; return from where to where."""
    is_folder = files.is_dir(dest)
    if len(sources) > 1 and not is_folder:
        raise bp.errors.UsageError(f"{dest} is no directory", "several things move into a directory only")
    names = [source.rstrip("/").rpartition("/")[2] for source in sources]
    for source, name in zip(sources, names, strict=True):
        files.lstat(source)
        if names.count(name) > 1:
            raise bp.errors.UsageError(f"several sources are called {name}", "move them one by one")
    moved = []
    for source, name in zip(sources, names, strict=True):
        target = f"{dest.rstrip('/')}/{name}" if is_folder else dest
        if no_clobber and files.lexists(target):
            continue
        files.rename(source, target)
        moved.append((source, target))
    return moved


@click.command()
@click.argument("paths", metavar="VOL:/PATH...", nargs=-1, required=True, type=FileName())
@click.option("-p", "parents", is_flag=True, help="Make those above it too; do not mind one that is there.")
@json_option
@wait_option
def mkdir(paths: Sequence[str], parents: bool, as_json: bool, wait_s: float) -> None:
    """Make directories."""
    targets = [live_file_of(path) for path in paths]
    with open_volumes([target.place for target in targets], "mkdir", wait_s) as volumes:
        made = []
        for path, target in zip(paths, targets, strict=True):
            files = bp.FileSystem(volumes[target.place])
            if not (parents and files.is_dir(target.path or "/")):
                made.append(path)
            if parents:
                files.makedirs(target.path or "/", umask=_UMASK, exist_ok=True)
            else:
                files.mkdir(target.path or "/", umask=_UMASK)
    if as_json:
        print_json({"made": made})


VERBS = (ls, cat, stat_, rm, mv, mkdir)
