"""Re-baselining: mirrors that share no snapshot with their source any more, and receives that write what differs."""

from __future__ import annotations

import io
import random
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest

import blockplane as bp
import blockplane.transfer.send
from blockplane.disks import aligned_buffer
from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.image.extents import numbers_in
from blockplane.model.checks import block_check, crc32c, fresh_checks
from blockplane.model.errors import (
    NoSuchSnapshotError,
    RefusedError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamTruncatedError,
    UsageError,
)
from blockplane.stream.codec import Role
from blockplane.stream.input import ObjectInput
from blockplane.stream.offer import HEADER_BYTES, OfferReader, OfferWriter, RunDigests
from blockplane.stream.sink import ObjectSink
from blockplane.transfer.against import Lent, compare_offer
from blockplane.transfer.imagesending import ImageSending
from blockplane.volume.borrowing import Trial
from blockplane.volume.holds import release
from equality import differences, volume_tree
from forging import parts_of, sealed

send_module = sys.modules["blockplane.transfer.send"]
MIB = 1 << 20


def stream_of(volume, text, **options) -> bytes:
    sink = io.BytesIO()
    bp.send(volume.image(text), sink, **options)
    return sink.getvalue()


def offer_of(volume, snapshot=None, **options) -> bytes:
    sink = io.BytesIO()
    bp.offer(volume, sink, snapshot, **options)
    return sink.getvalue()


def tree_of(volume, snapshot):
    return volume_tree(bp.FileSystem(volume.get_snapshot(snapshot)))


def vbns_of(plane) -> set[int]:
    return {int(vbn) for vbn in numbers_in(plane.extents())}


def blocks_of(volume, snapshot) -> dict[int, bytes]:
    """Every block of a snapshot by its VBN, read one state at a time."""
    state = volume.get_snapshot(snapshot).state
    vbns = sorted(vbns_of(volume.image(snapshot).plane))
    out = np.empty(len(vbns) * 4096, np.uint8)
    state.reader.read_extents(np.array([[vbn, vbn + 1] for vbn in vbns], np.int64), out)
    data = out.tobytes()
    return {vbn: data[i * 4096 : (i + 1) * 4096] for i, vbn in enumerate(vbns)}


GEOMETRIES = {
    "the same": {},
    "chunk is the disk": {"disks": 3, "size": "100M", "chunk": "disk"},
    "one disk": {"disks": 1, "size": "200M"},
    "two parity disks": {"disks": 6, "size": "40M", "parity": 2},
}


@pytest.fixture
def source(tmp_path):
    random_bytes = random.Random(7).randbytes
    with bp.Volume.create(tmp_path / "pool", disks=5, size="40M", parity=1) as volume:
        files = bp.FileSystem(volume)
        for i in range(12):
            files.write_bytes(f"/f{i}", random_bytes(MIB))
        volume.snapshot("june1")
        yield volume


def estrange(volume, n_files: int = 2) -> None:
    """Change some files, and let the snapshot go that the mirror has."""
    files = bp.FileSystem(volume)
    for i in range(n_files):
        files.write_bytes(f"/f{i}", random.Random(100 + i).randbytes(MIB))
    files.unlink("/f11")
    volume.snapshot("june2")
    volume.delete_snapshot("june1")


def confirmed(source, text, mirror, snapshot, run) -> set[int]:
    """What a model says is proved to be there: whole runs of the offered plane, every byte equal."""
    mine, theirs = blocks_of(source, text), blocks_of(mirror, snapshot)
    vbns, found = sorted(theirs), set()
    for at in range(0, len(vbns), run):
        part = vbns[at : at + run]
        if all(mine.get(vbn) == theirs[vbn] for vbn in part):
            found.update(part)
    return found


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("run", [1, 8, 200])
def test_only_what_differs_travels(source, tmp_path, geometry, run):
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy", **GEOMETRIES[geometry])
    estrange(source)
    with bp.Volume.open(tmp_path / "copy") as mirror:
        offer = offer_of(mirror, run_blocks=run)
        (hold,) = mirror.get_snapshot("june1").holds
        assert hold.owner == "offer:june1"
        lent = confirmed(source, "june2", mirror, "june1", run)
        image = source.image("june2")
        dry = bp.send(image, None, dry_run=True, against=io.BytesIO(offer))
        sink = io.BytesIO()
        report = bp.send(image, sink, against=io.BytesIO(offer))
        assert (report.n_blocks, report.n_blocks_lent) == (image.n_blocks - len(lent), len(lent))
        assert (dry.n_blocks, dry.stream_bytes) == (report.n_blocks, report.stream_bytes)
        assert 0 < report.n_blocks < image.n_blocks / 2
        received = bp.receive(io.BytesIO(sink.getvalue()), mirror)
        assert (received.n_blocks, received.n_blocks_shared) == (report.n_blocks, len(lent))
        assert not mirror.get_snapshot("june1").holds
    with bp.Volume.open(tmp_path / "copy") as mirror:
        assert bp.check(mirror).problems == []
        for name in ("june2",):
            assert differences(tree_of(mirror, name), tree_of(source, name)) == []
            assert blocks_of(mirror, name) == blocks_of(source, name)
        mirror.delete_snapshot("june1")
        for _ in range(4):
            mirror.commit(force=True)
        assert bp.check(mirror).problems == []
        assert differences(tree_of(mirror, "june2"), tree_of(source, "june2")) == []


