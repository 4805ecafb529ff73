"""Streams that are split over files: every reader, digests, room made before, going on, and pieces that are wrong."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model.errors import (
    NoSpaceError,
    RefusedError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamMissingError,
    StreamOrderError,
    StreamTruncatedError,
    UsageError,
)
from blockplane.stream import folder
from equality import differences, volume_tree

MIB = 1 << 20
SPLIT = 700_001  # no multiple of anything: frames, heads and blocks go over from a piece to the next


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume with four snapshots, each a few MiB more than the last, and the key of some of its streams."""
    root, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(5)
    bp.create_key(root / "key")
    with bp.Volume.create(root / "pool", disks=4, size="40M", parity=1) as volume:
        files = bp.FileSystem(volume)
        for i in range(4):
            files.write_bytes(f"/f{i}", rng.bytes(2 * MIB + 77 * i))
            files.write_bytes("/text", b"some words, again and again; " * 60_000)
            volume.snapshot(f"june{i}")
        yield volume


def key_of(source) -> Path:
    return source.path.parent / "key"


def pieces(path: Path) -> list[Path]:
    return sorted(
        each for each in path.parent.iterdir() if each.name.startswith(f"{path.name}.") and each.suffix[1:].isdigit()
    )


def require_split(path: Path, size: int) -> bytes:
    """The pieces of a path, all but the last of one length; return them joined."""
    found = pieces(path)
    assert [each.name for each in found] == [f"{path.name}.{i:03}" for i in range(len(found))]
    assert [each.stat().st_size for each in found[:-1]] == [size] * (len(found) - 1)
    assert 0 < found[-1].stat().st_size <= size
    return b"".join(each.read_bytes() for each in found)


FORMS = {
    "plain": {},
    "compressed": {"compress": "zstd"},
    "encrypted": {"encrypt": True},
    "compressed and encrypted": {"compress": "zstd", "encrypt": True},
    "implicit": {"locations": "implicit"},
    "tape": {"order": "tape", "locations": "implicit"},
}


@pytest.mark.parametrize("form", FORMS)
def test_full_and_three_increments(source, tmp_path, form):
    """Sent into pieces, verified, read in place, merged, compared, received: as from one file."""
    options = dict(FORMS[form])
    key = key_of(source) if options.pop("encrypt", False) else None
    names = []
    for i in range(4):
        text = f"june{i} - june{i - 1}" if i else "june0"
        names.append(tmp_path / f"june{i}.bps")
        report = bp.send(source.image(text), names[-1], split=SPLIT, digests=True, key=key, **options)
        data = require_split(names[-1], SPLIT)
        assert len(data) == report.stream_bytes
        (tmp_path / "joined").write_bytes(data)
        assert bp.stream_map(tmp_path / "joined", key=key).image == bp.stream_map(names[-1], key=key).image
        subprocess.run(["sha256sum", "--strict", "-c", f"{names[-1].name}.sha256"], cwd=tmp_path, check=True)
        lines = Path(f"{names[-1]}.sha256").read_text().splitlines()
        assert lines == [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in pieces(names[-1])]
    (tmp_path / "joined").unlink()
    firsts = [f"{name}.000" for name in names]
    for streams in (names, firsts, [tmp_path]):
        verdict = bp.verify_streams(*streams, key=key)
        assert (verdict.problems, verdict.proved) == ([], ["june0", "june1", "june2", "june3"])
    with bp.open_stream(*reversed(names), key=key) as chain:
        for i in range(4):
            mine = volume_tree(bp.FileSystem(chain.at(f"june{i}")))
            assert differences(mine, volume_tree(bp.FileSystem(source.get_snapshot(f"june{i}")))) == []
    compared = bp.compare_streams(*names, volume=source, snapshot="june3", key=key)
    assert (compared.ok, compared.n_blocks) == (True, source.image("june3").n_blocks)
    bp.merge_streams(*names, sink=tmp_path / "merged", key=key, encrypt=False if key else None)
    assert bp.verify_streams(tmp_path / "merged").problems == []
    for name in names:
        bp.receive(name, tmp_path / "copy", key=key)
    require_equal(source, tmp_path / "copy", [f"june{i}" for i in range(4)])


def require_equal(source, path: Path, names: list[str]) -> None:
    with bp.Volume.open(path, writable=False) as copy:
        report = bp.check(copy)
        assert (report.ok, report.problems) == (True, [])
        assert [s.name for s in copy.snapshots] == names
        for name in names:
            mine = volume_tree(bp.FileSystem(copy.get_snapshot(name)))
            assert differences(mine, volume_tree(bp.FileSystem(source.get_snapshot(name)))) == []


