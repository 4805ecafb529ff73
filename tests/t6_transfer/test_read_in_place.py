"""Backups read where they are: blocks through the index, chains by state, every kind of damage named (laws 8 and 1)."""

from __future__ import annotations

import dataclasses
import io
import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import (
    BlockplaneError,
    NoSuchSnapshotError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamMissingError,
    StreamTruncatedError,
)
from blockplane.stream import Key, open_stream
from blockplane.stream.codec import Features
from blockplane.transfer import receive, send, stream_map, verify_streams
from streams.storage import SPACE_ID, DictSending, DictStorage, pair


def write(folder, name, sending) -> str:
    out = io.BytesIO()
    send(sending, out)
    path = folder / name
    path.write_bytes(out.getvalue())
    return str(path)


@pytest.fixture
def chain(tmp_path) -> tuple[list[str], DictStorage]:
    """old, and new - old: where VBNs 5 to 9 are dropped and 20 to 24 come."""
    storage, old, new = pair()
    full = write(tmp_path, "old.bps", DictSending(storage, old, window_blocks=4))
    step = write(tmp_path, "new.bps", DictSending(storage, new, old, window_blocks=4, stream_id=b"another--stream."))
    return [full, step], storage


def blocks_of(chain, vbns) -> dict[int, bytes]:
    """Read blocks one extent each, in the order given."""
    numbers = np.array(list(vbns), np.int64)
    out = np.zeros(len(numbers) * 4096, np.uint8)
    chain.read_extents(np.column_stack((numbers, numbers + 1)), out)
    return dict(zip(numbers.tolist(), (row.tobytes() for row in out.reshape(-1, 4096)), strict=True))


def test_blocks_of_both_states(chain):
    paths, storage = chain
    for order in itertools.permutations(paths):
        with open_stream(*order) as opened:
            assert opened.snapshot.name == "new"
            assert blocks_of(opened, [24, 0, 20, 4, 3]) == {v: storage.blocks[v] for v in (24, 0, 20, 4, 3)}
            assert blocks_of(opened.at("old"), range(10)) == {v: storage.blocks[v] for v in range(10)}
            with pytest.raises(StreamDamagedError, match="block 20 of old is in none"):
                blocks_of(opened.at("old"), [20])


def test_one_name_has_the_content_of_its_state(tmp_path):
    """A VBN dropped by one increment and used again by a later one: each state reads its own."""
    storage = DictStorage()
    storage.write(range(10), 1)
    a = storage.snapshot("a", frozenset(range(10)), 1)
    paths, expected = [write(tmp_path, "a.bps", DictSending(storage, a))], {"a": dict(storage.blocks)}
    storage.write(range(10, 12), 2)
    b = storage.snapshot("b", frozenset({*range(5), 10, 11}), 2)
    paths.append(write(tmp_path, "b.bps", DictSending(storage, b, a)))
    expected["b"] = {v: storage.blocks[v] for v in (*range(5), 10, 11)}
    storage.write([5, 6], 3)
    c = storage.snapshot("c", frozenset({*range(7), 10}), 3)
    paths.append(write(tmp_path, "c.bps", DictSending(storage, c, b)))
    expected["c"] = {v: storage.blocks[v] for v in (*range(7), 10)}
    with open_stream(*reversed(paths)) as opened:
        assert [record.name for record in opened.snapshots] == ["a", "b", "c"]
        for name, blocks in expected.items():
            assert blocks_of(opened.at(name), blocks) == blocks


def test_any_flipped_bit_is_found(chain, rng):
    """Opening and reading all: whatever the bit, one clear error; in a block it names block, frame and file."""
    paths, storage = chain
    raw = bytearray(Path(paths[0]).read_bytes())
    places = sorted(set(range(0, len(raw), 37)) | set(range(len(raw) - 300, len(raw))))
    wrong = []
    for place in places:
        bad = bytearray(raw)
        bad[place] ^= 1 << int(rng.integers(8))
        Path(paths[0]).write_bytes(bad)
        try:
            with open_stream(paths[0]) as opened:
                blocks_of(opened, range(10))
            wrong.append((place, None))
        except StreamError as error:
            if paths[0] not in str(error):
                wrong.append((place, error))
    assert (len(places) > 1000, wrong) == (True, [])
    bad = raw.replace(storage.blocks[7], storage.blocks[7][:-1] + b"!")
    assert bad != raw
    Path(paths[0]).write_bytes(bad)
    with open_stream(*paths) as opened:
        with pytest.raises(StreamDamagedError, match=r"block 7 in frame \d+ of .*old.bps does not match"):
            blocks_of(opened.at("old"), range(10))
        assert len(blocks_of(opened, [0, 20])) == 2


