"""Images of a volume against Python sets: counts, disks, tops, bases, what arrives, what is left out."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import blockplane as bp
from blockplane.disks import Geometry, GroupRecord
from blockplane.image import build, freed, freed_blocks, gather
from blockplane.image.expression import Chain, Meet, Name, Span, parse
from blockplane.image.extents import numbers_in
from blockplane.image.layout import Layout
from blockplane.image.order import DiskPlan, shares_of_first, windows
from blockplane.model import ExpressionError, NoSuchSnapshotError, RefusedError, UsageError
from blockplane.model.checks import first_bad_block
from blockplane.planes import Plane
from blockplane.transfer.imagesending import ImageSending
from streams.volumes import Files, fresh, members

JOINS = {"+": set.union, "-": set.difference, "^": set.symmetric_difference}
NAMES = ["a", "b", "c", "d", "e"]
#: The order of version 1 over the groups and the plane of `test_the_orders_are_frozen`.
GOLDEN_ORDERS = {"disk": "bf4f1f9964f03092", "tape": "44a9774ea9d7644d"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Five snapshots; c was deleted from under its neighbours' feet before e was made."""
    rng = np.random.default_rng(7)
    volume = fresh(tmp_path_factory.mktemp("images") / "vol", size="16M")
    files = Files(volume, rng)
    for i, name in enumerate([*NAMES[:2], "gone", *NAMES[2:]]):
        files.write(i + 1, 0, 300)
        if i:
            files.write(1, int(rng.integers(200)), 30)
            files.punch(i, 50, 90)
        volume.snapshot(name)
        if name == "c":
            volume.delete_snapshot("gone")
    yield volume
    volume.close()


@pytest.fixture(scope="module")
def sets(volume):
    return {name: members(volume.get_snapshot(name).plane) for name in NAMES}


def by_sets(node, sets):
    if isinstance(node, Name):
        return sets[node.text]
    if isinstance(node, Span):
        inside = NAMES[NAMES.index(node.first.text) : NAMES.index(node.last.text) + 1]
        return set().union(*(sets[name] for name in inside))
    if isinstance(node, Meet):
        return set.intersection(*(by_sets(part, sets) for part in node.terms))
    assert isinstance(node, Chain)
    total: set[int] = set()
    for sign, part in node.terms:
        total = JOINS[sign](total, by_sets(part, sets))
    return total


