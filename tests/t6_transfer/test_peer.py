"""Volumes at the other end: increments onto what both have, changes of the destination kept, flushed or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import NoSuchSnapshotError, RefusedError
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import image_towards, meeting, standing_of


@pytest.fixture
def pair(tmp_path: Path):
    with (
        bp.Volume.create(tmp_path / "source", disks=3, size="8MiB") as source,
        bp.Volume.create(tmp_path / "copy", disks=2, size="16MiB") as copy,
    ):
        yield source, copy


def write(volume: bp.Volume, path: str, data: bytes) -> None:
    bp.FileSystem(volume).write_bytes(path, data)


def read(volume: bp.Volume, path: str) -> bytes:
    return bp.FileSystem(volume).read_bytes(path)


def bring(source: bp.Volume, copy: bp.Volume, top: str, changes: LocalChanges = LocalChanges.REFUSE):
    return VolumePeer(copy).take(image_towards(source, top, standing_of(copy)), changes)


def test_full_then_increments_with_all_between(pair, rng):
    source, copy = pair
    content = [rng.bytes(50_000) for _ in range(3)]
    write(source, "/a", content[0])
    source.snapshot("one")
    assert (bring(source, copy, "one").base, read(copy, "/a")) == (None, content[0])
    for name, data in zip(["two", "three"], content[1:], strict=True):
        write(source, "/a", data)
        source.snapshot(name)
    found = bring(source, copy, "three")
    assert (found.base, found.n_blocks < 40, read(copy, "/a")) == ("one", True, content[2])
    assert [snapshot.name for snapshot in copy.snapshots] == ["one", "two", "three"]
    assert bring(source, copy, "three").already_there
    meet = meeting(source, "three", standing_of(copy).whole)
    assert meet is not None
    assert meet.name == "three"


@pytest.mark.parametrize("changes", LocalChanges)
def test_changes_of_the_destination(pair, rng, changes):
    source, copy = pair
    write(source, "/a", rng.bytes(9000))
    source.snapshot("one")
    bring(source, copy, "one")
    mine, new = rng.bytes(5000), rng.bytes(5000)
    write(copy, "/mine", mine)
    write(source, "/b", new)
    source.snapshot("two")
    if changes is LocalChanges.REFUSE:
        with pytest.raises(RefusedError, match="was written to since one"):
            bring(source, copy, "two", changes)
        assert read(copy, "/mine") == mine
        return
    found = bring(source, copy, "two", changes)
    assert (read(copy, "/b"), bp.FileSystem(copy).exists("/mine")) == (new, False)
    if changes is LocalChanges.FLUSH:
        assert (found.kept, [s.name for s in copy.snapshots]) == (None, ["one", "two"])
    else:
        assert found.kept is not None
        assert bp.FileSystem(copy.state(found.kept)).read_bytes("/mine") == mine
    assert bp.check(copy).ok


def test_a_puller_and_the_next_tier(pair, rng, tmp_path):
    source, copy = pair
    write(source, "/a", rng.bytes(30_000))
    source.snapshot("one")
    VolumePeer(source).bring("one", copy, LocalChanges.REFUSE)
    with bp.Volume.create(tmp_path / "far", disks=4, size="8MiB") as far:
        VolumePeer(copy).bring("one", far, LocalChanges.REFUSE)
        write(source, "/a", new := rng.bytes(30_000))
        source.snapshot("two")
        found = VolumePeer(source).bring("two", far, LocalChanges.REFUSE)  # past the one between
        assert (found.base, read(far, "/a")) == ("one", new)
        with pytest.raises(NoSuchSnapshotError, match="has no snapshot three"):
            VolumePeer(source).bring("three", far, LocalChanges.REFUSE)
