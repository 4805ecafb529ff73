"""Going on towards another top: of what came of an image, that counts which is the same in the one that is sent now."""

from __future__ import annotations

import io
import random
from unittest import mock

import numpy as np
import pytest

import blockplane as bp
from blockplane.image.chosen import Image
from blockplane.image.extents import numbers_in
from blockplane.model.errors import (
    ChecksumError,
    RefusedError,
    StreamDamagedError,
    StreamMismatchError,
    StreamTruncatedError,
)
from equality import differences, volume_tree

MIB = 1 << 20


@pytest.fixture
def source(tmp_path):
    """june1; june2 with changes that june3 has taken back in part, or changed again."""
    random_bytes = random.Random(12).randbytes
    with bp.Volume.create(tmp_path / "pool", disks=5, size="40M", parity=1) as volume:
        files = bp.FileSystem(volume)
        for i in range(6):
            files.write_bytes(f"/f{i}", random_bytes(MIB))
        volume.snapshot("june1")
        for i in range(4):
            files.write_bytes(f"/f{i}", random_bytes(MIB + i))
        files.write_bytes("/new", random_bytes(MIB))
        volume.snapshot("june2")
        files.write_bytes("/f0", random_bytes(MIB + 77))
        files.unlink("/f1")
        files.write_bytes("/later", random_bytes(MIB))
        volume.snapshot("june3")
        yield volume


def stream_of(volume, text, **options) -> bytes:
    sink = io.BytesIO()
    bp.send(volume.image(text), sink, **options)
    return sink.getvalue()


def interrupted(source, text: str, path, at: float, **options) -> bp.ResumeToken:
    """Have a receive cut off; return the token."""
    stream = stream_of(source, text)
    with pytest.raises(StreamTruncatedError):
        bp.receive(io.BytesIO(stream[: int(len(stream) * at)]), path, **options)
    with bp.Volume.open(path) as volume:
        return bp.ResumeToken.decode(bp.resume_token(volume).encode())


def require_equal(source, path, *names: str) -> None:
    with bp.Volume.open(path, writable=False) as volume:
        assert bp.check(volume).problems == []
        assert bp.interrupted_receives(volume) == []
        for name in names:
            mine = volume_tree(bp.FileSystem(volume.get_snapshot(name)))
            assert differences(mine, volume_tree(bp.FileSystem(source.get_snapshot(name)))) == []
    assert not list(path.glob("incoming-*"))


def numbers(plane) -> set[int]:
    return set(numbers_in(plane.extents()).tolist())


