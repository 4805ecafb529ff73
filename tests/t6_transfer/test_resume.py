"""Transfers that are interrupted and go on: cut streams, tokens, half-written files; in one process."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import random
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import blockplane as bp
from blockplane.image.extents import numbers_in
from blockplane.model.errors import (
    ChecksumError,
    DiskMissingError,
    RefusedError,
    SnapshotExistsError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamTruncatedError,
    UsageError,
    VolumeInUseError,
)
from blockplane.stream import folder
from blockplane.stream.input import ObjectInput
from blockplane.stream.partial import read_partial
from blockplane.stream.reader import StreamReader
from blockplane.stream.stored import OneFile
from blockplane.transfer import targets
from blockplane.transfer.imagesending import ImageSending
from blockplane.volume import making
from blockplane.volume.landed import LandedBlocks
from equality import differences, volume_tree

MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume with two snapshots, 12 MiB and 7 MiB of change."""
    root = tmp_path_factory.mktemp("source")
    random_bytes = random.Random(11).randbytes
    with bp.Volume.create(root / "pool", disks=5, size="40M", parity=1) as volume:
        files = bp.FileSystem(volume)
        for i in range(6):
            files.write_bytes(f"/f{i}", random_bytes(2 * MIB))
        volume.snapshot("june1")
        for i in range(3):
            files.write_bytes(f"/f{i}", random_bytes(2 * MIB + i))
        files.unlink("/f5")
        files.write_bytes("/new", random_bytes(MIB))
        volume.snapshot("june2")
        yield volume


@pytest.fixture(scope="module")
def streams(source):
    """By expression, the whole stream of each image."""
    return {text: stream_of(source, text) for text in ("june1", "june2 - june1")}


def stream_of(volume, text, **options) -> bytes:
    sink = io.BytesIO()
    bp.send(volume.image(text), sink, **options)
    return sink.getvalue()


def whole_frames(stream: bytes) -> list[tuple[int, np.ndarray]]:
    """Of each data frame: the offset of its end, and its VBNs."""
    reader, ends = StreamReader(ObjectInput(io.BytesIO(stream))), []
    reader.read_map()
    while (head := reader.next_data()) is not None:
        reader.skip_payload()
        ends.append((reader.n_bytes, numbers_in(head.extents())))
    return ends


def received_before(stream: bytes, n_bytes: int) -> set[int]:
    return {int(vbn) for end, vbns in whole_frames(stream) if end <= n_bytes for vbn in vbns}


def cut_into(target, stream: bytes, n_bytes: int, **options) -> StreamTruncatedError:
    with pytest.raises(StreamTruncatedError) as caught:
        bp.receive(io.BytesIO(stream[:n_bytes]), target, **options)
    return caught.value


def tree_of(volume, snapshot: str):
    return volume_tree(bp.FileSystem(volume.get_snapshot(snapshot)))


def require_equal(source, path: Path, snapshot: str) -> None:
    with bp.Volume.open(path, writable=False) as volume:
        report = bp.check(volume)
        assert (report.ok, report.problems) == (True, [])
        assert bp.interrupted_receives(volume) == []
        mine, theirs = volume_tree(bp.FileSystem(volume.get_snapshot(snapshot))), tree_of(source, snapshot)
        assert differences(mine, theirs) == []
    assert sorted(os.listdir(path)) in (["disks", "lock", "volume.toml"], ["disks", "volume.toml"])


