"""Roots, tables and root records whose checksums are right and whose counts lie: an error, and nothing sized by it."""

from __future__ import annotations

import dataclasses
import os

import pytest

from blockplane.disks.label import decode_label, encode_label, read_label
from blockplane.model import VolumeDamagedError
from blockplane.volume import Volume, fsinfo, held
from blockplane.volume.check import check
from blockplane.volume.codec import ENTRY_BYTES, LocalRoot, StateRoot
from blockplane.volume.fsinfo import FsInfo
from blockplane.volume.state import MAX_METAFILE_BYTES
from faults.world import FileClient, geometry_of, make_volume, open_volume, revived

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def volume() -> Volume:
    volume = make_volume(geometry_of(2, 1, 128), reserve_blocks=48)
    FileClient(volume).write(1, 0, range(1, 20))
    volume.snapshot("a", mark=True)
    return volume


def reopened(volume: Volume) -> Volume:
    """What a reader finds after the local tree was changed behind its back."""
    volume.local.is_dirty = volume.active.is_dirty = True
    volume.commit()
    disks = volume.array.disks
    volume.abandon()
    return open_volume(revived(disks), writable=False)


@pytest.mark.parametrize("n_entries", [0, 2, 1 << 40, (1 << 64) - 1])
def test_a_snapshot_table_of_another_length_than_its_root_says(volume, n_entries):
    volume.local.root.n_entries = n_entries
    found = reopened(volume)
    with pytest.raises(VolumeDamagedError, match=f"has 1 entries, and its root says {n_entries}"):
        found.snapshots  # noqa: B018
    assert any("snapshot table cannot be read" in problem for problem in check(found).problems)


@pytest.mark.parametrize("size_bytes", [ENTRY_BYTES + 1, MAX_METAFILE_BYTES + ENTRY_BYTES, 1 << 46])
def test_a_metafile_that_claims_another_size(volume, size_bytes):
    volume.local.root.table.size_bytes = size_bytes
    found = reopened(volume)
    with pytest.raises(VolumeDamagedError, match=f"claims to have {size_bytes}"):
        found.snapshots  # noqa: B018
    assert any("snapshot table cannot be read" in problem for problem in check(found).problems)


def test_marks_of_a_snapshot_that_is_not_there(volume):
    volume.snapshot("b", mark=True)
    volume.local.marks.intervals()[0].record.snapshot_id = os.urandom(16)
    volume.local.marks.changed()
    found = reopened(volume)
    assert [position.name for position in found.positions] == ["b"]
    assert any("marks begin at a snapshot that does not exist" in problem for problem in check(found).problems)


def test_marks_of_a_snapshot_that_is_not_there_are_not_worked_out_anew(volume):
    """To rebuild the others is not the moment to fall over them."""
    volume.snapshot("b", mark=True)
    volume.local.marks.intervals()[0].record.snapshot_id = os.urandom(16)
    volume.local.marks.changed()
    volume.mark("b")
    assert [position.name for position in volume.positions] == ["b"]


def test_areas_of_a_group_that_is_not_there(volume):
    record = FsInfo(bytes(16), volume.geometry, areas=[(0, 0), (1, 0)])
    with pytest.raises(VolumeDamagedError, match="areas of other groups than its 1"):
        fsinfo.decode(record.encode())
    record.areas.pop()
    assert fsinfo.decode(record.encode()).areas == [(0, 0)]


def test_a_generation_after_which_none_can_come(volume):
    with pytest.raises(VolumeDamagedError, match="no volume comes to"):
        fsinfo.decode(FsInfo(bytes(16), volume.geometry, generation=(1 << 64) - 1).encode())
    label = read_label(volume.array.disks[0])
    with pytest.raises(ValueError, match="no volume comes to"):
        decode_label(encode_label(dataclasses.replace(label, generation=(1 << 64) - 1)))


def test_less_than_nothing_is_no_count_of_freed_blocks(volume):
    with pytest.raises(VolumeDamagedError, match="more blocks became free"):
        FsInfo(bytes(16), volume.geometry, n_pending=-1).encode()


@pytest.mark.parametrize(
    "root", [LocalRoot(n_held=-1), LocalRoot(n_local=1 << 64), StateRoot(64, bytes(16), bytes(16), n_blocks=-3)]
)
def test_counts_that_what_was_taken_away_does_not_fit(root):
    with pytest.raises(VolumeDamagedError, match="counts do not fit"):
        root.encode()


def test_a_volume_whose_counts_lie_says_so_and_stays_as_it_is(volume):
    """A held plane counted too small, a snapshot that gives up more: no commit, and the CP before is whole."""
    client = FileClient(volume)
    client.remove(1)
    volume.sync()
    volume.local.root.n_held = 0
    volume.local.is_dirty = True
    volume.commit()
    with pytest.raises(VolumeDamagedError, match="counts do not fit"):
        volume.delete_snapshot("a")
    disks = volume.array.disks
    volume.abandon()
    found = open_volume(revived(disks), writable=False)
    assert [snapshot.name for snapshot in found.snapshots] == ["a"]
    assert any("the local root says 0" in problem for problem in check(found).problems)


def test_shadows_that_are_each_other_s_parents(volume):
    for name in ("b", "c"):
        volume.snapshot(name)
    for name in ("a", "b"):
        volume.shadow_snapshot(name)
    entry = volume.local.entry("a")
    entry.record = dataclasses.replace(entry.record, parent_id=volume.local.entry("b").record.id)
    volume.local.rewrite_entries()
    found = reopened(volume)
    assert [snapshot.name for snapshot in found.snapshots] == ["a", "b", "c"]
    assert not held.is_line(found.local.entries(), found.local.root.parent_id)
