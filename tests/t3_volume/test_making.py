"""What a power cut leaves of a volume that was made, or grown: the names in its folders that are durable by then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockplane.model import NotAVolumeError
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
    with pytest.raises(NotAVolumeError, match="a volume already"):
        Volume.create(path, disks=3, size="24M")


def test_what_a_maker_left_is_marked_until_the_rest_is_gone(tmp_path, durable):
    path = tmp_path / "pool"
    Volume.create(path, disks=3, size="24M").close()
    making.mark(path)
    durable.states.clear()
    making.clear(path)
    found = [names for folder, names, _ in durable.states if folder == path]
    assert [sorted(names - {"lock"}) for names in found] == [[making.MARK_NAME], []]
