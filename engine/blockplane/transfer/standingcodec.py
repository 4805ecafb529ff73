"""What replication adds to a standing, as it is said over a connection: a few numbers, and records of 512 bytes.

Nothing of the other side's is taken for granted: every count has a bound, every name is one, geometries are possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from blockplane.disks import Geometry, GroupRecord
from blockplane.model.errors import BlockplaneError
from blockplane.transfer.standing import Standing
from blockplane.volume.naming import check_name
from blockplane.volume.pointers import MAX_POINTERS, MAX_REMEMBERED
from blockplane.volume.replicas import MAX_REPLICAS
from blockplane.volume.replicationcodec import REPLICATION_BYTES, Replication

#: As a stream's header bounds them.
MAX_GROUPS: Final = 64
MAX_LABEL: Final = 255
_FIELDS: Final = 5


def replication_said(standing: Standing) -> tuple[dict[str, object], bytes]:
    """Return what is said of pointers, of replicas below and of the geometry: a message's fields, and what follows."""
    table = Replication(standing.pointers, standing.below)
    groups = [[g.first, g.n_data, g.n_parity, g.chunk_blocks, g.disk_blocks] for g in standing.groups]
    found: dict[str, object] = {
        "label": standing.label[:MAX_LABEL],
        "generation": standing.generation,
        "n_records": len(standing.pointers) + len(standing.below),
        "groups": groups[:MAX_GROUPS],
    }
    return found, table.encode()


def n_replication_bytes(found: Mapping[str, Any]) -> int:
    """Return how many bytes follow a message; ValueError: more than can be."""
    most = MAX_POINTERS + MAX_REMEMBERED + MAX_REPLICAS
    return _number(found.get("n_records"), most) * REPLICATION_BYTES


def replication_heard(standing: Standing, found: Mapping[str, Any], blob: bytes) -> Standing:
    """Return a standing with what a message says beside it.

    Raises
    ------
    ValueError : it is none; says why.
    """
    if len(blob) != n_replication_bytes(found):
        raise ValueError("a standing has another number of pointers and replicas than it says")
    label, generation = found.get("label"), _number(found.get("generation"), (1 << 64) - 1)
    if not isinstance(label, str) or len(label) > MAX_LABEL:
        raise ValueError("a standing has no label")
    try:
        table = Replication.decode(blob)
        for pointer in table.pointers:
            check_name(pointer.name, "a pointer")
        groups = _groups(found.get("groups"))
    except BlockplaneError as error:
        raise ValueError(error.message) from None
    if table.limit_s or table.others:
        raise ValueError("a standing has records that are neither pointers nor replicas")
    if len(table.pointers) > MAX_POINTERS + MAX_REMEMBERED or any(p.version >> 62 for p in table.pointers):
        raise ValueError("a standing has pointers that no volume can have")
    return replace(
        standing, label=label, generation=generation, pointers=table.pointers, below=table.replicas, groups=groups
    )


def _groups(found: object) -> tuple[GroupRecord, ...]:
    """Return a geometry's groups; ValueError, BlockplaneError: there is none like that."""
    if not isinstance(found, list) or len(found) > MAX_GROUPS:
        raise ValueError("a standing has no geometry")
    groups: list[GroupRecord] = []
    n_disks = 0
    for row in found:
        if not isinstance(row, list) or len(row) != _FIELDS:
            raise ValueError("a standing's geometry has a group that is none")
        first, n_data, n_parity, chunk_blocks, disk_blocks = (_number(field, 1 << 60) for field in row)
        disks = tuple(range(n_disks, n_disks + min(n_data + n_parity, 1 << 16)))
        groups.append(GroupRecord(first, n_data, n_parity, chunk_blocks, disk_blocks, disks))
        n_disks += len(disks)
    if groups:
        Geometry(groups)
    return tuple(groups)


def _number(found: object, most: int) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= most:
        raise ValueError(f"a standing says {str(found)[:40]!r} where a number up to {most} is due")
    return found
