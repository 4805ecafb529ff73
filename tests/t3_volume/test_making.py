"""What a power cut leaves of a volume that was made, or grown: the names in its folders that are durable by then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockplane.disks.disk import FileDisk
from blockplane.model import DiskError, NotAVolumeError, RefusedError, VolumeInUseError
from blockplane.model.errors import DiskMissingError
from blockplane.volume import Volume, making


class Durable:
    """Which names each folder would hold after a power cut; `events` are the folders in the order of their flushes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[Path, set[str]] = {}
        self.states: list[tuple[Path, set[str], dict[Path, set[str]]]] = []
        original = os.fsync

        def fsync(fd: int) -> None:
            original(fd)
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if path.is_dir():
                self.names[path] = set(os.listdir(path))
                self.states.append((path, self.names[path], dict(self.names)))

        monkeypatch.setattr(os, "fsync", fsync)

    def when(self, folder: Path, name: str) -> dict[Path, set[str]]:
        """What was durable when a name in a folder first was."""
        return next(names for path, found, names in self.states if path == folder and name in found)


@pytest.fixture
def durable(monkeypatch) -> Durable:
    return Durable(monkeypatch)


def test_a_volume_that_was_made_is_not_marked_after_a_cut(tmp_path, durable):
    """The next `create` would have taken it for what a maker left, and removed it."""
    path = tmp_path / "a" / "b" / "pool"
    with Volume.create(path, disks=3, size="24M"):
        assert durable.names[path] >= {"volume.toml", "disks"}
        assert making.MARK_NAME not in durable.names[path]
    assert "a" in durable.names[tmp_path]
    assert "b" in durable.names[tmp_path / "a"]
    assert "pool" in durable.names[path.parent]


def test_the_mark_comes_before_and_the_disks_before_what_names_them(tmp_path, durable):
    path, elsewhere = tmp_path / "pool", tmp_path / "elsewhere"
    elsewhere.mkdir()
    Volume.create(path, disks=3, size="24M").close()
    assert durable.when(path / "disks", "0")[path] >= {making.MARK_NAME}
    assert durable.when(path, "volume.toml")[path / "disks"] == {"0", "1", "2"}
    with Volume.open(path) as volume:
        durable.states.clear()
        volume.grow([elsewhere / "x", elsewhere / "y"], size="24M")
        assert durable.when(path, "volume.toml")[elsewhere] == {"x", "y"}
        durable.states.clear()
        volume.grow(2, size="24M")
        assert durable.when(path, "volume.toml")[path / "disks"] >= {"5", "6"}


def test_the_first_writer_takes_the_mark_away_for_good(tmp_path, durable):
    path = tmp_path / "pool"
    Volume.create(path, disks=3, size="24M").close()
    making.mark(path)
    assert making.MARK_NAME in durable.names[path]
    Volume.open(path).close()
    assert making.MARK_NAME not in durable.names[path]
    with pytest.raises(RefusedError, match="a volume already"):
        Volume.create(path, disks=3, size="24M")


def test_what_a_maker_left_is_marked_until_the_rest_is_gone(tmp_path, durable):
    path = tmp_path / "pool"
    Volume.create(path, disks=3, size="24M").close()
    making.mark(path)
    durable.states.clear()
    making.clear(path)
    found = [names for folder, names, _ in durable.states if folder == path]
    assert [sorted(names - {"lock"}) for names in found] == [[making.MARK_NAME], []]


def left(path: Path, disks: int = 3) -> None:
    """What a maker leaves that is killed when it has made disk files and nothing on them."""
    (path / "disks").mkdir(parents=True)
    making.mark(path, making.NEW_FOLDER)
    for i in range(disks):
        (path / "disks" / str(i)).write_bytes(bytes(i * 4096))


def files_of(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.name != making.LOCK_NAME)


@pytest.fixture
def whole(tmp_path) -> Path:
    """A volume with a snapshot, whose maker was killed just before it took the mark away."""
    with Volume.create(tmp_path / "pool", disks=3, size="24M") as volume:
        volume.snapshot("one")
    making.mark(tmp_path / "pool")
    return tmp_path / "pool"


def test_a_marked_volume_that_holds_something_is_a_volume(whole):
    before = files_of(whole)
    for make in (Volume.plan, Volume.create):
        with pytest.raises(RefusedError, match="a volume already"):
            make(whole, disks=3, size="24M")
    Volume.clear_half_made(whole)
    assert files_of(whole) == before
    with Volume.open(whole) as volume:
        assert [snapshot.name for snapshot in volume.snapshots] == ["one"]


