"""Landing: images onto other geometries beside what is kept, place maps, refusals, and the old state until the end."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from blockplane.model import (
    ChecksumError,
    NoSpaceError,
    RefusedError,
    SnapshotExistsError,
    StreamError,
    VolumeDamagedError,
)
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.planes import Plane
from blockplane.volume import Volume, arrivals, held, landing_bands
from blockplane.volume.state import differing_leaves
from faults.world import (
    FileClient,
    Files,
    again,
    fill,
    geometry_of,
    image_plane,
    make_volume,
    present,
    read_blocks,
    read_files,
    receive,
    snapshot_files,
    verdict,
)

TARGETS = {
    "same": geometry_of(3, 1, 128),
    "one disk": geometry_of(1, 0, 448),
    "two groups": geometry_of(2, 1, 192, n_groups=2),
    "whole disks": geometry_of(2, 2, 256, chunk_blocks=256),
    "wide": geometry_of(8, 1, 64),
}


pytestmark = pytest.mark.usefixtures("inline")


def source_with(n_snapshots: int) -> tuple[Volume, dict[str, Files]]:
    """A line of snapshots; each changes a part."""
    volume = make_volume(geometry_of(3, 1, 128), reserve_blocks=48)
    client, kept = FileClient(volume), {}
    for n in range(n_snapshots):
        client.write(1, 5 * n, range(100 * n + 1, 100 * n + 13))
        client.edit(2, 1000 * n, n + 1)
        client.punch(1, n, n + 1)
        volume.snapshot(f"s{n}")
        kept[f"s{n}"] = present(client.files)
    return volume, kept


def target_with_own(geometry) -> tuple[Volume, FileClient, dict[str, Files]]:
    """A volume with a life of its own: its snapshots hold places that the image wants."""
    volume = make_volume(geometry, reserve_blocks=48)
    client = FileClient(volume)
    client.write(1, 0, range(7000, 7040))
    volume.snapshot("own")
    kept = {"own": present(client.files)}
    client.write(1, 0, range(8000, 8010))
    volume.sync()
    return volume, client, kept


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("shape", TARGETS)
def test_a_full_image_onto_another_geometry(shape, reverse):
    source, kept = source_with(3)
    target = make_volume(TARGETS[shape], reserve_blocks=48)
    receive(source, target, "s2", reverse=reverse)
    assert read_files(target.committed) == kept["s2"]
    assert snapshot_files(target) == {"s2": kept["s2"]}
    assert target.active.pointer == source.get_snapshot("s2").record.root
    verdict(target)
    target = again(target)
    assert snapshot_files(target) == {"s2": kept["s2"]}
    client = FileClient(target)
    client.write(1, 0, [5])
    target.sync()
    assert read_files(target.committed) == present(client.files)
    assert snapshot_files(target) == {"s2": kept["s2"]}
    verdict(target)


@pytest.mark.parametrize("ahead", [1, 2], ids=["in turns", "one ahead"])
@pytest.mark.parametrize("n_parity", [0, 1, 2])
def test_scattered_blocks_open_no_more_bands_than_may_be(n_parity, ahead, monkeypatch):
    source = make_volume(geometry_of(3, 1, 192), reserve_blocks=48)
    client = FileClient(source)
    client.write(1, 0, range(1, 401))
    source.snapshot("s2")
    target = make_volume(geometry_of(1, n_parity, 640), reserve_blocks=48)
    monkeypatch.setattr(landing_bands, "LANDING_STRIPES", 64)
    monkeypatch.setattr(landing_bands, "MAX_OPEN_BYTES", 2 * 64 * (1 + n_parity) * BLOCK_BYTES)
    most_open, find_band = 0, landing_bands.LandingBands._band

    def counted(self, key):
        nonlocal most_open
        found = find_band(self, key)
        most_open = max(most_open, len(self._open))
        return found

    monkeypatch.setattr(landing_bands.LandingBands, "_band", counted)
    plane = image_plane(source, "s2", None)
    vbns = np.concatenate([np.arange(start, stop) for start, stop in plane.extents().tolist()])
    rng = np.random.default_rng(len(vbns))
    landing = target.landing(plane, None)
    handed = []
    for part in np.array_split(rng.permutation(vbns), 10):  # blocks from everywhere in every call
        handed.append((part, landing.buffers(np.column_stack((part, part + 1)))))
        if len(handed) == ahead:
            put_in(landing, source, *handed.pop(0))
    for part, buffers in handed:
        put_in(landing, source, part, buffers)
    landing.commit([source.get_snapshot("s2").record])
    assert most_open == 2 + 1
    assert snapshot_files(target) == {"s2": present(client.files)}
    verdict(target)


def test_a_band_that_is_being_filled_stays_open(monkeypatch):
    """Three calls ahead: the band longest untouched may be the one whose bytes are on their way."""
    source, kept = source_with(3)
    target = make_volume(geometry_of(3, 1, 192), reserve_blocks=48)
    monkeypatch.setattr(landing_bands, "LANDING_STRIPES", 64)
    monkeypatch.setattr(landing_bands, "MAX_OPEN_BYTES", 0)
    plane = image_plane(source, "s2")
    vbns = np.concatenate([np.arange(start, stop) for start, stop in plane.extents().tolist()])
    landing = target.landing(plane, None)
    handed = []
    for vbn in np.random.default_rng(3).permutation(vbns).reshape(-1, 1):
        handed.append((vbn, landing.buffers(np.column_stack((vbn, vbn + 1)))))
        if len(handed) == 3:
            put_in(landing, source, *handed.pop(0))
    for vbn, buffers in handed:
        put_in(landing, source, vbn, buffers)
    landing.commit([source.get_snapshot("s2").record])
    assert snapshot_files(target) == {"s2": kept["s2"]}
    verdict(target)


def put_in(landing, source: Volume, vbns: np.ndarray, buffers: list[np.ndarray]) -> None:
    data = np.concatenate([read_blocks(source, "s2", vbn, vbn + 1) for vbn in vbns.tolist()])
    for buffer in buffers:
        buffer[:], data = data[: len(buffer)], data[len(buffer) :]
    landing.landed()


@pytest.mark.parametrize("shape", TARGETS)
def test_increments_beside_snapshots_that_are_kept(shape):
    source, kept = source_with(5)
    target, _, own = target_with_own(TARGETS[shape])
    receive(source, target, "s0")
    assert not target.active.placemap.is_empty
    for n in range(1, 5):
        receive(source, target, f"s{n}", f"s{n - 1}", reverse=bool(n & 1))
        expected = {**own, **{f"s{m}": kept[f"s{m}"] for m in range(n + 1)}}
        assert snapshot_files(target) == expected
        verdict(target)
    assert target.get_snapshot("own").state.placemap.is_empty
    for name in ("s1", "own", "s3", "s0", "s2"):
        said = target.get_snapshot(name).exclusive_blocks
        assert target.delete_snapshot(name) == said
        verdict(target)
    assert snapshot_files(again(target)) == {"s4": kept["s4"]}


@pytest.mark.parametrize("shape", TARGETS)
def test_what_a_used_buffer_held_reaches_no_disk_and_no_parity(shape):
    """The pool says that a buffer may hold anything: here all do."""
    source, kept = source_with(4)
    target, client, own = target_with_own(TARGETS[shape])
    take, rubbish = target.array.pool.take, bytes([0xA5]) * BLOCK_BYTES

    def take_used(n_bytes: int) -> tuple[np.ndarray, bool]:
        buffer, _ = take(n_bytes)
        buffer[:] = 0xA5
        return buffer, False

    target.array.pool.take = take_used
    client.edit(1, 3, 77)
    target.snapshot("mine")
    own["mine"] = present(client.files)
    for n in range(4):
        receive(source, target, f"s{n}", f"s{n - 1}" if n else None, reverse=bool(n & 1))
        verdict(target)
    assert snapshot_files(again(target)) == {**own, **kept}
    assert rubbish not in [block for disk in target.array.disks for block in disk.contents().values()]


def test_a_state_that_differs_in_more_leaves_than_are_fetched_at_once(monkeypatch):
    """Every group is a leaf of its own: planes are compared, and held worked out, a few leaves at a time."""
    for module in (held, arrivals):
        monkeypatch.setattr(module, "FETCH_BLOCKS", 3)
    shape = geometry_of(1, 0, 64, n_groups=8)
    source, target = make_volume(shape, reserve_blocks=24), make_volume(shape, reserve_blocks=24)
    client, kept = FileClient(source), {}
    for n in range(3):
        client.write(1, 0, range(1000 * n, 1000 * n + 120))
        client.write(2 + n, 0, range(5000 + n, 5010 + n))
        source.snapshot(f"s{n}")
        kept[f"s{n}"] = present(client.files)
        receive(source, target, f"s{n}", f"s{n - 1}" if n else None)
        assert snapshot_files(target) == kept
        verdict(target)
    states = [target.get_snapshot(name).state for name in kept]
    assert len(differing_leaves(states)) > 2 * 3
    for name in ("s0", "s2", "s1"):
        target.rollback(name)
        assert read_files(target.committed) == kept[name]
        verdict(target)
    for name in ("s1", "s2"):
        said = target.get_snapshot(name).exclusive_blocks
        assert target.delete_snapshot(name) == said
        verdict(target)
    assert snapshot_files(again(target)) == {"s0": kept["s0"]}


def test_a_source_that_reuses_blocks_and_a_destination_that_keeps_them():
    """One VBN, two contents: the source dropped a snapshot and wrote over its blocks; the destination holds both."""
    source = make_volume(geometry_of(2, 1, 64), reserve_blocks=24)
    target = make_volume(geometry_of(2, 1, 256), reserve_blocks=48)
    client, kept = FileClient(source), {}
    last = None
    for n in range(14):
        client.write(1, 0, [1000 * n + i for i in range(16)])
        source.snapshot(f"s{n}")
        kept[f"s{n}"] = present(client.files)
        receive(source, target, f"s{n}", last)
        if last is not None:
            source.delete_snapshot(last)
        last = f"s{n}"
        assert snapshot_files(target) == kept
        verdict(target)
    planes = [target.get_snapshot(name).plane for name in kept]
    shared = [a & b for a in planes for b in planes if a is not b]
    assert any(not target.get_snapshot(name).state.placemap.is_empty for name in kept)
    assert any(len(plane) for plane in shared)


def test_a_second_tier_behind_a_destination_with_place_maps():
    source, kept = source_with(4)
    middle, _, _ = target_with_own(TARGETS["two groups"])
    end, _, own = target_with_own(geometry_of(4, 1, 256))
    last = None
    for n in range(4):
        receive(source, middle, f"s{n}", last)
        if n % 2:  # the far end hears of every second one only
            receive(middle, end, f"s{n}", f"s{n - 2}" if n > 1 else None)
            assert snapshot_files(end) == {**own, **{f"s{m}": kept[f"s{m}"] for m in range(1, n + 1, 2)}}
            verdict(end)
        last = f"s{n}"
    verdict(middle)


def test_snapshots_on_the_way_arrive_with_the_top():
    source, kept = source_with(3)
    target = make_volume(TARGETS["two groups"], reserve_blocks=48)
    plane = image_plane(source, "s0") | image_plane(source, "s1") | image_plane(source, "s2")
    landing = target.landing(plane)
    rest = plane
    for name in ("s2", "s1", "s0"):
        mine = rest & image_plane(source, name)
        fill(landing, source, name, mine)
        rest = rest - mine
    landing.commit([source.get_snapshot(f"s{n}").record for n in range(3)])
    assert snapshot_files(target) == kept
    parents = [snapshot.record.parent_id for snapshot in target.snapshots]
    assert parents == [bytes(16), target.snapshots[0].record.id, target.snapshots[1].record.id]
    verdict(target)


# --- what is refused ----------------------------------------------------------------------------------------------


def image_of(volume: Volume) -> tuple:
    """All that a volume is: its roots' content, its figures."""
    return (
        volume.info.state, read_files(volume.committed), snapshot_files(volume),
        volume.used_blocks, volume.n_incoming,
    )  # fmt: skip


