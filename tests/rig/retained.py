"""What a site retains beside readable snapshots: shadows, marks, what is read; and what must hold of them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from blockplane.image.image import build
from blockplane.model import NoSpaceError, RefusedError
from blockplane.volume.deferred import reap
from rig.sets import contents, numbers, pairs, pairs_of
from rig.site import Site


@dataclass
class Then:
    """A shadow: what the snapshot held, by (VBN, place), and how much was left when last looked at."""

    contents: dict[tuple[int, int], int]
    n_left: int


class RetainingSite(Site):
    """A site with shadows, marked snapshots and snapshots that are being read.

    Attributes
    ----------
    then : of each shadow, by id. pinned : what is being read, by id.
    """

    then: dict[str, Then]
    pinned: dict[str, AbstractContextManager[None]]

    def __init__(self, name: str, shapes) -> None:
        self.then, self.pinned = {}, {}
        super().__init__(name, shapes)

    # --- shadows ---

    def shadow(self, name: str) -> None:
        """Make a snapshot a shadow: refused while it is read; it needs no space."""
        self.sync()
        found, state = self.model.named(name), self.volume.get_snapshot(name).state
        assert found is not None
        held = contents(state)
        if found.id in self.pinned:
            with pytest.raises(RefusedError, match="is being read"):
                self.volume.shadow_snapshot(name)
            return
        self.volume.shadow_snapshot(name)
        self.then[found.id] = Then(held, len(held))
        self.model.turn(name, "shadow")
        self._seen = self.volume.committed

    def check_shadows(self) -> None:
        """`top - shadow` has whatever differs from what the snapshot held; no bit comes back."""
        if not self.then:
            return
        tops = {snapshot.name: contents(snapshot.state) for snapshot in self.regular()}
        for snapshot in self.volume.snapshots:
            if snapshot.kind != "shadow":
                continue
            then = self.then[snapshot.id]
            assert snapshot.n_blocks <= then.n_left
            then.n_left = snapshot.n_blocks
            for name, now in tops.items():
                differing = {vbn for (vbn, place), check in now.items() if then.contents.get((vbn, place)) != check}
                found = numbers(build(self.volume, f"{name} - {snapshot.name}", with_=[snapshot.name]).plane.extents())
                assert differing <= found, f"{self.name}: {name} - shadow {snapshot.name}"

    # --- marks ---

    def mark(self, name: str) -> None:
        """Let marks be kept from a snapshot on."""
        self.sync()
        try:
            self.volume.mark(name)
        except NoSpaceError:
            self.n_full += 1
        self.sync()

    def unmark(self) -> None:
        """Give the oldest position up."""
        self.sync()
        for position in self.volume.positions[:1]:
            self.volume.unmark(position.name)
        self.sync()

    def check_marks(self) -> None:
        """The mark image is the difference image: what differs from a position was marked."""
        volume, order = self.volume, [s.id for s in self.volume.snapshots]
        for position in volume.positions:
            if not position.alloc_known:
                continue
            base = volume.get_snapshot(position.name)
            alloc, left = numbers(volume.marks("alloc", position.name).extents()), pairs_of(base)
            later = [s.state for s in self.regular() if order.index(s.id) > order.index(base.id)]
            for state in (volume.committed, *later):
                differs = {vbn for vbn, _ in pairs(state) - left}
                assert differs <= alloc, f"{self.name}: marks since {position.name}"

    # --- readers ---

    def pin(self, name: str) -> None:
        """Begin to read a snapshot."""
        found = self.model.named(name)
        assert found is not None
        if found.id not in self.pinned:
            self.pinned[found.id] = pin = self.volume.pin(bytes.fromhex(found.id))
            pin.__enter__()

    def unpin_all(self) -> None:
        """End every reading; what waited for that is gone."""
        for pin in self.pinned.values():
            pin.__exit__(None, None, None)
        self.pinned = {}
        self._reaped()

    def _reaped(self) -> None:
        waiting = [s.name for s in self.model.snapshots.values() if s.kind == "deleting"]
        if waiting:
            self.model.delete(waiting)
            self._seen = self.volume.committed

    def delete(self, names: list[str]) -> None:
        """Delete: exact, beside what is read, which waits; shadows are dropped one by one."""
        chosen = [s for s in self.model.snapshots.values() if s.name in names]
        read = [s for s in chosen if s.id in self.pinned]
        if read:
            self.sync()
            with pytest.raises(RefusedError, match="is being read"):
                self.volume.delete_snapshot(*names)
            self.volume.delete_snapshot(*names, defer=True)
            for snapshot in read:
                self.model.turn(snapshot.name, "deleting")
            self._gone([s.name for s in chosen if s not in read])
        elif any(s.kind != "regular" for s in chosen):
            self.sync()
            self.volume.delete_snapshot(*names)
            self._gone(names)
        else:
            super().delete(names)
        self.then = {key: then for key, then in self.then.items() if key in self.model.snapshots}

    def _gone(self, names: list[str]) -> None:
        self.model.delete(names)
        self._seen = self.volume.committed

    def roll_back(self, name: str, *, drop_later: bool, drop_changes: bool) -> None:
        """Roll back; later snapshots that are read cannot be dropped."""
        later = [s for s in map(self.model.named, self.model.later_than(name)) if s is not None]
        if drop_later and any(s.id in self.pinned for s in later):
            self.sync()
            with pytest.raises(RefusedError, match="is being read"):
                self.volume.rollback(name, drop_later=True, drop_changes=drop_changes)
            self.sync()
            return
        super().roll_back(name, drop_later=drop_later, drop_changes=drop_changes)
        self.then = {key: then for key, then in self.then.items() if key in self.model.snapshots}

    # --- beginning and ending ---

    def reopen(self, *, crash: bool) -> None:
        """Readers end with their process."""
        if not crash:
            self.unpin_all()
        self.pinned = {}
        super().reopen(crash=crash)
        reap(self.volume)  # as opening a volume does
        self._reaped()

    def check_everything(self) -> None:
        """See Site; and shadows and marks."""
        super().check_everything()
        self.check_shadows()
        self.check_marks()

    def close(self) -> None:
        """Give up the disks."""
        self.pinned = {}
        super().close()
