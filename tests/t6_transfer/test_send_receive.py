"""Volumes sent and received: every state equal afterwards, by path, pipe and socket; refusals that change nothing."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import socket
import sys
import threading
from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest

from blockplane._native import diskio as kernel
from blockplane.disks.disk import address
from blockplane.image import build, freed_blocks
from blockplane.model import (
    ChecksumError,
    NoSpaceError,
    NoSuchSnapshotError,
    RefusedError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamTruncatedError,
    UsageError,
)
from blockplane.stream import open_stream
from blockplane.stream import sink as sinks
from blockplane.stream.input import ObjectInput
from blockplane.stream.reader import StreamReader
from blockplane.transfer import receive, send
from blockplane.transfer.destination import VolumeDestination
from blockplane.transfer.resume import drop_incoming, interrupted_receives
from blockplane.volume import Volume
from blockplane.volume.check import check
from blockplane.volume.deleting import freed_by
from blockplane.volume.state import State
from streams.volumes import Files, contents, fresh, members


def history(path, rng, **options) -> Volume:
    """A source with june1, june2, june3: files written, rewritten and cut."""
    volume = fresh(path, **options)
    files = Files(volume, rng)
    for number in range(1, 6):
        files.write(number, 0, 60 * number)
    volume.snapshot("june1")
    files.write(2, 10, 20)
    files.write(6, 5, 200)
    volume.snapshot("june2")
    files.punch(5, 100, 250)
    files.write(1, 0, 7)
    volume.snapshot("june3")
    return volume


@pytest.fixture
def source(tmp_path, rng):
    with history(tmp_path / "source", rng) as volume:
        yield volume


def stream_of(volume: Volume, text: str) -> bytes:
    out = io.BytesIO()
    send(build(volume, text), out)
    return out.getvalue()


def assert_same(one: Volume, other: Volume, *names: str) -> None:
    for name in names:
        mine, theirs = one.get_snapshot(name), other.get_snapshot(name)
        assert (mine.id, members(mine.plane)) == (theirs.id, members(theirs.plane))
        assert contents(mine.state) == contents(theirs.state)


def everything(volume: Volume) -> dict[str, object]:
    """All that a volume shows."""
    states = {s.name: contents(s.state) for s in volume.snapshots}
    return {"live": contents(volume.state(None)), **states}


def disk_hashes(path) -> list[str]:
    return [hashlib.sha256(disk.read_bytes()).hexdigest() for disk in sorted((path / "disks").iterdir())]


OTHERS = [
    {"disks": 2, "size": "16M", "parity": 0},
    {"disks": 3, "size": "17M", "parity": 1, "chunk": "512KiB"},
    {"disks": 6, "size": "9M", "parity": 2},
    {"disks": 1, "size": "33M", "chunk": "disk"},
]


@pytest.mark.parametrize("options", OTHERS)
def test_full_and_incremental_onto_another_geometry(tmp_path, source, options):
    full, increment = stream_of(source, "june1"), stream_of(source, "june3 + june2 - june1")
    report = receive(io.BytesIO(full), tmp_path / "copy", **options)
    assert (report.arrived, report.n_blocks) == (("june1",), source.get_snapshot("june1").n_blocks)
    report = receive(io.BytesIO(increment), tmp_path / "copy")
    assert (report.arrived, report.base) == (("june3", "june2"), "june1")
    with Volume.open(tmp_path / "copy") as copy:
        assert_same(source, copy, "june1", "june2", "june3")
        assert contents(copy.state(None)) == contents(source.state("june3"))
        assert check(copy).problems == []
        assert copy.geometry.n_disks == options["disks"]


def test_by_default_the_source_s_geometry(tmp_path, source):
    receive(io.BytesIO(stream_of(source, "june2")), tmp_path / "copy")
    with Volume.open(tmp_path / "copy") as copy:
        assert copy.geometry == source.geometry


def test_an_image_of_an_image(tmp_path, source):
    receive(io.BytesIO(stream_of(source, "june3 + june2 + june1")), tmp_path / "second", disks=3, size="16M")
    with Volume.open(tmp_path / "second") as second:
        receive(io.BytesIO(stream_of(second, "june1")), tmp_path / "third")
        with Volume.open(tmp_path / "third") as third:
            receive(io.BytesIO(stream_of(second, "june3 - june1")), third)
            assert_same(source, third, "june1", "june3")


def test_four_levels(tmp_path, rng):
    source = fresh(tmp_path / "source", size="16M")
    files = Files(source, rng)
    for day in range(1, 10):
        files.write(day, 0, 100)
        files.write(1, 10 * day, 5)
        source.snapshot(f"june{day}")
    full = stream_of(source, "june3 + june2 + june1")
    levels = ["june5 + june4 - june3", "june7 + june6 - june5", "june9 + june8 - june7"]
    for other in (levels, ["june9 + june8 - june3"]):
        copy = tmp_path / f"copy{len(other)}"
        receive(io.BytesIO(full), copy, disks=3, size="40M")
        for text in other:
            receive(io.BytesIO(stream_of(source, text)), copy)
        with Volume.open(copy) as volume:
            names = [f"june{d}" for d in ([1, 2, 3, 8, 9] if len(other) == 1 else range(1, 10))]
            assert [s.name for s in volume.snapshots] == names
            assert_same(source, volume, *names)
    source.close()


def test_a_volume_that_grew(tmp_path, rng):
    source = fresh(tmp_path / "source", size="4M")
    files = Files(source, rng)
    files.write(1, 0, 500)
    source.snapshot("small")
    source.grow(disks=3, size="20M", parity=1, chunk="disk")
    for number in range(2, 12):
        files.write(number, 0, 900)
    source.snapshot("large")
    image = build(source, "large - small")
    assert min(n for n, d in zip(image.blocks_per_disk, range(8), strict=True) if d not in (4, 7)) > 0
    receive(io.BytesIO(stream_of(source, "small")), tmp_path / "same")
    receive(io.BytesIO(stream_of(source, "small + large")), tmp_path / "other", disks=1, size="320M")
    with Volume.open(tmp_path / "same") as same:
        assert same.geometry == source.geometry
        receive(io.BytesIO(stream_of(source, "large - small")), same)
        assert_same(source, same, "small", "large")
        assert check(same).problems == []
    with Volume.open(tmp_path / "other") as other:
        assert_same(source, other, "small", "large")
    source.close()


@pytest.mark.parametrize("stop", [NoSpaceError("no space left", ""), KeyboardInterrupt()])
def test_a_volume_of_two_groups_of_which_one_cannot_be_made_is_not_there(tmp_path, rng, stop):
    source = fresh(tmp_path / "source", size="4M")
    source.grow(disks=2, size="4M")
    Files(source, rng).write(1, 0, 500)
    source.snapshot("s")
    stream = stream_of(source, "s")
    with mock.patch.object(Volume, "grow", side_effect=stop), pytest.raises(type(stop)):
        receive(io.BytesIO(stream), tmp_path / "new" / "copy")
    assert not (tmp_path / "new").exists()
    receive(io.BytesIO(stream), tmp_path / "new" / "copy")
    with Volume.open(tmp_path / "new" / "copy") as copy:
        assert copy.geometry == source.geometry
    source.close()


def through_pipe(volume, text, target):
    read, write = os.pipe()
    sender = threading.Thread(target=lambda: (send(build(volume, text), write), os.close(write)))
    sender.start()
    report = receive(read, target)
    sender.join()
    os.close(read)
    return report


def through_socket(volume, text, target):
    one, other = socket.socketpair()
    sender = threading.Thread(target=lambda: (send(build(volume, text), one), one.close()))
    sender.start()
    report = receive(other, target)
    sender.join()
    other.close()
    return report


def through_file(volume, text, target):
    path = f"{target}.bps"
    send(build(volume, text), path)
    return receive(path, target)


@pytest.mark.parametrize("way", [through_pipe, through_socket, through_file])
def test_ways(tmp_path, source, way):
    way(source, "june1", tmp_path / "copy")
    way(source, "june2 - june1", tmp_path / "copy")
    with Volume.open(tmp_path / "copy") as copy:
        assert_same(source, copy, "june1", "june2")


def test_a_dry_run_says_exactly_what_is_sent(source):
    for text in ("june1", "june3 - june1", "june1..june3"):
        planned = send(build(source, text), None, dry_run=True)
        assert planned.stream_bytes == len(stream_of(source, text))
        assert planned.n_blocks == build(source, text).n_blocks


def test_the_stream_reads_as_the_volume_does(tmp_path, source):
    send(build(source, "june1"), tmp_path / "a.bps")
    send(build(source, "june3 + june2 - june1"), tmp_path / "b.bps")
    for paths in [(tmp_path / "a.bps", tmp_path / "b.bps"), (tmp_path,)]:
        with open_stream(*paths) as chain:
            assert [record.name for record in chain.snapshots] == ["june1", "june2", "june3"]
            assert contents(State.open(chain)) == contents(source.state("june3"))
            for name in ("june1", "june2"):
                assert contents(State.open(chain.at(name))) == contents(source.state(name))


def test_a_chain_with_a_link_missing(tmp_path, source):
    send(build(source, "june2 - june1"), tmp_path / "b.bps")
    with pytest.raises(StreamMismatchError, match="builds on snapshot june1"):
        open_stream(tmp_path / "b.bps")
    (tmp_path / "cut.bps").write_bytes((tmp_path / "b.bps").read_bytes()[:-10])
    with pytest.raises(StreamTruncatedError):
        open_stream(tmp_path / "cut.bps")
    with pytest.raises(StreamError, match=r"no \.bps files"):
        open_stream(tmp_path / "source")


def test_a_file_appears_only_when_whole(tmp_path, source, monkeypatch):
    monkeypatch.setattr(sinks.FdSink, "write_all", raise_no_space)
    with pytest.raises(NoSpaceError):
        send(build(source, "june1"), tmp_path / "a.bps")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def raise_no_space(self, buffers):
    raise NoSpaceError("full")


class AddressesAtTheKernel:
    """The I/O kernel, noting which addresses preadv fills and which writev takes."""

    def __init__(self):
        self.read, self.written = set(), set()

    def __getattr__(self, name):
        return getattr(kernel, name)

    def read_plan(self, fd, blocks, n_blocks, buffer, positions, *rest):
        start = address(buffer)
        for position, count in zip(positions.tolist(), n_blocks.tolist(), strict=True):
            self.read.update(start + 4096 * i for i in range(position, position + count))
        return kernel.read_plan(fd, blocks, n_blocks, buffer, positions, *rest)

    def writev_all(self, fd, buffers):
        for buffer in buffers:
            if isinstance(buffer, memoryview):
                start = address(np.frombuffer(buffer, np.uint8))
                self.written.update(range(start, start + len(buffer), 4096))
        return kernel.writev_all(fd, buffers)


@pytest.mark.parametrize("sink", ["path", "pipe", "file", "socket"])
def test_writev_gets_the_addresses_that_preadv_filled(source, tmp_path, monkeypatch, sink):
    """At the kernels' own doors: nothing between disk and output copies a block."""
    image = build(source, "june3 + june1")
    seen = AddressesAtTheKernel()
    monkeypatch.setattr(sys.modules["blockplane.disks.disk"], "diskio", seen)
    with ExitStack() as stack:
        send(image, a_sink(sink, tmp_path, stack))
    assert len(seen.written) == image.n_blocks
    assert seen.written <= seen.read