def test_more_pieces_than_a_process_may_open(source, tmp_path):
    """Written, gone on with, read in order and at random, with fewer descriptors than pieces."""
    path, image = tmp_path / "june3.bps", source.image("june3")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 90, hard))
    try:
        stopped_after(8 * MIB, image, path, split=1 << 16, preallocate=True)
        report = bp.send(image, path, split=1 << 16, preallocate=True, digests=True, resume=True)
        assert report.n_blocks_before > 1000
        assert len(pieces(path)) == -(-len(require_split(path, 1 << 16)) // (1 << 16)) > 150
        assert bp.verify_streams(path).problems == []
        assert bp.compare_streams(path, volume=source, snapshot="june3").ok
        bp.receive(path, tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    require_equal(source, tmp_path / "copy", ["june3"])
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "june3.bps.sha256"], cwd=tmp_path, check=True)


def test_another_stream_takes_the_name(source, tmp_path):
    """What an earlier stream of that name had more of goes, and only that."""
    path = tmp_path / "a.bps"
    bp.send(source.image("june3"), path, split=SPLIT)
    (tmp_path / "a.bps.notes").write_text("mine")
    n_before = len(pieces(path))
    bp.send(source.image("june1 - june0"), path, split=SPLIT)
    assert 1 < len(pieces(path)) < n_before
    assert bp.stream_map(path).top.name == "june1"
    assert sorted(p.name for p in tmp_path.iterdir() if not p.suffix[1:].isdigit()) == ["a.bps.notes"]


def test_a_stream_is_split_or_not(source, tmp_path):
    path = tmp_path / "a.bps"
    bp.send(source.image("june0"), path)
    with pytest.raises(StreamError, match=r"a\.bps is there: a stream that is not split"):
        bp.send(source.image("june0"), path, split=SPLIT)
    path.unlink()
    bp.send(source.image("june0"), path, split=SPLIT)
    with pytest.raises(StreamError, match=r"a\.bps\.000 is there: a stream that is split"):
        bp.send(source.image("june0"), path)


def test_what_has_no_form(source, tmp_path):
    with open(tmp_path / "out", "wb") as file:
        for options in ({"split": SPLIT}, {"digests": True}, {"preallocate": True}):
            with pytest.raises(UsageError):
                bp.send(source.image("june0"), file, **options)
    assert (tmp_path / "out").stat().st_size == 0
    with pytest.raises(UsageError, match="too small"):
        bp.send(source.image("june0"), tmp_path / "a.bps", split=1000)


# --- room made before -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [None, SPLIT])
@pytest.mark.parametrize("compress", [None, "zstd"])
def test_room_is_made_before_and_given_back(source, tmp_path, monkeypatch, split, compress):
    asked = []
    allocate = folder.HostFile.allocate
    monkeypatch.setattr(folder.HostFile, "allocate", lambda self, n: (asked.append(n), allocate(self, n))[1])
    report = bp.send(source.image("june3"), tmp_path / "a.bps", split=split, compress=compress, preallocate=True)
    n_stored = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert n_stored == report.stream_bytes
    assert (sum(asked) > n_stored) if compress else (sum(asked) == n_stored)
    assert [p for p in tmp_path.iterdir() if p.suffix == ".partial"] == []
    assert bp.verify_streams(tmp_path / "a.bps").problems == []


def test_a_full_host_is_noticed_before_a_byte_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    written = []
    monkeypatch.setattr(folder.HostFile, "write_all", lambda *_: written.append(1))
    with pytest.raises(NoSpaceError, match=r"no space left for .*a\.bps"):
        bp.send(source.image("june3"), tmp_path / "a.bps", split=SPLIT, preallocate=True)
    assert (written, list(tmp_path.iterdir())) == ([], [])


# --- going on ---------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stopped_after(n_bytes: int, image, path: Path, **options) -> None:
    """A send whose writing fails once so much is written: as when the process is interrupted."""
    write_all, total = folder.HostFile.write_all, [0]

    def stopping(self, buffers):
        total[0] += sum(len(b) for b in buffers)
        if total[0] > n_bytes:
            raise StoppedError
        write_all(self, buffers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.HostFile, "write_all", stopping)
        with pytest.raises(StoppedError):
            bp.send(image, path, **options)


