"""Proof that two trees are the same: names, attributes, extended attributes, links, holes and bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import blockplane as bp
    from blockplane.filesystem import StatResult

_PIECE_BYTES = 4 << 20
_MAX_DIFFERENCES = 20


@dataclass(slots=True)
class Comparison:
    """What was compared, and what differs: one sentence each, the first twenty. changed: left out, it was changing."""

    n_entries: int = 0
    n_bytes: int = 0
    n_changed: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def add(self, difference: str) -> None:
        """Note a difference."""
        if len(self.differences) < _MAX_DIFFERENCES:
            self.differences.append(difference)


def compare_states(left: bp.FileSystem, right: bp.FileSystem) -> Comparison:
    """Compare two states of which one is the other's copy: inode numbers and all times are equal too."""
    found = Comparison()
    seen: set[int] = set()
    pending = ["/"]
    while pending:
        path = pending.pop()
        found.n_entries += 1
        mine, theirs = left.lstat(path), right.lstat(path)
        if mine != theirs or _attributes(left, path) != _attributes(right, path):
            found.add(f"{path}: attributes differ")
        elif stat.S_ISLNK(mine.st_mode):
            if left.readlink(path) != right.readlink(path):
                found.add(f"{path}: leads elsewhere")
        elif stat.S_ISREG(mine.st_mode) and mine.st_ino not in seen:
            seen.add(mine.st_ino)
            same_holes = _is_dense(mine) or left.data_ranges(path) == right.data_ranges(path)
            _compare_bytes(found, path, same_holes, _pieces(left, path), _pieces(right, path))
        elif stat.S_ISDIR(mine.st_mode):
            names, others = left.listdir(path), right.listdir(path)
            if names != others:
                found.add(f"{path}: {sorted(set(names) ^ set(others))[:3]} on one side only")
            pending += [f"{path.rstrip('/')}/{name}" for name in sorted(set(names) & set(others), reverse=True)]
    return found


def compare_with_host(files: bp.FileSystem, pairs: Sequence[tuple[str, str]], since_ns: int) -> Comparison:
    """Compare trees of a state with trees of the host they were put in from; what changed there since is left out."""
    found = Comparison()
    pending = list(pairs)
    while pending:
        name, place = pending.pop()
        mine = files.lstat(name)
        try:
            theirs = os.lstat(place)
            if theirs.st_ctime_ns >= since_ns:
                found.n_changed += 1
                continue
            found.n_entries += 1
            keys = (
                "st_mode",
                "st_uid",
                "st_gid",
                "st_mtime_ns",
                *(("st_size",) if not stat.S_ISDIR(mine.st_mode) else ()),
            )
            if any(getattr(mine, key) != getattr(theirs, key) for key in keys):
                found.add(f"{place}: attributes differ")
            elif stat.S_ISREG(mine.st_mode):
                _compare_bytes(found, place, True, _pieces(files, name), _host_pieces(place))
            elif stat.S_ISLNK(mine.st_mode) and files.readlink(name) != os.readlink(place):
                found.add(f"{place}: leads elsewhere")
        except OSError as error:
            found.add(f"{place}: {error.strerror}")
            continue
        if stat.S_ISDIR(mine.st_mode):
            pending += [(f"{name.rstrip('/')}/{child}", f"{place}/{child}") for child in files.listdir(name)]
    return found


def _is_dense(found: StatResult) -> bool:
    """Whether a file has all its blocks: then it has no holes."""
    return found.st_blocks * 512 >= found.st_size


def _attributes(files: bp.FileSystem, path: str) -> dict[str, bytes]:
    names = files.listxattr(path, follow_symlinks=False)
    return {name: files.getxattr(path, name, follow_symlinks=False) for name in names}


def _compare_bytes(
    found: Comparison, path: str, same_holes: bool, left: Iterator[bytes], right: Iterator[bytes]
) -> None:
    if not same_holes:
        found.add(f"{path}: holes differ")
    for mine, theirs in zip(left, right, strict=True):
        found.n_bytes += len(mine)
        if mine != theirs:
            found.add(f"{path}: bytes differ")
            return


def _pieces(files: bp.FileSystem, path: str) -> Iterator[bytes]:
    """Yield a file's bytes in pieces, the last one short or empty."""
    offset = 0
    while True:
        piece = files.read_bytes(path, offset, _PIECE_BYTES)
        yield piece
        if len(piece) < _PIECE_BYTES:
            return
        offset += len(piece)


def _host_pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while True:
            piece = file.read(_PIECE_BYTES)
            yield piece
            if len(piece) < _PIECE_BYTES:
                return
