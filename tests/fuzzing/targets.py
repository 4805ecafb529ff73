"""The doors, by name: what each is given, how that is mutated, and what must hold whatever is in it."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockplane import check
from blockplane.filesystem import FileSystem
from blockplane.model import BlockplaneError
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.planes import Plane, combine, combine_count
from blockplane.stream import StreamReader, codec, open_stream
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.encryption import framing_of
from blockplane.stream.input import ObjectInput
from blockplane.stream.offer import OfferReader
from blockplane.stream.reader import read_header
from blockplane.transfer import (
    ResumeToken,
    TapeForm,
    list_tapes,
    read_tape,
    receive,
    verify_streams,
    verify_tapes,
    write_stream_to_tape,
)
from blockplane.transfer.against import compare_offer
from blockplane.transfer.claims import Claims
from blockplane.transfer.resume import drop_incoming, interrupted_receives
from blockplane.volume import Volume
from faults.recording import MemoryDisk
from faults.world import revived
from fuzzing import mutators, worlds
from fuzzing.mutators import KEY, Hand

#: Larger files are not read: a size is allowed to lie.
MOST_FILE_BYTES = 1 << 24


@dataclass(frozen=True)
class Target:
    """One door.

    run : raises an error of ours, or nothing. seeds : inputs that are right, or nearly. runs : its share of a deep run.
    most_bytes : of an input. collect_every : executions between two collections of garbage: what holds a volume is a
    cycle, and few objects are many bytes.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[bytes, int, Hand], bytes]
    runs: int
    most_bytes: int = 1 << 18
    collect_every: int = 1000

    def refusal(self, data: bytes) -> str | None:
        """What the target says of an input; None where it takes it. Anything but an error of ours comes out."""
        message: str | None = None
        try:
            self.run(data)
        except BlockplaneError as error:
            message = error.message
        assert message is None or message.isprintable(), f"unfit to be shown: {message!r}"
        return message


# --- parsers ------------------------------------------------------------------------------------------------------


def run_header(data: bytes) -> None:
    _, header = framing_of(read_header(ObjectInput(io.BytesIO(data))), [KEY], "input")
    decoded = codec.decode_header(header)
    assert codec.decode_header(decoded.encode()).groups == decoded.groups


