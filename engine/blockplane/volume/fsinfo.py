"""fsinfo: the small root record, in a head slot and a tail slot of every disk.

Half one is the head slots, half two the tail slots; the two are never written in one flush epoch, so that at every
moment one half of every disk holds a valid record (DESIGN.md, law 6).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import crc32c
from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.codec import NO_ID, Pointer
from blockplane.volume.features import KNOWN_STATE_FEATURES, Features

MAGIC = b"BPFSINFO"
VERSION = 1
MAX_GROUPS = 32
MAX_MEMBERS = 512
MAX_AREAS = 192

_HEAD = struct.Struct("<8sI4x16sQ16s16s3QBBHB3x16s16s16s16sQQQQHHH")
_GROUPS_OFFSET = 320
_GROUP = struct.Struct("<QQQHH4x")
_MEMBERS_OFFSET = _GROUPS_OFFSET + MAX_GROUPS * _GROUP.size
_AREAS_OFFSET = _MEMBERS_OFFSET + MAX_MEMBERS
_AREA = struct.Struct("<II")
_CHECK_OFFSET = BLOCK_BYTES - 4

MEMBER_OK = 1

# What the live state is: one of a line that goes on here, or exactly a state received or rolled back to.
ROLE_LINE, ROLE_REPLICA = 0, 1

Area = tuple[int, int]


@dataclass(slots=True)
class FsInfo:
    """One generation of the root record.

    features: what the states here need, whoever made them; files are read and written by who knows the masks for that.
    role: `ROLE_LINE` or `ROLE_REPLICA`.
    areas: the (group, area) pairs that the next consistency point may write: the intent record for parity (law 7).
    previous_state, previous_local: the roots of the CP before, whose blocks are not reused yet (law 5).
    leaving: the group that is to be taken out, whose places are given to nobody; None: none is. has_left: the last two
    CPs have nothing there.
    """

    volume_id: bytes
    geometry: Geometry
    generation: int = 0
    nonce: bytes = NO_ID
    previous_nonce: bytes = NO_ID
    features: Features = field(default_factory=Features)
    clean: bool = False
    role: int = ROLE_LINE
    state: Pointer = field(default_factory=Pointer.none)
    previous_state: Pointer = field(default_factory=Pointer.none)
    local: Pointer = field(default_factory=Pointer.none)
    previous_local: Pointer = field(default_factory=Pointer.none)
    reserve_blocks: int = 0
    n_pending: int = 0
    log_start: int = 0
    log_blocks: int = 0
    member_states: bytes = b""
    areas: list[Area] = field(default_factory=list)
    leaving: int | None = None
    has_left: bool = False

    def encode(self) -> bytes:
        """Return the block, its CRC32C in the last four bytes.

        Raises
        ------
        VolumeDamagedError: a count does not fit what was counted.
        """
        if not 0 <= self.n_pending < 1 << 64:
            raise VolumeDamagedError(
                "more blocks became free than the volume's planes hold", "it can still be read; run `blockplane check`"
            )
        groups = self.geometry.groups
        block = bytearray(BLOCK_BYTES)
        _HEAD.pack_into(
            block, 0, MAGIC, VERSION, self.volume_id, self.generation, self.nonce, self.previous_nonce,
            *self.features.masks(), int(self.clean), self.role, 0 if self.leaving is None else self.leaving + 1,
            int(self.has_left), self.state.encode(), self.previous_state.encode(),
            self.local.encode(), self.previous_local.encode(), self.reserve_blocks, self.n_pending, self.log_start,
            self.log_blocks, len(groups), len(self.member_states), len(self.areas),
        )  # fmt: skip
        for i, g in enumerate(groups):
            _GROUP.pack_into(
                block, _GROUPS_OFFSET + i * _GROUP.size, g.first, g.disk_blocks, g.chunk_blocks, g.n_data, g.n_parity
            )
        block[_MEMBERS_OFFSET : _MEMBERS_OFFSET + len(self.member_states)] = self.member_states
        for i, (group, area) in enumerate(self.areas):
            _AREA.pack_into(block, _AREAS_OFFSET + i * _AREA.size, group, area)
        struct.pack_into("<I", block, _CHECK_OFFSET, crc32c(bytes(block[:_CHECK_OFFSET])))
        return bytes(block)


def decode(block: bytes) -> FsInfo | None:
    """Read a slot; None where it holds no valid record.

    Raises
    ------
    VolumeDamagedError: the record is whole, of a version or with features this release does not know.
    """
    if block[:8] != MAGIC or struct.unpack_from("<I", block, _CHECK_OFFSET)[0] != crc32c(block[:_CHECK_OFFSET]):
        return None
    fields = _HEAD.unpack_from(block)
    version, volume_id, generation, nonce, previous_nonce = fields[1:6]
    features, (clean, role, leaving, has_left) = Features(*fields[6:9]), fields[9:13]
    unknown = features.beyond(KNOWN_STATE_FEATURES).receiving
    if version != VERSION or unknown:
        more = f" and features {unknown:#x}" if unknown else ""
        raise VolumeDamagedError(f"the volume is of format version {version}{more}", _with_what(version))
    pointers = [Pointer.decode(raw) for raw in fields[13:17]]
    reserve, n_pending, log_start, log_blocks, n_groups, n_members, n_areas = fields[17:24]
    if n_groups > MAX_GROUPS or n_members > MAX_MEMBERS or n_areas > MAX_AREAS:
        raise VolumeDamagedError(f"fsinfo counts {n_groups} groups, {n_members} members, {n_areas} areas", "")
    areas = [_AREA.unpack_from(block, _AREAS_OFFSET + i * _AREA.size) for i in range(n_areas)]
    if generation >> 63:
        raise VolumeDamagedError(f"fsinfo is of generation {generation}, which no volume comes to", "")
    if leaving > n_groups or has_left > bool(leaving):
        raise VolumeDamagedError(f"fsinfo says that group {leaving - 1} of {n_groups} is being taken out", "")
    if any(group >= n_groups for group, _ in areas):
        raise VolumeDamagedError(f"fsinfo names areas of other groups than its {n_groups}", "")
    return FsInfo(
        volume_id, _geometry(block, n_groups), generation, nonce, previous_nonce, features, bool(clean), role,
        pointers[0], pointers[1], pointers[2], pointers[3], reserve, n_pending, log_start, log_blocks,
        block[_MEMBERS_OFFSET : _MEMBERS_OFFSET + n_members], areas, leaving - 1 if leaving else None, bool(has_left),
    )  # fmt: skip


def _with_what(version: int) -> str:
    """Return the hint for a record that is not read here."""
    if version < VERSION:
        return "a development build made it: take its files out with that, and put them into a new volume"
    return "open it with a newer blockplane"


def _geometry(block: bytes, n_groups: int) -> Geometry:
    groups, disk = [], 0
    for i in range(n_groups):
        first, disk_blocks, chunk, n_data, n_parity = _GROUP.unpack_from(block, _GROUPS_OFFSET + i * _GROUP.size)
        disks = tuple(range(disk, disk + n_data + n_parity))
        groups.append(GroupRecord(first, n_data, n_parity, chunk, disk_blocks, disks))
        disk += n_data + n_parity
    return Geometry(tuple(groups))
