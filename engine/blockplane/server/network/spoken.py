"""What messages say: errors, standings, what a transfer did. Nothing of the other side's is taken for granted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeVar

from blockplane.model import errors
from blockplane.model.errors import BlockplaneError, NetworkError
from blockplane.server.network.codec import (
    WireError,
    bytes_field,
    flag_field,
    list_field,
    number_field,
    text_field,
)
from blockplane.transfer.peer import Brought
from blockplane.transfer.resume import InterruptedReceive
from blockplane.transfer.standing import Standing
from blockplane.transfer.standingcodec import n_replication_bytes, replication_heard, replication_said
from blockplane.volume.codec import RECORD_BYTES, SnapshotRecord
from blockplane.volume.mirrorcodec import MIRROR_BYTES, MirrorRecord

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
Heard = TypeVar("Heard")
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
    replication, records = replication_said(standing)
    return {
        "volume_id": standing.volume_id.hex(),
        "space_id": standing.space_id.hex(),
        "at": standing.at.hex(),
        "parent": standing.parent.hex(),
        "first": standing.first.hex(),
        "mirror": standing.mirror.encode().hex() if standing.mirror is not None else "",
        "n_snapshots": len(standing.snapshots),
        "interrupted": [
            {**asdict(found), "image_id": found.image_id.hex()} for found in standing.interrupted[-_MAX_INTERRUPTED:]
        ],
        **replication,
    }, b"".join(record.encode() for record in standing.snapshots) + records


def n_standing_bytes(found: Mapping[str, Any], most: int) -> int:
    """Return how many bytes follow a message of a standing; WireError: of more than so many snapshots, or replicas."""
    return _n_snapshot_bytes(found, most) + _understood(n_replication_bytes, found)


def _n_snapshot_bytes(found: Mapping[str, Any], most: int) -> int:
    return number_field(found, "n_snapshots", most) * RECORD_BYTES


def _understood(hear: Callable[..., Heard], *said: object) -> Heard:
    """Return what a message says; WireError: it cannot be."""
    try:
        return hear(*said)
    except (BlockplaneError, ValueError) as error:
        raise WireError(f"a standing cannot be read: {error}") from None


def standing_heard(found: Mapping[str, Any], blob: bytes) -> Standing:
    """Return a standing; WireError: it is none."""
    if len(blob) != n_standing_bytes(found, len(blob)):
        raise WireError("a standing has another number of records than it says")
    stop = _n_snapshot_bytes(found, len(blob))
    records = [_understood(SnapshotRecord.decode, blob[at : at + RECORD_BYTES]) for at in range(0, stop, RECORD_BYTES)]
    interrupted = [
        InterruptedReceive(
            shown(text_field(entry, "top_name")), bytes_field(entry, "image_id"), number_field(entry, "n_image"),
            number_field(entry, "n_landed"), number_field(entry, "began_ns"), flag_field(entry, "is_full"),
            flag_field(entry, "is_running"),
        )
        for entry in list_field(found, "interrupted", _MAX_INTERRUPTED)
    ]  # fmt: skip
    volume_id, space_id, at = (bytes_field(found, name) for name in ("volume_id", "space_id", "at"))
    standing = Standing(
        volume_id, space_id, at, tuple(records), tuple(interrupted), mirror=record_heard(found, "mirror"),
        parent=bytes_field(found, "parent"), first=bytes_field(found, "first"),
    )  # fmt: skip
    return _understood(replication_heard, standing, found, blob[stop:])


def record_heard(found: Mapping[str, Any], name: str) -> MirrorRecord | None:
    """Return whose mirror a message says a volume is; None: nobody's."""
    if not text_field(found, name, 2 * MIRROR_BYTES):
        return None
    return _understood(MirrorRecord.decode, bytes_field(found, name, MIRROR_BYTES))


def brought_said(brought: Brought) -> dict[str, object]:
    """Return what is said of what a transfer did."""
    said = {**asdict(brought), "seconds": int(brought.seconds * 1000)}
    del said["left_out"]  # who sends knows
    return said


def brought_heard(answer: Mapping[str, Any]) -> Brought:
    """Return what an answer says that a transfer did; WireError: it does not."""
    found = answer.get("brought")
    if not isinstance(found, dict):
        raise WireError("an answer does not say what the transfer did")
    return Brought(
        shown(text_field(found, "top")), name_heard(found, "base"), number_field(found, "n_blocks"),
        number_field(found, "n_bytes"), number_field(found, "seconds") / 1000, flag_field(found, "already_there"),
        name_heard(found, "kept"),
    )  # fmt: skip


def name_heard(found: Mapping[str, Any], name: str) -> str | None:
    """Return a name that a message says, as it may be printed; None: it says that there is none."""
    return None if found.get(name) is None else shown(text_field(found, name))
