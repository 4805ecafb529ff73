"""Volumes on block devices, as people make them: from create to receive, and what is refused."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockplane as bp
from equality import differences, volume_tree
from loopdevices import loop_device

MiB = 1 << 20
#: (what, offset from the start, or from the end where negative, bytes)
SIGNATURES = [
    ("ext", 1024 + 56, b"\x53\xef"),
    ("iso9660", 32769, b"CD001"),
    ("btrfs", (64 << 10) + 64, b"_BHRfS_M"),
    ("ufs", (256 << 10) + 1372, b"\x19\x54\x01\x19"),
    ("vmfs", MiB, b"\x0d\xd0\x01\xc0"),
    ("gpt", -512, b"EFI PART"),
    ("md 1.0", -8192, b"\xfc\x4e\x2b\xa9"),
    ("md 0.90", -(128 << 10), b"\xfc\x4e\x2b\xa9"),
]


@pytest.fixture
def device(tmp_path):
    """Makes devices that are gone when the test is over."""
    with ExitStack() as stack:
        n_made = iter(range(100))

        def make(size: int = 16 * MiB, **options) -> str:
            return stack.enter_context(loop_device(tmp_path / f"backing{next(n_made)}", size, **options))

        yield make


@pytest.fixture
def refused(blockplane):
    """Runs a verb that must fail with one clear error; returns its message."""

    def call(*arguments: object, kind: str, status: int = 1) -> str:
        outcome = blockplane(*arguments, "--json")
        assert (outcome.error["kind"], outcome.status) == (kind, status), outcome.out
        return outcome.error["message"]

    return call


def named(devices: list[str]) -> list[str]:
    return [word for device in devices for word in ("--disk", device)]


def garbage(device: str, seed: int) -> None:
    """Fill a device with what a former life left."""
    with open(device, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(random.Random(seed).randbytes(size))
        os.fsync(file.fileno())


def read(device: str, at: int, n_bytes: int) -> bytes:
    with open(device, "rb") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        return file.read(n_bytes)


def test_from_devices_through_a_stream_to_other_devices(done, device, tree):
    source = [device(), device(sector=4096), device(24 * MiB + 3 * 512), device(sector=4096)]
    made = done("create", "pool", *named(source), "--json").json
    assert made["disks"] == source
    done("put", "pool:/", tree)
    done("snapshot", "create", "pool@june1")
    Path(tree, "large").write_bytes(os.urandom(3 * MiB))
    done("put", "pool:/tree", tree, "--update", "--delete")
    done("snapshot", "create", "pool@june2")
    target = [device(32 * MiB, sector=4096), device(32 * MiB), device(32 * MiB)]
    done("send", "pool", "june1", "-o", "june1.bps")
    done("send", "pool", "june2 - june1", "-o", "june2.bps")
    done("receive", "copy", "-i", "june1.bps", *named(target), "--parity", "1")
    done("receive", "copy", "-i", "june2.bps")
    for volume in ("pool", "copy"):
        assert done("check", volume, "--json").json["ok"] is True
    for snapshot in ("june1", "june2"):
        trees = []
        for volume in ("pool", "copy"):
            with bp.Volume.open(volume, writable=False) as opened:
                trees.append(volume_tree(bp.FileSystem(opened.get_snapshot(snapshot)), between_volumes=True))
        assert differences(*trees) == []
    assert [disk["path"] for disk in done("info", "copy", "--json").json["disks"]] == target


@pytest.mark.parametrize(("what", "at", "magic"), SIGNATURES, ids=[row[0] for row in SIGNATURES])
def test_a_device_with_something_on_it_is_taken_only_when_told(refused, done, device, what, at, magic):
    blank, taken = device(), device()
    with open(taken, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(magic)
        os.fsync(file.fileno())
    said = refused("create", "v", *named([blank, taken]), kind="refused")
    assert said == f"{taken} holds data, and making it a disk of a volume would lose that"
    assert not os.path.exists("v")
    assert read(taken, at, len(magic)) == magic
    done("create", "v", *named([blank, taken]), "--wipe")
    assert read(taken, at, len(magic)) != magic
    assert done("check", "v", "--json").json["ok"] is True


def test_what_a_device_held_before_is_nobodys_business(done, device, tree):
    """Parity, planes and logs are right on disks full of garbage, and on those of a former volume."""
    disks = [device() for _ in range(4)]
    for seed, name in enumerate(disks):
        garbage(name, seed)
    for volume in ("first", "second"):
        done("create", volume, *named(disks), "--wipe")
        done("put", f"{volume}:/", tree)
        done("snapshot", "create", f"{volume}@s")
        done("rm", f"{volume}:/tree/large")
        assert done("check", volume, "--json").json["ok"] is True


def test_a_receive_that_fails_gives_the_devices_back_as_blank_as_they_were(refused, done, device, pool):
    disks = [device() for _ in range(3)]
    whole = Path("june1.bps").read_bytes()
    Path("half.bps").write_bytes(whole[: len(whole) // 2])
    refused("receive", "copy", "-i", "half.bps", *named(disks), kind="stream-truncated")
    assert not os.path.exists("copy")
    assert not any(read(name, 0, 2 * MiB).strip(b"\0") + read(name, -2 * MiB, 2 * MiB).strip(b"\0") for name in disks)
    done("receive", "copy", "-i", "june1.bps", *named(disks))
    assert done("check", "copy", "--json").json["ok"] is True


def test_a_device_larger_than_needed(done, device, tree):
    disks = [device() for _ in range(3)]
    made = done("create", "v", *named(disks), "--size", "8M", "--json").json
    assert made["n_blocks"] * 4096 <= 2 * 8 * MiB
    done("put", "v:/", tree)
    assert done("check", "v", "--json").json["ok"] is True
    assert all(read(name, -4096, 6) == b"BLKPLN" for name in disks)  # both ends of the device say whose it is


def test_a_device_in_use_is_refused_even_with_wipe(refused, device):
    free, used = device(), device()
    fd = os.open(used, os.O_RDONLY | os.O_EXCL)  # what mounting, swapping and RAID do
    try:
        said = refused("create", "v", *named([free, used]), "--wipe", kind="in-use")
    finally:
        os.close(fd)
    assert used in said
    assert not os.path.exists("v")
    assert not any(read(free, 0, 8192))


def test_a_volume_grows_by_devices(refused, done, device, tree):
    done("create", "v", *named([device(), device(), device()]))
    done("put", "v:/", tree)
    before = done("info", "v", "--json").json["n_blocks"]
    odd, taken = device(24 * MiB + 512), device(sector=4096)
    garbage(taken, 1)
    refused("grow", "v", *named([odd, taken]), kind="refused")
    assert done("info", "v", "--json").json["n_blocks"] == before
    done("grow", "v", *named([odd, taken]), "--wipe", "--parity", "1")
    assert done("info", "v", "--json").json["n_blocks"] > before
    done("put", "v:/more", tree)
    assert done("check", "v", "--json").json["ok"] is True


def test_write_protected_devices_can_be_read(refused, done, tmp_path, tree):
    files = [tmp_path / f"disk{i}" for i in range(3)]
    with ExitStack() as stack:
        done("create", "v", *named([stack.enter_context(loop_device(file, 16 * MiB)) for file in files]))
        done("put", "v:/", tree)
        done("snapshot", "create", "v@s")
    with ExitStack() as stack:
        disks = [stack.enter_context(loop_device(file, read_only=True)) for file in files]
        _name_disks("v", disks)
        assert done("cat", "v:/tree/hello").out == "hello\n"
        assert done("check", "v", "--json").json["ok"] is True
        done("send", "v", "s", "-o", "s.bps")
        done("receive", "copy", "-i", "s.bps")
        assert "a read-only device" in refused("put", "v:/", tree, kind="disk")
        blank = stack.enter_context(loop_device(tmp_path / "blank", 16 * MiB))
        assert "a read-only device" in refused("create", "w", *named([blank, disks[1]]), "--wipe", kind="disk")
        assert not any(read(blank, 0, 8192))
        assert not os.path.exists("w")


def _name_disks(volume: str, devices: list[str]) -> None:
    """Say in volume.toml where the disks are, as a person does whose devices have got other names."""
    config = Path(volume, "volume.toml")
    head = config.read_text().partition("disks = [")[0]
    config.write_text(head + "disks = [\n" + "".join(f'  "{name}",\n' for name in devices) + "]\n")


def test_devices_in_the_wrong_order(refused, done, device):
    disks = [device() for _ in range(3)]
    done("create", "v", *named(disks))
    _name_disks("v", [disks[1], disks[0], disks[2]])
    said = refused("info", "v", kind="disk-misplaced")
    assert said == f"{disks[1]}: stands in place of disk 0 of group 0 and is disk 1 of group 0"


def test_no_file_is_made_where_a_device_was_meant(refused):
    """Needs no device: as root it would otherwise become a file in the machine's memory."""
    for options in ([], ["--dry-run"]):
        said = refused(
            "create", "v", "--disk", "/dev/blockplane-absent", "--size", "8M", *options, kind="usage", status=2
        )
        assert said == "/dev/blockplane-absent does not exist"
    assert not os.path.exists("/dev/blockplane-absent")
    assert not os.path.exists("v")


