"""Version 1: streams that were written once are read, verified, merged and received by every later release.

The files lie in `golden`; `streams/golden.py` is the recipe. They are never made anew: what no longer reads them
is wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blockplane.model import StreamError, StreamKeyError
from blockplane.model.errors import StreamPartMissingError
from blockplane.stream import codec, open_stream
from blockplane.transfer import receive, stream_map, verify_streams
from forging import opened_parts, parts_of
from streams.golden import GROUPS, KEY, NEW, OLD, WRITTEN_NS, golden_streams, storage
from streams.storage import DictStorage, members

FOLDER = Path(__file__).with_name("golden")
FULL = ("full", "compressed", "compressed-encrypted", "implicit", "section")
STEPS = ("increment", "encrypted", "tape")
PARTS = ("part-1", "part-2")


def golden(name: str) -> Path:
    return FOLDER / f"{name}.bps"


@pytest.fixture(scope="module")
def rebuilt() -> dict[str, bytes]:
    return golden_streams()


def test_all_of_them_are_there_and_they_are_small(rebuilt):
    assert {path.name for path in FOLDER.glob("*.bps")} == {f"{name}.bps" for name in (*FULL, *STEPS, *PARTS)}
    assert set(rebuilt) == {*FULL, *STEPS, *PARTS}
    assert sum(path.stat().st_size for path in FOLDER.glob("*.bps")) < 100 << 10


def blocks_of(source, vbns) -> dict[int, bytes]:
    numbers = np.array(sorted(vbns), np.int64)
    out = np.zeros(4096 * len(numbers), np.uint8)
    source.read_extents(np.column_stack((numbers, numbers + 1)), out)
    return dict(zip(numbers.tolist(), (row.tobytes() for row in out.reshape(-1, 4096)), strict=True))


@pytest.mark.parametrize("name", [*FULL, *STEPS, *PARTS])
def test_the_writer_writes_them_still(name, rebuilt):
    """Byte by byte; of what is compressed, which is the library's affair, all but the payloads."""
    kept = golden(name).read_bytes()
    if not packed(kept):
        assert rebuilt[name] == kept
        return
    mine, its = (parts(stream) for stream in (rebuilt[name], kept))
    assert [kind_of(part) for part in mine] == [kind_of(part) for part in its]
    assert mine[0] == its[0]


def packed(stream: bytes) -> bool:
    return bool(codec.decode_header(parts(stream)[0]).features.receiving & codec.FEATURE_ZSTD)


def parts(stream: bytes) -> list[bytes]:
    return opened_parts(stream, KEY) if codec.is_sealed(stream) else parts_of(stream)


def kind_of(part: bytes) -> int:
    return int.from_bytes(part[4:6], "little") if part.startswith(codec.FRAME_MAGIC) else -1


@pytest.mark.parametrize("name", FULL)
def test_full_ones_are_received(name):
    made, old, _ = storage()
    target = DictStorage()
    report = receive(golden(name), target, key=KEY)
    assert (report.n_blocks, report.top, report.base) == (len(OLD), "old", None)
    assert target.blocks == {vbn: made.blocks[vbn] for vbn in OLD}
    assert target.snapshots[old.id] == (old, OLD)


@pytest.mark.parametrize("name", STEPS)
def test_increments_are_received_onto_each_full_one(name):
    made, _, new = storage()
    for full in FULL:
        target = DictStorage()
        receive(golden(full), target, key=KEY)
        receive(golden(name), target, key=KEY)
        assert target.snapshots[new.id] == (new, NEW)
        assert {vbn: target.blocks[vbn] for vbn in NEW} == {vbn: made.blocks[vbn] for vbn in NEW}


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("step", STEPS)
def test_chains_are_read_in_place_and_verified(full, step):
    made, _, _ = storage()
    with open_stream(golden(full), golden(step), key=KEY) as chain:
        assert blocks_of(chain, NEW) == {vbn: made.blocks[vbn] for vbn in NEW}
        assert blocks_of(chain.at("old"), OLD) == {vbn: made.blocks[vbn] for vbn in OLD}
    verdict = verify_streams(golden(full), golden(step), key=KEY)
    assert verdict.verified_blocks == verdict.n_blocks == len(OLD) + len(NEW - OLD)
    # each byte is right; a block of a dictionary is no block map, and nothing else is amiss
    assert all("is not whole" in problem for problem in verdict.problems)


def test_parts_are_one_stream_in_a_chain():
    """Both of them; of one alone what it has, and the other is named. A storage that takes no parts says so."""
    made, _, _ = storage()
    files = [golden(name) for name in PARTS]
    found = [stream_map(file) for file in files]
    assert [(one.header.part, one.header.n_parts, set(members(one.following))) for one in found] == [
        (0, 2, {0, 200}), (1, 2, {1, 64}),
    ]  # fmt: skip
    assert [set(members(one.image)) for one in found] == [OLD, OLD]
    for step in STEPS:
        with open_stream(files[1], golden(step), files[0], key=KEY) as chain:
            assert blocks_of(chain, NEW) == {vbn: made.blocks[vbn] for vbn in NEW}
            assert blocks_of(chain.at("old"), OLD) == {vbn: made.blocks[vbn] for vbn in OLD}
    with open_stream(files[0]) as chain:
        assert blocks_of(chain, {0, 200}) == {vbn: made.blocks[vbn] for vbn in (0, 200)}
        with pytest.raises(StreamPartMissingError, match="block 1 of old is in part 2 of 2"):
            blocks_of(chain, {0, 1})
    target = DictStorage()
    with pytest.raises(StreamError, match="dict takes whole images"):
        receive(files[0], target)
    assert target.blocks == {}


@pytest.mark.parametrize("name", [*FULL, *STEPS])
def test_what_they_say(name):
    found = stream_map(golden(name), key=KEY)
    header = found.header
    assert (header.writer, header.created_ns, header.groups) == ("tests", WRITTEN_NS, GROUPS)
    assert header.order == ("tape" if name == "tape" else "disk")
    assert header.locations.name == ("IMPLICIT" if name in ("implicit", "tape") else "EXPLICIT")
    assert set(members(found.image)) == (OLD if name in FULL else NEW - OLD)
    assert set(members(found.dropped)) == (set() if name in FULL else OLD - NEW)
    assert found.sections == (("of-a-later-release",) if name == "section" else ())
    assert codec.header_length(golden(name).read_bytes()) >= 324
    assert golden(name).read_bytes()[8:12] == codec.VERSION.to_bytes(4, "little")


def test_encrypted_ones_need_their_key():
    for name in ("encrypted", "compressed-encrypted"):
        with pytest.raises(StreamKeyError, match=KEY.id.hex()):
            stream_map(golden(name))


def test_streams_of_another_version_are_refused_by_name(tmp_path):
    raw = bytearray(golden("full").read_bytes())
    raw[8] = 7
    (tmp_path / "seven.bps").write_bytes(raw)
    with pytest.raises(StreamError, match="format version 7; this release reads 1"):
        receive(tmp_path / "seven.bps", DictStorage())


def test_numbers_are_little_endian_whatever_the_host():
    raw = golden("full").read_bytes()
    assert (raw[160:168], raw[168:176]) == (bytes.fromhex("0000010000000000"), bytes.fromhex("0400000000000000"))
