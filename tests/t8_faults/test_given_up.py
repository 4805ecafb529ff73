"""A power cut while an interrupted receive is given up, or taken over: what the volume says has landed is there."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from blockplane.disks.assembly import assemble_disks
from blockplane.model import BLOCK_BYTES
from blockplane.model.checks import fresh_checks
from blockplane.planes import Plane
from blockplane.transfer.resume import drop_incoming
from blockplane.volume import Volume, points
from blockplane.volume.incoming import IncomingEntry, leaves_of
from blockplane.volume.landed import LandedBlocks, vbns_at
from blockplane.volume.landing import Landing
from faults.inline import inline_workers
from faults.world import geometry_of, make_volume, revived

SPACE = 1024
#: Most of 576 places: a consistency point has little room beside them.
N_IMAGE = 479


class CutError(Exception):
    """The power is gone."""


@pytest.fixture
def volume(tmp_path) -> Iterator[Volume]:
    with inline_workers():
        yield make_volume(geometry_of(3, 1, 192), reserve_blocks=48, place=tmp_path)


def block_of(vbn: int) -> np.ndarray:
    return np.full(BLOCK_BYTES // 8, vbn * 7919 + 1, np.uint64).view(np.uint8)


def begin(volume: Volume, n_image: int = N_IMAGE) -> Landing:
    image = Plane.from_extents([[1, 1 + n_image]], SPACE)
    entry = IncomingEntry(b"L" * 16, b"I" * 16, b"S" * 16, b"T" * 16, bytes(16), n_image, 0, SPACE, 0, "june1")
    return Landing(volume, image, None, entry)


def interrupted(volume: Volume, n_image: int = N_IMAGE) -> None:
    """A receive of which everything came but the end."""
    landing = begin(volume, n_image)
    for vbn in range(1, 1 + n_image):
        (buffer,) = landing.buffers(np.array([[vbn, vbn + 1]]), fresh_checks(block_of(vbn), np.array([vbn]))) or ()
        buffer[:] = block_of(vbn)
        landing.landed()
    assert landing.suspend() == n_image


def reopened(volume: Volume) -> Volume:
    path = volume.path
    volume.abandon()
    return Volume.from_assembly(path, assemble_disks(revived(volume.array.disks)), writable=True)


def take_over(volume: Volume) -> None:
    """Begin the receive of a newer image that has some of the blocks, and some more."""
    image = Plane.from_extents([[100, 160], [520, 524]], SPACE)
    entry = IncomingEntry(b"M" * 16, b"J" * 16, b"S" * 16, b"U" * 16, bytes(16), len(image), 0, SPACE, 0, "june2")
    Landing(volume, image, None, entry, Plane.from_extents([[520, 524]], SPACE), None, b"I" * 16).abandon()


DOORS = {
    "dropped": drop_incoming,
    "aborted": lambda volume: begin(volume, volume.local.incoming.images()[0].entry.n_image).abort(),
    "taken over": take_over,
}


def act_until_cut(volume: Volume, door: str) -> None:
    """Everything is with the disks but the root record of the consistency point that ends the receive."""
    real = points.write_record

    def write_record(array, record) -> None:
        if record.local != volume.info.local and volume.local.incoming.find(b"L" * 16) is None:
            raise CutError
        real(array, record)

    with mock.patch.object(points, "write_record", write_record), pytest.raises(CutError):
        DOORS[door](volume)


def landed_blocks(volume: Volume) -> dict[int, bool]:
    """The VBNs that the volume says have landed, and whether their bytes are there."""
    (image,) = volume.local.incoming.images()
    placemap = image.placemap()
    vbns = vbns_at(dict(leaves_of(image.landed)), placemap, SPACE)
    numbers = np.concatenate([np.arange(start, stop) for start, stop in vbns.extents().tolist()])
    found, out = {}, np.empty(BLOCK_BYTES, np.uint8)
    for vbn, place in zip(numbers.tolist(), placemap.to_places(numbers).tolist(), strict=True):
        volume.array.read_places(np.array([[place, place + 1]]), out)
        found[vbn] = bool((out == block_of(vbn)).all())
    return found


@pytest.mark.parametrize("n_points", [0, 2])
@pytest.mark.parametrize("n_image", [450, 500])
@pytest.mark.parametrize("door", DOORS)
def test_what_landed_is_there_after_a_cut(volume, door, n_image, n_points):
    """Its places were given to the very consistency point that was to give them up."""
    interrupted(volume, n_image)
    for _ in range(n_points):
        volume.commit(force=True)
    volume = reopened(volume)
    act_until_cut(volume, door)
    volume = reopened(volume)
    found = landed_blocks(volume)
    assert len(found) == n_image
    assert [vbn for vbn, is_there in found.items() if not is_there] == []
    volume.abandon()


@pytest.mark.parametrize("door", ["dropped", "aborted"])
def test_the_places_are_free_again(volume, door):
    """At once, and as those of the blocks' own numbers: who receives the image anew needs next to no place map."""
    n_available = volume.available_blocks
    interrupted(volume)
    assert volume.available_blocks < n_available - 470
    DOORS[door](volume)
    assert volume.available_blocks >= n_available - 8
    landing = begin(volume)
    assert len(landing.placemap.vbns()) < 32
    landing.abort()
    assert volume.available_blocks >= n_available - 8
    volume.close()


def test_what_is_not_taken_over_is_free_two_points_later(volume):
    n_available = volume.available_blocks
    interrupted(volume)
    take_over(volume)  # in two points
    (image,) = volume.local.incoming.images()
    assert image.entry.image_id == b"J" * 16
    assert volume.available_blocks >= n_available - image.entry.n_image - 16
    landing = Landing(volume, Plane.from_extents([[64, 450]], SPACE))
    assert len(landing.placemap.vbns()) < 60 + 32
    landing.abort()
    volume.close()


def test_the_count_of_what_waits_is_kept_across_opening(volume):
    """A cut behind the first of the two points: what the CP before the last has is neither free nor counted so."""
    interrupted(volume)
    n_available = volume.available_blocks
    (image,) = volume.local.incoming.images()
    with volume.lock:
        LandedBlocks(volume, image.entry, {}, image.placemap(), None).remove()
        volume.commit()
    volume = reopened(volume)
    assert volume.local.incoming.images() == []
    assert volume.available_blocks < n_available + 16
    assert all(volume.space.is_busy(np.arange(100, 400)))
    volume.commit(force=True)
    assert volume.available_blocks > n_available + 440
    assert volume.space.is_busy(np.arange(100, 400)).sum() < 32
    volume.close()
