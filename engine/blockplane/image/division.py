"""Dividing an image into parts, each a plane of its own: by expressions, and the rest in equal shares."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from blockplane.image.expression import names, parse
from blockplane.image.image import Image, build
from blockplane.model.errors import UsageError
from blockplane.planes import Plane, combine, combine_count

Choice = Plane | str | None


def divided(image: Image, choices: Sequence[Choice]) -> list[Plane]:
    """Return the part planes of an image; they are disjoint, and together the image's plane.

    Parameters
    ----------
    choices : for each part a plane, or an expression over snapshots of the same storage: the part takes what of it the
        image has and no part before it took. None: it takes an equal share of what is left then, in runs of ascending
        VBNs.

    Raises
    ------
    UsageError : blocks are left, and no part takes the rest. ExpressionError and others : as `build`.
    """
    left, parts = image.plane, [Plane.empty(image.space_blocks)] * len(choices)
    for i, choice in enumerate(choices):
        if choice is not None:
            chosen = _plane_of(image, choice) if isinstance(choice, str) else choice
            parts[i] = combine([left], within=_over(chosen, image.space_blocks))
            left = left - parts[i]
    sharing = [i for i, choice in enumerate(choices) if choice is None]
    if left and not sharing:
        raise UsageError(f"{len(left)} blocks of {image} are in no part", "name one more part, which takes the rest")
    for i, share in zip(sharing, shares(left, len(sharing)), strict=True):
        parts[i] = share
    return parts


def _plane_of(image: Image, text: str) -> Plane:
    """Return what an expression holds; its snapshots need not be of one line: nothing is sent of them."""
    known = {record.name for record in image.store.records()}
    named = [name.text for name in names(parse(text)) if name.text in known]
    return build(image.store, text, with_=named).plane


def shares(plane: Plane, n_shares: int) -> list[Plane]:
    """Return a plane in shares of equal size, but for one block, each a run of its members."""
    n_blocks = len(plane)
    ends = [n_blocks * (i + 1) // n_shares for i in range(n_shares)]
    borders = [0, *(int(plane.select(end - 1)) + 1 if end else 0 for end in ends)]
    return [
        combine([plane], within=Plane.from_extents([(low, high)] if low < high else [], plane.n_blocks))
        for low, high in itertools.pairwise(borders)
    ]


def of_snapshots(image: Image, plane: Plane) -> dict[str, int]:
    """Return how many blocks of each snapshot that arrives are in a plane, older first: what needs them to be read."""
    states = {record.name: build(image.store, record.name).plane for record in reversed(image.arriving)}
    return {name: combine_count([plane], within=_over(state, plane.n_blocks)) for name, state in states.items()}


def _over(plane: Plane, n_blocks: int) -> Plane:
    """Return a plane over another number of VBNs: snapshots taken before the volume grew have fewer."""
    if plane.n_blocks == n_blocks:
        return plane
    found = Plane.empty(n_blocks)
    for extents in plane.iter_extents(1 << 16, 0, min(plane.n_blocks, n_blocks)):
        found |= Plane.from_extents(extents, n_blocks)
    return found