def a_sink(kind, tmp_path, stack):
    """A sink of a kind; what a pipe or socket brings is read and thrown away."""
    if kind == "path":
        return tmp_path / "a.bps"
    if kind == "file":
        return stack.enter_context(open(tmp_path / "a.bps", "wb"))
    if kind == "pipe":
        reader, writer = os.pipe()
        close = functools.partial(os.close, writer)
    else:
        writer, far = socket.socketpair()
        reader, close = far.detach(), writer.close
    thread = threading.Thread(target=lambda: [*iter(lambda: os.read(reader, 1 << 20), b""), os.close(reader)])
    thread.start()
    stack.callback(thread.join)
    stack.callback(close)
    return writer


def test_bytes_read_are_those_of_the_image_and_what_planning_says(source):
    before = source.array.counters().read_bytes
    report = send(build(source, "june3 - june1"), io.BytesIO())
    read = source.array.counters().read_bytes - before
    assert report.n_bytes <= read <= 1.05 * report.n_bytes + 4096 * (report.planning_blocks + 64)


def test_a_snapshot_deleted_after_planning(tmp_path, source):
    image = build(source, "june2")
    source.delete_snapshot("june2")
    with pytest.raises(NoSuchSnapshotError, match="deleted meanwhile"):
        send(image, tmp_path / "a.bps")