TERMS = st.one_of(
    st.sampled_from(NAMES),
    st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda p: f"{NAMES[min(p)]}..{NAMES[max(p)]}"),
)
TEXTS = st.recursive(
    TERMS,
    lambda t: st.one_of(
        st.tuples(t, st.sampled_from([" + ", " - ", " & ", " ^ "]), t).map("".join), t.map(lambda text: f"({text})")
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(text=TEXTS)
def test_an_image_is_exactly_its_expression(volume, sets, text):
    node = parse(text)
    positive, every = used(node)
    if max(every) > max(positive):
        with pytest.raises(UsageError, match="is no ancestor of"):
            build(volume, text)
        return
    image = build(volume, text)
    expected = by_sets(node, sets)
    assert image.top.name == NAMES[max(positive)]
    assert members(image.plane) == expected
    assert (image.n_blocks, image.n_bytes) == (len(expected), 4096 * len(expected))
    assert sum(image.blocks_per_disk) == len(expected)
    owned = [members(plane) for _, plane in image.owners]
    assert set().union(*owned) == expected
    assert sum(len(part) for part in owned) == len(expected)


def used(node):
    """Indexes of the snapshots that can add blocks, and of all."""
    if isinstance(node, Name):
        return {NAMES.index(node.text)}, {NAMES.index(node.text)}
    if isinstance(node, Span):
        inside = set(range(NAMES.index(node.first.text), NAMES.index(node.last.text) + 1))
        return inside, inside
    if isinstance(node, Meet):
        parts = [used(part) for part in node.terms]
        return parts[0][0], set().union(*(every for _, every in parts))
    parts = [(sign, *used(part)) for sign, part in node.terms]
    positive = set().union(*(p for sign, p, _ in parts if sign != "-"))
    return positive, set().union(*(every for _, _, every in parts))


@pytest.mark.parametrize(
    ("text", "top", "base"),
    [("e", "e", None), ("e - c", "e", "c"), ("c + a", "c", None), ("b + e - a", "e", "a"), ("a..e - a", "e", "a")],
)
def test_top_and_base(volume, text, top, base):
    image = build(volume, text)
    assert (image.top.name, image.base.name if image.base else None, image.complete) == (top, base, True)


def test_what_arrives_and_what_is_left_out(volume, sets):
    for text in ("e", "e - c", "e + d - c", "a..e", "d + b - a"):
        image = build(volume, text)
        held = members(image.plane) | (sets[image.base.name] if image.base else set())
        line = NAMES[: NAMES.index(image.top.name) + 1]
        whole = [n for n in line if sets[n] <= held and (image.base is None or n != image.base.name)]
        assert [record.name for record in image.arriving] == whole[::-1]
        base = {image.base.name} if image.base else set()
        assert {record.name for record in image.left_out} == set(line) - set(whole) - base


def test_what_is_kept_out_does_not_arrive_though_its_blocks_do(volume, sets):
    every = build(volume, "e", older="all")
    assert "b" in [record.name for record in every.arriving]
    (unwanted,) = [record.id for record in every.arriving if record.name == "b"]
    image = build(volume, "e", older="all", keep_out=[unwanted])
    assert members(image.plane) == members(every.plane) >= sets["b"]
    assert [r.name for r in image.arriving] == [r.name for r in every.arriving if r.name != "b"]
    assert "b" in [record.name for record in image.left_out]


def test_dropped_is_what_the_base_alone_holds(volume, sets):
    image = build(volume, "e + d - b")
    assert members(image.dropped) == sets["b"] - sets["e"] - sets["d"] - set().union(
        *(sets[record.name] for record in image.arriving)
    )


def test_older_terms_are_added_and_said(volume, sets):
    assert str(build(volume, "e - b", older="all").expression) == "e + d + c - b"
    assert str(build(volume, "e - b", older=["c"]).expression) == "e + c - b"
    assert str(build(volume, "e", older="all").expression) == "e + d + c + b + a"
    image = build(volume, "e - b", older="all")
    assert members(image.plane) == (sets["e"] | sets["d"] | sets["c"]) - sets["b"]


def test_what_may_not_be_sent(volume):
    for text in ("e & d", "e ^ d", "e ^ d - c", "e - c - a", "e - (c + a)", "(e - c) + d"):
        with pytest.raises(RefusedError, match="not sent"):
            build(volume, text).require_sendable()
    assert build(volume, "(e + d) + c - b").require_sendable().name == "e"


def test_names_that_are_wrong(volume):
    with pytest.raises(NoSuchSnapshotError, match="no snapshot gone"):
        build(volume, "e - gone")
    with pytest.raises(UsageError, match=r"range e\.\.a"):
        build(volume, "e..a")
    with pytest.raises(UsageError, match="b is no ancestor of a"):
        build(volume, "a - b")
    with pytest.raises(ExpressionError):
        build(volume, "e -a")


@pytest.fixture
def branches(tmp_path):
    """a, c and c2 with high CPs; after a rollback to a, new and new2 with low ones; a once more is what is live."""
    with fresh(tmp_path / "branches", size="16M") as volume:
        for name, before, n_points in (("a", "", 1), ("c", "", 4), ("c2", "", 1), ("new", "a", 1), ("new2", "", 1)):
            if before:
                volume.rollback(before)
            files = bp.FileSystem(volume)
            for i in range(n_points):
                files.write_bytes(f"/{name}{i}", bytes([i + 1]) * 30_000)
                volume.sync()
            volume.snapshot(name)
        volume.rollback("a")
        assert volume.get_snapshot("c").state.cp > volume.get_snapshot("new2").state.cp
        yield volume


@pytest.mark.parametrize("text", ["c2 + new", "new + c2"])
def test_the_newest_of_two_branches_is_what_was_made_last(branches, tmp_path, text):
    for with_ in ((), ("new",)):
        with pytest.raises(UsageError, match="c2 is no ancestor of new, the newest snapshot of the image") as caught:
            build(branches, text, with_=with_)
        assert "--with c2" in caught.value.hint
    image = build(branches, text, with_=["c2"])
    assert (image.top.name, [record.name for record in image.arriving]) == ("new", ["new", "c2"])
    bp.send(image, tmp_path / "both.bps")
    bp.receive(tmp_path / "both.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert [snapshot.name for snapshot in copy.snapshots] == ["c2", "new"]
        assert sorted(bp.FileSystem(copy).listdir("/")) == ["a0", "new0"]
        assert bp.FileSystem(copy.get_snapshot("c2")).exists("/c3")
        assert bp.check(copy).problems == []


def test_the_live_file_system_is_newer_than_every_branch(branches):
    with pytest.raises(UsageError, match="c2 is no ancestor of active"):
        build(branches, "active + c2", allow_active=True)
    assert build(branches, "active + c2", allow_active=True, with_=["c2"]).top is None


def test_an_older_snapshot_that_came_later_is_no_top(branches, tmp_path):
    for name, text in (("full", "c2"), ("older", "new + a")):
        bp.send(build(branches, text), tmp_path / f"{name}.bps")
        bp.receive(tmp_path / f"{name}.bps", tmp_path / "copy", discard=name == "older")
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert [snapshot.name for snapshot in copy.snapshots] == ["c2", "a", "new"]
        assert build(copy, "a + c2").top.name == "c2"
        assert build(copy, "c2 + a + new", with_=["c2"]).top.name == "new"


@pytest.mark.parametrize(("text", "all_older"), [("new2 - c2", "new2 + new - c2"), ("new2 - new", "new2 - new")])
def test_a_shadow_is_asked_for_what_its_line_has(branches, text, all_older):
    base = text.split()[-1]
    assert str(build(branches, text, with_=["c2"][: base == "c2"], older="all").expression) == all_older
    branches.shadow_snapshot(base)
    assert str(build(branches, text, with_=["c2"][: base == "c2"], older="all").expression) == all_older


def test_freed_is_what_no_other_holds(volume, sets):
    live = members(volume.plane(volume.state(None)))
    for gone in (["a"], ["b", "c"], ["e"], NAMES):
        rest = set().union(live, *(sets[n] for n in NAMES if n not in gone))
        assert freed_blocks(volume, gone) == len(freed(volume, gone))
        assert members(freed(volume, gone)) == set().union(*(sets[n] for n in gone)) - rest


def test_planning_reads_are_at_most_two_leaves_for_each_that_differs(volume):
    image = build(volume, "e - d")
    one, two = volume.state("e").blockmap, volume.state("d").blockmap
    n = one.capacity_blocks()
    differ = int((one.pointers(0, n)[:, 0] != two.pointers(0, n)[:, 0]).sum())
    assert 0 < image.n_planning_leaves <= image.n_planning_reads <= 2 * differ


def test_planning_an_increment_reads_each_of_many_snapshots_once(tmp_path, rng):
    with fresh(tmp_path / "many") as volume:
        files = Files(volume, rng)
        for number in range(24):
            files.write(1, number, 3)
            volume.snapshot(f"s{number}")
        image = build(volume, " + ".join(f"s{number}" for number in range(23, 0, -1)) + " - s0")
        assert (len(image.arriving), image.n_planning_reads) == (23, 24)


@pytest.mark.parametrize("order", ["disk", "tape"])
@pytest.mark.parametrize("window_blocks", [7, 64, 2048])
def test_windows_hold_every_block_once_and_read_it_where_it_lies(volume, order, window_blocks):
    image = build(volume, "e + c - a")
    geometry, seen = volume.geometry, []
    per_disk = dict.fromkeys(range(geometry.n_disks), -1)
    for window in windows(image.layout, image.plane, geometry, order, window_blocks):
        vbns = numbers_in(window.extents)
        seen += vbns.tolist()
        assert (window.n_blocks, len(vbns)) == (len(vbns), min(window_blocks, len(vbns)))
        assert (np.diff(vbns) > 0).all()
        at = np.full(len(vbns), -1)
        for plan in window.disks:
            dbns = numbers_in(np.column_stack((plan.dbn, plan.dbn + plan.n_blocks)))
            where = numbers_in(np.column_stack((plan.positions, plan.positions + plan.n_blocks)))
            at[where] = geometry.from_disk(np.full(len(dbns), plan.disk), dbns)
            if order == "disk":
                assert dbns[0] > per_disk[plan.disk]
                per_disk[plan.disk] = dbns[-1]
            assert (np.diff(dbns) > 0).all()
        assert (at == vbns).all()
    assert (len(seen), set(seen)) == (image.n_blocks, members(image.plane))
    if order == "tape":
        assert seen == sorted(seen)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
def test_shares_are_the_first_blocks_by_turn(counts):
    turns = sorted((Fraction(2 * j + 1, 2 * count), disk) for disk, count in enumerate(counts) for j in range(count))
    for k in range(len(turns) + 1):
        taken = [disk for _, disk in turns[:k]]
        assert shares_of_first(counts, k) == [taken.count(disk) for disk in range(len(counts))]


def test_the_orders_are_frozen():
    # an order that changes under its version number breaks every position that was written down
    found = {}
    for order in ("disk", "tape"):
        digest = hashlib.sha256()
        for extents in two_groups(order):
            digest.update(extents.astype("<i8").tobytes())
        found[order] = digest.hexdigest()[:16]
    assert found == GOLDEN_ORDERS


GROUPS = Geometry([GroupRecord(0, 3, 1, 64, 1024, (0, 1, 2, 3)), GroupRecord(65_536, 2, 0, 2048, 2048, (4, 5))])
SCATTERED = [[5, 700], [800, 801], [2000, 3000], [65_600, 66_000], [67_600, 69_000]]


def two_groups(order):
    plane = Plane.from_extents(SCATTERED, 1 << 17)
    return [window.extents for window in windows(Layout(plane, [], 1 << 17), plane, GROUPS, order, 100)]


def test_disk_order_is_by_turn_over_all_groups():
    vbns = numbers_in(np.array(SCATTERED))
    disks, dbns = GROUPS.to_disk(vbns)
    turns = []
    for disk in range(GROUPS.n_disks):
        mine = vbns[disks == disk][np.argsort(dbns[disks == disk])]
        turns += [(Fraction(2 * j + 1, 2 * len(mine)), disk, vbn) for j, vbn in enumerate(mine.tolist())]
    in_order = [vbn for _, _, vbn in sorted(turns)]
    expected = [sorted(in_order[at : at + 100]) for at in range(0, len(in_order), 100)]
    assert [numbers_in(extents).tolist() for extents in two_groups("disk")] == expected


def test_disks_advance_in_proportion(volume):
    image = build(volume, "a..e")
    total, n = np.array(image.blocks_per_disk), image.n_blocks
    taken = np.zeros(len(total))
    for i, window in enumerate(windows(image.layout, image.plane, volume.geometry, "disk", 100)):
        for plan in window.disks:
            taken[plan.disk] += plan.n_blocks.sum()
        assert (np.abs(taken - total * min((i + 1) * 100, n) / n) < 1.0 + 1e-9).all()
    assert taken.tolist() == total.tolist()


def test_expected_checks_are_those_of_the_blocks(volume):
    image = build(volume, "e + d + b - a")
    n_blocks = 0
    with ImageSending(image, window_blocks=50).windows() as gathered:
        for window in gathered:
            assert first_bad_block(window.buffer, numbers_in(window.extents), window.checks) == -1
            n_blocks += len(window.checks)
    assert n_blocks == image.n_blocks


def test_a_window_in_hand_stays_whole_while_others_are_read(volume, monkeypatch):
    monkeypatch.setattr(gather, "RING_BYTES", 0)  # two buffers, the fewest there are
    image = build(volume, "e")
    assert image.n_blocks > 3 * 50
    with ImageSending(image, window_blocks=50).windows() as gathered:
        window = next(gathered)
    for disk in range(volume.geometry.n_disks):  # behind every read that was begun
        volume.array.read_raw(disk, 0, 1, np.empty(4096, np.uint8))
    assert first_bad_block(window.buffer, numbers_in(window.extents), window.checks) == -1


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(1, 60)), min_size=1, max_size=12))
def test_holes_read_through_are_the_longest_that_cost_little(pieces):
    """At most 8 blocks each, together at most a 25th of what is wanted; from (hole before, length) of each extent."""
    gaps, lengths = np.array(pieces, np.int64).T
    dbn = np.cumsum(gaps + lengths) - lengths
    longest = gather.hole_blocks(DiskPlan(0, dbn, lengths, np.zeros_like(dbn)))
    between = gaps[1:]
    cost = {limit: int(between[between <= limit].sum()) for limit in (1, 2, 4, 8)}
    allowed = [limit for limit in cost if 0 < cost[limit] * 25 <= lengths.sum()]
    assert longest == max(allowed, default=0)


