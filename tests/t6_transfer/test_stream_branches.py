"""Streams of several branches, or volumes: none is passed over as older than what it is no part of."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError, StreamMismatchError
from rig.sets import pairs_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """a, s2 upon it, and x upon a on a branch of its own, whose states have lower numbers than s2; y upon x.

    other.bps is of another volume, and of a state with a low number.
    """
    root, rng = tmp_path_factory.mktemp("branches"), np.random.default_rng(31)
    with bp.Volume.create(root / "pool", disks=2, size="12M") as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/a", rng.bytes(50_000))
        volume.snapshot("a")
        bp.send(volume.image("a"), root / "a.bps")
        for i in range(6):
            files.write_bytes(f"/late{i}", rng.bytes(20_000))
            volume.sync()
        volume.snapshot("s2")
        bp.send(volume.image("s2 - a"), root / "s2.bps")
        volume.rollback("a")
        files = bp.FileSystem(volume)
        for name, base in (("x", "a"), ("y", "x")):
            files.write_bytes(f"/{name}", rng.bytes(20_000))
            volume.snapshot(name)
            bp.send(volume.image(f"{name} - {base}"), root / f"{name}.bps")
    with bp.Volume.create(root / "elsewhere", disks=2, size="12M") as volume:
        bp.FileSystem(volume).write_bytes("/other", b"other")
        volume.snapshot("other")
        bp.send(volume.image("other"), root / "other.bps")
    cps = {name: bp.stream_map(root / f"{name}.bps").top.cp for name in ("s2", "x", "other", "a")}
    assert max(cps["x"], cps["other"]) < cps["s2"]
    return root


def of(folder: Path, *names: str) -> list[Path]:
    return [folder / f"{name}.bps" for name in names]


def names_in(path: Path) -> list[str]:
    with bp.Volume.open(path, writable=False) as volume:
        return [snapshot.name for snapshot in volume.snapshots]


@pytest.mark.parametrize("given", ["a s2 x", "x s2 a", "a s2 x y"])
def test_two_branches_make_no_volume(folder, tmp_path, given):
    tips = "s2, y" if "y" in given else "s2, x"
    with pytest.raises(StreamMismatchError, match=f"the streams are of two branches: {tips}"):
        bp.receive_streams(*of(folder, *given.split()), target=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(("given", "arrives"), [("y a x", ["a", "x", "y"]), ("s2 a", ["a", "s2"])])
def test_each_branch_by_itself_is_received(folder, tmp_path, given, arrives):
    report = bp.receive_streams(*of(folder, *given.split()), target=tmp_path / "copy")
    assert (list(report.arrives), names_in(tmp_path / "copy")) == (arrives, arrives)


def test_another_branch_onto_what_is_there_is_not_older(folder, tmp_path):
    """The source was rolled back: the folder has a stream more, and the destination lacks it."""
    bp.receive_streams(*of(folder, "a", "s2"), target=tmp_path / "copy")
    with pytest.raises(RefusedError, match=r"stands at s2, which is of another branch than x, which .*x\.bps brings"):
        bp.receive_streams(*of(folder, "a", "s2", "x"), target=tmp_path / "copy")
    assert names_in(tmp_path / "copy") == ["a", "s2"]
    report = bp.receive_streams(*of(folder, "a", "s2", "x"), target=tmp_path / "copy", discard=True)
    assert report.arrives == ("x",)
    assert len(report.there) == 2
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert sorted(bp.FileSystem(copy).listdir("/")) == ["a", "x"]
        assert bp.FileSystem(copy.get_snapshot("s2")).exists("/late5")
        assert bp.check(copy).problems == []
    again = bp.receive_streams(*of(folder, "a", "s2", "x", "y"), target=tmp_path / "copy")
    assert (again.arrives, len(again.there), again.older) == (("y",), 3, ())


def test_an_older_increment_is_of_no_other_branch(folder, tmp_path):
    with bp.Volume.open(folder / "pool", writable=False) as pool:
        bp.send(pool.image("y - a"), tmp_path / "y.bps")
    bp.receive(folder / "a.bps", tmp_path / "copy")
    bp.receive(tmp_path / "y.bps", tmp_path / "copy")
    with pytest.raises(RefusedError, match=r"copy stands at y, which is past x$") as caught:
        bp.receive(folder / "x.bps", tmp_path / "copy")
    assert caught.value.hint.startswith("it brings nothing newer")
    assert "y stays as a snapshot" in caught.value.hint
    with pytest.raises(RefusedError, match="copy stands at y, which is of another branch than s2"):
        bp.receive(folder / "s2.bps", tmp_path / "copy")
    bp.receive(folder / "x.bps", tmp_path / "copy", discard=True)
    assert names_in(tmp_path / "copy") == ["a", "y", "x"]


def test_what_lacks_an_older_increment_is_told_that_this_is_older(folder, tmp_path):
    """s3 builds on s2, which is there no more, and the stream of s2 does not apply any more."""
    with bp.Volume.create(tmp_path / "pool", disks=2, size="12M") as pool:
        for name in ("s1", "s2", "s3", "s4"):
            bp.FileSystem(pool).write_bytes(f"/{name}", name.encode() * 5000)
            pool.snapshot(name)
        for text in ("s1", "s2 - s1", "s3 - s1", "s4 - s2"):
            bp.send(pool.image(text), tmp_path / f"{text[:2]}.bps")
    for name in ("s1", "s3"):
        bp.receive(tmp_path / f"{name}.bps", tmp_path / "copy")
    with pytest.raises(RefusedError, match=r"copy stands at s3, which is past s2, which .*s2\.bps brings"):
        bp.receive_streams(*of(tmp_path, "s2", "s4"), target=tmp_path / "copy")


def test_two_branches_onto_a_common_snapshot(folder, tmp_path):
    bp.receive(folder / "a.bps", tmp_path / "copy")
    with pytest.raises(StreamMismatchError, match="two branches: s2, x"):
        bp.receive_streams(*of(folder, "s2", "x"), target=tmp_path / "copy")
    assert names_in(tmp_path / "copy") == ["a"]


@pytest.mark.parametrize("given", ["a other", "other a s2", "x other a"])
def test_a_stream_of_another_volume_is_not_older(folder, tmp_path, given):
    with pytest.raises(StreamMismatchError, match="they are of different volumes"):
        bp.receive_streams(*of(folder, *given.split()), target=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    bp.receive_streams(*of(folder, "a", "s2"), target=tmp_path / "there")
    with pytest.raises((StreamMismatchError, RefusedError), match=r"different volumes|of another volume"):
        bp.receive_streams(*of(folder, "a", "s2", "other"), target=tmp_path / "there")
    assert names_in(tmp_path / "there") == ["a", "s2"]


def test_an_increment_does_not_take_the_place_of_another_volumes_state(folder, tmp_path):
    """Branches of two numberings have nothing in common, though both first ones have no id."""
    bp.receive(folder / "a.bps", tmp_path / "copy")
    bp.receive(folder / "other.bps", tmp_path / "copy", discard=True)
    with bp.Volume.open(tmp_path / "copy") as copy:
        for call in (bp.receive, lambda path, target: bp.receive_streams(path, target=target)):
            with pytest.raises(RefusedError):
                call(folder / "s2.bps", copy)
        assert bp.FileSystem(copy).listdir("/") == ["other"]


def test_nothing_is_the_newest_of_two_branches(folder, tmp_path):
    given = of(folder, "a", "s2", "x")
    with pytest.raises(StreamMismatchError, match="two branches: s2, x"):
        bp.open_stream(*given)
    with pytest.raises(StreamMismatchError, match="two branches: s2, x"):
        bp.merge_streams(*given, sink=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    for name, files in (("x", ["a", "x"]), ("a", ["a"])):
        with bp.open_stream(*given, snapshot=name) as chain:
            assert sorted(bp.FileSystem(chain).listdir("/")) == files


def test_verifying_says_that_there_are_two_branches(folder):
    verdict = bp.verify_streams(*of(folder, "a", "x", "s2"))
    assert (verdict.problems, sorted(verdict.proved), verdict.branches) == ([], ["a", "s2", "x"], ["s2", "x"])
    verdict = bp.verify_streams(*of(folder, "a", "x", "y"))
    assert (verdict.ok, verdict.branches) == (True, [])


def test_a_snapshot_is_compared_with_streams_of_two_branches(folder):
    with bp.Volume.open(folder / "pool", writable=False) as volume:
        found = bp.compare_streams(*of(folder, "a", "s2", "x"), volume=volume, snapshot="x")
    assert (found.ok, found.n_differing) == (True, 0)


@pytest.mark.parametrize("deleted", ["x", "s2", "a"])
def test_a_snapshot_of_another_branch_arrives_and_what_is_beside_it_stays(tmp_path, rng, deleted):
    """It lacks what those before and after it share: none of them may be deleted as if they were one line."""
    with bp.Volume.create(tmp_path / "pool", disks=3, size="24M") as volume:
        files, content = bp.FileSystem(volume), rng.bytes(400_000)
        files.write_bytes("/a", content)
        volume.snapshot("a")
        files.unlink("/a")
        volume.snapshot("s2")
        volume.rollback("a")
        for i in range(4):
            files.write_bytes(f"/{i}", rng.bytes(5000))
            volume.sync()
        volume.snapshot("x")
        bp.send(volume.image("x + a", with_=["s2"]), tmp_path / "all.bps")
    assert bp.receive(tmp_path / "all.bps", tmp_path / "copy").arrived == ("x", "s2", "a")
    with bp.Volume.open(tmp_path / "copy") as copy:
        files = bp.FileSystem(copy)
        files.unlink("/a")
        copy.sync()
        copy.delete_snapshot(deleted)
        assert bp.check(copy).problems == []
        for i in range(40):
            files.write_bytes(f"/n{i % 8}", rng.bytes(1_000_000))
            copy.sync()
        for name in {"a", "x"} - {deleted}:
            assert bp.FileSystem(copy.get_snapshot(name)).read_bytes("/a") == content
        assert bp.check(copy).problems == []


def test_bytes_that_came_back_to_their_place_make_no_line_of_what_lacked_them(tmp_path, rng):
    """s0 and s2 share what s1 lacks, each descends from the one before: their source found it equal, and shares it."""
    content = rng.bytes(400_000)

    def sent(volume, text: str, **options) -> io.BytesIO:
        out = io.BytesIO()
        bp.send(volume.image(text, **options), out)
        return io.BytesIO(out.getvalue())

    with bp.Volume.create(tmp_path / "first", disks=1, size="8M") as first:
        files = bp.FileSystem(first)
        files.write_bytes("/f", content)
        first.snapshot("s0")
        bp.receive(sent(first, "s0"), tmp_path / "source", disks=1, size="24M")
        with bp.Volume.open(tmp_path / "source") as source:
            mine = {vbn for vbn, _ in pairs_of(source.get_snapshot("s0"))}
        files.unlink("/f")
        first.delete_snapshot("s0")
        for _ in range(4):
            first.commit(force=True)
        first.snapshot("s1")
        for _ in range(40):  # until it lies where it lay
            files.write_bytes("/f", content)
            first.snapshot("s2")
            if len(mine & {vbn for vbn, _ in pairs_of(first.get_snapshot("s2"))}) > 50:
                break
            files.unlink("/f")
            first.delete_snapshot("s2")
            for _ in range(3):
                first.commit(force=True)
        with bp.Volume.open(tmp_path / "source") as source:
            assert bp.receive(sent(first, "s2 + s1"), source, discard=True).n_blocks_shared > 50
            bp.receive(sent(source, "s0"), tmp_path / "copy", disks=1, size="24M")
            bp.receive(sent(source, "s2 + s1 - s0", with_=["s0"]), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        files = bp.FileSystem(copy)
        files.unlink("/f")
        copy.sync()
        copy.delete_snapshot("s0")
        assert bp.check(copy).problems == []
        for _ in range(6):
            files.write_bytes("/n", rng.bytes(copy.available_blocks * 3600))
            files.unlink("/n")
            for _ in range(2):
                copy.commit(force=True)
        assert bp.FileSystem(copy.get_snapshot("s2")).read_bytes("/f") == content
        assert bp.check(copy).problems == []
