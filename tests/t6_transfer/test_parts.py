"""One image over several streams: sent at once, received in any order, read in place as far as the parts are there."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from contextlib import nullcontext
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks.pending import Pending
from blockplane.filesystem.owners import owners_of
from blockplane.image.extents import numbers_in
from blockplane.model.checks import crc32c
from blockplane.model.errors import (
    NoSuchSnapshotError,
    RefusedError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamPartMissingError,
    TapeDamagedError,
    UsageError,
    VolumeDamagedError,
)
from blockplane.model.progress import ignore_progress
from blockplane.stream import folder
from blockplane.stream.input import ObjectInput, open_input
from blockplane.stream.reader import StreamReader
from blockplane.transfer import landtogether, resume_token
from equality import differences, volume_tree

MIB = 1 << 20
NAMES = [f"june{i}" for i in range(4)]
FORMS = {
    "plain": {},
    "compressed": {"compress": "zstd"},
    "implicit": {"locations": "implicit"},
    "tape": {"order": "tape", "locations": "implicit", "compress": "zstd"},
    "split": {"split": 300_001, "digests": True, "preallocate": True},
    "encrypted": {"encrypt": True},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four snapshots; files that stay, files that change, names that go."""
    root, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(8)
    bp.create_key(root / "key")
    with bp.Volume.create(root / "pool", disks=4, size="24M", parity=1) as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/stays", rng.bytes(3 * MIB))
        for i, name in enumerate(NAMES):
            files.write_bytes(f"/f{i}", rng.bytes(MIB + 5 * i))
            files.write_bytes("/changing", rng.bytes(600_000))
            if i == 2:
                files.unlink("/f0")
            volume.snapshot(name)
        yield volume


def text_of(i: int) -> str:
    return f"{NAMES[i]} - {NAMES[i - 1]}" if i else NAMES[i]


def require_equal(source, path: Path, names) -> None:
    with bp.Volume.open(path, writable=False) as copy:
        assert bp.check(copy).problems == []
        assert [snapshot.name for snapshot in copy.snapshots] == list(names)
        assert bp.interrupted_receives(copy) == []
        for name in names:
            mine = volume_tree(bp.FileSystem(copy.get_snapshot(name)))
            assert differences(mine, volume_tree(bp.FileSystem(source.get_snapshot(name)))) == []