def some_landing(**record_changes):
    source, _ = source_with(2)
    target, client, _ = target_with_own(TARGETS["two groups"])
    plane = image_plane(source, "s1")
    before = image_of(target)
    return source, target, client, plane, before, replace(source.get_snapshot("s1").record, **record_changes)


def require_unchanged(target: Volume, landing, before: tuple) -> None:
    landing.abort()
    landing.abort()
    assert image_of(target) == before
    verdict(target)
    FileClient(target).edit(1, 0, 5)
    target.sync()
    verdict(target)


def test_bands_that_cannot_be_closed_give_their_buffers_back_once(monkeypatch):
    monkeypatch.setattr(landing_bands, "LANDING_STRIPES", 64)
    monkeypatch.setattr(landing_bands, "MAX_CLOSING", 1)
    source, target, _, plane, before, _ = some_landing()
    landing = target.landing(plane)
    part = plane.copy()
    for n in range(0, len(plane), 7):
        part.remove(int(plane.select(n)), int(plane.select(n)) + 1)
    fill(landing, source, "s1", part)
    assert len(landing.bands._open) > 1

    def fail(*_: object) -> None:
        raise ChecksumError("a block beside it")

    with monkeypatch.context() as failing:
        failing.setattr(target.beside, "write", fail)
        with pytest.raises(ChecksumError):
            landing.bands.finish()
        landing.abort()
    assert target.array.pool.taken_bytes == 0
    require_unchanged(target, landing, before)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_an_abort_leaves_everything_as_it_was(share):
    source, target, _, plane, before, _ = some_landing()
    landing = target.landing(plane)
    part = plane.copy()
    part.remove(int(part.select(int((len(part) - 1) * share))), part.n_blocks)
    fill(landing, source, "s1", part)
    assert landing.n_waiting == len(plane) - len(part)
    require_unchanged(target, landing, before)


