"""Copies killed or interrupted at random moments: the next one goes on, ends equal, and brings little twice.

A full image and three increments, each killed up to three times, between volumes on files and on loop devices. In CI
one history on either, some 15 kills; with --deep 22 of either, some 300, in parts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockplane as bp
from equality import Tree, differences, volume_tree
from loopdevices import loop_device
from rig.owners import finish

MIB = 1 << 20
N_EACH, N_EACH_DEEP = 1, 22
#: What may be brought twice for each time, as of a receive, beside what was handed on and not written yet.
ALLOWANCE, SHARE = 16 * MIB, 0.02
IMAGES = {"june1": "june1", "june2": "june2 - june1", "june3": "june3 - june2", "june4": "june4 - june3"}

#: As the verb, in small windows, and saying how far it is. Arguments: source, expression, target, disks.
CHILD = """
import sys, blockplane as bp
from blockplane.transfer.send import ImageSending
with bp.Volume.open(sys.argv[1], writable=False) as volume:
    image = ImageSending(volume.image(sys.argv[2]), window_blocks=128)
    wish = {"disks": sys.argv[4:], "wipe": True} if sys.argv[4:] else {}
    bp.copy(image, sys.argv[3], progress=lambda event: print(event.done_bytes, flush=True), **wish)
"""


def make_source(path: Path, disks: list[str] | None) -> Path:
    """A volume with 30 MiB in june1, and some 20 MiB of change in each of june2 to june4."""
    rng = random.Random(5)
    size = None if disks else "90M"
    with bp.Volume.create(path, disks=disks or 5, size=size, parity=1) as volume:
        files = bp.FileSystem(volume)
        for step, name in enumerate(IMAGES):
            for i in range(10 if not step else 6):
                files.write_bytes(f"/f{rng.randrange(12) if step else i}", rng.randbytes(3 * MIB + rng.randrange(MIB)))
            volume.snapshot(name)
    return path


def trees_of(source: Path) -> dict[str, Tree]:
    with bp.Volume.open(source, writable=False) as volume:
        return {name: volume_tree(bp.FileSystem(volume.get_snapshot(name))) for name in IMAGES}


def killed(source: Path, text: str, target: Path, disks: list[str], rng: random.Random, n_bytes: int) -> int:
    """Begin a copy and kill it at a random moment; return how many bytes it said to have handed on."""
    how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
    most, delay_s, done = rng.uniform(-0.1, 1.0) * n_bytes, rng.uniform(0, 0.02), 0
    command = [sys.executable, "-c", CHILD, source, text, target, *([] if target.exists() else disks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        if most < 0:
            time.sleep(rng.uniform(0.1, 0.5))
            child.send_signal(how)
        for line in child.stdout:
            done = int(line)
            if done >= most >= 0:
                time.sleep(delay_s)
                child.send_signal(how)
                most = n_bytes + 1
    return done


def bring(source: Path, name: str, target: Path, disks: list[str], rng: random.Random) -> tuple[int, int]:
    """Copy an image, killed on the way; return how often, and the most bytes that one kill lost."""
    n_killed = worst = 0
    with bp.Volume.open(source, writable=False) as volume:
        image = volume.image(IMAGES[name])
        n_bytes, kept = image.n_bytes, 0
        for _ in range(rng.randint(1, 3)):
            done = killed(source, IMAGES[name], target, disks, rng, n_bytes - kept)
            found = bp.copy(image, target, dry_run=True)
            if found.already_there:
                break
            n_killed += 1
            there = found.n_blocks_before * bp.BLOCK_BYTES
            worst, kept = max(worst, kept + done - there), there
    options = (
        [] if target.exists() else [word for disk in disks for word in ("--disk", disk)] + ["--wipe"] * bool(disks)
    )
    ended = finish("copy", source, IMAGES[name], target, "--verify", "--json", *options)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    report = json.loads(ended.stdout)
    if not report["already_there"]:
        assert report["n_blocks"] + report["n_blocks_before"] == report["n_image_blocks"]
        assert report["n_blocks_before"] * bp.BLOCK_BYTES == kept
    assert report["n_blocks_verified"] == report["n_image_blocks"]
    assert worst <= max(ALLOWANCE, int(SHARE * n_bytes))
    return n_killed, worst


def history(
    source: Path, trees: dict[str, Tree], target: Path, disks: list[str], rng: random.Random
) -> tuple[int, int]:
    """Bring all snapshots of a source; what they hold, and the target, must be whole."""
    n_killed = worst = 0
    for name in IMAGES:
        n, lost = bring(source, name, target, disks, rng)
        n_killed, worst = n_killed + n, max(worst, lost)
        with bp.Volume.open(target) as volume:
            assert bp.interrupted_receives(volume) == []
            assert bp.check(volume).problems == []
            assert volume.incoming.n_blocks == 0
            assert differences(volume_tree(bp.FileSystem(volume.get_snapshot(name))), trees[name]) == []
    with bp.Volume.open(target, writable=False) as volume:
        for name in IMAGES:
            assert differences(volume_tree(bp.FileSystem(volume.get_snapshot(name))), trees[name]) == []
    assert {"volume.toml", "lock"} <= set(os.listdir(target)) <= {"disks", "lock", "volume.toml"}
    return n_killed, worst


@pytest.mark.parametrize("where", ["files", "devices"])
def test_kills(where, tmp_path, is_deep, part, record_property):
    seed = int(os.environ["BLOCKPLANE_SEED"])
    n = N_EACH_DEEP if is_deep else N_EACH
    n_killed = worst = n_histories = 0
    with ExitStack() as stack:

        def devices(label: str, count: int, size: int) -> list[str]:
            if where == "files":
                return []
            return [stack.enter_context(loop_device(tmp_path / f"{label}{i}", size * MIB)) for i in range(count)]

        source = make_source(tmp_path / "pool", devices("source", 4, 100))
        trees = trees_of(source)
        disks = devices("target", 3, 150)
        for number in range(n):
            if number % part[1] != part[0]:
                continue
            target = tmp_path / f"copy{number}"
            killed_here, lost = history(source, trees, target, disks, random.Random(f"{seed} {where} {number}"))
            n_killed, worst, n_histories = n_killed + killed_here, max(worst, lost), n_histories + 1
            subprocess.run(["rm", "-r", str(target)], check=True)
    record_property(
        "summary",
        f"copies killed, {where}: {n_histories} histories, {n_killed} kills, at most {worst / MIB:.1f} MiB twice",
    )
    assert n_killed > 0