def mirrored(source, path, **options):
    """A mirror that has june1, and shares nothing with the source any more."""
    bp.receive(io.BytesIO(stream_of(source, "june1")), path, **options)
    estrange(source)
    return bp.Volume.open(path)


def require_same(source, mirror, name) -> None:
    assert bp.check(mirror).problems == []
    assert bp.interrupted_receives(mirror) == []
    assert blocks_of(mirror, name) == blocks_of(source, name)
    assert differences(tree_of(mirror, name), tree_of(source, name)) == []


def test_a_source_whose_blocks_were_moved_and_a_mirror_whose_were(source, tmp_path):
    """Both received onto content: most blocks of either lie elsewhere than at their numbers."""
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    for name in ("middle", "copy2"):
        with bp.Volume.create(tmp_path / name, disks=4, size="64M") as volume:
            bp.FileSystem(volume).write_bytes("/mine", bytes(5 * MIB))
            volume.snapshot("mine")
            bp.receive(io.BytesIO(stream_of(source, "june1")), volume, discard=True)
            assert volume.get_snapshot("june1").state.placemap.n_blocks > 1000
    with bp.Volume.open(tmp_path / "middle") as middle, bp.Volume.open(tmp_path / "copy2") as mirror:
        estrange(middle)
        lent = confirmed(middle, "june2", mirror, "june1", 8)
        offer = offer_of(mirror)
        stream = stream_of(middle, "june2", against=io.BytesIO(offer))
        received = bp.receive(io.BytesIO(stream), mirror)
        assert received.n_blocks_shared == len(lent) > 1000
        require_same(middle, mirror, "june2")
        assert [s.name for s in mirror.snapshots] == ["mine", "june1", "june2"]


@pytest.mark.parametrize("spoilt", [Role.TOP, Role.LENDER])
def test_a_top_or_a_lender_of_another_numbering_is_refused(source, tmp_path, monkeypatch, spoilt):
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    estrange(source)
    with bp.Volume.open(tmp_path / "copy") as mirror:
        offer, real = offer_of(mirror), ImageSending.snapshots

        def snapshots(sending):
            return [(replace(r, space_id=bytes(16)) if role is spoilt else r, role) for r, role in real(sending)]

        monkeypatch.setattr(ImageSending, "snapshots", snapshots)
        stream = stream_of(source, "june2", against=io.BytesIO(offer))
        with pytest.raises(StreamDamagedError, match="of another numbering than its top, or its lender"):
            bp.receive(io.BytesIO(stream), mirror)
        assert [snapshot.name for snapshot in mirror.snapshots] == ["june1"]


# --- equal checks, different bytes ------------------------------------------------------------------------------------

#: The generator of CRC32C as bits of a message: adding it to a block leaves the block's check as it is.
NULL = (1 | 0x82F63B78 << 1).to_bytes(5, "little")


def collided(block: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(block, NULL.ljust(len(block), b"\0"), strict=True))


def test_the_forged_block_has_the_check_of_the_other():
    block = random.Random(5).randbytes(4096)
    assert (block_check(block, 77) == block_check(collided(block), 77), block == collided(block)) == (True, False)


