"""Images on sets of tapes: written over several, appended, restored, verified, read in place, resumed, damaged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import errors
from blockplane.stream.media import codec
from rig.simh import FILEMARK, objects
from rig.tapes import APPEND, FORM, SNAPSHOTS, fill, same, spoil, write_all


@pytest.fixture(scope="module")
def backup(tmp_path_factory):
    """One set for the tests that only look, from a seed of its own."""
    found = fill(tmp_path_factory.mktemp("tapes"), np.random.default_rng(11))
    write_all(found)
    yield found
    found.volume.close()


def restored(tapes, target: Path, **wish) -> bp.TapeReadReport:
    return bp.read_tape(tapes, target, **wish)


def test_a_full_image_and_three_increments_come_back_with_all_snapshots(backup, tmp_path):
    assert len(backup.tapes) == 5
    report = restored(backup.tapes, tmp_path / "copy", disks=3, size="64M")
    assert [its.top for its in report.received] == list(SNAPSHOTS)
    assert report.problems == []
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert bp.check(copy).ok
        assert [snapshot.name for snapshot in copy.snapshots] == list(SNAPSHOTS)
        assert all(same(copy.get_snapshot(name), backup.files[name]) for name in SNAPSHOTS)
        assert [copy.get_snapshot(n).id for n in SNAPSHOTS] == [backup.volume.get_snapshot(n).id for n in SNAPSHOTS]
    again = restored(backup.tapes, tmp_path / "copy")
    assert all(its.already_there for its in again.received)


def test_every_record_is_one_of_ours_for_a_reader_of_the_tests_own(backup):
    sequence, n_bytes = 0, {1: 0, 2: 0, 3: 0, 4: 0}
    for number, name in enumerate(backup.tapes, 1):
        found = objects(name)
        records = [(position, record) for position, record in enumerate(found) if record != FILEMARK]
        for position, record in records:
            head = codec.decode_record_head(record)
            assert (head.tape, head.position, head.sequence) == (number, position, sequence)
            assert len(record) <= 64 << 10
            if head.kind is codec.RecordKind.DATA:
                assert head.offset == n_bytes[head.image]
                n_bytes[head.image] += head.payload_bytes
            sequence += 1
        last = codec.decode_record_head(records[-1][1])
        assert last.kind is (codec.RecordKind.END if number == 5 else codec.RecordKind.CONTINUES)
        assert found[-1] == FILEMARK
        assert Path(name).stat().st_size <= 4 << 20
    listing = bp.list_tapes(backup.tapes)
    assert [image.stream_bytes for image in listing.images] == list(n_bytes.values())
    assert [(image.top, image.base) for image in listing.images] == [
        ("s0", ""), ("s1", "s0"), ("s2", "s1"), ("s3", "s2"),
    ]  # fmt: skip
    assert (listing.is_complete, listing.unfinished, len(listing.tapes)) == (True, None, 5)


def test_blocks_lie_on_tape_in_the_order_of_their_numbers(backup):
    with bp.open_stream(*backup.tapes) as chain:
        for file in chain.files:
            order = file.index.frames.argsort(kind="stable")
            assert (order == range(len(order))).all()


def test_verify_reads_all_proves_the_chain_and_compares_with_the_live_volume(backup):
    verdict = bp.verify_tapes(backup.tapes, volume=backup.volume)
    assert (verdict.ok, verdict.problems, verdict.lost) == (True, [], [])
    assert (verdict.n_tapes, verdict.n_images, verdict.proved) == (5, 4, list(SNAPSHOTS))
    assert [found.snapshot for found in verdict.compared] == list(SNAPSHOTS)
    assert all(found.ok and found.n_blocks == backup.volume.get_snapshot(found.snapshot).n_blocks
               for found in verdict.compared)  # fmt: skip


def test_a_file_of_a_mebibyte_is_read_by_position(backup, record_property):
    most = 0
    for name in SNAPSHOTS:
        with bp.open_stream(*backup.tapes, snapshot=name) as chain:
            tapes = chain.files[0].stored.tapes
            before = tapes.read_bytes
            data = bp.FileSystem(chain).read_bytes("/tree/big")
            n_read = tapes.read_bytes - before
            assert data == backup.files[name]["/tree/big"]
            assert len(data) <= n_read <= 4 << 20
            most = max(most, n_read)
            assert same(chain, backup.files[name])
    record_property("summary", f"tape: 1 MiB of 12 retrieved by reading {most / (1 << 20):.2f} MiB beside the table")


def test_chosen_blocks_are_those_of_the_volume(backup, tmp_path):
    snapshot = backup.volume.get_snapshot("s3")
    start, stop = snapshot.plane.extents()[-1].tolist()
    with bp.open_stream(*backup.tapes) as chain:
        assert bp.retrieve_blocks(chain, start, stop, tmp_path / "out") == stop - start
        assert snapshot.plane.count() < chain.lineage.newest.map.header.space_blocks
        with pytest.raises(errors.RefusedError, match=f"block {stop} of s3 is on none of the tapes"):
            bp.retrieve_blocks(chain, start, stop + 1, tmp_path / "more")
    assert not (tmp_path / "more").exists()
    expected = np.empty((stop - start) * 4096, np.uint8)
    snapshot.state.reader.read_extents(np.array([[start, stop]]), expected)
    assert (tmp_path / "out").read_bytes() == expected.tobytes()


def test_streams_are_merged_off_tapes(backup, tmp_path):
    bp.merge_streams(*backup.tapes, sink=tmp_path / "full.bps")
    bp.receive(tmp_path / "full.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert same(copy.get_snapshot("s3"), backup.files["s3"])


def test_a_stream_in_a_file_named_as_a_tape_is_read_as_a_stream(backup, tmp_path):
    bp.send(backup.volume.image("s1"), tmp_path / "full.bps")
    Path(tmp_path, "full.bps").rename(tmp_path / "full.tap")
    assert bp.verify_streams(str(tmp_path / "full.tap")).problems == []
    with bp.open_stream(str(tmp_path / "full.tap")) as chain:
        assert same(chain, backup.files["s1"])


# --- what is overwritten, and what goes on ---


def test_nothing_is_overwritten_unasked(backup, tmp_path):
    tapes = backup.copied(tmp_path / "copies")
    before = [Path(name).read_bytes() for name in tapes]
    with pytest.raises(errors.RefusedError, match=r"t1\.tap holds tape 1 of set .* would be overwritten"):
        bp.write_tape(backup.volume.image("s0"), tapes, FORM)
    with pytest.raises(errors.RefusedError, match="its 4 images are whole"):
        bp.write_tape(backup.volume.image("s0"), tapes, replace(FORM, resume=True))
    (tmp_path / "copies" / "other.tap").write_bytes(b"\4\0\0\0data\4\0\0\0")
    with pytest.raises(errors.RefusedError, match=r"other\.tap holds something that is no tape of ours"):
        bp.write_tape(backup.volume.image("s0"), [tmp_path / "copies" / "other.tap"], FORM)
    assert [Path(name).read_bytes() for name in tapes] == before
    bp.write_tape(backup.volume.image("s1"), tapes, replace(FORM, discard=True))
    assert [image.top for image in bp.list_tapes(tapes[:4]).images] == ["s1"]


def test_the_last_tape_is_enough_to_append_to(backup, tmp_path):
    """One drive, by turns: what was written before the last tape stays on the shelf."""
    shelf, drive = tmp_path / "shelf", tmp_path / "drive.tap"
    *before, last = backup.copied(shelf)
    n_tapes = len(before) + 1
    untouched = [Path(name).read_bytes() for name in before]
    shutil.copy(before[1], drive)
    with pytest.raises(errors.TapeEndError, match=r"drive\.tap \(tape 2 of set .* goes on with another tape") as caught:
        bp.write_tape(backup.volume.image("s3"), drive, APPEND)
    assert "load its last tape" in caught.value.hint
    shutil.move(last, drive)
    asked = []

    def change(its) -> None:
        asked.append((its.tape, its.is_writing))
        drive.rename(shelf / f"t{its.tape - 1}.tap")

    report = bp.write_tape(backup.volume.image("s3"), drive, replace(APPEND, changer=change))
    assert (report.image, report.set_id) == (5, bp.list_tapes(before[:1]).set_id)
    assert asked == [(n, True) for n in range(n_tapes + 1, report.n_tapes + 1)]
    assert asked
    drive.rename(shelf / f"t{report.n_tapes}.tap")
    assert [Path(name).read_bytes() for name in before] == untouched
    names = sorted(map(str, shelf.iterdir()))
    listing = bp.list_tapes(names)
    assert ([image.top for image in listing.images], listing.is_complete) == ([*SNAPSHOTS, "s3"], True)
    assert bp.verify_tapes(names, volume=backup.volume).problems == []
    with pytest.raises(errors.TapeOrderError, match="and tape 1 is needed here"):
        bp.write_tape(backup.volume.image("s3"), names[-1:], replace(FORM, resume=True))


def test_a_set_without_tapes_enough_says_so_and_goes_on_with_more(backup, tmp_path):
    names = [tmp_path / f"n{i}.tap" for i in range(6)]
    with pytest.raises(errors.TapeFullError, match="tape 3 of the set is needed, and 2") as caught:
        bp.write_tape(backup.volume.image("s0"), names[:2], FORM)
    assert "--resume" in caught.value.hint
    listing = bp.list_tapes(names[:2])
    assert (listing.is_complete, listing.images) == (False, ())
    assert listing.unfinished > 6_000_000
    report = bp.write_tape(backup.volume.image("s0"), names, replace(FORM, resume=True))
    assert report.n_bytes_before == listing.unfinished
    assert report.n_tapes == 4
    assert bp.verify_tapes(names[:4], volume=backup.volume).ok


@pytest.mark.parametrize("form", [{}, {"compress": "zstd"}, {"key": "secret"}], ids=["plain", "zstd", "encrypted"])
def test_what_was_cut_off_goes_on_from_its_last_whole_group(backup, tmp_path, rng, form, is_deep, monkeypatch):
    if "key" in form:
        bp.create_key(tmp_path / "secret")
        form = {"key": tmp_path / "secret"}
    monkeypatch.setattr("blockplane.stream.media.writer.GROUP_RECORDS", 8)
    key = form.get("key")
    whole = [tmp_path / f"w{i}.tap" for i in range(9)]
    bp.write_tape(backup.volume.image("s0"), whole, FORM, **form)
    whole = [name for name in whole if name.exists()]
    n_gone_on = 0
    for trial in range(12 if is_deep else 2):
        folder = tmp_path / str(trial)
        folder.mkdir()
        cut_tape = int(rng.integers(1 if trial else 0, len(whole)))  # groups are closed on the tape before
        names = [folder / name.name for name in whole]
        for name, copy in zip(whole[: cut_tape + 1], names, strict=False):
            shutil.copy(name, copy)
        size = names[cut_tape].stat().st_size
        with open(names[cut_tape], "r+b") as file:
            file.truncate(int(rng.integers(400, size)))
        report = bp.write_tape(
            backup.volume.image("s0"), [*names, folder / "more.tap"], replace(FORM, resume=True), **form
        )
        n_gone_on += report.n_bytes_before > 0
        used = [name for name in names if name.exists()]
        assert bp.verify_tapes(used, volume=backup.volume, key=key).ok
        bp.write_tape(backup.volume.image("s1 - s0"), [*used, folder / "last.tap"], APPEND, **form)
        used = [name for name in (*used, folder / "last.tap") if name.exists()]
        restored(used, folder / "copy", key=key)
        with bp.Volume.open(folder / "copy", writable=False) as copy:
            assert same(copy.get_snapshot("s1"), backup.files["s1"])
    assert n_gone_on


def test_another_image_does_not_go_on(backup, tmp_path):
    names = [tmp_path / f"n{i}.tap" for i in range(6)]
    with pytest.raises(errors.TapeFullError):
        bp.write_tape(backup.volume.image("s0"), names[:2], FORM)
    before = [name.read_bytes() for name in names[:2]]
    with pytest.raises(errors.RefusedError, match="is a stream of s0: another image"):
        bp.write_tape(backup.volume.image("s1"), names, replace(FORM, resume=True))
    with pytest.raises(errors.RefusedError, match="ends with an image that was not finished"):
        bp.write_tape(backup.volume.image("s1"), names, APPEND)
    assert [name.read_bytes() for name in names[:2]] == before


# --- streams, keys, changers ---


def test_a_stream_is_written_as_it_is_and_damage_in_it_does_not_become_an_image(backup, tmp_path):
    bp.send(backup.volume.image("s1"), tmp_path / "s1.bps", locations="implicit")
    names = [tmp_path / f"n{i}.tap" for i in range(9)]
    report = bp.write_stream_to_tape(tmp_path / "s1.bps", names, FORM)
    used = [name for name in names if name.exists()]
    assert (report.top, report.stream_bytes, report.n_tapes) == ("s1", (tmp_path / "s1.bps").stat().st_size, len(used))
    assert bp.verify_tapes(used, volume=backup.volume).ok
    raw = bytearray((tmp_path / "s1.bps").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.bps").write_bytes(raw)
    with pytest.raises(errors.StreamDamagedError, match="does not match its checksum"):
        bp.write_stream_to_tape(tmp_path / "bad.bps", names, replace(FORM, append=True))
    listing = bp.list_tapes(used)
    assert ([image.top for image in listing.images], listing.is_complete) == (["s1"], False)


def test_an_encrypted_stream_needs_no_key_to_be_written_and_shows_no_names(backup, tmp_path):
    key = bp.create_key(tmp_path / "key")
    bp.send(backup.volume.image("s0"), tmp_path / "s0.bps", key=key)
    names = [tmp_path / f"n{i}.tap" for i in range(5)]
    report = bp.write_stream_to_tape(tmp_path / "s0.bps", names, FORM)
    used = [name for name in names if name.exists()]
    assert report.top is None
    (image,) = bp.list_tapes(used).images
    assert (image.is_sealed, image.top, image.stream_bytes) == (True, "", (tmp_path / "s0.bps").stat().st_size)
    with pytest.raises(errors.StreamKeyError):
        restored(used, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    restored(used, tmp_path / "copy", key=key)
    with bp.open_stream(*used, key=key) as chain:
        assert same(chain, backup.files["s0"])
    raw = bytearray((tmp_path / "s0.bps").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.bps").write_bytes(raw)
    with pytest.raises(errors.StreamDamagedError, match="does not match its checksum"):
        bp.write_stream_to_tape(tmp_path / "bad.bps", [tmp_path / "bad.tap"])
    whole = (tmp_path / "s0.bps").read_bytes()
    for n_bytes in (len(whole) - 256, len(whole) - 100, len(whole) // 2):  # the first one ends with a frame
        (tmp_path / "short.bps").write_bytes(whole[:n_bytes])
        with pytest.raises(errors.StreamDamagedError, match="ends before its trailer"):
            bp.write_stream_to_tape(tmp_path / "short.bps", [tmp_path / f"short{n_bytes}.tap"])


def test_an_encrypted_frame_with_the_lengths_of_a_trailer_is_not_taken_for_one(tmp_path):
    """Two branches are 256 bytes of frame, as a trailer is; what stands behind the trailer is refused all the same."""
    key = bp.create_key(tmp_path / "key")
    with bp.Volume.create(tmp_path / "pool", disks=1, size="8M") as volume:
        for name in ("s0", "s1", "s2"):
            bp.FileSystem(volume).write_bytes(f"/{name}", name.encode())
            volume.snapshot(name)
            volume.rollback(name)
        bp.send(volume.image("s2"), tmp_path / "s2.bps", key=key)
        assert len(bp.stream_map(tmp_path / "s2.bps", key=key).branches) == 2
        bp.write_tape(volume.image("s2"), tmp_path / "image.tap", key=key)
    bp.write_stream_to_tape(tmp_path / "s2.bps", tmp_path / "stream.tap")
    for name in ("image", "stream"):
        restored(tmp_path / f"{name}.tap", tmp_path / name, key=key)
        with bp.Volume.open(tmp_path / name) as copy:
            assert bp.FileSystem(copy).read_bytes("/s2") == b"s2"
    whole = (tmp_path / "s2.bps").read_bytes()
    for more in (whole, whole[-256:], bytes(100), b"x"):
        (tmp_path / "long.bps").write_bytes(whole + more)
        with pytest.raises(errors.StreamError):
            bp.write_stream_to_tape(tmp_path / "long.bps", tmp_path / f"long{len(more)}.tap")


def test_a_changer_brings_tapes_to_one_drive(backup, tmp_path):
    drive, shelf, asked = tmp_path / "drive.tap", tmp_path / "shelf", []
    shelf.mkdir()

    def change(its) -> None:
        asked.append((its.tape, its.is_writing))
        here = len(asked)
        drive.rename(shelf / f"{here if its.is_writing else its.tape - 1}.tap")
        if not its.is_writing:
            (shelf / f"{its.tape}.tap").rename(drive)

    report = bp.write_tape(backup.volume.image("s0"), drive, replace(FORM, changer=change))
    assert asked == [(n, True) for n in range(2, report.n_tapes + 1)]
    drive.rename(shelf / f"{report.n_tapes}.tap")
    (shelf / "1.tap").rename(drive)
    asked.clear()
    restored(drive, tmp_path / "copy", changer=change)
    assert asked == [(n, False) for n in range(2, report.n_tapes + 1)]
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert same(copy.get_snapshot("s0"), backup.files["s0"])


def test_a_changer_that_is_a_command_gets_its_orders_in_the_environment(tmp_path):
    from blockplane.stream.media import Change

    out = tmp_path / "out file"
    script = f'printf \'%s %s %s\' "$BLOCKPLANE_TAPE" "$BLOCKPLANE_DRIVE" "$BLOCKPLANE_MODE" > \'{out}\''
    bp.command_changer(f"sh -c {__import__('shlex').quote(script)}")(Change("/dev/nst0", 3, True))
    assert out.read_text() == "3 /dev/nst0 write"
    with pytest.raises(errors.TapeError, match="status 7 for tape 2: no such slot"):
        bp.command_changer("sh -c 'echo no such slot >&2; exit 7'")(Change("x", 2, False))
    with pytest.raises(errors.TapeError, match="cannot be run"):
        bp.command_changer("/nowhere/mtx")(Change("x", 2, False))
    with pytest.raises(errors.UsageError):
        bp.command_changer("a 'b")


# --- damage ---


def lost_of(error: errors.TapeDamagedError) -> int:
    return sum(stop - start for start, stop in error.lost)


@pytest.mark.parametrize("form", [{}, {"compress": "zstd"}], ids=["plain", "zstd"])
def test_one_damaged_record_loses_its_own_blocks_and_another_copy_makes_up_for_it(backup, tmp_path, form):
    names = [tmp_path / f"n{i}.tap" for i in range(6)]
    bp.write_tape(backup.volume.image("s0"), names, FORM, **form)
    names = [str(name) for name in names if name.exists()]
    other = [shutil.copy(name, f"{name}.copy") for name in names]
    spoil(names[1], 20)
    spoil(other[2], 30)
    with pytest.raises(
        errors.TapeDamagedError, match=r"blocks of image 1 of the tapes are lost; .* are kept in"
    ) as caught:
        restored(names, tmp_path / "copy")
    assert "record 22" not in caught.value.message
    assert caught.value.records == (f"{names[1]}, record 21: its bytes do not match their checksum",)
    if not form:
        assert lost_of(caught.value) <= -(-(64 << 10) // 4096) + 1
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert list(copy.snapshots) == []
    restored(other, tmp_path / "copy")  # damaged too, elsewhere
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert same(copy.get_snapshot("s0"), backup.files["s0"])
        assert bp.check(copy).ok


def test_files_of_a_damaged_tape_come_out_one_by_one(backup, tmp_path):
    tapes = backup.copied(tmp_path / "copies")
    spoil(tapes[1], 20)
    verdict = bp.verify_tapes(tapes)
    (lost,) = verdict.lost
    assert (lost.image, lost.top, verdict.ok) == (1, "s0", False)
    with bp.open_stream(*tapes, snapshot="s0") as chain:
        hit = {path for owner in bp.owners(chain, lost.extents) for path in owner.paths}
        fs, n_read = bp.FileSystem(chain), 0
        for path, content in backup.files["s0"].items():
            if path in hit:
                with pytest.raises(errors.TapeDamagedError, match=r"record 21 of .* is damaged"):
                    fs.read_bytes(path)
            else:
                assert fs.read_bytes(path) == content
                n_read += 1
    assert 1 <= len(hit) <= 2
    assert n_read == len(backup.files["s0"]) - len(hit)


def test_implicit_locations_survive_a_damaged_record_too(backup, tmp_path):
    bp.send(backup.volume.image("s0"), tmp_path / "s0.bps", locations="implicit")
    names = [tmp_path / f"n{i}.tap" for i in range(5)]
    bp.write_stream_to_tape(tmp_path / "s0.bps", names, FORM)
    used = [str(name) for name in names if name.exists()]
    spoil(used[1], 20)
    (lost,) = bp.verify_tapes(used).lost
    assert sum(stop - start for start, stop in lost.extents) <= 17


@pytest.mark.parametrize("kind", [codec.RecordKind.CONTENTS, codec.RecordKind.TABLE])
def test_a_record_that_holds_no_blocks_loses_nothing(backup, tmp_path, kind):
    tapes = backup.copied(tmp_path / "copies")
    records = [record for record in objects(tapes[-1]) if record != FILEMARK]
    spoil(tapes[-1], [codec.decode_record_head(record).kind for record in records].index(kind))
    report = restored(tapes, tmp_path / "copy")
    assert len(report.problems) == 1
    assert not bp.verify_tapes(tapes).ok
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert all(same(copy.get_snapshot(name), backup.files[name]) for name in SNAPSHOTS)


def test_hard_ends_of_tapes_lose_nothing(backup, tmp_path):
    """Drives whose tapes end without a warning, anywhere: what was in hand goes onto the next tape."""
    from blockplane.stream.media import Rack, TapeSet, Walk, images, new_set, stores
    from blockplane.stream.media.drive import TapeDrive
    from blockplane.stream.media.writer import TapeSink
    from rig.drive import DoubleDrive, Tape

    bp.send(backup.volume.image("s0"), tmp_path / "s0.bps", order="tape")
    raw = (tmp_path / "s0.bps").read_bytes()
    for capacity, warning in ((2_000_000, 0), (3_333_333, 0), (3_000_000, 1_500_000)):
        tapes = [Tape(capacity=capacity, warning=warning) for _ in range(12)]

        def opened(name: str, *, writable: bool, size_bytes: object, tapes: list[Tape] = tapes) -> TapeDrive:
            return TapeDrive(name, writable=writable, calls=DoubleDrive(tapes[int(name)]))

        rack = Rack([str(n) for n in range(12)], writable=True, opened=opened)
        sink = TapeSink(rack, new_set(64 << 10))
        for at in range(0, len(raw), 3 << 20):
            sink.write_all([raw[at : at + (3 << 20)]])
        sink.commit()
        sink.close()
        used = [n for n, tape in enumerate(tapes) if tape.objects]
        assert len(used) > 3
        rack = Rack([str(n) for n in used], opened=opened)
        walk = Walk(rack)
        (image,) = images(walk)
        assert walk.problems == []
        rack = Rack([str(n) for n in used], opened=opened)
        walk, found = Walk(rack), bytearray(len(raw))
        image = next(images(walk))
        assert image.read_into([memoryview(found)]) == len(raw)
        assert found == raw
        (store,) = stores(TapeSet(Rack([str(n) for n in used], opened=opened)))
        assert store.read(len(raw), 0) == raw


def test_what_stands_before_the_data_lies_on_the_tape_twice(backup, tmp_path):
    tapes = backup.copied(tmp_path / "copies")
    spoil(tapes[0], 1)  # behind the label: header, snapshots, planes, the first blocks
    with bp.open_stream(*tapes, snapshot="s0") as chain:
        hit = [vbn for vbn in range(40) if chain.holds(vbn) and is_lost(chain, vbn)]
        assert bp.FileSystem(chain).listdir("/") == ["tree"]
    verdict = bp.verify_tapes(tapes)
    lost = [vbn for a, b in verdict.lost[0].extents for vbn in range(a, b)]
    assert lost == hit
    assert 1 <= len(lost) <= 17
    with pytest.raises(errors.TapeDamagedError) as caught:
        restored(tapes, tmp_path / "copy")
    assert [vbn for a, b in caught.value.lost for vbn in range(a, b)] == lost
    restored(backup.tapes, tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy", writable=False) as copy:
        assert same(copy.get_snapshot("s3"), backup.files["s3"])


def is_lost(chain, vbn: int) -> bool:
    try:
        chain.read_extents(np.array([[vbn, vbn + 1]]), np.empty(4096, np.uint8))
    except errors.TapeDamagedError:
        return True
    return False


def closing_records(name: str) -> dict[str, list[int]]:
    """Which records of a tape, counted among records alone, are of a kind."""
    found: dict[str, list[int]] = {}
    for i, record in enumerate(r for r in objects(name) if r != FILEMARK):
        found.setdefault(codec.decode_record_head(record).kind.name, []).append(i)
    return found


@pytest.mark.parametrize("spoiled", ["TABLE", "END", "TABLE and END", "CONTENTS too"])
def test_a_damaged_table_is_made_anew_out_of_the_groups(backup, tmp_path, spoiled):
    tapes = backup.copied(tmp_path / "copies")
    records = closing_records(tapes[-1])
    for kind in ("TABLE", "END"):
        if kind in spoiled or "too" in spoiled:
            spoil(tapes[-1], records[kind][-1])
    if "too" in spoiled:  # that group is found record by record
        spoil(tapes[1], closing_records(tapes[1])["CONTENTS"][0])
    with bp.open_stream(*tapes) as chain:
        assert len(chain.problems) == 1
        assert "where blocks lie was found group by group" in chain.problems[0]
        assert chain.snapshot.name == "s3"
        assert same(chain, backup.files["s3"])
        assert all(same(chain.at(record), backup.files[record.name]) for record in chain.snapshots)
    listing = bp.list_tapes(tapes)
    assert len(listing.images) == 4
    assert listing.problems
    assert [(a.number, a.stream_bytes) for a in listing.images] == [
        (b.number, b.stream_bytes) for b in bp.list_tapes(backup.tapes).images
    ]


@pytest.mark.parametrize("form", ["plain", "zstd", "encrypted"])
def test_a_damaged_index_is_made_anew_out_of_the_groups(backup, tmp_path, form):
    key = bp.create_key(tmp_path / "key") if form == "encrypted" else None
    names = [tmp_path / f"n{i}.tap" for i in range(6)]
    compress = "zstd:1" if form == "zstd" else None
    bp.write_tape(backup.volume.image("s0"), names, FORM, compress=compress, key=key)
    tapes = [str(name) for name in names if name.exists()]
    with bp.open_stream(*tapes, key=key) as chain:
        whole = chain.files[0].index.n_blocks
    spoil(tapes[-1], closing_records(tapes[-1])["DATA"][-1], 200)  # the last one has the index and the trailer
    with bp.open_stream(*tapes, key=key) as chain:
        assert "blocks were found group by group" in chain.problems[-1]
        assert chain.files[0].index.n_blocks == whole
        # what is in that record is lost, the root of the file system where it is a late block: blocks by their numbers
        start, stop = backup.volume.get_snapshot("s0").plane.extents()[0].tolist()
        stop = min(stop, start + 2000)
        assert bp.retrieve_blocks(chain, start, stop, tmp_path / "out") == stop - start
        expected = np.empty((stop - start) * 4096, np.uint8)
        backup.volume.get_snapshot("s0").state.reader.read_extents(np.array([[start, stop]]), expected)
        assert (tmp_path / "out").read_bytes() == expected.tobytes()
