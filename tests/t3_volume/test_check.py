"""check() finds what is planted, names it, and raises nothing."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.disks.label import decode_label, encode_label
from blockplane.model import DiskError, VolumeDamagedError
from blockplane.volume import TreeRoot, Volume, checkwalk
from blockplane.volume import check as check_module
from blockplane.volume.check import MAX_PROBLEMS, CheckReport, check
from blockplane.volume.codec import BLOCK_WORD, NUMBER_MASK
from blockplane.volume.leafbits import clear_range, set_range
from blockplane.volume.placemap import PlaceMap
from faults.recording import MemoryDisk
from faults.world import (
    FileClient,
    again,
    geometry_of,
    image_plane,
    make_volume,
    open_volume,
    put_root,
    receive,
    revived,
    root_of,
    verdict,
)

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def volume() -> Volume:
    """Two snapshots, a deep file, a live state that differs."""
    volume = make_volume(geometry_of(2, 1, 128), reserve_blocks=48)
    client = FileClient(volume)
    client.write(1, 0, range(1, 31))
    client.edit(2, 5000, 7)
    volume.snapshot("a")
    client.write(1, 5, range(100, 110))
    volume.snapshot("b")
    client.punch(1, 0, 3)
    client.edit(3, 0, 9)
    volume.sync()
    volume.commit(force=True)
    verdict(volume)
    return volume


def flip(volume: Volume, place: int, byte: int = 100) -> None:
    disk, dbn = volume.geometry.to_disk(np.array([place], np.int64))
    member, block = volume.array.disks[int(disk[0])], int(dbn[0]) + HEAD_BLOCKS
    data = bytearray(member.block(block))
    data[byte] ^= 4
    member.write(block, bytes(data))


def forget(volume: Volume) -> None:
    """Drop what is in memory, so that the disks are read."""
    for state in (volume.committed, *volume.snapshot_states()):
        for tree in (state.inode_file, state.blockmap, state.checksums, state.snapshot_list, state.branch_list):
            tree.drop_cache()
    for tree in (volume.committed_local.held, volume.committed_local.local):
        tree.drop_cache()


def problems(volume: Volume) -> str:
    report = check(volume)
    assert not report.ok
    return "\n".join(report.problems)


def live_places(volume: Volume) -> list[int]:
    out = []
    for leaf in range(volume.committed.n_leaves):
        bits = np.unpackbits(volume.live_leaf(leaf).view(np.uint8), bitorder="little")
        out += (np.flatnonzero(bits) + leaf * 32768).tolist()
    return out


def test_a_flipped_bit_in_any_live_block(volume):
    places = live_places(volume)
    assert len(places) > 60
    for place in places:
        flip(volume, place)
        forget(volume)
        assert "not match" in problems(volume) or "cannot be read" in problems(volume)
        flip(volume, place)
        forget(volume)
    verdict(volume)


def test_every_state_that_has_a_damaged_block_says_so(volume):
    def places_of(state) -> set[int]:
        return set(np.flatnonzero(np.unpackbits(state.place_leaf(0).view(np.uint8), bitorder="little")).tolist())

    names = ["the live file system", "snapshot 'a'", "snapshot 'b'"]
    everywhere = set.intersection(*map(places_of, [volume.committed, *volume.snapshot_states()]))
    n_data = 0
    for place in sorted(everywhere):
        flip(volume, place)
        forget(volume)
        found = [line for line in problems(volume).splitlines() if "of a file does not match" in line]
        if found:
            n_data += 1
            assert [line.partition(":")[0] for line in found] == names
        flip(volume, place)
    forget(volume)
    assert n_data > 10


def test_a_flipped_bit_in_a_block_that_only_the_cp_before_the_last_has(volume):
    """Nothing is lost by it: the volume opens, is written to and checked as ever."""
    volume.delete_snapshot("a")
    FileClient(volume).edit(2, 5000, 8)
    volume.sync()
    before = volume.previous.place_leaf(0) | volume.previous_local.held_leaf(0) | volume.previous_local.local_leaf(0)
    only = np.unpackbits((before & ~volume.live_leaf(0)).view(np.uint8), bitorder="little")
    places = np.flatnonzero(only).tolist()
    roots = {volume.info.previous_state.number, volume.info.previous_local.number}
    assert roots <= set(places)
    assert len(places) > len(roots)
    for place in places:
        disks = [MemoryDisk(disk.path, disk.n_blocks, disk.contents()) for disk in volume.array.disks]
        hurt = open_volume(disks)
        flip(hurt, place)
        hurt = again(hurt)
        FileClient(hurt).write(4, 0, range(20))
        hurt.snapshot("c")
        verdict(again(hurt))


def test_a_flipped_bit_in_parity(volume):
    parity = volume.array.disks[2]
    written = [block for block in parity.contents() if HEAD_BLOCKS <= block < HEAD_BLOCKS + 128]
    found = 0
    for block in written:
        good = parity.block(block)
        parity.write(block, bytes([good[0] ^ 1]) + good[1:])
        report = check(volume)
        found += any(f"parity of stripe {block - HEAD_BLOCKS} " in text for text in report.problems)
        assert check(volume, parity=False).ok
        parity.write(block, good)
    geometry = volume.geometry
    stripes = {int(geometry.to_disk(np.array([place]))[1][0]) for place in live_places(volume)}
    assert found == len(stripes & {block - HEAD_BLOCKS for block in written})
    assert found > 20


def commit_raw(volume: Volume) -> None:
    volume.active.is_dirty = volume.local.is_dirty = True
    volume.commit()


def test_a_bit_too_few_in_the_blockmap(volume):
    number = int(volume.new_tree(root_of(volume.active, 1)).pointers(10, 11)[0, 0]) & NUMBER_MASK
    clear_range(volume.active.blockmap.edit_block(0).view(np.uint64), number, number + 1)
    commit_raw(volume)
    text = problems(volume)
    assert f"reachable and not in its plane, the first {number}" in text
    assert "its root says" in text


def test_a_bit_too_many_in_the_blockmap(volume):
    set_range(volume.active.blockmap.edit_block(0).view(np.uint64), 250, 251)
    volume.active.root.n_blocks += 1
    commit_raw(volume)
    text = problems(volume)
    assert "in its plane and not reachable, the first 250" in text
    assert "its root says" not in text


def test_a_wrong_check_in_the_checksum_file(volume):
    number = int(volume.new_tree(root_of(volume.active, 1)).pointers(10, 11)[0, 0]) & NUMBER_MASK
    volume.active.checksums.edit_block(0).view(np.uint32)[number] ^= 1
    commit_raw(volume)
    assert f"checksum file differs from the pointer to block {number}" in problems(volume)


@pytest.mark.parametrize("more", [True, False])
def test_a_wrong_held_plane(volume, more):
    words = volume.local.held_leaf(0).copy()
    held = int(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))[0])
    if more:
        set_range(words, 255, 256)
    else:
        clear_range(words, held, held + 1)
    volume.local.set_held_leaf(0, words)
    commit_raw(volume)
    expected = "held and in no snapshot, the first 255" if more else f"in a snapshot and not held, the first {held}"
    assert expected in problems(volume)


def test_wrong_counts(volume):
    volume.active.root.n_blocks += 1
    volume.local.root.n_held += 2
    volume.local.root.n_local -= 1
    commit_raw(volume)
    text = problems(volume)
    assert "its root says" in text
    assert "the held plane has" in text
    assert "the local plane holds" in text


def test_a_bit_too_many_in_the_local_plane(volume):
    free = next(place for place in range(60, 256) if place not in live_places(volume))
    set_range(volume.local.local.edit_block(0).view(np.uint64), free, free + 1)
    volume.local.root.n_local += 1
    commit_raw(volume)
    assert f"in the local plane and not reachable, the first {free}" in problems(volume)


def test_a_place_that_is_the_local_trees_and_a_states(volume):
    number = int(volume.new_tree(root_of(volume.active, 1)).pointers(10, 11)[0, 0]) & NUMBER_MASK
    set_range(volume.local.local.edit_block(0).view(np.uint64), number, number + 1)
    volume.local.root.n_local += 1
    commit_raw(volume)
    assert f"place {number} is the local tree's and a state's" in problems(volume)


def test_a_block_with_two_owners(volume):
    root = root_of(volume.active, 1).copy()
    put_root(volume.active, 6, root)
    commit_raw(volume)
    assert "shares a block" in problems(volume)


@pytest.mark.parametrize("word", [BLOCK_WORD | (1 << 40), 7 << 56 | 3])
def test_pointers_that_lead_nowhere(volume, word):
    root = TreeRoot(2, 0, 4096)
    root.pointers[0] = word, 1
    put_root(volume.active, 6, root)
    commit_raw(volume)
    assert "lead nowhere" in problems(volume)


def test_an_inode_whose_root_is_impossible(volume):
    put_root(volume.active, 6, TreeRoot(2, 1, 4096))
    volume.active.inode_file.edit_block(0)[6 * 512 + 1] = 99
    commit_raw(volume)
    assert "inode is damaged" in problems(volume)


def test_snapshots_are_checked_too(volume):
    """A block that only a snapshot has."""
    held = volume.local.held_leaf(0)
    place = int(np.flatnonzero(np.unpackbits(held.view(np.uint8), bitorder="little"))[0])
    flip(volume, place)
    forget(volume)
    text = problems(volume)
    assert "snapshot 'a'" in text
    assert "live file system" not in text


@pytest.mark.parametrize("kind", ["twice", "not held"])
def test_place_maps(kind):
    source, target = make_volume(geometry_of(2, 0, 64)), make_volume(geometry_of(2, 1, 128))
    FileClient(target).write(1, 0, range(30))
    target.snapshot("own")
    FileClient(source).write(1, 0, range(30))
    source.snapshot("top")
    receive(source, target, "top")
    verdict(target)
    assert len(image_plane(target, "top"))
    extents = target.active.placemap.extents
    if kind == "twice":
        extra = [[int(extents[-1, 1]) + 1, int(extents[-1, 1]) + 2, int(extents[0, 2])]]
    else:
        extra = [[200, 201, 250]]
    target.active.placemap = PlaceMap(np.concatenate([extents, np.array(extra, np.int64)]))
    target.local.set_active_map(target.active.placemap)
    target.local.is_dirty = True
    target.commit()
    text = problems(target)
    assert ("one place" if kind == "twice" else "does not hold") in text


COPIES = {"label at its head": 0, "label at its tail": -1, "root record at its head": 1, "root record at its tail": -2}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("what", ["zeros", "a flipped bit", "old", "unreadable"])
def test_each_copy_of_labels_and_root_records_is_held_against_the_newest(volume, copy, what):
    for disk in volume.array.disks:
        block = COPIES[copy] % disk.n_blocks
        good = disk.block(block)
        if what == "unreadable":
            with failing_reads(disk, block):
                found = check(volume).problems
        else:
            disk.write(block, spoiled(good, what, copy, volume))
            found = check(volume).problems
            disk.write(block, good)
        assert len(found) == 1, found
        assert found[0].startswith(f"{disk.path}: the {copy} ")
    verdict(volume)


def spoiled(block: bytes, what: str, copy: str, volume: Volume) -> bytes:
    if what == "zeros":
        return bytes(len(block))
    if what == "a flipped bit":
        return block[:77] + bytes([block[77] ^ 8]) + block[78:]
    if copy.startswith("label"):
        label = decode_label(block)
        return encode_label(replace(label, generation=label.generation - 2))
    return replace(volume.info, generation=volume.info.generation - 2, nonce=b"n" * 16).encode()


@contextlib.contextmanager
def failing_reads(disk: MemoryDisk, block: int) -> Iterator[None]:
    read = MemoryDisk.read_plan

    def read_plan(self, blocks, *rest, **options):
        if self is disk and block in blocks.tolist():
            raise DiskError(f"{disk.path}: read failed", disk.path)
        return read(self, blocks, *rest, **options)

    with mock.patch.object(MemoryDisk, "read_plan", read_plan):
        yield


def test_a_commit_that_was_cut_short_is_no_damage(volume):
    """Half of the disks have the new record at the tail, one was torn, one still has the one before."""
    before = replace(volume.info, generation=volume.info.generation - 1, nonce=volume.info.previous_nonce).encode()
    volume.abandon()
    disks = revived(volume.array.disks)
    disks[1].write(disks[1].n_blocks - 2, before)
    disks[2].write(disks[2].n_blocks - 2, bytes(512) + before[512:])
    assert check(open_volume(disks, writable=False)).problems == []
    disks[0].write(1, bytes(4096))
    found = check(open_volume(disks, writable=False)).problems
    assert len(found) == 2, "what is bad in both halves is no commit cut short"


ROOTS = {"state": "live file system", "local": "snapshot table"}


@pytest.mark.parametrize("damaged", [["state"], ["local"], ["state", "local"], ["local", "previous_local"]])
def test_a_damaged_root_is_a_problem_and_the_rest_is_checked(volume, damaged):
    volume.snapshot("c")
    last = live_places(volume)[10]
    volume.close()
    for root in damaged:
        flip(volume, getattr(volume.info, root).number)
    with pytest.raises(VolumeDamagedError, match="is damaged: root block"):
        open_volume(revived(volume.array.disks))
    hurt = open_volume(revived(volume.array.disks), writable=False)
    assert (hurt.knows_live, hurt.knows_local) == ("state" not in damaged, "local" not in damaged)
    report = check(hurt)
    assert len(report.problems) == len(damaged), report.problems
    for root, what in ROOTS.items():
        assert any(what in problem for problem in report.problems) == (root in damaged)
    names = ["a", "b", "c"] if "local" not in damaged else [] if "previous_local" in damaged else ["a", "b"]
    assert [snapshot.name for snapshot in hurt.snapshots] == names
    assert report.n_states == len(names) + ("state" not in damaged)
    if "state" in damaged:
        with pytest.raises(VolumeDamagedError, match="live file system"):
            hurt.state()
    flip(hurt, last)
    assert len(check(hurt).problems) > len(damaged)


def test_a_damaged_snapshot_table_leaves_the_live_file_system(volume):
    place = int(volume.committed_local.root.table.pointers[0, 0]) & NUMBER_MASK
    volume.close()
    flip(volume, place)
    hurt = open_volume(revived(volume.array.disks), writable=False)
    report = check(hurt)
    assert any("the snapshot table cannot be read" in problem for problem in report.problems)
    assert report.n_states == 1


def test_what_a_walk_keeps_of_a_block_is_bits(monkeypatch):
    """Of two files that lie in one leaf of the plane, three times as large is as much."""

    def held_bytes(n_blocks: int) -> int:
        volume = make_volume(geometry_of(1, 0, 4096))
        FileClient(volume).write(1, 0, range(n_blocks))
        volume.sync()
        found = []

        def measured(*args) -> None:
            snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, checkwalk.__file__)])
            found.append(sum(trace.size for trace in snapshot.traces))

        monkeypatch.setattr(check_module, "_check_plane", measured)
        tracemalloc.start()
        try:
            assert check(volume, parity=False).n_blocks > n_blocks
        finally:
            tracemalloc.stop()
        return found[0]

    assert held_bytes(3000) - held_bytes(1000) < 2000


def test_many_problems_are_counted_and_cut():
    report = CheckReport()
    for n in range(MAX_PROBLEMS + 5):
        report.add(f"problem {n}")
    assert len(report.problems) == MAX_PROBLEMS
    assert report.n_suppressed == 5
