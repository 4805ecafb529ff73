"""What a stream claims to bring, and what of it came."""

from __future__ import annotations

import numpy as np

from blockplane.image.extents import numbers_in
from blockplane.model.errors import StreamDamagedError
from blockplane.planes import Plane
from blockplane.stream.codec import FrameHead
from blockplane.volume.waiting import Waiting


def extents_list(plane: Plane) -> tuple[tuple[int, int], ...]:
    """Return a plane's extents as plain numbers."""
    return tuple((int(start), int(stop)) for start, stop in plane.extents().tolist())


class Claims:
    """Holds what a stream brings against what its plane claims."""

    def __init__(self, image: Plane) -> None:
        self._waiting = Waiting(image)
        self.n_blocks = 0

    def take(self, *heads: FrameHead) -> None:
        """Note the blocks of frames.

        Raises
        ------
        StreamDamagedError : one of them is not in the image plane, or came before.
        """
        extents = [head.extents() for head in heads]
        bad = self._waiting.take(extents[0] if len(heads) == 1 else np.concatenate(extents))
        if bad >= 0:
            bringing = [head for head in heads if bad in numbers_in(head.extents())]
            raise StreamDamagedError(
                f"frame {bringing[-1].sequence} brings block {bad}, which is not in the stream's plane or came before"
            )
        self.n_blocks += sum(head.n_blocks for head in heads)

    def missing(self) -> Plane:
        """Return what of the plane did not come."""
        return self._waiting.left()

    def require_all(self) -> None:
        """Raise StreamDamagedError unless every block of the plane came."""
        if self._waiting.n_left:
            raise StreamDamagedError(f"the stream ends without {self._waiting.n_left} blocks that it claims")
