"""Snapshots: made, deleted in any order, renamed, rolled back to; freed blocks are what the algebra said."""

from __future__ import annotations

import itertools
import random

import pytest

from blockplane.model import (
    NoSpaceError,
    NoSuchSnapshotError,
    ReadOnlyError,
    RefusedError,
    SnapshotExistsError,
    UsageError,
)
from blockplane.volume import Volume
from blockplane.volume.deleting import freed_by
from faults.world import (
    FileClient,
    Files,
    again,
    geometry_of,
    make_volume,
    memory_disks,
    open_volume,
    present,
    read_files,
    snapshot_files,
    verdict,
)

pytestmark = pytest.mark.usefixtures("inline")


def used_now(volume: Volume) -> int:
    return volume.used_blocks


def test_a_snapshot_keeps_what_was(volume, client):
    client.write(1, 0, range(20))
    first = present(client.files)
    snapshot = volume.snapshot("one")
    client.write(1, 5, range(100, 110))
    client.punch(1, 0, 3)
    volume.sync()
    assert read_files(snapshot.state) == first
    assert read_files(volume.committed) == present(client.files)
    volume = again(volume)
    assert snapshot_files(volume) == {"one": first}
    verdict(volume)


def test_making_one_does_not_change_what_is_held_or_free(volume, client):
    client.write(1, 0, range(20))
    volume.sync()
    held, free = volume.local.root.n_held, volume.free_blocks
    volume.snapshot("one")
    assert volume.local.root.n_held - held <= 4  # metafile blocks that listing it rewrites
    assert free - volume.free_blocks <= 12


def test_a_snapshot_is_durable_when_the_call_returns(volume, client):
    client.write(1, 0, range(20))
    snapshot = volume.snapshot("one")
    volume = again(volume)
    assert [s.id for s in volume.snapshots] == [snapshot.id]
    assert volume.get_snapshot("one").record == snapshot.record


def test_its_plane_is_what_is_reachable(volume, client):
    client.write(1, 0, range(40))
    client.edit(2, 100_000, 5)
    snapshot = volume.snapshot("one")
    assert len(snapshot.plane) == snapshot.n_blocks
    assert snapshot.state.root.n_blocks == snapshot.n_blocks
    assert snapshot.record.root.number in snapshot.plane
    verdict(volume)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_deleting_in_any_order_frees_what_was_said_and_keeps_the_others(order):
    volume = make_volume(geometry_of(3, 1, 256))
    client = FileClient(volume)
    kept: dict[str, Files] = {}
    for n in range(4):
        client.write(1, n * 3, range(100 * n, 100 * n + 12))
        client.edit(2 + n, 3, n + 1)
        client.punch(1, n, n + 1)
        kept[f"s{n}"] = present(client.files)
        volume.snapshot(f"s{n}")
    client.write(1, 0, range(900, 920))
    volume.sync()
    for n in order:
        name = f"s{n}"
        volume.sync()
        said = freed_by(volume, [name])
        assert said == volume.get_snapshot(name).exclusive_blocks
        held = volume.local.root.n_held
        freed = volume.delete_snapshot(name)
        assert freed == said
        assert held - volume.local.root.n_held == said
        del kept[name]
        assert snapshot_files(volume) == kept
        verdict(volume)
    assert volume.local.root.n_held == 0


def test_deleting_some_together_frees_what_they_share():
    volume = make_volume(geometry_of(3, 1, 256))
    client = FileClient(volume)
    for n in range(5):
        client.write(1, 0, range(100 * n, 100 * n + 20))
        volume.snapshot(f"s{n}")
        if n == 1:
            client.write(9, 0, range(30))
            volume.snapshot("x")
            client.remove(9)
    volume.sync()
    apart = sum(freed_by(volume, [name]) for name in ("s1", "x", "s2"))
    together = freed_by(volume, ["s1", "x", "s2"])
    assert together >= apart
    assert volume.delete_snapshot("s2", "s1", "x") == together
    verdict(volume)


