"""Shadow snapshots: planes that stay while their blocks are reused (DESIGN.md, law 9)."""

from __future__ import annotations

import random
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest

from blockplane.image.image import build
from blockplane.model import BLOCK_BYTES, BlockplaneError, NoSpaceError, RefusedError
from blockplane.model.checks import crc32c
from blockplane.volume import Volume, snapshots
from blockplane.volume.busy import BusyPlane
from blockplane.volume.deleting import freed_by
from blockplane.volume.leafbits import EMPTY_LEAF
from blockplane.volume.local import LocalTree
from blockplane.volume.shadows import Room, ShadowPlane, Shadows, leaves_of
from blockplane.volume.state import State
from faults.world import (
    FileClient,
    again,
    geometry_of,
    make_volume,
    numbers_of,
    present,
    read_files,
    receive,
    root_of,
    verdict,
)

pytestmark = pytest.mark.usefixtures("inline")


def blocks_of(volume: Volume, state: State) -> dict[int, int]:
    """Every block that a state holds, its own metadata included: VBN -> CRC of its bytes as they lie on the disks."""
    found = {}
    for start, stop in volume.plane(state).extents().tolist():
        out = np.empty((stop - start) * BLOCK_BYTES, np.uint8)
        state.reader.read_extents(np.array([[start, stop]], np.int64), out)
        found |= {start + i: crc32c(row.tobytes()) for i, row in enumerate(out.reshape(-1, BLOCK_BYTES))}
    return found


def data_blocks(state: State) -> set[int]:
    """The blocks of files' contents."""
    trees = [state.tree(root_of(state, inode)) for inode in range(16) if state.inode_file.root.form]
    return {vbn for tree in trees for vbn in numbers_of(tree.pointers(0, tree.capacity_blocks()))}


def members(plane) -> set[int]:
    return {vbn for start, stop in plane.extents().tolist() for vbn in range(start, stop)}


def changed(volume: Volume, top: str, shadow: str) -> set[int]:
    return members(build(volume, f"{top} - {shadow}", with_=[shadow]).plane)


def differing(now: dict[int, int], then: dict[int, int]) -> set[int]:
    return {vbn for vbn, content in now.items() if then.get(vbn) != content}


def test_a_shadow_frees_its_blocks_and_keeps_its_plane(volume, client):
    client.write(1, 0, range(40))
    one = volume.snapshot("one")
    plane, n_blocks = members(one.plane), one.n_blocks
    client.write(1, 0, range(100, 140))
    volume.sync()
    used = volume.used_blocks
    n_freed = volume.shadow_snapshot("one")
    shadow = volume.get_snapshot("one")
    assert n_freed >= 40
    assert (shadow.kind, shadow.n_blocks, shadow.was_blocks) == ("shadow", n_blocks, n_blocks)
    assert members(shadow.plane) == plane
    assert used - n_freed <= volume.used_blocks <= used - n_freed + 8  # the CP's own metafile blocks
    verdict(volume)
    volume = again(volume)
    assert members(volume.get_snapshot("one").plane) == plane
    verdict(volume)


def test_reuse_clears_bits_and_the_difference_is_what_changed(volume, client):
    client.write(1, 0, range(40))
    one = volume.snapshot("one")
    then = blocks_of(volume, one.state)
    client.write(1, 0, range(100, 140))
    volume.sync()
    volume.shadow_snapshot("one")
    before = len(volume.get_snapshot("one").plane)
    volume.space._spared = lambda: None  # the allocator does not care, and reuses what it finds first
    for turn in range(12):  # round the volume: the blocks of one are reused
        client.write(2, 0, range(1000 * turn, 1000 * turn + 60))
        volume.sync()
    two = volume.snapshot("two")
    left = volume.get_snapshot("one")
    assert left.n_blocks < before
    assert len(left.plane) == left.n_blocks
    assert changed(volume, "two", "one") == differing(blocks_of(volume, two.state), then)
    verdict(volume)


def test_a_shadow_is_no_file_system_and_no_summand(volume, client):
    client.write(1, 0, range(4))
    volume.snapshot("one")
    client.write(1, 0, range(10, 14))
    volume.snapshot("two")
    volume.shadow_snapshot("one")
    for attempt in (
        lambda: volume.get_snapshot("one").state,
        lambda: volume.state("one"),
        lambda: volume.rollback("one"),
        lambda: build(volume, "two + one"),
        lambda: build(volume, "one"),
        lambda: volume.shadow_snapshot("one"),
    ):
        with pytest.raises(RefusedError, match="shadow"):
            attempt()
    assert build(volume, "two - one").require_sendable().name == "two"
    verdict(volume)


