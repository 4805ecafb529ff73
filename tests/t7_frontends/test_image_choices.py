"""`image` and `send` with chosen snapshots of a range, and with `^`."""

from __future__ import annotations


def test_an_image_chooses_among_the_snapshots_of_a_range(done, blockplane, pool):
    done("snapshot", "create", f"{pool}@june3")
    found = done("image", pool, "june1..june3", "--exclude", "june2", "--json").json
    assert (found["expression"], found["arriving"]) == ("june3 + june1", ["june3", "june1"])
    assert "june2" in found["left_out"]
    found = done("send", pool, "june1..june3", "--include", "june1,june2", "-n", "--json").json
    assert (found["arriving"], found["top"]) == (["june2", "june1"], "june2")
    assert blockplane("image", pool, "june3", "--exclude", "june2").status == 2
    assert done("image", pool, "june2", "^", "june1", "--json").json["complete"] is False
    assert blockplane("send", pool, "june2 ^ june1", "-n").status == 1
    refused = blockplane("image", pool, "--freed", "june1", "--exclude", "june1")
    assert refused.status == 2
    assert blockplane("image", pool, "--freed", "june2 - june1", "--json").error["kind"] == "usage"


def test_a_shadow_is_in_no_range_to_be_left_out_or_chosen(done, blockplane, pool):
    done("snapshot", "create", f"{pool}@june3")
    done("snapshot", "shadow", f"{pool}@june2")
    found = done("image", pool, "june1..june3", "--exclude", "june2", "--json").json
    assert (found["expression"], found["arriving"]) == ("june3 + june1", ["june3", "june1"])
    assert done("send", pool, "june1..june3", "--exclude", "june2,june1", "-n", "--json").json["arriving"] == ["june3"]
    refused = blockplane("image", pool, "june1..june3", "--include", "june1,june2")
    assert refused.status == 1
    assert refused.err.splitlines() == [
        "blockplane: june2 is a shadow: its blocks may have been reused, and no range has it",
        "  leave it out of what is included",
    ]
    assert "there is no snapshot june9" in blockplane("image", pool, "june1..june3", "--exclude", "june9").err
    assert "begins or ends with one" in blockplane("image", pool, "june2..june3", "--exclude", "june3").err


def test_an_image_that_cannot_be_sent_says_so(done, pool):
    assert done("image", pool, "june2 - june1", "--json").json["sendable"] is True
    assert "not to be sent" not in done("image", pool, "june2 - june1").out
    shown = done("image", pool, "june2 - june1 + june1", "--json").json
    assert (shown["complete"], shown["sendable"]) == (True, False)
    assert "can be counted and listed, but not sent" in done("image", pool, "june2 - june1 + june1").out