GEOMETRIES = {
    "the same": {},
    "chunk is the disk": {"disks": 3, "size": "100M", "chunk": "disk"},
    "one": {"disks": 1, "size": "200M"},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_cut_receive_goes_on_with_a_token(source, streams, tmp_path, geometry, rng):
    """Two cuts of each image, the rest of the rest too: what was whole does not travel again."""
    for text, stream in streams.items():
        top = text.split()[0]
        options = GEOMETRIES[geometry] if top == "june1" else {}
        first, second = sorted(rng.integers(len(stream) // 4, len(stream) - 5000, 2).tolist())
        error = cut_into(tmp_path / "copy", stream, first, **options)
        copied = received_before(stream, first)
        assert f"{len(copied)} of " in error.message
        with bp.Volume.open(tmp_path / "copy") as volume:
            token = bp.resume_token(volume)
        assert {int(v) for v in numbers_in(token.copied.extents())} == copied
        rest = stream_of(source, text, resume=bp.ResumeToken.decode(token.encode()))
        assert len(rest) <= len(stream) - len(copied) * 4096 + 65536
        again = int(len(rest) * ((second - first) / (len(stream) - first)))
        cut_into(tmp_path / "copy", rest, again)
        with bp.Volume.open(tmp_path / "copy") as volume:
            token = bp.resume_token(volume)
        both = copied | received_before(rest, again)
        assert {int(v) for v in numbers_in(token.copied.extents())} == both
        last = stream_of(source, text, resume=token)
        report = bp.receive(io.BytesIO(last), tmp_path / "copy")
        assert report.n_blocks == token.n_left == source.image(text).n_blocks - len(both)
        require_equal(source, tmp_path / "copy", top)


def test_a_cut_receive_goes_on_with_the_whole_stream(source, streams, tmp_path):
    stream = streams["june1"]
    cut_into(tmp_path / "copy", stream, len(stream) // 2)
    (tmp_path / "june1.bps").write_bytes(stream)
    bp.receive(tmp_path / "june1.bps", tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june1")


@pytest.mark.parametrize("second", [ChecksumError("the block at place 9 is bad", 9), KeyboardInterrupt()], ids=repr)
def test_a_receive_of_which_nothing_could_be_kept_is_not_under_way_for_ever(source, streams, tmp_path, second):
    """The error that ended it is told, and the other with it; the volume takes the next one."""
    stream, told = streams["june1"], StreamTruncatedError if isinstance(second, ChecksumError) else KeyboardInterrupt
    with bp.Volume.create(tmp_path / "copy", disks=5, size="40M", parity=1) as volume:
        n_available = volume.available_blocks
        with mock.patch.object(LandedBlocks, "suspend", side_effect=second), pytest.raises(told) as caught:
            bp.receive(io.BytesIO(stream[: len(stream) // 2]), volume)
        if isinstance(second, ChecksumError):
            assert "; what landed last could not be noted: the block at place 9 is bad" in caught.value.message
        assert not volume.incoming.is_running
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("landing")] == []
        assert volume.available_blocks == n_available
        bp.receive(io.BytesIO(stream), volume)
    require_equal(source, tmp_path / "copy", "june1")


def test_a_stream_sent_again_is_the_same_image(source, streams, tmp_path):
    """Another stream of the same snapshots has the same image id: what came of the one counts for the other."""
    cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) // 2)
    other = stream_of(source, "june1", compress="zstd", order="tape")
    bp.receive(io.BytesIO(other), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june1")


def test_the_volume_can_be_used_while_an_increment_is_incomplete(source, streams, tmp_path):
    """What is incoming is reserved: a snapshot, a full check and deletions leave it as it is."""
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    cut_into(tmp_path / "copy", streams["june2 - june1"], len(streams["june2 - june1"]) // 2)
    with bp.Volume.open(tmp_path / "copy") as volume:
        volume.snapshot("mine")
        volume.delete_snapshot("mine")
        for _ in range(4):
            volume.commit(force=True)
        assert bp.check(volume).problems == []
        used = volume.available_blocks
        n_image = bp.interrupted_receives(volume)[0].n_image
        assert volume.incoming.n_blocks == n_image
        assert used + n_image <= volume.n_blocks
    bp.receive(io.BytesIO(streams["june2 - june1"]), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june2")


def settled_room(path: Path) -> int:
    """The blocks available when nothing is pending any more."""
    with bp.Volume.open(path) as volume:
        for _ in range(4):
            volume.commit(force=True)
        return volume.available_blocks


class Meanwhile(io.BytesIO):
    """A stream in the midst of which something is done."""

    def __init__(self, stream: bytes, do) -> None:
        super().__init__(stream)
        self._do = do

    def read(self, n_bytes: int | None = -1) -> bytes:
        if self._do is not None and self.tell() > MIB:
            do, self._do = self._do, None
            do()
        return super().read(n_bytes)

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("what", ["pointer", "stored image", "snapshot"])
def test_a_name_that_is_given_away_meanwhile_is_refused_and_what_came_is_kept(source, streams, tmp_path, what):
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        take, free = {
            "pointer": (lambda: copy.move_pointer("june2", "june1"), lambda: copy.delete_pointer("june2")),
            "stored image": (lambda: copy.save_image("june2", "june1"), lambda: copy.delete_image("june2")),
            "snapshot": (lambda: copy.snapshot("june2"), lambda: copy.delete_snapshot("june2")),
        }[what]
        with pytest.raises(SnapshotExistsError, match=r"brings a snapshot named 'june2'.* are kept in"):
            bp.receive(Meanwhile(streams["june2 - june1"], take), copy)
        (kept,) = bp.interrupted_receives(copy)
        assert (kept.top_name, kept.n_landed) == ("june2", kept.n_image)
        with pytest.raises(RefusedError, match="brings a snapshot june2"):
            bp.receive(io.BytesIO(streams["june2 - june1"]), copy)
        free()
        bp.receive(io.BytesIO(streams["june2 - june1"]), copy)
    require_equal(source, tmp_path / "copy", "june2")


def test_giving_up_frees_what_was_reserved(source, streams, tmp_path):
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    before = settled_room(tmp_path / "copy")
    cut_into(tmp_path / "copy", streams["june2 - june1"], len(streams["june2 - june1"]) // 2)
    n_image = source.image("june2 - june1").n_blocks
    assert bp.abort_receive(tmp_path / "copy") == n_image
    with bp.Volume.open(tmp_path / "copy") as volume:
        assert bp.interrupted_receives(volume) == []
        assert bp.check(volume).problems == []
    assert settled_room(tmp_path / "copy") == before
    with pytest.raises(RefusedError, match="no receive"):
        bp.abort_receive(tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june1")


def test_giving_up_removes_a_volume_that_the_receive_made(streams, tmp_path):
    cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) // 2)
    assert (tmp_path / "copy").is_dir()
    bp.abort_receive(tmp_path / "copy")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_does_not_open_once_costs_no_volume_whose_receive_was_killed(
    source, streams, tmp_path, monkeypatch
):
    """The receive was at its end but for the mark, and the next one has no descriptor left for a disk."""
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    making.mark(tmp_path / "copy")
    opened, full = os.open, [True]

    def open_(path, *how, **more):
        if str(path).endswith("disks/1") and full:
            raise OSError(full.pop() and errno.EMFILE, "Too many open files")
        return opened(path, *how, **more)

    monkeypatch.setattr(os, "open", open_)
    with pytest.raises(DiskMissingError, match="Too many open files"):
        bp.receive(io.BytesIO(streams["june2 - june1"]), tmp_path / "copy")
    bp.receive(io.BytesIO(streams["june2 - june1"]), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june2")


def test_who_writes_while_a_volume_is_given_up_keeps_it(streams, tmp_path, monkeypatch):
    cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) // 2)
    remove_made = targets.remove_made

    def and_then(directory, *rest):
        with bp.Volume.open(directory) as volume:
            volume.snapshot("precious")
        return remove_made(directory, *rest)

    monkeypatch.setattr(targets, "remove_made", and_then)
    bp.abort_receive(tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy", writable=False) as volume:
        assert [snapshot.name for snapshot in volume.snapshots] == ["precious"]


def test_a_receive_that_fails_keeps_what_others_put_into_the_volume_it_made(streams, tmp_path):
    opened = []

    @contextmanager
    def around(volume):
        opened.append(volume)
        yield

    def progress(event):
        if event.phase == "blocks" and not opened[0].was_written:
            bp.FileSystem(opened[0]).write_bytes("/thesis", b"years of work")
            opened[0].sync()

    stream, opening = io.BytesIO(streams["june1"]), bp.Opening(bp.Volume, around)
    with pytest.raises(RefusedError, match="was written to while it received"):
        bp.receive(stream, tmp_path / "copy", progress=progress, opening=opening)
    with bp.Volume.open(tmp_path / "copy", writable=False) as volume:
        assert bp.FileSystem(volume).read_bytes("/thesis") == b"years of work"
        assert bp.check(volume).problems == []


def test_nobody_gets_a_volume_that_is_being_removed(streams, tmp_path, monkeypatch):
    rmtree = making.shutil.rmtree

    def and_then(folder, **how):
        with pytest.raises(VolumeInUseError):
            bp.Volume.open(Path(folder).parent)
        rmtree(folder, **how)

    monkeypatch.setattr(making.shutil, "rmtree", and_then)
    cut_into(tmp_path / "copy", streams["june1"], whole_frames(streams["june1"])[0][0] - 1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("goes_on", ["", "killed", "failed", "another"])
def test_giving_up_leaves_a_folder_that_was_there(source, streams, tmp_path, goes_on):
    """Also after a receive that was killed before it had anything, one that was refused, and another image's."""
    path, half = tmp_path / "mine", len(streams["june1"]) // 2
    path.mkdir(mode=0o750)
    inode = path.stat().st_ino
    if goes_on == "killed":
        making.mark(path)
    cut_into(path, streams["june1"], 100 if goes_on == "failed" else half)
    if goes_on == "another":
        with bp.Volume.open(path) as volume:
            token = bp.resume_token(volume)
        newer = stream_of(source, "june2", resume=token)
        cut_into(path, newer, len(newer) * 3 // 4)
    elif goes_on == "failed":
        cut_into(path, streams["june1"], half)
    bp.abort_receive(path)
    assert (os.listdir(path), path.stat().st_ino) == ([], inode)


BEGUN = {
    "numbers": {"disks": 4, "size": "20M", "parity": 1, "chunk": "512K"},
    "names": {"disks": ["x", "y"], "size": "40M"},
    "a size": {"size": "20M"},
    "none": {},
}


@pytest.mark.parametrize("begun", BEGUN)
def test_a_half_made_volume_takes_its_own_disk_options_and_no_others(streams, tmp_path, begun):
    options = dict(BEGUN[begun])
    if begun == "names":
        options["disks"] = [str(tmp_path / name) for name in options["disks"]]
    cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) // 2, **options)
    others = [{"disks": 6}, {"disks": 2, "size": "100M"}, {"size": "64M"}, {"chunk": "1M"}]
    others += [{"disks": 5, "parity": 2}, {"disks": [str(tmp_path / "x"), str(tmp_path / "z")], "size": "40M"}]
    for other in others:
        with pytest.raises(UsageError, match="with other disks") as refused:
            bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy", **other)
        assert "--abort" in refused.value.hint
    for some in ({name: options[name]} for name in options if name != "disks"):
        cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) * 2 // 3, **some)
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy", **options)
    with bp.Volume.open(tmp_path / "copy", writable=False) as volume:
        assert ([snapshot.name for snapshot in volume.snapshots], bp.check(volume).problems) == (["june1"], [])


def test_little_of_a_first_image_leaves_nothing(streams, tmp_path):
    """Below a mebibyte a volume made for it is not worth finding there later; above, it stays."""
    ends = [end for end, _ in whole_frames(streams["june1"])]
    cut_into(tmp_path / "copy", streams["june1"], ends[0] - 1)
    assert os.listdir(tmp_path) == []
    cut_into(tmp_path / "copy", streams["june1"], ends[1])
    assert os.listdir(tmp_path) == ["copy"]


def test_damage_leaves_nothing(streams, tmp_path):
    """What a damaged stream brought is given up: nobody knows what else is wrong with it."""
    stream = bytearray(streams["june1"])
    stream[len(stream) // 2] ^= 1
    with pytest.raises(StreamDamagedError):
        bp.receive(io.BytesIO(bytes(stream)), tmp_path / "copy")
    assert os.listdir(tmp_path) == []


def test_the_rest_goes_nowhere_but_to_its_first_part(source, streams, tmp_path):
    cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) // 2)
    with bp.Volume.open(tmp_path / "copy") as volume:
        token = bp.resume_token(volume)
    rest = stream_of(source, "june1", resume=token)
    with pytest.raises(StreamMismatchError, match="rest of an interrupted transfer"):
        bp.receive(io.BytesIO(rest), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (tmp_path / "rest.bps").write_bytes(rest)
    with pytest.raises(StreamError, match="rest of an interrupted transfer"):
        bp.open_stream(tmp_path / "rest.bps")
    bp.abort_receive(tmp_path / "copy")
    cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) // 4)
    with pytest.raises(StreamMismatchError, match="blocks of its first part are not in"):
        bp.receive(tmp_path / "rest.bps", tmp_path / "copy")


def test_tokens_of_all_kinds_of_bad(streams, tmp_path, rng):
    cut_into(tmp_path / "copy", streams["june1"], len(streams["june1"]) // 2)
    with bp.Volume.open(tmp_path / "copy") as volume:
        raw = bp.resume_token(volume).encode()
    for length in range(len(raw)):
        with pytest.raises(StreamError):
            bp.ResumeToken.decode(raw[:length])
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(StreamError):
            bp.ResumeToken.decode(bytes(bad))


class BreakError(Exception):
    """Ends a send in its middle."""


def broken_send(volume, text: str, path: Path, at: float, **options) -> None:
    """A send whose progress callback fails after a share of the image."""

    def progress(event):
        if event.phase == "blocks" and event.done_bytes >= at * event.total_bytes:
            raise BreakError

    with pytest.raises(BreakError):
        bp.send(volume.image(text), path, progress=progress, **options)


@pytest.mark.parametrize("compress", [None, "zstd"])
@pytest.mark.parametrize("order", ["disk", "tape"])
@pytest.mark.parametrize("locations", ["explicit", "implicit"])
def test_a_half_written_file_is_gone_on_with(source, tmp_path, compress, order, locations, rng, monkeypatch):
    """Broken off twice, torn at the end by a crash: the file in the end is one whole stream, like any."""
    path, partial = tmp_path / "june1.bps", tmp_path / "june1.bps.partial"
    options = {"compress": compress, "order": order, "locations": locations}
    small = 1 << 9
    monkeypatch.setattr(ImageSending.__init__, "__defaults__", ("disk", 512, *ImageSending.__init__.__defaults__[2:]))
    broken_send(source, "june1", path, 0.6, **options)
    assert (path.exists(), partial.stat().st_size > MIB) == (False, True)
    with partial.open("r+b") as file:  # what a power cut leaves
        file.truncate(partial.stat().st_size - int(rng.integers(small, 300_000)))
        file.seek(0, os.SEEK_END)
        file.write(bytes(70_000))
    with partial.open("rb") as file:
        found = read_partial(OneFile(file.fileno(), "it", owned=False))
        n_there = len(found.copied)
        found.written.index.close()
    assert locations == "explicit" or n_there % 512 == 0
    dry = bp.send(source.image("june1"), path, dry_run=True, resume=True, order=order, locations=locations)
    assert dry.n_blocks_before == n_there
    n_image = source.image("june1").n_blocks
    report = bp.send(source.image("june1"), path, resume=True, **options)
    assert (report.n_blocks_before, report.n_blocks) == (n_there, n_image - n_there)
    assert 0 < n_there < n_image
    assert (path.exists(), partial.exists()) == (True, False)
    assert bp.verify_streams(path).problems == []
    bp.receive(path, tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june1")
    with bp.open_stream(path) as chain:
        assert differences(volume_tree(bp.FileSystem(chain)), tree_of(source, "june1")) == []


def test_without_locations_the_order_must_be_the_same(source, tmp_path):
    path, partial = tmp_path / "x.bps", tmp_path / "x.bps.partial"
    broken_send(source, "june1", path, 0.8, locations="implicit", order="tape")
    before = partial.read_bytes()
    for options in ({}, {"order": "tape"}, {"locations": "implicit"}):
        with pytest.raises(RefusedError, match="in tape order, without locations"):
            bp.send(source.image("june1"), path, resume=True, **options)
    assert partial.read_bytes() == before
    bp.send(source.image("june1"), path, resume=True, locations="implicit", order="tape")
    assert bp.verify_streams(path).ok


@pytest.mark.parametrize("options", [{}, {"order": "tape"}, {"locations": "implicit"}])
def test_without_locations_nothing_goes_on_after_the_volume_grew(tmp_path, options):
    """No other option would help, so that none is named."""
    path, random_bytes = tmp_path / "x.bps", random.Random(12).randbytes
    with bp.Volume.create(tmp_path / "pool", disks=2, size="20M") as volume:
        bp.FileSystem(volume).write_bytes("/f", random_bytes(6 * MIB))
        volume.snapshot("june1")
        broken_send(volume, "june1", path, 0.8, locations="implicit")
        volume.grow(disks=3, size="20M")
        with pytest.raises(RefusedError, match="RAID groups that are others by now") as refusal:
            bp.send(volume.image("june1"), path, resume=True, **options)
        assert refusal.value.hint == "send without --resume, which begins anew"
        bp.send(volume.image("june1"), path, **options)
        assert bp.verify_streams(path).ok


def test_a_half_written_file_of_another_image_stays_as_it_is(source, tmp_path):
    path, partial = tmp_path / "x.bps", tmp_path / "x.bps.partial"
    broken_send(source, "june1", path, 0.4)
    before = partial.read_bytes()
    with pytest.raises(RefusedError, match="another image than the one asked for"):
        bp.send(source.image("june2 - june1"), path, resume=True)
    assert partial.read_bytes() == before
    partial.write_bytes(b"notes of my own")
    with pytest.raises(StreamError, match="not an image stream"):
        bp.send(source.image("june1"), path, resume=True)
    assert partial.read_bytes() == b"notes of my own"


def test_without_resume_a_half_written_file_is_begun_anew(source, streams, tmp_path):
    path = tmp_path / "x.bps"
    broken_send(source, "june1", path, 0.4)
    report = bp.send(source.image("june1"), path)
    assert (report.n_blocks_before, sorted(os.listdir(tmp_path))) == (0, ["x.bps"])
    assert bp.verify_streams(path).ok


def test_resume_where_nothing_began_sends_all(source, tmp_path):
    report = bp.send(source.image("june1"), tmp_path / "x.bps", resume=True)
    assert (report.n_blocks_before, bp.verify_streams(tmp_path / "x.bps").ok) == (0, True)


def test_a_file_that_another_process_writes_is_left_alone(source, tmp_path):
    with (tmp_path / "x.bps.partial").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for resume in (True, False):
            with pytest.raises(StreamError, match="being written by another process"):
                bp.send(source.image("june1"), tmp_path / "x.bps", resume=resume)
    assert os.listdir(tmp_path) == ["x.bps.partial"]


def test_a_file_that_another_replaced_before_it_was_locked_is_let_go(source, tmp_path, monkeypatch):
    """The one made first has no name any more: what is written to it would be lost, and the other's take its place."""
    path, others = tmp_path / "x.bps", []

    def flock(fd: int, how: int) -> None:
        if not others:
            others.append(None)
            others[0] = folder.HostFile(path)
        fcntl.flock(fd, how)

    monkeypatch.setattr(folder, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB))
    with pytest.raises(StreamError, match="being written by another process"):
        bp.send(source.image("june1"), path)
    assert os.listdir(tmp_path) == ["x.bps.partial"]
    others[0].close()
    bp.send(source.image("june1"), path)
    assert (os.listdir(tmp_path), bp.verify_streams(path).ok) == (["x.bps"], True)


def test_a_link_in_the_place_of_the_half_written_file_is_not_followed(source, tmp_path):
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / "x.bps.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(StreamError, match="cannot write"):
        bp.send(source.image("june1"), tmp_path / "x.bps")
    assert (tmp_path / "mine").read_bytes() == b"precious"


def test_the_base_is_held_until_the_increment_is_whole(source, streams, tmp_path):
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    cut_into(tmp_path / "copy", streams["june2 - june1"], len(streams["june2 - june1"]) // 2)
    with bp.Volume.open(tmp_path / "copy") as volume:
        (hold,) = volume.get_snapshot("june1").holds
        assert (hold.owner.startswith("receive:june2:"), hold.expires_ns > hold.made_ns) == (True, True)
        with pytest.raises(RefusedError, match="is held by receive:june2"):
            volume.delete_snapshot("june1")
    bp.receive(io.BytesIO(streams["june2 - june1"]), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        assert volume.get_snapshot("june1").holds == []


def test_without_its_base_an_increment_cannot_go_on(source, streams, tmp_path):
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    cut_into(tmp_path / "copy", streams["june2 - june1"], len(streams["june2 - june1"]) // 2)
    with bp.Volume.open(tmp_path / "copy") as volume:
        (hold,) = volume.get_snapshot("june1").holds
        volume.release_snapshot("june1", hold.owner)
        volume.delete_snapshot("june1")
        with pytest.raises(StreamMismatchError, match="builds on snapshot june1"):
            bp.receive(io.BytesIO(streams["june2 - june1"]), volume)
        assert bp.check(volume).problems == []
    assert bp.abort_receive(tmp_path / "copy") > 0


@pytest.fixture
def held_by(tmp_path):
    """A volume with a snapshot, and who holds that."""
    with bp.Volume.create(tmp_path / "pool", disks=3, size="16M") as volume:
        bp.FileSystem(volume).write_bytes("/f", bytes(range(256)) * 8192)
        volume.snapshot("june1")
        yield volume, lambda: [hold.owner for hold in volume.get_snapshot("june1").holds]


def test_a_send_that_fails_leaves_its_hold(held_by, tmp_path):
    volume, owners = held_by
    image = volume.image("june1")
    with pytest.raises(BreakError), bp.held(volume, image, 3600):
        raise BreakError
    (left,) = owners()
    assert left.startswith("send:june1:")
    with bp.held(volume, image, 3600):
        assert owners() == [left]
        bp.send(image, tmp_path / "june1.bps")
    assert owners() == []


@pytest.mark.parametrize("to", ["/there", ""])
def test_a_send_gives_up_its_own_hold_alone(held_by, to):
    """One that goes on beside it, or was interrupted on its way elsewhere, keeps its own for its next try."""
    volume, owners = held_by
    image = volume.image("june1")

    def send_others() -> None:
        first = owners()
        for there in (to, "/elsewhere"):
            with bp.held(volume, image, 3600, there):
                assert len(set(owners())) == 2
            assert owners() == first

    def broken_off() -> None:
        with bp.held(volume, image, 3600, to):
            send_others()
            raise BreakError

    with pytest.raises(BreakError):
        broken_off()
    (first,) = owners()
    with bp.held(volume, image, 3600, "/elsewhere"):
        pass
    assert owners() == [first]
    with pytest.raises(RefusedError, match=f"is held by {first}"):
        volume.delete_snapshot("june1")
    with bp.held(volume, image, 3600, to):
        assert owners() == [first]
    assert owners() == []


def test_holds_of_images_whose_names_look_alike(held_by):
    volume, owners = held_by
    long = "x" * 127
    for name in ("june2", "june2-june1", long):
        volume.snapshot(name)
    images = [volume.image(text) for text in ("june2 - june1", "june2-june1", long, f"{long} - june1")]
    with pytest.raises(BreakError), bp.held(volume, images[0], 3600):
        raise BreakError
    before = owners()
    for image in images[1:]:
        with bp.held(volume, image, 3600):
            pass
    assert owners() == before


def test_a_finished_file_is_not_replaced_by_going_on(source, tmp_path):
    path = tmp_path / "x.bps"
    bp.send(source.image("june1"), path)
    before = path.read_bytes()
    report = bp.send(source.image("june1"), path, resume=True)
    assert (report.n_blocks, report.n_blocks_before) == (0, source.image("june1").n_blocks)
    with pytest.raises(RefusedError, match="is there already, a stream of june1"):
        bp.send(source.image("june2"), path, resume=True)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (before, ["x.bps"])


def test_a_finished_file_that_is_damaged_or_not_encrypted_is_not_taken_for_sent(source, tmp_path):
    path, key = tmp_path / "x.bps", tmp_path / "key"
    bp.create_key(key)
    bp.send(source.image("june1"), path)
    before = path.read_bytes()
    with pytest.raises(RefusedError, match=r"x.bps is there already, and is not encrypted"):
        bp.send(source.image("june1"), path, resume=True, key=key)
    damaged = bytearray(before)
    damaged[len(damaged) // 2] ^= 1
    for data in (damaged, before[:-100]):
        path.write_bytes(data)
        with pytest.raises(StreamError):
            bp.send(source.image("june1"), path, resume=True)
        assert path.read_bytes() == data
    bp.send(source.image("june1"), path, key=key)
    assert bp.send(source.image("june1"), path, resume=True, key=key).n_blocks == 0
    with pytest.raises(StreamError, match="key"):
        bp.send(source.image("june1"), path, resume=True)


def test_a_base_that_is_to_be_deleted_serves_the_receive_that_holds_it(source, streams, tmp_path):
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    cut_into(tmp_path / "copy", streams["june2 - june1"], len(streams["june2 - june1"]) // 2)
    with bp.Volume.open(tmp_path / "copy") as volume:
        volume.delete_snapshot("june1", defer=True)
        assert volume.get_snapshot("june1").kind == "deleting"
    bp.receive(io.BytesIO(streams["june2 - june1"]), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june2")
    with bp.Volume.open(tmp_path / "copy") as volume:
        assert [snapshot.name for snapshot in volume.snapshots] == ["june2"]


def test_giving_up_deletes_what_waited_for_it(streams, tmp_path):
    bp.receive(io.BytesIO(streams["june1"]), tmp_path / "copy")
    cut_into(tmp_path / "copy", streams["june2 - june1"], len(streams["june2 - june1"]) // 2)
    with bp.Volume.open(tmp_path / "copy") as volume:
        volume.delete_snapshot("june1", defer=True)
    bp.abort_receive(tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy", writable=False) as volume:
        assert volume.snapshots == []
