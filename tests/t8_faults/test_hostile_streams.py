"""F16, F17: streams and volumes whose checksums are right and whose fields are anything, through every door.

What comes out is one error of ours or a result that is whole; the destination is the old state or the new one.
"""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockplane import check
from blockplane.filesystem import FileSystem
from blockplane.image.image import build
from blockplane.model import BlockplaneError
from blockplane.stream import Key, codec, open_stream
from blockplane.stream.codec import HEADER_FIXED_BYTES
from blockplane.transfer import compare_streams, merge_streams, receive, send, verify_streams
from blockplane.volume import Volume
from faults.inline import inline_workers
from forging import VALUES, encrypted, head_bytes, is_data, opened_parts, parts_of, sealed, sealed_parts
from rig.memory import Shape, make_volume

KEY = Key(bytes(range(32)))
#: Of the deep run, all parts together.
N_STREAMS, N_VOLUMES = 100_000, 20_000
CI_STREAMS, CI_VOLUMES = 200, 80
#: No input may take so much of a processor.
MAX_CPU_S = 5.0
#: Nor wait for so long, whatever it waits for; a machine that others use may be slow by itself.
HANG_S = 60
MAX_GROWN_KIB = 256 << 10
#: How streams are written.
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zstd": {"compress": "zstd"},
    "encrypted": {"key": KEY},
    "zstd, encrypted": {"compress": "zstd", "key": KEY},
    "implicit": {"locations": "implicit"},
    "implicit, tape, encrypted": {"locations": "implicit", "order": "tape", "key": KEY},
}
SHAPES = [Shape(2, 1, 64, 512)]


@pytest.fixture(autouse=True)
def _inline() -> Iterator[None]:
    with inline_workers():
        yield


class Bounds:
    """Interrupts what does not end; slowest_s : the most processor time that one input took."""

    def __init__(self) -> None:
        self.slowest_s = 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        before = {kind: signal.signal(kind, _late) for kind in (signal.SIGALRM, signal.SIGPROF)}
        started = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            for kind, handler in before.items():
                signal.signal(kind, handler)
            self.slowest_s = max(self.slowest_s, time.process_time() - started)


def _late(signum: int, frame: object) -> None:
    what = f"{HANG_S} s" if signum == signal.SIGALRM else f"{MAX_CPU_S:g} s of a processor"
    raise TimeoutError(f"still at work after {what}")


def fill(volume: Volume, rng: np.random.Generator) -> FileSystem:
    files = FileSystem(volume)
    files.mkdir("/folder")
    for number in range(20):
        files.write_bytes(f"/folder/file{number}", rng.integers(0, 4, int(rng.integers(1, 30_000)), np.uint8).tobytes())
    files.symlink("folder/file1", "/link")
    files.link("/folder/file2", "/other")
    files.setxattr("/folder/file3", "user.a", b"b" * 300)
    return files


def sources(rng: np.random.Generator, form: dict[str, Any]) -> tuple[bytes, bytes]:
    """A full stream and an increment on it, of real files."""
    volume = make_volume(SHAPES, "source")
    files = fill(volume, rng)
    volume.snapshot("one")
    files.write_bytes("/folder/new", bytes(50_000))
    files.unlink("/folder/file5")
    volume.snapshot("two")
    streams = []
    for text in ("one", "two - one"):
        out = io.BytesIO()
        send(build(volume, text), out, **form)
        streams.append(out.getvalue())
    volume.close()
    return streams[0], streams[1]


