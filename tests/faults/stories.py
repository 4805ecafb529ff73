"""Small workloads whose every crash is explored."""

from __future__ import annotations

import contextlib
import itertools
import random

import numpy as np

from blockplane.disks.geometry import Geometry
from blockplane.image.image import build
from blockplane.image.saved import delete, save
from blockplane.model import BLOCK_BYTES, ProgressEvent
from blockplane.planes import Plane, combine
from blockplane.transfer import copy, resume_token
from blockplane.transfer.send import ImageSending
from blockplane.volume import PressurePolicy, Volume
from blockplane.volume.codec import NUMBER_MASK
from blockplane.volume.incoming import IncomingEntry
from blockplane.volume.landed import LandedBlocks
from blockplane.volume.landing import Landing
from faults.explore import Models, Watch
from faults.world import FileClient, fill, geometry_of, image_plane, make_volume, root_of

#: Geometries in turn: 0 is the one of the CI run.
SHAPES = (
    geometry_of(2, 1, 128),
    geometry_of(3, 2, 64),
    geometry_of(1, 0, 256),
    geometry_of(4, 1, 64),
    geometry_of(2, 1, 128, chunk_blocks=128),
    geometry_of(2, 2, 64, n_groups=2),
    geometry_of(1, 1, 128, n_groups=2),
)


#: For a story whose local tree holds more.
ROOMY = (
    geometry_of(2, 1, 128),
    geometry_of(3, 2, 128),
    geometry_of(1, 0, 384),
    geometry_of(4, 1, 128),
    geometry_of(2, 1, 192, chunk_blocks=192),
    geometry_of(2, 2, 128, n_groups=2),
)


class _Story:
    """A story with a variation: shape of the disks, and random choices."""

    name = ""

    def __init__(self, variation: int = 0) -> None:
        self.variation = variation
        self.geometry: Geometry = SHAPES[variation % len(SHAPES)]

    def rng(self) -> random.Random:
        return random.Random(self.variation)

    def prepare(self, volume: Volume, client: FileClient) -> None:
        client.write(1, 0, range(100, 120))
        client.edit(2, 3, 7)
        volume.sync()


class FilesStory(_Story):
    """Writes, overwrites, holes, removals; each consistency point after the other frees what is used again."""

    name = "files"

    def act(self, volume: Volume, client: FileClient) -> None:
        rng = self.rng()
        client.write(1, rng.randrange(12), [200, 201, 202])
        client.edit(3, rng.randrange(100, 100_000), 8)
        volume.sync()
        client.punch(1, 5, 9)
        client.write(4, 0, range(300, 330))
        volume.sync()
        client.remove(4)
        client.edit(2, 3, 9)
        volume.sync()
        client.write(5, 2, range(400, 420))
        volume.sync()


class SnapshotStory(_Story):
    """Snapshots made, renamed and deleted between writes."""

    name = "snapshots"

    def act(self, volume: Volume, client: FileClient) -> None:
        rng = self.rng()
        volume.snapshot("a")
        client.write(1, rng.randrange(12), [200, 201, 202])
        volume.snapshot("b")
        client.punch(1, 0, 4)
        volume.rename_snapshot("a", "first")
        volume.delete_snapshot("b")
        client.edit(2, 3, 9)
        volume.sync()
        volume.delete_snapshot("first")


class RollbackStory(_Story):
    """Back to an older snapshot, the later ones kept; deletions where history is no line."""

    name = "rollback"

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        volume.snapshot("a")
        client.write(1, 2, [200, 201])
        volume.snapshot("b")

    def act(self, volume: Volume, client: FileClient) -> None:
        client.edit(1, 15, 9)
        volume.rollback("a", keep_as="kept")
        client.write(1, 4, [300, 301])
        volume.snapshot("c")
        volume.delete_snapshot("a")
        volume.rollback("b", drop_changes=True)
        client.edit(2, 3, 5)
        volume.delete_snapshot("c")


class ShadowStory(_Story):
    """Snapshots become shadows, their blocks are reused, they go."""

    name = "shadows"

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        volume.snapshot("a")
        client.write(1, 2, range(200, 210))
        volume.snapshot("b")
        client.write(1, 0, range(300, 312))
        volume.sync()

    def act(self, volume: Volume, client: FileClient) -> None:
        rng = self.rng()
        volume.shadow_snapshot("a")
        for turn in range(4):
            client.write(4, rng.randrange(4), range(500 + 30 * turn, 512 + 30 * turn))
            volume.sync()
        volume.shadow_snapshot("b")
        client.write(5, 0, range(700, 710))
        volume.sync()
        client.remove(4)
        volume.sync()
        volume.delete_snapshot("a")
        client.write(6, 0, range(800, 812))
        volume.sync()


