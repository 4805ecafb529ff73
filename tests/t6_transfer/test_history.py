"""Whole histories of volumes that send to each other, beside a plain model.

A source, two destinations of other geometries, a second tier behind the first one. Each keeps and deletes snapshots as
it likes, makes shadows of them, marks them, reads them, sends them to a chain of files; each may be written to.
Every step is done to the volume and to the model.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from model import ModelSnapshot
from rig import Shape
from rig.backups import Backups
from rig.retained import RetainingSite as Site
from rig.site import fill_pattern
from rig.transfers import Cut, Wish, transfer

STEPS = 50
CI_EXAMPLES = 140
DEEP_EXAMPLES = 5000
#: tests that the examples are spread over, so that several processes share them
SHARES = 4

SHAPES = {
    "source": [Shape(2, 1, 64, 384)],
    "left": [Shape(1, 0, 512, 512), Shape(2, 1, 64, 512, first=65536)],
    "right": [Shape(3, 2, 128, 512)],
    "behind": [Shape(4, 1, 192, 384), Shape(1, 1, 64, 192, first=65536)],
}
ROUTES = [("source", "left"), ("source", "left"), ("source", "right"), ("left", "behind"), ("left", "behind"),
          ("left", "right"), ("right", "left"), ("right", "source"), ("behind", "left")]  # fmt: skip
CALLS = ["link", "rename", "unlink", "mkdir", "symlink", "fifo", "socket", "char"]
NAMES = ["a", "b", "c", "d"]
MOST_SNAPSHOTS = 7

index = st.integers(0, 1 << 16)
skips = st.sampled_from([0, 0, 0, 1000])
routes = st.sampled_from(ROUTES)
cuts = st.none() | st.builds(
    Cut, st.integers(1, 99), st.booleans(), st.sampled_from(["again", "token", "abort", "onward"])
)
sites = st.sampled_from(["source", "source", "source", "left", "left", "right", "behind"])


class History(RuleBasedStateMachine):
    """The steps. A rule that finds nothing to work on does the nearest thing that it can."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Site] = {}
        self.backups: dict[str, Backups] = {}
        self.folder = tempfile.TemporaryDirectory()
        self.touched: set[str] = set()
        self.n_named = self.n_steps = 0
        History.counts["examples"] += 1

    @initialize()
    def begin(self) -> None:
        self.site("source").replace("/a", fill_pattern(20_000, 1))

    def site(self, name: str) -> Site:
        if name not in self.sites:
            self.sites[name] = Site(name, SHAPES[name])
        self.touched.add(name)
        return self.sites[name]

    def path_of(self, site: Site, at: int, *kinds: str) -> str:
        paths = site.model.live.paths(*kinds)
        if not paths:
            site.replace("/only", b"first")
            paths = ["/only"]
        return paths[at % len(paths)]

    def place(self, site: Site, at: int) -> str:
        """A path for something new: in any directory, under one of a few names."""
        directory = self.path_of(site, at, "dir")
        return f"{directory.rstrip('/')}/{NAMES[at // 7 % len(NAMES)]}"

    def snapshot_of(self, site: Site, at: int) -> ModelSnapshot:
        if not site.model.regular():
            self._make_room_for_one(site)
            site.create(self._new_name())
        found = list(site.model.regular().values())
        return found[-1 - at % len(found)]

    # --- files ---

    @rule(at=sites, where=index, size=st.sampled_from([1, 100, 4096, 9000, 70_000]), seed=index)
    def replace(self, at: str, where: int, size: int, seed: int) -> None:
        site = self.site(at)
        path = self.place(site, where)
        if kind_of(site, path) in ("", "file"):
            site.replace(path, fill_pattern(size, seed))

    @rule(at=sites, which=index, blocks=st.lists(st.integers(0, 40), min_size=1, max_size=5), skip=skips, seed=index)
    def overwrite(self, at: str, which: int, blocks: list[int], skip: int, seed: int) -> None:
        """Blocks of a file at random places, whole or across their borders."""
        site = self.site(at)
        path = self.path_of(site, which, "file")
        for block in blocks:
            site.write(path, block * 4096 + skip, fill_pattern(4096 + skip, seed + block))

    @rule(at=sites, which=index, size=st.sampled_from([0, 1, 200, 300, 4096, 5000, 40_000, 200_000]))
    def truncate(self, at: str, which: int, size: int) -> None:
        site = self.site(at)
        site.truncate(self.path_of(site, which, "file"), size)

    @rule(at=sites, which=index, where=index, what=st.sampled_from(CALLS))
    def change_names(self, at: str, which: int, where: int, what: str) -> None:
        site = self.site(at)
        path = self.place(site, where)
        if what == "link":
            site.link(self.path_of(site, which), path)
        elif what == "rename":
            site.rename(self.path_of(site, which), path)
        elif what == "unlink":
            path = self.path_of(site, which)
            (site.rmdir if kind_of(site, path) == "dir" else site.unlink)(path)
        elif what == "mkdir":
            if path.count("/") < 5:
                site.mkdir(path, 0o2755 if which % 2 else 0o700)
        elif what == "symlink":
            site.symlink("nowhere/" + "x" * (where % 300), path)
        else:
            site.special(path, what, 0o640, os.makedev(4, 64) if what == "char" else 0)

    @rule(
        at=sites, which=index, name=st.sampled_from(["user.a", "user.b"]), size=st.sampled_from([-1, 0, 9, 300, 6000])
    )
    def attribute(self, at: str, which: int, name: str, size: int) -> None:
        site = self.site(at)
        if size == 300:
            site.set_mode(self.path_of(site, which, "file", "dir", "fifo"), which & 0o7777, which % 3, which % 5)
        site.set_attribute(self.path_of(site, which), name, fill_pattern(size, which) if size >= 0 else None)

    @rule(at=sites, share=st.sampled_from([0.5, 1.0, 1.2]), seed=index)
    def fill(self, at: str, share: float, seed: int) -> None:
        """A large file, that fits or not; then it goes again, which must work on a full volume."""
        site = self.site(at)
        if not site.fs.lexists("/big"):
            site.replace("/big", fill_pattern(int(site.volume.available_blocks * share) * 4096 + 1, seed))
        if seed % 2:
            site.create(self._new_name())
        if site.fs.lexists("/big"):
            site.unlink("/big")

    # --- consistency points ---

    @rule(at=sites)
    def sync(self, at: str) -> None:
        self.site(at).sync()

    @rule(at=sites, crash=st.booleans())
    def reopen(self, at: str, crash: bool) -> None:
        self.site(at).reopen(crash=crash)

    # --- snapshots ---

    def _new_name(self) -> str:
        self.n_named += 1
        return f"s{self.n_named}"

    @rule(at=sites, seed=index)
    def create(self, at: str, seed: int) -> None:
        """Retain, mostly after a change; sometimes under a name that is taken."""
        site = self.site(at)
        if seed % 4:
            site.replace(f"/{NAMES[seed % 4]}{seed % 3}", fill_pattern(seed % 50_000 + 1, seed))
        self._make_room_for_one(site)
        names = site.model.names()
        site.create(names[0] if names and seed % 11 == 10 else self._new_name())

    def _make_room_for_one(self, site: Site) -> None:
        if len(site.model.snapshots) >= MOST_SNAPSHOTS:
            site.unpin_all()
            site.delete(site.model.names()[:1])

    @rule(at=sites, which=index, n_more=st.sampled_from([0, 0, 0, 1, 2]))
    def delete(self, at: str, which: int, n_more: int) -> None:
        site = self.site(at)
        self.snapshot_of(site, which)
        names = [s.name for s in site.model.snapshots.values() if s.kind != "deleting"]
        start = which % len(names)
        site.delete(names[start : start + 1 + n_more])

    @rule(at=sites, which=index)
    def shadow(self, at: str, which: int) -> None:
        site = self.site(at)
        site.shadow(self.snapshot_of(site, which).name)
        History.counts["shadows"] += 1

    @rule(at=sites, which=index, goes=st.sampled_from([False, False, True]))
    def mark(self, at: str, which: int, goes: bool) -> None:
        site = self.site(at)
        if goes:
            site.unmark()
        else:
            site.mark(self.snapshot_of(site, which).name)
        site.check_marks()
        History.counts["marked"] += len(site.volume.positions)

    @rule(at=sites, which=index, ends=st.booleans())
    def read(self, at: str, which: int, ends: bool) -> None:
        """Begin to read a snapshot, or end every reading."""
        site = self.site(at)
        if ends:
            site.unpin_all()
        else:
            site.pin(self.snapshot_of(site, which).name)
            History.counts["read"] += 1

    @rule(at=st.sampled_from(["source", "left"]), which=index)
    def back_up(self, at: str, which: int) -> None:
        """Send to a chain of files: it is whole, and reads as what was sent."""
        site = self.site(at)
        if at not in self.backups:
            folder = Path(self.folder.name, at)
            folder.mkdir()
            self.backups[at] = Backups(folder)
        top = self.snapshot_of(site, which % 2)
        if self.backups[at].add(site, top, lambda bases: bases[which % len(bases)]):
            self.backups[at].check(top)
            History.counts["backups"] += 1

    @rule(at=sites, which=index, new=st.sampled_from(["x", "y"]))
    def rename_snapshot(self, at: str, which: int, new: str) -> None:
        site = self.site(at)
        site.rename_snapshot(self.snapshot_of(site, which).name, new)

    @rule(at=sites, which=index, drop_later=st.booleans(), drop_changes=st.booleans())
    def roll_back(self, at: str, which: int, drop_later: bool, drop_changes: bool) -> None:
        site = self.site(at)
        site.roll_back(self.snapshot_of(site, which).name, drop_later=drop_later, drop_changes=drop_changes)

    # --- transfer ---

    def _send(self, source: Site, target: Site, wish: Wish, discard: bool, cut: Cut | None) -> None:
        if [wish.base] != target.model.names()[:1]:
            self._make_room_for_one(target)
        outcome = transfer(source, target, wish, discard=discard, cut=cut)
        History.counts["cut"] += cut is not None
        History.counts["sent" if outcome is not None else "refused"] += 1
        if outcome is not None:
            target.check_live()

    def _pair(self, route: tuple[str, str]) -> tuple[Site, Site]:
        source, target = route if route[0] in self.sites else ROUTES[0]
        return self.site(source), self.site(target)

    @rule(route=routes, seed=index, discard=st.booleans(), cut=cuts)
    def update(self, route: tuple[str, str], seed: int, discard: bool, cut: Cut | None) -> None:
        """What a mirror does: a new snapshot, sent as an increment onto the newest that both have."""
        source, target = self._pair(route)
        if seed % 3:
            self.create(source.name, seed)
        newest = self.snapshot_of(source, 0)
        both = newest.moment.listed & set(target.model.regular())
        common = [s for s in source.model.snapshots.values() if s.id in both and s.kind != "deleting"]
        self._send(source, target, Wish(newest.name, (), common[-1].name if common else None), discard, cut)

    @rule(route=routes, top=index, bases=index, beside=st.integers(0, 15), kind=st.integers(0, 9), cut=cuts)
    def send(self, route: tuple[str, str], top: int, bases: int, beside: int, kind: int, cut: Cut | None) -> None:
        """Any snapshot, on any base or none, with others beside it; sometimes against the rules."""
        source, target = self._pair(route)
        chosen = self.snapshot_of(source, top)
        fresh = [s for s in source.model.regular().values() if s.id not in target.model.snapshots]
        if fresh and kind:
            chosen = fresh[-1 - top % len(fresh)]
        older = [s for s in source.model.snapshots.values() if s.id in chosen.moment.listed and s.kind != "deleting"]
        common = [s for s in older if s.id in target.model.snapshots]
        choice = older if kind == 1 else common
        base = choice[-1 - bases % len(choice)] if choice and kind > 2 else None
        beside_it = [s for s in older if s.kind == "regular"]
        rest = [s.name for i, s in enumerate(reversed(beside_it)) if s is not base and beside >> i & 1]
        wish = Wish(chosen.name, tuple(rest), base.name if base else None)
        History.counts["again"] += any(s.name in rest for s in common)
        self._send(source, target, wish, discard=kind % 4 != 3, cut=cut)

    # --- holding both against each other ---

    @rule(at=sites)
    def compare(self, at: str) -> None:
        self.site(at).check_everything()

    @invariant()
    def account(self) -> None:
        self.n_steps += 1
        History.counts["steps"] += 1
        for name in self.touched:
            self.sites[name].check_cheaply()
        self.touched.clear()

    def teardown(self) -> None:
        History.counts["whole"] += self.n_steps > STEPS
        try:
            for site in self.sites.values():
                site.check_everything()
                site.reopen(crash=False)
                site.check_everything()
                History.counts["full volumes"] += site.n_full
                History.counts["interrupted"] += site.n_interrupted
        finally:
            self.folder.cleanup()
            for site in self.sites.values():
                site.close()


