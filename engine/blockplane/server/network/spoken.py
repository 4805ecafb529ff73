"""What messages say: errors, standings, what a transfer did. Nothing of the other side's is taken for granted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise
from typing import Any, Final

from blockplane.disks import GroupRecord
from blockplane.model import errors
from blockplane.model.errors import BlockplaneError, NetworkError
from blockplane.server.network.codec import (
    MAX_PIECE_BYTES,
    WireError,
    bytes_field,
    flag_field,
    list_field,
    number_field,
    text_field,
)
from blockplane.transfer.peer import Brought, Standing
from blockplane.transfer.resume import InterruptedReceive
from blockplane.volume.codec import RECORD_BYTES, SnapshotRecord
from blockplane.volume.replicationcodec import REPLICATION_BYTES, PointerRecord, ReplicaRecord

#: Errors that mean the same wherever they are raised; any other one of the other side's is a NetworkError here.
_SAME: Final[dict[str, type[BlockplaneError]]] = {
    error.kind: error
    for error in (
        errors.UsageError, errors.RefusedError, errors.ReadOnlyError, errors.NoSpaceError, errors.VolumeInUseError,
        errors.NoSuchSnapshotError, errors.SnapshotExistsError, errors.VolumeDamagedError, errors.ChecksumError,
        errors.DiskError, errors.StreamMismatchError, errors.StreamDamagedError, errors.StreamOrderError,
        errors.StreamTruncatedError, errors.ConnectionLostError, errors.NotAllowedError, errors.BusyError,
        errors.UntrustedError,
    )
}  # fmt: skip
_TEXT: Final = 2000
#: Interrupted receives that a standing tells of.
_MAX_INTERRUPTED: Final = 32


def shown(text: str, most: int = _TEXT) -> str:
    """Return text of the other side's as it may be printed: no control characters, no more than so many."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])


def error_said(error: BaseException) -> dict[str, object]:
    """Return what is said of an error; of one that nobody foresaw, only that there was one."""
    if not isinstance(error, BlockplaneError):
        return {"kind": "error", "message": "the other side failed; its log says how", "hint": ""}
    return {"kind": error.kind, "message": error.message[:_TEXT], "hint": error.hint[:_TEXT]}


def error_heard(found: Mapping[str, Any]) -> BlockplaneError:
    """Return the error that the other side says it had."""
    kind, message, hint = (shown(text_field(found, name, _TEXT)) for name in ("kind", "message", "hint"))
    return _SAME.get(kind, NetworkError)(message, hint=hint)


def standing_said(standing: Standing) -> tuple[dict[str, object], bytes]:
    """Return what is said of a standing: a message, and the records that follow it."""
    groups = json.dumps([asdict(group) for group in standing.groups]).encode()
    return {
        "volume_id": standing.volume_id.hex(),
        "space_id": standing.space_id.hex(),
        "at": standing.at.hex(),
        "label": standing.label,
        "generation": standing.generation,
        "n_snapshots": len(standing.snapshots),
        "n_pointers": len(standing.pointers),
        "n_below": len(standing.below),
        "n_group_bytes": len(groups),
        "interrupted": [
            {**asdict(found), "image_id": found.image_id.hex()} for found in standing.interrupted[-_MAX_INTERRUPTED:]
        ],
    }, _joined(standing.snapshots) + _joined(standing.pointers) + _joined(standing.below) + groups


def _joined(records: Sequence[SnapshotRecord] | Sequence[PointerRecord] | Sequence[ReplicaRecord]) -> bytes:
    return b"".join(record.encode() for record in records)


def _parts(found: Mapping[str, Any], most: int) -> list[int]:
    """Return how many bytes of records follow a message of a standing, of each kind."""
    return [
        number_field(found, "n_snapshots", most) * RECORD_BYTES,
        number_field(found, "n_pointers", most) * REPLICATION_BYTES,
        number_field(found, "n_below", most) * REPLICATION_BYTES,
        number_field(found, "n_group_bytes", MAX_PIECE_BYTES),
    ]


def n_standing_bytes(found: Mapping[str, Any], most: int) -> int:
    """Return how many bytes follow a message of a standing; WireError: of more than so many of a kind."""
    return sum(_parts(found, most))


def standing_heard(found: Mapping[str, Any], blob: bytes) -> Standing:
    """Return a standing; WireError: it is none."""
    parts = _parts(found, len(blob))
    if len(blob) != sum(parts):
        raise WireError("a standing has another number of records than it says")
    ends = list(accumulate(parts))
    of_kind = [blob[start:stop] for start, stop in pairwise([0, *ends])]
    try:
        records = [SnapshotRecord.decode(data) for data in _cut(of_kind[0], RECORD_BYTES)]
        pointers = [PointerRecord.decode(data) for data in _cut(of_kind[1], REPLICATION_BYTES)]
        below = [ReplicaRecord.decode(data) for data in _cut(of_kind[2], REPLICATION_BYTES)]
        groups = [GroupRecord(**{**group, "disks": tuple(group["disks"])}) for group in json.loads(of_kind[3])]
    except (BlockplaneError, ValueError, TypeError, KeyError, RecursionError):
        raise WireError("a standing has records that cannot be read") from None
    interrupted = [
        InterruptedReceive(
            shown(text_field(entry, "top_name")), bytes_field(entry, "image_id"), number_field(entry, "n_image"),
            number_field(entry, "n_landed"), number_field(entry, "began_ns"), flag_field(entry, "is_full"),
            flag_field(entry, "is_running"),
        )
        for entry in list_field(found, "interrupted", _MAX_INTERRUPTED)
    ]  # fmt: skip
    volume_id, space_id, at = (bytes_field(found, name) for name in ("volume_id", "space_id", "at"))
    return Standing(
        volume_id, space_id, at, tuple(records), tuple(interrupted), label=shown(text_field(found, "label")),
        generation=number_field(found, "generation"), pointers=tuple(pointers), below=tuple(below),
        groups=tuple(groups),
    )  # fmt: skip


def _cut(data: bytes, n_bytes: int) -> list[bytes]:
    return [data[at : at + n_bytes] for at in range(0, len(data), n_bytes)]


def brought_said(brought: Brought) -> dict[str, object]:
    """Return what is said of what a transfer did."""
    return {**asdict(brought), "seconds": int(brought.seconds * 1000)}


def brought_heard(answer: Mapping[str, Any]) -> Brought:
    """Return what an answer says that a transfer did; WireError: it does not."""
    found = answer.get("brought")
    if not isinstance(found, dict):
        raise WireError("an answer does not say what the transfer did")
    return Brought(
        shown(text_field(found, "top")), _name(found, "base"), number_field(found, "n_blocks"),
        number_field(found, "n_bytes"), number_field(found, "seconds") / 1000, flag_field(found, "already_there"),
        _name(found, "kept"),
    )  # fmt: skip


def _name(found: Mapping[str, Any], name: str) -> str | None:
    return None if found.get(name) is None else shown(text_field(found, name))
