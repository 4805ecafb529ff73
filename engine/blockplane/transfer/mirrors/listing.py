"""Which mirrors a volume has: `mirrors.json` in its directory.

Like `volume.toml` it names places of this machine and network and can be written anew by hand; where each destination
stands, and what is kept for it, is in the volume itself (`volume.destinations`). So it lies beside the volume, where it
can be read without opening that, and not in its trees. It is written whole or not at all, by whoever has the volume
open for writing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from blockplane.model.errors import RefusedError, UsageError, VolumeDamagedError
from blockplane.model.ownfiles import read_own, replace_own
from blockplane.model.places import is_same_place
from blockplane.transfer.replacing import LocalChanges

FILE_NAME: Final = "mirrors.json"
VERSION: Final = 1
#: Below this a mirror is never idle.
MIN_EVERY_S: Final = 0.1
DEFAULT_EVERY_S: Final = 10.0
#: What is sent next when a transfer took longer than its interval.
LATEST, NEXT = "latest", "next"
#: What a destination was found as, where it is no mirror just now: in a rehearsal; broken off.
WAITING, BROKEN_OFF = "waiting", "broken off"
#: A whole volume; one that holds only what differs from a base.
FULL, INCREMENTAL = "full", "incremental"


@dataclass(frozen=True, slots=True)
class LastRun:
    """How a mirror's last transfer, or attempt, went; zeros: there was none.

    begun_ns, ended_ns : when, ns since 1970. n_blocks, n_bytes, seconds : of the last transfer that arrived. error,
    hint : why the last attempt failed, and what to do about it; empty: it did not. kept : the snapshot that has the
    destination's own changes. state : `waiting` or `broken off`, where the destination was found so; empty: it was not.
    """

    begun_ns: int = 0
    ended_ns: int = 0
    n_blocks: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    hint: str = ""
    kept: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True)
class MirrorDefinition:
    """A mirror of a volume.

    name : of the destination, in `volume.destinations` and in the names of the mirror's own snapshots. dest : where it
    is: a volume's directory, or host:port/name. volume_id : its id, 32 hexadecimal digits. local_changes : what becomes
    of changes of its own; None: files there may not be written to, and what there is nonetheless is kept. late :
    `latest` or `next`. showed : ids, 32 hexadecimal digits each, of the snapshots that it showed when it was added.
    """

    name: str
    dest: str
    volume_id: str
    kind: str = FULL
    every_s: float = DEFAULT_EVERY_S
    local_changes: str | None = None
    late: str = LATEST
    added_ns: int = 0
    showed: tuple[str, ...] = ()
    last: LastRun = field(default_factory=LastRun)

    @property
    def changes(self) -> LocalChanges:
        """What becomes of changes of the destination's own."""
        return LocalChanges(self.local_changes) if self.local_changes is not None else LocalChanges.KEEP

    @property
    def may_write(self) -> bool:
        """Whether its files may be written to."""
        return self.local_changes in (LocalChanges.KEEP.value, LocalChanges.FLUSH.value)

    @property
    def prefix(self) -> str:
        """What the names of its own snapshots begin with."""
        return f"mirror.{self.name}."

    def naming(self, text: str) -> str:
        """Return what is said of it with its place before it, unless that is named in it."""
        return text if self.dest in text else f"{self.dest}: {text}"


def name_for(dest: str, volume_id: bytes) -> str:
    """Return what a destination is called in the volume: from its place, and unique by its id."""
    label = re.sub(r"[^A-Za-z0-9_]+", "_", dest.rstrip("/").rpartition("/")[2])[:40] or "volume"
    return f"{label}.{volume_id.hex()[:8]}"


def definitions(directory: Path) -> list[MirrorDefinition]:
    """Return the mirrors of the volume in a directory, in the order in which they were added.

    Raises
    ------
    VolumeDamagedError : the file is none that this release reads.
    """
    path = directory / FILE_NAME
    try:
        found = json.loads(read_own(path))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise _unreadable(path, "it is of another version")
    try:
        return [_decoded(each) for each in found["mirrors"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, str(error)) from None


def _decoded(fields: dict[str, Any]) -> MirrorDefinition:
    made = MirrorDefinition(**{**fields, "showed": tuple(fields.get("showed", ())), "last": LastRun(**fields["last"])})
    if made.kind not in (FULL, INCREMENTAL) or made.late not in (LATEST, NEXT) or not made.every_s >= MIN_EVERY_S:
        raise ValueError(f"the mirror to {made.dest} is none that this release knows")
    _ = made.changes  # ValueError: none that there is
    return made


def _unreadable(path: Path, why: str) -> VolumeDamagedError:
    return VolumeDamagedError(
        f"{path} cannot be read: {why}", "remove it and add the mirrors again: where they stand is in the volume"
    )


def of_volume(directory: Path, volume_id: bytes) -> MirrorDefinition | None:
    """Return the mirror that a volume is, by its id; None: it is none."""
    return next((each for each in definitions(directory) if each.volume_id == volume_id.hex()), None)


def write_definitions(directory: Path, mirrors: Sequence[MirrorDefinition]) -> None:
    """Write the mirrors of a volume: whole, or not at all; durable on return."""
    text = json.dumps({"version": VERSION, "mirrors": [asdict(each) for each in mirrors]}, indent=1)
    replace_own(directory / FILE_NAME, text + "\n", 0o600)


def find(directory: Path, dest: str) -> MirrorDefinition:
    """Return the mirror to a destination, by its place or its name.

    Raises
    ------
    RefusedError : there is none.
    """
    mirrors = definitions(directory)
    for each in mirrors:
        if each.dest == dest or each.name == dest or is_same_place(each.dest, dest):
            return each
    names = ", ".join(each.dest for each in mirrors)
    raise RefusedError(f"{directory} has no mirror {dest}", f"it has {names}" if names else "it has none yet")


def put(directory: Path, mirror: MirrorDefinition) -> None:
    """Write a definition in place of the one of its name, or behind the others."""
    mirrors = definitions(directory)
    at = next((i for i, other in enumerate(mirrors) if other.name == mirror.name), len(mirrors))
    mirrors[at : at + 1] = [mirror]
    write_definitions(directory, mirrors)


def drop(directory: Path, name: str) -> None:
    """Take a definition out."""
    write_definitions(directory, [each for each in definitions(directory) if each.name != name])


def noted(directory: Path, mirror: MirrorDefinition, last: LastRun) -> MirrorDefinition:
    """Write how a mirror's last run went; return it as it is now, where it was not removed meanwhile."""
    known = next((each for each in definitions(directory) if each.name == mirror.name), None)
    if known is None:
        return mirror
    made = replace(known, last=last)
    put(directory, made)
    return made


def require_sane(every_s: float, kind: str, late: str) -> None:
    """Refuse what is no mirror.

    Raises
    ------
    UsageError : the interval, or the kind.
    """
    if kind not in (FULL, INCREMENTAL):
        raise UsageError(f"a mirror of kind {kind!r}", f"say {FULL} or {INCREMENTAL}")
    if not every_s >= MIN_EVERY_S:
        raise UsageError(f"every {every_s:g} s", f"wait {MIN_EVERY_S:g} s or more between updates")
    if late not in (LATEST, NEXT):
        raise UsageError(f"{late!r} is no way to be late", f"say {LATEST} or {NEXT}")
