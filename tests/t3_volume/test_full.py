"""A full volume: what fails leaves nothing behind, and counts stay true."""

from __future__ import annotations

import pytest

from blockplane.model import NoSpaceError
from rig import Shape
from rig.site import Site, fill_pattern


@pytest.fixture
def site():
    made = Site("full", [Shape(2, 1, 64, 384)])
    yield made
    made.check_everything()
    made.close()


def test_where_there_was_no_room_a_hole_stays_a_hole(site, monkeypatch):
    site.replace("/sparse", fill_pattern(5000, 1))
    site.truncate("/sparse", 40 * 4096)
    site.sync()

    claim, calls = site.volume.active.claim, []

    def no_room_at_first(n_blocks: int) -> None:
        calls.append(n_blocks)
        if len(calls) == 2:  # the leaf, after the node above it
            raise NoSpaceError("full", "")
        claim(n_blocks)

    monkeypatch.setattr(site.volume.active, "claim", no_room_at_first)
    site.write("/sparse", 20 * 4096, b"x" * 4096)
    assert site.fs.stat("/sparse").st_blocks == 3 * 8


def test_places_handed_out_are_always_filled(site):
    """The nodes above a long write claim their room before its places are taken."""
    n_blocks = site.volume.available_blocks
    site.replace("/big", fill_pattern(n_blocks * 4096, 3))
    assert site.n_full == 1
    site.sync()
    site.unlink("/big")


def test_an_inline_file_that_finds_no_room_to_grow_stays_inline(site, monkeypatch):
    """It had a tree then beside its inline bytes: what was written next went into one and was read from the other."""
    site.replace("/small", fill_pattern(143, 1))
    site.sync()
    claim, calls = site.volume.active.claim, []

    def no_room_at_first(n_blocks: int) -> None:
        calls.append(n_blocks)
        if len(calls) == 1:
            raise NoSpaceError("full", "")
        claim(n_blocks)

    monkeypatch.setattr(site.volume.active, "claim", no_room_at_first)
    site.write("/small", 37_864, fill_pattern(5096, 2))
    assert len(calls) > 1
    site.check_live()