def test_an_interrupted_receive_goes_on_with_a_stream_on_a_device(device, tmp_path):
    name, stream, target = device(), tmp_path / "s.bps", tmp_path / "copy"
    with bp.Volume.create(tmp_path / "source", disks=2, size="16M") as volume:
        bp.FileSystem(volume).write_bytes("/a", random.Random(1).randbytes(6 * MiB))
        volume.snapshot("s")
        bp.send(volume.image("s"), stream)
        whole = stream.read_bytes()
        Path(name).write_bytes(whole)
        stream.write_bytes(whole[: 4 * MiB])
        with pytest.raises(bp.errors.StreamTruncatedError):
            bp.receive(stream, target)
        bp.receive(name, target)
        with bp.Volume.open(target) as copy:
            assert bp.FileSystem(copy).read_bytes("/a") == bp.FileSystem(volume).read_bytes("/a")


@pytest.mark.parametrize("options", [[], ["--compress", "zstd"], ["--encrypt", "k"], ["--order", "tape"]])
def test_a_stream_on_a_device_is_read_in_place(device, done, refused, tmp_path, options):
    """Where it ends, and where its index is, only its frames say: behind it lies what was there before."""
    done("key", "create", "k")
    name, keys = device(), ["--key", "k"] if "--encrypt" in options else []
    Path(name).write_bytes(random.Random(1).randbytes(16 * MiB))
    with bp.Volume.create(tmp_path / "pool", disks=2, size="16M", parity=0) as volume:
        files, data = bp.FileSystem(volume), random.Random(2).randbytes(6 * MiB) + bytes(MiB)
        files.write_bytes("/a", data)
        volume.snapshot("june1")
        files.write_bytes("/b", b"later")
        volume.snapshot("june2")
    done("send", "pool", "june1", "-o", name, *options)
    done("send", "pool", "june2 - june1", "-o", "june2.bps")
    assert done("ls", f"{name}:/", *keys).out == "a\n"
    done("get", f"{name}:/a", "a", *keys)
    assert Path("a").read_bytes() == data
    assert done("ls", f"{name},june2.bps:/", *keys).out == "a\nb\n"
    done("stream", "merge", name, "june2.bps", "-o", "both.bps", *(["--plain", *keys] if keys else []))
    assert done("stream", "compare", "both.bps", "pool@june2").out.startswith("equal")
    with open(name, "r+b") as file:
        file.seek(5 * MiB)
        file.write(bytes(4 * MiB))
    assert "does not end with a trailer" in refused("ls", f"{name}:/", *keys, kind="stream-truncated")
    assert "cannot be written" in refused("mkdir", f"{name}:/x", kind="read-only")
