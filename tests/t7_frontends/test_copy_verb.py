"""`copy VOL EXPR TARGET`: what it makes and says, what it refuses, volumes in use, block devices."""

from __future__ import annotations

import contextlib
import json
import os
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.disks import DiskArray
from equality import differences, volume_tree
from loopdevices import loop_device
from places import contents
from rig.owners import finish, stalled

MiB = 1 << 20
KEYS = {
    "n_blocks", "n_bytes", "n_image_blocks", "seconds", "bytes_per_second", "top", "base", "arrived", "left_out",
    "already_there", "makes_volume", "n_blocks_before", "n_blocks_shared", "n_blocks_verified", "dry_run",
}  # fmt: skip


def require_equal(source: str, target: str, *snapshots: str) -> None:
    """Hold snapshots of two volumes against each other, file by file, and check the target."""
    with bp.Volume.open(source, writable=False) as one, bp.Volume.open(target) as other:
        for name in snapshots:
            trees = [
                volume_tree(bp.FileSystem(volume.get_snapshot(name)), between_volumes=True) for volume in (one, other)
            ]
            assert differences(*trees) == []
            assert one.get_snapshot(name).plane == other.get_snapshot(name).plane
        assert bp.check(other).problems == []
        assert other.incoming.n_blocks == 0


def test_full_and_increment_as_they_were_foreseen(done, pool):
    for words, made in ((["june1"], True), (["june2", "-", "june1"], False)):
        foreseen = done("copy", pool, *words, "spare", "-n", "--json").json
        assert (os.path.exists("spare"), foreseen["dry_run"]) == (not made, True)
        report = done("copy", pool, *words, "spare", "--verify", "--json").json
        assert report.keys() == foreseen.keys() == KEYS
        same = KEYS - {"seconds", "bytes_per_second", "dry_run", "n_blocks_verified"}
        assert {key: report[key] for key in same} == {key: foreseen[key] for key in same}
        assert report["n_blocks_verified"] == report["n_blocks"] == report["n_image_blocks"] > 0
        assert report["makes_volume"] == made
    require_equal(pool, "spare", "june1", "june2")
    assert done("info", "spare", "--json").json["disks"][0]["n_blocks"] > 0
    again = done("copy", pool, "june2 - june1", "spare").out
    assert again == "spare has june2 already; nothing to do\n"
    assert "read back and equal" in done("copy", pool, "june2 - june1", "spare", "--verify").out
    assert sorted(os.listdir("spare")) == ["disks", "lock", "volume.toml"]


def test_onto_a_volume_that_has_no_places_of_the_numbers(done, blockplane, pool):
    with bp.Volume.open(pool) as volume:
        volume.grow(disks=2, size="24M", parity=0)
        volume.placer._cursor[False] = (1, 0)
        bp.FileSystem(volume).write_bytes("/far", b"far" * 100_000)
        volume.snapshot("far")
    words = ("copy", pool, "far", "small", "--disks", "2", "--size", "32M")
    refused = blockplane(*words)
    assert (refused.status, "--relocate" in refused.err) == (1, True)
    foreseen = done(*words, "--relocate", "-n", "--json").json
    assert not os.path.exists("small")
    report = done(*words, "--relocate", "--verify", "--json").json
    assert report["n_blocks_verified"] == report["n_blocks"] == foreseen["n_blocks"]
    require_equal(pool, "small", "far")
    assert done("cat", "small@far:/far").out.startswith("farfar")


def test_onto_other_disks_and_an_empty_volume(done, pool):
    done(
        "copy",
        pool,
        "june2",
        "--older",
        "all",
        "spare",
        "--disks",
        4,
        "--size",
        "20M",
        "--parity",
        2,
        "--chunk",
        "1MiB",
    )
    require_equal(pool, "spare", "june1", "june2")
    done("create", "blank", "--disks", 2, "--size", "40M", "--chunk", "disk")
    done("copy", pool, "june2", "blank")
    require_equal(pool, "blank", "june2")