@pytest.mark.parametrize("form", ["plain", "encrypted", "tape"])
@pytest.mark.parametrize("preallocate", [False, True])
def test_a_split_send_goes_on(source, tmp_path, rng, form, preallocate):
    options = {**FORMS[form], "preallocate": preallocate, "digests": True}
    options |= {"key": key_of(source)} if options.pop("encrypt", False) else {}
    path, image = tmp_path / "june3.bps", source.image("june3")
    for at in rng.integers(2 * MIB, 3 * MIB, 3).tolist():
        stopped_after(at, image, path, split=SPLIT, resume=True, **options)
        assert {p.suffix for p in tmp_path.iterdir()} == {".partial"}
    report = bp.send(image, path, resume=True, **options)
    # with implicit locations it goes on at the end of a window, and this image is one
    assert (report.n_blocks_before >= 512) is (form != "tape")
    require_split(path, SPLIT)
    key = options.get("key")
    assert bp.verify_streams(path, key=key).problems == []
    subprocess.run(["sha256sum", "--strict", "-c", "june3.bps.sha256"], cwd=tmp_path, check=True)
    again = bp.send(image, path, split=SPLIT, resume=True, **options)
    assert (again.n_blocks, again.n_blocks_before) == (0, image.n_blocks)
    bp.receive(path, tmp_path / "copy", key=key)
    require_equal(source, tmp_path / "copy", ["june3"])


def test_going_on_at_another_size_is_refused(source, tmp_path):
    path, image = tmp_path / "june3.bps", source.image("june3")
    stopped_after(4 * MIB, image, path, split=SPLIT)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(StreamError, match="are pieces of 700001 bytes") as caught:
        bp.send(image, path, split=SPLIT + 1, resume=True)
    assert "--split 700001" in caught.value.hint
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    bp.send(image, path, split=SPLIT + 1)
    require_split(path, SPLIT + 1)
    assert [p for p in tmp_path.iterdir() if p.suffix == ".partial"] == []


@pytest.mark.parametrize("n_renamed", [0, 1, 3])
def test_an_end_while_pieces_get_their_names(source, tmp_path, n_renamed):
    """The first one gets its name last: until then there is no stream, and going on finishes it."""
    path, image = tmp_path / "june3.bps", source.image("june3")
    left, rename = [n_renamed], folder.HostFolder.rename

    def stopping(self, old, new):
        if not left[0]:
            raise StoppedError
        left[0] -= 1
        rename(self, old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.HostFolder, "rename", stopping)
        patch.setattr(folder.HostFolder, "remove", lambda *_: None)  # a process that is killed removes nothing
        with pytest.raises(StoppedError):
            bp.send(image, path, split=SPLIT)
    with pytest.raises(StreamMissingError):
        bp.stream_map(path)
    report = bp.send(image, path, split=SPLIT, resume=True)
    assert report.n_blocks == 0
    require_split(path, SPLIT)
    assert bp.verify_streams(path).problems == []


# --- pieces that are wrong --------------------------------------------------------------------------------------------


@pytest.fixture
def split(source, tmp_path):
    path = tmp_path / "june3.bps"
    bp.send(source.image("june3"), path, split=SPLIT)
    return path


def everyone_says(path: Path, kind: type[StreamError], text: str) -> None:
    """Whoever reads the stream names what is wrong."""
    with pytest.raises(kind, match=text):
        bp.receive(path, path.parent / "copy")
    assert not (path.parent / "copy").exists() or bp.abort_receive(path.parent / "copy")
    verdict_or = []
    try:
        verdict_or = bp.verify_streams(path).problems
    except StreamError as error:
        verdict_or = [error.message]
    assert len(verdict_or) == 1
    assert text.replace("\\", "") in verdict_or[0]


def test_a_piece_is_missing(split):
    (split.parent / "june3.bps.003").rename(split.parent / "away")
    everyone_says(split, StreamMissingError, r"june3\.bps\.003 is missing")
    with pytest.raises(StreamMissingError, match=r"june3\.bps\.003 is missing"):
        bp.open_stream(split)


def test_the_last_piece_is_missing(split):
    last = pieces(split)[-1]
    last.unlink()
    everyone_says(split, StreamTruncatedError, pieces(split)[-1].name)


def test_a_piece_is_cut_off(split):
    with open(f"{split}.002", "r+b") as file:
        file.truncate(SPLIT - 1)
    everyone_says(split, StreamTruncatedError, r"june3.bps.002 has 700000 bytes")


def test_pieces_are_exchanged(split):
    one, other = Path(f"{split}.002"), Path(f"{split}.004")
    one.rename(split.parent / "away")
    other.rename(one)
    (split.parent / "away").rename(other)
    everyone_says(split, StreamOrderError, "in the wrong order")


def test_a_piece_of_another_stream(source, split):
    other = split.parent / "other" / "june3.bps"
    other.parent.mkdir()
    bp.send(source.image("june3"), other, split=SPLIT)
    shutil.copy(f"{other}.003", f"{split}.003")
    everyone_says(split, StreamMismatchError, r"june3.bps.003 is a piece of another stream")


