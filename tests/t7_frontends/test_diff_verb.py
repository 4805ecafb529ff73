"""`diff`: paths and blocks of what changed, as text and as JSON."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

import blockplane as bp

KEYS = {"path", "change", "path_before", "kinds", "type", "inode", "generation"}


def test_diff_tells_paths_and_kinds(done, pool):
    found = done("diff", f"{pool}@june1", f"{pool}@june2", "--json").json
    assert (found["before"], found["after"]) == ("june1", "june2")
    assert [(c["path"], c["change"], c["kinds"]) for c in found["changes"]] == [
        ("/later", "added", []),
        ("/tree/large", "changed", ["content"]),
    ]
    assert all(set(change) == KEYS for change in found["changes"])
    assert [found[f"n_{sort}"] for sort in ("added", "changed", "deleted", "renamed")] == [1, 1, 0, 0]
    text = done("diff", f"{pool}@june1", f"{pool}@june2").out
    assert text == "+ /later\nM /tree/large  content\n1 added, 1 changed\n"


def test_diff_to_the_live_file_system_and_back(done, pool):
    assert done("diff", f"{pool}@june2", pool).out == "nothing changed\n"
    with bp.Volume.open(pool) as volume:
        files = bp.FileSystem(volume)
        files.rename("/tree/folder", "/tree/moved")
        files.chmod("/tree/moved/inner", 0o600)
        files.write_bytes("/odd \x1b name", b"x")
    text = done("diff", f"{pool}@june2", f"{pool}/").out.splitlines()
    assert text == [
        r"+ /odd \x1b name",
        "R /tree/folder/ -> /tree/moved/",
        "M /tree/moved/inner (was /tree/folder/inner)  attributes",
        "1 added, 1 changed, 1 renamed",
    ]
    found = done("diff", f"{pool}@june2", pool, "--json").json
    assert found["after"] is None
    assert found["changes"][1]["type"] == "directory"


def test_what_was_only_read_is_listed_when_asked_for(done, pool):
    with bp.Volume.open(pool) as volume:
        files = bp.FileSystem(volume)
        mtime_ns = files.lstat("/later").st_mtime_ns
        before = files.lstat("/later").st_ctime_ns
        with mock.patch("time.time_ns", return_value=before):  # the time of the change stays, as after a read
            files.utime("/later", ns=(1, mtime_ns))
    assert done("diff", f"{pool}@june2", pool).out == "nothing changed\n"
    assert done("diff", "--atime", f"{pool}@june2", pool).out == "M /later  attributes\n1 changed\n"


def test_diff_by_block_is_the_planes_difference(done, pool):
    found = done("diff", "--blocks", f"{pool}@june1", f"{pool}@june2", "--json").json
    with bp.Volume.open(pool, writable=False) as volume:
        one, two = (volume.get_snapshot(name).plane for name in ("june1", "june2"))
        assert found["added_extents"] == (two - one).extents().tolist()
        assert found["removed_extents"] == (one - two).extents().tolist()
        assert (found["added_blocks"], found["removed_blocks"]) == (len(two - one), len(one - two))
        assert found["exchanged_blocks"] == 0
    lines = done("diff", "--blocks", f"{pool}@june1", f"{pool}@june2").out.splitlines()
    assert len(lines) == len(found["added_extents"]) + len(found["removed_extents"]) + 1
    assert lines[-1].endswith("removed")


def test_diff_by_block_where_place_maps_are(done, pool):
    """Both hold the number of june1's root block, and different blocks under it."""
    done("create", "copy", "--disks", 3, "--size", "16MiB")
    with bp.Volume.open("copy") as volume:
        bp.FileSystem(volume).write_bytes("/mine", b"mine" * 50_000)
        volume.snapshot("mine")
        bp.receive("june1.bps", volume, discard=True)
        states = [volume.state("mine"), volume.state("june1")]
        assert not states[1].placemap.is_empty
        pairs = [_pairs(volume.plane(state), state) for state in states]
    found = done("diff", "--blocks", "copy@mine", "copy@june1", "--json").json
    assert found["added_blocks"] == len({vbn for vbn, _ in pairs[1] - pairs[0]})
    assert found["removed_blocks"] == len({vbn for vbn, _ in pairs[0] - pairs[1]})
    both = {vbn for vbn, _ in pairs[1] - pairs[0]} & {vbn for vbn, _ in pairs[0] - pairs[1]}
    assert found["exchanged_blocks"] == len(both) > 0
    assert "in both" in done("diff", "--blocks", "copy@mine", "copy@june1").out


def _pairs(plane, state):
    vbns = np.concatenate([np.arange(start, stop) for start, stop in plane.extents().tolist()])
    return set(zip(vbns.tolist(), state.placemap.to_places(vbns).tolist(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "kind", "status"),
    [
        (["pool", "pool@june1"], "usage", 2),
        (["pool@june1", "other@june1"], "usage", 2),
        (["pool@june1", "pool@june2:/tree"], "usage", 2),
        (["pool@june1"], "usage", 2),
        (["pool@absent", "pool@june1"], "no-such-snapshot", 1),
        (["pool@june1", "pool@absent", "--blocks"], "no-such-snapshot", 1),
    ],
)
def test_what_diff_refuses(blockplane, pool, arguments, kind, status):
    outcome = blockplane("diff", *arguments, "--json")
    assert (outcome.status, outcome.error["kind"]) == (status, kind)
    assert outcome.error["message"]
