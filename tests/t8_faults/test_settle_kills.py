"""`settle` killed with SIGKILL at random moments leaves a clean volume, which goes on until all is home that can be.

2 kills, with --deep 100, in parts.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import blockplane as bp
from equality import Tree, differences, volume_tree

N_KILLS, N_KILLS_DEEP = 2, 100
#: Steps of a quarter of a mebibyte, so that there are many.
CODE = """
import sys, blockplane as bp
from blockplane.volume import settling
with bp.Volume.open(sys.argv[1]) as volume:
    print("open", flush=True)
    settling.settle(volume, step_blocks=64)
"""


def start(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", CODE, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Of a volume of three groups one went and came back: what it held lies elsewhere, and other blocks lie there."""
    path = tmp_path_factory.mktemp("settle") / "pool"
    random_bytes = random.Random(8).randbytes
    with bp.Volume.create(path, disks=3, size="24M", parity=1) as volume:
        volume.grow(disks=2, size="24M", parity=0)
        volume.grow(disks=3, size="24M", parity=1)
        files = bp.FileSystem(volume)
        for step in range(3):
            for group in range(3):
                volume.sync()
                volume.placer._cursor[False] = (group, 0)
                files.write_bytes(f"/{step}-{group}", random_bytes(1 << 20))
            if step:
                files.unlink(f"/{step - 1}-1")
            volume.snapshot(f"s{step}", mark=step == 1)
        volume.shadow_snapshot("s0")
        volume.shrink(2)
        volume.grow(disks=3, size="24M", parity=1)
        files = bp.FileSystem(volume)
        for step in range(2):
            volume.sync()
            volume.placer._cursor[False] = (2, 0)
            files.write_bytes(f"/new{step}", random_bytes(1 << 20))
            volume.snapshot(f"t{step}")
        assert volume.plan_settle().n_moving > 200
    return path


def trees(path: Path) -> dict[str, Tree]:
    with bp.Volume.open(path, writable=False) as volume:
        snapshots = [snapshot for snapshot in volume.snapshots if snapshot.kind == "regular"]
        found = {snapshot.name: volume_tree(bp.FileSystem(snapshot)) for snapshot in snapshots}
        return {**found, "": volume_tree(bp.FileSystem(volume))}


def require_same(path: Path, expected: dict[str, Tree]) -> None:
    found = trees(path)
    assert found.keys() == expected.keys()
    for name, tree in found.items():
        assert not differences(tree, expected[name]), name


def copied(original: Path, copy: Path) -> Path:
    subprocess.run(["cp", "-a", "--sparse=always", original, copy], check=True)
    return copy


def test_kills_at_random_moments(original, tmp_path, rng, is_deep, part, record_property):
    expected, whole = trees(original), copied(original, tmp_path / "whole")
    with bp.Volume.open(whole, writable=False) as volume:
        plan = volume.plan_settle()
    process, started = start(whole), time.monotonic()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    whole_s = time.monotonic() - started
    n_kills, n_between = -(-N_KILLS_DEEP // part[1]) if is_deep else N_KILLS, 0
    for number in range(n_kills):
        copy = copied(original, tmp_path / f"copy{number}")
        process = start(copy)
        time.sleep(float(rng.random()) * whole_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with bp.Volume.open(copy) as volume:
            assert bp.check(volume).problems == []
            n_left = volume.plan_settle().n_moving
            assert 0 <= n_left <= plan.n_moving
            n_between += 0 < n_left < plan.n_moving
        require_same(copy, expected)
        with bp.Volume.open(copy) as volume:
            volume.settle()
            assert volume.plan_settle().n_moving == 0
            assert bp.check(volume).problems == []
        require_same(copy, expected)
        subprocess.run(["rm", "-r", copy], check=True)
    record_property("summary", f"settle: {n_kills} kills within {whole_s:.1f} s, {n_between} between two steps")
