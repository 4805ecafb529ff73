"""Levels of increments, exactly top minus base; and a destination that goes on being read while it receives."""

from __future__ import annotations

import ast
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import model
from blockplane.filesystem import FileSystem
from blockplane.image.image import build
from blockplane.model import RefusedError
from blockplane.transfer.receive import receive
from blockplane.transfer.send import send
from blockplane.volume.check import check
from rig import Shape, describe, pairs
from rig.sets import numbers
from rig.site import Site, fill_pattern
from rig.transfers import Wish, transfer

#: what the model may import
ALLOWED = {"__future__", "collections", "copy", "os", "dataclasses", "itertools", "model"}
JUNE = [f"june{day}" for day in range(1, 10)]


def june(site: Site, seed: int) -> None:
    """Nine days of changes, a snapshot after each."""
    random = np.random.default_rng(seed)
    site.mkdir("/reports", 0o755)
    site.replace("/ledger", fill_pattern(120 * 4096, seed))
    for day, name in enumerate(JUNE):
        site.replace(f"/reports/{name}", fill_pattern(int(random.integers(1, 40_000)), day))
        for block in random.integers(0, 120, 6).tolist():
            site.write("/ledger", block * 4096, fill_pattern(4096, day * 1000 + block))
        if day >= 3:
            site.unlink(f"/reports/{JUNE[day - 3]}")
        site.create(name)


@pytest.fixture
def source() -> Iterator[Site]:
    site = Site("source", [Shape(3, 1, 64, 512)])
    june(site, 1)
    yield site
    site.close()


@pytest.fixture
def target() -> Iterator[Site]:
    site = Site("target", [Shape(2, 2, 128, 1024), Shape(1, 0, 512, 512, first=65536)])
    yield site
    site.check_everything()
    site.close()


LEVELS = [
    Wish("june3", ("june2", "june1")),
    Wish("june5", ("june4",), "june3"),
    Wish("june7", ("june6",), "june5"),
]


def test_a_chain_of_levels_brings_every_snapshot(source: Site, target: Site) -> None:
    for wish in LEVELS:
        report = transfer(source, target, wish)
        assert report is not None
        assert set(report.arrived) == {wish.top, *wish.beside}
    assert target.model.names() == JUNE[:7]
    for name in JUNE[:7]:
        target.check_snapshot(name)


def test_the_alternative_level_one_skips_what_lies_between(source: Site, target: Site) -> None:
    assert transfer(source, target, LEVELS[0])
    assert transfer(source, target, Wish("june9", ("june8",), "june3"))
    assert target.model.names() == [*JUNE[:3], "june8", "june9"]
    for name in target.model.names():
        target.check_snapshot(name)


def test_levels_survive_what_the_source_forgets(source: Site, target: Site) -> None:
    """The source deletes what it sent and writes over its blocks; the destination keeps both."""
    assert transfer(source, target, LEVELS[0])
    source.delete(["june1", "june2"])
    for day in range(12):
        source.replace("/ledger", fill_pattern(120 * 4096, 50 + day))
        source.sync()
    source.create("july1")
    assert transfer(source, target, Wish("july1", (), "june3"))
    for name in ["june1", "june2", "june3", "july1"]:
        target.check_snapshot(name)
    target.delete(["june3"])
    source.delete(["june3"])
    source.replace("/ledger", fill_pattern(120 * 4096, 99))
    source.create("july2")
    assert transfer(source, target, Wish("july2", (), "july1"))


def test_an_increment_is_top_minus_base_exactly(source: Site) -> None:
    held = {name: pairs(source.volume.get_snapshot(name).state) for name in JUNE}
    for i, base in enumerate(JUNE):
        for top in JUNE[i + 1 :]:
            image = build(source.volume, f"{top} - {base}")
            expected = {vbn for vbn, _ in held[top] - held[base]}
            assert numbers(image.plane.extents()) == expected
            assert image.n_blocks == len(expected)
            dropped = {vbn for vbn, _ in held[base]} - {vbn for vbn, _ in held[top]}
            assert numbers(image.dropped.extents()) & {vbn for vbn, _ in held[top]} == set()
            assert numbers(image.dropped.extents()) <= dropped


