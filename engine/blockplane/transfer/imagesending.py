"""An image of a volume, as something to send: all of it, or a part."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Final

import numpy as np

from blockplane.image.expected import ExpectedChecks
from blockplane.image.feeds import Feeds
from blockplane.image.gather import RING_BYTES, Gathered, Ring, gathering
from blockplane.image.image import Image
from blockplane.image.order import DISK, VERSION, WINDOW_BLOCKS, Window, windows
from blockplane.image.store import require_alive
from blockplane.model.addresses import BLOCK_BYTES, Checks, Numbers
from blockplane.model.errors import UsageError
from blockplane.model.release import WRITER
from blockplane.planes import Plane
from blockplane.stream.codec import PART_FEATURES, Features, Header, Locations, Role
from blockplane.volume.codec import KIND_REGULAR, NO_ID, Branch, SnapshotRecord

EXPLICIT: Final = "explicit"


class ImageSending:
    """A volume's image as a Sendable.

    feeds : where others who send the same image now, all of it, share its reading; None: nobody does.
    frame_blocks : the most that a data frame has; None: as many as it may.

    Attributes
    ----------
    chosen : the VBNs of the part of the image that is sent; None: all of it. part : those of them that are to be read;
    None: all. n_skipped : windows of them that are passed over.
    lender : the snapshot of the destination that has the others.
    """

    def __init__(
        self,
        image: Image,
        order: str = DISK,
        window_blocks: int = WINDOW_BLOCKS,
        locations: str = EXPLICIT,
        ring_bytes: int = RING_BYTES,
        feeds: Feeds | None = None,
        frame_blocks: int | None = None,
    ) -> None:
        self.image, self._order, self._window_blocks, self._ring_bytes = image, order, window_blocks, ring_bytes
        self._feeds, self.frame_blocks = feeds, frame_blocks
        self._top = image.require_sendable()
        self._locations = _locations(locations)
        if self._locations is Locations.IMPLICIT and order == DISK and not image.layout.is_home:
            raise UsageError(
                "blocks of the image lie elsewhere than at their numbers: no reader can work out their disk order",
                "say --order tape, or --locations explicit",
            )
        #: guards what looks checks up: who is left behind by the others reads beside the gather that it began
        self._looking_up = threading.Lock()
        self._checks: ExpectedChecks | None = None
        self.part: Plane | None = None
        self.chosen: Plane | None = None
        self._number, self._n_parts = 0, 1
        self.n_skipped = 0
        self.lender: SnapshotRecord | None = None

    def take_part(self, chosen: Plane, number: int, n_parts: int) -> None:
        """Send of the image only some blocks, as the part of a number, from 0, of so many."""
        self.chosen, self._number, self._n_parts = chosen, number, n_parts

    @property
    def plane(self) -> Plane:
        """See Sendable."""
        return self.image.plane

    @property
    def dropped(self) -> Plane:
        """See Sendable."""
        return self.image.dropped

    @property
    def planning_blocks(self) -> int:
        """Blocks read beside the image's own."""
        return self.image.n_planning_reads + (self._checks.n_reads if self._checks is not None else 0)

    def header(self) -> Header:
        """See Sendable."""
        image = self.image
        return Header(
            WRITER, os.urandom(16), NO_ID, self._top.space_id, self._top.id, image.space_blocks,
            len(image.plane), self._top.root, image.base.id if image.base is not None else NO_ID,
            order=self._order, order_version=VERSION, window_blocks=self._window_blocks,
            groups=image.store.geometry.groups, after_blocks=image.after_blocks, locations=self._locations,
            part=self._number, n_parts=self._n_parts,
            features=image.store.features | (PART_FEATURES if self.chosen is not None else Features()),
            part_blocks=len(self.chosen) if self.chosen is not None else 0,
        )  # fmt: skip

    def snapshots(self) -> Sequence[tuple[SnapshotRecord, Role]]:
        """See Sendable."""
        image = self.image
        # a shadow's bits are this volume's affair: where the base is, it is a regular snapshot
        base = [(replace(image.base, kind=KIND_REGULAR), Role.BASE)] if image.base is not None else []
        arriving = [(record, Role.ARRIVES) for record in image.arriving if record.id != self._top.id]
        lender = [(self.lender, Role.LENDER)] if self.lender is not None else []
        left_out = [record for record in image.left_out if self.lender is None or record.id != self.lender.id]
        return [(self._top, Role.TOP), *arriving, *base, *lender, *((record, Role.LEFT_OUT) for record in left_out)]

    def branches(self) -> Sequence[Branch]:
        """See Sendable."""
        return self.image.top_state.branches()

    @contextmanager
    def windows(self, *, read: bool = True) -> Iterator[Iterator[Gathered]]:
        """See Sendable."""
        image, store = self.image, self.image.store
        if not read:
            yield self._blank(self._planned())
            return
        with ExitStack() as stack:
            for record in image.records():
                stack.enter_context(store.pin(record.id))
            require_alive(store, image.records())
            # only now: what is pinned moves no more
            if self._feeds is None or self.part is not None or self.n_skipped:
                yield stack.enter_context(self._reading()).whole_windows()
                return
            form = self._order, self._window_blocks, self._ring_bytes, store.geometry.groups
            yield stack.enter_context(self._feeds.windows(image, form, self._reading))

    def _reading(self, first: int = 0) -> AbstractContextManager[Ring]:
        """Read the windows from one on."""
        planned = islice(self._planned(), first, None)
        return gathering(planned, self._checks_of, self.image.store.array, self._window_blocks, self._ring_bytes)

    def _planned(self) -> Iterator[Window]:
        plane, layout = self.image.plane, self.image.layout
        if self.part is not None:
            plane, layout = self.part, layout.within(self.part)
        every = windows(layout, plane, self.image.store.geometry, self._order, self._window_blocks)
        return islice(every, self.n_skipped, None)

    def _blank(self, planned: Iterator[Window]) -> Iterator[Gathered]:
        blank = np.zeros(self._window_blocks * BLOCK_BYTES, np.uint8)
        checks = np.zeros(self._window_blocks, np.uint32)
        for window in planned:
            yield Gathered(window.extents, checks[: window.n_blocks], blank[: window.n_blocks * BLOCK_BYTES])

    def _checks_of(self, vbns: Numbers) -> Checks:
        with self._looking_up:
            if self._checks is None:
                self._checks = ExpectedChecks(self.image.owners, self.image.base_state)
            return self._checks.of(vbns)


def _locations(text: str) -> Locations:
    try:
        return Locations[text.upper()]
    except KeyError:
        raise UsageError(f"there are no locations {text!r}", "take explicit or implicit") from None