def test_free_space_after_deletion_is_what_was_said(volume, client):
    """Beside what the two commits that pass write and give up themselves."""
    client.write(1, 0, range(60))
    volume.snapshot("one")
    client.write(1, 0, range(100, 160))
    volume.snapshot("two")
    volume.sync()
    said = freed_by(volume, ["one"])
    assert said >= 60
    free = volume.free_blocks
    metafiles = volume.active.root.n_blocks + volume.local.root.n_local
    assert volume.delete_snapshot("one") == said
    grown = volume.active.root.n_blocks + volume.local.root.n_local - metafiles
    assert volume.free_blocks == free + said - grown


def test_names(volume, client):
    volume.snapshot("a")
    for bad in ("", "-a", ".a", "a..b", "a b", "a/b", "active", "x" * 128, "é"):
        with pytest.raises(UsageError):
            volume.snapshot(bad)
        with pytest.raises(UsageError):
            volume.rename_snapshot("a", bad)
    with pytest.raises(SnapshotExistsError):
        volume.snapshot("a")
    with pytest.raises(NoSuchSnapshotError, match="nope"):
        volume.delete_snapshot("nope")
    with pytest.raises(NoSuchSnapshotError):
        volume.delete_snapshot("a", "nope")
    assert [s.name for s in volume.snapshots] == ["a"]


def test_renaming_keeps_everything_but_the_name(volume, client):
    client.write(1, 0, range(5))
    before = volume.snapshot("a").record
    volume.snapshot("b")
    with pytest.raises(SnapshotExistsError):
        volume.rename_snapshot("a", "b")
    volume.rename_snapshot("a", "c")
    after = volume.get_snapshot("c").record
    assert after == before.renamed("c")
    volume = again(volume)
    assert [s.name for s in volume.snapshots] == ["c", "b"]
    verdict(volume)


def test_one_that_is_read_is_not_deleted(volume, client):
    client.write(1, 0, range(5))
    snapshot = volume.snapshot("a")
    with volume.pin(snapshot.record.id), pytest.raises(RefusedError, match="read"):
        volume.delete_snapshot("a")
    volume.delete_snapshot("a")
    assert volume.snapshots == []


def test_its_trees_cannot_be_written(volume, client):
    client.write(1, 0, range(5))
    state = volume.snapshot("a").state
    with pytest.raises(ReadOnlyError):
        state.inode_file.edit_block(0)


def test_parents_and_the_list_that_travels(volume, client):
    for name in ("a", "b", "c"):
        client.edit(1, 0, ord(name))
        volume.snapshot(name)
    a, b, c = volume.snapshots
    assert [s.record.parent_id for s in (a, b, c)] == [bytes(16), a.record.id, b.record.id]
    assert [r.name for r in c.state.listed_snapshots()] == ["a", "b"]
    assert [r.name for r in volume.active.listed_snapshots()] == ["a", "b", "c"]
    volume.delete_snapshot("b")
    assert volume.get_snapshot("c").record.parent_id == a.record.id
    assert [e.record.name for e in volume.local.ancestors(c.record.id)] == ["a", "c"]


# --- rollback -----------------------------------------------------------------------------------------------------


def three(volume: Volume, client: FileClient) -> dict[str, Files]:
    kept = {}
    for n, name in enumerate(("a", "b", "c")):
        client.write(1, 4 * n, range(100 * n, 100 * n + 10))
        client.edit(2, n, n + 1)
        volume.snapshot(name)
        kept[name] = present(client.files)
    return kept


def test_rollback_keeps_later_snapshots_and_unsaved_changes(volume, client):
    kept = three(volume, client)
    client.edit(3, 0, 77)
    changed = present(client.files)
    name = volume.rollback("a")
    assert name == "before-rollback-to-a"
    assert read_files(volume.active) == read_files(volume.committed) == present(client.files) == kept["a"]
    assert snapshot_files(volume) == {**kept, name: changed}
    verdict(volume)
    volume = again(volume)
    assert read_files(volume.committed) == kept["a"]
    assert snapshot_files(volume) == {**kept, name: changed}


def test_rollback_without_changes_keeps_nothing_more(volume, client):
    kept = three(volume, client)
    assert volume.rollback("b") is None
    assert snapshot_files(volume) == kept
    assert volume.rollback("b") is None
    verdict(volume)


