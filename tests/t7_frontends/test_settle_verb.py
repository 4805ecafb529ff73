"""`settle VOL`: what it says beforehand and afterwards."""

from __future__ import annotations

import blockplane as bp
from places import contents

PLAN = {
    "n_elsewhere", "n_moving", "n_passing", "n_tables", "n_taken", "n_meant", "n_arriving", "n_read", "n_no_place",
    "n_extents", "n_extents_after", "dry_run",
}  # fmt: skip
REPORT = {"n_moved", "n_passed", "n_elsewhere", "n_steps", "n_extents_before", "n_extents", "seconds"}


def test_what_shrink_moved_goes_home_when_there_is_a_group_again(done, pool):
    before = done("info", pool, "--json").json
    assert done("settle", pool).out.startswith("0 blocks")
    done("grow", pool, "--disks", "2", "--size", "48M", "--parity", "0")
    with bp.Volume.open(pool) as volume:
        volume.placer._cursor[False] = (1, 0)
        bp.FileSystem(volume).write_bytes("/there", b"x" * 3_000_000)
        volume.snapshot("there")
    done("shrink", pool, "--group", "1")
    nowhere = done("settle", pool, "-n", "--json").json
    assert nowhere.keys() == PLAN
    assert nowhere["n_no_place"] > 700
    done("grow", pool, "--disks", "2", "--size", "48M", "--parity", "0")
    untouched = contents(pool)
    plan = done("settle", pool, "-n", "--json").json
    assert (plan["dry_run"], plan["n_moving"] > 700, plan["n_no_place"]) == (True, True, 0)
    text = done("settle", pool, "-n").out
    assert f"{plan['n_moving']:,} would go home" in text
    assert contents(pool) == untouched
    report = done("settle", pool, "--json").json
    assert report.keys() == REPORT
    assert report["n_moved"] == plan["n_moving"]
    assert report["n_extents"] == plan["n_extents_after"] < report["n_extents_before"] == plan["n_extents"]
    assert done("settle", pool, "--json").json["n_moved"] == 0
    assert done("check", pool, "--json").json["ok"]
    after = done("info", pool, "--json").json["snapshots"]
    assert [s["n_blocks"] for s in after][:-1] == [s["n_blocks"] for s in before["snapshots"]]
    assert done("cat", f"{pool}@there:/there").out.startswith("xxx")
