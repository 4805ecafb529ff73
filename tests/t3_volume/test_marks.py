"""Marks one case at a time: positions, destinations, damage, what `check` says (DESIGN.md, law 10)."""

from __future__ import annotations

import numpy as np
import pytest

from blockplane.image.image import build
from blockplane.image.saved import delete, save
from blockplane.model import BLOCK_BYTES, DiskError, RefusedError, UsageError
from blockplane.model.errors import NoSpaceError, NoSuchSnapshotError
from blockplane.planes import Plane
from blockplane.volume import Volume, positions
from blockplane.volume.check import check
from blockplane.volume.codec import NUMBER_MASK
from blockplane.volume.destinations import OWNER
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS, Leaf, numbers_in
from blockplane.volume.marking import not_in
from faults.world import FileClient, again, geometry_of, make_volume, open_volume, receive, revived, verdict

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def client(volume: Volume) -> FileClient:
    client = FileClient(volume)
    client.write(1, 0, range(40))
    return client


def members(plane) -> set[int]:
    return {vbn for start, stop in plane.extents().tolist() for vbn in range(start, stop)}


def live(volume: Volume) -> set[int]:
    return members(volume.plane(volume.committed))


def known(volume: Volume) -> dict[str, tuple[int, int]]:
    return {p.name: (p.n_alloc, p.n_dealloc) for p in volume.positions}


def test_a_volume_without_positions_keeps_no_marks(volume, client):
    volume.snapshot("one")
    client.write(1, 0, range(100, 140))
    volume.sync()
    assert volume.positions == []
    assert volume.local.root.marks.size_bytes == 0
    with pytest.raises(RefusedError, match="one is not marked"):
        volume.marks("alloc", "one")


def test_an_interval_begins_behind_its_snapshot(volume, client):
    one = volume.snapshot("one", mark=True)
    assert members(volume.marks("alloc", "one")) == live(volume) - members(one.plane)
    client.write(1, 0, range(100, 140))
    volume.sync()
    two = volume.snapshot("two", mark=True)
    behind = members(volume.marks("alloc", "two"))
    assert behind == live(volume) - members(two.plane)
    assert not behind & members(two.plane)
    assert members(volume.marks("alloc", "one")) & members(two.plane) == members(two.plane) - members(one.plane)
    verdict(volume)


def test_what_leaves_is_what_no_snapshot_holds(volume, client):
    volume.snapshot("one", mark=True)
    client.write(1, 0, range(100, 140))
    volume.sync()
    one = members(volume.get_snapshot("one").plane)
    assert not members(volume.marks("dealloc", "one")) & one
    volume.snapshot("two", mark=True)
    volume.delete_snapshot("one")
    gone = members(volume.marks("dealloc", "two"))
    assert one - members(volume.get_snapshot("two").plane) - live(volume) <= gone
    verdict(volume)


def test_marks_are_those_of_the_cp_after_a_crash(volume, client):
    volume.snapshot("one", mark=True)
    client.write(1, 0, range(100, 120))
    volume.sync()
    marked = members(volume.marks("alloc", "one"))
    client.write(2, 0, range(200, 220))
    volume = again(volume)
    assert members(volume.marks("alloc", "one")) == marked
    verdict(volume)


def test_intervals_are_summed_when_a_position_goes(volume, client):
    for at, name in enumerate("abc"):
        volume.snapshot(name, mark=True)
        client.write(1, 10 * at, range(100 * at, 100 * at + 10))
        volume.sync()
    before = {kind: members(volume.marks(kind, "a")) for kind in ("alloc", "dealloc")}
    volume.unmark("b")
    assert [p.name for p in volume.positions] == ["a", "c"]
    after = {kind: members(volume.marks(kind, "a")) for kind in ("alloc", "dealloc")}
    assert before == after
    volume.delete_snapshot("c")
    assert after["alloc"] <= members(volume.marks("alloc", "a"))
    assert after["dealloc"] <= members(volume.marks("dealloc", "a"))
    volume.delete_snapshot("a")
    assert volume.positions == []
    assert volume.local.root.marks.size_bytes == 0
    verdict(again(volume))


