"""Random histories of a volume whose backups go to streams: levels, sums, dropped bases, numbers used again.

Every snapshot of every chain reads as it was, chains are proved whole, merged streams restore the top.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import BlockplaneError
from blockplane.stream import open_stream
from blockplane.transfer import compare_streams, merge_streams, receive, send, stream_map, verify_streams

N_HISTORIES, N_DEEP = 12, 240
Tree = dict[str, bytes]


def tree_of(source) -> Tree:
    files = bp.FileSystem(source)
    return {name: files.read_bytes(f"/{name}") for name in files.listdir("/")}


@dataclass
class History:
    """A volume, what its snapshots held, and the streams sent: (path, base, arriving, blocks of the direct image)."""

    folder: Path
    rng: np.random.Generator
    volume: bp.Volume
    trees: dict[str, Tree] = field(default_factory=dict)
    sent: list[Path] = field(default_factory=list)
    brought: set[str] = field(default_factory=set)
    n_spoilt: int = 0

    def step(self, number: int) -> None:
        """Change files, make a snapshot, send it onto one that was brought, perhaps drop older ones."""
        self.change(number)
        name = f"s{number}"
        self.volume.snapshot(name)
        self.trees[name] = tree_of(self.volume.get_snapshot(name))
        self.send(name)
        there = [snapshot.name for snapshot in self.volume.snapshots]
        for old in there[:-1]:
            is_last_brought = old == max(self.brought & set(there), key=lambda n: int(n[1:]))
            if self.rng.random() < 0.4 and not is_last_brought:
                self.volume.delete_snapshot(old)

    def change(self, number: int) -> None:
        files, rng = bp.FileSystem(self.volume), self.rng
        files.write_bytes(f"/f{number}", rng.bytes(int(rng.integers(1, 300_000))))
        for name in files.listdir("/"):
            chance = rng.random()
            if chance < 0.3:
                files.unlink(f"/{name}")
            elif chance < 0.6:
                with files.open(f"/{name}", "r+") as file:
                    file.seek(int(rng.integers(0, 200_000)))
                    file.write(rng.bytes(int(rng.integers(1, 20_000))))

    def send(self, name: str) -> None:
        there = [snapshot.name for snapshot in self.volume.snapshots]
        bases = [other for other in there if other in self.brought]
        expression = name
        if bases:
            base = bases[int(self.rng.integers(len(bases)))]
            between = there[there.index(base) + 1 : -1]
            extra = [other for other in between if self.rng.random() < 0.4]
            expression = " + ".join([name, *reversed(extra)]) + f" - {base}"
        path = self.folder / f"{name}.bps"
        try:
            send(self.volume.image(expression), path, compress="zstd:1" if self.rng.random() < 0.4 else None)
        except BlockplaneError:
            self.n_spoilt += 1
            return
        self.sent.append(path)
        self.brought |= {record.name for record in stream_map(path).arriving()}


@pytest.fixture(scope="module")
def seeds(is_deep, part) -> list[int]:
    number, n_parts = part
    return list(range(N_DEEP if is_deep else N_HISTORIES))[number::n_parts]


def test_histories(seeds, tmp_path, record_property):
    n_merged = n_reused = n_equal = 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        rng = np.random.default_rng([seed, 77])
        with bp.Volume.create(folder / "pool", disks=3, size="8MiB", parity=int(seed % 2)) as volume:
            history = History(folder, rng, volume)
            for number in range(6):
                history.step(number)
            check_chain(history)
            merged = check_merged(history, history.sent[-1].stem)
            n_merged += merged[0]
            n_equal += merged[1]
        planes = [stream_map(path).image for path in history.sent]
        n_reused += any(len(a & b) for i, a in enumerate(planes) for b in planes[:i])
    record_property("summary", f"chains: {len(seeds)} histories, {n_merged} merged, {n_reused} with numbers used again")
    n_least = max(len(seeds) // 30, 1)  # the base of an increment is seldom there still: 20 of 240
    assert (n_merged >= len(seeds), n_reused >= len(seeds) // 3, n_equal >= n_least) == (True, True, True)


def check_chain(history: History) -> None:
    """Every snapshot that arrived reads as it was, and is proved whole."""
    verdict = verify_streams(*history.sent)
    assert (verdict.problems, set(verdict.proved)) == ([], history.brought)
    with open_stream(*reversed(history.sent)) as chain:
        for name in history.brought:
            assert tree_of(chain.at(name)) == history.trees[name]


def check_merged(history: History, top: str) -> tuple[int, int]:
    """Full and increment: what is restored from them is the top; the image is a direct send's, where one can be."""
    volume, folder = history.volume, history.folder
    with open_stream(*history.sent) as chain:
        members = [Path(file.path) for file in reversed(chain.at(top).path)]
    full, direct = folder / "full.merged", folder / "direct"
    merge_streams(*members, sink=full)
    send(volume.image(top), direct)
    assert stream_map(full).header.plane_digest == stream_map(direct).header.plane_digest
    assert compare_streams(full, volume=volume, snapshot=top).ok
    receive(full, folder / "copy")
    with bp.Volume.open(folder / "copy") as copy:
        assert tree_of(copy.get_snapshot(top)) == history.trees[top]
        for record in stream_map(full).arriving():
            assert tree_of(copy.get_snapshot(record.name)) == history.trees[record.name]
        assert bp.check(copy).ok
    if len(members) < 2:
        return 1, 0
    return 2, check_increment(history, members, top)


def check_increment(history: History, members: list[Path], top: str) -> int:
    """The chain without its full stream, merged, onto what the full stream restores."""
    folder, step = history.folder, history.folder / "step.merged"
    merge_streams(*members[1:], sink=step)
    base = stream_map(members[1]).base
    assert base is not None
    receive(members[0], folder / "other", disks=3, size="40MiB")
    receive(step, folder / "other")
    with bp.Volume.open(folder / "other") as other:
        for record in (*stream_map(members[0]).arriving(), *stream_map(step).arriving()):
            assert tree_of(other.get_snapshot(record.name)) == history.trees[record.name]
        assert bp.check(other).ok
    try:
        image = history.volume.image(f"{top} - {base.name}")
    except BlockplaneError:
        return 0
    assert stream_map(step).image == image.plane
    return 1