def run_plane(data: bytes) -> None:
    """What is taken is a set: counted, cut, combined and written out again, it stays that set."""
    n_blocks = (1, 1000, 65_536, 1 << 20, (1 << 22) + 5, 1 << 32, (1 << 32) + 1, 1 << 40)[data[0] % 8 if data else 0]
    plane = Plane.deserialize(data[1:], n_blocks)
    extents = plane.extents()
    assert int((extents[:, 1] - extents[:, 0]).sum()) == len(plane)
    assert Plane.deserialize(plane.serialize(), n_blocks) == plane
    assert Plane.from_extents(extents, n_blocks) == plane
    half = Plane.from_extents([[n_blocks // 3, n_blocks // 3 + min(n_blocks // 3 + 1, 100_000)]], n_blocks)
    both, without = combine_count([plane], within=half), combine([plane], minus=half)
    assert both + len(without) == len(plane)


def run_stream(data: bytes) -> None:
    """Read to the end, every block verified, as a receive reads it."""
    reader = StreamReader(ObjectInput(io.BytesIO(data)), [KEY])
    stream = reader.read_map()
    claims = Claims(stream.following)
    with closing(arriving(reader, Ring())) as frames:
        for head, _ in frames:
            claims.take(head)
    claims.require_all()
    assert claims.n_blocks == len(stream.following)


def run_offer(data: bytes) -> None:
    """Read to its end, and compared with an image, as who sends against it does."""
    offered = OfferReader(ObjectInput(io.BytesIO(data)))
    n_blocks = sum(len(blocks.vbns) for blocks in offered.blocks())
    assert n_blocks == len(offered.plane)
    image = worlds.offered_image()
    lent = compare_offer(image, io.BytesIO(data))
    assert combine_count([lent.plane], minus=image.plane) == combine_count([lent.plane], minus=offered.plane) == 0


def run_token(data: bytes) -> None:
    token = ResumeToken.decode(data)
    assert token.n_left + token.n_copied == token.n_image
    rest = token.rest_of(Plane.from_extents([[0, 500]], 512))
    assert len(rest) <= 500
    assert ResumeToken.decode(token.encode()) == token


# --- whole streams ------------------------------------------------------------------------------------------------


def run_receive(data: bytes) -> None:
    """Onto a volume that has the base: whole and sound, or as it was."""
    disks = worlds.disks_of(worlds.world().target)
    with worlds.opened(disks) as volume:
        before = volume.committed.pointer
        try:
            receive(io.BytesIO(data), volume, key=KEY)
        except BlockplaneError:
            assert volume.committed.pointer == before
            assert [snapshot.name for snapshot in volume.snapshots] == ["one"]
            if interrupted_receives(volume):
                drop_incoming(volume)
            if zlib.crc32(data) % 16 == 0:
                assert check(volume).problems == []
            raise
        names = [snapshot.name for snapshot in volume.snapshots]
        assert len(names) > 1
        check(volume)  # whatever the files hold: it ends
        look_at(FileSystem(volume))
    with worlds.opened(revived(disks), writable=False) as volume:
        assert [snapshot.name for snapshot in volume.snapshots][-1] in names


@contextlib.contextmanager
def stream_file(data: bytes) -> Iterator[Path]:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".bps") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def run_index(data: bytes) -> None:
    """Read in place: by the trailer and the index, files and all; and verified, which says what is wrong instead."""
    with stream_file(data) as path:
        verify_streams(path, key=KEY)
        with open_stream(path, key=KEY) as chain:
            extents = chain.files[0].map.image.extents()[:64]
            for start, stop in extents.tolist():
                out = np.zeros(min(stop - start, 64) * BLOCK_BYTES, np.uint8)
                with contextlib.suppress(BlockplaneError):
                    chain.read_extents(np.array([[start, start + len(out) // BLOCK_BYTES]], np.int64), out)
            look_at(FileSystem(chain))


def run_tape(data: bytes) -> None:
    """Listed, verified, read in place, restored: what is damaged is named, and the rest is as it was."""
    with stream_file(data) as path:
        errors = []
        for use in (list_tapes, verify_tapes, _in_place_of, _restored):
            try:
                use(path)
            except BlockplaneError as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _in_place_of(path: Path) -> None:
    with open_stream(path) as chain:
        look_at(FileSystem(chain))


def _restored(path: Path) -> None:
    """Onto a volume that has the base: whole and sound, or as it was."""
    with worlds.opened(worlds.disks_of(worlds.world().target)) as volume:
        before = volume.committed.pointer
        with contextlib.suppress(BlockplaneError):
            read_tape(path, volume)
        # an image that came whole stays, whatever is wrong behind it
        has_arrived = [snapshot.name for snapshot in volume.snapshots] != ["one"]
        assert has_arrived or volume.committed.pointer == before
        if has_arrived and zlib.crc32(path.read_bytes()) % 4 == 0:
            assert check(volume).problems == []


def look_at(files: FileSystem) -> None:
    """Read everything that can be reached."""
    for top, _, names in files.walk("/"):
        for name in names:
            path = f"{top.rstrip('/')}/{name}"
            status = files.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size < MOST_FILE_BYTES:
                files.read_bytes(path)
            files.listxattr(path, follow_symlinks=False)


# --- blocks and volumes -------------------------------------------------------------------------------------------


def run_files(data: bytes) -> None:
    """The file system's reader and its check over hostile blocks: of a snapshot, and of a stream that brings it."""
    stream = _disfigured_stream(data)
    if stream is None:
        return
    with stream_file(stream) as path:
        verify_streams(path)
        with open_stream(path) as chain:
            files = FileSystem(chain)
            with contextlib.suppress(BlockplaneError):
                files.check()
            look_at(files)


def _disfigured_stream(data: bytes) -> bytes | None:
    """A stream of a state that the edits went into; None where the engine does not write such a one."""
    disks = worlds.disks_of(worlds.world().source)
    with contextlib.suppress(BlockplaneError), worlds.opened(disks) as volume:
        worlds.disfigure_state(volume, worlds.edits_of(data))
        volume.snapshot("bad")
        with contextlib.suppress(BlockplaneError):
            check(volume)
        with contextlib.suppress(BlockplaneError):
            look_at(FileSystem(volume.get_snapshot("bad")))
        return worlds.sent(volume, "bad")
    return None


def run_volume(data: bytes) -> None:
    """Labels, root records, roots and local trees: opened for reading and checked, then for writing and used."""
    edits = worlds.edits_of(data)
    disks = worlds.disks_of(worlds.world().source)
    local = [edit for edit in edits if edit.where % 8 > 5]
    if local:
        try:
            with worlds.opened(disks) as volume:
                worlds.disfigure_local(volume, local)
        except Exception:  # noqa: BLE001  memory was disfigured, not yet a disk; what reached the disks is judged
            pass
    worlds.disfigure_roots([disk for disk in disks if isinstance(disk, MemoryDisk)], edits)
    contents = [disk.contents() for disk in disks if isinstance(disk, MemoryDisk)]
    with contextlib.suppress(BlockplaneError), worlds.opened(worlds.disks_of(contents), writable=False) as volume:
        _look_everywhere(volume)
    with worlds.opened(worlds.disks_of(contents)) as volume:
        _use(volume)


def _look_everywhere(volume: Volume) -> None:
    with contextlib.suppress(BlockplaneError):
        check(volume)
    with contextlib.suppress(BlockplaneError):
        look_at(FileSystem(volume))
    for snapshot in volume.snapshots:
        with contextlib.suppress(BlockplaneError):
            look_at(FileSystem(snapshot))
    for step in (lambda: volume.space_report(), lambda: volume.positions, lambda: volume.destinations.all()):
        with contextlib.suppress(BlockplaneError, AttributeError):
            step()


def _use(volume: Volume) -> None:
    """What a person does next, each step for itself."""
    files = FileSystem(volume)
    for step in (
        lambda: files.write_bytes("/another", b"x" * 9000), lambda: volume.snapshot("four"),
        lambda: volume.delete_snapshot("one"), lambda: volume.shadow_snapshot("four"), lambda: files.rmtree("/folder"),
        volume.sync, lambda: volume.rollback("four", drop_changes=True), lambda: check(volume),
    ):  # fmt: skip
        with contextlib.suppress(BlockplaneError):
            step()


# --- the table ----------------------------------------------------------------------------------------------------


def _streams() -> list[bytes]:
    made = worlds.world()
    return [*made.steps.values(), made.rest]


def _in_place() -> list[bytes]:
    return list(worlds.world().full.values())


def _tapes() -> list[bytes]:
    """The streams on tape, in records of 64 KiB."""
    made, found = worlds.world(), []
    for stream in (*made.full.values(), *made.steps.values()):
        if codec.is_sealed(stream):
            continue
        with tempfile.TemporaryDirectory() as folder:
            tape = Path(folder) / "a.tap"
            write_stream_to_tape(io.BytesIO(stream), tape, TapeForm(record_size=64 << 10))
            found.append(tape.read_bytes())
    return found


def _headers() -> list[bytes]:
    made = worlds.world()
    streams = [*made.full.values(), *made.steps.values(), made.rest]
    return [stream[: codec.header_length(stream)] for stream in streams]


def _planes() -> list[bytes]:
    shapes = ([], [[0, 1]], [[5, 900]], [[i, i + 1] for i in range(0, 900, 3)])
    small = [
        bytes([1]) + Plane.from_extents(np.array(each, np.int64).reshape(-1, 2), 1000).serialize() for each in shapes
    ]
    wide = Plane.from_extents([[7, 9], [1 << 33, (1 << 33) + 70_000]], 1 << 40).serialize()
    bits = Plane.from_extents([[i, i + 1] for i in range(0, 65_536, 2)], 65_536).serialize()
    return [*small, bytes([7]) + wide, bytes([2]) + bits]


def _edits() -> list[bytes]:
    record = mutators.EDIT.pack
    return [b"", *(record(where, what, 64, 0, 1) for where in range(12) for what in (0, 2, 129))]


TARGETS = {
    target.name: target
    for target in (
        Target("header", run_header, _headers, mutators.mutate_header, 300_000, 1 << 12),
        Target("plane", run_plane, _planes, mutators.mutate_plane, 250_000, 1 << 15),
        Target("offer", run_offer, lambda: [worlds.world().offer], mutators.mutate_offer, 150_000),
        Target("token", run_token, lambda: [worlds.world().token], mutators.mutate_token, 150_000, 1 << 15),
        Target("stream", run_stream, lambda: _streams() + _in_place(), mutators.mutate_stream, 100_000),
        Target("tape", run_tape, _tapes, mutators.mutate_tape, 30_000, collect_every=50),
        Target("index", run_index, _in_place, mutators.mutate_stream, 30_000, collect_every=50),
        Target("receive", run_receive, _streams, mutators.mutate_stream, 30_000, collect_every=50),
        Target("files", run_files, _edits, mutators.mutate_edits, 15_000, 1 << 10, 50),
        Target("volume", run_volume, _edits, mutators.mutate_edits, 15_000, 1 << 10, 50),
    )
}