@pytest.mark.parametrize(
    "text",
    [
        "d & a", "d - a - b", "(d - a) - b", "d - (a + b)", "(d + c) - (a + b)", "d + (c - a)", "d - (c - a)",
        "d - (a - b)", "d - (a & b)", "d - (a & c)", "d & (a + b)", "(c ^ d) - a",
    ],
)  # fmt: skip
def test_shadows_anywhere_but_in_a_sum(volume, client, text):
    for name, start in (("a", 0), ("b", 10), ("c", 20), ("d", 30)):
        client.write(1, start, range(start * 100, start * 100 + 20))
        volume.snapshot(name)
    planes = {name: members(volume.get_snapshot(name).plane) for name in "abcd"}
    volume.shadow_snapshot("a")
    volume.shadow_snapshot("b")
    image = build(volume, text)
    expected = eval(text.replace("+", "|"), {}, planes)  # with these parentheses Python reads it as we do
    assert members(image.plane) == expected
    assert sum(image.blocks_per_disk) == len(expected)


@pytest.mark.parametrize("text", ["a..c - a", "a..c", "c - a..b"])
def test_a_range_with_a_shadow_at_its_end(volume, client, text):
    for name in "abc":
        client.write(1, 0, range(20))
        volume.snapshot(name)
    volume.shadow_snapshot("a")
    with pytest.raises(RefusedError, match="a is a shadow: no range begins or ends with one"):
        build(volume, text)


def test_what_is_read_is_not_shadowed(volume, client):
    client.write(1, 0, range(4))
    one = volume.snapshot("one")
    with volume.pin(one.record.id), pytest.raises(RefusedError, match="being read"):
        volume.shadow_snapshot("one")
    assert volume.get_snapshot("one").kind == "regular"


def fill_up(volume: Volume, client: FileClient) -> None:
    for at in range(volume.geometry.n_blocks):
        try:
            client.write(3, at, range(1))
            volume.sync()
        except NoSpaceError:
            return
    raise AssertionError("the volume never filled up")


def test_a_full_volume_can_make_shadows(volume, client):
    client.write(1, 0, range(60))
    volume.snapshot("one")
    client.write(1, 0, range(100, 160))
    volume.snapshot("two")
    n = volume.available_blocks
    client.write(2, 0, range(n - 40))
    volume.sync()
    fill_up(volume, client)
    assert volume.shadow_snapshot("one") >= 60
    volume.make_room(50)
    client.write(4, 0, range(50))
    volume.sync()
    verdict(volume)