def test_missing_blocks():
    source, target, _, plane, before, record = some_landing()
    landing = target.landing(plane)
    part = plane.copy()
    part.remove(int(part.select(7)), int(part.select(7)) + 1)
    fill(landing, source, "s1", part)
    with pytest.raises(StreamError, match="1 announced"):
        landing.commit([record])
    require_unchanged(target, landing, before)


def test_blocks_that_come_twice_or_were_not_announced():
    source, target, _, plane, before, _ = some_landing()
    landing = target.landing(plane)
    first, stop = plane.extents()[0].tolist()
    outside = int(plane.extents()[-1][1]) + 3
    fill(landing, source, "s1", Plane.from_extents(np.array([[first, stop]]), plane.n_blocks))
    for start, end in ((first, first + 1), (first, stop), (outside, outside + 1), (stop, stop + 1)):
        if end <= start or (start in plane and start >= stop):
            continue
        with pytest.raises(StreamError):
            landing.buffers(np.array([[start, end]], np.int64))
    require_unchanged(target, landing, before)


@pytest.mark.parametrize(
    "change", [{"n_blocks": 5}, {"root": None}, {"cp": 1 << 40}, {"branch_id": bytes(16)}, {"space_id": bytes(16)}]
)
def test_a_record_that_does_not_fit_what_came(change):
    source, target, _, plane, before, record = some_landing()
    if change == {"root": None}:
        change = {"root": source.get_snapshot("s0").record.root}
    landing = target.landing(plane)
    fill(landing, source, "s1", plane)
    with pytest.raises((StreamError, VolumeDamagedError)):
        landing.commit([replace(record, **change)])
    require_unchanged(target, landing, before)


