"""Volumes on disks in memory, and what tests read off them."""

from rig.listing import data_ranges, describe
from rig.memory import Shape, make_volume, reopen
from rig.sets import freed_by, pairs, places, used_places

__all__ = [
    "Shape",
    "data_ranges",
    "describe",
    "freed_by",
    "make_volume",
    "pairs",
    "places",
    "reopen",
    "used_places",
]
