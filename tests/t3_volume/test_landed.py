"""What of an incoming image is remembered, and believed: the journal, the local tree, the blocks themselves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from blockplane.disks import HEAD_BLOCKS
from blockplane.model.checks import fresh_checks
from blockplane.planes import Plane
from blockplane.volume import Volume, landed, landing_bands
from blockplane.volume.check import check
from blockplane.volume.incoming import IncomingEntry, leaves_of
from blockplane.volume.journal import LandedSlots, LandingJournal, read_journal
from blockplane.volume.landed import LandedBlocks
from blockplane.volume.landing import Landing
from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in

BLOCK = 4096
N_IMAGE = 6000


@pytest.fixture
def volume(tmp_path):
    with Volume.create(tmp_path / "copy", disks=3, size="40M", parity=1) as volume:
        yield volume


def entry(n_image: int = N_IMAGE) -> IncomingEntry:
    return IncomingEntry(b"L" * 16, b"I" * 16, b"S" * 16, b"T" * 16, bytes(16), n_image, 0, 1 << 20, 0, "june1")


def block_of(vbn: int) -> np.ndarray:
    return np.full(BLOCK // 8, vbn * 7919 + 1, np.uint64).view(np.uint8)


def image(n_blocks: int = N_IMAGE) -> Plane:
    return Plane.from_extents([[64, 64 + n_blocks]], 1 << 20)


def bring(landing: Landing, vbns: range) -> None:
    for start in range(vbns.start, vbns.stop, 50):
        stop = min(start + 50, vbns.stop)
        data = np.concatenate([block_of(vbn) for vbn in range(start, stop)])
        at = 0
        buffers = landing.buffers(np.array([[start, stop]]), fresh_checks(data, np.arange(start, stop)))
        for buffer in buffers or ():
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)
        if buffers is not None:
            landing.landed()


def reopened(volume: Volume) -> Volume:
    """As after a kill: nothing of the process is left but what it wrote."""
    path = volume.path
    volume.array.drain()
    volume.abandon()
    return Volume.open(path)


def copied(landing: Landing) -> set[int]:
    return {vbn for start, stop in landing.copied.extents().tolist() for vbn in range(start, stop)}


def journal_of(volume: Volume) -> Path:
    return Path(volume.path) / f"incoming-{(b'L' * 16).hex()}.journal"


def killed_midway(volume: Volume) -> tuple[Volume, set[int]]:
    """A receive of 64..4000 in one process that dies; what the disks had by then is known."""
    landing = Landing(volume, image(), None, entry())
    bring(landing, range(64, 4064))
    kept = landing._kept
    assert kept is not None
    landing.bands._closer.submit(landing.bands._save, wait=False).result()
    there = kept.plane()
    known = {vbn for start, stop in there.extents().tolist() for vbn in range(start, stop)}
    return reopened(volume), known


def test_a_killed_receive_remembers_what_the_disks_have(volume):
    again, known = killed_midway(volume)
    with again:
        landing = Landing(again, image(), None, entry())
        found = copied(landing)
        assert known <= found <= set(range(64, 4064))
        assert len(found) >= 4000 - N_IMAGE // 100 - 2048 - 256
        landing.abort()
        assert again.local.incoming.images() == []
        assert not journal_of(again).exists()


@pytest.mark.parametrize("is_slow", [True, False], ids=["slow", "quick"])
def test_a_small_image_is_remembered_where_it_comes_slowly(volume, is_slow, monkeypatch):
    """What has landed in stripes that are not whole goes to the disks too; who is quick pays no consistency point."""
    monkeypatch.setattr(landing_bands, "FLUSH_S", 0.0)
    monkeypatch.setattr(landing_bands, "_FLUSH_PAUSE", 0)
    monkeypatch.setattr(landed, "SMALL_S", 0.0 if is_slow else 1e9)
    landing = Landing(volume, image(1000), None, entry(1000))
    for part in (range(64, 565), range(565, 601)):
        bring(landing, part)
        landing.bands._closer.submit(int).result()
    with reopened(volume) as again:
        landing = Landing(again, image(1000), None, entry(1000))
        assert copied(landing) == set(range(64, 601) if is_slow else [])
        bring(landing, range(601 if is_slow else 64, 1064))
        landing.bands.finish()
        assert landing.n_waiting == 0
        assert check(again).problems == []
        landing.abort()


def test_what_comes_quickly_goes_out_in_whole_bands(volume, monkeypatch):
    monkeypatch.setattr(landing_bands, "FLUSH_S", 0.0)
    monkeypatch.setattr(landing_bands, "_FLUSH_BLOCKS", 9)
    landing = Landing(volume, image(450), None, entry(450))
    bring(landing, range(64, 464))
    landing.bands._closer.submit(int).result()
    assert len(landing.bands._open) == 1
    assert landing.bands._n_saved == 0
    landing.abort()


def test_without_its_journal_it_remembers_what_is_durable(volume):
    again, known = killed_midway(volume)
    with again:
        journal_of(again).unlink()
        landing = Landing(again, image(), None, entry())
        assert copied(landing) <= known
        assert landing.n_waiting == N_IMAGE - len(copied(landing))
        landing.abort()


def test_a_journal_is_believed_where_the_blocks_agree(volume):
    """Blocks that the journal names and the disks do not have, as after a power cut, are wanted again."""
    again, known = killed_midway(volume)
    with again:
        stored = {vbn for image_ in again.local.incoming.images() for vbn in _landed_vbns(image_)}
        doubtful = sorted(known - stored)
        assert doubtful
        lost = doubtful[len(doubtful) // 2]
        overwrite(again, lost)
        landing = Landing(again, image(), None, entry())
        assert lost not in copied(landing)
        assert len(known - copied(landing)) == 1
        landing.abort()


def _landed_vbns(image_) -> list[int]:
    return [int(n) for leaf, words in leaves_of(image_.landed) for n in numbers_in(words, leaf * LEAF_BLOCKS)]


def overwrite(volume: Volume, place: int) -> None:
    """Put other bytes at a place, past everything that would notice."""
    disks, dbns = volume.geometry.to_disk(np.array([place]))
    with Path(volume.array.disks[int(disks[0])].path).open("r+b") as file:
        file.seek((int(dbns[0]) + HEAD_BLOCKS) * BLOCK)
        file.write(b"\xee" * BLOCK)


def slots(n: int, group: int = 0, dbn_start: int = 256) -> LandedSlots:
    written = np.zeros((2, 256), np.bool_)
    written.reshape(-1)[: 3 * n : 3] = True
    return LandedSlots(group, dbn_start, written, np.arange(n, dtype=np.uint32) + 7, is_whole=False)


def test_a_journal_reads_back_what_was_appended(tmp_path):
    journal = LandingJournal(tmp_path, b"L" * 16)
    journal.restart([slots(3)])
    journal.append(slots(100, dbn_start=512))
    journal.close()
    found = list(read_journal(tmp_path, b"L" * 16))
    for one, other in itertools.zip_longest(found, [slots(3), slots(100, dbn_start=512)]):
        assert (one.group, one.dbn_start, one.checks.tolist()) == (other.group, other.dbn_start, other.checks.tolist())
        assert (one.written == other.written).all()
    assert list(read_journal(tmp_path, b"M" * 16)) == []


def test_a_journal_torn_or_flipped_anywhere_ends_there(tmp_path, rng):
    journal = LandingJournal(tmp_path, b"L" * 16)
    journal.restart([slots(n) for n in (1, 5, 20)])
    journal.close()
    raw = journal.path.read_bytes()
    for length in range(0, len(raw), 3):
        journal.path.write_bytes(raw[:length])
        assert len(list(read_journal(tmp_path, b"L" * 16))) < 3
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << int(rng.integers(8))
        journal.path.write_bytes(bytes(bad))
        found = list(read_journal(tmp_path, b"L" * 16))
        assert len(found) < 3 or at in range(12, 16)  # padding of the head
        for one, other in zip(found, [slots(n) for n in (1, 5, 20)], strict=False):
            assert one.checks.tolist() == other.checks.tolist()


def test_a_journal_of_another_geometry_is_not_believed(volume):
    landed = LandedBlocks(volume, entry(), {}, Landing(volume, image(10)).placemap, None)
    landed._journal.restart([slots(3, group=7), slots(3, dbn_start=1 << 40)])
    landed.close()
    assert list(landed._journaled()) == []
    landed.forget()


def test_journals_of_receives_that_ended_are_removed_by_the_next_writer(volume):
    """A kill between the end of a receive and the removal of its journal."""
    again, _ = killed_midway(volume)
    orphans = [again.path / f"incoming-{'ab' * 16}.journal", again.path / f"incoming-{'cd' * 16}.new"]
    for path in orphans:
        path.write_bytes(b"left")
    (again.path / "incoming-notes").write_bytes(b"mine")
    again.close()
    Volume.open(again.path).close()
    assert [path.exists() for path in orphans] == [False, False]
    assert (journal_of(again).exists(), (again.path / "incoming-notes").exists()) == (True, True)
