"""Receiving lists and folders of streams: the chain is found by ids, and proved before anything changes."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model.errors import NoSpaceError, RefusedError, StreamDamagedError, StreamMismatchError
from equality import differences, volume_tree

NAMES = [f"june{i}" for i in range(4)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume with four snapshots; its streams are called after nothing that they hold."""
    root, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(3)
    streams = root / "streams"
    streams.mkdir()
    with bp.Volume.create(root / "pool", disks=3, size="12M") as volume:
        files = bp.FileSystem(volume)
        for i, name in enumerate(NAMES):
            files.write_bytes(f"/f{i}", rng.bytes(300_000))
            files.write_bytes("/changing", rng.bytes(100_000))
            volume.snapshot(name)
            text = f"{name} - {NAMES[i - 1]}" if i else name
            bp.send(volume.image(text), streams / "dbca"[i])
        yield volume


@pytest.fixture
def streams(source) -> Path:
    return source.path.parent / "streams"


def of(streams: Path, numbers) -> list[Path]:
    return [streams / "dbca"[i] for i in numbers]


def state_of(path: Path) -> list[tuple[str, int]]:
    if not path.exists():
        return []
    with bp.Volume.open(path, writable=False) as volume:
        assert bp.check(volume).problems == []
        return [(snapshot.name, snapshot.n_blocks) for snapshot in volume.snapshots]


def require_equal(source, path: Path, names) -> None:
    with bp.Volume.open(path, writable=False) as copy:
        assert bp.check(copy).problems == []
        assert [snapshot.name for snapshot in copy.snapshots] == list(names)
        for name in names:
            mine = volume_tree(bp.FileSystem(copy.get_snapshot(name)))
            assert differences(mine, volume_tree(bp.FileSystem(source.get_snapshot(name)))) == []


def test_any_order(source, streams, tmp_path):
    wanted = of(streams, range(4))
    for i, order in enumerate(list(permutations(wanted))[::5]):
        report = bp.receive_streams(*order, target=tmp_path / f"copy{i}")
        assert report.order == tuple(map(str, wanted))
        assert report.arrives == tuple(NAMES)
        assert [its.top for its in report.received] == NAMES
        require_equal(source, tmp_path / f"copy{i}", NAMES)


def test_a_folder_onto_what_is_there(source, streams, tmp_path):
    """What is there is passed over, whether it came by itself or with others."""
    bp.receive_streams(*of(streams, [0]), target=tmp_path / "copy")
    report = bp.receive_streams(*of(streams, [1, 0]), target=tmp_path / "copy")
    assert (report.order, report.there) == ((str(streams / "b"),), (str(streams / "d"),))
    plan = bp.receive_streams(streams, target=tmp_path / "copy", dry_run=True)
    assert (plan.order, plan.received) == ((str(streams / "c"), str(streams / "a")), ())
    assert [name for name, _ in state_of(tmp_path / "copy")] == NAMES[:2]
    report = bp.receive_streams(streams, target=tmp_path / "copy")
    assert (report.order, len(report.there)) == (plan.order, 2)
    require_equal(source, tmp_path / "copy", NAMES)
    again = bp.receive_streams(streams, target=tmp_path / "copy")
    assert (again.order, len(again.there)) == ((), 4)


def test_a_dry_run_makes_no_volume(streams, tmp_path):
    report = bp.receive_streams(streams, target=tmp_path / "copy", dry_run=True)
    assert (report.arrives, os.listdir(tmp_path)) == (tuple(NAMES), [])


@pytest.mark.parametrize("dry", [False, True], ids=["real", "dry"])
@pytest.mark.parametrize(
    ("made", "wish", "error", "message"),
    [
        (None, {"disks": 3, "size": "1M"}, RefusedError, r"the image holds block \d+, and .* has \d+ blocks"),
        (None, {"disks": 3, "size": "1M", "relocate": True}, NoSpaceError, r"together the images have \d+ blocks"),
        ("1M", {}, RefusedError, r"the image holds block \d+, and .* has \d+ blocks"),
        ("1M", {"relocate": True}, NoSpaceError, r"together the images have \d+ blocks, and .* room for \d+"),
    ],
    ids=["numbers", "room", "numbers there", "room there"],
)
def test_what_does_not_fit_is_refused_before_any_of_it_comes(streams, tmp_path, made, wish, error, message, dry):
    """Of the chain of four the first two would fit."""
    if made is not None:
        bp.Volume.create(tmp_path / "copy", disks=3, size=made).close()
    was = state_of(tmp_path / "copy")
    with pytest.raises(error, match=message):
        bp.receive_streams(streams, target=tmp_path / "copy", dry_run=dry, **wish)
    assert state_of(tmp_path / "copy") == was
    if wish.get("relocate"):
        bp.receive_streams(*of(streams, [0, 1]), target=tmp_path / "copy", **wish)
        assert [name for name, _ in state_of(tmp_path / "copy")] == NAMES[:2]


