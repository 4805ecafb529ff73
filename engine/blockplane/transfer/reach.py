"""What of an image can be read from the streams that are at hand, and what is in parts on media that are not."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from blockplane.image.image import Image
from blockplane.model.errors import StreamMismatchError
from blockplane.planes import Plane
from blockplane.stream.keyfile import Keys
from blockplane.stream.partset import PartSet
from blockplane.stream.source import StreamName, open_stream


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the blocks of an image are.

    by_stream : how many are read from each stream, in the order in which they apply, newest first. elsewhere : for what
    is in a part that is not there, its number in words and how many. in_none : how many are in no stream of the chain.
    reachable : the VBNs that can be read.
    """

    by_stream: dict[str, int]
    elsewhere: dict[str, int]
    in_none: int
    reachable: Plane


def reach(image: Image, *paths: StreamName, key: Keys = None) -> Reach:
    """Work out from planes alone what of an image some streams hold.

    Parameters
    ----------
    paths : streams of the chain that brings the image's top, in any order, or a folder; parts of it may be missing.

    Raises
    ------
    StreamMismatchError : they do not bring the top.

    Notes
    -----
    Reads maps and indexes, and no block.
    """
    by_stream: dict[str, int] = {}
    elsewhere: dict[str, int] = {}
    left, reachable = image.plane, Plane.empty(image.plane.n_blocks)
    with closing(open_stream(*paths, needs_full=False, key=key, chooses=False)) as opened:
        top = next((r for r in opened.snapshots if image.top is not None and r.id == image.top.id), None)
        if top is None or image.top is None or top.space_id != image.top.space_id:
            names = ", ".join(record.name for record in opened.snapshots[-4:])
            raise StreamMismatchError(f"the streams do not bring the top of {image}", f"they bring {names}")
        for file in opened.at(top).path:  # of a block that several have, the newest one's is meant
            mine = left & file.map.image
            left = left - mine
            for part in file.parts:
                found = mine & part.map.following
                by_stream[part.path] = len(found)
                reachable, mine = reachable | found, mine - found
            if isinstance(file, PartSet) and mine:
                elsewhere[f"{file.missing_parts()} of {file.map.top.name}"] = len(mine)
    return Reach(by_stream, elsewhere, len(left), reachable)
