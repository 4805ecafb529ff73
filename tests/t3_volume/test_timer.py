"""The timer: what nobody syncs is durable all the same, and closing ends it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from blockplane.filesystem import FileSystem
from blockplane.model import ChecksumError
from blockplane.volume import Volume, deferred, live


def until(holds, seconds: float = 30.0) -> bool:
    """Whether something came to hold in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def timers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "blockplane timer"]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CP_INTERVAL_S", 0.05)


def test_what_nobody_syncs_is_durable_all_the_same(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "pool", disks=3, size="64M")
    FileSystem(volume).write_bytes("/a", b"x" * 10_000)
    written = volume.committed
    assert until(lambda: volume.committed is not written)
    volume.abandon()
    with Volume.open(tmp_path / "pool") as again:
        assert FileSystem(again).read_bytes("/a") == b"x" * 10_000


def test_the_timer_goes_on_as_long_as_the_volume_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it cannot do is told, and does not keep it from what is due besides."""

    def fail(volume: Volume) -> int:
        raise ChecksumError("block 7 does not match its checksum", 7)

    volume = Volume.create(tmp_path / "pool", disks=3, size="64M")
    with monkeypatch.context() as patched:
        patched.setattr(deferred, "reap", fail)
        assert until(lambda: bool(volume.warnings))
        for _ in range(2):
            written = volume.committed
            FileSystem(volume).write_bytes("/a", b"x" * 10_000)
            assert until(lambda: volume.committed is not written)  # noqa: B023
    assert volume.warnings == ["what is being deleted stays: block 7 does not match its checksum"]
    assert len(timers()) == 1
    volume.close()


def test_an_idle_volume_is_left_alone(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "pool", disks=3, size="64M") as volume:
        before = volume.array.counters()
        time.sleep(0.5)
        assert volume.array.counters() == before


def test_closing_ends_the_timer(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "pool", disks=3, size="64M")
    assert len(timers()) == 1
    volume.close()
    assert not timers()
    with Volume.open(tmp_path / "pool", writable=False):
        assert not timers()
    volume = Volume.open(tmp_path / "pool")
    assert len(timers()) == 1
    volume.abandon()
    assert not timers()


def test_writers_and_the_timer_do_not_disturb_each_other(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "pool", disks=3, size="64M") as volume:
        fs, first = FileSystem(volume), volume.committed.root.cp
        end = time.monotonic() + 2.0
        n = 0
        while time.monotonic() < end:
            fs.write_bytes(f"/{n % 50}", bytes([n % 251]) * (n % 9000))
            n += 1
        assert volume.committed.root.cp > first + 3
        contents = {f"/{i % 50}": bytes([i % 251]) * (i % 9000) for i in range(n)}
        assert {path: fs.read_bytes(path) for path in contents} == contents
    with Volume.open(tmp_path / "pool") as again:
        assert {path: FileSystem(again).read_bytes(path) for path in contents} == contents