def test_a_bad_block_at_the_source_stops_the_send(tmp_path, rng):
    source = history(tmp_path / "source", rng)
    image = build(source, "june1")
    vbn = int(image.plane.select(200))
    disk, dbn = (int(part[0]) for part in source.geometry.to_disk(np.array([vbn])))
    path = source.array.disks[disk].path
    with open(path, "r+b") as file:
        file.seek((dbn + 16) * 4096 + 77)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ChecksumError, match=f"block {vbn} on {path}"):
        send(image, tmp_path / "a.bps")
    assert not (tmp_path / "a.bps").exists()
    source.close()


# --- a destination with a life of its own ---


def test_a_destination_keeps_what_the_source_dropped_and_reused(tmp_path, rng):
    # law 4: the source's new blocks have the numbers of blocks that a snapshot here still holds
    source = history(tmp_path / "source", rng, size="4M")
    receive(io.BytesIO(stream_of(source, "june3 + june2 + june1")), tmp_path / "copy", disks=3, size="16M")
    kept = everything(source)
    source.delete_snapshot("june1", "june2")
    files = Files(source, rng)
    files.reload()
    for number in (2, 3, 4):
        files.punch(number, 0, 200)
    source.sync()
    for day in (4, 5, 6):
        files.write(2, 0, 250)
        files.write(20 + day, 0, 150)
        source.snapshot(f"june{day}")
    with Volume.open(tmp_path / "copy") as copy:
        receive(io.BytesIO(stream_of(source, "june4 - june3")), copy)
        receive(io.BytesIO(stream_of(source, "june6 + june5 - june4")), copy)
        assert_same(source, copy, "june3", "june4", "june5", "june6")
        for name in ("june1", "june2"):
            assert contents(copy.state(name)) == kept[name]
        assert any(not s.state.placemap.is_empty for s in copy.snapshots)
        for gone in (["june1"], ["june1", "june3"], ["june2", "june4", "june5"]):
            assert freed_blocks(copy, gone) == freed_by(copy, gone)
        # and on from there: full, with older ones, and an increment over places that differ
        receive(io.BytesIO(stream_of(copy, "june3")), tmp_path / "third", disks=2, size="16M", parity=0)
        increment = build(copy, "june6 + june4 - june3")
        assert sum(increment.blocks_per_disk) == increment.n_blocks
        receive(io.BytesIO(stream_of(copy, "june6 + june4 - june3")), tmp_path / "third")
        with Volume.open(tmp_path / "third") as third:
            assert_same(source, third, "june3", "june4", "june6")
            assert check(third).problems == []
    with Volume.open(tmp_path / "copy") as copy:
        assert check(copy).problems == []
    source.close()