def refused_words() -> dict[str, tuple[list[str], str, str]]:
    """What is refused: words, the kind of error, what it says."""
    small = ["--disks", "1", "--size", "8M"]
    return {
        "itself": (["june1", "pool"], "refused", "pool is the volume that the image is of"),
        "itself by another name": (["june1", "alias"], "refused", "is the volume that the image is of"),
        "a disk of the source": (
            ["june1", "new", "--disk", "pool/disks/1", "--wipe"], "refused", "pool/disks/1 is a disk of pool"
        ),
        "too small a numbering": (["big", "new", *small], "refused", "the image holds block"),
        "no room": (["big", "tight"], "no-space", "has room for"),
        "a small chunk": (["june1", "new", "--chunk", "4KiB"], "usage", "not a multiple of 256 KiB"),
        "no base": (["june2 - june1", "new"], "stream-mismatch", "there is no volume new"),
        "another's content": (["june1", "full"], "refused", "it would replace its live file system"),
        "a base that is not there": (["june2 - june1", "full"], "stream-mismatch", "which full does not hold"),
        "disks of a volume that is there": (["june1", "full", "--disks", "3"], "usage", "its disks are what they are"),
        "no sum": (["june2 & june1", "--with", "june1", "new"], "refused", "not sent"),
        "no snapshot": (["june9", "new"], "no-such-snapshot", "there is no snapshot june9"),
        "no volume": (["june1", "new/:/file"], "usage", "is not a volume"),
        "a link that leads nowhere": (["june1", "dangling"], "not-a-volume", "leads nowhere"),
        "a file": (["june1", "june1.bps"], None, ""),
    }  # fmt: skip


@pytest.mark.parametrize("what", refused_words())
@pytest.mark.parametrize("dry", [False, True], ids=["real", "dry"])
def test_what_cannot_be_is_refused_and_changes_nothing(blockplane, done, pool, what, dry):
    os.symlink("pool", "alias")
    os.symlink("nowhere", "dangling")
    done("create", "full", "--disks", 1, "--size", "40M")
    done("mkdir", "full:/mine")
    done("create", "tight", "--disks", 1, "--size", "7M")
    done("grow", "tight", "--disks", 1, "--size", "7M")
    with bp.Volume.open("pool") as volume:
        bp.FileSystem(volume).write_bytes("/big", random.Random(1).randbytes(12 * MiB))
        volume.snapshot("big")
    words, kind, said = refused_words()[what]
    before = {folder: contents(folder) for folder in ("pool", "full", "tight")}
    outcome = blockplane("copy", "pool", *words, *(["-n"] if dry else []), "--json")
    assert outcome.status in (1, 2)
    assert kind is None or outcome.error["kind"] == kind, outcome.out
    assert said in outcome.error["message"]
    assert outcome.error["hint"] or what in ("a small chunk",)
    assert not os.path.lexists("new")
    assert {folder: contents(folder) for folder in before} == before