def test_the_old_state_is_read_unchanged_while_a_receive_runs(source: Site, target: Site) -> None:
    """A reader compares the live tree and a snapshot over and over, from the first frame to just before the flip."""
    assert transfer(source, target, LEVELS[0])
    stream = io.BytesIO()
    send(build(source.volume, "june9 - june3"), stream)
    stream.seek(0)
    expected = target.model.live.describe()
    reader = _Reader(target)
    reader.start()
    phases: list[str] = []

    def read_in_between(event: object) -> None:
        phases.append(getattr(event, "phase", ""))
        reader.wait_for_another()
        assert describe(target.fs) == expected

    receive(stream, target.volume, progress=read_in_between)
    reader.stop()
    assert phases[-1] == "commit"
    assert reader.n_rounds >= len(phases)
    assert not reader.problems
    found = source.model.named("june9")
    base = source.model.named("june3")
    assert found is not None
    target.model.receive([found], base)
    target.taken_in()
    target.check_everything()


def test_a_destination_deletes_and_retains_while_it_receives(source: Site, target: Site) -> None:
    assert transfer(source, target, LEVELS[0])
    stream, todo = io.BytesIO(), ["delete", "create"]

    def work_on(event: object) -> None:
        step = todo.pop() if todo else ""
        if step == "create":
            target.create("meanwhile")
        elif step == "delete":
            target.delete(["june1"])
        for _ in range(3):
            target.volume.commit(force=True)

    send(build(source.volume, "june9 - june3"), stream)
    stream.seek(0)
    receive(stream, target.volume, progress=work_on)
    found, base = source.model.named("june9"), source.model.named("june3")
    assert found is not None
    target.model.receive([found], base)
    target.taken_in()
    assert target.model.names() == ["june2", "june3", "meanwhile", "june9"]


def test_a_receive_refused_at_its_end_leaves_no_trace(source: Site, target: Site) -> None:
    assert transfer(source, target, LEVELS[0])
    stream = io.BytesIO()
    send(build(source.volume, "june9 - june3"), stream)
    stream.seek(0)
    numbers_of_files = iter(range(100))

    def write_on(event: object) -> None:
        target.replace(f"/late{next(numbers_of_files)}", fill_pattern(200_000, 7))
        target.sync()

    with pytest.raises(RefusedError, match="written to while it received"):
        receive(stream, target.volume, progress=write_on)
    target.check_everything()
    stream.seek(0)
    target.create("kept")
    receive(stream, target.volume, discard=True)
    found, base = source.model.named("june9"), source.model.named("june3")
    assert found is not None
    target.model.receive([found], base)
    target.taken_in()


class _Reader(threading.Thread):
    """Reads a snapshot of a volume until told to stop; what it finds must never change."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._volume = site.volume
        self._expected = describe(FileSystem(site.volume.get_snapshot("june3")))
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self.n_rounds = 0
        self.problems: list[str] = []

    def run(self) -> None:
        while not self._stopping.is_set():
            found = describe(FileSystem(self._volume.get_snapshot("june3")))
            if found != self._expected:
                self.problems.append(f"round {self.n_rounds} differs")
            with self._changed:
                self.n_rounds += 1
                self._changed.notify_all()

    def wait_for_another(self) -> None:
        """Return after a round that began after the call."""
        with self._changed:
            goal = self.n_rounds + 2
            assert self._changed.wait_for(lambda: self.n_rounds >= goal, timeout=60)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def test_the_source_can_change_while_it_is_sent(source: Site, target: Site) -> None:
    """Blocks given up during a send are not reused under it: the snapshot holds them, and is pinned."""
    assert transfer(source, target, LEVELS[0])
    stream, days = io.BytesIO(), iter(range(100, 200))

    def write_on(event: object) -> None:
        source.replace("/ledger", fill_pattern(60 * 4096, next(days)))
        source.sync()

    send(build(source.volume, "june9 - june3"), stream, progress=write_on)
    stream.seek(0)
    receive(stream, target.volume)
    found, base = source.model.named("june9"), source.model.named("june3")
    assert found is not None
    target.model.receive([found], base)
    target.taken_in()
    source.check_everything()
    report = check(target.volume)
    assert report.ok, report.problems


def test_the_model_knows_nothing_of_what_it_judges() -> None:
    folder = Path(model.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in ALLOWED for name in names), (path, names)
