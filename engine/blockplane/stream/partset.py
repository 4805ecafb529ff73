"""The parts of one image, as one stream of a chain: what is in a part that is not there cannot be read now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blockplane.image.extents import numbers_in
from blockplane.model.addresses import Bytes, Checks
from blockplane.model.errors import StreamPartMissingError
from blockplane.planes import Plane, combine
from blockplane.stream.file import StreamFile
from blockplane.stream.index import Wanted
from blockplane.stream.reader import StreamMap


class PartSet:
    """Files that bring parts of the same image; they may overlap.

    Attributes
    ----------
    parts : the files. missing : the VBNs of the image that none of them brings.
    """

    def __init__(self, parts: Sequence[StreamFile]) -> None:
        self.parts = list(parts)
        self.names = [part.path for part in parts]
        self.path = " and ".join(self.names)
        first = self.parts[0].map
        there = combine([part.map.following for part in parts])
        self.map: StreamMap = replace(first, part=there)
        self.missing: Plane = first.image - there

    @property
    def is_sealed(self) -> bool:
        """Whether any is encrypted."""
        return any(part.is_sealed for part in self.parts)

    @property
    def n_held(self) -> int:
        """How many blocks the image has: those of parts that are missing too."""
        return self.map.header.image_blocks

    def holds(self, vbn: int) -> bool:
        """Tell whether the image has a block; reading one of a part that is missing says so."""
        return vbn in self.map.image

    def read(self, wanted: Wanted, out: Bytes, checks: Checks) -> Wanted:
        """Read what the parts hold of the wanted blocks; see `StreamFile.read`.

        Raises
        ------
        StreamPartMissingError : a block is in a part that is not there; an older stream's of its number is another.
        """
        if self.missing:
            numbers = numbers_in(wanted.extents)
            lacking = numbers[self.missing.contains_many(numbers)]
            if len(lacking):
                raise self.lacks(f"block {int(lacking[0])} of {self.map.top.name}")
        for part in self.parts:
            wanted = part.read(wanted, out, checks)
        return wanted

    def lacks(self, what: str) -> StreamPartMissingError:
        """Return the error for something that is in a part which is missing."""
        return StreamPartMissingError(
            f"{what} is in {self.missing_parts()} of its image, and there is only {self.path}",
            "name that stream too, once the medium that it is on can be reached",
        )

    def missing_parts(self) -> str:
        """Return the numbers of the parts that are missing, for a message."""
        n_parts = self.map.header.n_parts
        there = {part.map.header.part for part in self.parts}
        numbers = [str(i + 1) for i in range(n_parts) if i not in there]
        return f"part {' or '.join(numbers[:8])} of {n_parts}" if numbers else "another part"

    def place_of(self, vbn: int) -> str:
        """Return where a block of the parts lies, for a message."""
        return next((part.place_of(vbn) for part in self.parts if part.holds(vbn)), self.path)

    def ids(self) -> set[bytes]:
        """Return the ids of the snapshots that the image brings."""
        return self.parts[0].ids()

    def close(self) -> None:
        """Release the files."""
        for part in self.parts:
            part.close()


def joined(files: Sequence[StreamFile]) -> list[StreamFile | PartSet]:
    """Return files as members of a chain: those that bring parts of one image as one, in the place of the first."""
    found: dict[bytes, list[StreamFile]] = {}
    for i, file in enumerate(files):
        header = file.map.header
        found.setdefault(header.image_id if header.is_one_of_parts else bytes([0, *i.to_bytes(8)]), []).append(file)
    return [PartSet(parts) if parts[0].map.header.is_one_of_parts else parts[0] for parts in found.values()]