def with_collision(source, path) -> int:
    """Replace a block of a file of the source, on its disk, by another one with the same check; return its VBN."""
    content = bp.FileSystem(source).read_bytes(path)[:4096]
    (vbn,) = [vbn for vbn, data in blocks_of(source, "june1").items() if data == content]
    place = source.get_snapshot("june1").state.placemap.to_places(np.array([vbn]))[0]
    disk, dbn = source.geometry.locate(int(place), int(place) + 1)
    data = aligned_buffer(4096)
    data[:] = np.frombuffer(collided(content), np.uint8)
    source.array.write_raw([(disk, dbn + HEAD_BLOCKS)], data)
    return vbn


@pytest.fixture
def unprotected(tmp_path):
    """A source without parity, that a block can be changed in."""
    with bp.Volume.create(tmp_path / "pool", disks=2, size="64M", parity=0) as volume:
        for i in range(12):
            bp.FileSystem(volume).write_bytes(f"/f{i}", random.Random(i).randbytes(MIB))
        volume.snapshot("june1")
        yield volume


def rebased_over_a_collision(source, path) -> tuple[bp.Volume, int]:
    bp.receive(io.BytesIO(stream_of(source, "june1")), path)
    vbn = with_collision(source, "/f8")
    estrange(source)
    mirror = bp.Volume.open(path)
    bp.receive(io.BytesIO(stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))), mirror)
    return mirror, vbn


def test_a_block_with_an_equal_check_and_other_bytes_is_sent(unprotected, tmp_path):
    mirror, vbn = rebased_over_a_collision(unprotected, tmp_path / "copy")
    with mirror:
        mine, old = blocks_of(mirror, "june2"), blocks_of(mirror, "june1")
        assert mine[vbn] == collided(old[vbn])
        assert block_check(mine[vbn], vbn) == block_check(old[vbn], vbn)
        require_same(unprotected, mirror, "june2")


