"""A source, two mirrors of it, and a replica of one of these, a host each; and what each of them must show at any time.

All that is looked at lies in `/live`, whose states are told apart by the renames that make them: a file is put beside
it first. What a host shows is one of these states, and never an older one than it has shown.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import blockplane as bp
from blockplane.cli.main import run
from rig.namespaces import PORT, Host, namespaces
from rig.owners import TIMEOUT_S, finish

MIB = 1 << 20
MIRRORS = ("east", "west")
#: Of whom each has what it has.
ABOVE = {"east": "source", "west": "source", "tier": "west"}
#: Disks, and of these parity.
SHAPES = {"source": (3, 1), "east": (2, 0), "west": (3, 1), "tier": (4, 1)}
FILES = 8

State = dict[str, bytes]


def must(*words: object) -> None:
    """Run a verb in this process, by the control socket of who has the volume."""
    assert run([str(word) for word in words]) == 0, words


@dataclass
class Site:
    """The hosts, what the source has had, and what each was seen to have.

    states : of `/live`, each after one rename. seen : by host, the last state it showed, -1: none. kept : snapshots of
    the source. n_put : bytes that were written to it. due : by host, from which of its link's bytes on, and how many of
    them, what it has not got yet comes.
    """

    folder: Path
    hosts: dict[str, Host]
    rng: np.random.Generator
    states: list[State] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    kept: dict[str, State] = field(default_factory=dict)
    n_put: int = 0
    due: dict[str, tuple[int, int]] = field(default_factory=dict)
    _n_shown: int = 0
    n_probes: int = 0

    @property
    def below(self) -> list[str]:
        """The hosts that get what the source has."""
        return [name for name in ABOVE if name in self.hosts]

    def volume(self, name: str) -> Path:
        """Return the volume of a host, which is named as the host is."""
        return self.folder / name

    # --- the source changes ------------------------------------------------------------------------------------------

    def change(self, n_files: int, most_bytes: int, *, others: bool = False) -> None:
        """Replace files, each at once; none of them twice where they are to be others."""
        before, starts = self.n_put, {name: self.hosts[name].n_received for name in self.below}
        for n in range(n_files):
            data = self.rng.bytes(int(self.rng.integers(1, most_bytes)))
            self.put(f"f{n if others else self.rng.integers(FILES)}", data)
        for name in set(MIRRORS) & starts.keys():
            self.due[name] = starts[name], self.n_put - before

    def put(self, name: str, data: bytes) -> None:
        """Replace a file, at once."""
        (self.folder / "new").write_bytes(data)
        must("put", f"{self.volume('source')}:/new", self.folder / "new")
        must("mv", f"{self.volume('source')}:/new", f"{self.volume('source')}:/live/{name}")
        self.states.append({**self.states[-1], name: hashlib.sha256(data).digest()})
        self.n_put += len(data)

    def keep(self) -> str:
        """Have the source keep what it has."""
        name = f"s{len(self.kept)}"
        must("snapshot", "create", f"{self.volume('source')}@{name}")
        self.kept[name] = self.states[-1]
        return name

    # --- what others show --------------------------------------------------------------------------------------------

    def _read(self, name: str, snapshot: str = "") -> State | None:
        """Return what a host has in /live; None: nothing has arrived yet."""
        place = self.folder / "read"
        shutil.rmtree(place, ignore_errors=True)
        if run(["get", f"{self.volume(name)}{snapshot}:/live", str(place)]):
            return None
        return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in place.iterdir()}

    def probe(self, *names: str) -> None:
        """Read what hosts show, all of it: a state that the source had, no older one than before."""
        for name in names or self.below:
            found, before = self._read(name), self.seen.get(name, -1)
            self.n_probes += 1
            if found is None:
                assert before < 0, f"{name} showed state {before}, and shows nothing now"
                continue
            at = next((i for i in range(len(self.states) - 1, max(before, 0) - 1, -1) if self.states[i] == found), None)
            assert at is not None, f"{name} shows what the source never had, or an older state than {before}"
            self.seen[name] = at

    def wait_for(self, name: str, state: int) -> None:
        """Wait until a host shows a state, or a later one."""
        end = time.monotonic() + TIMEOUT_S
        while True:
            self.probe(name)
            if self.seen.get(name, -1) >= state:
                return
            assert time.monotonic() < end, f"{name} still shows {self.seen.get(name, -1)}: {self.last_words(name)}"
            time.sleep(0.1)

    def last_words(self, name: str) -> str:
        """Return the end of the logs of a host and of the one above it."""
        logs = [sorted(self.folder.glob(f"{each}.*.log"), key=lambda p: p.stat().st_mtime)[-1:] for each in
                (name, ABOVE.get(name, name))]  # fmt: skip
        return "\n".join(path.read_text()[-3000:] for found in logs for path in found)

    def settle(self, *without: str) -> str:
        """Keep a snapshot, wait until the mirrors have it, and move the pointer that the tier follows."""
        name = self.keep()
        for mirror in [each for each in MIRRORS if each in self.hosts and each not in without]:
            self.wait_for(mirror, len(self.states) - 1)
            end = time.monotonic() + TIMEOUT_S
            while (found := self._read(mirror, f"@{name}")) is None:
                assert time.monotonic() < end, f"{name} did not come to {mirror}: {self.last_words(mirror)}"
                time.sleep(0.1)
            assert found == self.kept[name]
        if "tier" in self.hosts:
            self.due["tier"] = self.hosts["tier"].n_received, self.n_put - self._n_shown
            self._n_shown = self.n_put
            must("snapshot", "master", f"{self.volume('west')}@{name}")
        return name

    def still_due(self, name: str) -> int:
        """Return how many bytes are still to come to a host, about."""
        start, n_bytes = self.due[name]
        return max(start + n_bytes - self.hosts[name].n_received, 0)

    def settle_all(self) -> None:
        """Wait until all have what the source has; every snapshot that any has is what it was."""
        self.settle()
        for name in self.below:
            self.wait_for(name, len(self.states) - 1)
        for name in self.below:
            names = self._kept_by(name)
            assert names
            for each in names:
                found = self._read(name, f"@{each}")
                # `prune` may have come between
                assert found == self.kept[each] or (found is None and each not in self._kept_by(name)), (name, each)

    def _kept_by(self, name: str) -> list[str]:
        """Return which of the kept snapshots a host has."""
        found = json.loads(finish("snapshot", "list", self.volume(name), "--json").stdout)["snapshots"]
        return [each["name"] for each in found if each["name"] in self.kept]

    def check(self) -> None:
        """Stop the services; nothing is wrong with any volume, and nothing is left of a transfer."""
        for name in self.hosts:
            assert self.hosts[name].stop() == 0, self.last_words(name)
            with bp.Volume.open(self.volume(name)) as volume:
                assert bp.check(volume).problems == []
                assert bp.interrupted_receives(volume) == []

    # --- policies ----------------------------------------------------------------------------------------------------

    def write_policies(self, every: str = "1s") -> None:
        """Write what each service does."""
        for name, host in self.hosts.items():
            lines = [f'[volume.{name}]\npath = "{name}"', f"[volume.{name}.prune.old]", 'every = "3s"']
            lines += ["keep-last = 2", 'only = ["s*"]']
            callers = {"east": ("source", "write"), "west": ("source", "write")}.get(name)
            if callers is not None:
                lines += [f'[network]\nlisten = "{host.address}:{PORT}"\ntls = "tls/{name}"']
                lines += [f'[network.rights.{callers[0]}]\n{name} = ["read", "{callers[1]}"]']
            if name == "west" and "tier" in self.hosts:
                lines += ['[network.rights.tier]\nwest = ["read"]']
            if name == "source":
                lines += [f'[volume.source.mirror.all]\nevery = "{every}"\ntls = "{self.folder}/tls/source"']
            if name == "tier":
                lines += [f'[volume.tier.replicate.west]\nevery = "{every}"\ntls = "{self.folder}/tls/tier"']
                lines += [f'source = "{self.address("west")}"']
            host.policy.write_text("\n".join(lines) + "\n")

    def add_mirror(self, name: str) -> None:
        """Make the volume of a host a mirror of the source's."""
        tls = self.folder / "tls" / "source"
        must("mirror", "add", self.volume("source"), self.address(name), "--every", "0.5s", "--wait", 20, "--tls", tls)

    def address(self, name: str) -> str:
        """Return what others call a host's volume."""
        return f"{self.hosts[name].address}:{PORT}/{name}"


@contextmanager
def tiers(
    folder: Path,
    rng: np.random.Generator,
    *,
    hasty: bool = True,
    names: Sequence[str] = ("source", *ABOVE),
    sizes: Mapping[str, str] | None = None,
) -> Iterator[Site]:
    """Give hosts, by default all four, with their services and volumes, of different geometries."""
    with namespaces(folder, *names, hasty=hasty) as hosts:
        site = Site(folder, hosts, rng)
        bp.make_certificates(folder / "tls", [f"{name}={host.address}" for name, host in hosts.items()])
        for name in hosts:
            (disks, parity), size = SHAPES[name], (sizes or {}).get(name, "64M")
            with bp.Volume.create(site.volume(name), disks=disks, size=size, parity=parity) as volume:
                if name == "source":
                    bp.FileSystem(volume).mkdir("/live")
        site.states.append({})
        site.write_policies()
        for host in hosts.values():
            host.start(ready=False)
        for host in hosts.values():
            host.ready()
        for name in MIRRORS:  # the service does it, in its namespace
            if name in hosts:
                site.add_mirror(name)
        yield site
