"""Increments on a base of which the sender keeps only a shadow."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from blockplane.image import chosen
from blockplane.image.evaluate import evaluate
from blockplane.image.image import build
from blockplane.model import ChecksumError, RefusedError, StreamMismatchError
from blockplane.stream.input import open_input
from blockplane.stream.reader import StreamReader
from blockplane.transfer.destination import VolumeDestination
from blockplane.transfer.receive import receive
from blockplane.transfer.send import send
from blockplane.volume import Volume
from blockplane.volume.check import check
from blockplane.volume.codec import KIND_REGULAR, TableEntry
from blockplane.volume.landing import Landing
from streams.volumes import Files, contents, fresh, members


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Iterator[Volume]:
    """Snapshot a, a shadow by now, whose blocks were reused; snapshot b after it."""
    with fresh(tmp_path / "source") as volume:
        files = Files(volume, rng)
        files.write(1, 0, 500)
        volume.snapshot("a")
        yield volume


@pytest.fixture
def target(tmp_path: Path, source: Volume) -> Iterator[Volume]:
    """What holds a as it was, on disks of another geometry."""
    receive(stream_of(source, "a"), tmp_path / "target", disks=3, size="16M", parity=1)
    with Volume.open(tmp_path / "target") as volume:
        yield volume


def stream_of(volume: Volume, text: str) -> io.BytesIO:
    stream = io.BytesIO()
    send(build(volume, text), stream)
    stream.seek(0)
    return stream


def go_on(volume: Volume, rng: np.random.Generator) -> None:
    """Make a a shadow, and write so much that its blocks are reused."""
    files = Files(volume, rng)
    files.reload()
    files.write(1, 100, 300)
    volume.sync()
    volume.shadow_snapshot("a")
    volume.space._spared = lambda: None  # the allocator does not care, and reuses what it finds first
    for start in range(0, 3000, 300):
        files.write(2, start % 900, 300)
        volume.sync()
    volume.snapshot("b")


def test_an_increment_on_a_shadow_builds_on_the_snapshot_that_the_destination_has(source, target, rng):
    go_on(source, rng)
    assert 0 < source.get_snapshot("a").n_blocks < source.get_snapshot("a").was_blocks
    image = build(source, "b - a")
    assert (image.complete, image.base.name) == (True, "a")
    stream = stream_of(source, "b - a")
    assert StreamReader(open_input(stream)).header.after_blocks == source.get_snapshot("b").n_blocks
    stream.seek(0)
    report = receive(stream, target)
    assert (report.top, report.base, report.n_blocks) == ("b", "a", image.n_blocks)
    assert contents(target.state("b")) == contents(source.state("b"))
    assert members(target.get_snapshot("b").plane) == members(source.get_snapshot("b").plane)
    assert check(target).problems == check(source).problems == []


def test_a_destination_that_has_only_a_shadow_of_the_base(source, target, rng):
    go_on(source, rng)
    target.shadow_snapshot("a")
    before = target.info.generation
    with pytest.raises(StreamMismatchError, match=r"builds on snapshot a, of which .* has only a shadow"):
        receive(stream_of(source, "b - a"), target)
    assert target.info.generation == before


def test_a_shadow_does_not_become_regular_by_a_receive(source, target):
    stream = stream_of(source, "a")
    target.shadow_snapshot("a")
    with pytest.raises(RefusedError, match="never becomes a regular snapshot again") as refusal:
        receive(stream, target, discard=True)
    assert "snapshot delete" in refusal.value.hint
    target.delete_snapshot("a")
    stream.seek(0)
    assert receive(stream, target, discard=True).top == "a"
    assert check(target).problems == []


def test_what_is_being_sent_stays(source, rng):
    go_on(source, rng)
    with source.pin(source.get_snapshot("a").record.id), pytest.raises(RefusedError, match="being read"):
        source.delete_snapshot("a")


def beside(work: Callable[[], None]) -> threading.Thread:
    """Let another thread work, and give it time; it may have to wait for us."""
    other = threading.Thread(target=work)
    other.start()
    other.join(timeout=2)
    return other


def test_points_that_pass_while_an_image_over_a_shadow_is_planned(source, target, rng):
    """What held the shadow's plane at the first look is reused two consistency points later."""
    files, others = Files(source, rng), []
    files.reload()
    files.write(1, 0, 500)
    source.snapshot("b")
    source.shadow_snapshot("a")
    source.space._spared = lambda: None  # the allocator does not care, and reuses what it finds first

    def write() -> None:
        for turn in range(80):
            with source.lock:
                files.write(2, 8 * (turn % 60), 8)
            source.sync()

    write()

    def disturbed(*args):
        if not others:
            others.append(beside(write))
        return evaluate(*args)

    with mock.patch.object(chosen, "evaluate", disturbed):
        before = source.get_snapshot("a").n_blocks
        image = build(source, "b - a")
    others[0].join()
    assert source.get_snapshot("a").n_blocks < before  # it did write where the shadow's blocks lay
    stream = io.BytesIO()
    send(image, stream)
    stream.seek(0)
    receive(stream, target)
    assert contents(target.state("b")) == contents(source.state("b"))
    assert check(target).problems == []


def test_a_snapshot_that_becomes_a_shadow_before_it_is_read_is_refused(source, rng):
    files = Files(source, rng)
    files.reload()
    files.write(1, 100, 100)
    source.snapshot("b")
    image = build(source, "b - a")
    source.shadow_snapshot("b")
    with pytest.raises(RefusedError, match="b became a shadow meanwhile"):
        send(image, io.BytesIO())


# --- planted: a destination that builds on a shadow as if it were whole (law 9) ------------------------------------


def built_upon(target: Volume, stream: io.BytesIO) -> None:
    """Receive an increment on a shadow's plane."""
    shadow = target.local.entry("a")

    def as_if_whole(destination: VolumeDestination, base: object) -> TableEntry:
        return TableEntry(replace(shadow.record, kind=KIND_REGULAR), shadow.place_map)

    with (
        mock.patch.object(VolumeDestination, "_refuse_shadowed"),
        mock.patch.object(VolumeDestination, "_base", as_if_whole),
        mock.patch.object(Landing, "_refuse_gone"),  # which notices too
    ):
        receive(stream, target, discard=True)


def is_reused(volume: Volume) -> bool:
    shadow = volume.get_snapshot("a")
    return shadow.n_blocks < shadow.was_blocks


@pytest.mark.parametrize("reuse", [False, True])
def test_a_shadow_built_upon(source, target, rng, reuse):
    """Where blocks of it were reused, their checks say so, at the receive or to who checks; else it is still whole."""
    files = Files(source, rng)
    files.reload()
    files.write(1, 100, 300)
    source.snapshot("b")
    stream, theirs = stream_of(source, "b - a"), Files(target, rng)
    theirs.reload()
    theirs.punch(1, 0, 500)
    target.sync()
    target.shadow_snapshot("a")
    target.space._spared = lambda: None  # the allocator does not care, and reuses what it finds first
    n_written = 0
    while reuse and not is_reused(target):
        theirs.write(2, n_written, 300)
        n_written += 300
        target.sync()
    before = target.info.state
    try:
        built_upon(target, stream)
    except ChecksumError:
        assert reuse
        assert target.info.state == before
        assert [snapshot.name for snapshot in target.snapshots] == ["a"]
        assert check(target).problems == []
    else:
        assert bool(check(target).problems) == reuse
