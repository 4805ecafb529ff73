"""Stored images: saved, listed, evaluated anew, sent, deleted; their names and snapshots' (claim 21)."""

from __future__ import annotations

import pytest
from pyroaring import BitMap64

import blockplane as bp
from blockplane.model import RefusedError, UsageError
from blockplane.model.errors import NoSuchSnapshotError, SnapshotExistsError
from blockplane.volume.imagetable import MAX_IMAGES


def listed(done, pool: str) -> dict[str, dict]:
    return {image["name"]: image for image in done("image", "list", pool, "--json").json["images"]}


def test_a_stored_image_is_sent_by_its_name(done, pool):
    made = done("image", "save", pool, "week", "june2", "-", "june1", "--json").json
    assert (made["definition"], made["sendable"], made["n_blocks"]) == ("june2 - june1", True, made["was_blocks"])
    direct = done("image", pool, "june2 - june1", "--json").json
    assert made["n_blocks"] == direct["n_blocks"]
    assert done("image", pool, "week", "--json").json == direct
    done("receive", "copy", "-i", "june1.bps")
    done("send", pool, "week", "-o", "week.bps")
    done("receive", "copy", "-i", "week.bps")
    assert done("cat", "copy@june2:/later").out == "later" * 5000
    assert done("check", pool, "--json").json["ok"]
    text = done("image", "list", pool).out
    assert "week" in text
    assert "yes" in text
    done("image", "delete", pool, "week")
    assert listed(done, pool) == {}
    assert done("image", "list", pool).out == "no stored images\n"
    assert done("check", pool, "--json").json["ok"]


def test_a_definition_follows_its_snapshots(done, blockplane, pool):
    done("image", "save", pool, "week", "june2 - june1")
    done("image", "save", pool, "more", "week + june1")
    done("snapshot", "rename", f"{pool}@june1", "first")
    found = listed(done, pool)
    assert found["week"]["definition"] == "june2 - first"
    assert found["more"]["definition"] == "week + first"
    assert found["more"]["n_blocks"] == done("image", pool, "june2 - first + first", "--json").json["n_blocks"]
    done("snapshot", "create", f"{pool}@june3")
    done("snapshot", "rename", f"{pool}@june3", "june1")  # another one of that name is not meant
    assert listed(done, pool)["week"]["definition"] == "june2 - first"
    done("snapshot", "delete", f"{pool}@first")
    gone = listed(done, pool)["week"]
    assert (gone["n_blocks"], gone["sendable"]) == (None, False)
    assert gone["obstacle"] == "the image week cannot be evaluated: june1 is gone"
    refused = blockplane("send", pool, "more", "-o", "x.bps")
    assert refused.status == 1
    assert "cannot be evaluated: june1 is gone" in refused.err
    assert "it was saved as `week + june1`" in refused.err
    assert "no: the image week cannot be evaluated" in done("image", "list", pool).out


def test_a_shadow_is_subtracted_and_not_summed(done, blockplane, pool):
    done("image", "save", pool, "difference", "june2 - june1")
    done("image", "save", pool, "sum", "june2 + june1")
    done("snapshot", "shadow", f"{pool}@june1")
    found = listed(done, pool)
    assert found["difference"]["sendable"]
    assert "june1 is a shadow" in found["sum"]["obstacle"]
    assert found["sum"]["was_blocks"] > 0
    assert "june1 is a shadow" in blockplane("send", pool, "sum", "-o", "x.bps").err


def test_what_can_only_be_counted_says_so(done, pool):
    done("image", "save", pool, "shared", "june2 & june1")
    done("image", "save", pool, "now", "active - june2")
    found = listed(done, pool)
    assert found["shared"]["n_blocks"] == done("image", pool, "june2 & june1", "--json").json["n_blocks"]
    assert "can be counted and listed, but not sent" in found["shared"]["obstacle"]
    assert "the live file system cannot be sent" in found["now"]["obstacle"]
    before = found["now"]["n_blocks"]
    done("put", f"{pool}:/again", "june1.bps")
    assert listed(done, pool)["now"]["n_blocks"] > before == found["now"]["was_blocks"]  # evaluated now


