"""Jobs that keep volumes in step: mirrors that are brought up to date, sources that are pulled from."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import RefusedError, UsageError
from blockplane.model.places import is_remote
from blockplane.server.activity import Kind
from blockplane.server.network.address import parse_peer
from blockplane.server.network.remote import RemotePeer
from blockplane.server.network.throttle import Throttle
from blockplane.server.network.tls import Credentials
from blockplane.server.service.jobs import Outcome, PartlyFailedError, Work
from blockplane.server.service.listening import require_usable
from blockplane.server.service.reading import Table
from blockplane.server.service.rules import rule_of
from blockplane.server.service.timetable import Rule
from blockplane.transfer.mirrors.peers import Peers
from blockplane.transfer.mirrors.running import run_side_by_side
from blockplane.transfer.peer import Peer, VolumePeer
from blockplane.transfer.pull import pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume.pointers import MASTER

#: How long a peer behind a network is tried before a run counts as failed.
_PATIENCE_S = 30.0
#: How long after a first failure it is tried again: networks come back, and asking costs nothing.
_RETRY_S = 1.0
#: How often it is seen whether a run is still wanted.
_POLL_S = 0.25

T = TypeVar("T")


class Calls:
    """Peers behind a network that a run calls, so that it can end while one of them does not answer. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: list[RemotePeer] = []
        self._is_over = False

    @contextmanager
    def one(self, peer: RemotePeer) -> Iterator[None]:
        """Know of a peer, for the length of a `with`."""
        with self._lock:
            self._peers.append(peer)
            if self._is_over:
                peer.close()
        try:
            yield
        finally:
            with self._lock:
                self._peers.remove(peer)

    def give_up(self) -> None:
        """End what waits for a peer, now and later."""
        with self._lock:
            self._is_over = True
            for peer in self._peers:
                peer.close()

    def watching(self, work: Work) -> Callable[[], None]:
        """Return what is to be called while a run goes on.

        It ends one that is not wanted any more. While a peer is called it shows that the run is alive: how long that
        may be silent the network's limits say, and it is no reason to end the service.
        """

        def watch() -> None:
            with self._lock:
                is_calling = bool(self._peers)
            (work.step if is_calling else work.require_wanted)()

        return watch

    def watched(self, call: Callable[[], T], watch: Callable[[], None]) -> T:
        """Return what a call does in a thread of its own; where that is not wanted any more, give up first."""
        with ThreadPoolExecutor(1, "blockplane pull") as pool:
            context = contextvars.copy_context()
            found = pool.submit(context.run, call)
            try:
                while not wait([found], _POLL_S).done:
                    watch()
            except BaseException:
                self.give_up()
                raise
            return found.result()


@dataclass(frozen=True, slots=True)
class Reach:
    """How peers are reached. tls : a folder of certificates; None: none. revoked : fingerprints that are refused."""

    tls: Path | None = None
    insecure_plaintext: bool = False
    revoked: tuple[str, ...] = ()

    @contextmanager
    def remote(self, dest: str, calls: Calls, throttle: Throttle) -> Iterator[RemotePeer]:
        """Give the peer that HOST:PORT/NAME means."""
        found = parse_peer(dest)
        if found is None:
            raise UsageError(f"{dest} is no volume behind a network", "name it as HOST:PORT/NAME")
        credentials = Credentials.find(self.tls, revoked=self.revoked) if self.tls is not None else None
        peer = RemotePeer(
            str(found[0]), found[1], credentials, insecure_plaintext=self.insecure_plaintext, patience_s=_PATIENCE_S,
            rate=throttle,
        )  # fmt: skip
        with closing(peer), calls.one(peer):
            yield peer

    def peers(self, work: Work, kind: Kind, calls: Calls) -> Peers:
        """Return how peers are reached for one run, in which something of a kind is done to them."""

        @contextmanager
        def local(dest: str) -> Iterator[Peer]:
            with work.near(Path(dest), kind) as volume:
                yield VolumePeer(volume)

        return Peers(local, lambda dest: self.remote(dest, calls, work.throttle))


