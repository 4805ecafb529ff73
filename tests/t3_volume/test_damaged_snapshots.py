"""One damaged block of one snapshot or shadow: the others keep what they have, and everything goes on.

Without parity, so that what is damaged stays so.
"""

from __future__ import annotations

import numpy as np
import pytest

from blockplane.model import DiskError
from blockplane.volume import State, Volume, marking
from blockplane.volume.check import check
from blockplane.volume.codec import NUMBER_MASK
from blockplane.volume.deleting import freed_by, staying_beside
from blockplane.volume.leafbits import Leaf
from faults.world import (
    FileClient,
    Files,
    again,
    geometry_of,
    leaf_place,
    make_volume,
    present,
    read_files,
    receive,
    spoil_place,
    verdict,
)

pytestmark = pytest.mark.usefixtures("inline")


def line_of(n_snapshots: int, mark_first: bool = False) -> Volume:
    """Snapshots s0, s1, ... in a line, each with blocks that no other has."""
    made = make_volume(geometry_of(3, 0, 256))
    client = FileClient(made)
    for number in range(n_snapshots):
        client.write(1, 0, range(1000 * number + 1, 1000 * number + 31))
        made.snapshot(f"s{number}", mark=mark_first and number == 0)
    client.write(1, 0, range(9000, 9030))
    made.sync()
    verdict(made)
    return made


def spoiled(volume: Volume, place: int) -> Volume:
    """The volume after one block of it changed on its disk, opened again: nothing that was read is remembered."""
    spoil_place(volume, place)
    return again(volume)


def contents(volume: Volume, *names: str) -> dict[str, Files]:
    return {name: present(read_files(volume.get_snapshot(name).state)) for name in names}


def overwrite_free_space(volume: Volume, n_turns: int = 12) -> None:
    """Write and sync until whatever is free has got other content."""
    client = FileClient(volume)
    for turn in range(n_turns):
        client.write(2, 0, range(5000 * turn + 7, 5000 * turn + 67))
        volume.sync()


@pytest.mark.parametrize("how", ["delete", "shadow"])
def test_one_that_cannot_be_read_takes_nothing_of_others_with_it(how):
    volume = line_of(5)
    rest = ("s0", "s1", "s3", "s4")
    then = contents(volume, *rest)
    n_alone = freed_by(volume, ["s2"])
    volume = spoiled(volume, leaf_place(volume, "s2"))
    if how == "delete":
        assert volume.delete_snapshot("s2") == n_alone
    else:
        assert 0 < volume.shadow_snapshot("s2") < n_alone  # its blockmap's own blocks stay
    overwrite_free_space(volume)
    volume = again(volume)
    assert contents(volume, *rest) == then
    assert how == "shadow" or check(volume).problems == []


@pytest.mark.parametrize("shadows", [("s1",), ("s0", "s1"), ("s1", "s2")])
def test_a_shadow_of_which_a_leaf_is_damaged_stops_no_consistency_point(shadows):
    """What is damaged means nothing from then on; the blocks it lay in are given up."""
    volume = line_of(3)
    place = leaf_place(volume, "s1")
    for name in shadows:
        volume.shadow_snapshot(name)
    volume = spoiled(volume, place)
    overwrite_free_space(volume)
    assert volume.get_snapshot("s1").n_blocks == 0
    verdict(volume)
    volume.snapshot("new")
    volume = again(volume)
    verdict(volume)
    volume.delete_snapshot("s1")
    verdict(volume)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_shadow_of_which_a_node_is_damaged_is_empty(is_deleted):
    volume = make_volume(geometry_of(2, 0, 64, n_groups=12))
    client = FileClient(volume)
    while not volume.committed.blockmap.root.depth:
        client.write(1 + volume.committed.cp % 5, 0, range(60))
        volume.sync()
    for number in range(3):
        client.write(1, 0, range(1000 * number + 1, 1000 * number + 31))
        volume.snapshot(f"s{number}")
    tree = volume.get_snapshot("s1").state.blockmap
    node = int(tree.root.pointers[0, 0]) & NUMBER_MASK
    volume.shadow_snapshot("s1")
    volume.shadow_snapshot("s0")
    volume = spoiled(volume, node)
    if is_deleted:
        volume.delete_snapshot("s1")
    overwrite_free_space(volume, 30)
    assert is_deleted or volume.get_snapshot("s1").n_blocks == 0
    verdict(volume)


@pytest.mark.parametrize("how", ["delete", "shadow", "delete with another"])
def test_marks_go_on_when_one_that_cannot_be_read_goes(how):
    """What left with it is not known, what entered is."""
    volume = line_of(4, mark_first=True)
    volume = spoiled(volume, leaf_place(volume, "s2"))
    if how == "shadow":
        volume.shadow_snapshot("s2")
    else:
        volume.delete_snapshot("s2", *(["s3"] if how != "delete" else []))
    overwrite_free_space(volume, 3)
    (position,) = volume.positions
    assert (position.alloc_known, position.dealloc_known) == (True, False)
    volume = again(volume)
    verdict(volume)


