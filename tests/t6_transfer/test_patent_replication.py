"""The patent's replication, step by step: methods of its figure 3, as the project's notes name them.

Flow points 350 to 360 keep a replica up to date by increments between snapshots, 370 to 380 do so for many destinations
by a master; 371 to 373 are its steps: the master is made, destinations ask for what they lack, and each is settled.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError
from blockplane.transfer.peer import VolumePeer, giving
from blockplane.transfer.standing import standing_of
from blockplane.volume import masters
from blockplane.volume.retention import Policy


@pytest.fixture
def volumes(tmp_path: Path):
    made = {name: bp.Volume.create(tmp_path / name, disks=2, size="6MiB") for name in ("source", "first", "second")}
    yield made["source"], made["first"], made["second"]
    for volume in made.values():
        volume.close()


def write(volume: bp.Volume, data: bytes) -> None:
    bp.FileSystem(volume).write_bytes("/file", data)


def read(source: bp.Volume | bp.Snapshot) -> bytes:
    return bp.FileSystem(source).read_bytes("/file")


def make(source: bp.Volume, name: str, data: bytes) -> None:
    write(source, data)
    source.snapshot(name)
    source.make_master(name)


def newest(source: bp.Volume) -> dict[str, str | None]:
    return {replica.name: replica.newest for replica in bp.replicas(source)}


def test_flow_350_to_360_an_increment_between_two_snapshots_brings_a_replica_up_to_date(volumes, rng):
    """350: a full copy is there. The later snapshot minus the one that both have is sent. 360: the replica is equal."""
    source, replica, _ = volumes
    make(source, "june1", rng.bytes(200_000))
    bp.replicate(VolumePeer(source), replica)
    bp.FileSystem(source).write_bytes("/small", new := rng.bytes(5000))
    source.snapshot("june3")
    source.make_master("june3")
    expected = source.image("june3 - june1")
    found = bp.replicate(VolumePeer(source), replica).brought
    assert (found.base, found.n_blocks) == ("june1", expected.n_blocks)
    assert found.n_blocks < 30
    assert replica.get_snapshot("june3").plane == source.get_snapshot("june3").plane
    assert bp.FileSystem(replica).read_bytes("/small") == new


def test_step_371_a_master_is_a_snapshot_and_a_name_that_moves_to_it(volumes, rng):
    source, replica, _ = volumes
    make(source, "m1", rng.bytes(9000))
    bp.replicate(VolumePeer(source), replica)
    write(source, rng.bytes(9000))
    source.snapshot("not-yet")  # no master: nobody is brought it
    assert bp.replicate(VolumePeer(source), replica).brought.already_there
    source.make_master("not-yet")
    assert bp.replicate(VolumePeer(source), replica).top == "not-yet"


def test_step_372_a_destination_says_its_newest_master_and_is_sent_what_it_lacks(volumes, rng):
    """An increment on the newest that both have; with none in common, a full image."""
    source, first, second = volumes
    make(source, "m1", rng.bytes(100_000))
    bp.replicate(VolumePeer(source), first)
    make(source, "m2", data := rng.bytes(100_000))
    with giving(source, "master", standing_of(first)) as gift:
        assert gift.image is not None
        assert str(gift.image) == "m2 - m1"
    with giving(source, "master", standing_of(second)) as gift:
        assert gift.image is not None
        assert gift.image.base is None
    for replica, base in ((first, "m1"), (second, None)):
        found = bp.replicate(VolumePeer(source), replica)
        assert (found.brought.base, read(replica)) == (base, data)


def test_step_373_masters_go_when_every_destination_has_passed_them(volumes, rng):
    source, first, second = volumes
    make(source, "m1", rng.bytes(9000))
    for replica in (first, second):
        bp.replicate(VolumePeer(source), replica)
    for name in ("m2", "m3"):
        make(source, name, rng.bytes(9000))
        bp.replicate(VolumePeer(source), first)
    assert newest(source) == {"first": "m3", "second": "m1"}
    assert source.prune(Policy(last=1), dry_run=True).deleted == []
    bp.replicate(VolumePeer(source), second)
    assert source.prune(Policy(last=1)).deleted == ["m2", "m1"]


def test_flow_370_to_380_many_destinations_and_one_name(volumes, rng):
    """380: wherever the name is asked for, it stands at the same snapshot, with the same bytes."""
    source, first, second = volumes
    for name in ("m1", "m2", "m3"):
        make(source, name, data := rng.bytes(30_000))
        bp.replicate(VolumePeer(source), first)
        if name != "m2":
            bp.replicate(VolumePeer(first), second)  # a tier
    ids = {volume.get_snapshot("master").id for volume in volumes}
    assert len(ids) == 1
    assert [read(volume.get_snapshot("master")) for volume in volumes] == [data] * 3


def test_a_shadow_stands_in_for_a_master_that_a_destination_still_needs(volumes, rng):
    source, first, second = volumes
    bp.FileSystem(source).write_bytes("/large", rng.bytes(300_000))
    make(source, "m1", rng.bytes(9000))
    for replica in (first, second):
        bp.replicate(VolumePeer(source), replica)
    bp.FileSystem(source).write_bytes("/large", large := rng.bytes(300_000))
    make(source, "m2", data := rng.bytes(9000))
    bp.replicate(VolumePeer(source), first)
    with pytest.raises(RefusedError):
        source.shadow_snapshot("m1")
    source.set_replica_limit(60)
    assert masters.expire(source, time.time_ns() + 61 * 10**9) == []
    assert masters.expire(source, time.time_ns() + 71 * 10**9) == ["m1"]
    found = bp.replicate(VolumePeer(source), second).brought
    assert (found.base, read(second), bp.FileSystem(second).read_bytes("/large")) == ("m1", data, large)


def test_a_shadow_master_is_not_given_out_and_the_old_one_stays_readable(volumes, rng):
    """While a destination is brought the next master, its name stands where it stood; then it moves, at once."""
    source, first, _ = volumes
    make(source, "m1", old := rng.bytes(30_000))
    bp.replicate(VolumePeer(source), first)
    make(source, "m2", new := rng.bytes(30_000))
    seen = []

    def look(event: bp.ProgressEvent) -> None:
        seen.append((first.updates.running != "", first.get_snapshot("master").name, read(first)))

    bp.replicate(VolumePeer(source), first, progress=look)
    assert set(seen) == {(True, "m1", old)}
    assert (first.updates.running, first.get_snapshot("master").name, read(first)) == ("", "m2", new)
