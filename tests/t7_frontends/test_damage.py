"""What the verbs say of a volume whose roots, labels or root records are damaged."""

from __future__ import annotations

import os

import numpy as np
import pytest

import blockplane as bp
from blockplane.volume.codec import NUMBER_MASK


def spoil(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def spoil_block(volume: bp.Volume, place: int) -> None:
    disk, dbn = (int(part[0]) for part in volume.geometry.to_disk(np.array([place], np.int64)))
    spoil(volume.array.disks[disk].path, (dbn + 16) * 4096 + 9)


@pytest.fixture
def rootless(pool):
    with bp.Volume.open(pool, writable=False) as volume:
        spoil_block(volume, volume.info.state.number)
    return pool


def test_a_damaged_live_root_leaves_what_does_not_hang_on_it(rootless, done, blockplane):
    found = done("info", rootless, "--json").json
    assert "the root of the live file system is damaged" in found["damage"][0]
    assert [s["name"] for s in found["snapshots"]] == ["june1", "june2"]
    assert (found["used_blocks"], found["n_inodes"], found["n_blocks"] > 0) == (None, None, True)
    assert "DAMAGED" in done("info", rootless).out
    assert "june1" in done("snapshot", "list", rootless).out
    assert done("cat", f"{rootless}@june1:/tree/hello").out == "hello\n"
    done("send", rootless, "june2 - june1", "-o", "again.bps")
    checked = blockplane("check", rootless, "--json")
    assert (checked.status, checked.json["n_states"]) == (1, 2)
    assert len(checked.json["problems"]) == 1
    for verb in (["ls", f"{rootless}:/"], ["mkdir", f"{rootless}:/x"], ["image", rootless, "active"]):
        error = blockplane(*verb, "--json").error
        assert error["kind"] == "damaged"
        assert "the live file system is damaged" in error["message"]
        assert error["hint"]


def test_a_damaged_local_root_leaves_the_live_file_system(pool, done, blockplane):
    with bp.Volume.open(pool, writable=False) as volume:
        spoil_block(volume, volume.info.local.number)
    found = done("info", pool, "--json").json
    assert "snapshot table" in found["damage"][0]
    assert found["n_inodes"] > 0
    assert "DAMAGED" in done("info", pool).out
    assert done("cat", f"{pool}:/tree/hello").out == "hello\n"
    checked = blockplane("check", pool, "--json")
    assert checked.status == 1
    assert "snapshot table" in checked.json["problems"][0]
    assert blockplane("mkdir", f"{pool}:/x", "--json").error["kind"] == "damaged"


def test_damaged_pointers_are_told_of_and_the_rest_is_shown(pool, done, blockplane):
    done("pointer", pool, "stable", "june1")
    done("snapshot", "master", f"{pool}@june1")
    with bp.Volume.open(pool, writable=False) as volume:
        spoil_block(volume, int(volume.local.root.replication.pointers[0][0]) & NUMBER_MASK)
    found = done("info", pool, "--json").json
    assert (found["pointers"], [s["name"] for s in found["snapshots"]]) == (None, ["june1", "june2"])
    assert "the pointers cannot be read" in done("info", pool).out
    assert done("cat", f"{pool}@june1:/tree/hello").out == "hello\n"
    assert blockplane("pointer", pool, "stable", "june2", "--json").error["kind"] == "checksum"
    assert blockplane("check", pool).status == 1


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (0, "label at its head"),
        (1, "root record at its head"),
        (-2, "root record at its tail"),
        (-1, "label at its tail"),
    ],
)
def test_check_names_the_copy_that_is_bad_until_it_is_written_again(pool, done, blockplane, block, what):
    path = f"{pool}/disks/2"
    spoil(path, block * 4096 + 100 if block >= 0 else os.path.getsize(path) + block * 4096 + 100)
    for _ in range(2):  # check writes nothing
        checked = blockplane("check", pool, "--json")
        assert checked.status == 1
        assert checked.json["problems"][0].startswith(f"{path}: the {what} is bad")
        assert len(checked.json["problems"]) == 1
    done("mkdir", f"{pool}:/new")
    assert done("check", pool, "--json").json["ok"] is True