def test_a_source_that_grew_in_the_middle_of_a_chain(tmp_path, rng):
    with bp.Volume.create(tmp_path / "pool", disks=1, size="8M") as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/a", rng.bytes(3_000_000))
        volume.snapshot("june0")
        bp.send(volume.image("june0"), tmp_path / "0.bps")
        volume.grow(2, "8M")
        files.write_bytes("/b", rng.bytes(6_000_000))
        volume.snapshot("june1")
        bp.send(volume.image("june1 - june0"), tmp_path / "1.bps")
        streams = [tmp_path / "0.bps", tmp_path / "1.bps"]
        for dry in (True, False):
            report = bp.receive_streams(*streams, target=tmp_path / "copy", dry_run=dry)
            assert report.arrives == ("june0", "june1")
        require_equal(volume, tmp_path / "copy", ["june0", "june1"])
        bp.receive_streams(*streams, target=tmp_path / "one", disks=1, size="32M", relocate=True)
        require_equal(volume, tmp_path / "one", ["june0", "june1"])


@pytest.mark.parametrize(
    ("numbers", "before", "message"),
    [
        ((0, 2, 3), (), r"c builds on snapshot june1 .* none of the streams brings: june1 is one snapshot after june0"),
        ((0, 1, 3), (), r"a builds on snapshot june2"),
        ((1, 2), (), r"b builds on snapshot june0"),
        ((3,), (0, 1), r"a builds on snapshot june2 .* june2 is one snapshot after june1"),
        ((2, 3), (0,), r"c builds on snapshot june1"),
    ],
)
def test_what_is_missing_is_named_and_nothing_changes(streams, tmp_path, numbers, before, message):
    if before:
        bp.receive_streams(*of(streams, before), target=tmp_path / "copy")
    was = state_of(tmp_path / "copy")
    with pytest.raises(StreamMismatchError, match=message):
        bp.receive_streams(*of(streams, numbers), target=tmp_path / "copy")
    assert state_of(tmp_path / "copy") == was


