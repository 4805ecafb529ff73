"""Room for the plane of a stored image: a leaf for each part of the numbering in which the image has a block."""

from __future__ import annotations

import pytest

from blockplane.image import saved
from blockplane.model import NoSpaceError
from blockplane.volume.check import check
from faults.inline import inline_workers
from faults.world import FileClient, geometry_of, make_volume

N_GROUPS = 30


def test_an_image_whose_blocks_lie_far_apart_needs_a_leaf_for_each():
    """Thirty RAID groups of 128 blocks, each with numbers of its own leaf: few blocks, and thirty leaves."""
    with inline_workers():
        volume = make_volume(geometry_of(1, 0, 128, n_groups=N_GROUPS), reserve_blocks=512)
        client, number = FileClient(volume), 1
        while volume.available_blocks > 40:
            client.write(number, 0, range(number * 100, number * 100 + min(volume.available_blocks - 30, 60)))
            volume.sync()
            number += 1
        volume.snapshot("all")
        assert 16 < volume.available_blocks < N_GROUPS + 16
        before = volume.info.local
        with pytest.raises(NoSpaceError, match="no room for the plane of far"):
            saved.save(volume, "far", "all")
        assert volume.info.local == before
        client.remove(1)
        volume.delete_snapshot("all")
        for _ in range(3):
            volume.commit(force=True)
        volume.snapshot("all")
        saved.save(volume, "far", "all")
        assert [image.name for image in saved.saved(volume)] == ["far"]
        assert check(volume).problems == []
        volume.abandon()