GEOMETRIES = {
    "the same": {},
    "chunk is the disk": {"disks": 3, "size": "100M", "chunk": "disk"},
    "one disk": {"disks": 1, "size": "200M"},
    "two parities": {"disks": 6, "size": "40M", "parity": 2, "chunk": "1M"},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_full_image_of_a_newer_snapshot(source, tmp_path, geometry):
    token = interrupted(source, "june2", tmp_path / "copy", 0.6, **GEOMETRIES[geometry])
    both = numbers(token.copied) & numbers(source.get_snapshot("june3").plane)
    image = source.image("june3")
    planned = bp.send(image, None, resume=token, dry_run=True)
    assert (planned.n_blocks, planned.n_blocks_before) == (image.n_blocks - len(both), len(both))
    assert len(both) > image.n_blocks // 4
    rest = stream_of(source, "june3", resume=token)
    assert len(rest) == planned.stream_bytes
    report = bp.receive(io.BytesIO(rest), tmp_path / "copy")
    assert (report.n_blocks, report.arrived) == (planned.n_blocks, ("june3",))
    require_equal(source, tmp_path / "copy", "june3")


def test_an_increment_of_a_newer_snapshot_cut_twice_more(source, tmp_path):
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    token = interrupted(source, "june2 - june1", tmp_path / "copy", 0.7)
    sent = [token.n_copied]  # then: what is the same of it, and what came
    for at in (0.3, 0.5):
        rest = stream_of(source, "june3 - june1", resume=token)
        with pytest.raises(StreamTruncatedError):
            bp.receive(io.BytesIO(rest[: int(len(rest) * at)]), tmp_path / "copy")
        with bp.Volume.open(tmp_path / "copy") as volume:
            (waiting,) = bp.interrupted_receives(volume)
            token = bp.resume_token(volume)
        assert waiting.top_name == "june3"
        sent.append(token.n_copied)
    assert sent[1] < sent[2]
    bp.receive(io.BytesIO(stream_of(source, "june3 - june1", resume=token)), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june1", "june3")


@pytest.mark.parametrize("kind", ["regular", "shadow"])
def test_what_counts_is_what_came_less_the_marks_since(source, tmp_path, rng, kind):
    token = interrupted(source, "june2", tmp_path / "copy", 0.8)
    source.destinations.begin("tape", "june2")
    source.destinations.succeed("tape")
    if kind == "shadow":
        source.destinations.forget("tape")
        source.shadow_snapshot("june2")
    files = bp.FileSystem(source)
    for i in range(8):
        files.write_bytes(f"/g{i}", rng.bytes(MIB))
    source.snapshot("june4")
    both = numbers(token.copied) & numbers(source.get_snapshot("june4").plane)
    both &= numbers(source.get_snapshot("june2").plane)
    if kind == "regular":
        assert both == numbers(token.copied) & numbers(source.image("june4 - alloc(june2)").plane)
    planned = bp.send(source.image("june4"), None, resume=token, dry_run=True)
    assert planned.n_blocks_before == len(both) > 0
    bp.receive(io.BytesIO(stream_of(source, "june4", resume=token)), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june4")


def test_of_an_image_that_is_gone_nothing_counts(source, tmp_path):
    token = interrupted(source, "june2", tmp_path / "copy", 0.5)
    source.delete_snapshot("june2")
    with pytest.raises(RefusedError, match="june2, which is not here any more"):
        bp.send(source.image("june3"), None, resume=token, dry_run=True)


def test_several_snapshots_count(source, tmp_path):
    """The top is gone; another snapshot that came with it is not."""
    token = interrupted(source, "june2 + june1", tmp_path / "copy", 0.9)
    assert len(token.member_ids) == 2
    source.delete_snapshot("june2")
    both = numbers(token.copied) & numbers(source.get_snapshot("june1").plane) & numbers(source.image("june3").plane)
    planned = bp.send(source.image("june3"), None, resume=token, dry_run=True)
    assert planned.n_blocks_before == len(both) > 0
    bp.receive(io.BytesIO(stream_of(source, "june3", resume=token)), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june3")


def test_nothing_in_common_sends_all(source, tmp_path):
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    token = interrupted(source, "june2 - june1", tmp_path / "copy", 0.5)
    only = source.image("june1")
    planned = bp.send(only, None, resume=token, dry_run=True)
    assert (planned.n_blocks, planned.n_blocks_before) == (only.n_blocks, 0)


def test_another_volume_has_other_numbers(source, tmp_path):
    token = interrupted(source, "june2", tmp_path / "copy", 0.5)
    with bp.Volume.create(tmp_path / "other", disks=1, size="40M") as other:
        bp.FileSystem(other).write_bytes("/a", bytes(MIB))
        other.snapshot("june3")
        with pytest.raises(RefusedError, match="token is for an image of june2"):
            bp.send(other.image("june3"), None, resume=token, dry_run=True)


def test_a_destination_without_it(source, tmp_path):
    """The rest goes only where the first part is; nothing changes elsewhere."""
    token = interrupted(source, "june2", tmp_path / "copy", 0.6)
    rest = stream_of(source, "june3", resume=token)
    with pytest.raises(StreamMismatchError, match="an interrupted receive of another image"):
        bp.receive(io.BytesIO(rest), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    bp.abort_receive(tmp_path / "copy")
    interrupted(source, "june2", tmp_path / "copy", 0.3)
    with pytest.raises(StreamMismatchError, match="blocks of that are not in"):
        bp.receive(io.BytesIO(rest), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        assert [waiting.top_name for waiting in bp.interrupted_receives(volume)] == ["june2"]
    bp.receive(io.BytesIO(stream_of(source, "june2")), tmp_path / "copy")
    require_equal(source, tmp_path / "copy", "june2")


def test_what_came_of_the_old_image_alone_is_given_up(source, tmp_path):
    token = interrupted(source, "june2", tmp_path / "copy", 0.9)
    rest = stream_of(source, "june3", resume=token)
    with pytest.raises(StreamTruncatedError):
        bp.receive(io.BytesIO(rest[: len(rest) // 2]), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        (waiting,) = bp.interrupted_receives(volume)
        assert (waiting.top_name, waiting.n_image) == ("june3", source.image("june3").n_blocks)
        assert volume.incoming.n_blocks == waiting.n_image
        assert bp.check(volume).problems == []
    assert bp.abort_receive(tmp_path / "copy") == waiting.n_image
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def two(source, tmp_path):
    """A copy in which the receives of june1 and of june2 were interrupted, one after the other; june1 made it."""
    interrupted(source, "june1", tmp_path / "copy", 0.6)
    interrupted(source, "june2", tmp_path / "copy", 0.5)
    return tmp_path / "copy"


def test_one_of_several_is_chosen(source, two):
    """By its top, or how its image id begins; each can be gone on with."""
    with bp.Volume.open(two) as volume:
        waiting = {its.top_name: its.image_id for its in bp.interrupted_receives(volume)}
        assert list(waiting) == ["june1", "june2"]
        for top, image_id in waiting.items():
            for name in (top, image_id.hex(), image_id.hex()[:12].upper()):
                token = bp.resume_token(volume, name)
                assert (token.top_name, token.image_id, token.n_copied > 0) == (top, image_id, True)
        assert bp.resume_token(volume).top_name == "june2"
        with pytest.raises(RefusedError, match="no receive of june7") as caught:
            bp.resume_token(volume, "june7")
        assert all(part in caught.value.hint for top, key in waiting.items() for part in (top, key.hex()))
        with pytest.raises(RefusedError, match="no receive of"):
            bp.resume_token(volume, "")
        token = bp.resume_token(volume, "june1")
    bp.receive(io.BytesIO(stream_of(source, "june1", resume=token)), two)
    with bp.Volume.open(two) as volume:
        assert [its.top_name for its in bp.interrupted_receives(volume)] == ["june2"]
        assert bp.check(volume).problems == []


def test_one_of_several_is_given_up(source, two):
    """The other stays, and stands for the one that made the volume."""
    n_blocks = source.image("june1").n_blocks
    with pytest.raises(RefusedError, match="no receive of june3"):
        bp.abort_receive(two, top="june3")
    assert bp.abort_receive(two, top="june1") == n_blocks
    with bp.Volume.open(two) as volume:
        assert [its.top_name for its in bp.interrupted_receives(volume)] == ["june2"]
        assert bp.check(volume).problems == []
    assert bp.abort_receive(two, top="june2") > 0
    assert not two.exists()


def test_two_of_one_top_are_told_apart_by_their_ids(source, tmp_path):
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    full = interrupted(source, "june2", tmp_path / "copy", 0.5, discard=True)
    step = interrupted(source, "june2 - june1", tmp_path / "copy", 0.5)
    with bp.Volume.open(tmp_path / "copy") as volume:
        with pytest.raises(RefusedError, match="several receives of june2") as caught:
            bp.resume_token(volume, "june2")
        for token in (full, step):
            assert token.image_id.hex() in caught.value.hint
            assert bp.resume_token(volume, token.image_id.hex()).n_copied == token.n_copied


def test_a_copied_plane_that_is_used_for_another_top_is_found(source, tmp_path):
    """Planted: all that came counts, changed or not."""
    source.delete_snapshot("june3")
    token = interrupted(source, "june2", tmp_path / "copy", 0.95)
    source.delete_snapshot("june1")
    source.shadow_snapshot("june2")
    source.space._spared = lambda: None  # the allocator does not care, and reuses what it finds first
    files = bp.FileSystem(source)
    for path in files.listdir("/"):
        files.unlink(f"/{path}")
    for i in range(250):  # once round the volume, and on
        files.write_bytes(f"/h{i % 60}", np.random.default_rng(i).bytes(MIB))
        source.sync()
    source.snapshot("june4")
    reused = numbers(token.copied) & numbers(source.get_snapshot("june4").plane)
    assert reused - numbers(source.get_snapshot("june2").plane)
    with mock.patch.object(Image, "held_by", lambda image, records: image.plane):
        rest = stream_of(source, "june4", resume=token)
    with pytest.raises((StreamDamagedError, ChecksumError)):
        bp.receive(io.BytesIO(rest), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        assert (list(volume.snapshots), list(bp.interrupted_receives(volume))) == ([], [])
