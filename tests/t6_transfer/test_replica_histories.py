"""Whole histories of trees of replicas: whatever happens, no snapshot changes, and who can be reached agrees.

Two to six volumes of other geometries. Any may pull from any other, cut short or not; each is written to, makes
snapshots, masters, pointers and shadows of its own, deletes, prunes, is closed and opened, or lost. What a snapshot
held when it was made is noted by its id, and held against every volume that has it whole.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import blockplane as bp
from blockplane.model.errors import NoSuchSnapshotError, RefusedError
from blockplane.transfer.lag import replicas
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.pull import PullReport, pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume import masters
from blockplane.volume.codec import KIND_REGULAR
from blockplane.volume.retention import Policy
from faults.world import geometry_of, make_volume, open_volume, revived

copying = import_module("blockplane.transfer.copy")

CI_HISTORIES, DEEP_HISTORIES = 16, 1000
SHARES = 2
STEPS = 24
BLOCKS = 1536
MOST_SNAPSHOTS = 12
PATHS = ("/a", "/b", "/c", "/d")
SHAPES = ((1, 0), (2, 0), (2, 1), (3, 0))

Content = dict[str, bytes]


class CutError(Exception):
    """The link is gone."""


class Tree:
    """The volumes of one history, and what their snapshots hold."""

    def __init__(self, rng: np.random.Generator, counts: Counter[str]) -> None:
        self.rng, self.counts = rng, counts
        self.content: dict[bytes, Content] = {}
        self.nodes: list[bp.Volume] = []
        self.n_made = self.n_named = 0
        for _ in range(int(rng.integers(2, 7))):
            self.join()
        self.master(self.nodes[0])

    def join(self) -> None:
        n_data, n_parity = SHAPES[self.n_made % len(SHAPES)]
        geometry = geometry_of(n_data, n_parity, BLOCKS // n_data)  # none is smaller: numbers are places or mapped
        self.nodes.append(make_volume(geometry, kind=bp.Volume, place=Path(f"node{self.n_made}")))
        self.n_made += 1

    def any(self) -> bp.Volume:
        """A volume: often the first."""
        at = int(self.rng.integers(len(self.nodes) + 2))
        return self.nodes[max(at - 2, 0)]

    def whole(self, node: bp.Volume) -> list[str]:
        return [e.record.name for e in node.local.entries() if e.record.kind == KIND_REGULAR]

    # --- steps -------------------------------------------------------------------------------------------------------

    def write(self, node: bp.Volume) -> None:
        path = str(self.rng.choice(PATHS))
        bp.FileSystem(node).write_bytes(path, self.rng.bytes(int(self.rng.integers(1, 40_000))))

    def snapshot(self, node: bp.Volume) -> str:
        name = f"s{self.n_named}"
        self.n_named += 1
        made = node.snapshot(name)
        self.content[made.record.id] = files_of(made)
        return name

    def master(self, node: bp.Volume) -> None:
        self.write(node)
        node.make_master(self.snapshot(node))

    def point(self, node: bp.Volume) -> None:
        if names := self.whole(node):
            node.move_pointer("stable", str(self.rng.choice(names)))

    def unpoint(self, node: bp.Volume) -> None:
        with contextlib.suppress(NoSuchSnapshotError):
            node.delete_pointer("stable")

    def shadow(self, node: bp.Volume) -> None:
        if names := self.whole(node):
            node.shadow_snapshot(str(self.rng.choice(names)))

    def delete(self, node: bp.Volume) -> None:
        if names := self.whole(node):
            node.delete_snapshot(str(self.rng.choice(names)))

    def prune(self, node: bp.Volume) -> None:
        if not self.whole(node):
            return
        policy = Policy(last=int(self.rng.integers(1, 4)))
        dry = node.prune(policy, dry_run=True)
        done = node.prune(policy)
        assert (done.deleted, done.freed_blocks) == (dry.deleted, dry.freed_blocks)

    def reopen(self, node: bp.Volume) -> None:
        """Closed, or killed: then what no consistency point has is lost."""
        at = self.nodes.index(node)
        if self.rng.integers(2):
            node.commit(clean=True)
        node.abandon()
        self.nodes[at] = open_volume(revived(node.array.disks), kind=bp.Volume)
        self.nodes[at].path = node.path

    def lose(self, node: bp.Volume) -> None:
        if len(self.nodes) > 2:
            self.nodes.remove(node)
            if self.rng.integers(2):
                self.join()

    def expire(self, node: bp.Volume) -> None:
        node.set_replica_limit(1)
        known = node.local.replication().replicas
        for later in (2, 4):
            masters.expire(node, max((replica.contact_ns for replica in known), default=0) + later * 10**9)
        node.set_replica_limit(0)

    def pull(self, node: bp.Volume) -> None:
        pointer = "master" if self.rng.integers(5) else "stable"
        others = [other for other in self.nodes if other is not node]
        able = [other for other in others if pointer in {p.name for p in other.pointers}] or others
        source = able[int(self.rng.integers(len(able)))]
        changes = (LocalChanges.KEEP, LocalChanges.KEEP, LocalChanges.FLUSH, LocalChanges.REFUSE)
        with self.cut():
            self.pulled(source, node, pointer, changes[int(self.rng.integers(4))])

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Let the link go after some pieces, now and then."""
        left = int(self.rng.integers(1, 9)) if self.rng.integers(3) == 0 else 1 << 30

        def spread(*parts: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise CutError("cut")
            whole_spread(*parts)

        whole_spread = copying.spread
        with mock.patch.object(copying, "PIECE_BLOCKS", 2), mock.patch.object(copying, "spread", spread):
            yield

    def pulled(self, source: bp.Volume, node: bp.Volume, pointer: str, changes: LocalChanges) -> PullReport:
        before = {e.record.id for e in node.local.entries()}
        try:
            return pull(VolumePeer(source), node, pointer, changes)
        finally:
            for snapshot in node.snapshots:
                if snapshot.record.id not in before and snapshot.name.startswith("kept-"):
                    self.content.setdefault(snapshot.record.id, files_of(snapshot))

    def step(self) -> None:
        steps = {
            "write": 4, "snapshot": 2, "master": 4, "point": 2, "unpoint": 1, "shadow": 1, "delete": 2, "prune": 1,
            "reopen": 1, "lose": 1, "expire": 1, "pull": 14,
        }  # fmt: skip
        name = str(self.rng.choice(list(steps), p=np.array(list(steps.values())) / sum(steps.values())))
        node = self.any()
        if name == "lose" and self.rng.integers(3):
            return
        if len(node.snapshots) >= MOST_SNAPSHOTS and name in ("snapshot", "master"):
            name = "prune"
        try:
            getattr(self, name)(node)
            self.counts[name] += 1
        except CutError:
            self.counts["cut"] += 1
        except (RefusedError, NoSuchSnapshotError):
            self.counts[f"{name} refused"] += 1
        for each in self.nodes:
            if each.path == node.path:
                self.look(each)

    # --- what must hold ----------------------------------------------------------------------------------------------

    def look(self, node: bp.Volume) -> None:
        for snapshot in node.snapshots:
            if snapshot.kind == "regular":
                assert files_of(snapshot) == self.content[snapshot.record.id], (str(node.path), snapshot.name)
                self.counts["looks"] += 1
        for pointer in node.pointers:
            assert pointer.snapshot is not None, f"{pointer.name} stands at what is gone"
            assert node.get_snapshot(pointer.name).kind == "regular"

    def agree(self) -> None:
        """Who made the last move makes one more; after at most as many rounds as there are volumes all have it."""

        def rank(node: bp.Volume) -> tuple[int, bytes, int, bytes]:
            found = (p.rank for p in node.local.replication().pointers if p.name == "master")
            return max(found, default=(0, b"", 0, b""))

        first = max(self.nodes, key=rank)
        self.master(first)
        wanted = first.get_snapshot("master").record.id
        others = [node for node in self.nodes if node is not first]
        done = [first]
        for node in others:  # a tree: each pulls from one that has it
            source = done[int(self.rng.integers(len(done)))]
            found = self.pulled(source, node, "master", LocalChanges.KEEP)
            assert not found.is_ahead
            done.append(node)
        for node in self.nodes:
            self.look(node)
            master = node.get_snapshot("master")
            assert (master.record.id, files_of(master)) == (wanted, self.content[wanted]), str(node.path)
            assert files_of(node) == self.content[wanted]
            assert bp.check(node).problems == []
            replicas(node)
        self.counts["volumes"] += len(self.nodes)


def files_of(source: bp.Volume | bp.Snapshot) -> Content:
    files = bp.FileSystem(source)
    return {f"/{name}": files.read_bytes(f"/{name}") for name in files.listdir("/")}


@pytest.mark.parametrize("share", range(SHARES))
def test_histories(share, rng, is_deep, part, record_property):
    _, n_parts = part
    n_histories = (DEEP_HISTORIES // n_parts if is_deep else CI_HISTORIES) // SHARES
    counts: Counter[str] = Counter()
    for history in range(n_histories):
        seed = int(rng.integers(1 << 62))
        print(f"history {history} of share {share}: seed {seed}")
        tree = Tree(np.random.default_rng(seed), counts)
        for _ in range(STEPS):
            tree.step()
        tree.agree()
    said = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    record_property("summary", f"replica histories {share}: {n_histories} of {STEPS} steps: {said}")
    assert counts["volumes"] >= 2 * n_histories