@pytest.mark.parametrize("lost", [1, None])
def test_a_marked_volume_that_cannot_be_looked_at_stays(whole, monkeypatch, lost):
    """One disk that is away for a moment, or all of which no root record can be read."""
    before, opened, read = files_of(whole), FileDisk.open.__func__, FileDisk.read_plan

    def open_(cls, path, **how):
        if path.endswith(f"disks/{lost}"):
            raise DiskMissingError(f"{path}: cannot be opened: Too many open files", path)
        return opened(cls, path, **how)

    def read_plan(self, *what, **how):
        if lost is None:
            raise DiskError(f"{self.path}: read failed: Input/output error", self.path)
        return read(self, *what, **how)

    monkeypatch.setattr(FileDisk, "open", classmethod(open_))
    monkeypatch.setattr(FileDisk, "read_plan", read_plan)
    for make in (Volume.plan, Volume.create, lambda path, **_: Volume.clear_half_made(path), Volume.open):
        with pytest.raises(DiskError, match=r"Too many open files|Input/output error"):
            make(whole, **({} if make == Volume.open else {"disks": 3, "size": "24M"}))
    assert files_of(whole) == before


def test_a_plan_changes_nothing_of_what_a_maker_left(tmp_path):
    left(tmp_path / "pool")
    before = files_of(tmp_path)
    names, group = Volume.plan(tmp_path / "pool", disks=3, size="24M")
    assert (names, group.disk_blocks) == (
        ["disks/0", "disks/1", "disks/2"],
        Volume.plan(tmp_path / "new", 3, "24M")[1].disk_blocks,
    )
    assert files_of(tmp_path) == before
    with pytest.raises(NotAVolumeError, match="was being made"):
        Volume.open(tmp_path / "pool")
    with Volume.create(tmp_path / "pool", disks=3, size="24M") as volume:
        assert [disk.path for disk in volume.array.disks] == [str(tmp_path / "pool" / name) for name in names]


def test_a_removal_that_was_cut_short_is_ended(whole, monkeypatch):
    """Whatever of a volume is left then: it was looked at before."""
    with monkeypatch.context() as cut:
        cut.setattr(making, "remove_socket", lambda _: pytest.fail("cut short"))
        cut.setattr(making.shutil, "rmtree", lambda folder, **_: (folder / "0").unlink())
        with pytest.raises(pytest.fail.Exception):
            making.clear(whole)
    assert files_of(whole) == ["disks", "disks/1", "disks/2", "making", "volume.toml"]
    with pytest.raises(NotAVolumeError, match="was being made"):
        Volume.open(whole)
    Volume.clear_half_made(whole)
    assert os.listdir(whole) == []


@pytest.mark.parametrize("was_there", [True, False])
def test_what_a_maker_left_goes_and_the_folder_where_it_made_that(tmp_path, was_there):
    path = tmp_path / "pool"
    left(path)
    if was_there:
        (path / making.MARK_NAME).unlink()
        making.mark(path)
    Volume.clear_half_made(path)
    assert os.listdir(tmp_path) == (["pool"] if was_there else [])


def test_who_writes_while_it_is_about_to_be_cleared_keeps_it(tmp_path, monkeypatch):
    path = tmp_path / "pool"
    Volume.create(path, disks=3, size="24M").close()
    making.mark(path)
    is_marked = making.is_marked

    def and_then(directory):
        monkeypatch.setattr(making, "is_marked", is_marked)
        with Volume.open(directory) as volume:
            volume.snapshot("one")
        return True

    monkeypatch.setattr(making, "is_marked", and_then)
    Volume.clear_half_made(path)
    with Volume.open(path) as volume:
        assert [snapshot.name for snapshot in volume.snapshots] == ["one"]
        making.mark(path)
        with pytest.raises(VolumeInUseError):
            Volume.clear_half_made(path)


def test_a_volume_that_another_made_meanwhile_stays(tmp_path, monkeypatch):
    make, path = making.make_directory, tmp_path / "pool"

    def make_directory(directory: Path) -> list[Path]:
        made = make(directory)
        with monkeypatch.context() as other:
            other.setattr(making, "make_directory", make)
            with Volume.create(directory, disks=3, size="24M") as volume:
                volume.snapshot("theirs")
        return made

    monkeypatch.setattr(making, "make_directory", make_directory)
    with pytest.raises(RefusedError, match="is a volume already"):
        Volume.create(path, disks=1, size="32M")
    with Volume.open(path) as volume:
        assert [snapshot.name for snapshot in volume.snapshots] == ["theirs"]