def test_the_old_state_is_readable_until_the_new_one_is_committed(tmp_path, source):
    copy = fresh(tmp_path / "copy", disks=3, size="16M")
    receive(io.BytesIO(stream_of(source, "june1")), copy)
    before, seen = everything(copy), []

    def look(event):
        if event.phase == "blocks":
            seen.append(everything(copy) == before)

    receive(io.BytesIO(stream_of(source, "june3 - june1")), copy, progress=look)
    assert (len(seen) > 0, all(seen)) == (True, True)
    assert_same(source, copy, "june1", "june3")
    copy.close()


# --- refusals ---


def test_what_is_there_already_is_not_taken_again(tmp_path, source):
    full = stream_of(source, "june1")
    receive(io.BytesIO(full), tmp_path / "copy")
    before = disk_hashes(tmp_path / "copy")
    report = receive(io.BytesIO(full), tmp_path / "copy")
    assert (report.already_there, report.n_blocks) == (True, 0)
    with Volume.open(tmp_path / "copy") as copy:
        assert [s.name for s in copy.snapshots] == ["june1"]
    assert len(before) == 5


def test_a_full_stream_onto_content_is_refused(tmp_path, source, rng):
    full = stream_of(source, "june1")
    with fresh(tmp_path / "other") as other:
        files = Files(other, rng)
        files.write(1, 0, 30)
        other.snapshot("mine")
        before = everything(other)
        with pytest.raises(RefusedError, match="has content"):
            receive(io.BytesIO(full), other)
        assert everything(other) == before
        receive(io.BytesIO(full), other, discard=True)
        assert contents(other.state("mine")) == before["mine"]
        assert contents(other.state(None)) == contents(source.state("june1"))


