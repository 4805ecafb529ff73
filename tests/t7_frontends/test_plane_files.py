"""Marks, and planes as files, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyroaring import BitMap64

import blockplane as bp


@pytest.fixture
def marked(done, pool) -> str:
    """The pool, june2 marked, one more file, june3."""
    done("snapshot", "mark", f"{pool}@june2")
    done("put", f"{pool}:/more", "june1.bps")
    done("snapshot", "create", f"{pool}@june3", "--mark")
    return pool


def members(plane: bp.Plane) -> set[int]:
    return {vbn for start, stop in plane.extents().tolist() for vbn in range(start, stop)}


def test_planes_are_files(done, marked, tmp_path):
    found = done("ls", f"{marked}:/.planes", "--json").json["entries"]
    assert [(f["name"], f["kind"]) for f in found] == [
        ("june1", "snapshot"), ("june2", "snapshot"), ("june3", "snapshot"), ("alloc(june2)", "alloc"),
        ("alloc(june3)", "alloc"), ("dealloc(june3)", "dealloc"),
    ]  # fmt: skip
    done("get", f"{marked}:/.planes", "planes")
    done("get", f"{marked}:/.planes/alloc-june2", "alias")
    assert Path("alias").read_bytes() == Path("planes/alloc(june2)").read_bytes()
    with bp.Volume.open(marked, writable=False) as volume:
        for entry in found:
            bitmap = BitMap64.deserialize(Path("planes", entry["name"]).read_bytes())
            plane = volume.plane_file(entry["name"]).load()
            assert set(bitmap) == members(plane)
            assert set(bitmap) == members(volume.image(entry["name"]).plane)  # a name is an operand
    shown = done("stat", f"{marked}:/.planes/june1", "--json").json
    assert (shown["kind"], shown["n_bytes"]) == ("snapshot", Path("planes/june1").stat().st_size)
    assert "june3" in done("ls", "-l", f"{marked}:/.planes").out
    assert done("ls", f"{marked}:/.planes/june1").out == "june1\n"
    assert "snapshot, a portable 64-bit Roaring bitmap" in done("stat", f"{marked}:/.planes/june1").out


def test_a_shadow_is_a_plane(done, marked):
    before = members_of(marked, "june1")
    done("snapshot", "shadow", f"{marked}@june1")
    kinds = {f["name"]: f["kind"] for f in done("ls", f"{marked}:/.planes", "--json").json["entries"]}
    assert kinds["june1"] == "shadow"
    assert members_of(marked, "june1") == before


def members_of(pool: str, name: str) -> set[int]:
    with bp.Volume.open(pool, writable=False) as volume:
        return set(BitMap64.deserialize(volume.plane_file(name).read()))


def test_a_file_of_the_volume_called_so_is_not_hidden_silently(done, blockplane, marked):
    for verb in (["mkdir"], ["rm"], ["put"]):
        words = [*verb, f"{marked}:/.planes", *(["june1.bps"] if verb == ["put"] else [])]
        refused = blockplane(*words)
        assert refused.status == 1
        assert "cannot be written" in refused.err
        assert "/./.planes is a file of the volume called so" in refused.err
    done("put", f"{marked}:/./.planes", "june1.bps")
    listed = done("ls", f"{marked}:/.planes")
    assert "june1\n" in listed.out
    assert "the volume has a file /.planes of its own" in listed.err
    done("get", f"{marked}:/./.planes", "own")
    assert Path("own").read_bytes() == Path("june1.bps").read_bytes()
    done("snapshot", "create", f"{marked}@june4")
    assert done("stat", f"{marked}@june4:/.planes", "--json").json["type"] == "file"


def test_refusals(blockplane, marked):
    assert "there is no plane 'june9'" in blockplane("cat", f"{marked}:/.planes/june9").err
    assert "name a plane" in blockplane("cat", f"{marked}:/.planes/").err
    assert "marked are: june2, june3" in blockplane("image", marked, "june2 & alloc(june1)").err
    assert "june1 is not marked" in blockplane("snapshot", "unmark", f"{marked}@june1").err
    assert "but not sent" in blockplane("send", marked, "june3 & alloc(june2)", "-o", "x.bps").err


def test_info_lists_marks_and_destinations(done, marked):
    with bp.Volume.open(marked) as volume:
        volume.destinations.begin("far", "june3")
        volume.destinations.unknown("far")
    shown = done("info", marked, "--json").json
    assert [(m["name"], m["alloc_known"], m["dealloc_known"]) for m in shown["marks"]] == [
        ("june2", True, False), ("june3", True, True),
    ]  # fmt: skip
    assert shown["destinations"][0] | {"begun_ns": 0} == {
        "name": "far", "acknowledged": None, "under_way": "june3", "status": "unknown", "acknowledged_ns": 0,
        "begun_ns": 0,
    }  # fmt: skip
    text = done("info", marked).out
    assert "unknown" in text
    assert "far has nothing yet, june3 is unknown" in text
    done("snapshot", "unmark", f"{marked}@june2")
    assert [m["name"] for m in done("info", marked, "--json").json["marks"]] == ["june3"]
    assert done("check", marked, "--json").json["ok"]


def test_the_mark_image_is_the_difference_image(done, marked):
    marks = done("image", marked, "june3 & alloc(june2)", "--json").json
    difference = done("image", marked, "june3 - june2", "--json").json
    assert marks["n_blocks"] == difference["n_blocks"] > 0
    assert marks["blocks_per_disk"] == difference["blocks_per_disk"]
