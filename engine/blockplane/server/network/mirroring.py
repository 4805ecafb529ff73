"""What a mirror is asked over a connection, beside transfers: one small request and answer each (WIRE.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from blockplane.model.errors import NotAllowedError, VolumeDamagedError
from blockplane.server.network.codec import WireError, bytes_field, flag_field, number_field, text_field
from blockplane.server.network.spoken import name_heard, record_heard, shown
from blockplane.transfer.mirrors.takeover import BreakReport, break_mirror, end_rehearsal
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.since import Since
from blockplane.volume.codec import RECORD_BYTES, SnapshotRecord
from blockplane.volume.mirrorcodec import BROKEN, KEY_BYTES, MIRROR, MirrorRecord
from blockplane.volume.naming import check_name

#: Snapshots that one request lets go, or an answer names.
MAX_NAMED: Final = 256
_NAME: Final = 127

Ask = Callable[[str, dict[str, object]], Mapping[str, Any]]


def answer(
    peer: VolumePeer, what: str, request: Mapping[str, Any], key: bytes, *, may_break: bool
) -> dict[str, object]:
    """Do what a request asks of a mirror; return what is said of it.

    Parameters
    ----------
    key : by whose certificate it is asked. may_break : whether who asks may break mirrors off.

    Raises
    ------
    WireError : it cannot be understood. NotAllowedError : a mirror is another's.
    """
    if what == "become":
        _become(peer, record_heard(request, "record"), key[:KEY_BYTES], may_break)
        return {}
    if what == "let go":
        peer.let_go(_ids(request))
        return {}
    if what == "break":
        return _break_said(break_mirror(peer.volume, rehearse=flag_field(request, "rehearse")))
    if what == "end rehearsal":
        return _break_said(end_rehearsal(peer.volume, drop_changes=flag_field(request, "drop_changes")))
    if what == "retain":
        name = text_field(request, "name", _NAME)
        check_name(name)
        return {"record": peer.retain(name).encode().hex()}
    snapshot_id = bytes_field(request, "snapshot_id")
    if what == "go back":
        return {"kept": peer.go_back(snapshot_id, changes_heard(request))}
    since = peer.since(snapshot_id)
    return {
        "names": list(since.snapshots[-MAX_NAMED:]),
        "n_names": len(since.snapshots),
        "n_blocks": since.n_blocks,
        "is_changed": since.is_changed,
        "n_to_bring": since.n_to_bring,
    }


def _become(peer: VolumePeer, record: MirrorRecord | None, key: bytes, may_break: bool) -> None:
    """Have a volume be whose mirror a record says; of a mirror who made it one, or may break it off, alone says it."""
    with peer.volume.lock:
        before = peer.volume.local.root.mirror
        if before is not None and before.state != BROKEN and before.key != key:
            is_same = record is not None and (before.state, before.source_id) == (record.state, record.source_id)
            if not may_break and not (is_same and before.state == MIRROR):
                raise NotAllowedError(
                    "this is not allowed: it is a mirror, and another peer made it one",
                    "ask whoever runs the service for the right `admin`, or to break it off there",
                )
            key = before.key if is_same else key
        peer.become(replace(record, key=key) if record is not None else None)


def changes_heard(request: Mapping[str, Any]) -> LocalChanges:
    """Return what a request says of the destination's own changes."""
    try:
        return LocalChanges(text_field(request, "changes", 16))
    except ValueError:
        raise WireError("a request says what this release does not know") from None


def record_said(record: MirrorRecord | None) -> str:
    """Return how it is said whose mirror a volume is."""
    return record.encode().hex() if record is not None else ""


def _break_said(report: BreakReport) -> dict[str, object]:
    return {
        "state": report.state, "seconds": int(report.seconds * 1000), "set_aside": list(report.set_aside)[:MAX_NAMED],
        "kept": report.kept,
    }  # fmt: skip


def _ids(request: Mapping[str, Any]) -> list[bytes]:
    text = text_field(request, "ids", 32 * MAX_NAMED)
    data = bytes_field(request, "ids", len(text) // 2)
    return [data[at : at + 16] for at in range(0, len(data) - len(data) % 16, 16)]


class RemoteMirror:
    """What a volume behind a connection does as a mirror; `MirrorPeer` but for transfers."""

    def _ask(self, what: str, said: dict[str, object]) -> Mapping[str, Any]:
        """Ask, patiently; return the answer."""
        raise NotImplementedError

    def become(self, record: MirrorRecord | None) -> None:
        """See MirrorPeer."""
        self._ask("become", {"record": record_said(record)})

    def let_go(self, ids: Sequence[bytes]) -> None:
        """See MirrorPeer."""
        for at in range(0, len(ids), MAX_NAMED):
            self._ask("let go", {"ids": b"".join(ids[at : at + MAX_NAMED]).hex()})

    def retain(self, name: str) -> SnapshotRecord:
        """See MirrorPeer."""
        data = bytes_field(self._ask("retain", {"name": name}), "record", RECORD_BYTES)
        try:
            return SnapshotRecord.decode(data)
        except VolumeDamagedError as error:
            raise WireError(error.message) from None

    def go_back(self, snapshot_id: bytes, changes: LocalChanges) -> str | None:
        """See MirrorPeer."""
        found = self._ask("go back", {"snapshot_id": snapshot_id.hex(), "changes": changes.value})
        return name_heard(found, "kept")

    def since(self, snapshot_id: bytes) -> Since:
        """See MirrorPeer; of more than 256 snapshots the newest are named."""
        found = self._ask("since", {"snapshot_id": snapshot_id.hex()})
        n_blocks, is_changed = number_field(found, "n_blocks"), flag_field(found, "is_changed")
        names = _names_heard(found, "names")
        n_to_bring = number_field(found, "n_to_bring") if "n_to_bring" in found else n_blocks
        n_unnamed = max(number_field(found, "n_names") - len(names), 0)
        return Since(names, n_blocks, is_changed, n_unnamed, n_to_bring)

    def break_off(self, *, rehearse: bool = False) -> BreakReport:
        """See break_mirror. A transfer that is under way there ends without effect; the volume's source is not asked.

        Raises
        ------
        RefusedError : as there; also where contact was lost before the answer came, and it is broken off.
        """
        return _break_heard(self._ask("break", {"rehearse": rehearse}))

    def end_rehearsal(self, *, drop_changes: bool = False) -> BreakReport:
        """See end_rehearsal of mirrors."""
        return _break_heard(self._ask("end rehearsal", {"drop_changes": drop_changes}))


def _break_heard(found: Mapping[str, Any]) -> BreakReport:
    set_aside, seconds = _names_heard(found, "set_aside"), number_field(found, "seconds") / 1000
    return BreakReport(name_heard(found, "state"), seconds, set_aside, name_heard(found, "kept"))


def _names_heard(found: Mapping[str, Any], name: str) -> tuple[str, ...]:
    names = found.get(name)
    if not isinstance(names, list) or len(names) > MAX_NAMED or not all(isinstance(each, str) for each in names):
        raise WireError("an answer does not name snapshots")
    return tuple(shown(each, _NAME) for each in names)