def test_a_snapshot_marked_afterwards(volume, client):
    volume.snapshot("one", mark=True)
    client.write(1, 0, range(100, 120))
    two = volume.snapshot("two")
    client.write(1, 10, range(200, 220))
    volume.snapshot("three", mark=True)
    client.write(1, 30, range(300, 310))
    volume.sync()
    volume.mark("two")
    assert [p.name for p in volume.positions] == ["one", "two", "three"]
    marked = members(volume.marks("alloc", "two"))
    for state in (volume.committed, volume.get_snapshot("three").state):
        top = members(volume.plane(state))
        assert marked & top == top - members(two.plane)
    verdict(volume)


@pytest.mark.parametrize("how", ["mark", "begin", "mark again"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_position_whose_marks_cannot_be_worked_out_is_none(volume, client, monkeypatch, how, nth):
    """A read that fails on the way leaves what there was, and nothing that is not whole becomes durable."""
    client.write(1, 0, range(10))
    volume.snapshot("one")
    for name in ("two", "three"):
        client.write(1, 0, range(10))
        volume.snapshot(name)
    if how == "mark again":
        volume.mark("one")
        volume.local.marks.lose("alloc")
        volume.commit()
    before, n_calls = volume.positions, iter(range(1, 100))

    def fail(*operands: object) -> Leaf:
        if next(n_calls) == nth:
            raise DiskError("disk0: read: Input/output error", "disk0")
        return not_in(*operands)

    def attempt() -> None:
        if how == "begin":
            volume.destinations.begin("away", "one")
        else:
            volume.mark("one")

    with monkeypatch.context() as patched:
        patched.setattr(positions, "not_in", fail)
        with pytest.raises(DiskError):
            attempt()
    volume.commit(force=True)
    assert volume.positions == before
    attempt()
    assert volume.positions[0].alloc_known
    verdict(again(volume))


def test_what_left_before_marking_is_not_known(volume, client):
    volume.snapshot("one")
    client.write(1, 0, range(100, 120))
    volume.sync()
    volume.mark("one")
    assert [(p.alloc_known, p.dealloc_known) for p in volume.positions] == [(True, False)]
    with pytest.raises(RefusedError, match="what left the volume since one was not noted whole"):
        volume.marks("dealloc", "one")
    volume.snapshot("two", mark=True)
    assert volume.positions[1].dealloc_known
    verdict(volume)


def test_a_shadow_stays_a_position(volume, client):
    volume.space._spared = lambda: None  # the allocator does not care, and reuses what it finds first
    volume.snapshot("one", mark=True)
    client.write(1, 0, range(100, 140))
    volume.sync()
    one = members(volume.get_snapshot("one").plane)
    volume.shadow_snapshot("one")
    assert one - live(volume) <= members(volume.marks("dealloc", "one"))
    for turn in range(8):
        client.write(2, 0, range(1000 * turn, 1000 * turn + 60))
        volume.sync()
    left = members(volume.get_snapshot("one").plane)
    assert left < one
    assert members(volume.marks("alloc", "one")) & live(volume) >= live(volume) - left
    verdict(volume)


def test_a_full_volume_takes_no_more_positions(volume, client):
    client.write(2, 0, range(volume.available_blocks - 20))
    volume.sync()
    at = 0
    while volume.available_blocks:
        client.write(3, at, range(1))
        volume.sync()
        at += 1
    with pytest.raises(NoSpaceError, match="no room for marks"):
        volume.snapshot("one", mark=True)
    volume.snapshot("one")


def test_renaming_moves_no_position(volume, client):
    volume.snapshot("one", mark=True)
    volume.rename_snapshot("one", "first")
    assert [p.name for p in volume.positions] == ["first"]


# --- operands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_groups", [1, 4])
def test_the_mark_image_is_the_difference_image(n_groups):
    volume = make_volume(geometry_of(2, 1, 512, n_groups=n_groups))
    client = FileClient(volume)
    for at, name in enumerate("abcd"):
        client.write(1, 10 * at, range(100 * at, 100 * at + 30))
        volume.snapshot(name, mark=name != "c")
    for base, top in [("a", "b"), ("a", "c"), ("b", "d"), ("a", "d"), ("b", "active")]:
        difference = build(volume, f"{top} - {base}", allow_active=True)
        marked = build(volume, f"{top} & alloc({base})", allow_active=True)
        assert members(marked.plane) == members(difference.plane)
        assert sum(marked.blocks_per_disk) == len(difference.plane)
        with pytest.raises(RefusedError, match="can be counted and listed, but not sent"):
            marked.require_sendable()
    alone, sum_ = build(volume, "alloc(b)"), build(volume, "d + alloc(b)")
    assert members(alone.plane) == members(volume.marks("alloc", "b"))
    assert (alone.top, sum(alone.blocks_per_disk)) == (None, alone.n_blocks)
    assert members(sum_.plane) == members(alone.plane) | members(volume.get_snapshot("d").plane)
    assert sum(sum_.blocks_per_disk) == sum_.n_blocks
    gone = build(volume, "a - dealloc(a)")
    assert members(gone.plane) == members(volume.get_snapshot("a").plane) - members(volume.marks("dealloc", "a"))
    assert members(build(volume, "alloc(b) - b").plane) == members(alone.plane) - members(
        volume.get_snapshot("b").plane
    )


def test_marks_that_are_not_there_cannot_be_asked_for(volume, client):
    volume.snapshot("one")
    with pytest.raises(RefusedError, match=r"alloc\(one\) is not known: one is not marked"):
        build(volume, "one + alloc(one)")
    with pytest.raises(NoSuchSnapshotError):
        build(volume, "one + alloc(two)")


def test_a_mark_means_a_name_at_any_place(client):
    source = client.volume
    source.snapshot("one")
    target = make_volume(geometry_of(4, 1, 256))
    theirs = FileClient(target)
    theirs.write(1, 0, range(30))
    target.snapshot("mine", mark=True)
    receive(source, target, "one")
    client.write(1, 3, range(700, 710))
    source.snapshot("two")
    receive(source, target, "two", "one")
    for top in ("one", "two", "active"):
        difference = build(target, f"{top} - mine", allow_active=True, with_=["mine"])
        marked = build(target, f"(alloc(mine) & {top}) - mine", allow_active=True, with_=["mine"])
        assert members(marked.plane) == members(difference.plane)
        assert marked.layout.places == difference.layout.places


# --- received -----------------------------------------------------------------------------------------------------


def test_a_receive_marks(volume, client):
    volume.snapshot("one")
    target = make_volume(geometry_of(4, 1, 256))
    receive(volume, target, "one")
    target.mark("one")
    assert len(target.marks("alloc", "one")) == 0
    client.write(1, 0, range(100, 120))
    volume.snapshot("two")
    receive(volume, target, "two", "one")
    two = members(target.get_snapshot("two").plane)
    assert members(target.marks("alloc", "one")) == two - members(target.get_snapshot("one").plane)
    theirs = FileClient(target)
    theirs.write(7, 0, range(5))  # promoted
    target.sync()
    assert live(target) - members(target.get_snapshot("one").plane) <= members(target.marks("alloc", "one"))
    verdict(target)


# --- destinations -------------------------------------------------------------------------------------------------


def owners(volume: Volume, name: str) -> list[str]:
    return [hold.owner for hold in volume.get_snapshot(name).holds]


def make_positions(volume: Volume, client: FileClient) -> None:
    for at, name in enumerate("abc"):
        client.write(1, 10 * at, range(100 * at, 100 * at + 10))
        volume.snapshot(name)


def test_success_moves_on(volume, client):
    make_positions(volume, client)
    table = volume.destinations
    assert table.begin("far", "a").status == "under way"
    assert (table.succeed("far").acknowledged, owners(volume, "a")) == ("a", [OWNER.format("far")])
    table.begin("far", "b")
    assert [p.name for p in volume.positions] == ["a", "b"]
    with pytest.raises(RefusedError, match="held by mirror:far"):
        volume.delete_snapshot("a")
    assert table.succeed("far").acknowledged == "b"
    assert [p.name for p in volume.positions] == ["b"]
    assert (owners(volume, "a"), owners(volume, "b")) == ([], ["mirror:far"])
    volume.delete_snapshot("a")
    volume = again(volume)
    assert [(d.name, d.acknowledged, d.status) for d in volume.destinations.list()] == [("far", "b", "idle")]
    verdict(volume)


def test_failure_loses_nothing(volume, client):
    make_positions(volume, client)
    table = volume.destinations
    table.begin("far", "a")
    table.succeed("far")
    table.begin("far", "b")
    table.begin("far", "b")  # tried again
    client.write(2, 0, range(20))
    volume.sync()
    marked = members(volume.marks("alloc", "a"))
    assert table.fail("far").acknowledged == "a"
    assert [p.name for p in volume.positions] == ["a"]
    assert marked <= members(volume.marks("alloc", "a"))
    c = volume.get_snapshot("c")
    assert members(volume.marks("alloc", "a")) & members(c.plane) == members(c.plane) - members(
        volume.get_snapshot("a").plane
    )
    assert owners(volume, "b") == []
    verdict(volume)


@pytest.mark.parametrize(("has", "stands"), [("b", "b"), ("a", "a")])
def test_unknown_keeps_both_until_it_is_settled(volume, client, has, stands):
    make_positions(volume, client)
    table = volume.destinations
    table.begin("far", "a")
    table.succeed("far")
    table.begin("far", "b")
    assert table.unknown("far").status == "unknown"
    volume = again(volume)
    table = volume.destinations
    assert [p.name for p in volume.positions] == ["a", "b"]
    assert (owners(volume, "a"), owners(volume, "b")) == (["mirror:far"], ["mirror:far"])
    with pytest.raises(RefusedError, match="b is unknown to far"):
        table.begin("far", "c")
    with pytest.raises(RefusedError, match="and should have b or a"):
        table.settle("far", volume.get_snapshot("c").id)
    assert table.settle("far", volume.get_snapshot(has).id).acknowledged == stands
    assert [p.name for p in volume.positions] == [stands]
    verdict(volume)


def test_destinations_share_positions(volume, client):
    make_positions(volume, client)
    table = volume.destinations
    for name in ("near", "far"):
        table.begin(name, "a")
        table.succeed(name)
    table.begin("near", "b")
    table.succeed("near")
    assert [p.name for p in volume.positions] == ["a", "b"]
    with pytest.raises(RefusedError, match="a stays marked: far stands at it"):
        volume.unmark("a")
    table.forget("far")
    assert [p.name for p in volume.positions] == ["b"]
    assert [d.name for d in table.list()] == ["near"]
    volume.mark("b")  # somebody asks for it: it stays when the destination moves on
    table.begin("near", "c")
    table.succeed("near")
    assert [p.name for p in volume.positions] == ["b", "c"]
    verdict(volume)


def test_refusals_of_destinations(volume, client):
    make_positions(volume, client)
    table = volume.destinations
    with pytest.raises(UsageError, match="cannot name a destination"):
        table.begin("no good", "a")
    with pytest.raises(RefusedError, match="no destination is named 'far'"):
        table.succeed("far")
    volume.shadow_snapshot("a")
    with pytest.raises(RefusedError, match="a is a shadow"):
        table.begin("far", "a")
    table.begin("far", "b")
    table.succeed("far")
    with pytest.raises(RefusedError, match="nothing is under way to far"):
        table.fail("far")
    with pytest.raises(RefusedError, match="held by mirror:far"):
        volume.shadow_snapshot("b")


# --- damage -------------------------------------------------------------------------------------------------------


def spoil(volume: Volume, kind: str, level: int = 0) -> None:
    """Change a block of the last interval's plane on the disk; without parity nothing explains it."""
    interval = volume.local.marks.intervals()[-1]
    place = int(interval.trees[kind].pointer(level, 0)[0]) & NUMBER_MASK
    assert place
    extents = np.array([[place, place + 1]], np.int64)
    pieces = volume.geometry.split(extents)
    disk = volume.array.disks[int(pieces.disk[0])]
    disk.write_plan(
        np.array([int(pieces.dbn[0]) + 16], np.int64), np.array([1], np.int64), np.full(BLOCK_BYTES, 7, np.uint8),
        np.array([0], np.int64),
    )  # fmt: skip


def scattered(n_parity: int, *before: str) -> tuple[Volume, FileClient]:
    """A volume whose numbering reaches far, with marks in planes that have nodes, from one on."""
    volume = make_volume(geometry_of(2, n_parity, 64, n_groups=12))
    client = FileClient(volume)
    client.write(1, 0, range(40))
    for name in before:
        volume.snapshot(name, mark=True)
    volume.snapshot("one", mark=True)
    for turn in range(60):
        client.write(1 + turn % 5, 0, range(1000 * turn, 1000 * turn + 60))
        volume.sync()
        interval = volume.local.marks.intervals()[-1]
        if all(tree.root.depth for tree in interval.trees.values()):
            return volume, client
    raise AssertionError("the planes have no nodes")


def opened_again(volume: Volume) -> Volume:
    """The volume, closed cleanly and opened: nothing that was read is remembered."""
    volume.close()
    return open_volume(revived(volume.array.disks))


@pytest.mark.parametrize("n_parity", [0, 1])
@pytest.mark.parametrize("kind", ["alloc", "dealloc"])
def test_a_damaged_node_of_marks_stops_nobody(kind, n_parity):
    """The plane is not known, what only the node knew of stays occupied; both until it is worked out anew."""
    volume, _ = scattered(n_parity)
    spoil(volume, kind, level=1)
    volume = opened_again(volume)
    assert any("marks" in problem for problem in check(volume).problems)
    client = FileClient(volume)
    for turn in range(8):
        client.write(2, 0, range(5000 + 100 * turn, 5060 + 100 * turn))
        volume.sync()
        volume.snapshot(f"s{turn}")
        volume.delete_snapshot(f"s{turn}")
    position = volume.positions[0]
    assert (position.alloc_known, position.dealloc_known) == (kind != "alloc", kind != "dealloc")
    with pytest.raises(RefusedError, match="was not noted whole"):
        volume.marks(kind, "one")
    assert any("in the local plane and not reachable" in problem for problem in check(volume).problems)
    client = FileClient(volume := opened_again(volume))
    volume.mark("one")
    assert volume.positions[0].alloc_known
    assert live(volume) - members(volume.get_snapshot("one").plane) <= members(volume.marks("alloc", "one"))
    client.write(3, 0, range(7000, 7030))
    volume.sync()
    verdict(volume)


def test_stripes_beside_marks_with_a_damaged_node_can_be_written():
    """Before parity is written what lives in a stripe is verified: a plane that cannot be read tells of all it can."""
    volume, _ = scattered(1)
    places = np.array(sorted(places_of_local(volume)), np.int64)
    assert volume.beside.checks.expected(places).known.all()
    tree = volume.local.marks.intervals()[0].trees["alloc"]
    below = {int(word) & NUMBER_MASK for word in tree.node(1, 0)[:, 0] if word}
    spoil(volume, "alloc", level=1)
    volume = opened_again(volume)
    expected = volume.beside.checks.expected(places)
    assert below
    assert set(places[~expected.known].tolist()) == below


def places_of_local(volume: Volume) -> set[int]:
    local = volume.committed_local
    leaves = (leaf for start, stop in local.local.data_extents().tolist() for leaf in range(start, stop))
    return {int(n) for leaf in leaves for n in numbers_in(local.local_leaf(leaf), leaf * LEAF_BLOCKS)}


@pytest.mark.parametrize("kind", ["alloc", "dealloc"])
@pytest.mark.parametrize(("before", "gone", "unknown"), [
    ((), "one", []), (("zero",), "one", ["zero"]), ((), "two", ["one"]),
])  # fmt: skip
def test_marks_with_a_damaged_node_are_summed_and_given_up(kind, before, gone, unknown):
    """Of one: dropped, summed into the interval before it, or another summed into them; what is unknown stays so."""
    volume, _ = scattered(0, *before)
    spoil(volume, kind, level=1)
    volume = opened_again(volume)
    client = FileClient(volume)
    volume.snapshot("two", mark=True)
    client.write(2, 0, range(5000, 5060))
    volume.sync()
    client.write(2, 0, range(5500, 5560))
    volume.sync()
    volume.delete_snapshot(gone)
    client.write(2, 0, range(6000, 6060))
    volume.sync()
    known = {position.name: getattr(position, f"{kind}_known") for position in volume.positions}
    assert [name for name, is_known in known.items() if not is_known] == unknown
    volume.mark(next(iter(known)))
    verdict(volume)


@pytest.mark.parametrize("kind", ["alloc", "dealloc"])
def test_damaged_marks_are_named_and_worked_out_anew(kind):
    volume = make_volume(geometry_of(3, 0, 256))
    client = FileClient(volume)
    client.write(1, 0, range(40))
    volume.snapshot("one", mark=True)
    client.write(1, 0, range(100, 120))
    volume.sync()
    client.write(1, 5, range(200, 210))
    volume.sync()
    expected = live(volume) - members(volume.get_snapshot("one").plane)
    spoil(volume, kind)
    volume = again(volume)
    assert any("marks" in problem for problem in check(volume).problems)
    client = FileClient(volume)
    client.write(2, 0, range(300, 310))
    volume.sync()  # the volume goes on
    position = volume.positions[0]
    assert (position.alloc_known, position.dealloc_known) == (kind != "alloc", kind != "dealloc")
    with pytest.raises(RefusedError, match="was not noted whole"):
        volume.marks(kind, "one")
    volume.mark("one")
    assert volume.positions[0].alloc_known
    assert members(volume.marks("alloc", "one")) & live(volume) == live(volume) - members(
        volume.get_snapshot("one").plane
    )
    assert expected & live(volume) <= members(volume.marks("alloc", "one"))
    verdict(volume)


def test_every_block_of_a_plane_can_be_mended(volume, client):
    """Whoever works a block out from parity knows its check: the places of marks and stored planes too."""
    volume.snapshot("one", mark=True)
    client.write(1, 0, range(100, 120))
    volume.sync()
    save(volume, "now", "active")
    for _ in range(2):
        places = np.array(sorted(members(plane_of_local(volume))), np.int64)
        expected = volume.beside.checks.expected(places)
        assert expected.known.all()
        client.write(2, 0, range(200, 230))
        volume.sync()
    volume.unmark("one")
    delete(volume, "now")
    places = np.array(sorted(members(plane_of_local(volume))), np.int64)
    assert volume.beside.checks.expected(places).known.all()


def plane_of_local(volume: Volume) -> Plane:
    leaf = volume.committed_local.local_leaf(0)
    return Plane.from_words(leaf[: volume.geometry.n_blocks // 64].copy(), volume.geometry.n_blocks)


def plant(volume: Volume, kind: str, vbn: int) -> None:
    interval = volume.local.marks.intervals()[0]
    leaf = interval.trees[kind].edit_block(0).view(np.uint64)
    assert len(leaf) == LEAF_WORDS
    leaf[vbn >> 6] &= ~(np.uint64(1) << np.uint64(vbn & 63))
    volume.local.marks.changed()
    volume.commit(force=True)


def test_check_finds_a_mark_that_is_missing(volume, client):
    volume.snapshot("one", mark=True)
    client.write(1, 0, range(100, 120))
    volume.sync()
    new = live(volume) - members(volume.get_snapshot("one").plane)
    interval = volume.local.marks.intervals()[0]
    interval.record.n_alloc -= 1
    plant(volume, "alloc", max(new))
    assert any("1 blocks entered since 'one' and are not marked" in p for p in check(volume).problems)


def test_check_finds_a_mark_of_leaving_that_is_missing(volume, client):
    volume.snapshot("one", mark=True)
    client.write(3, 0, range(100, 120))
    volume.sync()
    entered = live(volume)
    client.remove(3)
    volume.sync()
    gone = entered & members(volume.marks("dealloc", "one")) & members(volume.marks("alloc", "one"))
    volume.local.marks.intervals()[0].record.n_dealloc -= 1
    plant(volume, "dealloc", max(gone))
    assert any("are gone and not marked as gone" in p for p in check(volume).problems)


def test_check_counts_marks(volume, client):
    volume.snapshot("one", mark=True)
    volume.local.marks.intervals()[0].record.n_alloc += 3
    volume.local.marks.changed()
    volume.commit(force=True)
    assert any("its record says" in p for p in check(volume).problems)