class PressureStory(_Story):
    """Points that leave too little, and what lacks room, make shadows by policy; one is held at first."""

    name = "pressure"

    def __init__(self, variation: int = 0) -> None:
        super().__init__(variation)
        self.geometry = ROOMY[variation % len(ROOMY)]

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        for name in "abcd":
            client.write(1, 0, range(1000 * ord(name), 1000 * ord(name) + 16))
            volume.snapshot(name, mark=name == "b")
        volume.hold_snapshot("b", "somebody")

    def act(self, volume: Volume, client: FileClient) -> None:
        rng = self.rng()
        volume.set_pressure(PressurePolicy((volume.coming_blocks - 10) * BLOCK_BYTES, 1 + self.variation % 2))
        for turn in range(3):
            client.write(4, 12 * turn, range(500 + 30 * turn, 508 + 30 * turn + rng.randrange(4)))
            volume.sync()
        volume.release_snapshot("b", "somebody")
        volume.make_room(volume.coming_blocks + 4)
        client.remove(4)
        volume.sync()
        volume.set_pressure(None)
        client.write(5, 0, range(800, 812))
        volume.sync()


class MarkStory(_Story):
    """Positions begin and go between writes, deletions, a shadow, rollbacks; destinations move; images are stored."""

    name = "marks"

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        volume.snapshot("a", mark=True)
        client.write(1, 2, range(200, 210))
        volume.sync()

    def act(self, volume: Volume, client: FileClient) -> None:
        rng = self.rng()
        volume.snapshot("b", mark=True)
        client.write(4, rng.randrange(4), range(500, 512))
        volume.destinations.begin("far", "b")
        client.punch(1, 0, 6)
        volume.destinations.succeed("far")
        volume.snapshot("c")
        client.remove(4)
        volume.destinations.begin("far", "c")
        volume.shadow_snapshot("a")
        volume.rollback("b", drop_changes=True)
        client.write(5, 0, range(700, 710))
        volume.destinations.fail("far")
        volume.mark("c")
        save(volume, "kept", "c & alloc(b)")
        volume.unmark("a")
        client.edit(2, 3, 9)
        delete(volume, "kept")
        volume.delete_snapshot("a")


class _LandingStory(_Story):
    """A source with snapshots 1 and 2; a destination that keeps a snapshot of its own."""

    def __init__(self, variation: int = 0) -> None:
        super().__init__(variation)
        self.source_models: Models = {}
        self.source = make_volume(geometry_of(2, 0, 64))
        client = self.writer = Watch(self.source_models).start(self.source)
        client.write(1, 0, range(500, 524))
        client.edit(2, 0, 9)
        self.source.snapshot("s1")
        client.write(1, 3, [600, 601, 602])
        client.punch(1, 8, 12)
        client.edit(3, 1, 5)
        self.source.snapshot("s2")

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        client.models.update(self.source_models)
        volume.snapshot("own")
        client.edit(2, 1, 8)
        volume.sync()

    def land(self, volume: Volume, client: FileClient, top: str, base: str | None) -> None:
        plane = image_plane(self.source, top, base)
        landing = volume.landing(plane, volume.get_snapshot(base) if base else None)
        fill(landing, self.source, top, plane, reverse=bool(self.variation & 1), piece=5 + self.variation % 7)
        landing.commit([self.source.get_snapshot(top).record])


class FullStory(_LandingStory):
    """A full image replaces the live state beside a snapshot that is kept; then the replica is written to."""

    name = "full"

    def act(self, volume: Volume, client: FileClient) -> None:
        self.land(volume, client, "s2", None)
        client.edit(1, 0, 4)
        volume.sync()
        volume.delete_snapshot("own")


class IncrementStory(_LandingStory):
    """An increment onto a base whose blocks lie elsewhere, snapshots made and deleted while it lands."""

    name = "increment"

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        self.land(volume, client, "s1", None)

    def act(self, volume: Volume, client: FileClient) -> None:
        plane = image_plane(self.source, "s2", "s1")
        landing = volume.landing(plane, volume.get_snapshot("s1"))
        volume.snapshot("meanwhile")
        volume.delete_snapshot("own")
        fill(landing, self.source, "s2", plane, reverse=True, piece=5)
        landing.commit([self.source.get_snapshot("s2").record])
        volume.delete_snapshot("s1")