def test_names_are_not_shared(done, blockplane, pool):
    done("image", "save", pool, "week", "june2 - june1")
    assert "a snapshot named 'june1' exists" in blockplane("image", "save", pool, "june1", "june2").err
    assert "a stored image named 'week' exists" in blockplane("image", "save", pool, "week", "june2").err
    assert "a stored image is named 'week'" in blockplane("snapshot", "create", f"{pool}@week").err
    assert "a stored image is named 'week'" in blockplane("snapshot", "rename", f"{pool}@june1", "week").err
    assert "cannot be defined by itself" in blockplane("image", "save", pool, "x", "x + june1").err
    assert "cannot name a snapshot" in blockplane("image", "save", pool, "a..b", "june1").err
    done("image", "save", pool, "more", "week + june1")
    assert "week stays: more is defined by it" in blockplane("image", "delete", pool, "week").err
    assert "no stored image is named 'june1'" in blockplane("image", "delete", pool, "june1").err
    assert (
        "week stands for june2 - june1, and here one snapshot is meant" in blockplane("image", pool, "june1..week").err
    )
    done("image", "delete", pool, "more")
    done("image", "delete", pool, "week")
    done("snapshot", "create", f"{pool}@week")


def test_the_master_s_pointer_takes_no_stored_image_s_name(done, blockplane, pool):
    done("image", "save", pool, "master", "june1")
    found = blockplane("snapshot", "master", f"{pool}@june2", "--json")
    assert (found.status, found.error["message"]) == (1, "a stored image is named 'master'")
    done("image", "delete", pool, "master")
    done("snapshot", "master", f"{pool}@june2")
    done("snapshot", "master", f"{pool}@june2")
    assert blockplane("image", "save", pool, "master", "june1", "--json").status == 1
    assert done("image", pool, "master", "--json").json["top"] == "june2"


def test_a_stream_does_not_bring_a_snapshot_of_an_images_name(done, blockplane, pool):
    done("receive", "copy", "-i", "june1.bps")
    done("image", "save", "copy", "june2", "june1")
    done("send", pool, "june2 - june1", "-o", "two.bps")
    for words in (["receive", "copy", "-i", "two.bps", "-n"], ["receive", "copy", "-i", "two.bps"]):
        refused = blockplane(*words)
        assert refused.status == 1
        assert "copy has a stored image of that name" in refused.err
        assert "blockplane image delete copy june2" in refused.err
    assert [s["name"] for s in done("snapshot", "list", "copy", "--json").json["snapshots"]] == ["june1"]


def test_a_stored_plane_stays_as_it_was(done, pool):
    done("image", "save", pool, "now", "active")
    with bp.Volume.open(pool, writable=False) as volume:
        then = set(BitMap64.deserialize(volume.plane_file("now").read()))
        plane = volume.image("active", allow_active=True).plane
        n_then = len(then)
    done("put", f"{pool}:/again", "june1.bps")
    with bp.Volume.open(pool, writable=False) as volume:
        assert set(BitMap64.deserialize(volume.plane_file("now").read())) == then
        assert volume.image("now", allow_active=True).n_blocks > n_then
        assert len(plane) > 0
    kinds = {f["name"]: f["kind"] for f in done("ls", f"{pool}:/.planes", "--json").json["entries"]}
    assert kinds["now"] == "image"


def test_the_names_that_with_allowed_stay_allowed(done, blockplane, pool):
    done("rollback", f"{pool}@june1")
    done("put", f"{pool}:/side", "june1.bps")
    done("snapshot", "create", f"{pool}@side")
    assert "is no ancestor" in blockplane("image", "save", pool, "both", "side + june2").err
    done("image", "save", pool, "both", "side + june2", "--with", "june2")
    assert listed(done, pool)["both"]["n_blocks"] == done(
        "image", pool, "side + june2", "--with", "june2", "--json"
    ).json["n_blocks"]  # fmt: skip


def test_bounds(pool):
    with bp.Volume.open(pool) as volume:
        with pytest.raises(UsageError, match="too long to be stored: at most 3840 bytes"):
            volume.save_image("long", " + ".join(["june1"] * 110))
        assert volume.saved_images == []
        with pytest.raises(NoSuchSnapshotError):
            volume.save_image("none", "june9")
        for number in range(MAX_IMAGES):
            volume.save_image(f"i{number}", "june1")
        with pytest.raises(UsageError, match="256 stored images"):
            volume.save_image("one-more", "june1")
        with pytest.raises(SnapshotExistsError, match="a stored image is named 'i7'"):
            volume.snapshot("i7")
        with pytest.raises(RefusedError, match="there is no plane 'i256'"):
            volume.plane_file("i256")
        for number in range(2, 10):
            volume.delete_image(f"i{number}")
        assert bp.check(volume).problems == []
        assert [image.name for image in volume.saved_images][:3] == ["i0", "i1", "i10"]
