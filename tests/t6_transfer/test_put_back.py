"""Volumes that were put back from an older copy of their disks, or of which two copies live on.

Where the files are others than before, the first write starts a branch. Where they are not, both count their
consistency points alike, and what came from the one looks like the past of the other: nothing is lost by that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError, StreamMismatchError


def write(volume: bp.Volume, path: str, data: bytes, times: int = 1) -> None:
    """Write a file, by as many consistency points."""
    for number in range(times):
        bp.FileSystem(volume).write_bytes(path, data + bytes([number]))
        volume.sync()


def names(volume: bp.Volume | bp.Snapshot) -> list[str]:
    return bp.FileSystem(volume).listdir("/")


class Forked:
    """A volume with june1, that had a week of work with june2 on it, and was put back to june1, into the same files.

    Parameters
    ----------
    lost : consistency points of that week. has_others : the files are others.

    Attributes
    ----------
    path : of the volume. streams : a folder with june1.bps, and june2.bps onto it.
    """

    def __init__(self, folder: Path, lost: int = 1, has_others: bool = False) -> None:
        self.path, self.streams = folder / "pool", folder / "streams"
        self.streams.mkdir()
        with bp.Volume.create(self.path, disks=2, size="8MiB") as volume:
            write(volume, "/a", b"base")
            volume.snapshot("june1")
            bp.send(volume.image("june1"), self.streams / "june1.bps")
        shutil.copytree(self.path, folder / "backup")
        with bp.Volume.open(self.path) as volume:
            write(volume, "/lost", b"a week of work", lost)
            volume.snapshot("june2")
            bp.send(volume.image("june2 - june1"), self.streams / "june2.bps")
        if has_others:
            self.path.rename(folder / "gone")
        shutil.copytree(folder / "backup", self.path, dirs_exist_ok=True)

    def go_on(self, name: str, base: str = "june1", times: int = 1) -> Path:
        """Work after that, up to a snapshot; return the stream that brings it."""
        stream = self.streams / f"after-{name}.bps"
        with bp.Volume.open(self.path) as volume:
            write(volume, f"/{name}", b"work after that", times)
            volume.snapshot(name)
            bp.send(volume.image(f"{name} - {base}"), stream)
        return stream


def by_receive(folder: Path, volume: bp.Volume, copy: bp.Volume) -> None:
    bp.receive(folder / "streams" / "june2.bps", volume)


def by_a_list(folder: Path, volume: bp.Volume, copy: bp.Volume) -> None:
    bp.receive_streams(folder / "streams" / "june2.bps", target=volume)


def by_copy(folder: Path, volume: bp.Volume, copy: bp.Volume) -> None:
    bp.copy(copy.image("june2 - june1"), volume)


def by_offer(folder: Path, volume: bp.Volume, copy: bp.Volume) -> None:
    copy.delete_snapshot("june1")
    bp.offer(volume, folder / "offer", "june1")
    bp.send(copy.image("june2"), folder / "rest.bps", against=folder / "offer")
    bp.receive(folder / "rest.bps", volume)


@pytest.mark.parametrize("bring", [by_receive, by_a_list, by_copy, by_offer])
def test_work_that_no_snapshot_has_is_not_replaced_by_what_another_copy_did(tmp_path, bring):
    forked = Forked(tmp_path, lost=5)
    bp.receive_streams(forked.streams, target=tmp_path / "copy")
    with bp.Volume.open(forked.path) as volume, bp.Volume.open(tmp_path / "copy") as copy:
        write(volume, "/new", b"done after that")
        with pytest.raises(RefusedError):
            bring(tmp_path, volume, copy)
        assert names(volume) == ["a", "new"]


def test_the_only_copy_of_a_state_is_not_replaced(tmp_path):
    """Its snapshot was deleted where it came to, and the source knows nothing of it any more."""
    forked = Forked(tmp_path)
    bp.receive_streams(forked.streams, target=tmp_path / "copy")
    stream = forked.go_on("june3", times=5)
    with bp.Volume.open(tmp_path / "copy") as copy:
        copy.delete_snapshot("june2")
        with pytest.raises(RefusedError, match=r"shows a state of which there is no snapshot any more.*would be lost"):
            bp.receive(stream, copy)
        assert names(copy) == ["a", "lost"]
        copy.snapshot("kept")
        bp.receive(stream, copy)
        assert names(copy.get_snapshot("kept")) == ["a", "lost"]


def test_what_descends_from_a_state_replaces_it_though_its_snapshot_went(tmp_path):
    """As long as the source has it, and so the stream says that it is of its line."""
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8MiB") as volume:
        for name, base in (("june1", ""), ("june2", " - june1"), ("june3", " - june1")):
            write(volume, f"/{name}", b"work")
            volume.snapshot(name)
            bp.send(volume.image(name + base), tmp_path / f"{name}.bps")
    bp.receive_streams(tmp_path / "june1.bps", tmp_path / "june2.bps", target=tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        copy.delete_snapshot("june2")
        bp.receive(tmp_path / "june3.bps", copy)
        assert names(copy) == ["june1", "june2", "june3"]


def branches(path: Path) -> list[bytes]:
    with bp.Volume.open(path, writable=False) as volume:
        return [branch.id for branch in volume.committed.branches()]


@pytest.mark.parametrize("lost", [1, 9])
def test_a_volume_whose_files_are_others_goes_on_on_a_branch(tmp_path, lost):
    """However far it has counted, what it lost is no past of its; it starts one branch, and no more."""
    forked = Forked(tmp_path, lost, has_others=True)
    bp.receive_streams(forked.streams, target=tmp_path / "copy")
    before = branches(forked.path)
    stream = forked.go_on("june3", times=4)
    forked.go_on("june4", "june3")
    assert len(branches(forked.path)) == len(before) + 1
    with pytest.raises(RefusedError, match="stands at june2, which is of another branch than june3"):
        bp.receive(stream, tmp_path / "copy")
    for call in (
        lambda: bp.receive_streams(forked.streams, target=tmp_path / "copy"),
        lambda: bp.receive_streams(stream, target=tmp_path / "copy"),
        lambda: bp.receive_streams(forked.streams, target=tmp_path / "new"),
        lambda: bp.open_stream(forked.streams),
        lambda: bp.merge_streams(forked.streams, sink=tmp_path / "merged.bps"),
    ):
        with pytest.raises((StreamMismatchError, RefusedError), match="branch"):
            call()
    assert bp.verify_streams(forked.streams).branches == ["june2", "june4"]
    with bp.open_stream(forked.streams, snapshot="june4") as chain:
        assert bp.FileSystem(chain).listdir("/") == ["a", "june3", "june4"]


def test_a_volume_that_moves_goes_on_for_those_that_follow_it(tmp_path):
    """A branch is no border for what came before it; a grown volume has not moved again."""
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8MiB") as volume:
        write(volume, "/a", b"base")
        volume.snapshot("june1")
        bp.send(volume.image("june1"), tmp_path / "june1.bps")
    bp.receive(tmp_path / "june1.bps", tmp_path / "copy")
    shutil.copytree(tmp_path / "pool", tmp_path / "moved")
    shutil.rmtree(tmp_path / "pool")
    for name, base in (("june2", "june1"), ("june3", "june2")):
        with bp.Volume.open(tmp_path / "moved") as volume:
            if name == "june3":
                volume.grow(2, "8MiB")
            write(volume, f"/{name}", b"work")
            volume.snapshot(name)
            assert bp.check(volume).problems == []
            bp.send(volume.image(f"{name} - {base}"), tmp_path / "next.bps")
        bp.receive(tmp_path / "next.bps", tmp_path / "copy")
    assert len(branches(tmp_path / "moved")) == 1
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert names(copy) == ["a", "june2", "june3"]


def test_a_volume_that_moved_starts_one_branch_though_a_write_changes_nothing_local(tmp_path):
    """It has no snapshot any more, so that nothing is held."""
    with bp.Volume.create(tmp_path / "pool", disks=1, size="8MiB") as volume:
        write(volume, "/a", b"base")
        volume.snapshot("june1")
        volume.delete_snapshot("june1")
        write(volume, "/a", b"base", times=3)
    shutil.copytree(tmp_path / "pool", tmp_path / "moved")
    for _ in range(3):
        with bp.Volume.open(tmp_path / "moved") as volume:
            write(volume, "/a", b"work")
    assert len(branches(tmp_path / "moved")) == 1


def test_snapshots_after_a_move_are_a_line_though_nothing_is_written(tmp_path):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8MiB") as volume:
        write(volume, "/a", b"base")
        volume.snapshot("june1")
    shutil.copytree(tmp_path / "pool", tmp_path / "moved")
    with bp.Volume.open(tmp_path / "moved") as volume:
        volume.move_pointer("here", "june1")  # durable, and no change of what is live
    for name in ("june2", "june3"):
        with bp.Volume.open(tmp_path / "moved") as volume:
            volume.snapshot(name)
    assert len(branches(tmp_path / "moved")) == 1
    with bp.Volume.open(tmp_path / "moved") as volume:
        bp.copy(volume.image("june1"), tmp_path / "copy")
        bp.copy(volume.image("june2 - june1"), tmp_path / "copy")
        bp.copy(volume.image("june3 - june1", older="all"), tmp_path / "copy")
        assert bp.check(volume).problems == []
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert [snapshot.name for snapshot in copy.snapshots] == ["june1", "june2", "june3"]


@pytest.mark.parametrize("is_written", [False, True])
def test_copies_of_a_volume_without_a_snapshot_are_told_apart(tmp_path, is_written):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8MiB") as volume:
        if is_written:
            write(volume, "/a", b"base")
    shutil.copytree(tmp_path / "pool", tmp_path / "other")
    streams = [tmp_path / f"{name}.bps" for name in ("pool", "other")]
    for stream in streams:
        with bp.Volume.open(tmp_path / stream.stem) as volume:
            write(volume, f"/{stream.stem}", b"work", times=3)
            volume.snapshot(stream.stem)
            bp.send(volume.image(stream.stem), stream)
    assert len(branches(tmp_path / "other")) == 1
    assert len(bp.verify_streams(*streams).branches) == 2
    with pytest.raises((StreamMismatchError, RefusedError), match="branch"):
        bp.receive_streams(*streams, target=tmp_path / "copy")


def test_opening_a_volume_that_moved_writes_nothing_by_itself(tmp_path):
    bp.Volume.create(tmp_path / "pool", disks=1, size="8MiB").close()
    with bp.Volume.open(tmp_path / "pool") as volume:
        write(volume, "/a", b"base")
        volume.snapshot("june1")
    shutil.copytree(tmp_path / "pool", tmp_path / "moved")
    before = (tmp_path / "moved" / "disks" / "0").read_bytes()
    for _ in range(2):
        with bp.Volume.open(tmp_path / "moved") as volume:
            assert volume.was_moved
    assert (tmp_path / "moved" / "disks" / "0").read_bytes() == before


def test_a_name_that_both_have_is_none(tmp_path):
    forked = Forked(tmp_path)
    forked.go_on("june2")
    with pytest.raises(StreamMismatchError, match="different snapshots of the name june2"):
        bp.open_stream(forked.streams, snapshot="june2")


def test_a_name_that_moves_along_a_line_is_the_newest(tmp_path):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8MiB") as volume:
        for number in range(3):
            if number:
                volume.rename_snapshot("latest", f"day{number}")
            write(volume, f"/{number}", b"work")
            volume.snapshot("latest")
            base = f" - day{number}" if number else ""
            bp.send(volume.image(f"latest{base}"), tmp_path / f"{number}.bps")
    streams = [tmp_path / f"{number}.bps" for number in range(3)]
    with bp.open_stream(*streams, snapshot="latest") as chain:
        assert bp.FileSystem(chain).listdir("/") == ["0", "1", "2"]
    with bp.open_stream(*streams[:2], snapshot="latest") as chain:
        assert bp.FileSystem(chain).listdir("/") == ["0", "1"]


def test_files_of_both_are_not_one_file(tmp_path):
    """They have one inode number, and one generation."""
    forked = Forked(tmp_path)
    bp.receive_streams(forked.streams, target=tmp_path / "copy")
    bp.receive(forked.go_on("june3", times=3), tmp_path / "copy", discard=True)
    with bp.Volume.open(tmp_path / "copy") as copy:
        changes = [(change.change, change.path) for change in copy.diff("june2", "june3").changes]
    assert changes == [("added", "/june3"), ("deleted", "/lost")]