@pytest.mark.parametrize("made", [True, False], ids=["new", "there"])
def test_what_an_interrupted_copy_goes_on_with_is_held(done, blockplane, pool, made, monkeypatch):
    with bp.Volume.open(pool) as volume:
        bp.FileSystem(volume).write_bytes("/big", random.Random(1).randbytes(12 * MiB))
        volume.snapshot("june3")
    words = ["june3"] if made else ["june3", "-", "june1"]
    if not made:
        done("copy", pool, "june1", "spare")
    write, written = DiskArray.write_band, []

    def fail(array: DiskArray, *arguments: object) -> object:
        written.append(arguments)
        if len(written) == (4 if made else 2):  # those of making it first
            raise KeyboardInterrupt
        return write(array, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(DiskArray, "write_band", fail)
        said = blockplane("copy", pool, *words, "spare")
    assert said.status == 130, said
    with bp.Volume.open(pool) as volume:
        held = {snapshot.name: [hold.owner for hold in snapshot.holds] for snapshot in volume.snapshots}
    (mine,) = {owner for owners in held.values() for owner in owners}
    assert f"its snapshots are held for 30 days, by {mine}" in said.err
    assert "of june3 are kept in spare" in said.err
    done("copy", pool, *words, "spare")
    require_equal(pool, "spare", "june3")
    with bp.Volume.open(pool) as volume:
        assert not any(snapshot.holds for snapshot in volume.snapshots)


def test_discard_gives_up_what_is_there(done, blockplane, pool):
    done("create", "full", "--disks", 2, "--size", "40M")
    done("mkdir", "full:/mine")
    done("snapshot", "create", "full@own")
    assert "its snapshots stay: own" in blockplane("copy", pool, "june1", "full").err
    done("copy", pool, "june1", "full", "--discard")
    require_equal(pool, "full", "june1")
    assert done("ls", "full@own:/").out == "mine\n"


# --- volumes in use -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def owned(*paths: str):
    """Have this process own volumes, and answer for them."""
    with ExitStack() as stack:
        for path in paths:
            volume = stack.enter_context(bp.Volume.open(path))
            stack.enter_context(bp.serve_control(volume))
        yield


@pytest.mark.parametrize("in_use", [["pool"], ["spare"], ["pool", "spare"]], ids=" and ".join)
def test_an_owner_of_either_volume_or_both_copies(done, pool, in_use):
    done("copy", pool, "june1", "spare")
    with owned(*in_use):
        foreseen = finish("copy", pool, "june2 - june1", "spare", "-n", "--json")
        assert foreseen.returncode == 0, foreseen.stdout
        found = finish("copy", pool, "june2 - june1", "spare", "--json", "--verify", "--hold", "1h")
        assert (found.returncode, found.stderr) == (0, b""), found.stdout
        assert json.loads(found.stdout)["n_blocks"] == json.loads(foreseen.stdout)["n_blocks"] > 0
        assert finish("copy", pool, "june1", "other").returncode == 0  # and to a new one
    require_equal(pool, "spare", "june1", "june2")
    require_equal(pool, "other", "june1")
    with bp.Volume.open(pool, writable=False) as volume:
        assert [snapshot.holds for snapshot in volume.snapshots] == [[], []]


def test_two_owners_of_one_volume_each_are_told_what_to_do(done, pool):
    done("copy", pool, "june1", "spare")
    half = Path("june2.bps").read_bytes()[:100]
    with owned(pool), stalled("receive", "spare", volume="spare", begun=half):
        refused = finish("copy", pool, "june2 - june1", "spare", "--json")
        assert refused.returncode == 1
        error = json.loads(refused.stdout)["error"]
        assert error["kind"] == "in-use"
        assert "spare is in use by process" in error["message"]
        assert "blockplane send pool EXPR | blockplane receive spare" in error["hint"]
    require_equal(pool, "spare", "june1")


def test_readers_of_both_volumes_are_no_obstacle(done, pool):
    done("copy", pool, "june1", "spare")
    with stalled("send", pool, "june1"), stalled("send", "spare", "june1", volume="spare"):
        found = finish("copy", pool, "june2 - june1", "spare", "--json")
        assert (found.returncode, found.stderr) == (0, b""), found.stdout
    require_equal(pool, "spare", "june1", "june2")


def test_a_copy_beside_a_receive_of_its_target_waits_or_says_so(done, pool):
    done("copy", pool, "june1", "spare")
    begun = Path("june2.bps").read_bytes()[:100]
    with stalled("receive", "spare", volume="spare", begun=begun) as owner:
        refused = finish("copy", pool, "june2 - june1", "spare")
        assert (refused.returncode, b"cannot go on beside it" in refused.stderr) == (1, True)
        owner.let_go()
    assert finish("copy", pool, "june2 - june1", "spare", "--wait", "30").returncode == 0
    require_equal(pool, "spare", "june1", "june2")


# --- block devices --------------------------------------------------------------------------------------------------


def test_from_devices_to_devices_and_files_between(done, blockplane, tmp_path, tree):
    with ExitStack() as stack:
        n_made = iter(range(100))

        def named(sizes: list[int], sector: int) -> list[str]:
            devices = [
                stack.enter_context(loop_device(tmp_path / f"backing{next(n_made)}", size * MiB, sector=sector))
                for size in sizes
            ]
            return [word for device in devices for word in ("--disk", device)]

        done("create", "pool", *named([16, 16, 17, 16], 512))
        done("put", "pool:/", tree)
        done("snapshot", "create", "pool@june1")
        (tree / "large").write_bytes(random.Random(3).randbytes(3 * MiB))
        done("put", "pool:/tree", tree, "--update", "--delete")
        done("snapshot", "create", "pool@june2")
        target = named([32, 40, 32], 4096)
        own = done("info", "pool", "--json").json["disks"][0]["path"]
        assert "is a disk of pool" in blockplane("copy", "pool", "june1", "spare", "--disk", own, "--wipe").err
        assert not os.path.exists("spare")
        done("copy", "pool", "june1", "spare", *target, "--verify")
        done("copy", "pool", "june2 - june1", "spare", "--verify")
        done("copy", "spare", "june2", "files", "--disks", 1, "--size", "80M")
        require_equal("pool", "spare", "june1", "june2")
        require_equal("pool", "files", "june2")
