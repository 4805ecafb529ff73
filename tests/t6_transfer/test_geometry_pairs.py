"""Any geometry onto any other: disks 1 to 8, parity 0 to 2, chunks to whole disks, one to three groups, grown between
increments. A full image and three increments, as copies and as streams; a hundred pairs with --deep, five without.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.disks import HEAD_BLOCKS, TAIL_BLOCKS
from blockplane.disks.geometry import FIRST_MULTIPLE
from equality import differences, volume_tree

N_PAIRS, N_PAIRS_DEEP, N_STEPS = 5, 100, 4
#: Blocks that each step adds, and what it needs beside them.
STEP_BLOCKS, ROOM_BLOCKS = 900, 400
CHUNKS = [64, 64, 128, 192, 256, 1024]


@dataclass
class Wish:
    """A group: what `create` and `grow` are told."""

    disks: int
    parity: int
    chunk: int | str
    size: int


@dataclass
class Side:
    """A volume, the groups it has and those it is still to be given."""

    volume: bp.Volume
    coming: list[Wish] = field(default_factory=list)

    def grow(self) -> None:
        wish = self.coming.pop(0)
        self.volume.grow(wish.disks, wish.size, parity=wish.parity, chunk=wish.chunk)


def random_wish(rng: random.Random, n_blocks: int) -> Wish:
    """Return a group of at least so many blocks."""
    disks = rng.randint(1, 8)
    parity = rng.randint(0, min(2, disks - 1))
    chunk = rng.choice([*CHUNKS, "disk"])
    per_disk, step = -(-n_blocks // (disks - parity)), chunk if isinstance(chunk, int) else 64
    per_disk = -(-per_disk // step) * step + HEAD_BLOCKS + TAIL_BLOCKS + rng.randrange(200)
    return Wish(disks, parity, chunk if isinstance(chunk, str) else chunk * bp.BLOCK_BYTES, per_disk * bp.BLOCK_BYTES)


def made(path: Path, wishes: list[Wish], n_at_first: int) -> Side:
    first = wishes[0]
    volume = bp.Volume.create(path, first.disks, first.size, parity=first.parity, chunk=first.chunk)
    side = Side(volume, wishes[1:])
    for _ in range(n_at_first - 1):
        side.grow()
    return side


def source_of(rng: random.Random, path: Path) -> Side:
    """Return a volume whose groups together hold what `change` writes, and none of them alone."""
    n_groups = rng.randint(1, 3)
    return made(path, [random_wish(rng, 5400 // n_groups) for _ in range(n_groups)], rng.randint(1, n_groups))


def target_of(rng: random.Random, path: Path, source: Side) -> Side:
    """Return a volume that is, once it has all its groups, as large as the source, and reaches as far."""
    stops = [group.stop for group in source.volume.geometry.groups]
    for wish in source.coming:
        first = -(-stops[-1] // FIRST_MULTIPLE) * FIRST_MULTIPLE
        stops.append(first + (wish.disks - wish.parity) * wish.size // bp.BLOCK_BYTES)
    n_groups, wishes = rng.randint(1, 3), []
    for i in range(n_groups):
        rest = max(stops[-1] - i * FIRST_MULTIPLE, 0) if i == n_groups - 1 else 0
        wishes.append(random_wish(rng, max(rest, rng.randint(4000, 8000))))
    return made(path, wishes, rng.randint(1, n_groups))


def change(rng: random.Random, source: Side, files: bp.FileSystem, step: int) -> None:
    """Make files until the volume holds what it should by now; change, replace, cut, move and remove what is there."""
    files.mkdir(f"/{step}")
    i = 0
    while source.volume.used_blocks < (step + 1) * STEP_BLOCKS:
        if source.coming and source.volume.available_blocks < ROOM_BLOCKS:
            source.grow()
        for n_bytes in (0, 100, 5000, rng.choice([70_000, 600_000])):
            files.write_bytes(f"/{step}/f{i}", rng.randbytes(n_bytes))
            i += 1
        source.volume.sync()
    there = [f"{top.rstrip('/')}/{name}" for top, _, names in files.walk("/") for name in names]
    for path in rng.sample(there, min(len(there), 4)):
        what = rng.choice(["write", "cut", "move", "remove"])
        if what == "write":
            with files.open(path, "r+") as file:
                file.seek(rng.randrange(200_000))
                file.write(rng.randbytes(rng.choice([10, 9000, 100_000])))
        elif what == "cut":
            files.truncate(path, rng.randrange(10_000))
        elif what == "move":
            files.rename(path, f"{path}.{step}")
        else:
            files.unlink(path)


def by_copy(image: bp.Image, target: bp.Volume) -> None:
    report = bp.copy(image, target, verify=True)
    assert report.n_blocks + report.n_blocks_before == report.n_blocks_verified == image.n_blocks


def by_stream(image: bp.Image, target: bp.Volume) -> None:
    stream = io.BytesIO()
    bp.send(image, stream, order=random.Random(image.n_blocks).choice(["disk", "tape"]))
    stream.seek(0)
    assert bp.receive(stream, target).n_blocks == image.n_blocks


def bring(image: bp.Image, target: Side, how: Callable[[bp.Image, bp.Volume], None]) -> int:
    """Bring an image, with as many groups of the target as that takes; return how often it was refused before."""
    n_refused = 0
    while int(image.plane.select(len(image.plane) - 1)) >= target.volume.geometry.n_blocks:
        before = [snapshot.id for snapshot in target.volume.snapshots]
        with pytest.raises(bp.errors.RefusedError, match="the image holds block"):
            how(image, target.volume)
        assert [snapshot.id for snapshot in target.volume.snapshots] == before
        assert target.volume.incoming.n_blocks == 0
        n_refused += 1
        target.grow()
    how(image, target.volume)
    return n_refused


def require_equal(source: bp.Volume, target: bp.Volume, name: str) -> None:
    one, other = source.get_snapshot(name), target.get_snapshot(name)
    assert other.plane == one.plane
    trees = [volume_tree(bp.FileSystem(snapshot), between_volumes=True) for snapshot in (one, other)]
    assert differences(*trees) == []


def pair(rng: random.Random, folder: Path) -> tuple[int, int]:
    """Bring all of a volume's history to another; return how often either side grew on the way, and was refused."""
    source = source_of(rng, folder / "source")
    target = target_of(rng, folder / "target", source)
    print(f"source {source.volume.geometry.groups} + {source.coming}")
    print(f"target {target.volume.geometry.groups} + {target.coming}")
    n_groups = len(source.volume.geometry.groups) + len(target.volume.geometry.groups)
    n_refused = 0
    with ExitStack() as stack:
        stack.callback(lambda: target.volume.close())
        stack.enter_context(source.volume)
        files = bp.FileSystem(source.volume)
        for step in range(N_STEPS):
            for side in (source, target):
                if side.coming and rng.random() < 0.5:
                    side.grow()
            change(rng, source, files, step)
            source.volume.snapshot(f"s{step}")
            image = source.volume.image(f"s{step} - s{step - 1}" if step else "s0")
            n_refused += bring(image, target, rng.choice([by_copy, by_copy, by_stream]))
            require_equal(source.volume, target.volume, f"s{step}")
            if rng.random() < 0.3:
                target.volume = reopened(target.volume)
        assert bp.check(source.volume).problems == []
        assert bp.check(target.volume).problems == []
        for step in range(N_STEPS):
            require_equal(source.volume, target.volume, f"s{step}")
        n_grown = len(source.volume.geometry.groups) + len(target.volume.geometry.groups) - n_groups
    return n_grown, n_refused


def reopened(volume: bp.Volume) -> bp.Volume:
    path = volume.path
    volume.close()
    return bp.Volume.open(path)


def test_pairs_of_geometries(tmp_path, is_deep, part, record_property):
    seed, n = int(os.environ["BLOCKPLANE_SEED"]), N_PAIRS_DEEP if is_deep else N_PAIRS
    n_pairs = n_grown = n_refused = 0
    for number in range(n):
        if number % part[1] != part[0]:
            continue
        print(f"pair {number} of BLOCKPLANE_SEED={seed}")
        folder = tmp_path / str(number)
        folder.mkdir()
        grown, refused = pair(random.Random(f"{seed} {number}"), folder)
        n_pairs, n_grown, n_refused = n_pairs + 1, n_grown + grown, n_refused + refused
        for side in ("source", "target"):
            for disk in (folder / side / "disks").iterdir():
                disk.unlink()
    record_property("summary", f"geometries: {n_pairs} pairs, grown {n_grown} times between, refused {n_refused} times")
    assert n_pairs > 0
