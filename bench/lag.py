"""How far a mirror is behind a writer, over a link of a known rate; as root, in network namespaces.

    python bench/lag.py                             a writer of 20 MB/s, half a minute on each link
    python bench/lag.py --seconds 600 --rate 50     ten minutes, 50 MB/s

First on a link of twice the writer's rate: the mirror is never two intervals behind, and neither the memory of the
services nor what the volumes hold grows. Then on one of half of it: the mirror is no further behind than what was
written takes on that link, and catches up when the writer ends. Exit status 1: one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from rig.namespaces import Host
from rig.owners import finish
from rig.tiers import Site, must, tiers

MB = 1_000_000
#: Twenty seconds of writing.
N_FILES = 80
LOOK_S = 2.0
#: What memory may be more in the last third than in the first: what an allocator keeps.
GROWTH, GROWTH_BYTES = 1.1, 32 << 20


@dataclass(frozen=True)
class Look:
    """At one moment: seconds since the start; how far behind, and bytes of memory of both services."""

    at_s: float
    lag_s: float
    lag_bytes: int
    memory: tuple[int, int]


class Writer:
    """Replaces files at a rate, a quarter of a second's worth at a time."""

    def __init__(self, site: Site, rate: float) -> None:
        self._site, self._rate = site, rate
        self._pool = np.random.default_rng(1).bytes(int(rate) // 4 + (64 << 20))
        self.n_bytes = self._n = 0
        self._shared = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())

    def write_for(self, seconds: float) -> float:
        """Write; return the rate that came of it."""
        size, started, before = int(self._rate) // 4, time.monotonic(), self.n_bytes
        with tempfile.NamedTemporaryFile(dir=self._shared) as file:
            while (now := time.monotonic()) < started + seconds:
                due_s = started + (self.n_bytes - before) / self._rate - now
                if due_s > 0:
                    time.sleep(min(due_s, 0.05))
                else:
                    offset = self._n * 4099 % (64 << 20)
                    Path(file.name).write_bytes(self._pool[offset : offset + size])
                    must("put", "--update", f"{self._site.volume('source')}:/live/f{self._n % N_FILES}", file.name)
                    self._n += 1
                    self.n_bytes += size
        return (self.n_bytes - before) / (time.monotonic() - started)


