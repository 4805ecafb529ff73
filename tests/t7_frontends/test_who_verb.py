"""`who`: the holders of blocks and of files, as text and as JSON."""

from __future__ import annotations

import pytest

import blockplane as bp


def blocks_of(pool, path, snapshot=None):
    with bp.Volume.open(pool, writable=False) as volume:
        return volume.who_has(path, snapshot).plane.extents().tolist()


def test_who_holds_a_block_and_what_it_is(done, pool):
    start, stop = blocks_of(pool, "/later")[0]
    found = done("who", pool, "--vbn", f"{start}-{stop - 1}", "--json").json
    assert (found["start"], found["stop"]) == (start, stop)
    [holding] = found["holdings"]
    assert (holding["states"], holding["use"], holding["place"]) == (["june2", "active"], "live", start)
    owner = holding["owners"][0]
    assert (owner["what"], owner["paths"], owner["start"]) == ("file", ["/later"], start)
    text = done("who", pool, "--vbn", start).out
    assert text.splitlines() == [
        f"{start}: june2, active",
        f"  {start}: file {owner['inode']} of /later, from byte {owner['offset_bytes']:,}",
    ]
    bare = done("who", pool, "--vbn", start, "--no-files", "--json").json
    assert bare["holdings"][0]["owners"] == []


def test_who_tells_free_blocks_and_those_outside(done, pool):
    last = done("info", pool, "--json").json["n_blocks"] - 1
    lines = done("who", pool, "--vbn", f"0-{last}", "--no-files").out
    assert "nobody" in lines
    assert "the volume's own records" in lines
    assert "outside the volume" in done("who", pool, "--vbn", 1 << 40).out


@pytest.mark.parametrize("name", [["pool:/tree/large"], ["pool", ":/tree/large"]])
def test_who_has_a_file(done, pool, name):
    found = done("who", *name, "--json").json
    assert found["n_blocks"] == 129
    shares = {s["name"]: (s["n_blocks"], s["exclusive_blocks"]) for s in found["states"]}
    assert shares == {"june1": (127, 0), "june2": (129, 0), "active": (129, 0)}
    old = done("who", "pool@june1:/tree/large", "--json").json
    shares = {s["name"]: (s["n_blocks"], s["exclusive_blocks"]) for s in old["states"]}
    assert shares == {"june1": (129, 2), "june2": (127, 0), "active": (127, 0)}
    text = done("who", *name).out.splitlines()
    assert text[0].startswith("pool:/tree/large: 129 blocks")
    assert text[2].split() == ["june1", "127", "0"]


def test_who_has_a_file_that_lies_in_its_inode(done, pool, tmp_path):
    (tmp_path / "tiny").write_text("tiny")
    done("put", f"{pool}:/", str(tmp_path / "tiny"))
    found = done("who", f"{pool}:/tiny", "--json").json
    assert (found["n_blocks"], found["in_inodes"]) == (1, True)
    assert found["states"] == [{"name": "active", "n_blocks": 1, "exclusive_blocks": 1}]
    text = done("who", f"{pool}:/tiny").out.splitlines()
    assert text[0] == "pool:/tiny: 1 block (4 KiB) of the inode file, in which all of it lies"
    assert text[2].split() == ["active", "1", "1"]


@pytest.mark.parametrize(
    ("arguments", "kind", "status"),
    [
        (["pool"], "usage", 2),
        (["pool:/tree", "--vbn", "1"], "usage", 2),
        (["pool@june1", "--vbn", "1"], "usage", 2),
        (["pool", "--vbn", "7-3"], "usage", 2),
        (["pool", "--vbn", "x"], "usage", 2),
        (["pool:/absent"], "not-found", 1),
        (["pool@absent:/tree"], "no-such-snapshot", 1),
    ],
)
def test_what_who_refuses(blockplane, pool, arguments, kind, status):
    outcome = blockplane("who", *arguments, "--json")
    assert (outcome.status, outcome.error["kind"]) == (status, kind)
