"""The main job from start to end: what `blockplane demo` does."""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import blockplane as bp
from blockplane.cli.equality import Comparison, compare_states, compare_with_host
from blockplane.cli.text import blocks, count, duration, rate, size

FIRST, SECOND = "monday", "tuesday"
_TREE = "/data"
_SEED = 7174352
_SMALLEST_DISK_BYTES = 64 << 20
_INSTALLED = ("site-packages", "dist-packages")

Figures = dict[str, object]


@dataclass(slots=True)
class Demonstration:
    """What came out. figures: for programs; ok: every comparison equal, every check clean."""

    figures: Figures = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems


def demonstrate(source: str | None, place: Path, tell: Callable[[str], None]) -> Demonstration:
    """Run the demonstration in an empty directory.

    Parameters
    ----------
    source : a directory of the host, only read; None for Python's own library, without what was installed into it.
    tell : given a line for people about each step.

    Raises
    ------
    RefusedError: there is too little room. OSError, BlockplaneError: a step failed.
    """
    return _Run(source, place, tell).run()


class _Run:
    def __init__(self, source: str | None, place: Path, tell: Callable[[str], None]) -> None:
        self._source = os.path.abspath(source if source is not None else sysconfig.get_paths()["stdlib"])
        self._left_out = _INSTALLED if source is None else ()
        self._place = place
        self._tell = tell
        self._found = Demonstration({"source": self._source})
        self._started_s = time.monotonic()

    def run(self) -> Demonstration:
        """Do it."""
        with ExitStack() as stack:
            pool = stack.enter_context(self._create())
            started_ns = time.time_ns()
            self._put(pool)
            self._change(pool)
            full, increment = self._send(pool)
            copy = stack.enter_context(self._receive(full, increment, pool))
            self._compare(pool, copy, started_ns)
            self._measure_planes(pool)
            self._check(pool, copy)
            self._read_from_streams(full, increment, copy)
        seconds = time.monotonic() - self._started_s
        self._found.figures = {"ok": self._found.ok, **self._found.figures, "seconds": seconds}
        return self._found

    # --- the source --------------------------------------------------------------------------------------------------

    def _create(self) -> bp.Volume:
        if not os.path.isdir(self._source):
            raise bp.errors.UsageError(f"{self._source} is not a directory", "name a directory to copy")
        sources = self._sources()
        n_bytes, n_entries = _weigh(sources)
        needed = int(2.5 * n_bytes) + n_entries * 1024 + (128 << 20)
        disk_bytes = max(_SMALLEST_DISK_BYTES, needed // 4 // bp.BLOCK_BYTES * bp.BLOCK_BYTES)
        room, free = 4 * n_bytes + (256 << 20), shutil.disk_usage(self._place).free
        if free < room:
            raise bp.errors.RefusedError(
                f"the demonstration needs about {size(room)} in {self._place}, and {size(free)} are free",
                "name a smaller directory, or set TMPDIR",
            )
        pool = bp.Volume.create(self._place / "pool", disks=5, size=disk_bytes, parity=1)
        self._tell(f"pool: 4 + 1 disks of {size(disk_bytes)}, chunks of 256 KiB, room for {blocks(pool.n_blocks)}")
        return pool

    def _put(self, pool: bp.Volume) -> None:
        files = bp.FileSystem(pool)
        started = time.monotonic()
        report = files.put(self._source, _TREE, exclude=[f"/{name}" for name in self._left_out])
        pool.sync()
        seconds = time.monotonic() - started
        self._note_rate(
            "put",
            seconds,
            report.n_bytes,
            n_bytes=report.n_bytes,
            n_files=report.n_files,
            n_directories=report.n_directories,
        )
        self._found.figures["skipped"] = len(report.skipped)
        skipped = (
            f"; {count(len(report.skipped), 'entry', 'entries')} that could not be read left out"
            if report.skipped
            else ""
        )
        self._tell(
            f"put {self._source}: {count(report.n_files, 'file')}, "
            f"{count(report.n_directories, 'directory', 'directories')}, {size(report.n_bytes)} "
            f"in {duration(seconds)} ({rate(report.n_bytes, seconds)}){skipped}"
        )
        self._snapshot(pool, FIRST)

    def _sources(self) -> list[str]:
        """Return what is put in: the directory, or what is in it but for what is left out."""
        if not self._left_out:
            return [self._source]
        return [f"{self._source}/{name}" for name in sorted(os.listdir(self._source)) if name not in self._left_out]

    def _snapshot(self, pool: bp.Volume, name: str) -> None:
        started = time.monotonic()
        made = pool.snapshot(name)
        seconds = time.monotonic() - started
        self._found.figures[name] = {"n_blocks": made.n_blocks, "snapshot_seconds": seconds}
        self._tell(f"snapshot {name}: {blocks(made.n_blocks)}, made in {1000 * seconds:.1f} ms")

    def _change(self, pool: bp.Volume) -> None:
        started = time.monotonic()
        changes = _change_tree(bp.FileSystem(pool), random.Random(_SEED))
        pool.sync()
        self._found.figures["changes"] = {**changes, "seconds": time.monotonic() - started}
        told = ", ".join(f"{n:,} {what}" for what, n in changes.items())
        self._tell(f"changed: files {told} in {duration(time.monotonic() - started)}")
        self._snapshot(pool, SECOND)

    # --- the transfer ------------------------------------------------------------------------------------------------

    def _send(self, pool: bp.Volume) -> tuple[Path, Path]:
        paths = (self._place / "full.bps", self._place / "increment.bps")
        for name, path, text in (("full", paths[0], FIRST), ("increment", paths[1], f"{SECOND} - {FIRST}")):
            image = pool.image(text)
            report = bp.send(image, path)
            self._note_rate(
                f"send_{name}", report.seconds, report.stream_bytes, n_blocks=report.n_blocks, n_bytes=report.n_bytes,
                stream_bytes=report.stream_bytes, blocks_per_disk=image.blocks_per_disk,
            )  # fmt: skip
            self._tell(
                f"sent {text}: {blocks(report.n_blocks)}, stream of {size(report.stream_bytes)} "
                f"in {duration(report.seconds)} ({rate(report.stream_bytes, report.seconds)})"
            )
        return paths

    def _receive(self, full: Path, increment: Path, pool: bp.Volume) -> bp.Volume:
        """Receive onto another geometry: 3 + 2 disks, chunks of 1 MiB."""
        disk_bytes = -(-pool.n_blocks * bp.BLOCK_BYTES // 3) // (1 << 20) * (1 << 20) + (8 << 20)
        place = self._place / "copy"
        for name, path in (("full", full), ("increment", increment)):
            is_new = name == "full"
            report = bp.receive(
                path, place,
                disks=5 if is_new else None, size=disk_bytes if is_new else None,
                parity=2 if is_new else None, chunk="1MiB" if is_new else None,
            )  # fmt: skip
            self._note_rate(
                f"receive_{name}", report.seconds, report.stream_bytes, n_blocks=report.n_blocks, n_bytes=report.n_bytes
            )
            self._tell(
                f"received {path.name}: {', '.join(report.arrived)} in {duration(report.seconds)} "
                f"({rate(report.stream_bytes, report.seconds)})"
                + (", on 3 + 2 disks, chunks of 1 MiB" if is_new else "")
            )
        return bp.Volume.open(place, verb="demo")

    # --- the proof ---------------------------------------------------------------------------------------------------

    def _compare(self, pool: bp.Volume, copy: bp.Volume, started_ns: int) -> None:
        equal: Figures = {}
        started = time.monotonic()
        for name in (FIRST, SECOND):
            mine, theirs = pool.get_snapshot(name), copy.get_snapshot(name)
            if (mine.id, mine.plane) != (theirs.id, theirs.plane):
                self._found.problems.append(f"{name}: id or plane differ")
            found = compare_states(bp.FileSystem(mine), bp.FileSystem(theirs))
            equal[name] = self._judge(f"pool@{name} and copy@{name}", found)
        pairs = [(f"{_TREE}/{os.path.basename(source)}", source) for source in self._sources()]
        pairs = pairs if self._left_out else [(_TREE, self._source)]
        host = compare_with_host(bp.FileSystem(copy.get_snapshot(FIRST)), pairs, started_ns)
        equal["host"] = self._judge(f"{self._source} and copy@{FIRST}", host)
        self._found.figures["equal"] = {**equal, "seconds": time.monotonic() - started}

    def _judge(self, what: str, found: Comparison) -> Figures:
        self._found.problems += [f"{what}: {difference}" for difference in found.differences]
        verdict = "equal" if found.ok else f"{len(found.differences)} DIFFERENCES"
        changed = f"; {found.n_changed} changed meanwhile" if found.n_changed else ""
        self._tell(f"{what}: {verdict}: {count(found.n_entries, 'entry', 'entries')}, {size(found.n_bytes)}{changed}")
        return {
            "ok": found.ok,
            "n_entries": found.n_entries,
            "n_bytes": found.n_bytes,
            "differences": found.differences,
        }

    def _measure_planes(self, pool: bp.Volume) -> None:
        plane = pool.get_snapshot(FIRST).plane
        archived = len(plane.serialize())
        figures = {
            "n_blocks": len(plane),
            "space_blocks": plane.n_blocks,
            "bytes": plane.n_bytes,
            "archived_bytes": archived,
            "bytes_per_block": plane.n_bytes / plane.n_blocks,
            "archived_bytes_per_block": archived / plane.n_blocks,
        }
        self._found.figures["plane"] = figures
        self._tell(
            f"plane of {FIRST}: {size(plane.n_bytes)} in memory, {size(archived)} archived, "
            f"for {plane.n_blocks:,} blocks: {plane.n_bytes / plane.n_blocks:.4f} bytes a block"
        )

    def _check(self, *volumes: bp.Volume) -> None:
        figures: Figures = {}
        for volume in volumes:
            started = time.monotonic()
            report = bp.check(volume)
            seconds = time.monotonic() - started
            figures[volume.path.name] = {"ok": report.ok, "problems": report.problems, "seconds": seconds}
            self._found.problems += [f"check of {volume.path.name}: {problem}" for problem in report.problems]
            self._tell(
                f"check of {volume.path.name}: {'ok' if report.ok else 'DAMAGED'}: {count(report.n_states, 'state')}, "
                f"{blocks(report.n_blocks)}, {count(report.n_stripes, 'stripe')} in {duration(seconds)}"
            )
        self._found.figures["check"] = figures

    def _read_from_streams(self, full: Path, increment: Path, copy: bp.Volume) -> None:
        """Read a file out of the two stream files, which are no volume."""
        files = bp.FileSystem(copy.get_snapshot(SECOND))
        path = next((path for path, n in _files(files, _TREE) if n), None)
        with bp.open_stream(full, increment) as chain:
            same = path is None or bp.FileSystem(chain).read_bytes(path) == files.read_bytes(path)
        self._found.figures["stream_read"] = {"ok": same, "path": path}
        if not same:
            self._found.problems.append(f"{path} reads differently out of the streams")
        elif path is not None:
            self._tell(f"read {path} out of the two stream files alone: equal")

    def _note_rate(self, name: str, seconds: float, moved_bytes: int, **more: object) -> None:
        per_second = moved_bytes / seconds if seconds else 0.0
        self._found.figures[name] = {**more, "seconds": seconds, "bytes_per_second": per_second}


def _weigh(tops: Sequence[str]) -> tuple[int, int]:
    """Return the bytes on disk and the number of entries of trees of the host."""
    n_bytes = n_entries = 0
    for top in tops:
        n_bytes += os.lstat(top).st_blocks * 512
        for folder, directories, names in os.walk(top):
            n_entries += len(directories) + len(names)
            for name in names:
                try:
                    n_bytes += os.lstat(os.path.join(folder, name)).st_blocks * 512
                except FileNotFoundError:
                    continue
    return n_bytes, n_entries


def _files(files: bp.FileSystem, top: str) -> Iterator[tuple[str, int]]:
    """Yield (path, size) of every regular file below a directory, in order of names."""
    for folder, _, names in files.walk(top):
        for name in names:
            path = f"{folder.rstrip('/')}/{name}"
            if not files.is_symlink(path) and files.is_file(path):
                yield path, files.lstat(path).st_size


def _change_tree(files: bp.FileSystem, chance: random.Random) -> dict[str, int]:
    """Overwrite parts, delete, rename, add; return how many of each."""
    found = list(_files(files, _TREE))
    chance.shuffle(found)
    tenth = max(1, len(found) // 20)
    overwritten, deleted, renamed = found[:tenth], found[tenth : 2 * tenth], found[2 * tenth : 3 * tenth]
    for path, n_bytes in overwritten:
        with files.open(path, "r+") as file:
            for _ in range(1 + n_bytes // 20 // bp.BLOCK_BYTES):
                file.seek(chance.randrange(n_bytes // bp.BLOCK_BYTES + 1) * bp.BLOCK_BYTES)
                file.write(chance.randbytes(bp.BLOCK_BYTES))
    for path, _ in deleted:
        files.unlink(path)
    files.makedirs(f"{_TREE}/renamed", exist_ok=True)
    files.makedirs(f"{_TREE}/added", exist_ok=True)
    for index, (path, _) in enumerate(renamed):
        files.rename(path, f"{_TREE}/renamed/{index}")
    for index in range(tenth):
        with files.open(f"{_TREE}/added/{index}", "w") as file:
            file.write(chance.randbytes(chance.randrange(50_000)))
    return {"overwritten in part": len(overwritten), "deleted": len(deleted), "renamed": len(renamed), "added": tenth}
