"""Re-baselining: mirrors that share no snapshot with their source any more, and receives that write what differs."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest

import blockplane as bp
from blockplane.image.extents import numbers_in
from equality import differences, volume_tree

MIB = 1 << 20


def stream_of(volume, text, **options) -> bytes:
    sink = io.BytesIO()
    bp.send(volume.image(text), sink, **options)
    return sink.getvalue()


def offer_of(volume, snapshot=None, **options) -> bytes:
    sink = io.BytesIO()
    bp.offer(volume, sink, snapshot, **options)
    return sink.getvalue()


def tree_of(volume, snapshot):
    return volume_tree(bp.FileSystem(volume.get_snapshot(snapshot)))


def vbns_of(plane) -> set[int]:
    return {int(vbn) for vbn in numbers_in(plane.extents())}


def blocks_of(volume, snapshot) -> dict[int, bytes]:
    """Every block of a snapshot by its VBN, read one state at a time."""
    state = volume.get_snapshot(snapshot).state
    vbns = sorted(vbns_of(volume.image(snapshot).plane))
    out = np.empty(len(vbns) * 4096, np.uint8)
    state.reader.read_extents(np.array([[vbn, vbn + 1] for vbn in vbns], np.int64), out)
    data = out.tobytes()
    return {vbn: data[i * 4096 : (i + 1) * 4096] for i, vbn in enumerate(vbns)}


GEOMETRIES = {
    "the same": {},
    "chunk is the disk": {"disks": 3, "size": "100M", "chunk": "disk"},
    "one disk": {"disks": 1, "size": "200M"},
    "two parity disks": {"disks": 6, "size": "40M", "parity": 2},
}


@pytest.fixture
def source(tmp_path):
    random_bytes = random.Random(7).randbytes
    with bp.Volume.create(tmp_path / "pool", disks=5, size="40M", parity=1) as volume:
        files = bp.FileSystem(volume)
        for i in range(12):
            files.write_bytes(f"/f{i}", random_bytes(MIB))
        volume.snapshot("june1")
        yield volume


def estrange(volume, n_files: int = 2) -> None:
    """Change some files, and let the snapshot go that the mirror has."""
    files = bp.FileSystem(volume)
    for i in range(n_files):
        files.write_bytes(f"/f{i}", random.Random(100 + i).randbytes(MIB))
    files.unlink("/f11")
    volume.snapshot("june2")
    volume.delete_snapshot("june1")


def confirmed(source, text, mirror, snapshot, run) -> set[int]:
    """What a model says is proved to be there: whole runs of the offered plane, every byte equal."""
    mine, theirs = blocks_of(source, text), blocks_of(mirror, snapshot)
    vbns, found = sorted(theirs), set()
    for at in range(0, len(vbns), run):
        part = vbns[at : at + run]
        if all(mine.get(vbn) == theirs[vbn] for vbn in part):
            found.update(part)
    return found


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("run", [1, 8, 200])
def test_only_what_differs_travels(source, tmp_path, geometry, run):
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy", **GEOMETRIES[geometry])
    estrange(source)
    with bp.Volume.open(tmp_path / "copy") as mirror:
        offer = offer_of(mirror, run_blocks=run)
        (hold,) = mirror.get_snapshot("june1").holds
        assert hold.owner == "offer:june1"
        lent = confirmed(source, "june2", mirror, "june1", run)
        image = source.image("june2")
        dry = bp.send(image, None, dry_run=True, against=io.BytesIO(offer))
        sink = io.BytesIO()
        report = bp.send(image, sink, against=io.BytesIO(offer))
        assert (report.n_blocks, report.n_blocks_lent) == (image.n_blocks - len(lent), len(lent))
        assert (dry.n_blocks, dry.stream_bytes) == (report.n_blocks, report.stream_bytes)
        assert 0 < report.n_blocks < image.n_blocks / 2
        received = bp.receive(io.BytesIO(sink.getvalue()), mirror)
        assert (received.n_blocks, received.n_blocks_shared) == (report.n_blocks, len(lent))
        assert not mirror.get_snapshot("june1").holds
    with bp.Volume.open(tmp_path / "copy") as mirror:
        assert bp.check(mirror).problems == []
        for name in ("june2",):
            assert differences(tree_of(mirror, name), tree_of(source, name)) == []
            assert blocks_of(mirror, name) == blocks_of(source, name)
        mirror.delete_snapshot("june1")
        for _ in range(4):
            mirror.commit(force=True)
        assert bp.check(mirror).problems == []
        assert differences(tree_of(mirror, "june2"), tree_of(source, "june2")) == []
