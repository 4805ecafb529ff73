"""FORMAT.md says what the codec does: its tables are parsed, its example is computed."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

import blockplane.volume.codec as codec
from blockplane.disks.label import Label, MemberState, encode_label
from blockplane.disks.stripelog import encode_head
from blockplane.model import BLOCK_BYTES
from blockplane.model.checks import crc32c, fresh_checks
from blockplane.volume.codec import Branch, Hold, LocalRoot, Pointer, SnapshotRecord, StateRoot, TableEntry, TreeRoot
from blockplane.volume.demotioncodec import Demotion, Pace, PressureRecord
from blockplane.volume.features import Features
from blockplane.volume.fsinfo import FsInfo
from blockplane.volume.imagetable import StoredImage
from blockplane.volume.incoming import IncomingEntry
from blockplane.volume.markcodec import DestinationRecord, IntervalRecord
from blockplane.volume.mirrorcodec import MirrorRecord
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.replicationcodec import PointerRecord, ReplicaRecord, Replication
from faults.world import geometry_of

PAGE = Path(codec.__file__).with_name("FORMAT.md")

Table = list[tuple[int, int, str]]


def tables() -> dict[str, Table]:
    """The offset tables of the page by heading."""
    found: dict[str, Table] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and re.fullmatch(r"\d+", cells[0]):
            found.setdefault(heading, []).append((int(cells[0]), int(cells[1]), cells[2]))
    return found


def an_id(digit: int) -> bytes:
    return bytes([digit * 17]) * 16


def a_root(seed: int) -> TreeRoot:
    return TreeRoot(2, 1, 4096 + seed, np.arange(seed, seed + 32, dtype=np.uint64).reshape(16, 2))


GEOMETRY = geometry_of(3, 2, 640, chunk_blocks=128, n_groups=2)
ROOTS = [a_root(seed) for seed in range(11)]
POINTERS = [Pointer(number, check) for number, check in ((0x1234_5678_9ABC, 77), (3, 4), (5, 6), (7, 8))]
INFO = FsInfo(
    an_id(1), GEOMETRY, 9, an_id(2), an_id(3), Features(0, 1 << 40, 1 << 41), True, 1, *POINTERS, 1024, 55, 66, 77,
    bytes([1] * 10), [(0, 3), (1, 2)], 1, True,
)  # fmt: skip
STATE = StateRoot(12, an_id(4), an_id(5), 99, 10**18, 14, 13, *ROOTS[:6])
RECORD = SnapshotRecord(an_id(1), an_id(2), an_id(3), an_id(4), 7, -5, POINTERS[0], 9, "jüne", 1, 3)
ENTRY = TableEntry(RECORD, ROOTS[1], ROOTS[2], 17, -18, Demotion(1, 31, 32, 33), Pace(-34, 35, -36, 37))
BRANCH = Branch(an_id(6), an_id(7), 8, 9, -10)
INTERVAL = IntervalRecord(an_id(5), 3, 11, 12, -13, ROOTS[3], ROOTS[4])
DESTINATION = DestinationRecord("tåpe", an_id(6), an_id(7), 2, -14, -15)
IMAGE = StoredImage(an_id(8), "week", "s:1", "june1", 21, -22, ROOTS[5])
POINTER = PointerRecord("mäster", an_id(5), 6, an_id(7), -8)
REPLICA = ReplicaRecord("städt", an_id(1), 9, an_id(2), an_id(3), -10, -11, "cüt", 1, -12, an_id(4))
HOLD = Hold(an_id(3), "mirror", 19, -20)
INCOMING = IncomingEntry(
    an_id(1),
    an_id(2),
    an_id(3),
    an_id(4),
    an_id(5),
    6,
    7,
    8,
    -9,
    "june3",
    1,
    *ROOTS[:3],
    an_id(7),
    (an_id(4), an_id(8)),
)
PRESSURE = PressureRecord(1, 500, 2, ("auto-*", "tåg"), -41)
MIRROR = MirrorRecord(3, 2, an_id(6), -51, -52, "/srv/påul", an_id(7), an_id(8)[:8])
LOCAL = LocalRoot(
    1, 2, 3, an_id(8), 4, *ROOTS, n_deleting=6, pressure=PRESSURE, mirror=MIRROR, brought_id=an_id(9), disk_id=an_id(10)
)
LABEL = Label(
    an_id(1), an_id(3), 6, 672, 1, 1, tuple((g.first, 3, 2, 128, 640) for g in GEOMETRY.groups),
    tuple(an_id(n) for n in (2, 3, 4, 5, 6)), (MemberState.IN,) * 5,
)  # fmt: skip
LOG_HEAD = encode_head(
    an_id(1), 99, (1, 1), np.array([70, 71]), np.array([12, 13], np.uint32), np.array([[0, 1], [0, 1], [1, 0]], bool)
)


def group_fields(index: int) -> dict[str, object]:
    group = GEOMETRY.groups[index]
    return {name: getattr(group, name) for name in ("first", "disk_blocks", "chunk_blocks", "n_data", "n_parity")}


def crc_of_label() -> int:
    block = bytearray(encode_label(LABEL))
    block[12:16] = bytes(4)
    return crc32c(bytes(block))


def crc_of_log() -> int:
    return crc32c(LOG_HEAD[:12] + bytes(4) + LOG_HEAD[16:])


def fields_of(record: object, *names: str) -> dict[str, object]:
    return {name: getattr(record, name) for name in names}


#: heading -> (the encoded record, what each field must be; bytes are padded with zeros)
CASES: dict[str, tuple[bytes, dict[str, object]]] = {
    "Label": (
        encode_label(LABEL)[:128],
        {
            "magic": b"BLKPLN\r\n",
            "version": 1,
            "crc": crc_of_label(),
            "n_groups": 2,
            "n_members": 5,
            **fields_of(LABEL, "volume_id", "member_id", "generation", "n_blocks", "group", "position"),
        },
    ),
    "Label group record": (encode_label(LABEL)[128 + 32 : 128 + 64], group_fields(1)),
    "fsinfo": (
        INFO.encode(),
        {
            "magic": b"BPFSINFO",
            "version": 1,
            "receive_features": 0,
            "read_features": 1 << 40,
            "write_features": 1 << 41,
            "n_groups": 2,
            "n_members": 10,
            "n_areas": 2,
            "groups": b"".join(
                struct.pack("<QQQHH4x", g.first, g.disk_blocks, g.chunk_blocks, g.n_data, g.n_parity)
                for g in GEOMETRY.groups
            ),
            "areas": struct.pack("<IIII", 0, 3, 1, 2),
            "crc": crc32c(INFO.encode()[:-4]),
            **fields_of(INFO, "volume_id", "generation", "nonce", "previous_nonce", "clean", "role", "member_states"),
            **fields_of(INFO, "reserve_blocks", "n_pending", "log_start", "log_blocks", "has_left"),
            "leaving": INFO.leaving + 1,
            **{name: getattr(INFO, name).encode() for name in ("state", "previous_state", "local", "previous_local")},
        },
    ),
    "Stripe log record": (
        LOG_HEAD[:64],
        {
            "magic": b"BPSTRIPE",
            "version": 1,
            "crc": crc_of_log(),
            "volume_id": an_id(1),
            "generation": 99,
            "group": 1,
            "which": 1,
            "n_stripes": 2,
        },
    ),
    "Stripe log entry": (LOG_HEAD[64 + 48 : 64 + 96], {"dbn": 71, "check": 13, "counted": b"\x03"}),
    "fsinfo group record": (INFO.encode()[320 + 32 : 320 + 64], group_fields(1)),
    "Pointer": (POINTERS[0].encode(), {"number": 0x1234_5678_9ABC, "kind": 1, "check": 77}),
    "Tree root": (
        ROOTS[3].encode(),
        {"form": 2, "depth": 1, "inline_bytes": 0, "size_bytes": 4099, "body": ROOTS[3].pointers.tobytes()},
    ),
    "State root": (
        STATE.encode(),
        {
            "magic": b"BPSTATE\0",
            "version": 1,
            "checksum_kind": 1,
            "checksum_bytes": 4,
            **fields_of(STATE, "cp", "space_id", "branch_id", "n_blocks", "committed_ns", "next_inode", "n_inodes"),
            **{
                name: getattr(STATE, name).encode()
                for name in ("inode_file", "blockmap", "checksums", "snapshots", "branches", "orphans")
            },
        },
    ),
    "Snapshot record": (
        RECORD.encode(),
        {
            "n_name": 5,
            "name": "jüne".encode(),
            "root": RECORD.root.encode(),
            **fields_of(RECORD, "id", "space_id", "parent_id", "branch_id", "cp", "created_ns", "kind", "flags"),
            "n_blocks": 9,
        },
    ),
    "Branch": (BRANCH.encode(), fields_of(BRANCH, "id", "parent_id", "first_cp", "parent_cp", "created_ns")),
    "Table entry": (
        ENTRY.encode(),
        {
            "record": RECORD.encode(),
            "place_map": ROOTS[1].encode(),
            "plane": ROOTS[2].encode(),
            **fields_of(ENTRY, "n_left", "shadowed_ns"),
            "demoted_by": 1,
            **fields_of(ENTRY.demotion, "room_blocks", "wanted_blocks", "freed_blocks"),
            **fields_of(ENTRY.pace, "before_ns", "before_left", "last_ns", "last_left"),
        },
    ),
    "Mirror": (
        MIRROR.encode(),
        {
            "n_source": 10,
            "source": "/srv/påul".encode(),
            **fields_of(MIRROR, "state", "writes", "source_id", "since_ns", "changed_ns", "broken_at", "key"),
        },
    ),
    "Pressure policy": (
        PRESSURE.encode(),
        {
            "is_on": 1,
            "n_only": 11,
            "only": "auto-*\ntåg".encode(),
            **fields_of(PRESSURE, "unit", "keep", "limit", "set_ns"),
        },
    ),
    "Hold": (
        HOLD.encode(),
        {"n_owner": 6, "owner": b"mirror", **fields_of(HOLD, "snapshot_id", "made_ns", "expires_ns")},
    ),
    "Marked interval": (
        INTERVAL.encode(),
        {
            "alloc": ROOTS[3].encode(),
            "dealloc": ROOTS[4].encode(),
            **fields_of(INTERVAL, "snapshot_id", "flags", "n_alloc", "n_dealloc", "begun_ns"),
        },
    ),
    "Stored image": (
        IMAGE.encode(),
        {
            "n_definition": 3,
            "n_written": 5,
            "n_name": 4,
            "name": b"week",
            "definition": b"s:1",
            "written": b"june1",
            "plane": ROOTS[5].encode(),
            **fields_of(IMAGE, "id", "made_ns", "n_blocks"),
        },
    ),
    "Destination": (
        DESTINATION.encode(),
        {
            "n_name": 5,
            "name": "tåpe".encode(),
            **fields_of(DESTINATION, "acknowledged", "under_way", "status", "acknowledged_ns", "begun_ns"),
        },
    ),
    "Incoming image": (
        INCOMING.encode(),
        {
            "name_bytes": 5,
            "top_name": b"june3",
            **fields_of(
                INCOMING,
                "landing_id",
                "image_id",
                "space_id",
                "top_id",
                "base_id",
                "lender_id",
                "n_image",
                "n_landed",
                "space_blocks",
                "began_ns",
                "flags",
            ),
            **{name: getattr(INCOMING, name).encode() for name in ("places", "landed", "place_map")},
            "member_ids": b"".join(INCOMING.member_ids),
        },
    ),
    "Snapshot pointer": (
        POINTER.encode(),
        {
            "kind": 1,
            "n_name": 7,
            "name": POINTER.name.encode(),
            **fields_of(POINTER, "version", "snapshot_id", "moved_by", "moved_ns"),
        },
    ),
    "Replica": (
        REPLICA.encode(),
        {
            "kind": 2,
            "n_name": 6,
            "name": REPLICA.name.encode(),
            "n_error": 4,
            "error": REPLICA.error.encode(),
            **fields_of(REPLICA, "flags", "generation", "volume_id", "stands", "via"),
            **fields_of(REPLICA, "contact_ns", "error_ns", "silent_ns", "key"),
        },
    ),
    "Replica limit": (Replication(limit_s=77).encode(), {"kind": 3, "limit_s": 77}),
    "Place map extent": (
        PlaceMap(np.array([[10, 14, 1 << 40]], np.int64)).encode(),
        {"vbn_start": 10, "vbn_stop": 14, "place_start": 1 << 40},
    ),
    "Local root": (
        LOCAL.encode(),
        {
            "magic": b"BPLOCAL\0",
            "version": 1,
            "pressure": PRESSURE.encode(),
            "mirror": MIRROR.encode(),
            **fields_of(
                LOCAL, "n_held", "n_local", "n_entries", "n_deleting", "parent_id", "n_shadows", "brought_id", "disk_id"
            ),
            **dict(
                zip(
                    (
                        "table",
                        "held",
                        "local",
                        "place_map",
                        "marks",
                        "incoming",
                        "holds",
                        "replication",
                        "shadowed",
                        "destinations",
                        "images",
                    ),
                    (root.encode() for root in LOCAL.trees()),
                    strict=True,
                )
            ),
        },
    ),
}


def test_every_table_of_the_page_has_a_case():
    assert sorted(tables()) == sorted(CASES)


@pytest.mark.parametrize("heading", CASES)
def test_a_table_is_what_the_codec_writes(heading):
    data, expected = CASES[heading]
    seen, at = set(), 0
    for offset, size, field in tables()[heading]:
        assert offset == at, f"{field}: the table leaves out or repeats bytes"
        at += size
        part = data[offset : offset + size]
        if field == "reserved":
            assert part == bytes(size), f"byte {offset} is not reserved"
            continue
        value = expected[field]
        seen.add(field)
        if isinstance(value, bytes):
            assert part == value.ljust(size, b"\0"), field
        else:
            assert isinstance(value, int)
            assert int.from_bytes(part, "little", signed=value < 0) == value, field
    assert at == len(data)
    assert seen == set(expected)


def dump(data: bytes) -> str:
    lines = [
        f"{at:04x}  {data[at : at + 8].hex(' ')}  {data[at + 8 : at + 16].hex(' ')}".rstrip()
        for at in range(0, len(data), 16)
    ]
    return "\n".join(lines)


def examples() -> dict[str, str]:
    check = int(fresh_checks(np.ones(BLOCK_BYTES, np.uint8), 5)[0])
    pointer = Pointer(5, check)
    tree = TreeRoot(2, 0, 3000)
    tree.pointers[0] = np.frombuffer(pointer.encode(), np.uint64)
    record = SnapshotRecord(an_id(1), an_id(2), bytes(16), an_id(4), 7, 10**9, pointer, 9, "june3")
    return {
        "EXAMPLE_CHECK": f"0x{check:08x}",
        "EXAMPLE_POINTER": dump(pointer.encode()),
        "EXAMPLE_TREE": dump(tree.encode()[:48]),
        "EXAMPLE_INLINE": dump(TreeRoot(1, 0, 5, inline=b"hello").encode()[:32]),
        "EXAMPLE_RECORD": dump(record.encode()[:128]),
    }


@pytest.mark.parametrize("name", examples())
def test_the_worked_example_is_computed(name):
    text = PAGE.read_text(encoding="utf-8")
    assert name not in text
    expected = examples()[name]
    assert f"\n{expected}\n" in text or f"`{expected}`" in text
