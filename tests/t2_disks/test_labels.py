"""Labels: the codec, both ends, and every refusal by name."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
from pathlib import Path

import pytest

from blockplane.disks import FileDisk, Geometry, GroupRecord, Label, MemberState, assemble, make_labels, write_labels
from blockplane.disks.assembly import assemble_disks
from blockplane.disks.label import (
    decode_label,
    encode_label,
    mend_labels,
    read_label,
    read_raw_block,
    write_raw_block,
)
from blockplane.model import (
    DiskDuplicateError,
    DiskForeignError,
    DiskMisplacedError,
    DiskMissingError,
    DiskShortError,
    DiskStaleError,
    UsageError,
    VolumeInUseError,
)
from blockplane.model.checks import crc32c
from faults.crash import Plan, crash_states
from faults.recording import MemoryDisk, Recorder

DISK_BLOCKS = 256
TOTAL = DISK_BLOCKS + 32
GEOMETRY = Geometry([GroupRecord(0, 2, 1, 64, DISK_BLOCKS, (0, 1, 2)), GroupRecord(65536, 1, 0, 64, DISK_BLOCKS, (3,))])


def identity(seed: int) -> bytes:
    return bytes([seed]) * 16


def labels_of(volume: int, states: list[MemberState] | None = None) -> list[Label]:
    members = [identity(volume * 16 + d) for d in range(GEOMETRY.n_disks)]
    return make_labels(GEOMETRY, identity(volume), members, [TOTAL] * GEOMETRY.n_disks, states)


def make_volume(folder, volume: int = 1) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"disk{d}") for d in range(GEOMETRY.n_disks)]
    disks = [FileDisk.create(path, TOTAL) for path in paths]
    write_labels(disks, labels_of(volume), 0)
    for disk in disks:
        disk.close()
    return paths


@pytest.fixture
def paths(tmp_path):
    return make_volume(tmp_path / "volume")


def refused(error: type[Exception], paths: list[str], *words: str, **options) -> None:
    """Assembling raises the error, whose message holds the words, and lets every disk go."""
    before = [Path(path).read_bytes() if os.path.isfile(path) else None for path in paths]
    with pytest.raises(error) as caught:
        assemble(paths, **options)
    assert caught.type is error
    for word in words:
        assert word in str(caught.value)
    for path, content in zip(paths, before, strict=True):
        if content is not None:
            assert Path(path).read_bytes() == content
            FileDisk.open(path).close()


def test_the_codec_keeps_every_field():
    for label in labels_of(1, [MemberState.IN, MemberState.OUT, MemberState.RESYNC, MemberState.IN]):
        label = dataclasses.replace(label, generation=2**63 + 5)
        block = encode_label(label)
        assert len(block) == 4096
        assert decode_label(block) == label
        assert label.geometry() == GEOMETRY


def test_offsets_are_the_table_s():
    label = dataclasses.replace(labels_of(7)[3], generation=9)
    block = encode_label(label)
    assert block[:8] == b"BLKPLN\r\n"
    assert struct.unpack_from("<I", block, 12)[0] == crc32c(block[:12] + bytes(4) + block[16:])
    assert block[16:32] == identity(7)
    assert block[32:48] == identity(7 * 16 + 3)
    assert struct.unpack_from("<QQHHHH", block, 48) == (9, TOTAL, 1, 0, 2, 1)
    assert struct.unpack_from("<QQQHH", block, 128) == (0, 64, DISK_BLOCKS, 2, 1)
    assert struct.unpack_from("<QQQHH", block, 160) == (65536, 64, DISK_BLOCKS, 1, 0)
    assert block[192:208] == identity(7 * 16 + 3)
    assert block[208] == MemberState.IN


def test_a_flipped_bit_anywhere_is_seen():
    block = encode_label(labels_of(1)[0])
    for at in range(0, 4096, 13):
        damaged = bytearray(block)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"no label|damaged"):
            decode_label(bytes(damaged))


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (8, "<I", 7, "format version"),
        (64, "<H", 2, "impossible counts"),
        (64, "<H", 65535, "impossible counts"),
        (66, "<H", 3, "impossible counts"),
        (68, "<H", 0, "impossible counts"),
        (68, "<H", 65535, "impossible counts"),
        (70, "<H", 0, "impossible counts"),
        (70, "<H", 2, "unknown member states"),
        (70, "<H", 65535, "impossible counts"),
        (56, "<Q", 0, "impossible counts"),
        (128, "<Q", 64, "impossible geometry"),
        (128, "<Q", 2**64 - 1, "impossible geometry"),
        (136, "<Q", 0, "impossible geometry"),
        (136, "<Q", 63, "impossible geometry"),
        (144, "<Q", 0, "impossible geometry"),
        (144, "<Q", 2**64 - 64, "impossible geometry"),
        (152, "<H", 0, "impossible geometry"),
        (152, "<H", 65535, "impossible geometry"),
        (154, "<H", 3, "impossible geometry"),
        (160, "<Q", 0, "impossible geometry"),
        (32, "<Q", 0, "contradict"),
        (192, "<Q", 0, "contradict"),
        (224, "16s", identity(0x11), "contradict"),
        (240, "<B", 9, "unknown member states"),
    ],
)
def test_hostile_labels_with_a_right_checksum(offset, form, value, reason):
    block = bytearray(encode_label(labels_of(1)[0]))
    struct.pack_into(form, block, offset, value)
    struct.pack_into("<I", block, 12, 0)
    struct.pack_into("<I", block, 12, crc32c(block))
    with pytest.raises(ValueError, match=reason):
        decode_label(bytes(block))


def test_more_than_one_block_can_say_is_refused():
    groups = [GroupRecord(65536 * g, 1, 0, 64, 64, (g,)) for g in range(200)]
    labels = make_labels(Geometry(groups), identity(1), [g.to_bytes(16, "big") for g in range(200)], [96] * 200)
    with pytest.raises(UsageError, match="200 groups"):
        encode_label(labels[0])


def test_assemble(paths):
    assembly = assemble(paths)
    assert assembly.geometry == GEOMETRY
    assert assembly.volume_id == identity(1)
    assert [disk.path for disk in assembly.disks] == paths
    assert assembly.labels_are_settled
    with pytest.raises(VolumeInUseError, match="disk0"):
        assemble(paths)
    assembly.close()
    assemble(paths, writable=False).close()


def test_any_order_when_asked(paths):
    mixed = [paths[2], paths[0], paths[3], paths[1]]
    with assemble_closing(mixed, in_order=False) as assembly:
        assert [disk.path for disk in assembly.disks] == paths


class assemble_closing:  # noqa: N801 - reads as a function
    def __init__(self, *arguments, **options):
        self.assembly = assemble(*arguments, **options)

    def __enter__(self):
        return self.assembly

    def __exit__(self, *_):
        self.assembly.close()


@pytest.mark.parametrize("ends", [(0,), (TOTAL - 1,)])
def test_losing_one_end_of_every_disk_loses_nothing(paths, ends):
    for path in paths:
        with open(path, "r+b") as file:
            for block in ends:
                file.seek(block * 4096)
                file.write(b"\xff" * 4096)
    with assemble_closing(paths) as assembly:
        assert assembly.geometry == GEOMETRY


@pytest.mark.parametrize("end", [0, TOTAL - 1])
def test_an_end_that_lost_its_label_gets_it_back_and_the_other_is_not_written(paths, end):
    with open(paths[1], "r+b") as file:
        file.seek(end * 4096)
        file.write(b"\xff" * 4096)
    with assemble_closing(paths) as assembly:
        n_reads = [disk.counters.read_requests for disk in assembly.disks]
        mend_labels(assembly.disks, assembly.labels, assembly.lost)
        assert [disk.counters.read_requests for disk in assembly.disks] == n_reads
        label = encode_label(assembly.labels[1])
        assert [read_raw_block(assembly.disks[1], block).tobytes() for block in (0, TOTAL - 1)] == [label, label]
        assert [disk.counters.written_bytes for disk in assembly.disks] == [0, 4096, 0, 0]


def test_no_label_at_all(paths):
    with open(paths[1], "r+b") as file:
        file.truncate(0)
        file.truncate(TOTAL * 4096)
    refused(DiskForeignError, paths, paths[1], "no label")


def test_an_empty_file(paths):
    with open(paths[1], "r+b") as file:
        file.truncate(0)
    refused(DiskForeignError, paths, paths[1], "too small")


def test_another_volume_s_disk(paths, tmp_path):
    others = make_volume(tmp_path / "other", volume=2)
    refused(DiskForeignError, [paths[0], others[1], *paths[2:]], others[1], identity(2).hex(), identity(1).hex())
    refused(DiskForeignError, others, others[0], volume_id=identity(1))


def test_misplaced(paths):
    refused(DiskMisplacedError, [paths[1], paths[0], *paths[2:]], paths[1], "place of disk 0 of group 0", "is disk 1")
    refused(DiskMisplacedError, [paths[3], *paths[1:3], paths[0]], paths[3], "is disk 0 of group 1")


def test_missing(paths):
    for lost in range(4):
        rest = paths[:lost] + paths[lost + 1 :]
        place = ["0 of group 0", "1 of group 0", "2 of group 0", "0 of group 1"][lost]
        refused(DiskMissingError, rest, "1 of the volume's 4 disks", place)
    os.remove(paths[2])
    refused(DiskMissingError, paths, paths[2], "No such file")
    with pytest.raises(DiskMissingError, match="no disks"):
        assemble([])


def test_short(paths):
    with open(paths[2], "r+b") as file:
        file.truncate((TOTAL - 1) * 4096)
    refused(DiskShortError, paths, paths[2], f"{TOTAL - 1} blocks", f"says {TOTAL}")


def test_a_disk_that_became_longer_still_belongs(paths):
    with open(paths[2], "r+b") as file:
        file.truncate((TOTAL + 7) * 4096)
    with assemble_closing(paths) as assembly:
        assert assembly.disks[2].n_blocks == TOTAL + 7


def test_the_same_disk_twice(paths, tmp_path):
    refused(DiskDuplicateError, [paths[0], paths[0], *paths[2:]], paths[0], "the same disk")
    link = tmp_path / "link"
    link.symlink_to(paths[0])
    refused(DiskDuplicateError, [*paths, str(link)], str(link), "the same disk")


def test_a_copy_of_a_disk(paths, tmp_path):
    copy = str(tmp_path / "copy")
    shutil.copyfile(paths[1], copy)
    refused(DiskDuplicateError, [*paths, copy], copy, paths[1], "copy")


def test_a_disk_that_missed_an_update_is_stale(paths, tmp_path):
    old = str(tmp_path / "old")
    shutil.copyfile(paths[1], old)
    disks = [FileDisk.open(path) for path in paths]
    write_labels(disks, labels_of(1), 2)
    for disk in disks:
        disk.close()
    refused(DiskStaleError, [paths[0], old, *paths[2:]], old, "generation 2", "newest 4")
    assemble(paths).close()


def test_a_disk_that_is_recorded_as_out_is_stale(paths):
    disks = [FileDisk.open(path) for path in paths]
    states = [MemberState.IN, MemberState.OUT, MemberState.IN, MemberState.IN]
    # the failed disk does not hear of it
    for step in (3, 4):
        for disk, label in zip(disks, labels_of(1, states), strict=True):
            if disk.path != paths[1]:
                block = encode_label(dataclasses.replace(label, generation=step))
                write_raw_block(disk, 0, block)
                write_raw_block(disk, disk.n_blocks - 1, block)
    for disk in disks:
        disk.close()
    refused(DiskStaleError, paths, paths[1])


def test_out_is_out_at_any_generation(paths):
    disks = [FileDisk.open(path) for path in paths]
    states = [MemberState.IN, MemberState.OUT, MemberState.IN, MemberState.IN]
    write_labels(disks, labels_of(1, states), 2)
    for disk in disks:
        disk.close()
    refused(DiskStaleError, paths, paths[1], "recorded as out")


def test_neither_file_nor_device(paths, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Exception, match="neither a file nor a block device"):
        assemble([*paths[:3], str(tmp_path / "fifo")])


def test_a_power_cut_during_a_label_update_leaves_an_openable_set():
    recorder = Recorder()
    disks = [recorder.disk(TOTAL) for _ in range(GEOMETRY.n_disks)]
    write_labels(disks, labels_of(1), 0)
    recorder.start()
    write_labels(disks, labels_of(1), 2)
    write_labels(disks, labels_of(1), 4)
    count = 0
    for state in crash_states(recorder, Plan(sectors_of=lambda disk, block: disk == 1 and block == 0)):
        count += 1
        assembly = assemble_disks(state.disks)
        assert assembly.geometry == GEOMETRY, state.description
        assert 2 <= assembly.generation <= 6
        if not assembly.labels_are_settled:
            # the next opener brings the update to its end
            write_labels(state.disks, assembly.labels, assembly.generation)
            assert assemble_disks(state.disks).labels_are_settled
    assert count > 1300


def test_both_ends_are_written_and_read():
    disk = MemoryDisk("disk", TOTAL)
    label = labels_of(1)[3]
    single = Geometry([GroupRecord(0, 1, 0, 64, DISK_BLOCKS, (0,))])
    label = make_labels(single, identity(1), [identity(9)], [TOTAL])[0]
    assert write_labels([disk], [label], 0) == 2
    assert read_raw_block(disk, 0).tobytes() == read_raw_block(disk, TOTAL - 1).tobytes()
    # the newer end counts
    write_raw_block(disk, TOTAL - 1, encode_label(dataclasses.replace(label, generation=3)))
    assert read_label(disk).generation == 3
