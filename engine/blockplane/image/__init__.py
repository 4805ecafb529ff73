"""Storage images: sets of blocks chosen by an expression, their order, and the gather from all disks at once."""

from blockplane.image.blockdiff import BlockDifference, block_difference
from blockplane.image.division import divided, of_snapshots
from blockplane.image.expression import parse
from blockplane.image.freeing import Freeing, freeing
from blockplane.image.image import Image, build, freed, freed_blocks
from blockplane.image.plan import Backup, plan_levels
from blockplane.image.planefiles import PlaneFile
from blockplane.image.saved import SavedImage

__all__ = [
    "Backup",
    "BlockDifference",
    "Freeing",
    "Image",
    "PlaneFile",
    "SavedImage",
    "block_difference",
    "build",
    "divided",
    "freed",
    "freed_blocks",
    "freeing",
    "of_snapshots",
    "parse",
    "plan_levels",
]