def test_an_image_that_leaves_out_a_block_of_its_top():
    source, target, _, plane, before, record = some_landing()
    victim = int(plane.select(len(plane) // 2))
    short = plane.copy()
    short.remove(victim, victim + 1)
    landing = target.landing(short)
    fill(landing, source, "s1", short)
    with pytest.raises((StreamError, ChecksumError)):
        landing.commit([record])
    require_unchanged(target, landing, before)


def test_a_name_that_is_taken():
    source, target, _, plane, before, record = some_landing()
    landing = target.landing(plane)
    fill(landing, source, "s1", plane)
    with pytest.raises(SnapshotExistsError, match="own"):
        landing.commit([record.renamed("own")])
    require_unchanged(target, landing, before)


def test_an_image_beyond_the_volume():
    source, _ = source_with(2)
    target = make_volume(geometry_of(1, 0, 64), reserve_blocks=8)
    before = image_of(target)
    far = Plane.from_extents(np.array([[100, 101]]), 1000)
    with pytest.raises(RefusedError, match="block 100"):
        target.landing(far)
    with pytest.raises((RefusedError, NoSpaceError)):
        target.landing(image_plane(source, "s1"))
    assert image_of(target) == before
    verdict(target)


def test_an_image_that_does_not_fit():
    source, _ = source_with(2)
    target = make_volume(geometry_of(3, 1, 128), reserve_blocks=48)
    client = FileClient(target)
    index = 0
    while target.available_blocks > 20:
        client.write(1, index, range(8))
        index += 8
        target.sync()
    target.make_room(1000)
    assert len(image_plane(source, "s1")) > 20
    before = image_of(target)
    with pytest.raises(NoSpaceError, match="room"):
        target.landing(image_plane(source, "s1"))
    assert image_of(target) == before
    verdict(target)


# --- side by side -------------------------------------------------------------------------------------------------


def test_readers_see_the_old_state_until_the_new_one_is_committed():
    source, kept = source_with(2)
    target, client, own = target_with_own(TARGETS["two groups"])
    old = present(client.files)
    state, snapshot = target.state(), target.get_snapshot("own").state
    plane = image_plane(source, "s1")
    landing = target.landing(plane)
    for start, stop in plane.extents().tolist():
        part = Plane.from_extents(np.array([[start, stop]]), plane.n_blocks)
        fill(landing, source, "s1", part)
        assert read_files(state) == read_files(target.state()) == old
        assert read_files(snapshot) == own["own"]
    landing.commit([source.get_snapshot("s1").record])
    assert read_files(target.state()) == kept["s1"]
    # the reader that began before still reads its state: two commits keep it
    for name in ("inode_file", "blockmap", "checksums"):
        getattr(state, name).drop_cache()
    assert read_files(state) == old


def test_local_writes_meanwhile_go_elsewhere_and_are_not_lost_in_silence():
    source, kept = source_with(2)
    target, client, _ = target_with_own(TARGETS["one disk"])
    plane = image_plane(source, "s1")
    landing = target.landing(plane)
    incoming = {int(place) for place in landing.placemap.to_places(np.array(plane.extents()[:, 0]))}
    pieces = plane.extents().tolist()
    for n, (start, stop) in enumerate(pieces):
        fill(landing, source, "s1", Plane.from_extents(np.array([[start, stop]]), plane.n_blocks))
        client.write(3, n * 4, [n] * 4)
        target.sync()
    used = {int(n) for start, stop in target.plane(target.committed).extents().tolist() for n in range(start, stop)}
    assert not used & incoming
    assert read_files(target.committed) == present(client.files)
    with pytest.raises(RefusedError, match="written"):
        landing.commit([source.get_snapshot("s1").record])
    landing.abort()
    assert read_files(target.committed) == present(client.files)
    verdict(target)
    client.reload()
    target.snapshot("mine")
    receive(source, target, "s1")
    assert read_files(target.committed) == kept["s1"]
    assert "mine" in snapshot_files(target)


def test_free_space_after_a_receive_is_exact():
    source, _ = source_with(4)
    target, _, _ = target_with_own(TARGETS["two groups"])
    last = None
    for n in range(4):
        receive(source, target, f"s{n}", last)
        last = f"s{n}"
        target.commit(force=True)
        target.commit(force=True)
        busy = sum(int(np.bitwise_count(target.live_leaf(leaf)).sum()) for leaf in range(8))
        assert target.used_blocks == busy
        assert target.space.n_pending == 0


@pytest.mark.parametrize("seed", range(8))
def test_replication_with_retention_of_its_own(seed):
    """Sources and destinations that drop, roll back and go on; every snapshot everywhere keeps its files."""
    rng = random.Random(seed)
    source = make_volume(geometry_of(2, 1, 128), reserve_blocks=48)
    target = make_volume(rng.choice(list(TARGETS.values())), reserve_blocks=48)
    client, kept, there = FileClient(source), {}, {}
    base: str | None = None
    for step in range(24):
        try:
            for _ in range(rng.randrange(1, 4)):
                client.write(
                    rng.randrange(1, 4), rng.randrange(12), [step * 50 + i for i in range(rng.randrange(1, 6))]
                )
            client.punch(rng.randrange(1, 4), 0, rng.randrange(1, 5))
            name = f"s{step}"
            source.snapshot(name)
            kept[name] = present(client.files)
            receive(source, target, name, base, reverse=rng.random() < 0.5)
            there[name] = kept[name]
            base = name
        except NoSpaceError:
            target.make_room(64)
        removable = [n for n in kept if n != base]
        for _ in range(max(len(removable) - rng.randrange(1, 4), 0)):
            gone = rng.choice(removable)
            removable.remove(gone)
            source.delete_snapshot(gone)
            del kept[gone]
        removable = [n for n in there if n != base]
        for _ in range(max(len(removable) - rng.randrange(1, 6), 0)):
            gone = rng.choice(removable)
            removable.remove(gone)
            target.delete_snapshot(gone)
            del there[gone]
        if rng.random() < 0.2:
            target = again(target)
        assert snapshot_files(target) == there
        assert snapshot_files(source) == kept
        if step % 4 == 3:
            verdict(target)
            verdict(source)
    assert len(there) > 1
    verdict(target)
