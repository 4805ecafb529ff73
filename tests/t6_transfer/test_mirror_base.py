"""What the next update of a mirror builds on stays, whatever is made in a mirror that may be written to."""

from __future__ import annotations

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError
from blockplane.transfer import mirrors
from blockplane.transfer.replacing import LocalChanges
from rig.mirrorworld import World, names, read, write


def written_to(world: World) -> tuple[bp.Volume, str]:
    """Return a mirror with a snapshot of its own on top of what was brought, and the name of what was."""
    copy = world.add(local_changes=LocalChanges.KEEP)
    write(world.source, "/a", b"old")
    world.outcomes()
    (brought,) = names(copy)
    write(copy, "/mine", b"mine")
    copy.snapshot("mine")
    return copy, brought


def require_base(copy: bp.Volume, name: str) -> None:
    for forbidden in (lambda: copy.delete_snapshot(name), lambda: copy.shadow_snapshot(name)):
        with pytest.raises(RefusedError, match="is the last complete state of a mirror"):
            forbidden()
    assert copy.mirror_of.last_complete == name


def test_what_was_brought_is_the_base_and_not_what_was_made_of_it(world):
    copy, brought = written_to(world)
    require_base(copy, brought)
    copy.delete_snapshot("mine")
    require_base(copy, brought)
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]
    assert (read(copy, "/a"), copy.mirror_of.last_complete) == (
        b"new",
        world.source.destinations.list()[0].acknowledged,
    )


def test_it_is_known_after_reopening_and_through_a_rehearsal(world):
    copy, brought = written_to(world)
    place = str(copy.path)
    world.opened.pop(place).close()
    copy = world.opened[place] = bp.Volume.open(place)
    require_base(copy, brought)
    mirrors.break_mirror(copy, rehearse=True)
    write(copy, "/rehearsed", b"much")
    copy.snapshot("rehearsed")
    require_base(copy, brought)
    copy.delete_snapshot("rehearsed")
    mirrors.end_rehearsal(copy)
    require_base(copy, brought)
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]


def test_one_that_was_broken_off_needs_none_until_it_is_joined_again(world):
    copy, brought = written_to(world)
    mirrors.break_mirror(copy)
    assert copy.mirror_of.last_complete == brought
    write(copy, "/mine", b"more")
    world.resync(copy, "destination")
    top = copy.mirror_of.last_complete
    assert top == world.source.destinations.list()[0].acknowledged != brought
    write(copy, "/mine", b"most")
    copy.snapshot("most")
    require_base(copy, top)
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]


def test_where_it_is_not_noted_the_newest_of_the_line_is_taken(world):
    """As of mirrors whose last update an earlier release brought."""
    copy, _ = written_to(world)
    with copy.lock:
        copy.local.root.brought_id = bytes(16)
        copy.local.is_dirty = True
        copy.commit()
    require_base(copy, "mine")
