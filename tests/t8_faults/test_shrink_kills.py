"""`shrink` killed with SIGKILL at random moments leaves a clean volume, which goes on until the group is out.

5 kills, with --deep 100, in parts.
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

N_KILLS, N_KILLS_DEEP = 5, 100
INDEX = 1
#: Steps of a mebibyte, so that there are many.
CODE = """
import sys, blockplane as bp
from blockplane.volume import shrink
with bp.Volume.open(sys.argv[1]) as volume:
    print("open", flush=True)
    shrink.shrink(volume, int(sys.argv[2]), step_blocks=256)
"""


def start(path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CODE, str(path), str(INDEX)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A volume of three groups; files, four snapshots and a shadow lie in all of them."""
    path = tmp_path_factory.mktemp("shrink") / "pool"
    random_bytes = random.Random(8).randbytes
    with bp.Volume.create(path, disks=3, size="40M", parity=1) as volume:
        volume.grow(disks=2, size="40M", parity=0)
        volume.grow(disks=3, size="48M", parity=1)
        files = bp.FileSystem(volume)
        for step in range(4):
            for group in range(3):
                volume.sync()
                volume.placer._cursor[False] = (group, 0)
                files.write_bytes(f"/{step}-{group}", random_bytes(3 << 20))
            if step:
                files.unlink(f"/{step - 1}-1")
            volume.snapshot(f"s{step}", mark=step == 1)
        volume.shadow_snapshot("s0")
        assert volume.plan_shrink(INDEX).n_moving > 2000
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


def n_groups(path: Path) -> int:
    with bp.Volume.open(path) as volume:
        assert bp.check(volume).problems == []
        return len(volume.geometry.groups)


def test_kills_at_random_moments(original, tmp_path, rng, is_deep, part, record_property):
    expected = trees(original)
    whole = tmp_path / "whole"
    subprocess.run(["cp", "-a", "--sparse=always", original, whole], check=True)
    process = start(whole)
    assert process.stdout is not None
    process.stdout.readline()
    started = time.monotonic()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    whole_s = time.monotonic() - started
    n_kills = -(-N_KILLS_DEEP // part[1]) if is_deep else N_KILLS
    n_before = n_after = n_again = 0
    for number in range(n_kills):
        copy = tmp_path / f"copy{number}"
        subprocess.run(["cp", "-a", "--sparse=always", original, copy], check=True)
        for _ in range(2):  # killed, and killed again where it went on
            process = start(copy)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.random()) * whole_s * 1.1)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            found = n_groups(copy)
            require_same(copy, expected)
            n_before, n_after = n_before + (found == 3), n_after + (found == 2)
            if found == 2:
                break
        if found == 3:
            n_again += 1
            process = start(copy)
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
            require_same(copy, expected)
        with bp.Volume.open(copy) as volume:
            assert len(volume.geometry.groups) == 2
            bp.FileSystem(volume).write_bytes("/after", b"x" * 100_000)
            volume.snapshot("after")
            assert bp.check(volume).problems == []
            bp.send(volume.image("after - s3"), tmp_path / "after.bps")
        subprocess.run(["rm", "-r", copy], check=True)
    assert n_before > 0
    record_property(
        "summary",
        f"shrink: {n_before + n_after} kills within {whole_s:.1f} s, {n_after} after the group was out; "
        f"{n_again} went on to the end",
    )
