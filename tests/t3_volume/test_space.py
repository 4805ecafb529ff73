"""Free space: law 5 (what the last two consistency points refer to is not reused), stripes, exact counts."""

from __future__ import annotations

import random

import numpy as np
import pytest

from blockplane.disks import DiskArray
from blockplane.disks.geometry import FIRST_MULTIPLE
from blockplane.model import BLOCK_BYTES, NoSpaceError
from blockplane.volume import Volume
from blockplane.volume import space as space_module
from blockplane.volume.landing_places import LandingPlaces
from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in, set_range
from blockplane.volume.placer import Placer
from blockplane.volume.space import AREA_STRIPES, Area, Space
from blockplane.volume.spared import LOOK_AREAS
from faults.world import FileClient, again, geometry_of, make_volume, memory_disks, present, receive, verdict

GEOMETRIES = [
    geometry_of(2, 1, 128),
    geometry_of(3, 2, 64),
    geometry_of(1, 0, 192),
    geometry_of(4, 1, 128, chunk_blocks=128),
    geometry_of(2, 1, 64, n_groups=2),
]


pytestmark = pytest.mark.usefixtures("inline")


def places_of(volume: Volume) -> set[int]:
    """What the last CP refers to, worked out by the trees of that CP only."""
    local, found = volume.committed_local, []
    states = [volume.committed, *(volume.snapshot_state(entry) for entry in local.entries())]
    for leaf in range(-(-volume.geometry.n_blocks // LEAF_BLOCKS)):
        words = local.local_leaf(leaf).copy()
        for state in states:
            words |= state.place_leaf(leaf)
        found += numbers_in(words, leaf * LEAF_BLOCKS).tolist()
    return set(found)


class Witness:
    """Watches every place handed out: none that the last two CPs refer to, none twice in a CP."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.forbidden = [set[int](), places_of(volume)]
        self.open: set[int] = set()
        self.n_taken = 0
        take, passed = volume.space.take, volume._pass_on

        def watched_take(start: int, stop: int) -> None:
            for place in range(start, stop):
                assert place not in self.forbidden[0], f"place {place} belongs to the CP before the last"
                assert place not in self.forbidden[1], f"place {place} belongs to the last CP"
                assert place not in self.open, f"place {place} was given out twice"
                self.open.add(place)
            self.n_taken += stop - start
            take(start, stop)

        def watched_pass() -> None:
            passed()
            self.forbidden = [self.forbidden[1], places_of(volume)]
            self.open = set()

        volume.space.take = watched_take  # type: ignore[method-assign]
        volume._pass_on = watched_pass  # type: ignore[method-assign]


def churn(volume: Volume, client: FileClient, rng: random.Random, n_steps: int) -> None:
    """Random work that stays near full: writes until refused, holes, snapshots in any order, rollbacks."""
    for _ in range(n_steps):
        choice = rng.randrange(10)
        existing = [snapshot.name for snapshot in volume.snapshots]
        try:
            if choice < 4:
                client.write(
                    rng.randrange(1, 12), rng.randrange(20), [rng.randrange(1, 1 << 40)] * rng.randrange(1, 20)
                )
            elif choice == 4:
                client.edit(rng.randrange(1, 12), rng.randrange(20), rng.randrange(1, 1 << 40))
            elif choice == 5:
                with volume.dipping():
                    client.punch(rng.randrange(1, 12), 0, rng.randrange(1, 30))
            elif choice == 6 and len(existing) < 5:
                volume.snapshot(f"s{rng.randrange(1 << 40)}")
            elif choice == 7 and existing:
                volume.delete_snapshot(rng.choice(existing))
            elif choice == 8 and existing and rng.random() < 0.3:
                volume.rollback(rng.choice(existing), drop_changes=rng.random() < 0.5)
            else:
                volume.sync()
        except NoSpaceError:
            with volume.dipping():
                client.remove(rng.randrange(1, 12))
            volume.make_room(1)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=range(len(GEOMETRIES)))
@pytest.mark.parametrize("seed", range(4))
def test_nothing_the_last_two_points_refer_to_is_reused(geometry, seed):
    volume = make_volume(geometry, reserve_blocks=64)
    witness = Witness(volume)
    churn(volume, FileClient(volume), random.Random(seed), 120)
    assert witness.n_taken > geometry.n_usable
    verdict(volume)


@pytest.mark.parametrize("seed", [0, 2])
def test_what_is_handed_out_stays_so_where_few_leaves_are_kept(monkeypatch, seed):
    """Places that no tree has yet are known though their leaf was forgotten meanwhile."""
    monkeypatch.setattr(space_module, "MAX_LEAVES", 2)
    volume = make_volume(geometry_of(2, 1, 128, n_groups=5), reserve_blocks=64)
    witness, client = Witness(volume), FileClient(volume)
    for index in range(0, 800, 4):
        client.write(20 + index % 3, index, range(4))
    volume.sync()
    for index in range(0, 800, 16):
        with volume.dipping():
            client.punch(20 + index % 3, index, index + 4)
    for _ in range(3):
        volume.commit(force=True)
    client.write(30, 0, range(seed, 150 + seed))
    churn(volume, client, random.Random(seed), 60)
    files = present(client.files)
    volume.sync()
    verdict(volume)
    assert present(FileClient(again(volume)).files) == files
    assert witness.n_taken > 1000


def test_places_that_a_failed_write_gave_back_are_free_again(monkeypatch):
    monkeypatch.setattr(space_module, "MAX_LEAVES", 2)
    volume = make_volume(geometry_of(2, 1, 128, n_groups=5), reserve_blocks=64)
    places = np.array([3, FIRST_MULTIPLE, FIRST_MULTIPLE + 7, 3 * FIRST_MULTIPLE + 5, 4 * FIRST_MULTIPLE])
    volume.space.take_numbers(places)
    assert volume.space.is_busy(places).all()
    volume.space.release_now(places[1:])
    for _ in range(2):
        assert volume.space.is_busy(places).tolist() == [True, False, False, False, False]
        volume.space.forget()
    volume.commit(force=True)
    volume.space.forget()
    assert not volume.space.is_busy(places).any()  # no tree has them


def test_a_write_that_found_no_room_keeps_no_place_for_itself():
    """What a receive reserves next is not handed out of bands that were open."""
    volume = make_volume(geometry_of(2, 1, 128, n_groups=2), reserve_blocks=64)
    with pytest.raises(NoSpaceError), volume.dipping():
        volume.placer.run(2 * volume.n_blocks)
    volume.commit()
    assert (volume.placer._open, list(volume.placer._areas)) == ({}, [])
    assert volume.array.pool.taken_bytes == 0


def test_a_block_whose_last_snapshot_goes_stays_whole_for_the_point_before():
    volume = make_volume(geometry_of(2, 1, 64), reserve_blocks=24)
    client = FileClient(volume)
    Witness(volume)
    for value in range(20):
        client.write(1, 0, [value] * 16)
        volume.snapshot("a")
        client.write(1, 0, [value + 1000] * 16)
        volume.delete_snapshot("a")
        client.write(2, 0, [value] * 16)


def test_a_name_that_lies_elsewhere_is_not_given_to_another_block():
    """A block came to lie elsewhere since a snapshot had its place; that snapshot goes; the name stays in use."""
    source, target = make_volume(geometry_of(2, 0, 64)), make_volume(geometry_of(2, 1, 128))
    a, b = FileClient(source), FileClient(target)
    b.write(1, 0, range(30))
    target.snapshot("own")
    a.write(1, 0, range(100, 130))
    source.snapshot("top")
    receive(source, target, "top")
    assert target.active.placemap.n_blocks > 0
    for value in range(4):  # the busy plane is made anew for some commits after a receive
        b.edit(5, 0, value)
        target.sync()
    for leaf in range(1):
        target.space.leaf(leaf)
    target.delete_snapshot("own")
    for value in range(2, 40):
        try:
            b.write(value, 0, [value] * 8)
            target.sync()
        except NoSpaceError:
            break
    verdict(target)


def test_names_come_back_when_their_blocks_do():
    """What a place map took out of use is free again, in memory too, once no map names it."""
    source, target = make_volume(geometry_of(2, 0, 64)), make_volume(geometry_of(2, 1, 128))
    a, b = FileClient(source), FileClient(target)
    b.write(1, 0, range(30))
    target.snapshot("own")
    a.write(1, 0, range(100, 130))
    source.snapshot("top")
    receive(source, target, "top")
    for value in range(4):
        b.edit(5, 0, value)
        target.sync()
    target.space.leaf(0)
    target.delete_snapshot("own", "top")
    b.remove(1)
    for _ in range(4):
        target.commit(force=True)
    busy = target.space.leaf(0).copy()
    target.space.forget()
    assert numbers_in(busy).tolist() == numbers_in(target.space.leaf(0)).tolist()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=range(len(GEOMETRIES)))
@pytest.mark.parametrize("seed", range(2))
def test_the_busy_plane_in_memory_is_the_one_worked_out_anew(geometry, seed):
    """Never less than what is in use; and not more, once two commits have passed."""
    volume = make_volume(geometry, reserve_blocks=64)
    client, rng = FileClient(volume), random.Random(100 + seed)
    for _ in range(8):
        churn(volume, client, rng, 12)
        for _ in range(3):
            volume.commit(force=True)
        kept = {leaf: words.copy() for leaf, words in volume.space._leaves.items()}
        volume.space.forget()
        for leaf, words in kept.items():
            assert numbers_in(words).tolist() == numbers_in(volume.space.leaf(leaf)).tolist()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=range(len(GEOMETRIES)))
@pytest.mark.parametrize("seed", range(2))
def test_free_space_is_exact(geometry, seed):
    volume = make_volume(geometry, reserve_blocks=64)
    client, rng = FileClient(volume), random.Random(200 + seed)
    for _ in range(6):
        churn(volume, client, rng, 15)
        volume.commit(force=True)
        assert volume.free_blocks == geometry.n_usable - len(places_of(volume))
        volume = again(volume)
        client = FileClient(volume)
        assert volume.free_blocks == geometry.n_usable - len(places_of(volume))


def test_what_is_available_can_be_written():
    """available_blocks is a promise: so many blocks go in and a commit follows; then a full volume deletes."""
    for seed in range(4):
        volume = make_volume(geometry_of(2, 1, 128), reserve_blocks=48)
        client, rng = FileClient(volume), random.Random(seed)
        index = 0
        while True:
            try:
                client.write(1, index, [index] * (n := rng.randrange(1, 9)))
                index += n
                if rng.random() < 0.2:
                    volume.sync()
            except NoSpaceError:
                break
        volume.sync()
        assert volume.available_blocks <= 24
        with volume.dipping():
            client.remove(1)
        volume.sync()
        volume.make_room(index // 2)
        assert volume.available_blocks >= index // 2
        verdict(volume)


def test_a_full_volume_can_delete_snapshots():
    volume = make_volume(geometry_of(2, 1, 128), reserve_blocks=48)
    client = FileClient(volume)
    value = 0
    try:
        while True:
            value += 1
            client.write(1, 0, [value] * 12)
            volume.snapshot(f"s{value}")
    except NoSpaceError:
        pass
    assert len(volume.snapshots) > 5
    while volume.snapshots:
        names = [snapshot.name for snapshot in volume.snapshots]
        volume.delete_snapshot(names[len(names) // 2])
        verdict(volume)
    volume.make_room(100)
    assert volume.available_blocks >= 100


# --- areas and stripes --------------------------------------------------------------------------------------------


def test_a_run_is_found_in_words_in_use_first():
    free = np.array([(1 << 64) - 1, 0b0111_0000, (1 << 64) - 1], np.uint64)
    area = Area((0, 0), geometry_of(1, 0, 192).groups[0], free)
    assert area.take_run(64) == (64 + 4, 3)
    assert area.take_run(64) == (0, 64)
    assert area.take_word() == (128, 64)
    assert area.take_word() is None
    assert area.take_run(64) is None


def test_runs_are_cut_and_withheld():
    area = Area((0, 1), geometry_of(1, 0, AREA_STRIPES * 2).groups[0], np.array([(1 << 64) - 1, 0], np.uint64))
    assert area.take_run(5) == (AREA_STRIPES, 5)
    area.withhold(AREA_STRIPES + 5, 50)
    assert area.take_run(64) == (AREA_STRIPES + 55, 9)
    assert area.take_run(64) is None


@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_a_walk_visits_every_area_once_from_anywhere(n_groups):
    geometry = geometry_of(1, 0, AREA_STRIPES * 2 + 64, n_groups=n_groups)
    space = Space(geometry, lambda leaf: np.zeros(512, np.uint64))
    every = {(group, area) for group in range(n_groups) for area in range(3)}
    for start in every:
        for backward in (False, True):
            seen = list(space.walk(start, backward))
            assert seen[0] == start
            assert len(seen) == len(every)
            assert set(seen) == every


class _Fixture:
    """A placer over a busy plane given as a set of places."""

    def __init__(self, geometry, busy: set[int], spared: set[int] | None = None) -> None:
        """spared: the places that shadows mean, where there are shadows."""
        self.geometry = geometry
        self.busy = set(busy)
        self.spared = spared
        self.declared: list = []
        self.beside: set[int] = set()
        self.stopped: list[BaseException] = []
        self.array = DiskArray(geometry, memory_disks(geometry))
        self.space = Space(geometry, self._leaf, lambda: None if spared is None else self._spared_leaf)
        self.placer = Placer(
            self.array,
            self.space,
            self.declared.append,
            lambda group, word: False,
            self,
            self.stopped.append,
        )

    def sound(self, group: int, word: int):
        """No stripe is damaged."""
        return np.ones(64, bool)

    def write(self, band) -> None:
        """What a volume would read and verify: the slots of stripes that are written which the band does not own."""
        places = self.geometry.band_places(band.group, band.dbn_start, band.n_stripes)
        stays = ~band.written & band.written.any(axis=0)
        self.beside |= set(places[stays].tolist())
        self.array.write_band(band)

    def _leaf(self, leaf: int):
        bits = np.zeros(LEAF_BLOCKS, np.uint8)
        inside = {place for first, stop in self.geometry.place_extents.tolist() for place in range(first, stop)}
        for place in range(LEAF_BLOCKS):
            at = leaf * LEAF_BLOCKS + place
            bits[place] = at in self.busy or at not in inside
        return np.packbits(bits, bitorder="little").view(np.uint64)

    def _spared_leaf(self, leaf: int):
        bits = np.zeros(LEAF_BLOCKS, np.uint8)
        bits[[place - leaf * LEAF_BLOCKS for place in self.spared if place // LEAF_BLOCKS == leaf]] = 1
        return np.packbits(bits, bitorder="little").view(np.uint64)

    def take(self, kind: str, n: int) -> list[int]:
        if kind == "run":
            runs = self.placer.run(n)
        else:
            runs = [getattr(self.placer, kind)() for _ in range(n)]
        for first, count, buffer in runs:
            buffer.reshape(-1, BLOCK_BYTES).view(np.uint64)[:] = np.arange(first, first + count, dtype=np.uint64)[
                :, None
            ]
            self.placer.filled(first, count)
        return [place for first, count, _ in runs for place in range(first, first + count)]

    def stripe_of(self, place: int) -> tuple[int, int]:
        group = self.geometry.group_of(place)
        _, dbn = self.geometry.to_disk(np.array([place], np.int64))
        return group, int(dbn[0])


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=range(len(GEOMETRIES)))
@pytest.mark.parametrize("seed", range(6))
def test_places_are_free_distinct_and_in_whole_stripes_first(geometry, seed):
    rng = random.Random(seed)
    every = [place for first, stop in geometry.place_extents.tolist() for place in range(first, stop)]
    busy = set(rng.sample(every, rng.randrange(len(every) // 2))) if seed else set()
    if seed > 3:
        busy = {place for place in every if place % 5}
    fixture = _Fixture(geometry, busy)
    free = set(every) - busy
    busy_stripes = {fixture.stripe_of(place) for place in busy}
    whole = {place for place in free if fixture.stripe_of(place) not in busy_stripes}
    given: list[int] = []
    kinds = ["run", "block", "local_block"]
    while len(given) < len(free):
        given += fixture.take(rng.choice(kinds), min(rng.randrange(1, 20), len(free) - len(given)))
    assert sorted(given) == sorted(free)
    with pytest.raises(NoSpaceError):
        fixture.placer.block()
    # a place beside live blocks only when every whole stripe is handed out
    partly = [n for n, place in enumerate(given) if place not in whole]
    if partly:
        assert sum(place in whole for place in given[: partly[0]]) >= len(whole) - 20
    fixture.placer.close_all()
    fixture.placer.settle()
    # all that was handed out is on the disks, in its place
    out = np.empty(BLOCK_BYTES, np.uint8)
    for place in given:
        fixture.array.read_places(np.array([[place, place + 1]], np.int64), out)
        assert out.view(np.uint64)[0] == place
    # stripes with live neighbours went through the door that verifies them
    if partly:
        assert fixture.beside & busy
    named = {name for names in fixture.declared for name in names}
    assert {(geometry.group_of(p), fixture.stripe_of(p)[1] // AREA_STRIPES) for p in given} <= named


def test_places_of_open_bands_read_back_and_their_neighbours_do_not():
    geometry = geometry_of(2, 1, 64)
    busy = {place for place in range(128) if place % 3}
    fixture = _Fixture(geometry, busy)
    runs = [fixture.placer.block() for _ in range(5)]
    for first, _, buffer in runs:
        buffer.view(np.uint64)[:] = first
        fixture.placer.filled(first, 1)
    places = np.arange(128)
    out = np.zeros(128 * BLOCK_BYTES, np.uint8)
    found = fixture.placer.read_back(places, out)
    assert set(places[found].tolist()) & busy == set()
    mine = {first for first, _, _ in runs}
    assert mine <= set(places[found].tolist())
    for place in mine:
        assert out.reshape(128, -1).view(np.uint64)[place, 0] == place


# --- what walks remember ------------------------------------------------------------------------------------------


class Looks:
    """Counts the areas that a volume's placer looks at, for whole stripes and for single places."""

    def __init__(self, volume: Volume) -> None:
        self.n_areas = self.n_partial = 0
        area, partial_words = volume.space.area, volume.space.partial_words

        def counted_area(name):
            self.n_areas += 1
            return area(name)

        def counted_words(name):
            self.n_partial += 1
            return partial_words(name)

        volume.space.area, volume.space.partial_words = counted_area, counted_words  # type: ignore[method-assign]


def break_stripes(volume: Volume, n_left: int) -> np.ndarray:
    """Take all that is free but so many places of each group, none of them on its first data disk; return what."""
    taken = []
    for group in volume.geometry.groups:
        places = np.arange(group.first, group.stop)
        free = places[~volume.space.is_busy(places)]
        on_first = (free - group.first) // group.chunk_blocks % group.n_data == 0
        taken.append(np.concatenate([free[on_first], free[~on_first][n_left:]]))
    every = np.concatenate(taken)
    volume.space.take_numbers(every)
    return every


def placed(volume: Volume, n_blocks: int) -> list[int]:
    """Places for file data, filled."""
    runs = volume.placer.run(n_blocks)
    for first, count, buffer in runs:
        buffer[:] = 0
        volume.placer.filled(first, count)
    return [place for first, count, _ in runs for place in range(first, first + count)]


def test_a_point_looks_through_a_volume_without_whole_stripes_once():
    volume = make_volume(geometry_of(2, 1, 64, n_groups=32), reserve_blocks=16)
    client = FileClient(volume)
    client.write(1, 0, range(4))
    volume.sync()
    break_stripes(volume, 64)
    looks = Looks(volume)
    for index in range(0, 40, 4):
        client.write(2, index, range(index, index + 4))
    volume.sync()
    assert looks.n_areas <= 32 + 2
    assert looks.n_partial <= 2 * 2 * 32  # there and back, each area with and without landings
    assert present(client.files) == present(FileClient(again(volume)).files)


def test_areas_that_are_full_are_passed_once():
    """Not for each 64 stripes with a few places."""
    volume = make_volume(geometry_of(2, 1, 64, n_groups=32), reserve_blocks=16)
    break_stripes(volume, 2)
    volume.space.take_numbers(np.concatenate([np.arange(g.first, g.stop) for g in volume.geometry.groups[:16]]))
    looks = Looks(volume)
    assert len(placed(volume, 30)) == 30
    assert looks.n_partial <= 2 * 32
    assert len(placed(volume, 2)) == 2
    with pytest.raises(NoSpaceError):
        placed(volume, 1)


def test_whole_stripes_that_are_too_few_for_a_long_band_are_found_without_a_walk_for_each():
    volume = make_volume(geometry_of(2, 1, 64, n_groups=32), reserve_blocks=16)
    free = [np.arange(group.first, group.first + 2) for group in volume.geometry.groups]
    volume.space.take_numbers(np.concatenate(free))
    looks = Looks(volume)
    assert len(placed(volume, 2000)) == 2000
    assert looks.n_areas <= 3 * 32


@pytest.mark.parametrize("way", ["given back", "receive given up", "committed"])
def test_stripes_that_came_free_are_found_at_once(way):
    volume = make_volume(geometry_of(2, 1, 64, n_groups=3), reserve_blocks=16)
    landing, leaf = LandingPlaces(volume), volume.geometry.groups[1].first // LEAF_BLOCKS
    if way == "receive given up":
        words = np.zeros(LEAF_BLOCKS // 64, np.uint64)
        set_range(words, 0, 64)
        landing.reserve(leaf, words)
    taken = break_stripes(volume, 64)

    def is_on_first_disk() -> bool:
        place = placed(volume, 1)[0]
        group = volume.geometry.groups[volume.geometry.group_of(place)]
        return place - group.first < 64

    assert not is_on_first_disk()
    if way == "given back":
        volume.space.release_now(taken)
    elif way == "receive given up":
        landing.give_up()
        volume.space.forget()
    else:
        volume.commit(force=True)
        volume.space.forget()
    assert is_on_first_disk()


# --- what shadows mean --------------------------------------------------------------------------------------------


def fill_up(fixture: _Fixture, n_places: int, rng: random.Random, *more: str) -> list[int]:
    """Every free place in the order in which they are given out."""
    given: list[int] = []
    while len(given) < n_places:
        kind = rng.choice(["block", "local_block", *more])
        given += fixture.take(kind, min(rng.randrange(1, 90), n_places - len(given)))
    return given


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=range(len(GEOMETRIES)))
@pytest.mark.parametrize("seed", range(6))
def test_what_shadows_mean_goes_last_and_every_place_goes(geometry, seed):
    rng = random.Random(seed)
    every = [place for first, stop in geometry.place_extents.tolist() for place in range(first, stop)]
    fixture = _Fixture(geometry, set(rng.sample(every, len(every) // 9)) if seed % 2 else set())
    stripes: dict[tuple[int, int], list[int]] = {}
    for place in every:
        stripes.setdefault(fixture.stripe_of(place), []).append(place)
    chosen = rng.sample(sorted(stripes), len(stripes) // 2)
    spared = {rng.choice(stripes[name]) for name in chosen}
    fixture = _Fixture(geometry, fixture.busy, spared - fixture.busy)
    free = set(every) - fixture.busy
    given = fill_up(fixture, len(free), rng)
    assert sorted(given) == sorted(free)
    with pytest.raises(NoSpaceError):
        fixture.placer.block()
    is_whole = {name: not set(places) & fixture.busy for name, places in stripes.items()}
    whole = [place for place in given if is_whole[fixture.stripe_of(place)]]
    n_clean = sum(not set(stripes[fixture.stripe_of(place)]) & fixture.spared for place in whole)
    early = [place for place in whole[:n_clean] if place in fixture.spared]
    # one stream took them while the other's band still had clean ones
    assert len(early) <= max(len(fixture.spared) // 10, 8)


def test_no_whole_stripe_is_broken_for_a_shadow():
    """Stripes that hold live blocks come after all whole ones, also after those that shadows mean."""
    geometry = geometry_of(4, 1, 256)
    every = set(range(1024))
    fixture = _Fixture(geometry, {5, 80, 140, 210, 600}, every - set(range(256)))
    busy = {fixture.stripe_of(place) for place in fixture.busy}
    given = fill_up(fixture, len(every - fixture.busy), random.Random(1), "run")
    partly = [n for n, place in enumerate(given) if fixture.stripe_of(place) in busy]
    n_whole = sum(fixture.stripe_of(place) not in busy for place in every)
    assert partly[0] >= n_whole - 20
    assert not set(given[:200]) & fixture.spared


def test_among_partly_free_stripes_those_without_a_shadow_go_first():
    geometry = geometry_of(2, 1, 128)
    free = {place for place in range(256) if place % 64 in (3, 40) and place % 128 < 64}
    spared = {place for place in free if place % 64 == 3}
    fixture = _Fixture(geometry, set(range(256)) - free, spared)
    given = fixture.take("block", len(free))
    assert set(given) == free
    assert not set(given[: len(free - spared) // 2]) & spared


def test_areas_ahead_are_looked_at_a_few_at_a_time():
    """A clean area far off is found; where there is none, what a band looks at does not grow with the volume."""
    n_areas = 3 * LOOK_AREAS
    geometry = geometry_of(1, 0, AREA_STRIPES * n_areas)
    viewed: list = []

    def space_of(clean: int | None) -> Space:
        words = np.full(512, ~np.uint64(0))
        leaf_of = lambda leaf: np.zeros(512, np.uint64) if leaf * 4 == clean else words  # noqa: E731
        space = Space(geometry, lambda leaf: np.zeros(512, np.uint64), lambda: leaf_of)
        area = space.area
        space.area = lambda name: viewed.append(name) or area(name)
        return space

    placer = Placer(
        DiskArray(geometry, memory_disks(geometry)), space_of(8), lambda names: None, lambda *_: False, None, None
    )
    placer._space.take_log = []
    found = [placer._find([Area.take_word], False)[0].name[1] for _ in range(4)]
    assert found[-1] // 4 == 2
    viewed.clear()
    placer = Placer(
        DiskArray(geometry, memory_disks(geometry)), space_of(None), lambda names: None, lambda *_: False, None, None
    )
    counts = []
    for _ in range(40):
        viewed.clear()
        assert placer._find([Area.take_word], False) is not None
        counts.append(len(viewed))
    assert max(counts) <= LOOK_AREAS + 1
    assert sum(counts) <= 40 + LOOK_AREAS + 1
