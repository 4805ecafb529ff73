"""Random histories of a source, two mirrors and one's mirror, beside a plain model: all converges, nothing is lost.

Steps: writes, snapshots, deletions and rollbacks at the source, updates, transfers and resyncs cut or killed in the
middle, breaks, rehearsals, writes at destinations, resyncs in either direction, volumes reopened after a clean end or a
crash, the source put back from an older copy. After each step every regular snapshot anywhere is held against what it
was when it was first seen, by its id; and what anybody gave up must be in a snapshot there that is no mirror's own.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.disks.assembly import assemble_disks
from blockplane.model.errors import BlockplaneError, RefusedError
from blockplane.transfer import mirrors
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume.check import check
from blockplane.volume.mirrorstates import is_own
from blockplane.volume.volume import Volume
from faults.recording import MemoryDisk
from rig.memory import Shape, make_volume, reopen

SHAPES = {
    "source": [Shape(2, 1, 64, 1024)],
    "one": [Shape(1, 0, 512, 2560)],
    "two": [Shape(3, 2, 128, 1024)],
    "last": [Shape(2, 0, 128, 1280)],
}
MIRROR_OF = {"one": "source", "two": "source", "last": "one"}
STEPS = 40
N_HISTORIES, N_DEEP = 4, 2000
MOST_SNAPSHOTS = 6

Content = dict[str, bytes]


class Killed(KeyboardInterrupt):
    """A process died here."""


def content(source: object) -> Content:
    files = bp.FileSystem(source)
    return {name: files.read_bytes(f"/{name}") for name in sorted(files.listdir("/"))}


class History:
    """The volumes, and what must be in them."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.rng = random.Random(seed)
        self.volumes: dict[str, Volume] = {}
        for name, shapes in SHAPES.items():
            (folder / name).mkdir()
            (folder / name / "disks in memory").touch()
            self.volumes[name] = make_volume(shapes, str(folder / name))
        self.live: dict[str, Content] = {name: {} for name in SHAPES}
        self.seen: dict[bytes, Content] = {}
        #: what the source held after each step
        self.was: list[Content] = [{}]
        self.counts: Counter[str] = Counter()
        self.n_names = 0
        #: by volume: what was live there, and was given up for what did not come from it
        self.owed: dict[str, list[Content]] = {name: [] for name in SHAPES}
        #: by mirror: what it was brought by a source that was put back since
        self.newer: dict[str, Content] = {}
        #: of the source: its disks as they were, what it owed, what was live, how many states had been
        self.backup: tuple[list[MemoryDisk], list[Content], Content, int] | None = None
        for name, changes in (("one", None), ("two", LocalChanges.KEEP), ("last", None)):
            source = self.volumes[MIRROR_OF[name]]
            mirrors.add(source, str(folder / name), peers=self.peers(), local_changes=changes)

    @property
    def source(self) -> Volume:
        return self.volumes["source"]

    def peers(self) -> mirrors.Peers:
        @contextmanager
        def local(dest: str):
            yield VolumePeer(self.volumes[Path(dest).name])

        return mirrors.Peers(local)

    def source_of(self, name: str) -> Volume:
        return self.volumes[MIRROR_OF[name]]

    def definition(self, name: str) -> mirrors.MirrorDefinition:
        return mirrors.find(self.source_of(name).path, str(self.volumes[name].path))

    def state(self, name: str) -> str:
        found = self.volumes[name].mirror_of
        assert (found is None) == (name == "source")
        return found.state if found is not None else "source"

    # --- steps ---

    def write(self, name: str) -> None:
        volume, live = self.volumes[name], dict(self.live[name])
        self.newer.pop(name, None)  # what follows comes from that
        files = bp.FileSystem(volume)
        for _ in range(self.rng.randint(1, 3)):
            path = self.rng.choice("abcdef")
            if path in live and self.rng.random() < 0.3:
                files.unlink(f"/{path}")
                del live[path]
            else:
                live[path] = self.rng.randbytes(self.rng.randint(1, 60_000))
                files.write_bytes(f"/{path}", live[path])
        volume.sync()
        self.live[name] = live

    def snapshot(self) -> None:
        names = [s.name for s in self.source.snapshots if s.name.startswith("user")]
        if len(names) >= MOST_SNAPSHOTS or (names and self.rng.random() < 0.3):
            with_holds = self.source.get_snapshot(self.rng.choice(names))
            if not with_holds.holds:
                self.delete("source", with_holds.name)
        self.n_names += 1
        self.source.snapshot(f"user{self.n_names}")
        for name in SHAPES:  # retention of its own: they are small
            old = [s.name for s in self.volumes[name].snapshots if s.name.startswith(("user", "kept", "before"))]
            for each in old[:-MOST_SNAPSHOTS]:
                with suppress(RefusedError):  # what an update builds on
                    self.delete(name, each)

    def delete(self, name: str, snapshot: str) -> None:
        """Delete a snapshot; what it alone had is owed by nobody any more."""
        volume = self.volumes[name]
        had = content(volume.get_snapshot(snapshot))
        volume.delete_snapshot(snapshot)
        self.owed[name] = [each for each in self.owed[name] if each != had]

    def roll_back(self) -> None:
        """Let a snapshot of the source be live."""
        names = [s.name for s in self.source.snapshots if not is_own(s.name)]
        if not names:
            return
        to, before = self.rng.choice(names), self.live["source"]
        self.n_names += 1
        kept = self.source.rollback(to, keep_as=f"before{self.n_names}")
        if kept is not None:
            assert content(self.source.state(kept)) == before
            self.counts["given up"] += 1
        self.owed["source"].append(before)
        self.live["source"] = content(self.source.state(to))

    def put_back(self) -> None:
        """Copy the disks of the source; or put it back as it was copied: its mirrors know nothing of that."""
        if self.backup is None:
            disks = [MemoryDisk(d.path, d.n_blocks, overlay=d.contents()) for d in self.source.array.disks]
            self.backup = disks, list(self.owed["source"]), self.live["source"], len(self.was)
            return
        (disks, owed, live, n_were), self.backup = self.backup, None
        path = self.source.path
        self.source.close()
        self.volumes["source"] = Volume.from_assembly(path, assemble_disks(disks), writable=True)
        for name in ("one", "two"):
            if self.state(name) == "mirror" and self.live[name] not in self.was[:n_were]:
                self.newer[name] = self.live[name]
        self.owed["source"], self.live["source"] = owed, live
        self.counts["put back"] += 1

    def run(self, name: str) -> None:
        before, state = self.live[name], self.state(name)
        how = self.rng.choice(["whole", "whole", "cut", "killed", "killed"])
        try:
            report = mirrors.step(
                self.source_of(name),
                self.definition(name),
                VolumePeer(self.volumes[name]),
                self.probe(name, how),
                asks=self.rng.random() < 0.3,
            )
        except Killed:
            self.counts["killed"] += 1
        except KeyboardInterrupt:
            self.counts["cut"] += 1
        except RefusedError as error:
            self.counts["refused"] += 1
            assert content(self.volumes[name]) == before
            if state != "broken":
                assert self.counts["put back"]
                self.counts["ahead"] += "is ahead of" in error.message
            return
        else:
            rehearses = "rehearsing" in (state, self.state(MIRROR_OF[name]))
            assert rehearses or state != "broken" or report.outcome == "idle"  # where nothing changed nobody is asked
            if report.outcome == "brought":
                self.counts["brought"] += 1
                self.live[name] = self.live[MIRROR_OF[name]]
                assert report.brought is not None
                if report.brought.kept is not None:
                    self.counts["kept"] += 1
                    kept = content(self.volumes[name].state(report.brought.kept))
                    assert kept == before or kept in self.was  # where what had not ended came first, what that brought
                    self.owed[name].append(kept)
                if name in self.newer:
                    assert name == "two"  # which may be written to; else it is refused
                    self.owed[name].append(self.newer.pop(name))
            else:
                assert report.outcome == "idle" or rehearses
            return
        now = content(self.volumes[name])
        assert now == before or now in self.was
        self.live[name] = now
        if name in self.newer and now != before:
            self.owed[name].append(self.newer.pop(name))

    def probe(self, name: str, how: str):
        """Read the destination while something comes: it has one whole state. Somewhere it ends."""
        before, at = self.live[name], self.rng.randint(1, 4)
        n_events = 0

        def probed(event: bp.ProgressEvent) -> None:
            nonlocal n_events
            n_events += 1
            now = content(self.volumes[name])
            assert now == before or now in self.was
            self.counts["probes"] += 1
            if how != "whole" and n_events == at:
                if how == "killed":
                    both = [MIRROR_OF[name], name]
                    self.kill(both if self.rng.random() < 0.5 else [self.rng.choice(both)])
                    raise Killed
                raise KeyboardInterrupt

        return probed

    def kill(self, names: list[str]) -> None:
        """Take volumes up as their disks are at this moment; what the old ones do from here on is lost."""
        for name in names:
            volume = self.volumes[name]
            disks = [MemoryDisk(d.path, d.n_blocks, overlay=d.contents()) for d in volume.array.disks]
            self.volumes[name] = Volume.from_assembly(volume.path, assemble_disks(disks), writable=True)

    def reopen(self) -> None:
        name = self.rng.choice(list(SHAPES))
        self.volumes[name] = reopen(self.volumes[name], crash=self.rng.random() < 0.5)

    def break_off(self, name: str) -> None:
        if self.state(name) == "broken":
            return
        rehearse = self.rng.random() < 0.5 and self.state(name) == "mirror" and self.volumes[name].was_written
        mirrors.break_mirror(self.volumes[name], rehearse=rehearse)
        self.counts["rehearsed" if rehearse else "broken"] += 1
        if rehearse:
            before = self.live[name]
            self.write(name)
            self.check(name)
            if self.rng.random() < 0.7:
                self.end_rehearsal(name)
                assert self.live[name] == before

    def end_rehearsal(self, name: str) -> None:
        report = mirrors.end_rehearsal(self.volumes[name])
        if report.kept is not None:
            assert content(self.volumes[name].state(report.kept)) == self.live[name]
        self.owed[name].append(self.live[name])
        self.live[name] = content(self.volumes[name])

    def local_write(self, name: str) -> None:
        found = self.volumes[name].mirror_of
        assert found is not None
        if found.may_write:
            self.write(name)
            self.counts["local"] += 1
            return
        with pytest.raises(BlockplaneError, match="is a mirror"):
            bp.FileSystem(self.volumes[name]).write_bytes("/x", b"x")

    def resync(self, name: str, winner: str | None = None, may_end: bool = True) -> None:
        if self.state(name) == "rehearsing":
            return
        peer, definition, source = VolumePeer(self.volumes[name]), self.definition(name), MIRROR_OF[name]
        winner = winner or self.rng.choice([None, None, "source", "destination"])
        try:
            plan = mirrors.plan_resync(self.volumes[source], definition, peer, winner)
        except RefusedError:
            if self.volumes[name].was_written:  # else there is nothing to bring back
                assert self.state(source) in ("mirror", "rehearsing")  # who has the say there is the first source
            self.counts["not from below"] += 1
            return
        loser, best = (source, name) if plan.winner == "destination" else (name, source)
        before, state, ends = self.live[loser], self.state(name), may_end and self.rng.random() < 0.3

        def ended(event: bp.ProgressEvent) -> None:
            if ends and event.phase == "blocks":
                raise KeyboardInterrupt

        try:
            report = mirrors.resync(self.volumes[source], definition, peer, winner, full=True, progress=ended)
        except KeyboardInterrupt:
            assert self.state(name) == state
            now = content(self.volumes[loser])
            if now != before:  # what an earlier step had not ended came first
                assert now in self.was
                self.give_way(loser, before, plan)
                self.live[loser] = now
            self.counts["resync cut"] += 1
            return
        except RefusedError:
            assert plan.is_split
            assert plan.winner is None
            self.counts["split"] += 1
            return
        self.counts[f"from {plan.winner}"] += 1
        if report.kept is not None:
            kept = content(self.volumes[loser].state(report.kept))
            assert kept == before or kept in self.was
        self.give_way(loser, before, plan)
        self.newer.pop(name, None)
        self.live[loser] = self.live[best]
        assert self.state(name) == "mirror"
        assert content(self.volumes[loser]) == content(self.volumes[best])

    def give_way(self, loser: str, before: Content, plan: mirrors.ResyncPlan) -> None:
        """Note what a side had beyond the common state, if anything."""
        lost = plan.source if plan.winner == "destination" else plan.destination
        if lost.is_changed:
            self.owed[loser].append(before)

    # --- what must hold ---

    def check(self, *names: str) -> None:
        for name in names or SHAPES:
            volume = self.volumes[name]
            assert content(volume) == self.live[name], name
            kept = [self.live[name]]
            for snapshot in volume.snapshots:
                if snapshot.kind == "regular":
                    found = content(snapshot)
                    assert self.seen.setdefault(snapshot.record.id, found) == found, (name, snapshot.name)
                    kept += [found] if not is_own(snapshot.name) else []
            newer = [self.newer[name]] if name in self.newer else []
            assert [each for each in (*self.owed[name], *newer) if each not in kept] == [], f"lost in {name}"

    def converge(self) -> None:
        """In the end all are as the source, and whole."""
        for name, of in MIRROR_OF.items():
            source, peer = self.volumes[of], VolumePeer(self.volumes[name])
            if self.state(name) == "rehearsing":
                self.end_rehearsal(name)
            self.untangle(name)
            try:
                mirrors.step(source, self.definition(name), peer, asks=True)
            except RefusedError:  # it was broken off, or is ahead of a source that was put back
                self.resync(name, "source", may_end=False)
            mirrors.step(source, self.definition(name), peer)
            assert mirrors.step(source, self.definition(name), peer).outcome == "idle"
            self.live[name] = content(self.volumes[name])
            found = self.volumes[name].mirror_of
            assert found is not None
            if not found.may_write:
                assert self.live[name] == self.live[of]
        self.check()
        for volume in self.volumes.values():
            assert check(volume).problems == []

    def untangle(self, name: str) -> None:
        """Rename what has a name here that another snapshot has at the source, which was put back and took it anew."""
        theirs = {s.name: s.record.id for s in self.source_of(name).snapshots}
        for snapshot in self.volumes[name].snapshots:
            if theirs.get(snapshot.name, snapshot.record.id) != snapshot.record.id:
                self.n_names += 1
                self.volumes[name].rename_snapshot(snapshot.name, f"kept{self.n_names}")

    def step(self) -> None:
        name = self.rng.choice(["one", "one", "two", "two", "last"])
        kinds = {
            "write": 8, "snapshot": 4, "run": 14, "reopen": 3, "break": 2, "local": 4, "resync": 3, "rollback": 2,
            "put back": 1,
        }  # fmt: skip
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "write":
            self.write("source")
        elif kind == "snapshot":
            self.snapshot()
        elif kind == "run":
            self.run(name)
        elif kind == "reopen":
            self.reopen()
        elif kind == "break":
            self.break_off(name)
        elif kind == "local":
            self.local_write(name)
        elif kind == "rollback":
            self.roll_back()
        elif kind == "put back":
            self.put_back()
        else:
            self.resync(name)
        self.counts[kind if kind != "put back" else "copied"] += 1
        self.was += [self.live[each] for each in ("source", "one")]
        self.check()


def test_mirror_histories(tmp_path, is_deep, part, record_property):
    seed, counts = os.environ["BLOCKPLANE_SEED"], Counter()
    n = N_DEEP if is_deep else N_HISTORIES
    for number in range(n):
        if number % part[1] != part[0]:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        history = History(folder, f"{seed} {number}")
        for _ in range(STEPS):
            history.step()
        history.converge()
        counts += history.counts
    told = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    record_property("summary", f"mirror histories: {n // part[1]} of {STEPS} steps: {told}")
    assert counts["run"] > 0