def test_a_piece_is_damaged(split, rng):
    """A bit anywhere in the data: the piece is named, or the two that its frame lies in."""
    verdicts = []
    for number in (1, 4):
        name = Path(f"{split}.{number:03}")
        data = bytearray(name.read_bytes())
        at = int(rng.integers(1000, SPLIT - 1000))
        data[at] ^= 1
        name.write_bytes(data)
        (problem,) = bp.verify_streams(split).problems
        verdicts.append(problem)
        assert name.name in problem
        data[at] ^= 1
        name.write_bytes(data)
    assert bp.verify_streams(split).problems == []


def test_reading_in_place_names_the_damaged_piece(split):
    """What is read of a damaged block is refused, and says where it lies."""
    named = 0
    with bp.open_stream(split) as chain:
        for number in range(1, 4):
            name = Path(f"{split}.{number:03}")
            data = bytearray(name.read_bytes())
            name.write_bytes(bytes(b ^ 1 for b in data))
            with pytest.raises(StreamDamagedError, match=name.name):
                _ = [bp.FileSystem(chain).read_bytes(f"/f{i}") for i in range(4)]
            named += 1
            name.write_bytes(data)
    assert named == 3


def test_a_later_piece_is_no_stream(split):
    with pytest.raises(StreamError, match="not an image stream") as caught:
        bp.stream_map(f"{split}.002")
    assert "name" in caught.value.hint
    assert str(split) in caught.value.hint


def test_streams_called_so_are_no_pieces(source, tmp_path):
    """A file that begins as a stream does is one, whatever it is called."""
    for i in range(3):
        bp.send(source.image(f"june{i}"), tmp_path / f"backup.{i:03}")
    assert [bp.stream_map(tmp_path / f"backup.{i:03}").top.name for i in range(3)] == ["june0", "june1", "june2"]


def test_digests_of_odd_names(source, tmp_path):
    path = tmp_path / "a\\b\nc.bps"
    bp.send(source.image("june0"), path, digests=True)
    subprocess.run(["sha256sum", "--strict", "-c", f"{path.name}.sha256"], cwd=tmp_path, check=True)


def test_files_whose_names_end_in_numbers_stay(source, tmp_path):
    """Another stream whose name looks like a piece's stays, whole or half-written; other files are no pieces either."""
    path, other, half = tmp_path / "june", tmp_path / "june.2024", tmp_path / "june.2025.partial"
    bp.send(source.image("june0"), other)
    data = other.read_bytes()
    half.write_bytes(data[:-MIB])
    for top in ("june3", "june1 - june0"):
        bp.send(source.image(top), path, split=SPLIT)
        assert bp.stream_map(path).top.name == top[:5]
    assert (other.read_bytes(), half.read_bytes()) == (data, data[:-MIB])


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_piece_replaces_no_other_stream(source, tmp_path, goes_on):
    path, other = tmp_path / "june", tmp_path / "june.001"
    bp.send(source.image("june0"), other)
    data = other.read_bytes()
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"june\.001 is there, another stream"):
            bp.send(source.image("june3"), path, split=3 * MIB, resume=goes_on)
        assert other.read_bytes() == data
    assert not path.with_suffix(".000").exists()


def test_a_file_that_would_be_taken_for_a_piece_is_named(source, tmp_path):
    notes = tmp_path / "june.2024"
    notes.write_text("mine")
    with pytest.raises(RefusedError, match=r"june\.2024 is there, and would be taken for a piece"):
        bp.send(source.image("june0"), tmp_path / "june", split=SPLIT)
    assert [each.name for each in tmp_path.iterdir()] == ["june.2024"]
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("form", [{}, {"split": 3 * MIB}])
def test_a_dry_run_refuses_what_the_run_refuses(source, tmp_path, form):
    """A key, a volume's disk, what would be taken for a piece, and another stream in the place of a later piece."""
    first = "june" if not form else "june.000"
    (tmp_path / "june" if not form else tmp_path / first).write_bytes(key_of(source).read_bytes())
    (tmp_path / "far").mkdir()
    places = {tmp_path / "june": RefusedError, tmp_path / "nowhere" / "june": StreamError}
    if not form:
        places |= {source.path / "disks" / "0": RefusedError, source.path / "volume.toml": RefusedError}
        places |= {tmp_path / "far": StreamError}
    else:
        bp.send(source.image("june0"), tmp_path / "far" / "june.001")
        (tmp_path / "notes.002").write_text("mine")
        places |= {tmp_path / "far" / "june": RefusedError, tmp_path / "notes": RefusedError}
    for place, kind in places.items():
        before, told = sorted(tmp_path.rglob("*")), []
        for dry_run in (True, False):
            with pytest.raises(kind) as found:
                bp.send(source.image("june3"), place, dry_run=dry_run, **form)
            told.append((found.value.message, found.value.hint.partition(";")[0]))  # a run keeps what it has written
            assert not dry_run or sorted(tmp_path.rglob("*")) == before
        assert told[0] == told[1]
