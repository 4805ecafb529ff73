"""`replicate` killed at any moment: source and replica stay whole, and the next pull brings what is missing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import blockplane as bp

CI_KILLS, DEEP_KILLS = 1, 150
COMMAND = [sys.executable, "-c", "from blockplane.cli import main; main()", "replicate"]


def test_kills(tmp_path: Path, rng, is_deep, part, record_property):
    source, copy = tmp_path / "source", tmp_path / "copy"
    bp.Volume.create(source, disks=2, size="24MiB", parity=0).close()
    n_kills = DEEP_KILLS // part[1] if is_deep else CI_KILLS
    n_killed = n_begun = 0
    content: dict[str, bytes] = {}
    for number in range(n_kills):
        content[name := f"m{number}"] = rng.bytes(int(rng.integers(1, 4_000_000)))
        with bp.Volume.open(source) as volume:
            bp.FileSystem(volume).write_bytes("/file", content[name])
            volume.snapshot(name)
            volume.make_master(name)
            volume.prune(bp.Policy(last=2))
        process = subprocess.Popen([*COMMAND, source, copy], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(0.3, 3)))
        process.kill()
        n_killed += process.wait() < 0
        n_begun += (copy / "volume.toml").exists()
        whole(source, content)
        if rng.integers(3) == 0:
            pull(source, copy, content)
    pull(source, copy, content)
    record_property("summary", f"replicate killed {n_killed} of {n_kills} times, {n_begun} with a volume there")


def whole(path: Path, content: dict[str, bytes]) -> None:
    with bp.Volume.open(path) as volume:
        assert bp.check(volume).problems == []
        for snapshot in volume.snapshots:
            if snapshot.kind == "regular":
                assert bp.FileSystem(snapshot).read_bytes("/file") == content[snapshot.name]


def pull(source: Path, copy: Path, content: dict[str, bytes]) -> None:
    subprocess.run([*COMMAND, source, copy], check=True, capture_output=True)
    for path in (source, copy):
        whole(path, content)
    with bp.Volume.open(source) as one, bp.Volume.open(copy) as other:
        assert one.get_snapshot("master").id == other.get_snapshot("master").id
        assert [r.newest for r in bp.replicas(one)][-1] == one.get_snapshot("master").name
        other.prune(bp.Policy(last=2))
