"""How large planes are: of snapshots, marks, shadows, stored images, what was copied; on disk, in memory, archived.

The claims bound them by 1/100 of what they describe and 4 bytes a block; ours are 1 bit a block at most, 1/128 of that
for nodes or containers' heads, and a constant: a leaf that the volume does not fill, and two nodes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from blockplane.image import build, saved
from blockplane.image.planefiles import plane_files
from blockplane.model import BLOCK_BYTES, StreamTruncatedError
from blockplane.planes import Plane
from blockplane.transfer import receive, resume_token, send
from blockplane.volume import Volume
from blockplane.volume.imagetable import StoredImage
from blockplane.volume.state import changed_pointers
from blockplane.volume.tree import BlockTree
from faults.inline import inline_workers
from faults.world import FileClient, geometry_of, make_volume
from rig.transfers import small_frames

#: A leaf that is not full, and the nodes above the leaves: one for 256 of them.
CONSTANT_BYTES = 3 * BLOCK_BYTES
#: Of the claims: 4 bytes a block, and 1/100 of a block's 4,096 bytes.
MOST_BYTES_A_BLOCK = min(4.0, BLOCK_BYTES / 100)
SMALL, LARGE = 1 << 13, 1 << 21  # blocks of each of two disks: 64 MiB and 16 GiB
#: How many of the small volume's blocks get content, of how many each; the large one's are few.
VOLUMES = {
    "empty": (SMALL, 0, 1),
    "dense": (SMALL, 14_000, 1),
    "scattered half": (SMALL, 14_000, 2),
    "typical": (LARGE, 3000, 1),
}


@pytest.fixture(autouse=True)
def _inline() -> Iterator[None]:
    with inline_workers():
        yield


def bound(n_blocks: int) -> float:
    return n_blocks / 8 * (1 + 1 / 128) + CONSTANT_BYTES


def filled(kind: str) -> Volume:
    """Snapshots `old` (a shadow by now) and `new`, marked; between them blocks came and went; an image is stored."""
    disk_blocks, n_blocks, every = VOLUMES[kind]
    volume = make_volume(geometry_of(2, 0, disk_blocks), reserve_blocks=256)
    client = FileClient(volume)
    client.write(1, 0, range(1, n_blocks // 2 + 1))
    for index in range(0, n_blocks // 2, every) if every > 1 else ():
        client.punch(1, index, index + 1)
    volume.snapshot("old", mark=True)
    client.write(2, 0, range(n_blocks // 2, n_blocks))
    for index in range(0, n_blocks // 2, every) if every > 1 else range(0, n_blocks // 4, 7):
        client.punch(2 if every > 1 else 1, index, index + 1)
    volume.snapshot("new")
    saved.save(volume, "step", "new - old")
    volume.shadow_snapshot("old")
    volume.sync()
    return volume


def on_disk(tree: BlockTree) -> int:
    """Bytes of a plane's leaves and of the nodes above them."""
    return BLOCK_BYTES * sum(len(pointers) for pointers in changed_pointers([tree]))


def trees_of(volume: Volume) -> dict[str, list[BlockTree]]:
    local = volume.committed_local
    (interval,) = local.marks.intervals()
    shadow = next(entry for entry in local.entries() if entry.is_shadow)
    return {
        "snapshot": [volume.get_snapshot("new").state.blockmap], "mark, alloc": [interval.tree("alloc")],
        "mark, dealloc": [interval.tree("dealloc")], "shadow": [local.shadows.plane(shadow).blockmap],
        "stored image": local.images.trees(), "held": [local.held], "live": [volume.committed.blockmap],
    }  # fmt: skip


