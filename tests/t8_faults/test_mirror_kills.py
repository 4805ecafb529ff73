"""Mirrors whose process is killed at random moments: the destination has a state that the source had, and goes on.

The source changes between kills. In CI some 3 kills; with --deep 300, in parts.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import blockplane as bp
from rig.owners import finish

MIB = 1 << 20
N_KILLS, N_KILLS_DEEP = 3, 300
#: What may be brought twice for each time, beside what was handed on and not written yet.
ALLOWANCE, SHARE = 16 * MIB, 0.02

#: As `mirror run --once --now`, in small windows, saying how far it is.
CHILD = """
import sys, blockplane as bp
from blockplane.transfer.imagesending import ImageSending
class Small(ImageSending):
    def __init__(self, image, **windows):
        super().__init__(image, window_blocks=128)
bp.copy
sys.modules["blockplane.transfer.copy"].ImageSending = Small
with bp.Volume.open(sys.argv[1]) as volume:
    print("open", flush=True)
    for ran in bp.mirrors.run_once(volume, now=True, progress=lambda event: print(event.done_bytes, flush=True)):
        assert not ran.error, ran.error
"""


def contents(source: object) -> dict[str, str]:
    files = bp.FileSystem(source)
    return {name: hashlib.sha256(files.read_bytes(f"/{name}")).hexdigest() for name in sorted(files.listdir("/"))}


def change(source: Path, rng: random.Random, n_files: int) -> tuple[dict[str, str], int]:
    """Write some files; return what the source has now, and how many bytes were written."""
    n_bytes = 0
    with bp.Volume.open(source) as volume:
        files = bp.FileSystem(volume)
        for _ in range(n_files):
            data = rng.randbytes(rng.randrange(1, 3 * MIB))
            files.write_bytes(f"/f{rng.randrange(8)}", data)
            n_bytes += len(data)
        return contents(volume), n_bytes


def killed(source: Path, rng: random.Random, n_bytes: int) -> tuple[bool, int]:
    """Begin a step and kill it; return whether it was killed, and how many bytes it said to have handed on."""
    most, delay_s, done = rng.uniform(-0.2, 1.1) * n_bytes, rng.uniform(0, 0.02), 0
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            done = max(done, int(line)) if line != "open\n" else 0
            if done >= most:
                time.sleep(delay_s)
                child.send_signal(signal.SIGKILL)
                most = 1 << 60
        assert child.wait() in (0, -signal.SIGKILL), child.stderr and child.stderr.read()
    return child.returncode != 0, done


def landed(target: Path) -> int:
    with bp.Volume.open(target, writable=False) as volume:
        return sum(receive.n_landed for receive in bp.interrupted_receives(volume)) * bp.BLOCK_BYTES


def test_kills(tmp_path, is_deep, part, record_property):
    rng = random.Random(f"{os.environ['BLOCKPLANE_SEED']} {part}")
    source, target = tmp_path / "pool", tmp_path / "copy"
    bp.Volume.create(source, disks=3, size="64M").close()
    with bp.Volume.open(source) as volume:
        bp.mirrors.add(volume, str(target))
    states: list[dict[str, str]] = [{}]
    n_wanted = N_KILLS_DEEP // part[1] if is_deep else N_KILLS
    n_killed = n_rounds = worst = 0
    while n_killed < n_wanted:
        state, n_bytes = change(source, rng, rng.randint(1, 6))
        states.append(state)
        for _ in range(rng.randint(1, 3)):
            before = landed(target)
            was_killed, done = killed(source, rng, n_bytes)
            with bp.Volume.open(target, writable=False) as copy:
                assert contents(copy) in states  # one that the source had, whole
                assert copy.mirror_of is not None
                assert copy.mirror_of.state == "mirror"
                has_arrived = contents(copy) == state
            n_killed += was_killed
            if was_killed and not has_arrived:
                worst = max(worst, done + before - landed(target))
        n_rounds += 1
        if rng.random() < 0.5:
            found = finish("mirror", "run", source, "--once", "--now")
            assert found.returncode == 0, found.stderr
            with bp.Volume.open(target) as copy:
                assert contents(copy) == state
                assert bp.interrupted_receives(copy) == []
    assert finish("mirror", "run", source, "--once", "--now").returncode == 0
    for path in (source, target):
        with bp.Volume.open(path) as volume:
            assert contents(volume) == states[-1]
            assert bp.check(volume).problems == []
            assert sum(s.name.startswith("mirror.") for s in volume.snapshots) == 1
            assert volume.incoming.n_blocks == 0
    assert worst <= max(ALLOWANCE, int(SHARE * 18 * MIB))
    record_property(
        "summary", f"mirrors killed: {n_killed} kills in {n_rounds} rounds, at most {worst / MIB:.1f} MiB twice"
    )
