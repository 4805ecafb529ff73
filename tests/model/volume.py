"""A volume as plain values: a live tree, snapshots with parents, lines of history, what may succeed what."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from model.tree import Tree

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Line:
    """A line of history: it left `parent` after the parent's state number `after`."""

    number: int
    parent: Line | None = None
    after: int = 0

    def leads_to(self, at: int, line: Line, state: int) -> bool:
        """Whether state `at` of this line is state `state` of `line`, or one that it descends from."""
        walk: Line | None = line
        while walk is not None:
            if walk == self:
                return at <= state
            state = min(walk.after, state) if walk.parent is not None else state
            walk = walk.parent
        return False


@dataclass(frozen=True)
class Moment:
    """A state's place in history.

    listed : ids of the snapshots that its list names. content : a number that no other tree has.
    """

    line: Line
    state: int
    listed: frozenset[str] = frozenset()
    content: int = 0


@dataclass(frozen=True)
class ModelSnapshot:
    """A snapshot of one volume. parent : id of the one that it descends from there. kind : as a volume names it."""

    id: str
    name: str
    tree: Tree
    moment: Moment
    parent: str | None
    kind: str = "regular"


class ModelVolume:
    """A volume: what was written, retained, rolled back to, received."""

    def __init__(self) -> None:
        self.live = Tree()
        self.moment = Moment(Line(next(_numbers)), 0)
        self.snapshots: dict[str, ModelSnapshot] = {}
        self.parent: str | None = None
        self.is_replica = False
        self.is_blank = True
        #: changes since the last consistency point
        self.is_dirty = False
        self._saved = (self.live.copy(), self.moment, self.is_replica, self.is_blank)

    # --- changing ---

    def changed(self) -> None:
        """The live tree was changed."""
        self.is_dirty = True
        self.is_blank = False

    def commit(self) -> None:
        """Make what was changed durable; a replica's first change starts a line of its own."""
        if self.is_dirty:
            if self.is_replica:
                self._start_line()
            self.moment = replace(self.moment, state=self.moment.state + 1, content=next(_numbers))
            self.is_dirty = False
        self._saved = (self.live.copy(), self.moment, self.is_replica, self.is_blank)

    def _start_line(self) -> None:
        line = Line(next(_numbers), self.moment.line, self.moment.state)
        self.moment = replace(self.moment, line=line, listed=self._ancestors(self.parent))
        self.is_replica = False

    def crash(self) -> None:
        """Go back to the last consistency point."""
        tree, self.moment, self.is_replica, self.is_blank = self._saved
        self.live = tree.copy()
        self.is_dirty = False

    # --- snapshots ---

    def named(self, name: str) -> ModelSnapshot | None:
        """The snapshot of a name."""
        return next((s for s in self.snapshots.values() if s.name == name), None)

    def regular(self) -> dict[str, ModelSnapshot]:
        """The snapshots that can be read, by id."""
        return {s.id: s for s in self.snapshots.values() if s.kind == "regular"}

    def turn(self, name: str, kind: str) -> None:
        """Make a snapshot one of another kind."""
        self.commit()
        found = self.named(name)
        assert found is not None
        self.snapshots[found.id] = replace(found, kind=kind)

    def names(self) -> list[str]:
        """Names in the order they came to be here."""
        return [s.name for s in self.snapshots.values()]

    def _ancestors(self, snapshot_id: str | None) -> frozenset[str]:
        """A snapshot and those here that it descends from."""
        found: set[str] = set()
        while snapshot_id is not None:
            found.add(snapshot_id)
            snapshot_id = self.snapshots[snapshot_id].parent
        return frozenset(found)

    def create(self, name: str, snapshot_id: str) -> None:
        """Retain the live tree."""
        self.commit()
        self.snapshots[snapshot_id] = ModelSnapshot(snapshot_id, name, self.live.copy(), self.moment, self.parent)
        self.parent = snapshot_id
        if not self.is_replica:
            listed = self._ancestors(snapshot_id)
            self.moment = replace(self.moment, state=self.moment.state + 1, listed=listed)
            self.is_blank = False
        self.commit()

    def delete(self, names: list[str]) -> None:
        """Forget snapshots; what descends from them descends from what they descended from."""
        self.commit()
        gone = {s.id: s.parent for s in self.snapshots.values() if s.name in names}

        def surviving(parent: str | None) -> str | None:
            while parent in gone:
                parent = gone[parent]
            return parent

        self.snapshots = {
            s.id: replace(s, parent=surviving(s.parent)) for s in self.snapshots.values() if s.id not in gone
        }
        self.parent = surviving(self.parent)

    def rename(self, name: str, new: str) -> None:
        """Give a snapshot another name."""
        self.commit()
        found = self.named(name)
        assert found is not None
        self.snapshots[found.id] = replace(found, name=new)

    def later_than(self, name: str) -> list[str]:
        """Names of those that descend from a snapshot."""
        found = self.named(name)
        assert found is not None
        return [s.name for s in self.snapshots.values() if s.id != found.id and found.id in self._ancestors(s.id)]

    def roll_back(self, name: str) -> None:
        """Make a snapshot the live tree, on a line of its own."""
        found = self.named(name)
        assert found is not None
        self.live, self.moment, self.parent = found.tree.copy(), found.moment, found.id
        self._start_line()
        self.moment = replace(self.moment, state=self.moment.state + 1)
        self.is_dirty = self.is_blank = False
        self.commit()

    # --- transfer ---

    def may_succeed(self, top: ModelSnapshot) -> bool:
        """Whether the live state is the top's, or one that the top descends from; or holds no more than such a one."""
        self.commit()
        parent = self.regular().get(self.parent or "")
        moments = [self.moment]
        if parent is not None and parent.moment.content == self.moment.content:
            moments.append(parent.moment)
        return any(at.line.leads_to(at.state, top.moment.line, top.moment.state) for at in moments)

    def receive(self, arriving: list[ModelSnapshot], base: ModelSnapshot | None) -> None:
        """Take in snapshots, older first, the last becoming the live tree; a child of what it was built on here."""
        self.commit()
        parent = base.id if base is not None else None
        for snapshot in arriving:
            if snapshot.id in self.snapshots:
                continue
            is_older = base is not None and snapshot.id in base.moment.listed
            self.snapshots[snapshot.id] = replace(snapshot, parent=None if is_older else parent, kind="regular")
            parent = parent if is_older else snapshot.id
        top = arriving[-1]
        self.live, self.moment, self.parent = top.tree.copy(), top.moment, top.id
        self.is_replica, self.is_blank = True, False
        self.commit()