def kind_of(site: Site, path: str) -> str:
    try:
        return site.model.live.node(path).kind
    except OSError:
        return ""


@pytest.mark.parametrize("share", range(SHARES))
def test_histories(share: int, history_examples: int, history_seed: int, record_property) -> None:
    """Every history agrees with the model, step by step and at its end; so many ran to their last step.

    Which steps they take is chance: there are more histories until there was enough of everything, at most three times
    as many.
    """
    wanted, seed, n_runs = history_examples // SHARES, (history_seed * SHARES + share) * 100, 0
    History.counts.clear()
    while _is_short(wanted) and History.counts["examples"] < 3 * wanted:
        n_examples = max(wanted - History.counts["whole"], 10)
        print(f"seed {seed + n_runs}, {n_examples} examples")
        _run(seed + n_runs, n_examples)
        n_runs += 1
    record_property("summary", f"histories: seed {seed} and {n_runs - 1} after it: {dict(History.counts)}")
    assert not _is_short(wanted), History.counts


def _is_short(wanted: int) -> bool:
    counts = History.counts
    some = [5 * counts["interrupted"], *(10 * counts[what] for what in ("shadows", "marked", "read", "backups"))]
    return counts["steps"] < wanted * STEPS or min(counts["whole"], counts["sent"], *some) < wanted


def _run(seed: int, n_examples: int) -> None:
    machine = type("History", (History,), {"_hypothesis_internal_use_seed": seed})
    profile = settings(
        max_examples=n_examples, stateful_step_count=STEPS + 1, deadline=None, database=None,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=profile)


@pytest.fixture
def history_examples(is_deep: bool, part: tuple[int, int]) -> int:
    return DEEP_EXAMPLES // part[1] if is_deep else CI_EXAMPLES


@pytest.fixture
def history_seed(part: tuple[int, int]) -> int:
    return int(os.environ["BLOCKPLANE_SEED"]) * part[1] + part[0]
