"""What other threads of a process do while a receive, a check or a shrink is between two of its steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError
from blockplane.transfer.destination import VolumeDestination
from blockplane.volume import emptying


@pytest.fixture
def streams(tmp_path, rng) -> list[Path]:
    """1.bps of s1, which has 3 MB in /a, and 2.bps of s2 - s1."""
    paths = [tmp_path / "1.bps", tmp_path / "2.bps"]
    with bp.Volume.create(tmp_path / "source", disks=2, size="24M") as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/a", rng.bytes(3_000_000))
        volume.snapshot("s1")
        bp.send(volume.image("s1"), paths[0])
        files.write_bytes("/b", rng.bytes(1_500_000))
        volume.snapshot("s2")
        bp.send(volume.image("s2 - s1"), paths[1])
    return paths


def by_another(act: Callable[[], object], wait_s: float | None = None) -> threading.Thread:
    """Do something in another thread; return that, ended unless it waited longer."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(wait_s)
    return thread


@pytest.mark.parametrize("kind", ["full", "increment"])
def test_what_is_synced_before_a_receive_takes_hold_is_not_lost(streams, tmp_path, kind):
    accept = VolumeDestination.accept
    with bp.Volume.create(tmp_path / "copy", disks=2, size="24M") as volume:
        if kind == "increment":
            bp.receive(streams[0], volume)

        def write() -> None:
            bp.FileSystem(volume).write_bytes("/mine", b"precious")
            volume.sync()

        def accept_then_write(self, *args, **options) -> None:
            accept(self, *args, **options)
            by_another(write)

        with (
            mock.patch.object(VolumeDestination, "accept", accept_then_write),
            pytest.raises(RefusedError, match="was written to while it received; these changes would be lost"),
        ):
            bp.receive(streams[kind == "increment"], volume)
        assert bp.FileSystem(volume).read_bytes("/mine") == b"precious"
        assert (bp.check(volume).problems, volume.incoming.n_blocks) == ([], 0)


def test_a_base_that_is_deleted_before_it_is_pinned(streams, tmp_path):
    """It is on a volume that is nearly full, so that what it alone had is written over."""
    bp.receive(streams[0], tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        files, n = bp.FileSystem(volume), 0
        files.unlink("/a")
        while volume.available_blocks > 900:
            files.write_bytes(f"/fill{n}", bytes(400_000))
            volume.commit()
            n += 1
        pin, is_gone = volume.pin, []

        def delete() -> None:
            volume.delete_snapshot("s1")
            for _ in range(2):
                volume.commit(force=True)

        def delete_then_pin(snapshot_id):
            if not is_gone:
                is_gone.append(True)
                by_another(delete)
            return pin(snapshot_id)

        with (
            mock.patch.object(volume, "pin", delete_then_pin),
            pytest.raises(RefusedError, match="snapshot s1, which the image builds on, went meanwhile"),
        ):
            bp.receive(streams[1], volume, discard=True)
        assert ([s.name for s in volume.snapshots], bp.check(volume).problems) == ([], [])


def test_a_check_beside_a_writer_finds_nothing(tmp_path, rng):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="16M") as volume:
        files = bp.FileSystem(volume)
        for i in range(30):
            files.mkdir(f"/{i}")

        def write() -> None:
            for _ in range(3):
                for i in range(600):
                    files.write_bytes(f"/{i % 30}/{i}", rng.bytes(5000))
                volume.sync()

        write()
        writers, phases = [], []

        def step() -> None:
            if "live" in phases[-1] and not writers:
                writers.append(by_another(write, 2.0))

        report = bp.check(volume, phase=phases.append, step=step)
        writers[0].join()
        assert (report.problems, bp.check(volume).problems) == ([], [])


def test_a_snapshot_that_becomes_a_shadow_while_all_is_checked(tmp_path, rng):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8M") as volume:
        bp.FileSystem(volume).write_bytes("/a", rng.bytes(9000))
        for name in ("s1", "s2"):
            volume.snapshot(name)
        report = bp.check(volume, phase=lambda what: volume.shadow_snapshot("s1") if "live" in what else None)
        assert report.problems == []


@pytest.mark.parametrize("next_group", [None, 0])
def test_a_shrink_that_is_called_off_when_all_has_moved(tmp_path, rng, next_group):
    """Called off, and one of another group begun, which is interrupted: nothing of what that holds is forgotten."""
    step, lock_is_wanted, main = emptying.Emptying.step, threading.Event(), threading.current_thread()
    with bp.Volume.create(tmp_path / "pool", disks=2, size="16M") as volume:
        files, content = bp.FileSystem(volume), rng.bytes(1_000_000)
        files.write_bytes("/a", content)
        volume.snapshot("s1")
        files.unlink("/a")
        volume.grow(disks=2, size="16M")

        def step_or_end(self, *args) -> int:
            if threading.current_thread() is not main:
                raise KeyboardInterrupt
            n = step(self, *args)
            if not n:
                lock_is_wanted.set()
            return n

        def call_off() -> None:
            volume.cancel_shrink()
            if next_group is not None:
                with pytest.raises(KeyboardInterrupt):
                    volume.shrink(next_group)

        class Lock:
            def __enter__(self) -> None:
                if lock_is_wanted.is_set() and threading.current_thread() is main:
                    lock_is_wanted.clear()
                    by_another(call_off)
                lock.__enter__()

            def __exit__(self, *what: object) -> None:
                lock.__exit__(*what)

        lock = volume.lock
        with (
            mock.patch.object(emptying.Emptying, "step", step_or_end),
            mock.patch.object(volume, "lock", Lock()),
            pytest.raises(RefusedError, match="taking RAID group 1 out was called off"),
        ):
            volume.shrink(1)
        if next_group is not None:
            volume.cancel_shrink()
        assert bp.check(volume).problems == []
        for i in range(10):
            files.write_bytes(f"/n{i}", rng.bytes(500_000))
            volume.sync()
        assert bp.FileSystem(volume.get_snapshot("s1")).read_bytes("/a") == content
