"""Every way a stream is written, on real volumes: order, locations, compression, encryption; onto other geometries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import UsageError
from blockplane.stream import Key
from blockplane.transfer.imagesending import ImageSending
from blockplane.transfer.send import send

KEY = Key(bytes(range(32)))
FORMS = [
    {"order": order, "locations": locations, "compress": compress, "key": key}
    for order, locations, compress, key in itertools.product(
        ["disk", "tape"], ["explicit", "implicit"], [None, "zstd:1"], [None, KEY]
    )
]


def contents(source) -> dict[str, bytes]:
    files = bp.FileSystem(source)
    return {name: files.read_bytes(f"/d/{name}") for name in files.listdir("/d")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two RAID groups, the first nearly full, two snapshots; half of the bytes shrink."""
    rng = np.random.default_rng(5)
    with bp.Volume.create(tmp_path_factory.mktemp("forms") / "pool", disks=4, size="7MiB", parity=1) as volume:
        files = bp.FileSystem(volume)
        files.mkdir("/d")
        for i in range(30):
            files.write_bytes(f"/d/{i}", rng.integers(0, 1 << (4 + 4 * (i % 2)), 100_000 + 999 * i, np.uint8).tobytes())
        volume.sync()
        volume.grow(disks=2, size="9MiB", parity=0, chunk="disk")
        volume.snapshot("one")
        for i in range(0, 30, 3):
            files.unlink(f"/d/{i}")
        for i in range(60):
            files.write_bytes(f"/d/new{i}", rng.bytes(90_000))
        volume.snapshot("two")
        yield volume


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(str(v) for v in form.values() if isinstance(v, str)))
def test_every_form_arrives_whole_on_other_disks(source, tmp_path, form):
    full, step = tmp_path / "one.bps", tmp_path / "two.bps"
    for path, text in ((full, "one"), (step, "two - one")):
        image = source.image(text)
        report = bp.send(image, path, **form)
        assert report.n_blocks == image.n_blocks
        assert bp.stream_map(path, key=KEY).image == image.plane
    verdict = bp.verify_streams(full, step, key=KEY)
    assert (verdict.problems, verdict.proved) == ([], ["one", "two"])
    for part in (1, 2):  # what is passed over moves the order on too
        assert bp.verify_streams(full, part=(part, 2), key=KEY).problems == []
    assert bp.compare_streams(full, step, volume=source, snapshot="two", key=KEY).ok
    expected = {name: contents(source.get_snapshot(name)) for name in ("one", "two")}
    with bp.open_stream(full, step, key=KEY) as chain:
        assert {name: contents(chain.at(name)) for name in expected} == expected
    merged = tmp_path / "merged.bps"
    bp.merge_streams(full, step, sink=merged, key=KEY, encrypt=False)
    direct = source.image("two")
    assert bp.stream_map(merged).image == direct.plane
    copy = tmp_path / "copy"
    bp.receive(full, copy, disks=2, size="32MiB", parity=0, chunk="1MiB", key=KEY)
    bp.receive(step, copy, key=KEY)
    with bp.Volume.open(copy) as volume:
        assert {name: contents(volume.get_snapshot(name)) for name in expected} == expected
        assert bp.check(volume).ok


def test_tape_order_ascends_and_disk_order_does_not(source, tmp_path):
    firsts = {}
    plane = source.image("two").plane
    for order in ("disk", "tape"):
        path = tmp_path / f"{order}.bps"
        send(ImageSending(source.image("two"), order, window_blocks=256), path)
        with bp.open_stream(path) as chain:
            index = chain.files[0].index
            firsts[order] = index.starts[np.argsort(index.frames * 256 + index.firsts, kind="stable")]
            assert index.n_blocks == len(plane)
    assert (np.diff(firsts["tape"]) > 0).all()
    assert not (np.diff(firsts["disk"]) > 0).all()


def test_implicit_locations_cost_less(source, tmp_path):
    sizes = [
        bp.send(source.image("two - one"), tmp_path / "s", locations=each).stream_bytes
        for each in ("explicit", "implicit")
    ]
    assert sizes[1] < sizes[0]


def test_locations_that_nobody_could_work_out(source, tmp_path):
    """A volume that received beside what it held has blocks elsewhere than at their numbers."""
    bp.send(source.image("one"), tmp_path / "one.bps")
    bp.send(source.image("two - one"), tmp_path / "two.bps")
    bp.receive(tmp_path / "one.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        files = bp.FileSystem(volume)
        for i in range(20):
            files.write_bytes(f"/d/mine{i}", b"x" * 50_000)
        volume.snapshot("mine")
        bp.receive(tmp_path / "two.bps", volume, discard=True)
        image = volume.image("two")
        assert not image.layout.is_home
        with pytest.raises(UsageError, match="elsewhere than at their numbers"):
            bp.send(image, tmp_path / "again.bps", locations="implicit")
        assert not (tmp_path / "again.bps").exists()
        bp.send(image, tmp_path / "again.bps", locations="implicit", order="tape")
        bp.receive(tmp_path / "again.bps", tmp_path / "third")
        with bp.Volume.open(tmp_path / "third") as third:
            assert contents(third.get_snapshot("two")) == contents(source.get_snapshot("two"))
    with pytest.raises(UsageError, match="no locations"):
        bp.send(source.image("one"), tmp_path / "x", locations="somewhere")
