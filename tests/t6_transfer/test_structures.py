"""Incremental mirrors: a base in streams or on tapes, and a volume that holds only what differs from it."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import NotAVolumeError, RefusedError, StreamError, StreamMismatchError
from blockplane.transfer import mirrors
from blockplane.transfer import structure as structures
from blockplane.transfer.newvolume import Opening
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import image_towards, standing_of

SIZE = "16MiB"


@pytest.fixture
def source(tmp_path: Path, rng):
    with bp.Volume.create(tmp_path / "source", disks=3, size="16MiB") as volume:
        files = bp.FileSystem(volume)
        files.mkdir("/d")
        for number in range(20):
            files.write_bytes(f"/d/{number}", rng.bytes(150_000))
        volume.snapshot("one")
        yield volume


def begin(folder: Path, *base: Path, disks: int = 1, size: str = SIZE) -> bp.Volume:
    return bp.create_structure(folder, base, disks=disks, size=size)


def bring(source: bp.Volume, copy: bp.Volume, top: str):
    return VolumePeer(copy).take(image_towards(source, top, standing_of(copy)), LocalChanges.REFUSE)


def change(source: bp.Volume, rng, name: str) -> None:
    files = bp.FileSystem(source)
    for number in rng.integers(0, 20, 4).tolist():
        with files.open(f"/d/{number}", "r+") as file:
            file.seek(int(rng.integers(0, 30)) * 4096)
            file.write(rng.bytes(20_000))
    files.write_bytes(f"/d/{name}", rng.bytes(50_000))
    source.snapshot(name)


def assert_equal(source: bp.Volume, copy: bp.Volume, name: str) -> None:
    mine, theirs = (bp.FileSystem(volume.state(name)) for volume in (source, copy))
    names = sorted(mine.listdir("/d"))
    assert sorted(theirs.listdir("/d")) == names
    for each in names:
        assert theirs.read_bytes(f"/d/{each}") == mine.read_bytes(f"/d/{each}"), (name, each)


def test_incremental_mirroring_330_to_340_and_reintegration(source, tmp_path, rng):
    full = tmp_path / "full.bps"
    bp.send(source.image("one"), full)
    before = full.read_bytes()
    with begin(tmp_path / "structure", full) as structure:
        assert_equal(source, structure, "one")
        used = structure.used_blocks
        assert used < 30  # its own trees
        for name in ("two", "three", "four"):
            change(source, rng, name)
            assert bring(source, structure, name).base is not None
            assert_equal(source, structure, name)
            structure.delete_snapshot(*[s.name for s in structure.snapshots if s.name not in ("one", name)])
            structure.sync()
        assert structure.settle().n_moved == 0  # the homes are the base's
        difference = source.image("four - one").n_blocks
        grown = structure.used_blocks - used
        assert difference <= grown + 1
        assert grown <= difference * 1.05 + 8
        assert bp.check(structure).problems == []
    with bp.Volume.open(tmp_path / "structure") as structure:
        assert_equal(source, structure, "four")
        assert_equal(source, structure, "one")
        bp.copy(structure.image("four"), tmp_path / "whole", disks=2, size="24MiB", opening=Opening(bp.Volume))
    with bp.Volume.open(tmp_path / "whole") as whole:
        assert_equal(source, whole, "four")
        assert bp.check(whole).ok
        change(source, rng, "five")
        assert bring(source, whole, "five").base == "four"
        assert_equal(source, whole, "five")
    assert full.read_bytes() == before


def test_the_base_stays(source, tmp_path, rng):
    full = tmp_path / "full.bps"
    bp.send(source.image("one"), full)
    with begin(tmp_path / "structure", full) as structure:
        with pytest.raises(RefusedError, match="is held by base"):
            structure.delete_snapshot("one")
        with pytest.raises(RefusedError, match="is built on one"):
            structure.release_snapshot("one", "base")
        with pytest.raises(RefusedError, match="gives no RAID group back"):
            structure.shrink(0)
        free = structure.free_blocks
        structure.grow(disks=1, size="8MiB")
        assert structure.free_blocks > free
        change(source, rng, "two")
        bring(source, structure, "two")
        assert_equal(source, structure, "two")
    full.rename(tmp_path / "elsewhere.bps")
    with pytest.raises(StreamError, match=r"structure is built on cannot be opened: .*full\.bps") as refused:
        bp.Volume.open(tmp_path / "structure")
    assert "say in" in refused.value.hint
    bp.send(source.image("two"), full)
    with pytest.raises(StreamMismatchError, match="not what the volume is built on"):
        bp.Volume.open(tmp_path / "structure")
    toml = tmp_path / "structure" / "volume.toml"
    toml.write_text(toml.read_text().replace("/full.bps", "/elsewhere.bps"))
    with bp.Volume.open(tmp_path / "structure") as structure:
        assert_equal(source, structure, "two")


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_what_only_volume_toml_says_is_not_said_to_be_made_anew(source, tmp_path, how):
    bp.send(source.image("one"), tmp_path / "full.bps")
    begin(tmp_path / "structure", tmp_path / "full.bps").close()
    toml = tmp_path / "structure" / "volume.toml"
    kept = toml.read_bytes()
    assert b"keep a copy" in kept
    assert b"ade anew" not in kept
    assert b"ade anew" in (source.path / "volume.toml").read_bytes()
    if how == "lost":
        toml.unlink()
    else:
        toml.write_text("base = ")
    with pytest.raises(NotAVolumeError) as refused:
        bp.Volume.open(tmp_path / "structure")
    assert "put a copy of it back" in refused.value.hint
    toml.write_bytes(kept)
    with bp.Volume.open(tmp_path / "structure") as structure:
        assert_equal(source, structure, "one")


def test_written_to_after_a_takeover(source, tmp_path, rng):
    full = tmp_path / "full.bps"
    bp.send(source.image("one"), full)
    change(source, rng, "two")
    with begin(tmp_path / "structure", full, disks=3) as structure:
        bring(source, structure, "two")
        files = bp.FileSystem(structure)
        files.write_bytes("/mine", mine := rng.bytes(300_000))
        files.unlink("/d/3")
        with files.open("/d/4", "r+") as file:
            file.write(b"changed")
        structure.snapshot("mine")
        assert bp.check(structure).problems == []
    with bp.Volume.open(tmp_path / "structure") as structure:
        files = bp.FileSystem(structure)
        assert (files.read_bytes("/mine"), files.exists("/d/3")) == (mine, False)
        assert files.read_bytes("/d/4")[:7] == b"changed"
        assert_equal(source, structure, "two")


def test_a_base_of_several_streams_or_tapes(source, tmp_path, rng):
    bp.send(source.image("one"), tmp_path / "a.bps")
    change(source, rng, "two")
    bp.send(source.image("two - one"), tmp_path / "b.bps", compress="zstd")
    bp.write_tape(source.image("two"), [tmp_path / "t.tap"])
    change(source, rng, "three")
    for name, base in (("s", [tmp_path / "a.bps", tmp_path / "b.bps"]), ("t", [tmp_path / "t.tap"])):
        with begin(tmp_path / name, *base) as structure:
            assert_equal(source, structure, "two")
            bring(source, structure, "three")
            assert_equal(source, structure, "three")
            assert bp.check(structure).ok
    with pytest.raises(StreamMismatchError, match="builds on snapshot one"):
        begin(tmp_path / "u", tmp_path / "b.bps")
    assert not (tmp_path / "u").exists()


def test_a_structure_whose_maker_was_stopped_is_nobodys_and_made_again(source, tmp_path, monkeypatch):
    full, folder = tmp_path / "full.bps", tmp_path / "structure"
    bp.send(source.image("one"), full)
    with monkeypatch.context() as patch:  # as a kill leaves it, when the volume is there and its base not yet taken up
        patch.setattr(structures, "adopt", lambda volume, *_: volume.abandon())
        patch.setattr(structures, "unmark", lambda _: None)
        begin(folder, full)
    for writable in (False, True):
        with pytest.raises(NotAVolumeError, match="was being made"):
            bp.Volume.open(folder, writable=writable)
    with begin(folder, full) as structure:
        assert_equal(source, structure, "one")
        assert not (folder / "making").exists()


def test_the_base_is_held_in_the_consistency_point_that_brings_it(source, tmp_path, monkeypatch):
    full, seen = tmp_path / "full.bps", []
    bp.send(source.image("one"), full)
    commit = bp.Volume.commit

    def committed(volume: bp.Volume, **options) -> None:
        commit(volume, **options)
        if volume is not source:
            seen.append((len(volume.committed_local.entries()), [hold.owner for hold in volume.local.holds()]))

    monkeypatch.setattr(bp.Volume, "commit", committed)
    begin(tmp_path / "structure", full).close()
    assert seen[-1] == (1, ["base"])
    assert [owners for n, owners in seen if n and owners != ["base"]] == []


def test_calls_that_are_given_its_folder_open_the_base_too(source, tmp_path, rng):
    bp.send(source.image("one"), tmp_path / "full.bps")
    folder, increments = tmp_path / "structure", [tmp_path / "two.bps", tmp_path / "three.bps"]
    wish = mirrors.DiskWish(1, SIZE)
    mirrors.add(source, str(folder), kind="incremental", base=[tmp_path / "full.bps"], wish=wish)
    change(source, rng, "two")
    assert [ran.error for ran in mirrors.run_once(source, now=True)] == [""]
    assert mirrors.remove_mirror(source, str(folder)).told
    for top, base, stream in (("three", "two", increments[0]), ("four", "three", increments[1])):
        change(source, rng, top)
        bp.send(source.image(f"{top} - {base}"), stream)
    bp.receive(increments[0], folder)
    bp.copy(source.image("four - three"), folder)
    with bp.Volume.open(folder) as structure:
        assert_equal(source, structure, "four")