def test_clearing_the_bits_of_many_shadows_needs_no_room_that_is_not_there():
    volume = make_volume(geometry_of(1, 0, 384), reserve_blocks=48)
    client = FileClient(volume)
    for inode in range(1, 5):
        client.write(inode, 0, range(100 * inode, 100 * inode + 40))
    then = blocks_of(volume, volume.snapshot("s0").state)
    volume.shadow_snapshot("s0")
    for n in range(1, 80):
        volume.snapshot(f"s{n}")
        volume.shadow_snapshot(f"s{n}")
    fill_up(volume, client)
    for inode in range(1, 5):
        with volume.dipping():
            client.punch(inode, 0, 40)
        for _ in range(3):
            volume.commit(force=True)
        client.write(
            inode, 50, range(volume.available_blocks // 2)
        )  # eighty shadows, of one leaf each, mean all places
        volume.sync()
    assert volume.free_blocks - volume.space.n_pending > 16  # what the next consistency point needs is there
    for _ in range(2):
        verdict(volume)
        shadows = volume.snapshots
        assert [len(shadow.plane) for shadow in shadows] == [shadow.n_blocks for shadow in shadows]
        volume = again(volume)
    volume.delete_snapshot(*[shadow.name for shadow in shadows[10:]])
    top = volume.snapshot("top")
    assert changed(volume, "top", "s0") >= differing(blocks_of(volume, top.state), then)
    verdict(volume)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("n_nodes", [0, 100])
def test_a_leaf_for_whose_copy_there_is_no_room_is_dropped(depth, n_nodes):
    # seventeen leaves and more make a tree that is one node deep
    volume = make_volume(geometry_of(2, 1, 64, n_groups=9) if depth else geometry_of(3, 1, 256))
    client = FileClient(volume)
    client.write(9, 0, range(700 if depth else 400))
    client.write(1, 0, range(1000, 1040))
    then = blocks_of(volume, volume.snapshot("one").state)
    client.write(1, 0, range(2000, 2040))
    volume.snapshot("two")
    volume.shadow_snapshot("one")
    volume.shadow_snapshot("two")
    for name in ("one", "two"):
        assert volume.local.shadows.plane(volume.local.entry(name)).blockmap.root.depth == depth
    before = {shadow.name: shadow.n_blocks for shadow in volume.snapshots}
    volume.space._spared = lambda: None  # what is free first is reused first
    with mock.patch.object(volume.local.shadows, "find_room", side_effect=lambda: Room(0, n_nodes)):
        for turn in range(8):
            client.write(1, 0, range(3000 + 40 * turn, 3040 + 40 * turn))
            volume.sync()
    assert ["more than was reused" in text for text in volume.warnings] == [True]
    is_given_up = depth > n_nodes
    for _ in range(2):
        verdict(volume)
        for shadow in volume.snapshots:
            assert len(shadow.plane) == shadow.n_blocks < before[shadow.name]
            assert (shadow.n_blocks == 0) == (is_given_up or depth == 0)
        volume = again(volume)
    top = volume.snapshot("top")
    assert changed(volume, "top", "one") >= differing(blocks_of(volume, top.state), then)
    volume.delete_snapshot("one", "two")
    assert not any(volume.local.shadowed_leaf(leaf).any() for leaf in range(volume.geometry.n_blocks // 32768 + 1))
    verdict(volume)


def test_deleting_a_shadow_frees_what_its_plane_took(volume, client):
    client.write(1, 0, range(40))
    volume.snapshot("one")
    client.write(1, 0, range(100, 140))
    volume.sync()
    volume.shadow_snapshot("one")
    client.write(2, 0, range(50))
    volume.sync()
    volume.delete_snapshot("one")
    assert volume.local.root.shadowed.form == 0 or not any(
        volume.local.shadowed_leaf(leaf).any() for leaf in range(volume.geometry.n_blocks // 32768 + 1)
    )
    assert volume.local.root.n_shadows == 0
    verdict(volume)


def test_rollback_brings_no_bit_back(volume, client):
    client.write(1, 0, range(40))
    one = volume.snapshot("one")
    then = blocks_of(volume, one.state)
    client.write(1, 10, range(100, 110))
    volume.snapshot("two")
    client.write(1, 0, range(200, 240))
    volume.sync()
    volume.shadow_snapshot("one")
    for turn in range(6):
        client.write(2, 0, range(1000 * turn, 1000 * turn + 60))
        volume.sync()
    left = members(volume.get_snapshot("one").plane)
    volume.rollback("two")
    assert members(volume.get_snapshot("one").plane) <= left
    three = volume.snapshot("three")
    assert changed(volume, "three", "one") == differing(blocks_of(volume, three.state), then)
    verdict(volume)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_a_receive_brings_clears_bits(volume, client, reverse):
    client.write(1, 0, range(30))
    volume.snapshot("one")
    target = make_volume(geometry_of(4, 1, 256))
    receive(volume, target, "one")
    theirs = FileClient(target)
    client.write(1, 0, range(100, 130))
    volume.snapshot("two")
    receive(volume, target, "two", "one")
    target.shadow_snapshot("one")
    for turn in range(6):
        client.write(2, 0, range(1000 * turn, 1000 * turn + 50))
        volume.sync()
    volume.snapshot("three")
    receive(volume, target, "three", "two", reverse)
    then = blocks_of(target, target.get_snapshot("two").state)
    assert read_files(target.get_snapshot("three").state) == present(client.files)
    now = blocks_of(target, target.get_snapshot("three").state)
    assert differing(now, then) <= changed(target, "three", "two")
    verdict(target)
    theirs.write(9, 0, range(5))
    target.sync()
    verdict(target)


class Story:
    """A random history with shadows beside a model of contents."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        # one leaf, that every CP changes; or one leaf a group, that states and shadows share
        self.volume = make_volume(geometry_of(3, 1, 256) if seed % 2 else geometry_of(2, 1, 64, n_groups=8))
        self.client = FileClient(self.volume)
        if not seed % 2:
            self.client.write(9, 0, range(1 << 20, (1 << 20) + 500))
        self.then: dict[str, dict[int, int]] = {}
        self.files: dict[str, dict] = {}
        self.n_made = self.value = 0
        self.n_left: dict[str, int] = {}

    def run(self, n_steps: int) -> None:
        steps = [self.snapshot, self.shadow, self.delete, self.rollback, self.reopen, *[self.write] * 3]
        for _ in range(n_steps):
            self.rng.choice(steps)()
            self.volume.sync()
            self.compare()

    def write(self) -> None:
        n = self.rng.randrange(1, 40)
        if self.volume.available_blocks < n + 60:
            self.delete()
            return
        self.value += n
        inode, first = self.rng.randrange(1, 6), self.rng.randrange(50)
        self.client.write(inode, first, range(self.value, self.value + n))

    def snapshot(self) -> None:
        if len(self.volume.snapshots) < 7:
            self.n_made += 1
            made = self.volume.snapshot(f"s{self.n_made}")
            self.then[made.name] = blocks_of(self.volume, made.state)
            self.files[made.name] = present(self.client.files)

    def shadow(self) -> None:
        regular = [s.name for s in self.volume.snapshots if s.kind == "regular"]
        if regular:
            self.volume.shadow_snapshot(self.rng.choice(regular))

    def delete(self) -> None:
        names = [s.name for s in self.volume.snapshots]
        gone = self.rng.sample(names, min(len(names), self.rng.choice((1, 1, 2))))
        if gone:
            said = freed_by(self.volume, gone)
            assert self.volume.delete_snapshot(*gone) == said
            for name in gone:
                del self.then[name]

    def rollback(self) -> None:
        regular = [s.name for s in self.volume.snapshots if s.kind == "regular"]
        if regular:
            self.volume.rollback(self.rng.choice(regular), drop_changes=True)

    def reopen(self) -> None:
        self.volume.sync()
        self.volume = again(self.volume)
        self.client = FileClient(self.volume)

    def compare(self) -> None:
        verdict(self.volume)
        by_kind: dict[str, list] = {"regular": [], "shadow": []}
        for snapshot in self.volume.snapshots:
            by_kind[snapshot.kind].append(snapshot)
        now = {s.name: blocks_of(self.volume, s.state) for s in by_kind["regular"]}
        for top in by_kind["regular"]:
            assert now[top.name] == self.then[top.name]
            assert read_files(top.state) == self.files[top.name]
            for shadow in by_kind["shadow"]:
                found = changed(self.volume, top.name, shadow.name)
                expected = differing(now[top.name], self.then[shadow.name])
                assert found >= expected
                # a metafile may have got the same bytes at the same place anew: a list of snapshots after a rollback
                assert not (found - expected) & data_blocks(top.state)
        for shadow in by_kind["shadow"]:
            n_left = self.n_left.get(shadow.name, shadow.was_blocks)
            assert shadow.n_blocks <= n_left  # nothing brings a bit back
            self.n_left[shadow.name] = shadow.n_blocks


def careless() -> mock._patch[mock.Mock]:
    """An allocator that does not care what shadows mean, and reuses it at once."""
    return mock.patch.object(BusyPlane, "spared", return_value=None)


@pytest.mark.parametrize("number", range(8))
def test_histories(number, rng, is_deep):
    for _ in range(100 if is_deep else 2):
        seed = int(rng.integers(1 << 40))
        print(f"story {seed}")
        with careless() if number % 2 else nullcontext():
            Story(seed).run(40)


# --- planted bugs -------------------------------------------------------------------------------------------------


def misses_a_change() -> bool:
    """Whether some history gives a difference that leaves out what changed."""
    for seed in range(12):
        with careless():
            story = Story(seed)
            try:
                story.run(40)
            except (AssertionError, BlockplaneError):
                return True
    return False


def test_reuse_that_clears_no_bit():
    with mock.patch.object(ShadowPlane, "clear_places"):
        assert misses_a_change()


def test_a_receive_that_clears_no_bit(volume, client):
    client.write(1, 0, range(60))
    volume.snapshot("one")
    target = make_volume(geometry_of(3, 1, 64))
    receive(volume, target, "one")
    theirs = FileClient(target)
    theirs.remove(1)
    target.snapshot("mine")
    then = blocks_of(target, target.get_snapshot("one").state)
    target.shadow_snapshot("one")
    for _ in range(3):
        target.commit(force=True)
    other = make_volume(geometry_of(3, 1, 256))
    FileClient(other).write(5, 0, range(500, 560))
    other.snapshot("other")
    with mock.patch.object(Shadows, "cleared"):
        receive(other, target, "other")
    missed = differing(blocks_of(target, target.get_snapshot("other").state), then) - changed(target, "other", "one")
    assert missed


def test_bits_that_a_rollback_brings_back():
    go_back = snapshots._go_back

    def restoring(volume: Volume, target) -> None:
        for entry in volume.local.shadows.entries():
            plane = volume.local.shadows.plane(entry)
            for leaf in range(volume.geometry.n_blocks // 32768 + 1):
                plane.blockmap.edit_block(leaf)[:] = 0xFF
        go_back(volume, target)

    with mock.patch.object(snapshots, "_go_back", restoring):
        assert misses_a_change()


def test_a_shadow_that_goes_and_gives_up_what_another_shares():
    def all_of(shadows: Shadows, gone) -> dict:
        parts = [shadows.plane(entry).own_places() for entry in gone if entry.is_shadow]
        return leaves_of(np.unique(np.concatenate(parts))) if parts else {}

    with mock.patch.object(Shadows, "given_up_by", all_of):
        assert misses_a_change()


def test_a_shadow_whose_own_plane_is_not_held():
    with mock.patch.object(LocalTree, "shadowed_leaf", return_value=EMPTY_LEAF):
        assert misses_a_change()
