"""A base that is missing: how it stands to what is there, for whoever must find the streams between."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import blockplane as bp
from blockplane.model import StreamMismatchError
from blockplane.stream.codec import Role
from blockplane.stream.kinship import kinship
from blockplane.volume.codec import Branch, Pointer, SnapshotRecord

NAMES = ["june1", "june2", "june3", "june4"]
SPACE = bytes(15) + b"s"


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """A full stream of june1, the increments after it, a snapshot of another line, and the volume."""
    folder = tmp_path_factory.mktemp("kin")
    with bp.Volume.create(folder / "pool", disks=3, size="8MiB") as volume:
        files = bp.FileSystem(volume)
        for i, name in enumerate(NAMES):
            files.write_bytes(f"/{name}", name.encode() * 3000)
            volume.snapshot(name)
            text = f"{name} - {NAMES[i - 1]}" if i else name
            bp.send(volume.image(text), folder / f"{name}.bps")
        volume.rollback("june2", drop_changes=True)
        files = bp.FileSystem(volume)
        files.write_bytes("/other", b"other" * 3000)
        volume.snapshot("aside")
        volume.snapshot("aside2")
        bp.send(volume.image("aside2 - aside"), folder / "aside2.bps")
        yield folder, volume


def test_a_receiver_says_how_far_it_is_behind(streams, tmp_path):
    folder, _ = streams
    bp.receive(folder / "june1.bps", tmp_path / "copy")
    with pytest.raises(StreamMismatchError, match="june3 is 2 snapshots after june1, the newest here that it desc"):
        bp.receive(folder / "june4.bps", tmp_path / "copy")
    bp.receive(folder / "june2.bps", tmp_path / "copy")
    with pytest.raises(StreamMismatchError, match="june3 is one snapshot after june2, the newest here"):
        bp.receive(folder / "june4.bps", tmp_path / "copy")
    bp.receive(folder / "june3.bps", tmp_path / "copy")
    bp.receive(folder / "june4.bps", tmp_path / "copy")
    # of another line: what the base descends from is older than what is here
    with pytest.raises(StreamMismatchError, match="aside is one snapshot after june2, the newest here"):
        bp.receive(folder / "aside2.bps", tmp_path / "copy")


def test_a_receiver_that_is_ahead(streams, tmp_path):
    _, volume = streams
    bp.send(volume.image("june3"), tmp_path / "three.bps")
    bp.receive(tmp_path / "three.bps", tmp_path / "copy")
    bp.send(volume.image("june4 - june2"), tmp_path / "step.bps")
    with pytest.raises(StreamMismatchError, match="june2 is one snapshot before june3, the oldest here of its line"):
        bp.receive(tmp_path / "step.bps", tmp_path / "copy")


def test_nothing_in_common(streams, tmp_path):
    folder, _ = streams
    with bp.Volume.create(tmp_path / "other", disks=3, size="8MiB") as other:
        other.snapshot("june1")
        with pytest.raises(StreamMismatchError) as caught:
            bp.receive(folder / "june4.bps", other)
    assert caught.value.message.endswith("does not hold")


def test_verify_says_what_lies_between(streams):
    folder, _ = streams
    (problem,) = bp.verify_streams(folder / "june1.bps", folder / "june4.bps").problems
    assert "builds on snapshot june3" in problem
    assert problem.endswith("june3 is 2 snapshots after june1, the newest of theirs that it descends from")


def test_it_is_told_in_one_walk_of_a_long_history():
    """Of thousands of snapshots and branches: a stream may list more than anybody would wait for, one by the other."""
    walks = []

    class Branches(tuple):
        def __iter__(self):
            walks.append(len(self))
            return super().__iter__()

    def record(name: str, branch: int, cp: int) -> SnapshotRecord:
        id_ = name.encode().ljust(16)
        return SnapshotRecord(id_, SPACE, bytes(16), bytes([branch]) * 16, cp, cp, Pointer(9, 0), 1, name)

    top, base = record("top", 3, 90), record("base", 3, 80)
    branches = Branches(Branch(bytes([i]) * 16, bytes([i - 1]) * 16, 10 * i, 10 * i - 1, 0) for i in (3, 2, 1))
    listed = [(record(f"{branch} {cp}", branch, cp), Role.LEFT_OUT) for branch in range(5) for cp in range(1, 40)]
    stream = SimpleNamespace(snapshots=[(top, Role.TOP), (base, Role.BASE), *listed], top=top, branches=branches)
    held = [record(f"{branch} {cp}", branch, cp) for branch in range(5) for cp in (5, 15, 25, 35)]
    assert kinship(stream, base, held, "here").startswith("base is 5 snapshots after 3 35, the newest here")
    assert len(walks) <= 2
