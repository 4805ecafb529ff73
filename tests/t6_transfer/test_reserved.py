"""What an interrupted receive has: reserved after a crash too, counted once, and not waited for again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockplane.image import build
from blockplane.model import NoSpaceError, StreamTruncatedError
from blockplane.transfer import receive, resume_token, send
from blockplane.volume import Volume
from blockplane.volume.check import check
from blockplane.volume.landing_bands import LandingBands
from faults.inline import inline_workers
from faults.world import FileClient, geometry_of, make_volume, snapshot_files
from rig.transfers import small_frames


@pytest.fixture
def source() -> Iterator[Volume]:
    with inline_workers():
        volume = make_volume(geometry_of(2, 1, 1024), reserve_blocks=64)
        client = FileClient(volume)
        client.write(1, 0, range(1, 60))
        volume.snapshot("one")
        client.write(2, 0, range(100, 1100))
        volume.snapshot("two")
        yield volume
        volume.abandon()


@pytest.fixture
def target(tmp_path: Path, source: Volume) -> Iterator[Callable[[], Volume]]:
    """A volume that has `one`, opened anew at each call: what the process before it knew is gone."""
    receive(io.BytesIO(stream_of(source, "one")), tmp_path / "copy", disks=3, size="8M", parity=0)
    opened: list[Volume] = []

    def again() -> Volume:
        for volume in opened:
            volume.array.drain()
            volume.abandon()
        opened[:] = [Volume.open(tmp_path / "copy")]
        return opened[0]

    yield again
    opened[0].abandon()


def stream_of(volume: Volume, expression: str, **form: object) -> bytes:
    out = io.BytesIO()
    with small_frames():
        send(build(volume, expression), out, **form)
    return out.getvalue()


def cut_into(volume: Volume, stream: bytes, at: float) -> None:
    with pytest.raises(StreamTruncatedError):
        receive(io.BytesIO(stream[: int(len(stream) * at)]), volume)


def fill_up(volume: Volume, client: FileClient) -> None:
    """Write until there is no room."""
    for number in range(3, 60):
        client.write(number, 0, range(number * 1000, number * 1000 + 200))
        volume.sync()


def settle(volume: Volume) -> None:
    for _ in range(4):
        volume.commit(force=True)


def test_a_volume_that_is_filled_after_a_crash_leaves_what_is_incoming(source, target):
    """To the last block, with the increment's places reserved by what the disks say alone."""
    cut_into(target(), stream_of(source, "two - one"), 0.6)
    copied = resume_token(target()).copied
    volume = target()
    client = FileClient(volume)
    with pytest.raises(NoSpaceError):
        fill_up(volume, client)
    assert resume_token(volume).copied == copied
    assert len(copied) > 300
    assert check(volume).problems == []
    for number in [number for number in client.files if number > 2]:
        client.remove(number)
    settle(volume)
    rest = stream_of(source, "two - one", resume=resume_token(volume))
    assert receive(io.BytesIO(rest), target(), discard=True).n_blocks == len(build(source, "two - one").plane) - len(
        copied
    )
    volume = target()
    assert check(volume).problems == []
    assert snapshot_files(volume)["two"] == snapshot_files(source)["two"]


@pytest.mark.parametrize("with_token", [False, True])
def test_what_landed_is_counted_once(source, target, with_token):
    """Cut again and again, in the middle of bands, by the whole stream or by its rest."""
    stream, had = stream_of(source, "two - one"), 0
    for at in (0.3, 0.4, 0.6, 0.7):
        volume = target()
        if with_token and had:
            stream = stream_of(source, "two - one", resume=resume_token(volume))
        cut_into(volume, stream, at)
        for _ in range(2):
            copied = resume_token(volume).copied
            (image,) = volume.local.incoming.images()
            assert image.entry.n_landed <= len(copied)
            assert check(volume).problems == []
            volume = target()
        assert len(copied) > had
        had = len(copied)


def test_bands_wait_only_for_what_is_still_to_come(source, target, monkeypatch):
    """A band whose other blocks landed before goes out when it is whole, and not at the end with all others."""
    cut_into(target(), stream_of(source, "two - one"), 0.6)
    volume, left_open, finish = target(), [], LandingBands.finish

    def noting(bands: LandingBands) -> None:
        left_open.append(len(bands._open))
        finish(bands)

    monkeypatch.setattr(LandingBands, "finish", noting)
    receive(io.BytesIO(stream_of(source, "two - one", resume=resume_token(volume))), volume)
    assert left_open == [0]
    assert volume.get_snapshot("two").plane == source.get_snapshot("two").plane
