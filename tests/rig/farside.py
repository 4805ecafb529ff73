"""A volume and the copy of it that a listener serves, with histories that go on; what must hold between transfers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blockplane.server.network import Event, Limits, Listener, RemotePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import interrupted_receives
from blockplane.transfer.standing import image_towards
from blockplane.volume import Volume
from rig.network import QUICK, Hosts, threads_left
from streams.volumes import Files, contents, fresh

State = dict[int, dict[int, bytes]]


@dataclass
class FarSide:
    """`source` is here, `copy` behind the listener; each change of the source ends in a snapshot."""

    hosts: Hosts
    source: Volume
    copy: Volume
    rng: np.random.Generator
    files: Files = field(init=False)
    states: dict[str, State] = field(default_factory=dict)
    told: list[Event] = field(default_factory=list)
    limits: Limits = QUICK
    listener: Listener | None = None
    _n: int = 0

    def __post_init__(self) -> None:
        self.files = Files(self.source, self.rng)

    def change(self, n_blocks: int) -> str:
        """Write random blocks in random runs, take a snapshot, drop the oldest; return its name."""
        while n_blocks > 0:
            run = min(int(self.rng.integers(1, 300)), n_blocks)
            self.files.write(1 + int(self.rng.integers(0, 3)), int(self.rng.integers(0, 3500)), run)
            n_blocks -= run
        self._n += 1
        name = f"s{self._n}"
        self.source.snapshot(name)
        self.states[name] = contents(self.source.active)
        return name

    def forget_before(self, name: str) -> None:
        """Drop all snapshots but one, on both sides."""
        for volume in (self.source, self.copy):
            for snapshot in list(volume.snapshots):
                if snapshot.name != name:
                    volume.delete_snapshot(snapshot.name)
        self.states = {name: self.states[name]}

    def peer(self, address: str | None = None, **more) -> RemotePeer:
        assert self.listener is not None
        return self.hosts.peer(address or self.listener.address, **{"limits": self.limits, **more})

    def push(self, top: str, peer: RemotePeer | None = None, changes: LocalChanges = LocalChanges.REFUSE):
        peer = peer or self.peer()
        return peer.take(image_towards(self.source, top, peer.standing()), changes)

    def require_a_state(self) -> str:
        """The copy has a state that the source had, and nobody waits, reads or has left anything."""
        found = contents(self.copy.active)
        names = [name for name, state in self.states.items() if state == found]
        assert names or (found == {} and not self.copy.was_written)
        return names[-1] if names else ""

    def require_at_rest(self) -> None:
        assert self.listener is not None
        self.listener.stop()
        assert threads_left() == []
        assert self.copy.pins.all() == []
        assert self.source.pins.all() == []
        assert set(os.listdir(self.copy.path)) <= {"volume.toml", "disks", "lock"}

    def require_done(self, top: str) -> None:
        assert contents(self.copy.active) == self.states[top]
        assert contents(self.copy.get_snapshot(top).state) == self.states[top]
        assert list(interrupted_receives(self.copy)) == []


@contextlib.contextmanager
def far_side(
    path: Path, rng: np.random.Generator, size: str = "24M", copy_size: str = "48M", **more
) -> Iterator[FarSide]:
    """A source and an empty copy of other geometry, listened to by a host of its own name."""
    hosts = Hosts.make(path / "tls")
    limits = more.pop("limits", QUICK)
    with fresh(path / "source", size=size) as source, fresh(path / "copy", disks=3, size=copy_size) as copy:
        side = FarSide(hosts, source, copy, rng, limits=limits)
        rights = {"source": {"pool": ["read", "write", "admin"]}}
        with hosts.listening({"pool": copy}, rights, tell=side.told.append, limits=limits, **more) as side.listener:
            yield side
