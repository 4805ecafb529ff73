"""One gather for all who send one image at once: who shares it, who is left behind, what each gets."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks import HEAD_BLOCKS
from blockplane.image.feeds import Feeds
from blockplane.model.errors import ChecksumError
from blockplane.server.network import Event, Transfer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.send import ImageSending
from rig.network import Hosts
from streams.volumes import Files, contents, fresh

N_BLOCKS = 3000
#: So that the image has a dozen windows for each that is in memory.
WINDOW_BLOCKS, RING_BYTES = 64, 1 << 20


@pytest.fixture
def source(tmp_path, rng):
    with bp.Volume.create(tmp_path / "source", disks=4, size="24M", parity=1) as volume:
        Files(volume, rng).write(1, 0, N_BLOCKS)
        volume.snapshot("one")
        yield volume


class Gate(io.BytesIO):
    """Takes a stream, and does not go on behind some bytes until it may."""

    def __init__(self, at: int, opens: threading.Event) -> None:
        super().__init__()
        self.waits = threading.Event()
        self._at, self._opens = at, opens

    def write(self, data) -> int:
        if self.tell() + len(data) > self._at and not self._opens.is_set():
            self.waits.set()
            assert self._opens.wait(20)
        return super().write(data)


def sending(volume, feeds: Feeds, name: str = "one") -> ImageSending:
    return ImageSending(volume.image(name), window_blocks=WINDOW_BLOCKS, ring_bytes=RING_BYTES, feeds=feeds)


def n_read(volume, call) -> int:
    before = volume.array.counters().read_bytes
    call()
    return volume.array.counters().read_bytes - before


def require_received(stream: io.BytesIO, volume, path: Path, name: str = "one") -> None:
    stream.seek(0)
    bp.receive(stream, path)
    with bp.Volume.open(path) as copy:
        assert contents(copy.active) == contents(volume.get_snapshot(name).state)


def test_those_who_begin_together_read_once(source, tmp_path):
    feeds, together = Feeds(), threading.Event()
    sinks = [Gate(0, together) for _ in range(3)]

    def all_send() -> None:
        with ThreadPoolExecutor() as pool:
            done = [pool.submit(bp.send, sending(source, feeds), sink) for sink in sinks]
            assert all(sink.waits.wait(20) for sink in sinks)
            together.set()
            for one in done:
                one.result()

    read = n_read(source, all_send)
    assert read < 1.3 * N_BLOCKS * 4096
    alone = io.BytesIO()
    assert n_read(source, lambda: bp.send(sending(source, Feeds()), alone)) >= N_BLOCKS * 4096
    assert {len(sink.getvalue()) for sink in sinks} == {len(alone.getvalue())}
    for number, sink in enumerate(sinks):
        require_received(sink, source, tmp_path / f"copy{number}")
    assert feeds._going == []


@pytest.mark.parametrize("n_slow", [1, 4])
def test_who_is_slow_is_left_behind_and_gets_all_of_it(source, tmp_path, n_slow):
    feeds, opens, together = Feeds(), threading.Event(), threading.Event()
    slow, quick = [Gate(2_000_000 * (i + 1), opens) for i in range(n_slow)], Gate(0, together)

    def all_send() -> None:
        with ThreadPoolExecutor() as pool:
            done = [pool.submit(bp.send, sending(source, feeds), sink) for sink in slow]
            last = pool.submit(bp.send, sending(source, feeds), quick)
            assert all(sink.waits.wait(20) for sink in [*slow, quick])
            together.set()
            last.result()  # before any of the slow goes on
            assert not any(one.done() for one in done)
            opens.set()
            for one in done:
                one.result()

    read = n_read(source, all_send)
    rest = N_BLOCKS * 4096 - 2_000_000
    assert read < 1.3 * N_BLOCKS * 4096 + n_slow * rest
    for number, sink in enumerate([*slow, quick]):
        require_received(sink, source, tmp_path / f"copy{number}")
    assert feeds._going == []


def test_who_is_a_little_slow_all_the_time_is_left_behind(source):
    """It never holds the others up for long at once; in all they wait for a second, of some ten."""
    feeds, n_slow = Feeds(), 0
    is_over = threading.Event()

    def slow() -> None:
        nonlocal n_slow
        with sending(source, feeds).windows() as windows:
            for _ in windows:
                n_slow += 1
                is_over.wait(0.4)

    with ThreadPoolExecutor(1) as pool, sending(source, feeds).windows() as windows:
        other = pool.submit(slow)
        n_quick = sum(1 for _ in windows)
        assert n_slow < n_quick // 2
        is_over.set()
        other.result()
    assert n_slow == n_quick


def test_who_comes_late_reads_by_itself(source, tmp_path):
    feeds, opens = Feeds(), threading.Event()
    first, second = Gate(6_000_000, opens), io.BytesIO()
    with ThreadPoolExecutor() as pool:
        done = pool.submit(bp.send, sending(source, feeds), first)
        assert first.waits.wait(20)
        bp.send(sending(source, feeds), second)
        opens.set()
        done.result()
    for number, sink in enumerate([first, second]):
        require_received(sink, source, tmp_path / f"copy{number}")


def test_other_images_and_volumes_share_nothing(source, tmp_path):
    """A copy has the same snapshots, by their ids."""
    bp.copy(source.image("one"), tmp_path / "other")
    source.snapshot("two")
    with bp.Volume.open(tmp_path / "other") as other:
        feeds, opens = Feeds(), threading.Event()
        cases = [(source, "one"), (source, "two"), (other, "one")]
        sinks = [Gate(0, opens) for _ in cases]
        before = other.array.counters().read_bytes
        with ThreadPoolExecutor() as pool:
            done = [
                pool.submit(bp.send, sending(volume, feeds, name), sink)
                for (volume, name), sink in zip(cases, sinks, strict=True)
            ]
            assert all(sink.waits.wait(20) for sink in sinks)
            opens.set()
            for one in done:
                one.result()
        assert other.array.counters().read_bytes - before >= N_BLOCKS * 4096
        for number, ((volume, name), sink) in enumerate(zip(cases, sinks, strict=True)):
            require_received(sink, volume, tmp_path / f"copy{number}", name)


class Broken(Gate):
    """Ends in the middle."""

    def write(self, data) -> int:
        if self.tell() > 1_000_000:
            raise OSError(32, "Broken pipe")
        return super().write(data)


def test_who_ends_in_the_middle_holds_nobody_up(source, tmp_path):
    feeds, opens = Feeds(), threading.Event()
    broken, whole = Broken(0, opens), Gate(0, opens)
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(bp.send, sending(source, feeds), sink) for sink in (broken, whole)]
        assert broken.waits.wait(20)
        assert whole.waits.wait(20)
        opens.set()
        with pytest.raises(OSError, match="Broken"):
            done[0].result()
        done[1].result()
    require_received(whole, source, tmp_path / "copy")
    assert feeds._going == []


def test_a_bad_block_ends_it_for_all(source):
    vbn = int(source.image("one").plane.select(2500))
    disk, dbn = (int(part[0]) for part in source.geometry.to_disk(np.array([vbn])))
    with open(source.array.disks[disk].path, "r+b") as file:
        file.seek((dbn + HEAD_BLOCKS) * 4096 + 77)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    feeds, opens = Feeds(), threading.Event()
    sinks = [Gate(0, opens) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(bp.send, sending(source, feeds), sink) for sink in sinks]
        assert all(sink.waits.wait(20) for sink in sinks)
        opens.set()
        for one in done:
            with pytest.raises(ChecksumError, match=f"block {vbn} on"):
                one.result()
    assert feeds._going == []


def test_destinations_that_pull_together_are_fed_by_one_gather(tmp_path, rng):
    """Over the network, from one listener that knows them."""
    hosts, together = Hosts.make(tmp_path / "tls"), threading.Barrier(3)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(fresh(tmp_path / "source", size="60M"))
        copies = [stack.enter_context(fresh(tmp_path / f"copy{i}", size="60M")) for i in range(3)]

        @contextlib.contextmanager
        def opened(_: Transfer):
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(10)
            yield source

        told: list[Event] = []
        rights = {"source": {"pool": ["read"]}}
        listening = hosts.listening({"pool": opened}, rights, rate=lambda: 10e6, tell=told.append)
        address = stack.enter_context(listening).address

        def pull(copy) -> None:
            hosts.peer(address).bring(source.snapshots[-1].name, copy, LocalChanges.REFUSE)

        files, n_blocks = Files(source, rng), 4000
        for name, n_written in ("one", 10), ("two", n_blocks):
            with source.lock:  # sessions may still note what arrived
                files.write(1, 0, n_written)
            source.snapshot(name)
            with ThreadPoolExecutor() as pool:
                read = n_read(source, lambda: list(pool.map(pull, copies)))
        assert n_blocks * 4096 <= read < 1.5 * n_blocks * 4096
        for copy in copies:
            assert contents(copy.active) == contents(source.active)
        # fifteen connections from one address, of which four are greeted at a time
        assert {event.what for event in told} == {"began", "done"}
