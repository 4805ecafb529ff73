"""A RAID group is taken out while an interrupted receive has places in it: they move too, and the receive goes on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.model import NoSpaceError, StreamDamagedError
from blockplane.transfer import resume_token
from blockplane.volume import shrink
from equality import differences, volume_tree

SHAPE = {"disks": 3, "size": "48M", "parity": 1, "chunk": "256KiB"}


def sent(volume: bp.Volume, expression: str) -> io.BytesIO:
    out = io.BytesIO()
    bp.send(volume.image(expression), out)
    out.seek(0)
    return out


@pytest.fixture
def source(tmp_path, rng):
    """Three snapshots, each with 6 MB more, in two groups."""
    with bp.Volume.create(tmp_path / "source", disks=4, size="64M", parity=1) as volume:
        volume.grow(disks=3, size="64M", parity=1)
        files = bp.FileSystem(volume)
        for step in range(3):
            for part in range(4):
                volume.sync()
                volume.placer._cursor[False] = (part % 2, 0)
                files.write_bytes(f"/{step}-{part}", rng.bytes(1_000_000 + 400_000 * part))
            volume.snapshot(f"s{step}")
        yield volume


def in_two_groups(path: Path, source: bp.Volume) -> bp.Volume:
    """A copy of s0 that has two groups."""
    with bp.Volume.create(path, **SHAPE) as volume:
        volume.grow(**SHAPE)
    bp.receive(sent(source, "s0"), path)
    return bp.Volume.open(path)


def interrupted(volume: bp.Volume, source: bp.Volume, percent: int) -> bytes:
    stream = sent(source, "s2 + s1 - s0").getvalue()
    with pytest.raises(bp.errors.StreamTruncatedError):
        bp.receive(io.BytesIO(stream[: len(stream) * percent // 100]), volume)
    return stream


def require_equal(volume: bp.Volume, source: bp.Volume) -> None:
    assert bp.check(volume).problems == []
    for name in ("s0", "s1", "s2"):
        mine, theirs = (volume_tree(bp.FileSystem(v.get_snapshot(name))) for v in (volume, source))
        assert differences(mine, theirs) == []


def n_reserved_in(volume: bp.Volume, index: int) -> int:
    group, tree = volume.geometry.groups[index], volume.local.incoming.images()[0].places
    leaves = [tree.read_block(leaf) for leaf in range(group.first // 32768, -(-group.stop // 32768))]
    return int(np.bitwise_count(np.concatenate(leaves)).sum())


@pytest.mark.parametrize(("index", "percent", "step_blocks"), [(0, 70, 300), (1, 40, 100_000)])
def test_it_moves_and_the_receive_goes_on(source, tmp_path, index, percent, step_blocks):
    with in_two_groups(tmp_path / "copy", source) as volume:
        stream = interrupted(volume, source, percent)
        before, reserved = resume_token(volume).copied, volume.n_incoming
        n_here = n_reserved_in(volume, index)
        plan = volume.plan_shrink(index)
        assert (plan.n_arriving, plan.fits) == (n_here, True)
        assert n_here > 100
        assert len(before) > 100
        done = []
        report = shrink.shrink(volume, index, lambda event: done.append(event.done_bytes), step_blocks)
        assert report.n_moved >= plan.n_moving + plan.n_arriving
        assert len(volume.geometry.groups) == 1
        assert volume.n_incoming == reserved
        assert bp.check(volume).problems == []
        after = resume_token(volume).copied
        assert len(after - before) == 0
        # what the journal alone knew counts as well
        assert len(before - after) == 0
    with bp.Volume.open(tmp_path / "copy") as volume:
        report = bp.receive(io.BytesIO(stream), volume)
        assert report.top == "s2"
        assert volume.n_incoming == 0
        require_equal(volume, source)


def test_between_two_steps_the_receive_goes_on_or_is_given_up(source, tmp_path):
    for ending in ("goes on", "given up"):
        path = tmp_path / ending
        with in_two_groups(path, source) as volume:
            stream = interrupted(volume, source, 60)
            with pytest.raises(KeyboardInterrupt):
                shrink.shrink(volume, 0, _stop_at(4), 200)
        with bp.Volume.open(path) as volume:
            assert volume.info.leaving == 0
            assert bp.check(volume).problems == []
            if ending == "goes on":
                bp.receive(io.BytesIO(stream), volume)
            else:
                bp.abort_receive(path, opened=_as_it_is(volume))
                assert volume.n_incoming == 0
            volume.shrink(0)
            assert len(volume.geometry.groups) == 1
            if ending == "given up":
                bp.receive(io.BytesIO(stream), volume)
            require_equal(volume, source)


def _stop_at(number: int):
    """Progress that is interrupted at its n-th event."""
    events = iter(range(number))

    def note(_: object) -> None:
        if next(events, None) is None:
            raise KeyboardInterrupt

    return note


class _as_it_is:  # noqa: N801 - reads as a function
    def __init__(self, volume: bp.Volume) -> None:
        self.volume = volume

    def __enter__(self) -> bp.Volume:
        return self.volume

    def __exit__(self, *_: object) -> None:
        pass


def test_a_block_that_rots_before_it_moves_is_found_before_anybody_sees_it(source, tmp_path):
    with in_two_groups(tmp_path / "copy", source) as volume:
        stream = interrupted(volume, source, 70)
        image = volume.local.incoming.images()[0]
        leaf = image.landed.read_block(0).view(np.uint8)
        place = int(np.flatnonzero(np.unpackbits(leaf, bitorder="little"))[5])
        disk, dbn = volume.geometry.locate(place, place + 1)
        raw = Path(volume.array.disks[disk].path)
        with raw.open("r+b") as file:
            file.seek((HEAD_BLOCKS + dbn) * 4096)
            file.write(b"\xa5" * 4096)
        volume.shrink(0)
        with pytest.raises(StreamDamagedError, match="block"):
            bp.receive(io.BytesIO(stream), volume)
        assert [snapshot.name for snapshot in volume.snapshots] == ["s0"]
        assert volume.n_incoming == 0
        bp.receive(io.BytesIO(stream), volume)
        require_equal(volume, source)


def test_places_that_others_have_no_room_for_are_refused_first(source, tmp_path):
    with bp.Volume.create(tmp_path / "copy", **{**SHAPE, "size": "7M"}) as volume:
        volume.grow(**SHAPE)
        bp.receive(sent(source, "s0"), volume)
        interrupted(volume, source, 50)
        plan, generation = volume.plan_shrink(1), volume.info.generation
        assert plan.n_arriving > 0
        assert not plan.fits
        with pytest.raises(NoSpaceError, match=rf"{plan.needed_blocks} blocks of RAID group 1 have to move"):
            volume.shrink(1)
        assert (volume.info.generation, volume.info.leaving) == (generation, None)
