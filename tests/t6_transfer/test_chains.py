"""Chains of streams: proved whole without a volume, merged into what a direct send gives, compared byte by byte."""

from __future__ import annotations

import io
import itertools
import struct
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.image.extents import extents_of, numbers_in
from blockplane.image.gather import Gathered
from blockplane.model import StreamDamagedError, StreamError, StreamMismatchError, UsageError
from blockplane.model.checks import fresh_checks
from blockplane.planes import Plane
from blockplane.stream import codec
from blockplane.stream.codec import Role
from blockplane.stream.input import ObjectInput
from blockplane.stream.reader import StreamReader
from blockplane.transfer import compare_streams, merge_streams, receive, send, stream_map, verify_streams
from blockplane.transfer.imagesending import ImageSending
from blockplane.volume.codec import BLOCK_WORD, FORM_TREE, Pointer, StateRoot, TreeRoot
from blockplane.volume.state import read_root

NAMES = ["june1", "june2", "june3", "june4"]


def churn(files: bp.FileSystem, rng: np.random.Generator, step: int) -> None:
    """Write some files, rewrite parts of others, remove some."""
    if step == 0:
        files.mkdir("/d")
        files.write_bytes("/d/large", rng.bytes(2 << 20))
    for i in range(6):
        files.write_bytes(f"/d/{step}-{i}", rng.bytes(int(rng.integers(1, 60_000))))
    with files.open("/d/large", "r+") as large:
        for block in rng.choice(512, 30, replace=False).tolist():
            large.seek(block * 4096)
            large.write(rng.bytes(4096))
    for name in sorted(set(files.listdir("/d")) - {"large"}):
        if rng.random() < 0.2:
            files.unlink(f"/d/{name}")


