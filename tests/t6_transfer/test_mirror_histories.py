"""Random histories of a source and two mirrors, beside a plain model: everything converges, no snapshot changes.

Steps: writes, snapshots and deletions at the source, updates, transfers cut or killed in the middle, breaks,
rehearsals, writes at destinations, resyncs in either direction, volumes reopened after a clean end or a crash. After
each step every regular snapshot anywhere is held against what it was when it was first seen, by its id.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.disks.assembly import assemble_disks
from blockplane.model.errors import BlockplaneError, RefusedError
from blockplane.transfer import mirrors
from blockplane.transfer.peer import LocalChanges, VolumePeer
from blockplane.volume.check import check
from blockplane.volume.volume import Volume
from faults.recording import MemoryDisk
from rig.memory import Shape, make_volume, reopen

SHAPES = {
    "source": [Shape(2, 1, 64, 1024)],
    "one": [Shape(1, 0, 512, 2560)],
    "two": [Shape(3, 2, 128, 1024)],
}
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
        for name, changes in (("one", None), ("two", LocalChanges.KEEP)):
            mirrors.add(self.source, str(folder / name), peers=self.peers(), local_changes=changes)

    @property
    def source(self) -> Volume:
        return self.volumes["source"]

    def peers(self) -> mirrors.Peers:
        @contextmanager
        def local(dest: str):
            yield VolumePeer(self.volumes[Path(dest).name])

        return mirrors.Peers(local)

    def definition(self, name: str) -> mirrors.MirrorDefinition:
        return mirrors.find(self.source.path, str(self.volumes[name].path))

    def state(self, name: str) -> str:
        found = self.volumes[name].mirror_of
        assert found is not None
        return found.state

    # --- steps ---

    def write(self, name: str) -> None:
        volume, live = self.volumes[name], dict(self.live[name])
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
                self.source.delete_snapshot(with_holds.name)
        self.n_names += 1
        self.source.snapshot(f"user{self.n_names}")
        for name in ("one", "two"):  # retention of its own: the destination is small
            volume = self.volumes[name]
            old = [s.name for s in volume.snapshots if s.name.startswith(("user", "kept", "before"))]
            for each in old[:-MOST_SNAPSHOTS]:
                if not volume.get_snapshot(each).holds:  # what an interrupted update builds on
                    volume.delete_snapshot(each)

    def run(self, name: str) -> None:
        before, state = self.live[name], self.state(name)
        how = self.rng.choice(["whole", "whole", "cut", "killed", "killed"])
        try:
            report = mirrors.step(
                self.source, self.definition(name), VolumePeer(self.volumes[name]), self.probe(name, how)
            )
        except Killed:
            self.counts["killed"] += 1
        except KeyboardInterrupt:
            self.counts["cut"] += 1
        except RefusedError:
            self.counts["refused"] += 1
            assert (state, content(self.volumes[name])) == ("broken", before)
            return
        else:
            assert state != "broken" or report.outcome == "idle"  # where nothing changed nobody is asked
            if report.outcome == "brought":
                self.counts["brought"] += 1
                self.live[name] = self.live["source"]
                assert report.brought is not None
                if report.brought.kept is not None:
                    self.counts["kept"] += 1
                    assert content(self.volumes[name].state(report.brought.kept)) == before
            else:
                assert report.outcome == "idle" or state == "rehearsing"
            return
        now = content(self.volumes[name])
        assert now == before or now in self.was
        self.live[name] = now

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
                    self.kill(["source", name] if self.rng.random() < 0.5 else [self.rng.choice(["source", name])])
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
                report = mirrors.end_rehearsal(self.volumes[name])
                if report.kept is not None:
                    assert content(self.volumes[name].state(report.kept)) == self.live[name]
                self.live[name] = before

    def local_write(self, name: str) -> None:
        found = self.volumes[name].mirror_of
        assert found is not None
        if found.may_write:
            self.write(name)
            self.counts["local"] += 1
            return
        with pytest.raises(BlockplaneError, match="is a mirror"):
            bp.FileSystem(self.volumes[name]).write_bytes("/x", b"x")

    def resync(self, name: str, winner: str | None = None) -> None:
        if self.state(name) == "rehearsing":
            return
        peer, definition = VolumePeer(self.volumes[name]), self.definition(name)
        winner = winner or self.rng.choice([None, None, "source", "destination"])
        plan = mirrors.plan_resync(self.source, definition, peer, winner)
        loser, best = ("source", name) if plan.winner == "destination" else (name, "source")
        before = self.live[loser]
        try:
            report = mirrors.resync(self.source, definition, peer, winner, full=True)
        except RefusedError:
            assert plan.is_split
            assert plan.winner is None
            self.counts["split"] += 1
            return
        self.counts[f"from {plan.winner}"] += 1
        if report.kept is not None:
            assert content(self.volumes[loser].state(report.kept)) == before
        self.live[loser] = self.live[best]
        assert self.state(name) == "mirror"
        assert content(self.volumes[loser]) == content(self.volumes[best])

    # --- what must hold ---

    def check(self, *names: str) -> None:
        for name in names or SHAPES:
            volume = self.volumes[name]
            assert content(volume) == self.live[name], name
            for snapshot in volume.snapshots:
                if snapshot.kind == "regular":
                    found = content(snapshot)
                    assert self.seen.setdefault(snapshot.record.id, found) == found, (name, snapshot.name)

    def converge(self) -> None:
        """In the end all are as the source, and whole."""
        for name in ("one", "two"):
            if self.state(name) == "rehearsing":
                mirrors.end_rehearsal(self.volumes[name])
            if self.state(name) == "broken":
                self.resync(name, "source")
        for name in ("one", "two"):
            mirrors.step(self.source, self.definition(name), VolumePeer(self.volumes[name]))
            step = mirrors.step(self.source, self.definition(name), VolumePeer(self.volumes[name]))
            assert step.outcome == "idle"
            self.live[name] = content(self.volumes[name])
            found = self.volumes[name].mirror_of
            assert found is not None
            if not found.may_write:
                assert self.live[name] == self.live["source"]
        self.check()
        for volume in self.volumes.values():
            assert check(volume).problems == []

    def step(self) -> None:
        name = self.rng.choice(["one", "two"])
        kind = self.rng.choices(
            ["write", "snapshot", "run", "reopen", "break", "local", "resync"], [8, 4, 14, 3, 2, 4, 3]
        )[0]
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
        else:
            self.resync(name)
        self.counts[kind] += 1
        self.was.append(self.live["source"])
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
