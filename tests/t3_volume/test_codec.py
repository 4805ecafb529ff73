"""Records come back as they went; bytes that no writer makes are refused with an error of ours."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.model import BLOCK_BYTES, BlockplaneError, VolumeDamagedError
from blockplane.volume import fsinfo
from blockplane.volume.codec import (
    HOLD_BYTES,
    LOCAL_MAGIC,
    STATE_MAGIC,
    Branch,
    Hold,
    LocalRoot,
    Pointer,
    SnapshotRecord,
    StateRoot,
    TableEntry,
    TreeRoot,
)
from blockplane.volume.features import Features
from blockplane.volume.fsinfo import FsInfo
from blockplane.volume.imagetable import StoredImage
from blockplane.volume.markcodec import DestinationRecord, IntervalRecord
from blockplane.volume.replicationcodec import PointerRecord, ReplicaRecord, Replication
from faults.world import geometry_of

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
ids = st.binary(min_size=16, max_size=16)
pointers = st.one_of(st.just(Pointer.none()), st.builds(Pointer, st.integers(0, 2**56 - 1), u32))


@st.composite
def tree_roots(draw: st.DrawFn) -> TreeRoot:
    form = draw(st.integers(0, 2))
    size = draw(st.integers(0, 2**62 - 1))
    if form == 1:
        return TreeRoot(1, 0, size, inline=draw(st.binary(max_size=256)))
    words = draw(st.lists(u64, min_size=32, max_size=32))
    depth = draw(st.integers(0, 5))
    return TreeRoot(form, depth, size, np.array(words, np.uint64).reshape(16, 2))


names = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=40).filter(
    lambda name: 0 < len(name.encode()) <= 127
)
records = st.builds(SnapshotRecord, ids, ids, ids, ids, u64, i64, pointers, u64, names, u32, u32)


def same_root(a: TreeRoot, b: TreeRoot) -> bool:
    return a.encode() == b.encode() and (a.form, a.depth, a.size_bytes, a.inline) == (
        b.form, b.depth, b.size_bytes, b.inline,
    )  # fmt: skip


@given(pointers)
def test_pointers(pointer):
    assert Pointer.decode(pointer.encode()) == pointer


@given(tree_roots())
def test_tree_roots(root):
    assert same_root(TreeRoot.decode(root.encode()), root)
    copy = root.copy()
    copy.pointers[:] = 1
    assert root.form == 1 or same_root(TreeRoot.decode(root.encode()), root)


@given(records)
def test_snapshot_records(record):
    assert SnapshotRecord.decode(record.encode()) == record
    assert len(record.encode()) == 256


@given(records, tree_roots(), tree_roots(), u64, i64)
def test_table_entries(record, place_map, plane, n_left, when):
    entry = TableEntry.decode(TableEntry(record, place_map, plane, n_left, when).encode())
    assert (entry.record, entry.n_left, entry.shadowed_ns) == (record, n_left, when)
    assert entry.is_shadow == (record.kind == 2)
    assert same_root(entry.place_map, place_map)
    assert same_root(entry.plane, plane)


@given(ids, st.text(min_size=1, max_size=30), i64, i64)
def test_holds(snapshot, owner, made, expires):
    hold = Hold(snapshot, owner, made, expires)
    assert Hold.decode(hold.encode()) == hold
    assert len(hold.encode()) == HOLD_BYTES


@given(ids, ids, u64, u64, i64)
def test_branches(own, parent, first, last, when):
    branch = Branch(own, parent, first, last, when)
    assert Branch.decode(branch.encode()) == branch


@given(ids, u32, u64, u64, i64, tree_roots(), tree_roots())
def test_marked_intervals(snapshot_id, flags, n_alloc, n_dealloc, when, alloc, dealloc):
    made = IntervalRecord(snapshot_id, flags, n_alloc, n_dealloc, when, alloc, dealloc)
    found = IntervalRecord.decode(made.encode())
    assert found.encode() == made.encode()
    assert (found.snapshot_id, found.flags, found.begun_ns) == (snapshot_id, flags, when)
    assert (found.n_alloc, found.n_dealloc) == (n_alloc, n_dealloc)
    assert same_root(found.alloc, alloc)
    assert same_root(found.dealloc, dealloc)


@given(names, ids, u64, ids, i64)
def test_snapshot_pointers(name, snapshot_id, version, moved_by, when):
    made = PointerRecord(name, snapshot_id, version, moved_by, when)
    assert PointerRecord.decode(made.encode()) == made


@given(names, ids, u64, ids, ids, i64, i64, st.text(max_size=60), u32)
def test_replicas(name, own, generation, stands, via, contact_ns, error_ns, error, flags):
    made = ReplicaRecord(name, own, generation, stands, via, contact_ns, error_ns, error, flags)
    assert ReplicaRecord.decode(made.encode()) == made


@given(st.lists(st.tuples(names, ids)), st.lists(st.tuples(names, ids)), st.integers(1, 2**40), st.binary(max_size=508))
def test_a_replication_table_carries_along_what_it_does_not_know(pointers, replicas, limit_s, unknown):
    strange = (bytes([9, 0, 0, 0]) + unknown).ljust(512, b"\0")
    made = Replication(
        tuple(PointerRecord(name, own, 1, own) for name, own in pointers),
        tuple(ReplicaRecord(name, own) for name, own in replicas),
        limit_s,
        (strange,),
    )
    assert Replication.decode(made.encode()) == made
    assert Replication.decode(made.encode() + strange).others == (strange, strange)


def test_what_a_replica_met_is_cut_between_letters():
    made = ReplicaRecord("far", bytes(16), error="ü" * 200)
    assert ReplicaRecord.decode(made.encode()).error == "ü" * 127


texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=900)


@given(ids, names, texts, texts, u64, i64, tree_roots())
def test_stored_images(own, name, definition, written, n_blocks, when, plane):
    made = StoredImage(own, name, definition, written, n_blocks, when, plane)
    found = StoredImage.decode(made.encode())
    assert found.encode() == made.encode()
    assert (found.id, found.name, found.definition, found.written) == (own, name, definition, written)
    assert (found.n_blocks, found.made_ns) == (n_blocks, when)
    assert same_root(found.plane, plane)


@given(names.filter(lambda name: len(name.encode()) <= 119), ids, ids, u32, i64, i64)
def test_destinations(name, acknowledged, under_way, status, acknowledged_ns, begun_ns):
    made = DestinationRecord(name, acknowledged, under_way, status, acknowledged_ns, begun_ns)
    assert DestinationRecord.decode(made.encode()) == made


def test_a_destination_whose_name_is_not_text_is_refused():
    data = bytearray(DestinationRecord("far").encode())
    data[57] = 0xFF
    with pytest.raises(VolumeDamagedError, match="not UTF-8"):
        DestinationRecord.decode(bytes(data))


@given(st.lists(tree_roots(), min_size=6, max_size=6), u64, ids, ids, u64, u64)
def test_state_roots(roots, cp, space, branch, n_blocks, when):
    root = StateRoot(cp, space, branch, n_blocks, when, 3, 4, *roots)
    found = StateRoot.decode(root.encode())
    assert found.encode() == root.encode()
    assert (found.cp, found.space_id, found.branch_id, found.n_blocks) == (cp, space, branch, n_blocks)
    assert all(same_root(a, b) for a, b in zip(found.trees(), roots, strict=True))


@given(st.lists(tree_roots(), min_size=11, max_size=11), u64, u64, ids, u64)
def test_local_roots(roots, n_held, n_local, parent, n_shadows):
    root = LocalRoot(n_held, n_local, 5, parent, n_shadows, *roots)
    found = LocalRoot.decode(root.encode())
    assert found.encode() == root.encode()
    assert (found.n_held, found.n_local, found.n_entries, found.parent_id) == (n_held, n_local, 5, parent)
    assert found.n_shadows == n_shadows
    assert all(same_root(a, b) for a, b in zip(found.trees(), roots, strict=True))


shapes = st.sampled_from([geometry_of(1, 0), geometry_of(4, 2, n_groups=3), geometry_of(3, 1, n_groups=32)])


@given(
    shapes,
    ids,
    st.integers(0, 2**60),
    st.lists(st.tuples(st.just(0), u32), max_size=192),
    st.lists(pointers, min_size=4, max_size=4),
)
def test_root_records(geometry, nonce, generation, areas, roots):
    record = FsInfo(
        bytes(16), geometry, generation, nonce, bytes(16), Features(0, 3, 4), True, 0, *roots, 5, 6, 7, 8,
        bytes([1]) * geometry.n_disks, areas,
    )  # fmt: skip
    found = fsinfo.decode(record.encode())
    assert found == record
    assert found.geometry == geometry


def test_a_flipped_bit_anywhere_in_a_root_record_is_no_record():
    block = FsInfo(bytes(16), geometry_of()).encode()
    for byte in range(BLOCK_BYTES):
        damaged = bytearray(block)
        damaged[byte] ^= 1 << (byte % 8)
        assert fsinfo.decode(bytes(damaged)) is None


@pytest.mark.parametrize(("at", "value"), [(8, 7), (72, 1), (72, 1 << 40)])
def test_root_records_of_other_versions_or_features_are_refused(at, value):
    block = bytearray(FsInfo(bytes(16), geometry_of()).encode())
    struct.pack_into("<Q" if at > 8 else "<I", block, at, value)
    struct.pack_into("<I", block, BLOCK_BYTES - 4, fsinfo.crc32c(bytes(block[:-4])))
    with pytest.raises(VolumeDamagedError, match=r"format version \d"):
        fsinfo.decode(bytes(block))


@pytest.mark.parametrize(("at", "limit"), [(200, 32), (202, 512), (204, 192)])
def test_root_records_that_count_too_much_are_refused(at, limit):
    block = bytearray(FsInfo(bytes(16), geometry_of()).encode())
    struct.pack_into("<H", block, at, limit + 1)
    struct.pack_into("<I", block, BLOCK_BYTES - 4, fsinfo.crc32c(bytes(block[:-4])))
    with pytest.raises(VolumeDamagedError, match="counts"):
        fsinfo.decode(bytes(block))


@pytest.mark.parametrize(
    "head", [(3, 0, 0, 0), (255, 0, 0, 0), (2, 6, 0, 0), (1, 0, 257, 0), (2, 0, 0, 1 << 62), (0, 0, 0, 2**64 - 1)]
)
def test_impossible_tree_roots_are_refused(head):
    form, depth, n_inline, size = head
    with pytest.raises(VolumeDamagedError):
        TreeRoot.decode(struct.pack("<BBHIQ", form, depth, n_inline, 0, size) + bytes(256))


@pytest.mark.parametrize("kind", [2, 3, 127, 255])
def test_pointers_of_unknown_kind_are_refused(kind):
    with pytest.raises(VolumeDamagedError, match="kind"):
        Pointer.decode(struct.pack("<QII", kind << 56 | 5, 0, 0))


@pytest.mark.parametrize(("at", "byte"), [(0, 0), (8, 9), (12, 2), (14, 8)])
def test_state_roots_of_another_kind_are_refused(at, byte):
    block = bytearray(StateRoot().encode())
    block[at] = byte
    with pytest.raises(VolumeDamagedError):
        StateRoot.decode(bytes(block))


@given(st.integers(0, 2**32), st.sampled_from([STATE_MAGIC, LOCAL_MAGIC, fsinfo.MAGIC, b""]))
def test_noise_is_refused_with_our_error(seed, magic):
    block = magic + struct.pack("<IHH", 0, 1, 4) + np.random.default_rng(seed).bytes(BLOCK_BYTES)
    block = block[:BLOCK_BYTES]
    assert fsinfo.decode(block) is None
    for kind in (StateRoot, LocalRoot, SnapshotRecord, TableEntry, TreeRoot):
        with contextlib.suppress(BlockplaneError):
            kind.decode(block)


@pytest.mark.parametrize(("n_name", "name"), [(0, b""), (128, b"x" * 127), (255, b"y" * 127), (2, b"\xff\xfe")])
def test_records_with_names_that_are_none_are_refused(n_name, name):
    good = SnapshotRecord(bytes(16), bytes(16), bytes(16), bytes(16), 1, 1, Pointer.none(), 1, "a").encode()
    data = bytearray(good)
    data[120] = n_name
    data[121 : 121 + len(name)] = name
    with pytest.raises(VolumeDamagedError):
        SnapshotRecord.decode(bytes(data))