class InterruptedStory(_LandingStory):
    """An increment is interrupted and goes on, the volume is used in between; another image is given up."""

    name = "interrupted"

    def __init__(self, variation: int = 0) -> None:
        super().__init__(variation)
        self.geometry = ROOMY[variation % len(ROOMY)]

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        self.land(volume, client, "s1", None)

    def begin(self, volume: Volume, base: str | None) -> tuple[Landing, Plane]:
        plane, record = image_plane(self.source, "s2", base), self.source.get_snapshot("s2").record
        entry = IncomingEntry(
            bytes([len(volume.local.incoming.images())] * 16), bytes([base is None]) * 16, record.space_id, record.id,
            volume.get_snapshot(base).record.id if base else bytes(16), len(plane), 0, plane.n_blocks, 0, "s2",
        )  # fmt: skip
        return Landing(volume, plane, volume.get_snapshot(base).entry if base else None, entry), plane

    def act(self, volume: Volume, client: FileClient) -> None:
        landing, plane = self.begin(volume, "s1")
        fill(landing, self.source, "s2", plane, piece=3, most=3)
        landing.suspend()
        volume.delete_snapshot("own")
        landing, plane = self.begin(volume, None)  # most of it is here already, and is compared
        fill(landing, self.source, "s2", plane, piece=3)
        landing.suspend()
        drop_incoming_of(volume, bytes([1]) * 16)
        landing, plane = self.begin(volume, "s1")
        fill(landing, self.source, "s2", plane, reverse=True, piece=5)
        landing.commit([self.source.get_snapshot("s2").record])
        client.edit(1, 0, 4)
        volume.sync()


class CarriedStory(_LandingStory):
    """What came of an interrupted increment is taken over by the receive of a newer one, which is interrupted too."""

    name = "carried"

    def __init__(self, variation: int = 0) -> None:
        super().__init__(variation)
        self.geometry = ROOMY[variation % len(ROOMY)]
        self.writer.edit(3, 2, 8)
        self.writer.write(4, 0, range(800, 808))
        self.source.snapshot("s3")

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        self.land(volume, client, "s1", None)

    def begin_of(self, volume: Volume, top: str, copied: Plane | None = None) -> tuple[Landing, Plane]:
        """Begin the receive of an increment; of what was copied of s2, what the top has too stays."""
        plane, record = image_plane(self.source, top, "s1"), self.source.get_snapshot(top).record
        base = volume.get_snapshot("s1")
        entry = IncomingEntry(
            top.encode() * 8, top.encode() * 8, record.space_id, record.id, base.record.id, len(plane), 0,
            plane.n_blocks, 0, top,
        )  # fmt: skip
        if copied is None:
            return Landing(volume, plane, base.entry, entry), plane
        rest = combine([plane], minus=combine([copied], within=self.source.get_snapshot("s2").plane))
        return Landing(volume, plane, base.entry, entry, rest, None, b"s2" * 8), rest

    def act(self, volume: Volume, client: FileClient) -> None:
        landing, plane = self.begin_of(volume, "s2")
        fill(landing, self.source, "s2", plane, piece=3, most=4)
        landing.suspend()
        copied = resume_token(volume).copied
        client.edit(1, 0, 4)
        volume.sync()
        volume.delete_snapshot("own")
        landing, rest = self.begin_of(volume, "s3", copied)
        fill(landing, self.source, "s3", rest, piece=3, most=2)
        landing.suspend()
        landing, rest = self.begin_of(volume, "s3", copied)
        fill(landing, self.source, "s3", rest, reverse=True, piece=5)
        landing.commit([self.source.get_snapshot("s3").record])
        client.edit(1, 2, 6)
        volume.sync()


class LentStory(_LandingStory):
    """Full images that are in part here already: lent by a snapshot that the stream names, then found to be equal."""

    name = "lent"

    def __init__(self, variation: int = 0) -> None:
        super().__init__(variation)
        self.geometry = ROOMY[variation % len(ROOMY)]
        self.writer.edit(3, 2, 8)
        self.source.snapshot("s3")

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        self.land(volume, client, "s1", None)

    def begin_of(self, volume: Volume, top: str, lender: str | None) -> tuple[Landing, Plane]:
        """Begin the receive of a full image, of which a snapshot here lends what both have."""
        plane, record = image_plane(self.source, top, None), self.source.get_snapshot(top).record
        entry = IncomingEntry(
            top.encode() * 8, top.encode() * 8, record.space_id, record.id, bytes(16), len(plane), 0, plane.n_blocks,
            0, top,
        )  # fmt: skip
        if lender is None:
            return Landing(volume, plane, None, entry), plane
        rest, held = combine([plane], minus=self.source.get_snapshot(lender).plane), volume.get_snapshot(lender).entry
        entry.lender_id = held.record.id
        return Landing(volume, plane, None, entry, rest, held), rest

    def bring(self, volume: Volume, client: FileClient, top: str, lender: str | None) -> None:
        """Receive in two parts, the volume used in between."""
        landing, rest = self.begin_of(volume, top, lender)
        fill(landing, self.source, top, rest, piece=3, most=3)
        landing.suspend()
        client.edit(1, 0, 3)
        volume.sync()
        landing, rest = self.begin_of(volume, top, lender)
        fill(landing, self.source, top, rest, reverse=True, piece=5)
        landing.commit([self.source.get_snapshot(top).record])

    def act(self, volume: Volume, client: FileClient) -> None:
        self.bring(volume, client, "s2", "s1")
        volume.delete_snapshot("own")
        volume.delete_snapshot("s1")
        self.bring(volume, client, "s3", None)
        client.edit(1, 2, 6)
        volume.sync()


