"""Who holds which block, against sets of (VBN, place); what each block is, against a walk of every tree by itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import blockplane as bp
from blockplane.filesystem.records import Records
from blockplane.model import UsageError
from blockplane.volume.codec import NUMBER_MASK
from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in
from rig.sets import pairs, used_places


def change(volume, rng, name):
    """Files, large ones, links, attributes and holes, some changed, and a snapshot."""
    files = bp.FileSystem(volume)
    files.makedirs(f"/{name}/deep")
    files.write_bytes(f"/{name}/deep/large", rng.bytes(400_000))
    for i in range(30):
        files.write_bytes(f"/{name}/{i}", rng.bytes(int(rng.integers(9000))))
    files.setxattr(f"/{name}/3", "user.long", rng.bytes(5000))
    files.symlink("x" * 3000, f"/{name}/link")
    files.link(f"/{name}/5", f"/{name}/deep/five")
    with files.open(f"/{name}/sparse", "wb") as file:
        file.seek(3 << 20)
        file.write(rng.bytes(5000))
    if files.exists("/a/deep/large"):
        with files.open("/a/deep/large", "r+b") as file:
            file.seek(100_000)
            file.write(rng.bytes(9000))
        files.unlink(f"/a/{len(volume.snapshots)}")
    volume.snapshot(name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("holders")
    with bp.Volume.create(folder / "plain", disks=4, size="16M") as volume:
        for name in ("a", "b", "c"):
            change(volume, rng, name)
        volume.delete_snapshot("b")
        bp.FileSystem(volume).write_bytes("/live", rng.bytes(30_000))
        volume.sync()
        bp.send(volume.image("a"), folder / "a.bps")
        bp.send(volume.image("c - a"), folder / "c.bps")
        yield volume


@pytest.fixture(scope="module")
def mapped(plain, tmp_path_factory):
    """A volume with something of its own that received both: place maps."""
    rng = np.random.default_rng(4)
    with bp.Volume.create(tmp_path_factory.mktemp("mapped") / "copy", disks=3, size="48M") as volume:
        change(volume, rng, "mine")
        bp.receive(plain.path.parent / "a.bps", volume, discard=True)
        change(volume, rng, "more")
        bp.receive(plain.path.parent / "c.bps", volume, discard=True)
        assert not volume.committed.placemap.is_empty
        yield volume


@pytest.fixture(params=["plain", "mapped"])
def volume(request):
    return request.getfixturevalue(request.param)


def states_of(volume):
    return {**{s.name: s.state for s in volume.snapshots}, "active": volume.state(None)}


def test_holders_are_those_whose_planes_have_the_block_there(volume):
    n = volume.n_numbers
    expected = {}
    for name, state in states_of(volume).items():
        for vbn, place in pairs(state):
            expected.setdefault((vbn, place), []).append(name)
    found, seen = {}, set()
    for use in volume.who(0, n, owners=False):
        holding = use.holding
        vbns = range(holding.start, holding.stop)
        seen |= set(vbns)
        for vbn in vbns if holding.states else ():
            found[vbn, holding.place + vbn - holding.start] = list(holding.states)
            assert holding.use == ("live" if "active" in holding.states else "held")
    assert found == expected
    assert seen == set(range(n))


def test_neighbours_that_are_alike_are_one_run(volume):
    runs = {}
    for use in volume.who(0, volume.n_numbers, owners=False):
        holding = use.holding
        alike = (holding.states, holding.use, holding.place - holding.start)
        runs.setdefault((holding.start, holding.stop), []).append(alike)
    for (one, first), (two, second) in itertools.pairwise(runs.items()):
        assert one[1] == two[0]
        assert first != second


def test_what_a_place_is_in_use_for_where_no_state_has_the_number(volume):
    used = used_places(volume)
    local = local_places(volume)
    seen = {}
    for use in volume.who(0, volume.n_numbers, owners=False):
        if not use.holding.states:
            for place in range(use.holding.start, use.holding.stop):
                seen[place] = use.holding.use
    assert {place for place, use in seen.items() if use in ("local", "taken")} == used & seen.keys()
    assert {place for place, use in seen.items() if use == "local"} == local
    assert len(local) > 0
    free = {place for place, use in seen.items() if use == "free"}
    assert free
    assert not free & used


def local_places(volume):
    local = volume.committed_local
    n_leaves = -(-volume.geometry.n_blocks // LEAF_BLOCKS)
    return {int(n) for leaf in range(n_leaves) for n in numbers_in(local.local_leaf(leaf), leaf * LEAF_BLOCKS)}


def owners_by_walk(state):
    """What every VBN of a state is: (what, level, offset, inode, paths), each tree walked by itself."""
    files, records = bp.FileSystem(state), Records(state)
    found = {state.pointer.number: ("state root", 0, 0, None, ())}
    names = {}
    for path, _, others in files.walk("/"):
        for each in (path, *(f"{path.rstrip('/')}/{name}" for name in others)):
            names.setdefault(files.lstat(each).st_ino, []).append(each)

    def enter(tree, what, inode, paths):
        for level in range(tree.root.depth + 1):
            for index in range(tree.capacity_blocks() // 256**level):
                word, _ = tree.pointer(level, index)
                if word:
                    found[word & NUMBER_MASK] = (what, level, index * 256**level * 4096, inode, paths)

    enter(state.inode_file, "inode file", None, ())
    enter(state.blockmap, "blockmap", None, ())
    enter(state.checksums, "checksum file", None, ())
    enter(state.snapshot_list, "snapshot list", None, ())
    enter(state.branch_list, "branch history", None, ())
    for number, paths in names.items():
        inode, paths = records.get(number), tuple(sorted(paths))
        what = {0o040000: "directory", 0o120000: "symlink"}.get(inode.type, "file")
        for each, word in ((number, what), (inode.attribute_inode, "attributes")):
            tree = records.peek(each).root if each else None
            if tree is not None:
                enter(state.tree(tree), word, each, paths)
    return found


def test_what_a_block_is_agrees_with_a_walk_of_all_trees(volume):
    walked = {name: owners_by_walk(state) for name, state in states_of(volume).items()}
    for name, state in states_of(volume).items():
        assert walked[name].keys() == {vbn for vbn, _ in pairs(state)}
    n_found = 0
    for use in volume.who(0, volume.n_numbers):
        if not use.holding.states:
            assert use.owners == ()
            continue
        newest = walked[use.holding.states[-1]]
        vbns = []
        for owner in use.owners:
            for vbn in range(owner.start, owner.stop):
                offset = owner.offset_bytes + (vbn - owner.start) * 256**owner.level * 4096
                assert (owner.what, owner.level, offset, owner.inode, owner.paths) == newest[vbn]
                vbns.append(vbn)
        assert vbns == list(range(use.holding.start, use.holding.stop))
        n_found += len(vbns)
    assert n_found >= len(pairs(volume.state(None)))


def test_a_part_of_a_run_says_where_it_lies_in_the_file(plain):
    whole = next(o for use in plain.who(0, plain.n_numbers) for o in use.owners if o.stop - o.start > 4 and o.inode)
    middle = whole.start + 2
    [use] = plain.who(middle, middle + 1)
    [owner] = use.owners
    assert (owner.start, owner.stop) == (middle, middle + 1)
    assert owner.offset_bytes == whole.offset_bytes + 2 * 4096
    assert (owner.what, owner.inode, owner.paths) == (whole.what, whole.inode, whole.paths)


@pytest.mark.parametrize("path", ["/", "/a", "/a/deep/large", "/a/3", "/a/link", "/c/5", "/c/sparse"])
def test_the_states_that_have_a_files_blocks(volume, path):
    for snapshot in ("c", None):
        state = volume.state(snapshot)
        if snapshot is None and not bp.FileSystem(volume).exists(path):
            continue
        found = volume.who_has(path, snapshot)
        walked = owners_by_walk(state)
        below = path.rstrip("/") + "/"
        vbns = {
            vbn
            for vbn, (_, _, _, inode, paths) in walked.items()
            if inode and any(p == path or p.startswith(below) for p in paths)
        }
        assert {v for start, stop in found.plane.extents().tolist() for v in range(start, stop)} == vbns
        assert vbns
        mine = {(vbn, place) for vbn, place in pairs(state) if vbn in vbns}
        others = {name: pairs(other) & mine for name, other in states_of(volume).items()}
        expected = []
        for name, held in others.items():
            rest = set().union(*(o for n, o in others.items() if n != name))
            if held:
                expected.append((name, len(held), len(held - rest)))
        assert [(share.name, share.n_blocks, share.exclusive_blocks) for share in found.shares] == expected


def test_what_lies_in_its_inode_has_the_block_of_that(tmp_path, plain):
    with bp.Volume.create(tmp_path / "small", size="8M") as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/tiny", b"tiny")
        files.symlink("tiny", "/link")
        files.write_bytes("/empty", b"")
        numbers = {path: files.lstat(path).st_ino for path in ("/tiny", "/link", "/empty")}
        volume.snapshot("small")
        files.unlink("/tiny")
        volume.sync()
        for path, number in numbers.items():
            found = volume.who_has(path, "small")
            assert found.is_in_inodes
            [[start, stop]] = found.plane.extents().tolist()
            [use] = volume.who(start, stop)
            [owner] = use.owners
            assert (owner.what, owner.offset_bytes) == ("inode file", number * 512 // 4096 * 4096)
            assert [(s.name, s.n_blocks, s.exclusive_blocks) for s in found.shares] == [("small", 1, 1)]
    assert not plain.who_has("/c/deep/large").is_in_inodes


def test_ranges_that_are_none(plain):
    for start, stop in ((5, 5), (-1, 4), (9, 2)):
        with pytest.raises(UsageError, match="are no blocks"):
            plain.who(start, stop)
    [beyond] = plain.who(1 << 50, (1 << 50) + 10)
    assert (beyond.holding.states, beyond.holding.use) == ((), "outside")