def tree_of(source) -> dict[str, bytes]:
    files = bp.FileSystem(source)
    return {name: files.read_bytes(f"/d/{name}") for name in files.listdir("/d")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume with four snapshots, and the streams of a chain: full, three increments."""
    folder = tmp_path_factory.mktemp("chains")
    rng = np.random.default_rng(23)
    with bp.Volume.create(folder / "pool", disks=5, size="24MiB", parity=1) as volume:
        files = bp.FileSystem(volume)
        for step, name in enumerate(NAMES):
            churn(files, rng, step)
            volume.snapshot(name)
        streams = [folder / f"{name}.bps" for name in NAMES]
        send(volume.image("june1"), streams[0])
        for base, top, path in zip(NAMES, NAMES[1:], streams[1:], strict=False):
            send(volume.image(f"{top} - {base}"), path, compress="zstd" if top == "june3" else None)
        yield volume, [str(path) for path in streams]


def blocks_in(path) -> dict[int, tuple[int, bytes]]:
    """Check and bytes of every block of a stream, read in order."""
    reader = StreamReader(ObjectInput(io.BytesIO(Path(path).read_bytes())))
    reader.read_map()
    found = {}
    while (head := reader.next_data()) is not None:
        payload = np.zeros(head.payload_bytes, np.uint8)
        reader.read_payload([payload.data])
        rows = payload.reshape(-1, 4096)
        for vbn, check, row in zip(numbers_in(head.extents()).tolist(), head.checks().tolist(), rows, strict=True):
            found[vbn] = (check, row.tobytes())
    return found


def assert_same_image(one, other) -> None:
    """Equal in planes, digest, blocks, checks and snapshots."""
    a, b = stream_map(one), stream_map(other)
    assert (a.header.plane_digest, a.header.base_id) == (b.header.plane_digest, b.header.base_id)
    assert (a.header.after_blocks, a.header.top_id, a.header.root) == (
        b.header.after_blocks, b.header.top_id, b.header.root,
    )  # fmt: skip
    assert a.branches == b.branches
    for role in (Role.TOP, Role.ARRIVES, Role.BASE):
        assert [r.id for r in a.with_role(role)] == [r.id for r in b.with_role(role)]
    assert {r.id for r in a.with_role(Role.LEFT_OUT)} == {r.id for r in b.with_role(Role.LEFT_OUT)}
    assert blocks_in(one) == blocks_in(other)


# --- the proof ---


def test_every_subset_in_every_order(source):
    """F14: whole exactly where the full stream and every increment up to the newest are there."""
    _, streams = source
    n_whole = n_wrong = 0
    for n in range(1, 5):
        for chosen in itertools.permutations(range(4), n):
            verdict = verify_streams(*(streams[i] for i in chosen), part=(1, 1000))
            if sorted(chosen) == list(range(n)):
                n_whole += 1
                assert (verdict.problems, verdict.proved) == ([], NAMES[:n])
                assert verdict.order == streams[:n]
            elif n > 1:
                n_wrong += 1
                missing = {NAMES[i - 1] for i in chosen if i and i - 1 not in chosen}
                assert len(verdict.problems) == len(missing)
                assert all(any(f"builds on snapshot {name} " in p for p in verdict.problems) for name in missing)
    assert (n_whole, n_wrong) == (1 + 2 + 6 + 24, 64 - 33 - 3)


def test_a_stream_twice_and_a_folder(source, tmp_path):
    _, streams = source
    for i, path in enumerate(reversed(streams)):
        (tmp_path / f"{i}.bps").write_bytes(Path(path).read_bytes())
    verdict = verify_streams(tmp_path)
    assert (verdict.problems, [Path(name).name for name in verdict.order]) == (
        [], ["3.bps", "2.bps", "1.bps", "0.bps"],
    )  # fmt: skip
    again = verify_streams(*streams, streams[1])
    assert (again.ok, again.repeated, again.order) == (True, [streams[1]], verify_streams(*streams).order)
    counted = [(v.n_blocks, v.verified_blocks, v.stream_bytes, v.snapshots) for v in (again, verify_streams(*streams))]
    assert counted[0] == counted[1]
    (tmp_path / "same.bps").symlink_to(streams[0])
    alone = verify_streams(streams[0], streams[0], tmp_path / "same.bps")
    assert (alone.n_blocks, len(alone.repeated)) == (verify_streams(streams[0]).n_blocks, 2)
    assert verdict.repeated == []
    with pytest.raises(UsageError, match=r"\.bps is named twice$"):
        bp.merge_streams(*streams, streams[1], sink=tmp_path / "merged.bps")
    assert not (tmp_path / "merged.bps").exists()


def test_a_foreign_member_is_named(source, tmp_path):
    _, streams = source
    with bp.Volume.create(tmp_path / "other", disks=3, size="6MiB") as other:
        other.snapshot("june1")
        send(other.image("june1"), tmp_path / "other.bps")
    verdict = verify_streams(*streams, tmp_path / "other.bps")
    assert len(verdict.problems) == 1
    assert "other.bps" in verdict.problems[0]
    assert "different volumes" in verdict.problems[0]


def test_what_is_missing_shows_beside_damage(source, tmp_path):
    """Where every stream says what it is: one that does not may be what is missing."""
    _, streams = source
    bad, cut = tmp_path / "bad.bps", tmp_path / "cut.bps"
    data = bytearray(Path(streams[3]).read_bytes())
    cut.write_bytes(data[:300])
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    with bp.Volume.create(tmp_path / "other", disks=3, size="6MiB") as other:
        other.snapshot("june1")
        send(other.image("june1"), tmp_path / "other.bps")
    damaged, missing = verify_streams(streams[0], streams[1], bad).problems
    assert damaged.startswith(str(bad))
    assert missing.startswith(f"{bad} builds on snapshot june3 ")
    assert len(verify_streams(*streams[:3], bad).problems) == 1
    assert len(verify_streams(streams[0], streams[2], cut).problems) == 1
    assert "different volumes" in verify_streams(*streams[:3], bad, tmp_path / "other.bps").problems[1]


class Tampered:
    """A volume's image with blocks left out, or with other content under right checks."""

    def __init__(self, image, leave_out: int = -1, change: int = -1) -> None:
        self.inner, self.leave_out, self.change = ImageSending(image), leave_out, change

    def __getattr__(self, name):
        return getattr(self.inner, name)

    @property
    def plane(self):
        if self.leave_out < 0:
            return self.inner.plane
        gone = Plane.from_extents([[self.leave_out, self.leave_out + 1]], self.inner.plane.n_blocks)
        return self.inner.plane - gone

    @contextmanager
    def windows(self, *, read=True):
        with self.inner.windows(read=read) as windows:
            yield (self.tampered(window) for window in windows)

    def tampered(self, window):
        numbers, data = numbers_in(window.extents), window.buffer.reshape(-1, 4096).copy()
        data[numbers == self.change, 100] ^= 1
        kept = numbers != self.leave_out
        numbers, data = numbers[kept], data[kept].reshape(-1)
        return Gathered(extents_of(numbers), fresh_checks(data, numbers), data)


class Circular(Tampered):
    """A full image of blocks 0, 1, ...: a block map of which each level leads to one block of the next alone."""

    def __init__(self, image, depth: int, space_blocks: int) -> None:
        super().__init__(image)
        root = StateRoot.decode(read_root(image.top_state.reader, image.top_state.pointer))
        blocks, pointer = [b"\xff" * 4096], b""
        for number in range(depth + 1):
            check = int(fresh_checks(np.frombuffer(blocks[-1], np.uint8), np.array([number]))[0])
            pointer = struct.pack("<QII", BLOCK_WORD | number, check, 0)
            blocks.append(pointer * 256)
        pointers = np.frombuffer(pointer * 16, np.uint64).reshape(16, 2)
        root.blockmap = TreeRoot(FORM_TREE, depth, space_blocks // 8, pointers)
        self.buffer = np.frombuffer(b"".join([*blocks[:-1], root.encode()]), np.uint8)
        self.numbers = np.arange(depth + 2)
        self.checks = fresh_checks(self.buffer, self.numbers)
        self.space_blocks, self.root = space_blocks, Pointer(depth + 1, int(self.checks[-1]))

    @property
    def plane(self):
        return Plane.from_extents(extents_of(self.numbers), self.space_blocks)

    @property
    def dropped(self):
        return Plane.empty(self.space_blocks)

    def header(self):
        n_blocks = len(self.numbers)
        shape = {"space_blocks": self.space_blocks, "image_blocks": n_blocks, "after_blocks": n_blocks}
        return replace(self.inner.header(), root=self.root, **shape)

    def snapshots(self):
        return [(replace(self.inner.snapshots()[0][0], n_blocks=len(self.numbers), root=self.root), Role.TOP)]

    @contextmanager
    def windows(self, *, read=True):
        yield iter([Gathered(extents_of(self.numbers), self.checks, self.buffer)])


def test_a_block_map_that_leads_in_circles_is_followed_once(source, tmp_path):
    """Three levels, of a volume that claims to have room for them."""
    volume, path = source[0], tmp_path / "bad.bps"
    send(Circular(volume.image("june1"), 3, 1 << 36), path)
    problems = verify_streams(path).problems
    assert any("the block map of june1 leads in circles" in problem for problem in problems), problems
    for call in (
        lambda: merge_streams(path, sink=None, dry_run=True),
        lambda: compare_streams(path, volume=volume, snapshot="june1"),
    ):
        with pytest.raises(StreamDamagedError, match="the block map of june1 leads in circles"):
            call()


def some_block(plane, rng) -> int:
    return int(plane.select(int(rng.integers(len(plane)))))


def test_a_block_that_a_stream_lacks(source, tmp_path, rng):
    """Whatever block: the proof names the snapshots and the block, merging refuses; each stream by itself is fine."""
    volume, streams = source
    image = volume.image("june2 - june1")
    needed = image.plane & volume.get_snapshot("june4").plane
    top_root = volume.get_snapshot("june2").record.root.number
    for _ in range(6):
        vbn = some_block(needed, rng)
        if vbn == top_root:
            continue
        send(Tampered(image, leave_out=vbn), tmp_path / "june2.bps")
        assert verify_streams(tmp_path / "june2.bps").ok
        verdict = verify_streams(streams[0], tmp_path / "june2.bps", *streams[2:])
        assert "june1" in verdict.proved
        assert {"june2", "june4"}.isdisjoint(verdict.proved)
        # a block of the block map itself takes what it says of others with it
        assert all("is not whole" in problem or "in none of" in problem for problem in verdict.problems)
        assert "june2.bps: " in " ".join(verdict.problems)
        with pytest.raises(StreamError):
            merge_streams(streams[0], tmp_path / "june2.bps", *streams[2:], sink=tmp_path / "x.bps")
        assert not (tmp_path / "x.bps").exists()


def test_parts_of_a_verification(source, tmp_path, rng):
    """Each block belongs to one part; a flip in a block is found by that part, one in a head by every part."""
    _, streams = source
    whole = verify_streams(*streams)
    assert whole.verified_blocks == whole.n_blocks
    parts = [verify_streams(*streams, part=(k, 5)) for k in range(1, 6)]
    assert all(part.ok and part.n_blocks == whole.n_blocks for part in parts)
    assert sum(part.verified_blocks for part in parts) == whole.n_blocks
    assert max(part.verified_blocks for part in parts) < whole.n_blocks // 2
    raw = Path(streams[0]).read_bytes()
    bad = tmp_path / "bad.bps"
    in_block, in_head = raw.index(b"BPfr", 200_000) + 200_000, raw.index(b"BPfr", 200_000) + 20
    for place, n_finding in ((in_block, 1), (in_head, 5)):
        bad.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        found = [not verify_streams(bad, *streams[1:], part=(k, 5)).ok for k in range(1, 6)]
        assert sum(found) == n_finding
    with pytest.raises(UsageError):
        verify_streams(*streams, part=(6, 5))


# --- merging ---


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_a_synthetic_full_is_what_a_direct_send_gives(source, tmp_path, compress):
    volume, streams = source
    for n in (2, 4):
        merged, direct = tmp_path / f"merged{n}.bps", tmp_path / f"direct{n}.bps"
        report = merge_streams(*reversed(streams[:n]), sink=merged, compress=compress)
        send(volume.image(NAMES[n - 1]), direct)
        if compress is None:
            assert_same_image(merged, direct)
        else:
            merge_streams(merged, sink=tmp_path / "plain.bps")
            assert_same_image(tmp_path / "plain.bps", direct)
        assert verify_streams(merged).ok
        brought = sum(stream_map(path).header.image_blocks for path in streams[:n])
        assert (report.order, report.sent.stream_bytes) == (tuple(streams[:n]), merged.stat().st_size)
        assert report.dead_blocks == brought - stream_map(direct).header.image_blocks
        assert [name for name, _ in report.dropped_snapshots] == NAMES[: n - 1][::-1]
        receive(merged, tmp_path / f"copy{n}")
        with bp.Volume.open(tmp_path / f"copy{n}") as copy:
            assert tree_of(copy.get_snapshot(NAMES[n - 1])) == tree_of(volume.get_snapshot(NAMES[n - 1]))
            assert bp.check(copy).ok


def test_a_merged_increment_is_what_a_direct_send_gives(source, tmp_path):
    volume, streams = source
    for low, high in ((1, 3), (1, 4), (2, 4)):
        merged, direct = tmp_path / f"merged{low}{high}.bps", tmp_path / f"direct{low}{high}.bps"
        report = merge_streams(*streams[low:high], sink=merged)
        send(volume.image(f"{NAMES[high - 1]} - {NAMES[low - 1]}"), direct)
        assert_same_image(merged, direct)
        assert (report.sent.base, report.sent.top) == (NAMES[low - 1], NAMES[high - 1])
    receive(streams[0], tmp_path / "copy")
    receive(tmp_path / "merged14.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert tree_of(copy.get_snapshot("june4")) == tree_of(volume.get_snapshot("june4"))
        assert tree_of(copy.get_snapshot("june1")) == tree_of(volume.get_snapshot("june1"))
        assert bp.check(copy).ok


def test_snapshots_that_stay_whole_arrive(tmp_path):
    """Merged streams of several snapshots say of each what a direct send says."""
    rng = np.random.default_rng(4)
    with bp.Volume.create(tmp_path / "pool", disks=5, size="24MiB") as volume:
        files = bp.FileSystem(volume)
        for step, name in enumerate(NAMES[:3]):
            churn(files, rng, step)
            volume.snapshot(name)
        send(volume.image("june1"), tmp_path / "1.bps")
        send(volume.image("june3 + june2 - june1"), tmp_path / "23.bps")
        send(volume.image("june3"), tmp_path / "direct.bps")
        merge_streams(tmp_path / "1.bps", tmp_path / "23.bps", sink=tmp_path / "merged.bps")
        assert_same_image(tmp_path / "merged.bps", tmp_path / "direct.bps")
        churn(files, rng, 3)
        volume.snapshot("june4")
        send(volume.image("june4 - june3"), tmp_path / "4.bps")
        report = merge_streams(tmp_path / "23.bps", tmp_path / "4.bps", sink=tmp_path / "m.bps")
        send(volume.image("june4 - june1"), tmp_path / "d.bps")
        assert stream_map(tmp_path / "m.bps").image == stream_map(tmp_path / "d.bps").image
        assert {name for name, _ in report.dropped_snapshots} == {"june2", "june3"}
        assert all("not in june4" in why for _, why in report.dropped_snapshots)


@pytest.mark.parametrize("seed", range(4))
def test_numbers_used_again(tmp_path, seed):
    """The source drops each base as soon as the next increment is sent: VBNs come again with other content."""
    rng = np.random.default_rng(seed)
    streams, expected = [], {}
    with bp.Volume.create(tmp_path / "pool", disks=3, size="7MiB", parity=0) as volume:
        files = bp.FileSystem(volume)
        for step in range(6):
            if step:
                files.unlink("/d/large")
            else:
                files.mkdir("/d")
            files.write_bytes("/d/large", rng.bytes(3 << 20))
            files.write_bytes(f"/d/{step}", rng.bytes(30_000))
            volume.snapshot(f"s{step}")
            streams.append(tmp_path / f"{step}.bps")
            send(volume.image(f"s{step} - s{step - 1}" if step else "s0"), streams[-1])
            expected[f"s{step}"] = tree_of(volume.get_snapshot(f"s{step}"))
            if step:
                volume.delete_snapshot(f"s{step - 1}")
        send(volume.image("s5"), tmp_path / "direct.bps")
    planes = [stream_map(path).image for path in streams]
    assert any(len(a & b) for a, b in itertools.combinations(planes, 2))
    with bp.open_stream(*streams) as chain:
        assert {name: tree_of(chain.at(name)) for name in expected} == expected
    assert verify_streams(*streams).proved == list(expected)
    report = merge_streams(*streams, sink=tmp_path / "full.bps")
    assert_blocks(tmp_path / "full.bps", tmp_path / "direct.bps")
    assert any("superseded" in why for _, why in report.dropped_snapshots)
    merge_streams(*streams[1:], sink=tmp_path / "step.bps")
    receive(streams[0], tmp_path / "copy", size="24MiB", disks=3, parity=0)
    receive(tmp_path / "step.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert {name: tree_of(copy.get_snapshot(name)) for name in ("s0", "s5")} == {
            name: expected[name] for name in ("s0", "s5")
        }
        assert bp.check(copy).ok


def assert_blocks(one, other) -> None:
    assert stream_map(one).header.plane_digest == stream_map(other).header.plane_digest
    assert blocks_in(one) == blocks_in(other)


def test_a_dry_run_says_exactly_what_is_written(source, tmp_path):
    _, streams = source
    planned = merge_streams(*streams, sink=None, dry_run=True)
    done = merge_streams(*streams, sink=tmp_path / "x.bps")
    assert planned.sent.stream_bytes == done.sent.stream_bytes == (tmp_path / "x.bps").stat().st_size
    assert replace(planned, sent=done.sent) == done


def test_what_cannot_be_merged(source, tmp_path, rng):
    volume, streams = source
    with pytest.raises(StreamMismatchError, match=r"june4\.bps builds on snapshot june3"):
        merge_streams(streams[0], streams[1], streams[3], sink=tmp_path / "x.bps")
    send(volume.image("june3 - june1"), tmp_path / "side.bps")
    with pytest.raises(StreamMismatchError, match="no part of the chain of june4"):
        merge_streams(*streams, tmp_path / "side.bps", sink=tmp_path / "x.bps")
    raw = bytearray(Path(streams[1]).read_bytes())
    raw[len(raw) // 2] ^= 8
    (tmp_path / "bad.bps").write_bytes(raw)
    with pytest.raises(StreamDamagedError):
        merge_streams(streams[0], tmp_path / "bad.bps", sink=tmp_path / "x.bps")
    assert not list(tmp_path.glob("x.bps*"))


# --- comparing ---


def test_equal_to_the_volume(source):
    volume, streams = source
    for n, name in enumerate(NAMES, 1):
        found = compare_streams(*streams[:n], volume=volume, snapshot=name)
        assert (found.ok, found.n_blocks, found.base_blocks) == (True, volume.get_snapshot(name).n_blocks, 0)
    found = compare_streams(streams[2], volume=volume, snapshot="june3")
    n_blocks = stream_map(streams[2]).header.image_blocks
    assert (found.ok, found.n_blocks) == (True, n_blocks)
    assert found.n_blocks + found.base_blocks == volume.get_snapshot("june3").n_blocks
    with pytest.raises(StreamMismatchError, match="do not bring the snapshot june2"):
        compare_streams(streams[0], volume=volume, snapshot="june2")


def test_a_block_that_differs_is_named(source, tmp_path, rng):
    """Content changed under a right check, in a block of a file: found by the bytes alone."""
    volume, _ = source
    image = volume.image("june1")
    for _ in range(5):
        vbn = some_block(image.plane, rng)
        send(Tampered(image, change=vbn), tmp_path / "changed.bps")
        try:
            found = compare_streams(tmp_path / "changed.bps", volume=volume, snapshot="june1")
        except StreamDamagedError:
            continue  # a block of the block map: the tree above it knows its check
        assert (found.ok, found.n_differing, found.differing) == (False, 1, [vbn])


def test_a_damaged_stream_is_no_difference(source, tmp_path, rng):
    """A flipped bit: the error names the file, and nothing is said to differ."""
    volume, streams = source
    image = volume.image("june1")
    raw = bytearray(Path(streams[0]).read_bytes())
    raw[int(rng.integers(len(raw) // 2, len(raw) * 3 // 4))] ^= 1 << int(rng.integers(8))
    (tmp_path / "bad.bps").write_bytes(raw)
    with pytest.raises(StreamDamagedError, match=r"bad\.bps"):
        compare_streams(tmp_path / "bad.bps", volume=volume, snapshot=image.top.name)


def test_blocks_that_are_missing_are_counted(source, tmp_path, rng):
    volume, _ = source
    image = volume.image("june1")
    vbn = int(image.plane.select(len(image.plane) // 2))
    send(Tampered(image, leave_out=vbn), tmp_path / "lacking.bps")
    found = compare_streams(tmp_path / "lacking.bps", volume=volume, snapshot="june1")
    assert found.n_blocks == len(image.plane) - 1
    assert (found.ok, found.only_in_volume, found.base_blocks) == (False, 1, 0)


def test_the_index_is_held_against_the_frames(source, tmp_path):
    """A right CRC over entries that lie about where blocks are: refused by whoever reads the stream whole."""
    from blockplane.model.checks import crc32c

    _, streams = source
    raw = bytearray(Path(streams[0]).read_bytes())
    at = codec.decode_trailer(bytes(raw[-codec.TRAILER_BYTES :])).index_offset
    head = codec.decode_frame_fixed(bytes(raw[at : at + 48]))
    raw[at + 48 + 20] ^= 1
    raw[at + 40 : at + 44] = crc32c(bytes(raw[at + 48 : at + 48 + head.payload_bytes])).to_bytes(4, "little")
    raw[at + 44 : at + 48] = crc32c(bytes(raw[at : at + 44])).to_bytes(4, "little")
    (tmp_path / "bad.bps").write_bytes(raw)
    verdict = verify_streams(tmp_path / "bad.bps")
    assert [p for p in verdict.problems if "index does not list its blocks" in p] == verdict.problems != []