def test_a_deletion_that_fails_leaves_the_marks_as_they_were(monkeypatch):
    """Nothing left, so nothing is marked, be it in leaves before the one that failed."""
    volume = make_volume(geometry_of(1, 0, 70016))
    client = FileClient(volume)
    client.write(1, 0, range(1, 101))
    volume.snapshot("base", mark=True)
    client.write(2, 0, range(201, 301))
    client.write(3, 0, range(1, 40001))
    volume.snapshot("one")
    client.remove(2)
    client.remove(3)
    volume.sync()
    (before,) = volume.positions
    read, n_leaves = State.plane_leaf, []

    def fail_in_the_second(state: State, leaf: int) -> Leaf:
        n_leaves.append(leaf)
        if len(set(n_leaves)) > 1:
            raise DiskError("disk0: read: Input/output error", "disk0")
        return read(state, leaf)

    with monkeypatch.context() as patched:
        patched.setattr(State, "plane_leaf", fail_in_the_second)
        with pytest.raises(DiskError):
            marking.dropped(volume, [volume.local.entry("one")], staying_beside(volume, [volume.local.entry("one")]))
    volume.commit(force=True)
    assert volume.positions == [before]


@pytest.mark.parametrize("what", ["root", "leaf"])
def test_a_rollback_goes_past_another_that_cannot_be_read(what):
    """What that one may have stays held until it goes."""
    volume = line_of(4)
    rest = ("s0", "s2", "s3")
    then = contents(volume, *rest)
    volume = spoiled(volume, place_of(volume, "s1", what))
    kept = volume.rollback("s0")
    assert kept is not None
    assert present(read_files(volume.state())) == then["s0"]
    overwrite_free_space(volume, 5)
    assert contents(volume, *rest) == then
    volume.delete_snapshot("s1")
    overwrite_free_space(volume)
    volume = again(volume)
    assert contents(volume, *rest) == then
    verdict(volume)


def received() -> tuple[Volume, Volume]:
    """A source, and a copy on which blocks of m1, m2, m3 lie elsewhere than their numbers say."""
    source, copy = make_volume(geometry_of(3, 0, 256)), make_volume(geometry_of(3, 0, 256))
    client, before = FileClient(source), None
    for number in range(1, 4):
        client.write(min(number, 2), 0, range(100 * number + 1, 100 * number + 31))
        source.snapshot(f"m{number}")
        receive(source, copy, f"m{number}", before)
        before = f"m{number}"
    assert not copy.active.placemap.is_empty
    client.write(2, 0, range(401, 431))
    source.snapshot("m4")
    return source, copy


def place_of(volume: Volume, name: str, what: str) -> int:
    """Where the root of a snapshot lies, or the first leaf of its blockmap."""
    if what == "leaf":
        return leaf_place(volume, name)
    record, state = volume.get_snapshot(name).record, volume.get_snapshot(name).state
    return int(state.placemap.to_places(np.array([record.root.number], np.int64))[0])


@pytest.mark.parametrize("what", ["root", "leaf"])
def test_a_receive_goes_past_one_that_cannot_be_read(what):
    source, volume = received()
    volume = spoiled(volume, place_of(volume, "m2", what))
    receive(source, volume, "m4", "m3")
    rest = ("m1", "m3", "m4")
    then = {name: present(read_files(source.get_snapshot(name).state)) for name in rest}
    overwrite_free_space(volume, 4)
    volume = again(volume)
    assert contents(volume, *rest) == then
    volume.delete_snapshot("m2")
    overwrite_free_space(volume)
    verdict(volume)
    assert contents(volume, *rest) == then


@pytest.mark.parametrize("what", ["root", "leaf"])
def test_names_of_one_that_cannot_be_read_are_not_given_to_others(what):
    """Where blocks lie elsewhere than their numbers say, what is written looks for names, and finds some."""
    _, volume = received()
    m2, before = (set(numbers(volume, volume.get_snapshot(name).state)) for name in ("m2", "m3"))
    volume = spoiled(volume, place_of(volume, "m2", what))
    overwrite_free_space(volume, 4)
    fresh = set(numbers(volume, volume.committed)) - before
    assert any(volume.committed.placemap.to_places(np.array(sorted(fresh), np.int64)) != sorted(fresh))
    assert not fresh & m2
    volume.delete_snapshot("m2")
    verdict(again(volume))


def numbers(volume: Volume, state: State) -> list[int]:
    """The VBNs of a state."""
    return [vbn for start, stop in volume.plane(state).extents().tolist() for vbn in range(start, stop)]