class CopyStory(_LandingStory):
    """Copies from disk to disk: a full one, an increment that is interrupted after some windows and copied again."""

    name = "copy"

    def __init__(self, variation: int = 0) -> None:
        super().__init__(variation)
        self.geometry = ROOMY[variation % len(ROOMY)]

    def bring(self, volume: Volume, text: str, most: int | None = None) -> None:
        """Copy an image in windows of a few blocks, as far as so many of them."""
        n_told = itertools.count(1)

        def told(event: ProgressEvent) -> None:
            if event.phase == "blocks" and next(n_told) == most:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            sending = ImageSending(build(self.source, text), window_blocks=5 + self.variation % 7)
            copy(sending, volume, discard=True, progress=told)

    def prepare(self, volume: Volume, client: FileClient) -> None:
        super().prepare(volume, client)
        self.bring(volume, "s1")

    def act(self, volume: Volume, client: FileClient) -> None:
        self.bring(volume, "s2 - s1", most=3)
        volume.delete_snapshot("own")
        self.bring(volume, "s2 - s1")
        client.edit(1, 0, 4)
        volume.sync()


def drop_incoming_of(volume: Volume, image_id: bytes) -> None:
    """Give one incoming image up."""
    with volume.lock:
        (image,) = (image for image in volume.local.incoming.images() if image.entry.image_id == image_id)
        LandedBlocks(volume, image.entry, {}, image.placemap(), None).give_up()


class NearlyFullStory(_Story):
    """No stripe is wholly free: parity is written beside live blocks."""

    name = "nearly full"

    def __init__(self, variation: int = 0) -> None:
        super().__init__(variation)
        with_parity = [shape for shape in SHAPES if shape.groups[0].n_parity and shape.groups[0].n_data > 1]
        self.geometry = with_parity[variation % len(with_parity)]

    def prepare(self, volume: Volume, client: FileClient) -> None:
        """Fill the volume into its reserve, then give back blocks of one disk: what is free shares its stripes."""
        with volume.dipping():
            index = 0
            while volume.free_blocks - volume.space.n_pending - volume.space.n_freed_open > 26:
                client.write(1 + index % 2, index // 2, [1000 + index])
                index += 1
                if index % 8 == 0:
                    volume.sync()
            volume.sync()
            for at in self._on_first_disks(volume)[::2]:
                client.punch(1, at, at + 1)
            for _ in range(3):
                volume.commit(force=True)

    def _on_first_disks(self, volume: Volume) -> list[int]:
        """Blocks of file 1 that lie on the first disk of a group."""
        pointers = volume.new_tree(root_of(volume.active, 1)).pointers(0, 1024)
        present = np.flatnonzero(pointers[:, 0])
        disks, _ = volume.geometry.to_disk((pointers[present, 0] & np.uint64(NUMBER_MASK)).astype(np.int64))
        first = {group.disks[0] for group in volume.geometry.groups}
        return [int(at) for at, disk in zip(present, disks.tolist(), strict=True) if disk in first]

    def act(self, volume: Volume, client: FileClient) -> None:
        with volume.dipping():
            for step in range(2):
                for at in range(14):
                    client.edit(2, at, 2000 + 100 * step + at)
                volume.sync()
            client.edit(1, 1, 3000)
            volume.sync()


STORIES: tuple[type[_Story], ...] = (
    FilesStory,
    SnapshotStory,
    RollbackStory,
    ShadowStory,
    PressureStory,
    MarkStory,
    FullStory,
    IncrementStory,
    InterruptedStory,
    CarriedStory,
    LentStory,
    CopyStory,
    NearlyFullStory,
)