def test_changes_can_be_kept_under_a_name_or_dropped(volume, client):
    three(volume, client)
    client.edit(3, 0, 77)
    assert volume.rollback("a", keep_as="mine") == "mine"
    client.edit(3, 0, 78)
    assert volume.rollback("a", drop_changes=True) is None
    assert read_files(volume.active) == read_files(volume.get_snapshot("a").state)
    with pytest.raises(NoSuchSnapshotError):
        volume.rollback("none")
    verdict(volume)


def test_a_name_that_nothing_can_have_is_refused_though_there_is_nothing_to_keep(volume, client):
    volume.snapshot("a")
    with pytest.raises(UsageError, match="cannot name a snapshot"):
        volume.rollback("a", keep_as="no name")


def test_later_ones_can_be_dropped(volume, client):
    kept = three(volume, client)
    used = used_now(volume)
    assert volume.rollback("a", drop_later=True) is None
    assert snapshot_files(volume) == {"a": kept["a"]}
    assert used_now(volume) < used
    verdict(volume)


def test_a_rolled_back_volume_starts_a_branch_with_its_first_write(volume, client):
    three(volume, client)
    line = volume.active.root.branch_id
    volume.rollback("a")
    client.edit(1, 0, 5)
    volume.sync()
    branches = volume.active.branches()
    assert volume.active.root.branch_id != line
    assert branches[-1].id == volume.active.root.branch_id
    assert branches[-1].parent_id == line
    assert branches[-1].parent_cp >= volume.get_snapshot("a").record.cp
    snapshot = volume.snapshot("d")
    assert snapshot.record.parent_id == volume.get_snapshot("a").record.id
    assert snapshot.record.branch_id == branches[-1].id


@pytest.mark.parametrize("seed", range(12))
def test_histories_with_branches(seed):
    """Any mix of writes, snapshots, rollbacks, deletions: every snapshot keeps its files, every figure is exact."""
    rng = random.Random(seed)
    shape = rng.choice([geometry_of(2, 1, 256), geometry_of(1, 0, 320), geometry_of(3, 2, 128, n_groups=2)])
    volume = make_volume(shape, reserve_blocks=64)
    client = FileClient(volume)
    kept: dict[str, Files] = {}
    for step in range(40):
        choice = rng.randrange(12)
        try:
            if choice < 5:
                client.write(
                    rng.randrange(1, 5), rng.randrange(30), [step * 100 + i for i in range(rng.randrange(1, 9))]
                )
            elif choice < 7:
                name = f"s{step}"
                volume.snapshot(name)
                kept[name] = present(client.files)
            elif choice == 7 and kept:
                volume.sync()
                gone = rng.sample(sorted(kept), rng.randrange(1, min(len(kept), 3) + 1))
                said = freed_by(volume, gone)
                assert volume.delete_snapshot(*gone) == said
                for name in gone:
                    del kept[name]
            elif choice == 8 and kept:
                target = rng.choice(sorted(kept))
                before = present(client.files)
                saved = volume.rollback(target, keep_as=f"r{step}")
                if saved:
                    kept[saved] = before
                assert present(client.files) == kept[target]
            elif choice == 9:
                client.punch(rng.randrange(1, 5), 0, rng.randrange(1, 30))
            elif choice == 10:
                expected = read_files(volume.committed)
                volume = again(volume)
                client = FileClient(volume)
                assert client.files == expected
            else:
                volume.sync()
        except NoSpaceError:
            if kept:
                name = rng.choice(sorted(kept))
                volume.delete_snapshot(name)
                del kept[name]
        if step % 5 == 4:
            verdict(volume)
            assert snapshot_files(volume) == kept
    verdict(volume)
    assert snapshot_files(volume) == kept
    assert read_files(volume.committed) == present(client.files)


def test_a_clean_volume_reopens_without_a_write():
    disks = memory_disks(geometry_of(2, 1, 128))
    volume = make_volume(geometry_of(2, 1, 128), disks)
    client = FileClient(volume)
    client.write(1, 0, range(9))
    volume.snapshot("a")
    volume.close()
    for disk in disks:
        disk.is_closed = False
    written = [disk.counters.written_bytes for disk in disks]
    reopened = open_volume(disks)
    assert reopened.info.clean
    assert read_files(reopened.committed) == present(client.files)
    assert [disk.counters.written_bytes for disk in disks] == written
