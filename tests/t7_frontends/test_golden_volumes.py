"""Version 1: volumes that were made once are opened, read, checked and written to by every later release.

The archives lie in `golden`, what they hold beside them; `rig/goldens.py` is the recipe. They are never made anew:
what no longer opens them is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import blockplane as bp
from rig.goldens import NAMES, block, contents, unpack

FOLDER = Path(__file__).with_name("golden")


@pytest.fixture(params=NAMES)
def golden(request, tmp_path) -> Path:
    unpack((FOLDER / f"{request.param}.tar.zst").read_bytes(), tmp_path)
    return tmp_path / request.param


def test_all_of_them_are_there_and_they_are_small():
    assert {path.name for path in FOLDER.iterdir()} == {
        f"{name}{end}" for name in NAMES for end in (".tar.zst", ".json")
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200 << 10


def test_they_hold_what_they_held(golden):
    assert json.loads(json.dumps(contents(golden))) == json.loads((FOLDER / f"{golden.name}.json").read_text())


def test_they_stand_for_what_the_format_has():
    """Otherwise the others would show little."""
    source, waiting, mapped, pointed = (json.loads((FOLDER / f"{name}.json").read_text()) for name in NAMES)
    assert [kind for _, _, kind, _ in source["snapshots"]] == ["shadow", "regular", "regular", "regular"]
    assert len(source["groups"]) == 2
    assert all(source[what] for what in ("holds", "marks", "images", "destinations"))
    assert "auto" in source["policy"]
    assert waiting["incoming"]
    assert len(set(mapped["maps"].values())) > 1
    assert (pointed["pointers"], pointed["masters"]) == ([["master", "two"], ["stable", "one"]], ["one", "two"])
    assert [version for _, version, _ in pointed["remembered"]] == [2, 1, 2]
    assert {name: (via, newest) for name, via, _, newest, _, _ in pointed["replicas"]} == {
        "near": ("", "two"), "far": ("near", "one"), "small": ("", None),
    }  # fmt: skip
    assert pointed["limit"] == 86_400


def test_what_did_not_know_pointers_carried_them_along(tmp_path):
    """The tree stands where format version 1 had a reserved one, which is written as it was read."""
    unpack((FOLDER / "pointed.tar.zst").read_bytes(), tmp_path)
    with bp.Volume.open(tmp_path / "pointed") as volume:
        before = volume.local.root.replication.encode()
        bp.FileSystem(volume).write_bytes("/new", block(7) * 30)
        volume.snapshot("new")
        assert volume.local.root.replication.encode() == before
        assert bp.check(volume).problems == []


def test_they_are_whole_and_can_be_written_to(golden):
    with bp.Volume.open(golden) as volume:
        assert bp.check(volume).problems == []
        bp.FileSystem(volume).write_bytes("/new", block(7) * 300)
        volume.snapshot("new")
        assert bp.check(volume).problems == []
    with bp.Volume.open(golden, writable=False) as volume:
        assert bp.FileSystem(volume.get_snapshot("new")).read_bytes("/new") == block(7) * 300
    before = json.loads((FOLDER / f"{golden.name}.json").read_text())["trees"]
    after = contents(golden)["trees"]
    assert {name: after[name] for name in before if name != "active"} == {
        name: tree for name, tree in before.items() if name != "active"
    }


def test_what_was_under_way_goes_on(tmp_path):
    for name in ("source", "waiting"):
        unpack((FOLDER / f"{name}.tar.zst").read_bytes(), tmp_path)
    with bp.Volume.open(tmp_path / "source") as source, bp.Volume.open(tmp_path / "waiting") as waiting:
        image = source.image("four - two")
        token = bp.resume_token(waiting)
        sent = bp.send(image, tmp_path / "rest.bps", resume=token)
        assert 0 < sent.n_blocks < image.n_blocks
        bp.receive(tmp_path / "rest.bps", waiting, discard=True)
        assert waiting.get_snapshot("four").plane == source.get_snapshot("four").plane
        assert bp.check(waiting).problems == []
