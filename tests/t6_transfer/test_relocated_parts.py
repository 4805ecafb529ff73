"""Parts of images onto a volume with fewer places than the source has numbers: one by one, at once, interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockplane as bp
from equality import differences, volume_tree

NAMES = ["s0", "s1", "s2"]
SMALL = {"disks": 3, "size": "40M", "parity": 1, "chunk": "256KiB"}


@pytest.fixture
def source(tmp_path, rng):
    """1.5 GiB of numbers in two groups, a few mebibytes in them, in three snapshots."""
    with bp.Volume.create(tmp_path / "source", disks=4, size="260M", parity=1) as volume:
        volume.grow(disks=3, size="400M", parity=1)
        files = bp.FileSystem(volume)
        for step, name in enumerate(NAMES):
            for part in range(4):
                volume.sync()
                volume.placer._cursor[False] = (part % 2, 3 * part + step)
                files.write_bytes(f"/{step}-{part}", rng.bytes(600_000 + 1000 * part))
            files.write_bytes("/changing", rng.bytes(700_000))
            if step == 2:
                files.unlink("/0-1")
            volume.snapshot(name)
        yield volume


def sent_in_parts(source: bp.Volume, folder: Path, **how: object) -> list[list[Path]]:
    """A full image and two increments, each in three parts: by an expression, and the rest in halves, or in thirds."""
    folder.mkdir(exist_ok=True)
    every = []
    for i, name in enumerate(NAMES):
        image = source.image(f"{name} - {NAMES[i - 1]}" if i else name)
        files = [folder / f"{name}-{part}.bps" for part in range(3)]
        chosen = [f"s2 & {name}" if i < 2 else None, None, None]
        bp.send_parts(image, [bp.Part(*each) for each in zip(files, chosen, strict=True)], **how)
        every.append(files)
    return every


def require_equal(source: bp.Volume, path: Path) -> None:
    with bp.Volume.open(path) as copy:
        assert bp.check(copy).problems == []
        assert bp.interrupted_receives(copy) == []
        assert copy.incoming.n_blocks == 0
        assert [snapshot.name for snapshot in copy.snapshots] == NAMES
        for name in NAMES:
            trees = [volume_tree(bp.FileSystem(v.get_snapshot(name)), between_volumes=True) for v in (source, copy)]
            assert differences(*trees) == []
        state = copy.get_snapshot("s2").state
        assert state.placemap.stop > copy.geometry.n_blocks  # it is a smaller one
        assert copy.geometry.n_blocks < state.space_blocks // 4


@pytest.mark.parametrize("how", [{}, {"order": "tape", "locations": "implicit", "compress": "zstd"}])
def test_one_by_one_in_any_order(source, tmp_path, rng, how):
    """It is said with the first part alone: the others, and the increments, go on as it began."""
    for i, files in enumerate(sent_in_parts(source, tmp_path / "streams", **how)):
        for at, number in enumerate(rng.permutation(3).tolist()):
            shape = SMALL if not i and not at else {}
            report = bp.receive(files[number], tmp_path / "small", relocate=not i, **shape)
            assert list(report.arrived) == ([NAMES[i]] if at == 2 else [])
            assert (report.n_blocks_missing == 0) == (at == 2)
    require_equal(source, tmp_path / "small")


def test_at_once_from_a_folder(source, tmp_path):
    sent_in_parts(source, tmp_path / "streams")
    report = bp.receive_streams(tmp_path / "streams", target=tmp_path / "small", relocate=True, **SMALL)
    assert sorted(report.arrives) == NAMES
    require_equal(source, tmp_path / "small")


def test_without_the_word_nothing_is_made(source, tmp_path):
    every = sent_in_parts(source, tmp_path / "streams")
    with pytest.raises(bp.errors.RefusedError, match=r"holds block \d+, and .* has \d+ blocks"):
        bp.receive(every[0][1], tmp_path / "small", **SMALL)
    with pytest.raises(bp.errors.RefusedError, match=r"holds block \d+, and .* has \d+ blocks"):
        bp.receive_streams(tmp_path / "streams", target=tmp_path / "small", **SMALL)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("percent", [40, 90])
def test_an_interrupted_part_is_gone_on_with(source, tmp_path, percent):
    """In the full image and in an increment: the rest of the part comes again, or all of it, after another part."""
    every = sent_in_parts(source, tmp_path / "streams")
    for i, files in enumerate(every):
        shape = SMALL if not i else {}
        if i != 1:
            cut = tmp_path / "cut.bps"
            cut.write_bytes(files[1].read_bytes()[: files[1].stat().st_size * percent // 100])
            with pytest.raises(bp.errors.StreamTruncatedError):
                bp.receive(cut, tmp_path / "small", relocate=not i, **shape)
        bp.receive(files[2], tmp_path / "small", relocate=not i, **({} if (tmp_path / "small").exists() else shape))
        bp.receive(files[1], tmp_path / "small", relocate=not i)
        report = bp.receive(files[0], tmp_path / "small", relocate=not i)
        assert (list(report.arrived), report.n_blocks_missing) == ([NAMES[i]], 0)
    require_equal(source, tmp_path / "small")
