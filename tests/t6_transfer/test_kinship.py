"""A base that is missing: how it stands to what is there, for whoever must find the streams between."""

from __future__ import annotations

import pytest

import blockplane as bp
from blockplane.model import StreamMismatchError

NAMES = ["june1", "june2", "june3", "june4"]


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