def test_a_snapshot_of_which_the_image_takes_a_name_does_not_arrive(tmp_path):
    """Two lines on one volume; where they hold the same name, one of them lies elsewhere."""
    ours, theirs = bp.Volume.create(tmp_path / "ours", size="16M"), bp.Volume.create(tmp_path / "theirs", size="16M")
    with ours, theirs:
        bp.FileSystem(ours).write_bytes("/a", b"ours" * 50_000)
        ours.snapshot("a1")
        bp.FileSystem(ours).write_bytes("/b", b"more" * 1000)
        ours.snapshot("a2")
        bp.FileSystem(theirs).write_bytes("/a", b"theirs" * 50_000)
        theirs.snapshot("b1")
        bp.send(theirs.image("b1"), tmp_path / "b1.bps")
        bp.receive(tmp_path / "b1.bps", ours, discard=True)
        assert not ours.get_snapshot("b1").state.placemap.is_empty
        image = build(ours, "b1 + a1 - a2", with_=("a1", "a2"))
        assert [record.name for record in image.arriving] == ["b1"]
        assert "a1" in [record.name for record in image.left_out]


@pytest.mark.parametrize("clashes", [False, True])
@pytest.mark.parametrize("way", ["copy", "stream"])
def test_snapshots_of_two_numberings_travel_together(tmp_path, rng, way, clashes):
    """Two lines on one volume, each of its own numbering: as a sum, or one on the other as its base."""
    ours, theirs = bp.Volume.create(tmp_path / "ours", size="16M"), bp.Volume.create(tmp_path / "theirs", size="16M")
    was = {"a": b"ours" * 50_000, "b": b"theirs" * 50_000}
    with ours, theirs:
        bp.FileSystem(ours).write_bytes("/file", was["a"])
        ours.snapshot("a")
        if not clashes:  # else the same numbers as in a, for other blocks
            bp.FileSystem(theirs).write_bytes("/first", rng.bytes(500_000))
            theirs.commit()
        bp.FileSystem(theirs).write_bytes("/file", was["b"])
        if not clashes:
            bp.FileSystem(theirs).unlink("/first")
            theirs.commit()
        theirs.snapshot("b")
        bp.send(theirs.image("b"), tmp_path / "b.bps")
        bp.receive(tmp_path / "b.bps", ours, discard=True)
        for expression in ("b + a", "b - a"):
            image = ours.image(expression, with_=("a",))
            path = tmp_path / f"{way}{image.base is None}"
            if image.base is not None:
                bp.copy(ours.image("a"), path)
            if way == "copy":
                bp.copy(image, path, discard=True)
            else:
                bp.send(image, tmp_path / "both.bps")
                bp.receive(tmp_path / "both.bps", path, discard=True)
                (tmp_path / "both.bps").unlink()
            expected = ["b"] if clashes and image.base is None else ["a", "b"]
            with bp.Volume.open(path) as found:
                assert bp.check(found).problems == []
                assert sorted(snapshot.name for snapshot in found.snapshots) == expected
                for name in expected:
                    assert bp.FileSystem(found.get_snapshot(name)).read_bytes("/file") == was[name]
