"""Sets of tapes in a virtual tape drive, that of Debian's `tgt`, reached by SCSI commands through `libiscsi`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import blockplane as bp
from blockplane.stream.media import rack
from rig import virtualtape
from rig.tapes import SNAPSHOTS, fill, same

pytestmark = pytest.mark.skipif(virtualtape.missing() is not None, reason=str(virtualtape.missing()))


@pytest.fixture
def drives(tmp_path, monkeypatch):
    """Names of virtual tapes, which everything that opens a medium by name opens."""
    monkeypatch.setattr(rack, "open_medium", virtualtape.VirtualTape)
    monkeypatch.setattr(rack, "is_drive", lambda name: name.startswith("127.0.0.1:"))
    (tmp_path / "images").mkdir()
    with virtualtape.served(tmp_path / "images", 3, 16) as names:
        yield names


def test_a_full_image_and_three_increments_on_a_virtual_drive(drives, tmp_path, is_deep, record_property):
    backup = fill(tmp_path, np.random.default_rng(3), n_files=40 if is_deep else 8)
    with backup.volume as volume:
        report = bp.write_tape(volume.image("s0"), drives[:1], bp.TapeForm(record_size="64KiB"))
        assert report.n_tapes == 1
        for before, after in itertools.pairwise(SNAPSHOTS):
            bp.write_tape(volume.image(f"{after} - {before}"), drives[:1], bp.TapeForm(append=True))
        listing = bp.list_tapes(drives[:1])
        assert ([image.top for image in listing.images], listing.is_complete) == (list(SNAPSHOTS), True)
        verdict = bp.verify_tapes(drives[:1], volume=volume)
        assert (verdict.problems, verdict.proved) == ([], list(SNAPSHOTS))
        assert all(found.ok for found in verdict.compared)
        bp.read_tape(drives[:1], tmp_path / "copy")
        with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
            assert all(same(copy.get_snapshot(name), backup.files[name]) for name in SNAPSHOTS)
            assert [s.id for s in copy.snapshots] == [s.id for s in volume.snapshots]
        with bp.open_stream(*drives[:1], snapshot="s1") as chain:
            assert same(chain, backup.files["s1"])
        # what a writer that died has left on the tape: everything up to its last closed group, and the rest of a run
        medium = virtualtape.VirtualTape(drives[1])
        source = virtualtape.VirtualTape(drives[0])
        buffer = memoryview(bytearray(64 << 10))
        run = [run for run in listing.runs if run.image == 1][-1]
        n_copied = run.position + run.n_bytes // (64 << 10) // 2
        for _ in range(n_copied):
            found = source.read(buffer)
            if found.n_bytes:
                medium.write([bytes(buffer[: found.n_bytes])])
            else:
                medium.write_filemark(wait=True)
        source.close()
        medium.close()
        report = bp.write_tape(volume.image("s0"), drives[1:2], bp.TapeForm(resume=True))
        assert bp.verify_tapes(drives[1:2], volume=volume).ok
    n_bytes = f"{verdict.stream_bytes:,}"
    record_property("summary", f"tape: a virtual drive, 4 images, {n_bytes} bytes, verified and restored")


def test_a_virtual_tape_that_is_full_goes_on_with_the_next(drives, tmp_path):
    """The drive's own end of medium, where it has one."""
    volume = bp.Volume.create(tmp_path / "pool", disks=2, size="48M", parity=0)
    with volume:
        rng = np.random.default_rng(4)
        content = rng.bytes(20 << 20)
        bp.FileSystem(volume).write_bytes("/big", content)
        volume.snapshot("s")
        report = bp.write_tape(volume.image("s"), drives, bp.TapeForm())
        assert bp.verify_tapes(drives[: report.n_tapes], volume=volume).ok
        bp.read_tape(drives[: report.n_tapes], tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert bp.FileSystem(copy.get_snapshot("s")).read_bytes("/big") == content
    assert report.n_tapes == 2