def memory_of(host: Host) -> int:
    assert host.service is not None
    text = Path(f"/proc/{host.service.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


class Run:
    """The two hosts, and what was seen of them."""

    def __init__(self, site: Site, every_s: float) -> None:
        self.site, self.every_s, self.tls = site, every_s, ("--tls", site.folder / "tls" / "source")
        self.looks: list[Look] = []
        self.started = time.monotonic()

    def status(self) -> dict:
        done = finish("mirror", "status", self.site.volume("source"), "--json", *self.tls)
        if done.returncode:
            raise SystemExit(f"mirror status: {done.stderr.decode()}")
        return json.loads(done.stdout)["mirrors"][0]

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look again and again, beside what is done in the `with`."""
        self.looks.clear()
        over = threading.Event()

        def look_on() -> None:
            while not over.wait(LOOK_S):
                self.look()

        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(look_on)
            try:
                yield
            finally:
                over.set()
            found.result()

    def look(self) -> None:
        found, hosts = self.status(), self.site.hosts
        memory = memory_of(hosts["source"]), memory_of(hosts["east"])
        self.looks.append(Look(time.monotonic() - self.started, found["lag_s"], found["lag_blocks"] * 4096, memory))

    def catch_up(self, limit_s: float) -> float:
        """Wait until the mirror has all; return how long that took."""
        started = time.monotonic()
        while not self.status()["is_current"]:
            if time.monotonic() > started + limit_s:
                raise SystemExit(f"the mirror has not caught up after {limit_s:.0f} s")
            time.sleep(0.3)
        return time.monotonic() - started

    def used(self) -> tuple[int, ...]:
        """Return the blocks in use of both volumes."""
        return tuple(
            json.loads(finish("info", self.site.volume(name), "--json").stdout)["used_blocks"]
            for name in ("source", "east")
        )


def on_a_fast_link(run: Run, writer: Writer, rate: float, seconds: float) -> list[str]:
    """The link carries twice what is written."""
    run.site.hosts["east"].limit(int(2 * rate))
    writer.write_for(max(N_FILES / 4 + 1, 3 * run.every_s))  # every file is there, the first full is over
    run.catch_up(120)
    before = run.used()
    with run.looking():
        got = writer.write_for(seconds)
    took_s, after = run.catch_up(60), run.used()
    worst, third = max(look.lag_s for look in run.looks), len(run.looks) // 3
    first, last = ([max(look.memory[i] for look in part) for i in (0, 1)] for part in
                   (run.looks[:third], run.looks[-third:]))  # fmt: skip
    told = f"{got / MB:.1f} MB/s for {seconds:.0f} s on {2 * rate / MB:.0f} MB/s, every {run.every_s:g} s"
    print(
        f"{told}: at most {worst:.1f} s behind, {max(look.lag_bytes for look in run.looks) / MB:.0f} MB; current "
        f"{took_s:.1f} s after the end; memory {[n >> 20 for n in first]} to {[n >> 20 for n in last]} MiB; blocks in "
        f"use {before} to {after}",
        file=sys.stderr,
    )
    wrong = [] if worst < 2 * run.every_s else [f"{worst:.1f} s behind: two intervals or more"]
    wrong += [] if got > 0.9 * rate else [f"the writer came to {got / MB:.1f} MB/s alone"]
    for name, mine, theirs in zip(("source", "mirror"), first, last, strict=True):
        wrong += [] if theirs < GROWTH * mine + GROWTH_BYTES else [f"the memory of the {name}'s service grows"]
    for name, mine, theirs in zip(("source", "mirror"), before, after, strict=True):
        wrong += [] if theirs <= mine * 1.05 + 256 else [f"the {name}'s volume grows"]
    return wrong


def on_a_slow_link(run: Run, writer: Writer, rate: float, seconds: float) -> list[str]:
    """The link carries half of what is written."""
    run.site.hosts["east"].limit(int(rate / 2))
    started, before = time.monotonic(), writer.n_bytes
    with run.looking():
        got = writer.write_for(seconds)
    worst = max(look.lag_s for look in run.looks)
    took_s = run.catch_up(10 * seconds + 120)
    total_s, n_bytes = time.monotonic() - started, writer.n_bytes - before
    # all that was written, and what was on its way at the start, at the link's rate; a tenth for heads of packets
    bound_s = (n_bytes + rate * run.every_s) / (rate / 2) * 1.1 + 2 * run.every_s
    print(
        f"{got / MB:.1f} MB/s for {seconds:.0f} s on {rate / 2 / MB:.0f} MB/s: at most {worst:.1f} s behind while it "
        f"was written; current {took_s:.1f} s after the end, {total_s:.1f} s in all; {bound_s:.1f} s are its bound",
        file=sys.stderr,
    )
    wrong = [] if total_s < bound_s else ["it took longer to catch up than what was written takes"]
    return wrong + ([] if worst < seconds + 2 * run.every_s else ["it was further behind than the writer had begun"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of writing on each link")
    parser.add_argument("--rate", type=float, default=20.0, help="MB a second that are written")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between updates of the mirror")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without clearing up
    rate = chosen.rate * MB
    # two disks of data: the live files, what is on its way and what came since, with as much again
    size = f"{max(int(rate * (N_FILES / 4 + 3 * chosen.every)) >> 20, 128)}M"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # verbs say what they do
    with tempfile.TemporaryDirectory() as folder:
        names, sizes = ("source", "east"), {"source": size, "east": size}
        with tiers(Path(folder), np.random.default_rng(1), hasty=False, names=names, sizes=sizes) as site:
            run = Run(site, chosen.every)
            must("mirror", "add", site.volume("source"), site.address("east"), "--every", f"{chosen.every}s", *run.tls)
            writer = Writer(site, rate)
            wrong = on_a_fast_link(run, writer, rate, chosen.seconds)
            wrong += on_a_slow_link(run, writer, rate, min(chosen.seconds, 60.0))
    for each in wrong:
        print(each, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