@dataclass(frozen=True, slots=True)
class MirrorJob:
    """Brings the volume's mirrors up to date, those that `mirror add` made and whose time has come."""

    kind: ClassVar[str] = "mirror"
    does: ClassVar[Kind] = Kind.SNAPSHOTS
    retry_s: ClassVar[float] = _RETRY_S

    name: str
    due: Rule
    reach: Reach

    def describe(self) -> str:
        """See Job."""
        return "brings its mirrors up to date, each at its interval"

    def run(self, work: Work) -> Outcome:
        """See Job."""
        work.step()
        calls = Calls()
        found = run_side_by_side(
            work.volume,
            peers=self.reach.peers(work, Kind.LIVE, calls),
            progress=work.progress,
            wanted=calls.watching(work),
            give_up=calls.give_up,
        )
        brought = [
            (ran.mirror.dest, ran.report.brought)
            for ran in found
            if ran.report is not None and ran.report.brought is not None
        ]
        n_blocks = sum(each.n_blocks for _, each in brought)
        bad = [ran.told for ran in found if ran.error]
        if bad:
            hints = dict.fromkeys(ran.hint for ran in found if ran.error and ran.hint)
            raise PartlyFailedError("; ".join(bad), "; ".join(hints), n_blocks * BLOCK_BYTES)
        text = f"brought {n_blocks} blocks to {len(brought)} of {len(found)} mirrors"
        odd = [f"; {dest} has others named {', '.join(it.left_out)}, left out" for dest, it in brought if it.left_out]
        return Outcome(text + "".join(odd), n_blocks * BLOCK_BYTES, is_idle=not brought, is_odd=bool(odd))


@dataclass(frozen=True, slots=True)
class ReplicateJob:
    """Pulls what a pointer of a source stands at. changes : what becomes of changes made here; None: as of `pull`."""

    kind: ClassVar[str] = "replicate"
    does: ClassVar[Kind] = Kind.LIVE
    retry_s: ClassVar[float] = _RETRY_S

    name: str
    due: Rule
    source: str
    pointer: str
    changes: LocalChanges | None
    reach: Reach

    def describe(self) -> str:
        """See Job."""
        return f"pulls what {self.pointer} of {self.source} stands at"

    def run(self, work: Work) -> Outcome:
        """See Job."""
        work.step()
        calls = Calls()
        with self.reach.peers(work, Kind.SNAPSHOTS, calls).open(self.source) as peer:
            report = calls.watched(
                lambda: pull(peer, work.volume, self.pointer, self.changes, work.progress), calls.watching(work)
            )
        brought = report.brought
        if report.is_ahead:
            raise RefusedError(
                f"nothing was brought: the volume is ahead of {self.source}, {self.pointer} was moved more often here",
                "if that was put back from an older copy, let it pull from here",
            )
        text = f"{report.top} was there" if brought.already_there else f"{report.top}, {brought.n_blocks} blocks"
        if report.left is not None:
            text += f"; what was here is unknown there, and may be nowhere else: {report.left} has it, and is held"
        is_idle = brought.already_there and not (report.moved or report.gone)
        return Outcome(text, brought.n_blocks * BLOCK_BYTES, is_idle, is_odd=report.left is not None)


def path_of(value: Any, directory: Path) -> Path:
    """Return a path that a policy in a directory says."""
    return Path(os.path.normpath(directory / os.path.expanduser(Table.text(value))))


def _reach(table: Table, directory: Path, revoked: tuple[str, ...]) -> Reach:
    tls = table.take("tls", lambda value: path_of(value, directory), None)
    if tls is not None:
        table.require("tls", lambda: require_usable(lambda: Credentials.find(tls)))
    return Reach(tls, table.take("insecure-plaintext", Table.truth, False), revoked)


def mirror_of(name: str, table: Table, directory: Path, revoked: tuple[str, ...]) -> MirrorJob:
    """Return what a policy in a directory says of mirrors."""
    return MirrorJob(name, rule_of(table), _reach(table, directory, revoked))


def replicate_of(name: str, table: Table, directory: Path, revoked: tuple[str, ...]) -> ReplicateJob:
    """Return what a policy in a directory says of a source."""
    if not table.has("source"):
        table.add("it has no source", 'source = "backup.example:7420/pool"')
    source = table.take("source", lambda value: _place_of(value, directory), "")
    pointer = table.take("pointer", Table.text, MASTER)
    changes = table.take("changes", _changes, None)
    return ReplicateJob(name, rule_of(table), source, pointer, changes, _reach(table, directory, revoked))


def _place_of(value: Any, directory: Path) -> str:
    """Return where a source is: HOST:PORT/NAME, or a volume's directory."""
    return Table.text(value) if is_remote(Table.text(value)) else str(path_of(value, directory))


def _changes(value: Any) -> LocalChanges | None:
    return LocalChanges(Table.one_of(*(each.value for each in LocalChanges))(value))