def test_cut_and_foreign_files(chain, tmp_path):
    paths, _ = chain
    raw = Path(paths[0]).read_bytes()
    for n_bytes in [0, 10, 324, 400, 700, len(raw) // 2, len(raw) - 176, len(raw) - 1]:
        (tmp_path / "cut.bps").write_bytes(raw[:n_bytes])
        with pytest.raises(StreamTruncatedError, match=r"cut\.bps"):
            open_stream(tmp_path / "cut.bps")
    (tmp_path / "foreign.bps").write_bytes(b"PK\3\4" + bytes(5000))
    with pytest.raises(StreamError, match=r"foreign\.bps.*not an image stream"):
        open_stream(tmp_path / "foreign.bps")
    with pytest.raises(StreamMissingError, match=r"nothing\.bps"):
        open_stream(paths[0], tmp_path / "nothing.bps")


def test_a_chain_with_something_missing_names_it(chain, tmp_path):
    paths, _ = chain
    with pytest.raises(StreamMismatchError, match=r"new\.bps builds on snapshot old \(id [0-9a-f]{32}\)"):
        open_stream(paths[1])
    other = DictStorage()
    other.write(range(3), 1)
    record = other.snapshot("old", frozenset(range(3)), 1)
    foreign = DictSending(other, replace(record, space_id=b"elsewhere".ljust(16, b"\0")))
    foreign.header = lambda: replace(DictSending.header(foreign), space_id=b"elsewhere".ljust(16, b"\0"))
    other.snapshots[record.id] = (foreign.top, frozenset(range(3)))
    path = write(tmp_path, "foreign.bps", foreign)
    assert foreign.top.space_id != SPACE_ID
    with pytest.raises(StreamMismatchError, match="of different volumes"):
        open_stream(path, paths[1])
    with open_stream(*paths) as opened, pytest.raises(NoSuchSnapshotError, match="no snapshot: newer"):
        opened.at("newer")


def test_increments_that_build_on_each_other_lack_a_full_stream(tmp_path, rng):
    """Each brings what the other builds on, and both are good."""
    paths = [tmp_path / f"{name}.bps" for name in ("a", "b", "full")]
    with bp.Volume.create(tmp_path / "pool", disks=1, size="16M") as volume:
        for i in (1, 2, 3):
            bp.FileSystem(volume).write_bytes(f"/f{i}", rng.bytes(100_000))
            volume.snapshot(f"s{i}")
        for path, text in zip(paths, ("s3 + s2 - s1", "s3 + s1 - s2", "s1"), strict=True):
            bp.send(volume.image(text), path)
    first, second, full = map(str, paths)
    lacks = f"{first}, {second} build on each other: the full stream, or one that brings s1 or s2 onto something else, "
    assert bp.verify_streams(first, second).problems == [lacks + "is missing"]
    for needs_full in (True, False):
        with pytest.raises(
            StreamMismatchError, match=r"a\.bps, .*b\.bps build on each other: the full stream"
        ) as found:
            open_stream(first, second, needs_full=needs_full)
        assert "the full stream and every increment" in found.value.hint
    assert bp.verify_streams(first, second, full).ok


KEY = Key(bytes(range(32)))


@pytest.fixture(scope="module", params=[(None, None), ("zstd", None), (None, KEY), ("zstd", KEY)])
def backups(request, tmp_path_factory):
    """A chain of three of a volume of files, and what the files hold in each state; half of the bytes shrink."""
    folder = tmp_path_factory.mktemp("backups")
    compress, key = request.param
    rng = np.random.default_rng(11)
    expected: dict[str, dict[str, bytes]] = {}
    with bp.Volume.create(folder / "pool", disks=5, size="24MiB", parity=1) as volume:
        files = bp.FileSystem(volume)
        files.mkdir("/d")
        for i in range(40):
            files.write_bytes(f"/d/small{i:02d}", rng.bytes(int(rng.integers(1, 30_000))))
        files.write_bytes("/d/large", rng.bytes(1 << 18) + rng.integers(0, 16, 3 << 18, dtype=np.uint8).tobytes())
        for n, name in enumerate(["june1", "june2", "june3"]):
            if n:
                with files.open("/d/large", "r+") as large:
                    for block in rng.choice(256, 20, replace=False).tolist():
                        large.seek(block * 4096)
                        large.write(rng.bytes(4096))
                files.unlink(f"/d/small{n:02d}")
                files.write_bytes(f"/d/new{n}", rng.bytes(50_000))
            volume.snapshot(name)
            expected[name] = {path: files.read_bytes(f"/d/{path}") for path in files.listdir("/d")}
        (folder / "chain").mkdir()
        bp.send(volume.image("june1"), folder / "chain" / "1.bps", compress=compress, key=key)
        bp.send(volume.image("june2 - june1"), folder / "chain" / "2.bps", compress=compress, key=key)
        bp.send(volume.image("june3 - june2"), folder / "chain" / "3.bps", compress=compress, key=key)
    return folder / "chain", expected


def is_bare(folder) -> bool:
    """Whether the blocks of the first stream lie there as they are: neither compressed nor encrypted."""
    return stream_map(folder / "1.bps", key=KEY).header.features == Features()


def test_files_of_every_state(backups):
    folder, expected = backups
    with bp.open_stream(folder, key=KEY) as opened:
        for name, contents in expected.items():
            files = bp.FileSystem(opened.at(name))
            assert {path: files.read_bytes(f"/d/{path}") for path in files.listdir("/d")} == contents
        assert bp.FileSystem(opened).check().ok


def test_a_file_costs_little_more_than_its_blocks(backups):
    """1 MiB out of an open chain: at most 3 MiB read, at most 12 frames decompressed, metadata and all."""
    folder, expected = backups
    with bp.open_stream(*sorted(folder.iterdir()), key=KEY) as opened:
        before = dataclasses.replace(opened.counters)
        assert bp.FileSystem(opened).read_bytes("/d/large") == expected["june3"]["large"]
        n_bytes = opened.counters.read_bytes - before.read_bytes
        n_frames = opened.counters.n_frames
    assert n_bytes <= (3 << 20 if is_bare(folder) else 12 << 20)
    assert (n_frames == 0 and n_bytes >= 1 << 20) if is_bare(folder) else (1 <= n_frames <= 12)


def test_reading_touches_single_blocks(backups):
    """A block is read alone, not its frame: one request of 4,096 bytes once the head is known."""
    folder, _ = backups
    expected = (4096, 1) if is_bare(folder) else (0, 0)  # the frame is there, decrypted and decompressed
    with bp.open_stream(folder, key=KEY) as opened:
        root = opened.root_pointer()[0]
        blocks_of(opened, [root])
        before = dataclasses.replace(opened.counters)
        blocks_of(opened, [root])
        after = opened.counters
    assert (after.read_bytes - before.read_bytes, after.n_requests - before.n_requests) == expected


def test_a_restored_volume_is_what_the_chain_says(backups, tmp_path):
    folder, expected = backups
    for path in sorted(folder.iterdir()):
        receive(path, tmp_path / "copy", key=KEY)
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy, bp.open_stream(folder, key=KEY) as opened:
        here, there = bp.FileSystem(copy.get_snapshot("june3")), bp.FileSystem(opened)
        assert list(here.walk("/")) == list(there.walk("/"))
        assert {path: here.read_bytes(f"/d/{path}") for path in expected["june3"]} == expected["june3"]


def test_what_is_forged_in_the_index_is_refused(chain, rng):
    """Entries that lead to other frames, other blocks, or outside: an error, never another block's bytes."""
    from blockplane.model.checks import crc32c
    from blockplane.stream import codec

    paths, storage = chain
    raw = Path(paths[0]).read_bytes()
    trailer = codec.decode_trailer(raw[-codec.TRAILER_BYTES :])
    at = trailer.index_offset
    n_right = 0
    for _ in range(300):
        bad = bytearray(raw)
        offset = at + 48 + 4 * int(rng.integers(6 * trailer.n_index))
        value = int(rng.choice([0, 1, 3, 4, 324, 714, len(raw) - 10, 2**31, 2**32 - 1]))
        bad[offset : offset + 4] = value.to_bytes(4, "little")
        bad[at + 40 : at + 44] = crc32c(bytes(bad[at + 48 : -codec.TRAILER_FRAME_BYTES])).to_bytes(4, "little")
        bad[at + 44 : at + 48] = crc32c(bytes(bad[at : at + 44])).to_bytes(4, "little")
        Path(paths[0]).write_bytes(bad)
        try:
            with open_stream(paths[0]) as opened:
                assert blocks_of(opened, range(10)) == {v: storage.blocks[v] for v in range(10)}
            n_right += 1
        except BlockplaneError as error:
            assert isinstance(error, StreamError)  # noqa: PT017 - the kind, of whatever was raised
    assert n_right < 100


@pytest.mark.parametrize("value", [1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field", range(6))
def test_any_number_in_a_trailer(chain, field, value):
    """Under a right CRC: refused when the stream is opened, whatever the count or offset."""
    from blockplane.model.checks import crc32c
    from blockplane.stream import codec

    raw = bytearray(Path(chain[0][0]).read_bytes())
    at = len(raw) - codec.TRAILER_BYTES
    raw[at + 8 * field : at + 8 * field + 8] = value.to_bytes(8, "little")
    raw[at - 8 : at - 4] = crc32c(bytes(raw[at:])).to_bytes(4, "little")
    raw[at - 4 : at] = crc32c(bytes(raw[at - 48 : at - 4])).to_bytes(4, "little")
    Path(chain[0][0]).write_bytes(raw)
    is_looked_at = field != 1  # how many data frames there are matters to who reads them in order alone
    with pytest.raises(StreamError) if is_looked_at else nullcontext():
        open_stream(chain[0][0]).close()
    assert not verify_streams(chain[0][0]).ok