def test_a_volume_that_was_written_to(source, streams, tmp_path):
    bp.receive_streams(*of(streams, [0, 1]), target=tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        bp.FileSystem(copy).write_bytes("/mine", b"mine")
        copy.sync()
        with pytest.raises(RefusedError, match="was written to since june1"):
            bp.receive_streams(streams, target=copy)
        assert bp.FileSystem(copy).read_bytes("/mine") == b"mine"
        report = bp.receive_streams(streams, target=copy, discard=True)
        assert report.arrives == ("june2", "june3")
    require_equal(source, tmp_path / "copy", NAMES)


def test_what_the_first_of_a_chain_replaces_makes_room_for_the_next(source, streams, tmp_path):
    with bp.Volume.create(tmp_path / "copy", disks=3, size="12M") as copy:
        bp.receive_streams(*of(streams, [0, 1]), target=copy)
        blocks = [bp.stream_map(stream).header.image_blocks for stream in of(streams, [2, 3])]
        room = max(blocks) + 60  # for each of the two by itself; the metadata of what is written now takes some
        bp.FileSystem(copy).write_bytes("/mine", bytes(range(256)) * 16 * (copy.coming_blocks - room))
        copy.sync()
        assert max(blocks) < copy.coming_blocks < sum(blocks)
        for dry in (True, False):
            report = bp.receive_streams(streams, target=copy, discard=True, dry_run=dry)
            assert report.arrives == ("june2", "june3")
    require_equal(source, tmp_path / "copy", NAMES)


def test_content_is_not_replaced_unless_it_is_said(source, streams, tmp_path):
    with bp.Volume.create(tmp_path / "other", disks=2, size="24M") as other:
        bp.FileSystem(other).write_bytes("/mine", b"mine")
        with pytest.raises(RefusedError, match=r"d is a full stream, and .*other has content"):
            bp.receive_streams(streams, target=other)
        assert [s.name for s in other.snapshots] == []
        bp.receive_streams(streams, target=other, discard=True)
    require_equal(source, tmp_path / "other", NAMES)


def test_the_longest_way_is_taken(source, tmp_path):
    """A full stream of the newest, cumulative ones and the chain: all snapshots come, and nothing twice."""
    folder = tmp_path / "streams"
    folder.mkdir()
    for i, text in enumerate(("june3", "june2 - june0", "june0", "june1 - june0", "june3 - june2")):
        bp.send(source.image(text), folder / f"{i}.bps")
    report = bp.receive_streams(folder, target=tmp_path / "copy")
    assert report.order == tuple(str(folder / f"{i}.bps") for i in (2, 3, 1, 4))
    assert report.there == (str(folder / "0.bps"),)
    require_equal(source, tmp_path / "copy", NAMES)


def test_an_older_generation_is_passed_over(source, streams, tmp_path):
    """A chain that ended, and a full stream later: the newer one is received; the older is named."""
    folder = tmp_path / "streams"
    folder.mkdir()
    for i, text in enumerate(("june0", "june2", "june3 - june2", "june1 - june0")):
        bp.send(source.image(text), folder / f"{i}.bps")
    report = bp.receive_streams(folder, target=tmp_path / "copy")
    assert report.order == (str(folder / "1.bps"), str(folder / "2.bps"))
    assert report.older == (str(folder / "0.bps"), str(folder / "3.bps"))
    require_equal(source, tmp_path / "copy", NAMES[2:])


def test_two_snapshots_of_one_name(source, streams, tmp_path):
    """Named before anything is received, though the clash is with the third of them."""
    folder = tmp_path / "streams"
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8M") as volume:
        files = bp.FileSystem(volume)
        folder.mkdir()
        for i, name in enumerate(("a", "b", "c")):
            files.write_bytes(f"/{i}", b"x" * 10_000)
            volume.snapshot(name)
            bp.send(volume.image(f"{name} - {'abc'[i - 1]}" if i else name), folder / f"{i}.bps")
    bp.receive(folder / "0.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        copy.snapshot("c")
        with pytest.raises(RefusedError, match="another one of that name"):
            bp.receive_streams(folder, target=copy)
        assert [s.name for s in copy.snapshots] == ["a", "c"]


def test_a_chain_that_lies_is_refused_before_anything_changes(source, streams, tmp_path):
    """A stream whose image is a block short of its snapshot: its own planes say so, on a base held here too."""
    image = source.image("june2 - june1")
    lost = int(image.plane.select(len(image.plane) // 2))
    image.plane = image.plane - bp.Plane.from_extents([(lost, lost + 1)], image.plane.n_blocks)
    image._layout = None
    bp.send(image, tmp_path / "short.bps")
    for before in ([], [0, 1]):
        target = tmp_path / f"copy{len(before)}"
        if before:
            bp.receive_streams(*of(streams, before), target=target)
        was = state_of(target)
        given = [*of(streams, [0, 1, 3]), tmp_path / "short.bps"]
        with pytest.raises(StreamMismatchError, match=f"(?s)not whole.*{lost}|block map"):
            bp.receive_streams(*given, target=target)
        assert state_of(target) == was


def test_a_damaged_stream_leaves_those_before_it(source, streams, tmp_path):
    data = bytearray((streams / "c").read_bytes())
    with bp.open_stream(*of(streams, [0, 1, 2])) as chain:
        offset = int(chain.path[0].index.frames.max())
    data[offset + 5000] ^= 1
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(StreamDamagedError, match="bad") as caught:
        bp.receive_streams(*of(streams, [0, 1, 3]), tmp_path / "bad", target=tmp_path / "copy")
    assert "june0, june1 came before it and stays" in caught.value.hint
    require_equal(source, tmp_path / "copy", NAMES[:2])
    bp.receive_streams(streams, target=tmp_path / "copy")
    require_equal(source, tmp_path / "copy", NAMES)


@pytest.mark.parametrize("seed", range(6))
def test_histories(source, tmp_path, rng, seed, record_property):
    """Any set of streams of one volume, any of them already there: all that can be reached arrives, or nothing does."""
    folder, texts = tmp_path / "streams", []
    folder.mkdir()
    for i in range(4):
        texts += [f"june{i}"] if i == 0 or rng.random() < 0.2 else []
        texts += [f"june{i} - june{j}" for j in range(i) if rng.random() < 0.6]
    for i, text in enumerate(rng.permutation(texts).tolist()):
        bp.send(source.image(text), folder / f"{i}.bps")
    edges = [tuple(int(name[4:]) for name in text.split(" - ")) for text in texts]
    start = [int(rng.integers(4))] if rng.random() < 0.5 else []
    if start:
        bp.send(source.image(f"june{start[0]}"), tmp_path / "start")
        bp.receive(tmp_path / "start", tmp_path / "copy")
    newest = max(edge[0] for edge in edges)

    def reached(at: int) -> set[int]:
        have = {at}
        for top, base in sorted(edge for edge in edges if len(edge) == 2):
            if base in have and top > max(have):
                have.add(top)
        return have

    ways = [reached(at) for at in start or [edge[0] for edge in edges if len(edge) == 1]]
    best = max(ways, key=lambda way: (max(way), len(way)))
    record_property("summary", f"streams {sorted(texts)} onto {start}: {sorted(best)}")
    if max(best) < newest:
        was = state_of(tmp_path / "copy")
        with pytest.raises((StreamMismatchError, RefusedError)):
            bp.receive_streams(folder, target=tmp_path / "copy")
        assert state_of(tmp_path / "copy") == was
    else:
        bp.receive_streams(folder, target=tmp_path / "copy")
        require_equal(source, tmp_path / "copy", [NAMES[i] for i in sorted(best)])
