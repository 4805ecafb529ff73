"""Sets of block numbers, one bit per block or less, and their algebra."""

from blockplane.planes.algebra import combine, combine_count
from blockplane.planes.plane import Form, Plane, PlaneBuilder
from blockplane.planes.portable import PlaneFormatError

__all__ = ["Form", "Plane", "PlaneBuilder", "PlaneFormatError", "combine", "combine_count"]