def test_a_volume_never_written_to_is_taken(tmp_path, source):
    with fresh(tmp_path / "empty", disks=2, size="20M", parity=0) as empty:
        receive(io.BytesIO(stream_of(source, "june2")), empty)
        assert_same(source, empty, "june2")
        assert empty.geometry.n_disks == 2


def test_an_increment_without_its_base_is_refused(tmp_path, source):
    increment = stream_of(source, "june3 - june2")
    with pytest.raises(StreamMismatchError, match="builds on snapshot june2"):
        receive(io.BytesIO(increment), tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    with pytest.raises(StreamMismatchError, match="builds on snapshot june2") as caught:
        receive(io.BytesIO(increment), tmp_path / "copy")
    assert caught.value.hint == "take june3 - june1"


def test_local_changes_are_not_lost_unasked(tmp_path, source, rng):
    increment = stream_of(source, "june2 - june1")
    with fresh(tmp_path / "copy", size="16M") as copy:
        receive(io.BytesIO(stream_of(source, "june1")), copy)
        files = Files(copy, rng)
        files.reload()
        files.write(9, 0, 12)
        copy.sync()
        before = everything(copy)
        with pytest.raises(RefusedError, match="was written to since june1"):
            receive(io.BytesIO(increment), copy)
        assert everything(copy) == before
        receive(io.BytesIO(increment), copy, discard=True)
        assert contents(copy.state(None)) == contents(source.state("june2"))


@pytest.mark.parametrize("back_to", ["june1", "june2"])
def test_what_a_rollback_left_alone_is_replaced(tmp_path, source, back_to):
    """Rolled back to a snapshot that the top descends from, and nothing written: that snapshot keeps all there is."""
    with fresh(tmp_path / "copy", size="16M") as copy:
        receive(io.BytesIO(stream_of(source, "june1")), copy)
        receive(io.BytesIO(stream_of(source, "june2 - june1")), copy)
        copy.rollback(back_to)
        before = everything(copy)
        receive(io.BytesIO(stream_of(source, "june3 - june2")), copy)
        after = everything(copy)
        assert {name: after[name] for name in ("june1", "june2")} == {name: before[name] for name in ("june1", "june2")}
        assert after["live"] == contents(source.state("june3"))
        assert check(copy).problems == []


def test_what_a_rollback_left_and_no_regular_snapshot_keeps_is_not_replaced(tmp_path, source, rng):
    """Written to since; kept by what is only a shadow; kept by a snapshot that is no part of the top's history."""
    increment = stream_of(source, "june3 - june2")
    with fresh(tmp_path / "copy", size="16M") as copy:
        receive(io.BytesIO(stream_of(source, "june1")), copy)
        receive(io.BytesIO(stream_of(source, "june2 - june1")), copy)
        copy.rollback("june1")
        files = Files(copy, rng)
        files.reload()
        files.write(9, 0, 12)
        copy.sync()
        refused_unchanged(copy, increment)
        copy.snapshot("mine")
        refused_unchanged(copy, increment, "stands at mine, which is of another branch than june3")
        copy.rollback("june1")
        copy.shadow_snapshot("june1")
        refused_unchanged(copy, increment)


def test_what_only_a_snapshot_keeps_that_is_being_deleted_is_not_replaced(tmp_path, source):
    increment = stream_of(source, "june3 - june2")
    with fresh(tmp_path / "copy", size="16M") as copy:
        receive(io.BytesIO(stream_of(source, "june1")), copy)
        receive(io.BytesIO(stream_of(source, "june2 - june1")), copy)
        copy.rollback("june1")
        copy.hold_snapshot("june1", "me")
        with pytest.raises(RefusedError, match="went meanwhile"):
            receive(io.BytesIO(increment), copy, progress=lambda _: copy.delete_snapshot("june1", defer=True))
        refused_unchanged(copy, increment)


def refused_unchanged(copy: Volume, stream: bytes, why: str = "was written to since june2, or rolled back") -> None:
    before = contents(copy.state(None))
    with pytest.raises(RefusedError, match=why):
        receive(io.BytesIO(stream), copy)
    assert contents(copy.state(None)) == before


def test_the_snapshot_that_keeps_it_stays_meanwhile(tmp_path, source):
    """Nobody deletes it while the stream comes; one that went before is missed."""
    with fresh(tmp_path / "copy", size="16M") as copy:
        receive(io.BytesIO(stream_of(source, "june1")), copy)
        receive(io.BytesIO(stream_of(source, "june2 - june1")), copy)
        copy.rollback("june1")
        stream = StreamReader(ObjectInput(io.BytesIO(stream_of(source, "june3 - june2")))).read_map()
        destination = VolumeDestination(copy)
        destination.accept(stream, discard=False)
        with destination.landing(stream) as landing:
            with pytest.raises(RefusedError, match="is being read"):
                copy.delete_snapshot("june1")
            landing.abort()
        destination.accept(stream, discard=False)
        copy.delete_snapshot("june1")
        with pytest.raises(RefusedError, match="went meanwhile"), destination.landing(stream):
            pass


def test_another_snapshot_of_the_same_name(tmp_path, source, rng):
    increment = stream_of(source, "june2 - june1")
    with fresh(tmp_path / "copy", size="16M") as copy:
        receive(io.BytesIO(stream_of(source, "june1")), copy)
        copy.snapshot("june2")
        with pytest.raises(RefusedError, match="another one of that name"):
            receive(io.BytesIO(increment), copy)
        copy.rename_snapshot("june2", "mine")
        receive(io.BytesIO(increment), copy)
        assert {s.name for s in copy.snapshots} == {"june1", "june2", "mine"}


def test_a_snapshot_that_was_renamed_here_does_not_stand_in_its_own_way(tmp_path, source):
    send(build(source, "june1"), tmp_path / "full.bps")
    receive(tmp_path / "full.bps", tmp_path / "copy")
    with Volume.open(tmp_path / "copy") as copy:
        copy.rename_snapshot("june1", "old")
        copy.snapshot("june1")
    send(build(source, "june3 + june2 + june1"), tmp_path / "all.bps")
    receive(tmp_path / "all.bps", tmp_path / "copy", discard=True)
    with Volume.open(tmp_path / "copy", writable=False) as copy:
        assert [snapshot.name for snapshot in copy.snapshots] == ["old", "june1", "june2", "june3"]
        assert check(copy).problems == []


def test_a_destination_too_small(tmp_path, source):
    full = stream_of(source, "june1..june3")
    with pytest.raises((NoSpaceError, RefusedError, UsageError)):
        receive(io.BytesIO(full), tmp_path / "small", disks=1, size="2M")
    assert not (tmp_path / "small").exists()


def test_disk_options_for_a_volume_that_is_there(tmp_path, source):
    receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    with pytest.raises(UsageError, match="there already"):
        receive(io.BytesIO(stream_of(source, "june2 - june1")), tmp_path / "copy", disks=3)


@pytest.mark.parametrize("existed", [False, True])
def test_a_stream_cut_off_early_leaves_no_volume_behind(tmp_path, source, existed):
    full = stream_of(source, "june1")[: 1 << 20]
    target = tmp_path / "new"
    if existed:
        target.mkdir()
    with pytest.raises(StreamTruncatedError):
        receive(io.BytesIO(full[: len(full) // 2]), target)
    assert (target.exists(), list(target.iterdir()) if existed else []) == (existed, [])


def test_cut_and_flipped_streams_leave_a_volume_as_it_was(tmp_path, source, rng):
    increment = stream_of(source, "june3 + june2 - june1")
    with fresh(tmp_path / "copy", disks=3, size="16M") as copy:
        receive(io.BytesIO(stream_of(source, "june1")), copy)
        before = everything(copy)
        used = copy.used_blocks
        cut = [error_of(increment[:place], copy) for place in rng.integers(0, len(increment), 200).tolist()]
        if interrupted_receives(copy):  # what came whole would not be looked at again
            drop_incoming(copy)
        flipped = []
        for place in rng.integers(0, len(increment), 1000).tolist():
            bad = bytearray(increment)
            bad[place] ^= 1 << int(rng.integers(8))
            flipped.append(error_of(bad, copy))
        assert (everything(copy) == before, copy.used_blocks) == (True, used)
        assert (set(cut), set(flipped) <= {StreamDamagedError, StreamError}) == ({StreamTruncatedError}, True)
        receive(io.BytesIO(increment), copy)
        assert_same(source, copy, "june1", "june2", "june3")
        assert check(copy).problems == []


def error_of(stream, target) -> type[StreamError]:
    with pytest.raises(StreamError) as caught:
        receive(io.BytesIO(stream), target)
    return type(caught.value)


def test_removed_by_hand(tmp_path, source):
    receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