def interrupted(volume: Volume) -> tuple[Volume, Plane]:
    """A destination that has two thirds of `new`, and what it says it has."""
    out, target = io.BytesIO(), make_volume(volume.geometry, reserve_blocks=256)
    with small_frames():
        send(build(volume, "new"), out)
    raw = out.getvalue()
    with suppress(StreamTruncatedError):
        receive(io.BytesIO(raw[: len(raw) * 2 // 3]), target)
    return target, resume_token(target).copied


@pytest.mark.parametrize("kind", VOLUMES)
def test_planes_of_volumes_are_a_bit_a_block(kind, record_property):
    volume = filled(kind)
    n_blocks, figures = volume.n_blocks, {}
    for name, trees in trees_of(volume).items():
        figures[f"{name}, on disk"] = max((on_disk(tree) for tree in trees), default=0)
    for file in plane_files(volume):
        plane = file.load()
        figures[f"{file.kind} {file.name}, in memory"] = plane.n_bytes
        figures[f"{file.kind} {file.name}, archived"] = len(file.read())
    if kind != "empty":
        target, copied = interrupted(volume)
        (image,) = target.local.incoming.images()
        figures["incoming, on disk"], figures["copied, on disk"] = on_disk(image.places), on_disk(image.landed)
        figures["copied, in memory"], figures["copied, archived"] = copied.n_bytes, len(copied.serialize())
        assert len(copied) > 0
        assert figures["incoming, on disk"] >= BLOCK_BYTES
    assert any(name.startswith("mark") and n_bytes for name, n_bytes in figures.items()) or kind == "empty"
    for name, n_bytes in figures.items():
        record_property(f"{name}, bytes", n_bytes)
        assert n_bytes <= bound(n_blocks), f"{name}: {n_bytes} bytes for {n_blocks} blocks"
        assert n_bytes < n_blocks * MOST_BYTES_A_BLOCK / 4, name
    most, name = max((n_bytes, name) for name, n_bytes in figures.items())
    record_property("summary", f"planes, {kind}, {n_blocks} blocks: {most / n_blocks:.4f} bytes a block ({name})")


def planes_of(rng: np.random.Generator, n_blocks: int) -> dict[str, Plane]:
    half = rng.integers(0, 1 << 64, n_blocks // 64, np.uint64)
    sparse = np.sort(rng.choice(n_blocks, n_blocks // 100, replace=False))
    # as many single numbers a container as an array holds: the largest it can be
    worst = (np.arange(0, n_blocks, 1 << 16)[:, None] + np.arange(0, 1 << 16, 16)).ravel()
    made = {
        "empty": Plane.empty(n_blocks), "dense": Plane.from_extents([[0, n_blocks]], n_blocks),
        "scattered half": Plane.from_words(half, n_blocks), "every other": Plane.from_words(
            np.full(n_blocks // 64, 0x5555555555555555, np.uint64), n_blocks), "one in 16": Plane.empty(n_blocks),
        "one in 100": Plane.empty(n_blocks),
        "typical": Plane.from_extents(np.arange(0, n_blocks, 4096)[:, None] + [0, 3000], n_blocks),
    }  # fmt: skip
    made["one in 16"].add_many(worst)
    made["one in 100"].add_many(sparse)
    return made


@pytest.mark.parametrize("n_blocks", [1 << 16, 1 << 24])
def test_planes_by_themselves_are_a_bit_a_block(n_blocks, rng, record_property):
    """64 GiB, without content: dense words, Roaring, and what is archived."""
    for kind, plane in planes_of(rng, n_blocks).items():
        figures = {
            "dense": plane.to_dense().n_bytes, "roaring": plane.to_roaring().n_bytes,
            "archived": len(plane.serialize()),
        }  # fmt: skip
        for form, n_bytes in figures.items():
            record_property(f"{kind}, {form}, bits a block", round(8 * n_bytes / n_blocks, 4))
            assert n_bytes <= bound(n_blocks), f"{kind}, {form}"
        if kind in ("empty", "dense", "typical"):
            assert figures["archived"] < n_blocks / 800 + CONSTANT_BYTES, kind
        shown = ", ".join(f"{form} {8 * n_bytes / n_blocks:.4f}" for form, n_bytes in figures.items())
        record_property("summary", f"bits a block, {n_blocks} blocks, {kind}: {shown}")


def test_a_stored_plane_is_a_bit_a_block_whatever_it_holds(rng, record_property):
    """On the disks of a volume of 16 GiB, leaves and nodes; no content is needed for that."""
    volume = make_volume(geometry_of(2, 0, LARGE), reserve_blocks=1 << 16)
    n_blocks = volume.n_blocks
    for number, (kind, plane) in enumerate(planes_of(rng, n_blocks).items()):
        image = StoredImage(bytes([number]) * 16, kind.replace(" ", "-"), "", "", len(plane), 0)
        volume.local.images.add(image, plane)
        volume.commit()
        n_bytes = on_disk(volume.committed_local.images.trees()[-1])
        record_property("summary", f"bits a block, on disk, {kind}: {8 * n_bytes / n_blocks:.4f}")
        assert n_bytes <= bound(n_blocks), kind
        assert (n_bytes == 0) == (kind == "empty")
