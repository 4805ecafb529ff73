"""A volume beside its model: everything is done to both, and both must agree."""

from __future__ import annotations

import contextlib
import stat
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from blockplane.filesystem import FileSystem
from blockplane.model import BlockplaneError, NoSpaceError, SnapshotExistsError
from blockplane.volume.check import check
from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in
from blockplane.volume.snapshots import Snapshot
from blockplane.volume.volume import Volume
from model import ModelVolume, Tree
from rig.listing import data_ranges, describe, times_of
from rig.memory import Shape, make_volume, reopen
from rig.sets import freed_by, places, used_places

Description = dict[str, tuple[object, ...]]

_HOST_ERRORS = (
    FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, OSError,
)  # fmt: skip
_SPECIAL = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "char": stat.S_IFCHR}


class Site:
    """A volume, its live file system and its model."""

    def __init__(self, name: str, shapes: Sequence[Shape]) -> None:
        self.name = name
        self.model = ModelVolume()
        self.volume = make_volume(shapes, name)
        self._take_up(self.volume)
        self.n_full = self.n_interrupted = 0
        self._adopt_root()

    def _adopt_root(self) -> None:
        """The root directory of an empty volume is what the volume says it is."""
        status, root = self.fs.lstat("/"), self.model.live.root
        root.mode, root.uid, root.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        root.times = times_of(self.fs, "/")

    def _take_up(self, volume: Volume) -> None:
        self.volume = volume
        self.fs = FileSystem(volume)
        self._seen = volume.committed

    # --- changes of the live tree ---

    def _both(
        self, on_volume: Callable[[], object], on_model: Callable[[], object], *paths: str, writes: str = ""
    ) -> None:
        """Do one change to both; the model says False where nothing changed.

        paths: whose times, and whose parents', it may set. writes: the file it fills.
        """
        got: BaseException | None = None
        try:
            on_volume()
        except NoSpaceError:
            self._ran_full(writes)
            return
        except OSError as error:
            got = error
        want: BaseException | None = None
        has_changed: object = True
        try:
            has_changed = on_model()
        except OSError as error:
            want = error
        assert _class_of(got) == _class_of(want), (got, want)
        if self.model.is_blank:
            self._adopt_root()
        if want is None and has_changed is not False:
            self.model.changed()
        self._note_times(*paths)
        self._note_commit()

    def _ran_full(self, path: str) -> None:
        """After ENOSPC: only what the call was to write may have changed, and only in part."""
        self.n_full += 1
        if path and self.fs.exists(path):
            node = self.model.live.create(path, stat.S_IMODE(self.fs.lstat(path).st_mode))
            status = self.fs.lstat(path)
            node.uid, node.gid = status.st_uid, status.st_gid
            node.data = bytearray(self.fs.read_bytes(path))
            ranges = self.fs.data_ranges(path)
            node.blocks = {n for start, stop in ranges for n in range(start // 4096, -(-stop // 4096))}
        self.volume.sync()
        if self.volume.committed.pointer != self._seen.pointer:  # else it ended before anything changed
            self.model.changed()
        self._note_times(*([path] if path else []))
        self.sync()

    def _note_times(self, *paths: str) -> None:
        for path in paths:
            for each in (path, path.rpartition("/")[0] or "/"):
                try:
                    node = self.model.live.node(each)
                except OSError:
                    continue
                node.times = times_of(self.fs, each)

    def _note_commit(self) -> None:
        """A call may have committed by itself; then the model commits too."""
        if self.volume.committed is not self._seen:
            self.sync()

    def write(self, path: str, offset: int, data: bytes) -> None:
        def on_volume() -> None:
            with self.fs.open(path, "r+", buffering=0) as file:
                file.seek(offset)
                file.write(data)

        self._both(on_volume, lambda: self.model.live.write(path, offset, data), path, writes=path)

    def replace(self, path: str, data: bytes) -> None:
        self._both(
            lambda: self.fs.write_bytes(path, data), lambda: self.model.live.replace(path, data), path, writes=path
        )

    def truncate(self, path: str, size: int) -> None:
        self._both(
            lambda: self.fs.truncate(path, size), lambda: self.model.live.truncate(path, size), path, writes=path
        )

    def mkdir(self, path: str, mode: int) -> None:
        self._both(lambda: self.fs.mkdir(path, mode), lambda: self.model.live.mkdir(path, mode), path)

    def symlink(self, target: str, path: str) -> None:
        self._both(lambda: self.fs.symlink(target, path), lambda: self.model.live.symlink(target, path), path)

    def special(self, path: str, kind: str, mode: int, device: int) -> None:
        self._both(
            lambda: self.fs.mknod(path, _SPECIAL[kind] | mode, device),
            lambda: self.model.live.special(path, kind, mode, device),
            path,
        )

    def link(self, source: str, path: str) -> None:
        self._both(lambda: self.fs.link(source, path), lambda: self.model.live.link(source, path), path)

    def unlink(self, path: str) -> None:
        self._both(lambda: self.fs.unlink(path), lambda: self.model.live.unlink(path), path)

    def rmdir(self, path: str) -> None:
        self._both(lambda: self.fs.rmdir(path), lambda: self.model.live.rmdir(path), path)

    def rename(self, source: str, path: str) -> None:
        self._both(lambda: self.fs.rename(source, path), lambda: self.model.live.rename(source, path), source, path)

    def set_mode(self, path: str, mode: int, uid: int, gid: int) -> None:
        def on_volume() -> None:
            self.fs.chmod(path, mode)
            self.fs.chown(path, uid, gid)

        self._both(on_volume, lambda: self.model.live.set_mode(path, mode, uid, gid), path)

    def set_attribute(self, path: str, name: str, value: bytes | None) -> None:
        def on_volume() -> None:
            if value is None:
                self.fs.removexattr(path, name, follow_symlinks=False)
            else:
                self.fs.setxattr(path, name, value, follow_symlinks=False)

        self._both(on_volume, lambda: self.model.live.set_attribute(path, name, value), path)

    # --- consistency points ---

    def sync(self) -> None:
        self.volume.sync()
        self.model.commit()
        self._seen = self.volume.committed

    def reopen(self, *, crash: bool) -> None:
        if crash:
            self._note_commit()
            self.model.crash()
        else:
            self.model.commit()
        self._take_up(reopen(self.volume, crash=crash))

    # --- snapshots ---

    def create(self, name: str) -> None:
        """Retain the live tree; a taken name is refused, a full volume may refuse too."""
        if self.model.is_blank:
            self.mkdir("/first", 0o755)  # the root directory of a blank volume is made up anew each time it is read
        taken = self.model.named(name) is not None
        try:
            snapshot = self.volume.snapshot(name)
        except SnapshotExistsError:
            assert taken
            self._note_commit()
            return
        except NoSpaceError:
            self.n_full += 1
            self.sync()
            return
        assert not taken
        self.model.create(name, snapshot.id)
        self._seen = self.volume.committed

    def delete(self, names: list[str]) -> None:
        """Delete; what comes free is exactly what the algebra says."""
        self.sync()
        expected, n_held = freed_by(self.volume, names), self.volume.local.root.n_held
        n_live = self.volume.active.root.n_blocks
        if len(names) == 1:
            assert self.volume.get_snapshot(names[0]).exclusive_blocks == len(expected)
        assert self.volume.delete_snapshot(*names) == len(expected)
        assert self.volume.local.root.n_held == n_held - len(expected)
        assert self.volume.active.root.n_blocks == n_live
        self.model.delete(names)
        self._seen = self.volume.committed

    def rename_snapshot(self, name: str, new: str) -> None:
        taken = self.model.named(new) is not None
        try:
            self.volume.rename_snapshot(name, new)
        except SnapshotExistsError:
            assert taken
        else:
            assert not taken
            self.model.rename(name, new)
        self._note_commit()

    def roll_back(self, name: str, *, drop_later: bool, drop_changes: bool) -> None:
        self.sync()
        later = self.model.later_than(name)
        try:
            kept = self.volume.rollback(name, drop_later=drop_later, drop_changes=drop_changes)
        except NoSpaceError:
            self.n_full += 1
            self.sync()
            return
        assert kept is None or not drop_changes
        if kept is None and not drop_changes:
            self._require_nothing_lost()
        if kept is not None:
            self.model.create(kept, self.volume.get_snapshot(kept).id)
        if drop_later:
            self.model.delete(later)
        self.model.roll_back(name)
        self._seen = self.volume.committed

    def _require_nothing_lost(self) -> None:
        """A rollback that keeps nothing must find the live tree in the snapshot it descends from."""
        parent = self.model.regular().get(self.model.parent or "")
        kept = (parent.tree if parent is not None else Tree()).describe()
        _compare(kept, self.model.live.describe(), f"{self.name}: rolled back without a trace")

    def taken_in(self) -> None:
        """Note that a receive committed."""
        self._seen = self.volume.committed

    def regular(self) -> list[Snapshot]:
        """The snapshots that can be read."""
        return [s for s in self.volume.snapshots if s.kind == "regular"]

    # --- comparing ---

    def check_cheaply(self) -> None:
        """Names, order, and the account of space."""
        volume = self.volume
        assert [s.name for s in volume.snapshots] == self.model.names()
        assert [(s.id, s.kind) for s in volume.snapshots] == [(s.id, s.kind) for s in self.model.snapshots.values()]
        assert volume.used_blocks + volume.free_blocks == volume.n_blocks
        assert volume.n_incoming == 0
        used = used_places(volume)
        if not self.model.is_dirty:
            assert volume.used_blocks == len(used)
        used |= places(volume.previous) if volume.info.previous_state.exists else set()
        assert not used & self._free_places()

    def _free_places(self) -> set[int]:
        """What the allocator holds to be free."""
        volume = self.volume
        n_leaves = -(-volume.geometry.n_blocks // LEAF_BLOCKS)
        return {int(n) for i in range(n_leaves) for n in numbers_in(~volume.space.leaf(i), i * LEAF_BLOCKS)}

    def check_nothing_leaks(self) -> None:
        """After three idle consistency points everything that nothing refers to is free, whatever its number names."""
        volume = self.volume
        self.sync()
        for _ in range(3):
            volume.commit(force=True)
        self._seen = volume.committed
        assert volume.available_blocks == max(volume.free_blocks - volume.info.reserve_blocks, 0)
        there = {n for start, stop in volume.geometry.place_extents.tolist() for n in range(start, stop)}
        assert self._free_places() == there - used_places(volume)

    def check_live(self) -> None:
        """The live tree against the model."""
        if self.model.is_blank:
            self._adopt_root()
        _compare(describe(self.fs), self.model.live.describe(), f"{self.name}: the live tree")
        _compare_ranges(self.fs, self.model.live)

    def check_snapshot(self, name: str) -> None:
        """A snapshot against the model."""
        found = self.model.named(name)
        assert found is not None
        fs = FileSystem(self.volume.get_snapshot(name))
        _compare(describe(fs), found.tree.describe(), f"{self.name}: snapshot {name}")
        _compare_ranges(fs, found.tree)

    def check_everything(self) -> None:
        """Trees of all states, structure, parity, links, space."""
        self.check_live()
        for snapshot in self.model.regular().values():
            self.check_snapshot(snapshot.name)
        self.sync()
        report = check(self.volume)
        assert report.ok, report.problems
        for source in [self.volume, *self.regular()]:
            fs = FileSystem(source) if source is not self.volume else self.fs
            problems = fs.check().problems
            assert not problems, problems
        self.check_cheaply()
        self.check_nothing_leaks()

    def close(self) -> None:
        """Give up the disks."""
        with contextlib.suppress(BlockplaneError):
            self.volume.abandon()


def _class_of(error: BaseException | None) -> type[BaseException] | None:
    """The host's class of an error: what model and volume must have in common."""
    return next((kind for kind in _HOST_ERRORS if isinstance(error, kind)), None)


def _compare(found: Description, expected: Description, what: str) -> None:
    """Both trees are one; what differs is named, long bytes by their length and sum."""
    assert sorted(found) == sorted(expected), what
    for path, entry in found.items():
        if entry != expected[path]:
            pairs = zip(map(_short, entry), map(_short, expected[path]), strict=True)
            raise AssertionError(f"{what}: {path}: {[pair for pair in pairs if pair[0] != pair[1]]}")
        assert entry == expected[path], f"{what}: {path}"


def _short(part: object) -> object:
    return (len(part), zlib.crc32(part)) if isinstance(part, bytes) and len(part) > 100 else part


def _compare_ranges(fs: FileSystem, tree: Tree) -> None:
    """Holes are where nothing was written; a tiny file may lie in its inode and then has none."""
    for path, ranges in data_ranges(fs).items():
        expected = tree.data_ranges(path)
        size = len(tree.node(path).data)
        assert ranges == expected or (size <= 256 and ranges == [(0, size)]), (path, ranges, expected)


def fill_pattern(n_bytes: int, seed: int) -> bytes:
    """Bytes that differ from block to block and from seed to seed."""
    n_words = -(-n_bytes // 8)
    words = np.arange(n_words, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    return words.tobytes()[:n_bytes]
