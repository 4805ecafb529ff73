"""What a mirror is asked over a connection, beside transfers: one small request and answer each (WIRE.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from blockplane.model.errors import VolumeDamagedError
from blockplane.server.network.codec import WireError, bytes_field, flag_field, number_field, text_field
from blockplane.server.network.spoken import record_heard, shown
from blockplane.transfer.peer import LocalChanges, VolumePeer
from blockplane.transfer.since import Since
from blockplane.volume.codec import RECORD_BYTES, SnapshotRecord
from blockplane.volume.mirrorcodec import MirrorRecord
from blockplane.volume.naming import check_name

#: Snapshots that one request lets go, or an answer names.
MAX_NAMED: Final = 512
_NAME: Final = 127

Ask = Callable[[str, dict[str, object]], Mapping[str, Any]]


def answer(peer: VolumePeer, what: str, request: Mapping[str, Any]) -> dict[str, object]:
    """Do what a request asks of a mirror; return what is said of it; WireError: it cannot be understood."""
    if what == "become":
        peer.become(record_heard(request, "record"))
        return {}
    if what == "let go":
        peer.let_go(_ids(request))
        return {}
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
    }


def changes_heard(request: Mapping[str, Any]) -> LocalChanges:
    """Return what a request says of the destination's own changes."""
    try:
        return LocalChanges(text_field(request, "changes", 16))
    except ValueError:
        raise WireError("a request says what this release does not know") from None


def record_said(record: MirrorRecord | None) -> str:
    """Return how it is said whose mirror a volume is."""
    return record.encode().hex() if record is not None else ""


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
        return None if found.get("kept") is None else shown(text_field(found, "kept", _NAME))

    def since(self, snapshot_id: bytes) -> Since:
        """See MirrorPeer; of more than 512 snapshots the newest are named."""
        found = self._ask("since", {"snapshot_id": snapshot_id.hex()})
        names = found.get("names")
        if not isinstance(names, list) or len(names) > MAX_NAMED or not all(isinstance(name, str) for name in names):
            raise WireError("an answer does not name snapshots")
        n_blocks, is_changed = number_field(found, "n_blocks"), flag_field(found, "is_changed")
        return Since(tuple(shown(name, _NAME) for name in names), n_blocks, is_changed)