def send_in_three(source, i: int, folder: Path, **options) -> list[Path]:
    """By an expression, by a plane, and the rest."""
    image = source.image(text_of(i))
    rng = np.random.default_rng(i)
    plane = bp.Plane.empty(image.space_blocks)
    plane.add_many(np.sort(rng.choice(numbers_in(image.plane.extents()), len(image.plane) // 3, replace=False)))
    files = [folder / f"{NAMES[i]}-{part}.bps" for part in ("fast", "some", "slow")]
    chosen = [f"june3 & {NAMES[i]}" if i < 3 else "june3 & june0", plane, None]
    report = bp.send_parts(image, [bp.Part(*each) for each in zip(files, chosen, strict=True)], **options)
    planes = bp.divided(image, chosen)
    assert [its.n_blocks for its in report.parts] == [len(each) for each in planes]
    assert report.n_blocks == image.n_blocks
    return files


def test_a_band_that_the_disks_have_counts_though_that_is_said_late(source, tmp_path, monkeypatch):
    """The thread of a disk may be held up between the end of a write and the word of it."""
    streams = send_in_three(source, 0, tmp_path)

    def finish(pending: Pending) -> None:
        if pending._when_done is not None:
            pending._when_done(pending)
            pending._when_done = None
            time.sleep(0.02)
        pending._event.set()

    monkeypatch.setattr(Pending, "_finish", finish)
    bp.receive_streams(*streams, target=tmp_path / "copy")
    require_equal(source, tmp_path / "copy", NAMES[:1])


def test_a_part_into_a_volume_that_stops_meanwhile_is_not_received(source, tmp_path):
    """What it brought is not noted: that it succeeded would be a lie."""
    streams = send_in_three(source, 0, tmp_path)
    with bp.Volume.create(tmp_path / "copy", disks=4, size="24M", parity=1) as volume:

        def stop(event: bp.ProgressEvent) -> None:
            if event.phase == "commit":
                volume.stop(OSError("a disk is gone"))

        with pytest.raises(VolumeDamagedError, match="a disk is gone"):
            bp.receive(streams[0], volume, progress=stop)
    bp.receive_streams(*streams, target=tmp_path / "copy")
    require_equal(source, tmp_path / "copy", NAMES[:1])


def test_the_planes_are_a_partition(source):
    image = source.image("june3")
    planes = bp.divided(image, ["june3 - june1", "june3 & june2", "june3 & june0", None, None])
    assert sum(len(plane) for plane in planes) == image.n_blocks
    union = planes[0]
    for plane in planes[1:]:
        assert not (union & plane)
        union = union | plane
    assert union == image.plane
    assert planes[0] == source.image("june3 - june1").plane
    assert planes[1] == image.plane & source.image("june2").plane - planes[0]
    with pytest.raises(UsageError, match="are in no part"):
        bp.divided(image, ["june3 - june1"])


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("x.partial", {}),
        ("x.sha256", {}),  # a commit removes the digests of the stream before
        ("x.sha256.partial", {"digests": True}),
        ("x.000", {}),
        ("x.001", {"split": MIB}),
        ("x.001.partial", {"split": MIB}),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_no_part_is_a_file_that_another_uses(source, tmp_path, other, options, dry_run):
    for names in (["x", other], [other, "x"]):
        with pytest.raises(UsageError, match=r"two parts go to one file: .*x"):
            bp.send_parts(
                source.image("june3"), [bp.Part(tmp_path / name) for name in names], dry_run=dry_run, **options
            )
        assert list(tmp_path.iterdir()) == []


def test_parts_whose_names_look_like_pieces(source, tmp_path):
    files = [tmp_path / name for name in ("x", "x.001", "x.002")]
    bp.send_parts(source.image("june0"), [bp.Part(file) for file in files])
    bp.receive_streams(*files, target=tmp_path / "copy")
    require_equal(source, tmp_path / "copy", NAMES[:1])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_equal_shares(source, n):
    image = source.image("june3")
    sizes = [len(plane) for plane in bp.divided(image, [None] * n)]
    assert (sum(sizes), max(sizes) - min(sizes) <= 1) == (image.n_blocks, True)


@pytest.mark.parametrize("form", FORMS)
def test_full_and_three_increments(source, tmp_path, rng, form):
    """Verified, read in place and merged; received one by one in any order, and all at once."""
    options = dict(FORMS[form])
    key = source.path.parent / "key" if options.pop("encrypt", False) else None
    every: list[Path] = []
    streams = tmp_path / "streams"
    streams.mkdir()
    for i in range(4):
        files = send_in_three(source, i, streams, key=key, **options)
        every += files
        for number in rng.permutation(3).tolist():
            report = bp.receive(files[number], tmp_path / "one by one", key=key)
            assert (report.part, report.n_parts) == (number, 3)
            names = [] if report.n_blocks_missing else [NAMES[i]]
            assert list(report.arrived) == names
        assert report.n_blocks_missing == 0
        require_equal(source, tmp_path / "one by one", NAMES[: i + 1])
    verdict = bp.verify_streams(*every, key=key)
    assert (verdict.problems, verdict.proved) == ([], NAMES)
    assert verdict.n_blocks == sum(source.image(text_of(i)).n_blocks for i in range(4))
    with bp.open_stream(*reversed(every), key=key) as chain:
        for name in NAMES:
            mine = volume_tree(bp.FileSystem(chain.at(name)))
            assert differences(mine, volume_tree(bp.FileSystem(source.get_snapshot(name)))) == []
    assert bp.compare_streams(*every, volume=source, snapshot="june3", key=key).ok
    merged = bp.merge_streams(*every, sink=tmp_path / "merged", key=key, encrypt=False if key else None)
    assert merged.sent.n_blocks == source.image("june3").n_blocks
    bp.receive(tmp_path / "merged", tmp_path / "from merged")
    require_equal(source, tmp_path / "from merged", ["june3"])
    bp.receive_streams(streams, target=tmp_path / "at once", key=key, size="40M", disks=2)
    require_equal(source, tmp_path / "at once", NAMES)


def test_every_order_of_parts(source, tmp_path):
    files = send_in_three(source, 0, tmp_path)
    for number, order in enumerate(permutations(files)):
        kept = 0
        for file in order:
            report = bp.receive(file, tmp_path / f"copy{number}")
            kept += report.n_blocks
            assert report.n_blocks_missing == source.image("june0").n_blocks - kept
            with bp.Volume.open(tmp_path / f"copy{number}", writable=False) as copy:
                assert bool(copy.snapshots) is (report.n_blocks_missing == 0)
                assert bp.check(copy).problems == []
        require_equal(source, tmp_path / f"copy{number}", ["june0"])


def test_a_part_that_comes_again(source, tmp_path):
    files = send_in_three(source, 0, tmp_path)
    for file in (files[0], files[0], files[2], files[0]):
        assert bp.receive(file, tmp_path / "copy").n_blocks_missing
    assert bp.receive(files[1], tmp_path / "copy").arrived == ("june0",)
    assert bp.receive(files[1], tmp_path / "copy").already_there
    require_equal(source, tmp_path / "copy", ["june0"])


def test_parts_of_two_divisions_and_a_token(source, tmp_path):
    """Blocks count, whichever division they came by; the source can send what is left."""
    files = send_in_three(source, 0, tmp_path)
    bp.receive(files[1], tmp_path / "copy")
    image = source.image("june0")
    others = [bp.Part(tmp_path / "a"), bp.Part(tmp_path / "b")]
    bp.send_parts(image, others)
    report = bp.receive(tmp_path / "a", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        token = resume_token(copy)
    assert token.n_left == report.n_blocks_missing
    assert 0 < token.n_left < image.n_blocks // 2
    rest = io.BytesIO()
    bp.send(image, rest, resume=token)
    assert bp.receive(io.BytesIO(rest.getvalue()), tmp_path / "copy").arrived == ("june0",)
    require_equal(source, tmp_path / "copy", ["june0"])


def test_a_whole_stream_ends_what_a_part_began(source, tmp_path):
    files = send_in_three(source, 0, tmp_path)
    bp.receive(files[2], tmp_path / "copy")
    bp.send(source.image("june0"), tmp_path / "whole")
    assert bp.receive(tmp_path / "whole", tmp_path / "copy").arrived == ("june0",)
    require_equal(source, tmp_path / "copy", ["june0"])


def test_parts_that_are_cut_off_go_on(source, tmp_path, rng):
    files = send_in_three(source, 0, tmp_path)
    for file in files:
        data = file.read_bytes()
        cut = int(rng.integers(len(data) // 2, len(data) - 5000))
        with pytest.raises(StreamError, match="ends after"):
            bp.receive(io.BytesIO(data[:cut]), tmp_path / "copy")
        report = bp.receive(file, tmp_path / "copy")
    assert report.n_blocks_missing == 0
    require_equal(source, tmp_path / "copy", ["june0"])


def test_a_damaged_part_takes_no_other_with_it(source, tmp_path):
    files = send_in_three(source, 0, tmp_path)
    n_missing = bp.receive(files[0], tmp_path / "copy").n_blocks_missing
    data = bytearray(files[1].read_bytes())
    data[-5000] ^= 1
    with pytest.raises(StreamDamagedError, match=r"blocks of june0 are kept in .*copy"):
        bp.receive(io.BytesIO(bytes(data)), tmp_path / "copy")
    assert 0 < bp.receive(files[2], tmp_path / "copy").n_blocks_missing < n_missing
    assert bp.receive(files[1], tmp_path / "copy").n_blocks_missing == 0
    require_equal(source, tmp_path / "copy", ["june0"])


def test_giving_up(source, tmp_path):
    files = send_in_three(source, 0, tmp_path)
    bp.receive(files[0], tmp_path / "copy")
    assert bp.abort_receive(tmp_path / "copy") == source.image("june0").n_blocks
    assert not (tmp_path / "copy").exists()
    for i in range(2):
        for file in send_in_three(source, i, tmp_path)[: 3 - i]:
            bp.receive(file, tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        free = copy.free_blocks
    bp.abort_receive(tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert copy.free_blocks > free
    require_equal(source, tmp_path / "copy", ["june0"])


def test_parts_onto_content_with_discard(source, tmp_path):
    """Equal blocks that are there do not stand for a part's: both parts are needed, and enough."""
    files = send_in_three(source, 0, tmp_path)
    bp.send(source.image("june0"), tmp_path / "whole")
    bp.receive(tmp_path / "whole", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        copy.rename_snapshot("june0", "old")
        bp.FileSystem(copy).write_bytes("/x", b"x")
        copy.snapshot("mine")
        copy.delete_snapshot("old")
        with pytest.raises(RefusedError, match="has content, and the image of june0 is full"):
            bp.receive(files[0], copy)
        for file in files:
            report = bp.receive(file, copy, discard=True)
        assert (report.n_blocks_missing, report.arrived) == (0, ("june0",))
        assert {s.name for s in copy.snapshots} == {"mine", "june0"}
        assert bp.check(copy).problems == []


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Files of every size, directories of several blocks, long links, attributes that need blocks, a hole."""
    rng = np.random.default_rng(4)
    with bp.Volume.create(tmp_path_factory.mktemp("mixed") / "pool", disks=3, size="40M") as volume:
        files = bp.FileSystem(volume)
        files.makedirs("/a/b")
        for i in range(400):
            files.write_bytes(f"/a/b/a-name-of-some-length-{i}", rng.bytes(int(rng.integers(0, 9000))))
        files.write_bytes("/big", rng.bytes(6 * MIB))
        files.symlink("far/" * 500, "/link")
        files.setxattr("/big", "user.much", rng.bytes(9000))
        files.truncate("/big", 40 * MIB)
        volume.snapshot("june1")
        files.write_bytes("/new", rng.bytes(MIB))
        volume.snapshot("june2")
        files.unlink("/new")
        yield volume


def test_metadata_is_all_but_the_content_of_files(mixed):
    """Held against the search for each block's owner."""
    for name in ("june1", "june2"):
        plane = mixed.get_snapshot(name).plane
        meta = mixed.metadata(name)
        assert (meta - plane, mixed.image(f"{name} & meta({name})").plane == meta) == (
            bp.Plane.empty(meta.n_blocks),
            True,
        )
        owned = owners_of(mixed.state(name), plane)
        content = bp.Plane.empty(meta.n_blocks)
        for owner in owned:
            if owner.what == "file" and owner.level == 0:
                content.add(owner.start, owner.stop)
        assert sum(owner.stop - owner.start for owner in owned) == len(plane)
        assert meta == plane - content
        assert {owner.what for owner in owned if owner.start in meta} >= {"directory", "attributes", "symlink", "file"}


def test_listing_with_the_metadata_and_what_is_new_alone(mixed, tmp_path):
    """Every name, attribute and the new file come from the fast part; the old content needs the slow one."""
    image = mixed.image("june2")
    parts = [bp.Part(tmp_path / "fast", "meta(june2) + (june2 - june1)"), bp.Part(tmp_path / "slow")]
    report = bp.send_parts(image, parts)
    assert report.parts[0].n_blocks < image.n_blocks // 3
    theirs = bp.FileSystem(mixed.get_snapshot("june2"))
    with bp.open_stream(tmp_path / "fast") as chain:
        mine = bp.FileSystem(chain)
        assert list(mine.walk("/")) == list(theirs.walk("/"))
        for name in theirs.listdir("/a/b"):
            assert mine.stat(f"/a/b/{name}") == theirs.stat(f"/a/b/{name}")
        assert mine.getxattr("/big", "user.much") == theirs.getxattr("/big", "user.much")
        assert (mine.readlink("/link"), mine.read_bytes("/new")) == (
            theirs.readlink("/link"),
            theirs.read_bytes("/new"),
        )
        assert mine.data_ranges("/big") == theirs.data_ranges("/big")
        with pytest.raises(StreamPartMissingError, match="part 2 of 2"):
            mine.read_bytes("/big")


def test_metadata_as_an_operand(mixed):
    meta, plane = mixed.metadata("june2"), mixed.get_snapshot("june2").plane
    old = mixed.get_snapshot("june1").plane
    for text, wanted in (
        ("meta(june2)", meta),
        ("june2 - meta(june2)", plane - meta),
        ("meta(june2) + (june2 - june1)", meta | (plane - old)),
        ("june2 - june1 - meta(june2)", plane - old - meta),
        ("june2 & meta(june1)", plane & mixed.metadata("june1")),
        ("meta(june1) ^ meta(june2)", (mixed.metadata("june1") | meta) - (mixed.metadata("june1") & meta)),
    ):
        image = mixed.image(text)
        assert image.plane == wanted, text
        assert "can be counted and listed" in image.why_not_sendable
    with pytest.raises(NoSuchSnapshotError):
        mixed.image("meta(june7)")


# --- a part that cannot be reached ------------------------------------------------------------------------------------


def test_reading_without_a_part(source, tmp_path):
    """What the parts at hand have is read; for the rest the error names the part, and never an older content."""
    whole = tmp_path / "june0.bps"
    bp.send(source.image("june0"), whole)
    image = source.image("june2 - june0")
    data = source.who_has("/changing", "june2").plane & image.plane
    files = [tmp_path / "slow.bps", tmp_path / "fast.bps"]
    bp.send_parts(image, [bp.Part(files[0], data), bp.Part(files[1])])
    with bp.open_stream(whole, files[1]) as chain:
        read = bp.FileSystem(chain)
        assert read.read_bytes("/f2") == bp.FileSystem(source.get_snapshot("june2")).read_bytes("/f2")
        assert read.read_bytes("/stays") == bp.FileSystem(source.get_snapshot("june2")).read_bytes("/stays")
        with pytest.raises(StreamPartMissingError, match=r"block \d+ of june2 is in part 1 of 2 .*only .*fast\.bps"):
            read.read_bytes("/changing")
        at_june0 = bp.FileSystem(chain.at("june0"))
        assert at_june0.read_bytes("/changing") == bp.FileSystem(source.get_snapshot("june0")).read_bytes("/changing")
    with bp.open_stream(whole, *files) as chain:
        assert bp.FileSystem(chain).read_bytes("/changing") == bp.FileSystem(source.get_snapshot("june2")).read_bytes(
            "/changing"
        )


def test_what_is_reachable_is_what_can_be_read(source, tmp_path):
    """Block by block: what the planes say, and what reading the chain says."""
    bp.send(source.image("june0"), tmp_path / "june0")
    image = source.image("june2 - june0")
    plane = bp.Plane.empty(image.space_blocks)
    plane.add_many(numbers_in(image.plane.extents())[::3])
    files = [tmp_path / name for name in ("a", "b", "c")]
    bp.send_parts(image, [bp.Part(files[0], plane), bp.Part(files[1]), bp.Part(files[2])])
    wanted = source.image("june2")
    for chosen in ([0], [1, 2], [0, 1, 2], [2]):
        given = [tmp_path / "june0", *(files[i] for i in chosen)]
        found = bp.reach(wanted, *given)
        lost = {vbn for i in range(3) if i not in chosen for vbn in members(bp.stream_map(files[i]).following)}
        assert members(found.reachable) == members(wanted.plane) - lost
        assert (sum(found.elsewhere.values()), found.in_none) == (len(lost), 0)
        assert sum(found.by_stream.values()) == len(found.reachable)
        out = np.empty(4096, np.uint8)
        with bp.open_stream(*given) as chain:
            at_june2 = chain.at("june2")
            for vbn in numbers_in(wanted.plane.extents())[::7].tolist():
                try:
                    at_june2.read_extents(np.array([[vbn, vbn + 1]]), out)
                    assert vbn in found.reachable
                except StreamPartMissingError:
                    assert vbn not in found.reachable
    found = bp.reach(wanted, *files)
    assert found.in_none == len(wanted.plane - image.plane)
    with pytest.raises(StreamMismatchError, match="do not bring the top of june3"):
        bp.reach(source.image("june3"), *files)


def members(plane: bp.Plane) -> set[int]:
    return set(numbers_in(plane.extents()).tolist())


def test_verifying_without_a_part(source, tmp_path):
    files = send_in_three(source, 0, tmp_path)
    for file in files:
        assert bp.verify_streams(file).problems == []  # by itself it is as it should be
    n_blocks = bp.stream_map(files[1]).header.part_blocks
    (problem,) = bp.verify_streams(files[0], files[2]).problems
    assert problem == f"{n_blocks} blocks of june0 are in part 2 of 3, which is not among the streams"
    shutil.copy(files[0], tmp_path / "again")
    (problem,) = bp.verify_streams(files[0], tmp_path / "again").problems
    assert "part 2 or 3 of 3" in problem


def test_merging_and_receiving_without_a_part(source, tmp_path):
    files = send_in_three(source, 0, tmp_path)
    with pytest.raises(StreamPartMissingError, match="part 2 of 3"):
        bp.merge_streams(files[0], files[2], sink=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    bp.send(source.image("june1 - june0"), tmp_path / "june1.bps")
    with pytest.raises(StreamMismatchError, match="are in none of its parts that are named"):
        bp.receive_streams(files[0], files[2], tmp_path / "june1.bps", target=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    # as the last of a list it is begun: what is missing may come when its medium is there
    report = bp.receive_streams(files[0], files[2], target=tmp_path / "copy")
    n_blocks = bp.stream_map(files[1]).header.part_blocks
    assert (report.n_blocks_missing, report.arrives) == (n_blocks, ())
    report = bp.receive_streams(files[1], tmp_path / "june1.bps", target=tmp_path / "copy")
    assert report.arrives == ("june0", "june1")
    require_equal(source, tmp_path / "copy", ["june0", "june1"])


def test_a_forged_part(source, tmp_path):
    """A part plane that is not of the image, and a part that claims more than it brings."""
    files = send_in_three(source, 0, tmp_path)
    data = bytearray(files[0].read_bytes())
    header_bytes = int.from_bytes(data[12:16], "little")
    data[152:156] = (5).to_bytes(4, "little")
    with pytest.raises(StreamDamagedError, match="checksum"):
        bp.receive(io.BytesIO(bytes(data)), tmp_path / "copy")
    data[header_bytes - 4 : header_bytes] = crc32c(bytes(data[: header_bytes - 4])).to_bytes(4, "little")
    with pytest.raises(StreamDamagedError, match="for its part"):
        bp.receive(io.BytesIO(bytes(data)), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# --- sending ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_sent(source, tmp_path):
    image, part = source.image("june0"), bp.Part(tmp_path / "a")
    for parts, match in (
        ([part], "two parts or more"),
        ([part, bp.Part(tmp_path / "." / "a")], "two parts go to"),
        ([bp.Part(tmp_path / "a.partial"), part], "two parts go to one file: .*a.partial and .*a,"),
        ([part, bp.Part(tmp_path / "a.sha256")], "two parts go to"),
        ([bp.Part(tmp_path / "a", "june0 & june1"), bp.Part(tmp_path / "b", "june0 & june2")], "are in no part"),
    ):
        with pytest.raises(UsageError, match=match):
            bp.send_parts(image, parts)
    assert list(tmp_path.iterdir()) == []


def test_each_block_is_read_once(source, tmp_path):
    """All parts together read as much as the image has: but for planning, and holes that are cheap to read through."""
    image = source.image("june3")
    plane = bp.Plane.empty(image.space_blocks)
    plane.add_many(numbers_in(image.plane.extents())[::2])
    before = source.array.counters().read_bytes
    bp.send_parts(image, [bp.Part(tmp_path / "a", plane), bp.Part(tmp_path / "b")])
    n_read = source.array.counters().read_bytes - before
    assert image.n_bytes <= n_read <= 1.05 * image.n_bytes + 64 * 4096


def test_a_dry_run_says_exactly_what_would_be(source, tmp_path):
    image = source.image("june3 - june1")
    parts = [bp.Part(tmp_path / "a", "june3 - june2"), bp.Part(tmp_path / "b")]
    dry = bp.send_parts(image, parts, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    sent = bp.send_parts(image, parts)
    assert [p.stream_bytes for p in dry.parts] == [p.stream_bytes for p in sent.parts]
    assert [p.stream_bytes for p in dry.parts] == [os.path.getsize(part.sink) for part in parts]


def test_a_slow_destination_holds_no_other_up(source, tmp_path):
    """The fast part is whole, under its name, while the slow one has not been read yet."""
    reader, writer = os.pipe()
    image = source.image("june3")
    seen: list[bool] = []

    def drain() -> None:
        deadline = 200
        while not (tmp_path / "fast").exists() and deadline:
            deadline -= 1
            threading.Event().wait(0.05)
        seen.append((tmp_path / "fast").exists())
        with os.fdopen(reader, "rb") as pipe, open(tmp_path / "slow", "wb") as out:
            out.write(pipe.read())

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        bp.send_parts(image, [bp.Part(tmp_path / "fast", "june3 - june0"), bp.Part(writer)])
    finally:
        os.close(writer)
        thread.join()
    assert seen == [True]
    bp.receive_streams(tmp_path / "slow", tmp_path / "fast", target=tmp_path / "copy")
    require_equal(source, tmp_path / "copy", ["june3"])


class Waiting:
    """The bytes of a part; in the middle it waits, as for a tape that is changed: then come the rest, or an error."""

    def __init__(self, path: Path, error: Exception | None) -> None:
        self._file, self._n_left, self._error = io.BytesIO(path.read_bytes()), path.stat().st_size // 2, error
        self.waits, self.goes_on = threading.Event(), threading.Event()

    def readinto(self, out: memoryview) -> int:
        if self._n_left:
            n_bytes = self._file.readinto(out[: self._n_left])
            self._n_left -= n_bytes
            return n_bytes
        self.waits.set()
        self.goes_on.wait()
        if self._error is not None:
            raise self._error
        return self._file.readinto(out)


class Counting:
    """A landing that counts the buffers that it gave out and was not told of."""

    def __init__(self) -> None:
        self.n_out = self.n_landed = 0

    def buffers(self, extents, checks):
        self.n_out += 1
        return [np.empty(len(checks) * 4096, np.uint8)]

    def landed(self) -> None:
        self.n_out, self.n_landed = self.n_out - 1, self.n_landed + 1

    def waiting(self) -> bp.Plane:
        return bp.Plane.from_extents([[3, 5]], 8)


@pytest.mark.parametrize("error", [None, StreamDamagedError("bad"), TapeDamagedError("gone")], ids=type)
@pytest.mark.parametrize("n_others", [1, 2])
def test_what_lands_beside_a_part_that_waits_is_bounded(source, tmp_path, monkeypatch, error, n_others):
    """And whichever way that one ends, the others do not wait for it then."""
    paths = [tmp_path / str(i) for i in range(n_others + 1)]
    bp.send_parts(source.image("june3"), [bp.Part(path) for path in paths])
    slow = Waiting(paths[0], error)
    readers = [StreamReader(ObjectInput(slow)), *(StreamReader(open_input(os.fspath(path))) for path in paths[1:])]
    parts = [(reader, reader.read_map()) for reader in readers]
    landing, n_out = Counting(), []

    def go_on() -> None:
        n_out.append(landing.n_out)
        slow.goes_on.set()

    class Told(threading.Condition):
        def wait_for(self, predicate, timeout=None):
            if not predicate():
                go_on()
            return super().wait_for(predicate, timeout)

    class Watched(landtogether.Claims):
        def take(self, *heads):
            if threading.current_thread().name != "blockplane part 1":
                slow.waits.wait()
            super().take(*heads)

        def require_all(self):
            go_on()
            super().require_all()

    monkeypatch.setattr(landtogether, "MOST_HANDED", 2, raising=False)
    monkeypatch.setattr(landtogether, "Condition", Told, raising=False)
    monkeypatch.setattr(landtogether, "Claims", Watched)
    with pytest.raises(type(error)) if error is not None else nullcontext():
        landtogether.land_together(parts, landing, ignore_progress)
    for reader in readers:
        reader.origin.close()
    assert n_out[0] == 2
    if error is None:
        assert (landing.n_out, landing.n_landed) == (0, sum(reader.trailer.n_data_frames for reader in readers))


class StoppedError(Exception):
    pass


def test_one_that_fails_stops_the_others_and_they_go_on(source, tmp_path):
    image = source.image("june3")
    parts = [bp.Part(tmp_path / "a"), bp.Part(tmp_path / "b"), bp.Part(tmp_path / "c")]
    write_all, total = folder.HostFile.write_all, {}

    def failing(self, buffers):
        total[self.name] = total.get(self.name, 0) + sum(len(b) for b in buffers)
        if self.name.endswith("b") and total[self.name] > 1000:
            raise OSError(28, "No space left on device")
        write_all(self, buffers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.HostFile, "write_all", failing)
        with pytest.raises(OSError, match="No space"):
            bp.send_parts(image, parts)
    assert not (tmp_path / "b").exists()
    report = bp.send_parts(image, parts, resume=True)
    assert [its.n_blocks + its.n_blocks_before for its in report.parts] == [
        len(p) for p in bp.divided(image, [None] * 3)
    ]
    bp.receive_streams(tmp_path / "a", tmp_path / "b", tmp_path / "c", target=tmp_path / "copy")
    require_equal(source, tmp_path / "copy", ["june3"])
    again = bp.send_parts(image, parts, resume=True)
    assert again.n_blocks == 0
    with pytest.raises(RefusedError, match="another part of june3"):
        bp.send_parts(image, [*parts[::-1]], resume=True)


@pytest.mark.parametrize("seed", range(4))
def test_random_divisions(source, tmp_path, rng, seed, record_property):
    """Random planes, random orders, random cuts: equal content."""
    i, n_parts = int(rng.integers(4)), int(rng.integers(2, 7))
    for j in range(i):
        bp.send(source.image(text_of(j)), tmp_path / "base")
        bp.receive(tmp_path / "base", tmp_path / "copy")
    image = source.image(text_of(i))
    numbers = numbers_in(image.plane.extents())
    chosen: list[bp.Plane | None] = []
    for _ in range(n_parts):
        plane = bp.Plane.empty(image.space_blocks)
        plane.add_many(np.sort(rng.choice(numbers, int(rng.integers(0, len(numbers))), replace=False)))
        chosen.append(plane if rng.random() < 0.7 else None)
    chosen[int(rng.integers(n_parts))] = None
    files = [tmp_path / f"{number}" for number in range(n_parts)]
    report = bp.send_parts(image, [bp.Part(*each) for each in zip(files, chosen, strict=True)])
    sizes = [its.n_blocks for its in report.parts]
    record_property("summary", f"{image}: parts of {sizes} blocks")
    assert bp.verify_streams(*files).problems == []
    for number in rng.permutation(n_parts).tolist():
        data = files[number].read_bytes()
        if rng.random() < 0.3:
            with pytest.raises(StreamError):
                bp.receive(io.BytesIO(data[: int(rng.integers(400, len(data)))]), tmp_path / "copy")
        received = bp.receive(files[number], tmp_path / "copy")
    assert received.n_blocks_missing == 0
    require_equal(source, tmp_path / "copy", NAMES[: i + 1])