def test_planted_without_digests_it_would_be_lost(unprotected, tmp_path, monkeypatch):
    """The same history, equal checks taken for sameness on both sides: what the test above sees is there to be seen."""
    monkeypatch.setattr(RunDigests, "of", lambda self, blocks: np.zeros((-(-len(blocks) // self._step), 32), np.uint8))
    mirror, vbn = rebased_over_a_collision(unprotected, tmp_path / "copy")
    with mirror:
        assert (
            blocks_of(mirror, "june2")[vbn] == blocks_of(mirror, "june1")[vbn] != blocks_of(unprotected, "june2")[vbn]
        )


def test_a_full_stream_is_compared_byte_by_byte(unprotected, tmp_path):
    bp.receive(io.BytesIO(stream_of(unprotected, "june1")), tmp_path / "copy")
    vbn = with_collision(unprotected, "/f8")
    estrange(unprotected)
    with bp.Volume.open(tmp_path / "copy") as mirror:
        mine, theirs = blocks_of(unprotected, "june2"), blocks_of(mirror, "june1")
        equal = {v for v, data in mine.items() if theirs.get(v) == data}
        report = bp.receive(io.BytesIO(stream_of(unprotected, "june2")), mirror, discard=True)
        assert (report.n_blocks, report.n_blocks_shared) == (len(mine), len(equal))
        assert vbn not in equal
        require_same(unprotected, mirror, "june2")


def test_planted_without_the_bytes_it_would_be_lost(unprotected, tmp_path, monkeypatch):
    bp.receive(io.BytesIO(stream_of(unprotected, "june1")), tmp_path / "copy")
    vbn = with_collision(unprotected, "/f8")
    estrange(unprotected)

    def by_checks(self):
        found = np.zeros(len(self.vbns), np.bool_)
        found[self._at] = True
        return found

    monkeypatch.setattr(Trial, "same", by_checks)
    with bp.Volume.open(tmp_path / "copy") as mirror:
        bp.receive(io.BytesIO(stream_of(unprotected, "june2")), mirror, discard=True)
        assert blocks_of(mirror, "june2")[vbn] != blocks_of(unprotected, "june2")[vbn]


# --- receiving what is mostly there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("compress", [None, "zstd"])
def test_a_full_stream_onto_most_of_it_writes_what_differs(source, tmp_path, geometry, compress):
    with mirrored(source, tmp_path / "copy", **GEOMETRIES[geometry]) as mirror:
        mine, theirs = blocks_of(source, "june2"), blocks_of(mirror, "june1")
        equal = {v for v, data in mine.items() if theirs.get(v) == data}
        stream = stream_of(source, "june2", compress=compress)
        before = sum(disk.counters.written_bytes for disk in mirror.array.disks)
        report = bp.receive(io.BytesIO(stream), mirror, discard=True)
        assert (report.n_blocks, report.n_blocks_shared) == (len(mine), len(equal))
        assert sum(disk.counters.written_bytes for disk in mirror.array.disks) - before < len(mine) * 4096
        require_same(source, mirror, "june2")
    with bp.Volume.open(tmp_path / "copy") as mirror:
        require_same(source, mirror, "june2")
        mirror.delete_snapshot("june1")
        for _ in range(4):
            mirror.commit(force=True)
        require_same(source, mirror, "june2")
        assert mirror.used_blocks + mirror.free_blocks == mirror.n_blocks
        assert mirror.incoming.n_blocks == 0


def test_a_cut_full_stream_onto_most_of_it_goes_on(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror:
        stream = stream_of(source, "june2")
        with pytest.raises(StreamTruncatedError):
            bp.receive(io.BytesIO(stream[: len(stream) * 2 // 3]), mirror, discard=True)
    with bp.Volume.open(tmp_path / "copy") as mirror:
        assert bp.check(mirror).problems == []
        rest = stream_of(source, "june2", resume=bp.resume_token(mirror))
        bp.receive(io.BytesIO(rest), mirror, discard=True)
        require_same(source, mirror, "june2")


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["token", "again", "whole"])
def test_an_interrupted_rebase_goes_on(source, tmp_path, way):
    with mirrored(source, tmp_path / "copy") as mirror:
        stream = stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))
        n_rest = bp.send(source.image("june2"), None, against=io.BytesIO(offer_of(mirror)), dry_run=True).n_blocks
        with pytest.raises(StreamTruncatedError):
            bp.receive(io.BytesIO(stream[: len(stream) * 2 // 3]), mirror)
    with bp.Volume.open(tmp_path / "copy") as mirror:
        assert bp.check(mirror).problems == []
        (incoming,) = bp.interrupted_receives(mirror)
        assert incoming.n_image == n_rest
        with pytest.raises(RefusedError, match="held"):
            mirror.delete_snapshot("june1")
        token = bp.ResumeToken.decode(bp.resume_token(mirror).encode())
        assert 0 < token.n_left < n_rest
        options = {"token": {"resume": token}, "whole": {}}
        rest = stream if way == "again" else stream_of(source, "june2", **options[way])
        report = bp.receive(io.BytesIO(rest), mirror)
        assert report.n_blocks == {"token": token.n_left, "again": n_rest, "whole": source.image("june2").n_blocks}[way]
        require_same(source, mirror, "june2")
        assert not mirror.get_snapshot("june1").holds


def test_what_an_offer_began_goes_on_with_its_own_top_alone(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror:
        stream = stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))
        with pytest.raises(StreamTruncatedError):
            bp.receive(io.BytesIO(stream[: len(stream) * 2 // 3]), mirror)
        token = bp.resume_token(mirror)
        source.snapshot("june3")
        with pytest.raises(
            RefusedError, match="image of june2 that an offer began, and goes on with that one alone"
        ) as no:
            stream_of(source, "june3", resume=token)
        assert "send against a new offer" in no.value.hint
        bp.receive(io.BytesIO(stream_of(source, "june3", against=io.BytesIO(offer_of(mirror)))), mirror)
        assert differences(tree_of(mirror, "june3"), tree_of(source, "june3")) == []


def test_an_offer_comes_too_late_for_a_receive_that_began_without(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror:
        full = stream_of(source, "june2")
        with pytest.raises(StreamTruncatedError):
            bp.receive(io.BytesIO(full[: len(full) // 2]), mirror, discard=True)
        lent = stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))
        with pytest.raises(StreamMismatchError, match="sent against an offer"):
            bp.receive(io.BytesIO(lent), mirror)
        with pytest.raises(UsageError, match="a token says what is left"):
            stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)), resume=bp.resume_token(mirror))
    bp.abort_receive(tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as mirror:
        bp.receive(io.BytesIO(lent), mirror)
        require_same(source, mirror, "june2")


def test_a_half_written_file_of_a_rebase_is_gone_on_with(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror:
        offer = offer_of(mirror)
        bp.send(source.image("june2"), tmp_path / "a.bps", against=io.BytesIO(offer))
        whole = (tmp_path / "a.bps").read_bytes()
        (tmp_path / "b.bps.partial").write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(RefusedError, match="only what a destination lacks that has june1"):
            bp.send(source.image("june2"), tmp_path / "b.bps", resume=True)
        report = bp.send(source.image("june2"), tmp_path / "b.bps", resume=True, against=io.BytesIO(offer))
        assert report.n_blocks_before > 0 < report.n_blocks_lent
        assert bp.verify_streams(tmp_path / "b.bps").problems == []
        with pytest.raises(StreamError, match="only what a destination lacked"):
            bp.open_stream(tmp_path / "b.bps")
        bp.receive(tmp_path / "b.bps", mirror)
        require_same(source, mirror, "june2")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_live_changes_are_not_replaced_unasked(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror:
        stream = stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))
        bp.FileSystem(mirror).write_bytes("/mine", b"precious")
        with pytest.raises(RefusedError, match="has content"):
            bp.receive(io.BytesIO(stream), mirror)
        assert bp.FileSystem(mirror).read_bytes("/mine") == b"precious"
        bp.receive(io.BytesIO(stream), mirror, discard=True)
        require_same(source, mirror, "june2")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_only_a_snapshot_keeps_that_is_being_deleted_is_not_replaced(source, tmp_path, when):
    bp.receive(io.BytesIO(stream_of(source, "june1")), tmp_path / "copy")
    bp.FileSystem(source).write_bytes("/mine", b"precious")
    source.snapshot("mine")
    with bp.Volume.open(tmp_path / "copy") as mirror:
        bp.receive(io.BytesIO(stream_of(source, "mine - june1")), mirror)
        source.rollback("june1")
        bp.FileSystem(source).write_bytes("/f0", b"another branch")
        source.snapshot("june2")
        source.delete_snapshot("june1")
        stream = stream_of(source, "june2", against=io.BytesIO(offer_of(mirror, "june1")))
        mirror.hold_snapshot("mine", "me")
        if when == "before":
            mirror.delete_snapshot("mine", defer=True)
        with pytest.raises(RefusedError, match="has content" if when == "before" else "went meanwhile"):
            bp.receive(io.BytesIO(stream), mirror, progress=lambda _: mirror.delete_snapshot("mine", defer=True))
        assert bp.FileSystem(mirror).read_bytes("/mine") == b"precious"


def test_a_lender_that_went(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror:
        stream = stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))
        with pytest.raises(RefusedError, match="offer:june1"):
            mirror.delete_snapshot("june1")
        release(mirror, "june1", "offer:june1")
        mirror.delete_snapshot("june1")
        with pytest.raises(
            StreamMismatchError, match=r"offer of snapshot june1 \(id [0-9a-f]{32}\), which .* not hold"
        ):
            bp.receive(io.BytesIO(stream), mirror, discard=True)
        assert bp.check(mirror).problems == []
    with pytest.raises(StreamMismatchError, match="offer of snapshot june1"):
        bp.receive(io.BytesIO(stream), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_offers_that_are_of_no_use(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror, bp.Volume.create(tmp_path / "other", 2, "32M") as other:
        bp.FileSystem(other).write_bytes("/x", bytes(MIB))
        with pytest.raises(RefusedError, match="no snapshot"):
            offer_of(other)
        other.snapshot("june1")
        with pytest.raises(RefusedError, match="another volume"):
            stream_of(source, "june2", against=io.BytesIO(offer_of(other)))
        with pytest.raises(RefusedError, match="which is here too"):
            stream_of(source, "june2", against=io.BytesIO(offer_of(source)))
        with pytest.raises(NoSuchSnapshotError):
            offer_of(mirror, "may1")
        for run_blocks in (0, 257):
            with pytest.raises(UsageError, match="a digest over"):
                offer_of(mirror, run_blocks=run_blocks)
        bp.FileSystem(source).write_bytes("/later", b"x" * 9000)
        source.snapshot("june3")
        with pytest.raises(UsageError, match="has a base"):
            stream_of(source, "june3 - june2", against=io.BytesIO(offer_of(mirror)))
        for notes in (b"", b"notes", b"notes of my own" * 100):
            with pytest.raises(StreamError):
                stream_of(source, "june2", against=io.BytesIO(notes))


def test_an_offer_may_be_bounded_and_must_be_of_what_was_asked_for(source, tmp_path):
    with mirrored(source, tmp_path / "copy") as mirror:
        offer, image, record = offer_of(mirror), source.image("june2"), mirror.get_snapshot("june1").record
    n_blocks = OfferReader(ObjectInput(io.BytesIO(offer))).header.space_blocks
    lent = compare_offer(image, io.BytesIO(offer), asked=record.id, most_blocks=n_blocks)
    assert lent.record == record
    reports = [bp.send(image, None, dry_run=True, against=against) for against in (lent, io.BytesIO(offer))]
    assert len({(r.n_blocks, r.n_blocks_lent, r.n_blocks_compared, r.stream_bytes) for r in reports}) == 1
    with pytest.raises(StreamError, match=f"of {n_blocks} block numbers, more than {n_blocks - 1}"):
        compare_offer(image, io.BytesIO(offer), most_blocks=n_blocks - 1)
    with pytest.raises(RefusedError, match="june1, which was not asked for"):
        compare_offer(image, io.BytesIO(offer[:HEADER_BYTES]), asked=bytes(16))


def test_an_offer_has_the_numbers_of_its_snapshot_however_large_the_volume(source, tmp_path):
    with mirrored(source, tmp_path / "copy", disks=4, size="400M") as mirror:
        header = OfferReader(ObjectInput(io.BytesIO(offer_of(mirror)))).header
        assert header.space_blocks == mirror.get_snapshot("june1").state.space_blocks < mirror.n_blocks
        received = bp.receive(io.BytesIO(stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))), mirror)
        assert received.n_blocks_shared > 1000
        require_same(source, mirror, "june2")


def test_who_keeps_the_snapshot_itself_needs_no_hold(source):
    offer_of(source, hold_s=None)
    assert not source.get_snapshot("june1").holds


def test_an_offer_that_failed_holds_nothing(source):
    class FullError(OSError):
        pass

    class Full:
        n = 0

        def write(self, data):
            self.n += 1
            if self.n > 3:
                raise FullError
            return len(data)

    with pytest.raises(FullError):
        bp.offer(source, Full())
    assert not source.get_snapshot("june1").holds


def test_damaged_offers(source, tmp_path, rng):
    """Cut anywhere, or with any byte changed, an offer is refused, and nothing is sent."""
    with mirrored(source, tmp_path / "copy") as mirror:
        offer = offer_of(mirror, run_blocks=200)
    image = source.image("june2")
    bp.send(image, None, dry_run=True, against=io.BytesIO(offer))
    ends = [*range(600), *range(len(offer) - 200, len(offer))]
    for at in [*ends[::7], *rng.integers(0, len(offer), 60).tolist()]:
        bad = bytearray(offer)
        bad[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(StreamError):
            bp.send(image, None, dry_run=True, against=io.BytesIO(bytes(bad)))
    for length in [*ends[::11], *rng.integers(0, len(offer), 30).tolist()]:
        with pytest.raises(StreamError):
            bp.send(image, None, dry_run=True, against=io.BytesIO(offer[:length]))


def sealed_offer(offer: bytes, change) -> bytes:
    """Change an offer's header and put its checksum right."""
    head = bytearray(offer[:HEADER_BYTES])
    change(head)
    struct.pack_into("<I", head, HEADER_BYTES - 4, crc32c(bytes(head[:-4])))
    return bytes(head) + offer[HEADER_BYTES:]


@pytest.mark.parametrize(
    ("offset", "size"), [(8, 4), (12, 4), (40, 8), (48, 8), (56, 4), (60, 2), (62, 2), (64, 2), (66, 2), (68, 4)]
)
@pytest.mark.parametrize("value", [0, 1, 255, 2**16 - 1, 2**32 - 1, 2**64 - 1])
def test_offers_with_absurd_headers(offset, size, value, small_offer, source):
    number = value % (1 << 8 * size)
    if number == int.from_bytes(small_offer[offset : offset + size], "little"):
        return
    if offset == 40 and source.n_blocks <= number <= 1 << 56:
        return  # a larger numbering with the same blocks
    bad = sealed_offer(
        small_offer, lambda head: head.__setitem__(slice(offset, offset + size), number.to_bytes(size, "little"))
    )
    with pytest.raises(StreamError):
        OfferReader(ObjectInput(io.BytesIO(bad))).blocks().__next__()


@pytest.fixture
def small_offer(source):
    return offer_of(source)


@pytest.fixture
def tight(tmp_path):
    """A source whose june2 uses most of its numbers again, and its mirror, which has june1."""
    with bp.Volume.create(tmp_path / "tight", disks=3, size="13M") as volume:
        files = bp.FileSystem(volume)
        for i in range(12):
            files.write_bytes(f"/f{i}", random.Random(i).randbytes(MIB))
        volume.snapshot("june1")
        bp.receive(io.BytesIO(stream_of(volume, "june1")), tmp_path / "copy", disks=4, size="40M")
        volume.delete_snapshot("june1")
        for i in range(6):
            files.unlink(f"/f{i}")
        for _ in range(4):
            volume.commit(force=True)
        for i in range(8):
            files.write_bytes(f"/new{i}", random.Random(50 + i).randbytes(MIB))
        volume.snapshot("june2")
        with bp.Volume.open(tmp_path / "copy") as mirror:
            yield volume, mirror


def test_numbers_that_were_used_again(tight):
    source, mirror = tight
    lent = confirmed(source, "june2", mirror, "june1", 8)
    both = vbns_of(source.image("june2").plane) & vbns_of(mirror.image("june1").plane)
    assert len(both - lent) > 1000 < len(lent)
    received = bp.receive(io.BytesIO(stream_of(source, "june2", against=io.BytesIO(offer_of(mirror)))), mirror)
    assert received.n_blocks_shared == len(lent)
    require_same(source, mirror, "june2")


def test_numbers_that_were_used_again_in_a_full_stream(tight):
    source, mirror = tight
    mine, theirs = blocks_of(source, "june2"), blocks_of(mirror, "june1")
    equal = {v for v, data in mine.items() if theirs.get(v) == data}
    received = bp.receive(io.BytesIO(stream_of(source, "june2")), mirror, discard=True)
    assert received.n_blocks_shared == len(equal)
    require_same(source, mirror, "june2")


def test_an_offer_that_claims_what_is_not_there(tight):
    """It has checks and digests of the source's own blocks: they are not sent, and the mirror finds out by itself."""
    source, mirror = tight
    honest = OfferReader(ObjectInput(io.BytesIO(offer_of(mirror))))
    mine = blocks_of(source, "june2")
    out = io.BytesIO()
    writer = OfferWriter(ObjectSink(out), honest.header)
    writer.write_plane(honest.plane)
    with RunDigests(8) as digests:
        for part in honest.blocks():
            data = np.frombuffer(b"".join(mine.get(int(vbn), bytes(4096)) for vbn in part.vbns), np.uint8)
            writer.write_blocks(fresh_checks(data, part.vbns), digests.of(data))
    writer.finish()
    image = source.image("june2")
    stream = stream_of(source, "june2", against=io.BytesIO(out.getvalue()))
    assert len(stream) < len(stream_of(source, "june2", against=io.BytesIO(offer_of(mirror))))
    before = blocks_of(mirror, "june1")
    with pytest.raises(StreamDamagedError, match="takes blocks from snapshot june1 that it does not have"):
        bp.receive(io.BytesIO(stream), mirror)
    assert [s.name for s in mirror.snapshots] == ["june1"]
    assert bp.interrupted_receives(mirror) == []
    assert bp.check(mirror).problems == []
    assert blocks_of(mirror, "june1") == before
    assert len(vbns_of(image.plane)) == len(mine)


def test_a_stream_that_takes_more_than_there_is(source, tmp_path, monkeypatch):
    with mirrored(source, tmp_path / "copy") as mirror:
        image = source.image("june2")
        record = mirror.get_snapshot("june1").record
        monkeypatch.setattr(send_module, "compare_offer", lambda *_: Lent(record, image.plane))
        stream = stream_of(source, "june2", against=io.BytesIO(b""))
        with pytest.raises(StreamDamagedError, match="from snapshot june1, which does not hold it"):
            bp.receive(io.BytesIO(stream), mirror)
        assert bp.interrupted_receives(mirror) == []
        assert bp.check(mirror).problems == []


@pytest.mark.parametrize(("receiving", "reading"), [(0, 0), (2, 2), (8, 8), (0, 8)])
def test_header_and_lender_must_agree(source, tmp_path, receiving, reading):
    with mirrored(source, tmp_path / "copy") as mirror:
        parts = [bytearray(p) for p in parts_of(stream_of(source, "june2", against=io.BytesIO(offer_of(mirror))))]
        assert struct.unpack_from("<QQ", parts[0], 16) == (10, 10)
        struct.pack_into("<QQ", parts[0], 16, receiving, reading)
        with pytest.raises(StreamDamagedError):
            bp.receive(io.BytesIO(sealed(parts)), mirror)
        assert bp.check(mirror).problems == []