def forged(stream: bytes, rng: np.random.Generator) -> bytes:
    """Change one to three fields, or bytes of a payload; every checksum and the digest are put right.

    Of an encrypted stream before it is encrypted: whoever does so has the key.
    """
    is_sealed = codec.is_sealed(stream)
    parts = [bytearray(part) for part in (opened_parts(stream, KEY) if is_sealed else parts_of(stream))]
    for _ in range(int(rng.integers(1, 4))):
        part = parts[int(rng.integers(len(parts)))]
        end = HEADER_FIXED_BYTES if part is parts[0] else len(part)
        if part is not parts[0] and is_data(part) and rng.integers(4):
            end = head_bytes(part)
        width = int(rng.choice([1, 2, 4, 8]))
        at = int(rng.integers(max(end - width, 1)))
        value = VALUES[int(rng.integers(len(VALUES)))] if rng.integers(4) else int(rng.integers(1 << 62))
        part[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    if not rng.integers(8):
        first, second = rng.integers(1, len(parts), 2)
        parts[first], parts[second] = parts[second], parts[first]
    if not rng.integers(8):
        del parts[int(rng.integers(1, len(parts)))]
    if len(parts) < 3:
        return b"".join(parts)
    return encrypted(sealed_parts(parts), KEY) if is_sealed else sealed(parts)


def look_at(files: FileSystem) -> None:
    """Read everything that can be reached."""
    for top, _, names in files.walk("/"):
        for name in names:
            path = f"{top.rstrip('/')}/{name}"
            status = files.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 24:
                files.read_bytes(path)
            files.listxattr(path, follow_symlinks=False)


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Doors:
    """Everything that takes a stream."""

    def __init__(self, folder: Path, full: bytes, increment: bytes) -> None:
        self.full, self.bad = folder / "full.bps", folder / "bad.bps"
        self.full.write_bytes(full)
        self.target = make_volume(SHAPES, "target")
        receive(io.BytesIO(full), self.target, key=KEY)
        self.fresh: Volume | None = None
        self.bounded = Bounds()
        self.n_refused = self.n_taken = 0
        self.names: dict[str, Callable[[bytes], object]] = {
            "receive": self._receive,
            "files": lambda stream: self._read(self.full, self.bad),
            "alone": lambda stream: self._read(self.bad),
            "verify": lambda stream: verify_streams(self.full, self.bad, key=KEY),
            "merge": lambda stream: merge_streams(self.full, self.bad, sink=io.BytesIO(), key=KEY, encrypt=KEY),
            "compare": lambda stream: compare_streams(self.full, self.bad, volume=self.target, snapshot="one", key=KEY),
        }

    def _receive(self, stream: bytes) -> None:
        before = self.target.committed.pointer
        try:
            receive(io.BytesIO(stream), self.target, key=KEY)
        except BlockplaneError:
            assert self.target.committed.pointer == before
            assert [s.name for s in self.target.snapshots] == ["one"]
            raise
        if len(self.target.snapshots) > 1:
            check(self.target)  # whatever was in the files: it ends
            self.target.rollback("one", drop_changes=True, drop_later=True)

    def _read(self, *paths: Path) -> None:
        with open_stream(*paths, key=KEY) as chain:
            look_at(FileSystem(chain))

    def through(self, name: str, stream: bytes) -> None:
        self.bad.write_bytes(stream)
        refusal: BlockplaneError | None = None
        with self.bounded():
            try:
                self.names[name](stream)
            except BlockplaneError as error:
                refusal = error
        if refusal is None:
            self.n_taken += 1
        else:
            assert refusal.message.isprintable()
            self.n_refused += 1


def share_of(total: int, part: tuple[int, int]) -> int:
    number, n_parts = part
    return (number + 1) * total // n_parts - number * total // n_parts


@pytest.mark.parametrize("form", FORMS)
def test_forged_streams_through_every_door(tmp_path, rng, is_deep, part, form, record_property):
    full, increment = sources(rng, FORMS[form])
    doors, before = Doors(tmp_path, full, increment), peak_kib()
    names = list(doors.names)
    n_streams = share_of(N_STREAMS // len(FORMS), part) if is_deep else CI_STREAMS
    for number in range(n_streams):
        stream = forged(full if names[number % len(names)] == "alone" else increment, rng)
        doors.through(names[number % len(names)], stream)
    record_property(
        "summary",
        f"forged streams, {form}: {n_streams}, {doors.n_refused} refused, {doors.n_taken} taken, "
        f"the slowest {doors.bounded.slowest_s:.2f} s of a processor, "
        f"{(peak_kib() - before) >> 10} MiB more at the peak",
    )
    assert 0 < doors.bounded.slowest_s < MAX_CPU_S
    assert doors.n_refused + doors.n_taken == n_streams
    assert doors.n_refused > n_streams // 4
    assert peak_kib() - before < MAX_GROWN_KIB
    for problem in check(doors.target).problems:
        pytest.fail(problem)


def disfigure(volume: Volume, rng: np.random.Generator) -> None:
    """Write anything into metadata, through the trees, so that every checksum is right."""
    active = volume.active
    trees = [active.inode_file, active.inode_file, active.snapshot_list, active.blockmap]
    for _ in range(int(rng.integers(1, 4))):
        tree = trees[int(rng.integers(len(trees)))]
        leaves = [leaf for start, stop in tree.data_extents().tolist() for leaf in range(start, stop)]
        if not leaves:
            continue
        block = tree.edit_block(leaves[int(rng.integers(len(leaves)))])
        width = int(rng.choice([1, 2, 4, 8]))
        at = int(rng.integers(len(block) // 2)) // width * width
        value = VALUES[int(rng.integers(len(VALUES)))]
        block[at : at + width] = np.frombuffer((value % (1 << 8 * width)).to_bytes(width, "little"), np.uint8)
    active.is_dirty = True


def test_disfigured_volumes_as_streams(tmp_path, rng, is_deep, part, record_property):
    n_volumes = share_of(N_VOLUMES, part) if is_deep else CI_VOLUMES
    before, outcomes = peak_kib(), {"refused": 0, "sent": 0, "taken": 0, "whole": 0}
    path, bounded = tmp_path / "bad.bps", Bounds()
    for _ in range(n_volumes):
        volume, target = make_volume(SHAPES, "source"), make_volume(SHAPES, "target")
        fill(volume, rng)
        volume.sync()
        with bounded():
            try:
                disfigure(volume, rng)
                volume.snapshot("bad")
                send(build(volume, "bad"), path)
                outcomes["sent"] += 1
                with contextlib.suppress(BlockplaneError), open_stream(path) as chain:
                    look_at(FileSystem(chain))
                with contextlib.suppress(BlockplaneError):
                    verify_streams(path)
                receive(path, target)
                outcomes["taken"] += 1
                outcomes["whole"] += check(target).ok
                look_at(FileSystem(target.get_snapshot("bad")))
            except BlockplaneError:
                outcomes["refused"] += 1
        path.unlink(missing_ok=True)
        for each in (volume, target):
            each.abandon()
    record_property(
        "summary",
        f"disfigured volumes: {n_volumes}, {outcomes}, the slowest {bounded.slowest_s:.2f} s of a processor, "
        f"{(peak_kib() - before) >> 10} MiB more",
    )
    assert 0 < bounded.slowest_s < MAX_CPU_S
    assert outcomes["sent"] > n_volumes // 4
    assert peak_kib() - before < MAX_GROWN_KIB


def spin() -> None:
    while True:
        pass


def test_what_does_not_end_is_interrupted(monkeypatch):
    """By the processor time it takes, and by the clock where it waits."""
    monkeypatch.setitem(globals(), "MAX_CPU_S", 0.2)
    bounded = Bounds()
    with pytest.raises(TimeoutError, match=r"0\.2 s of a processor"), bounded():
        spin()
    assert bounded.slowest_s > 0.1
    monkeypatch.setitem(globals(), "HANG_S", 0.1)
    with pytest.raises(TimeoutError, match=r"after 0\.1 s"), bounded():
        time.sleep(20)
