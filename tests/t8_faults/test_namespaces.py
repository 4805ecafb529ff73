"""Several hosts with links of their own: cut, muted, reset and slowed, and services killed, in the middle of transfers.

A source, two mirrors, and a tier below one of them, each the service that `blockplane serve` is, over TLS. Every host
is read after every fault: it shows a state that the source had, whole, and never goes back. At the end all are equal.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import blockplane as bp
from rig.namespaces import PORT, Host
from rig.tiers import ABOVE, MIB, Site, must, tiers

#: Of each link: a change takes about a second, and what happens then is in the middle of it.
RATE = 6 * MIB
#: What may travel twice: two hundredths of all; of images that are smaller than what one fault costs, so much for each.
SHARE, WINDOW = 0.02, 16 * MIB
#: Of TLS and of the stream, and metadata blocks.
HEADS = 0.03
#: Of each link where images are large. Where few faults come, one may cost a quarter of a second of it.
LARGE_RATE = 30 * MIB
#: Of each update: what is asked and answered, blocks of metadata.
STEP = 128 << 10

#: Says garbage to a listener, and hangs up.
SPEAK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.sendall(bytes.fromhex(sys.argv[3]))
"""
#: Listens, and answers garbage.
ANSWER = """
import os, socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    while True:
        sock, _ = server.accept()
        with sock:
            sock.sendall(os.urandom(1000))
"""


def only_in_deep(is_deep: bool, part: tuple[int, int], number: int) -> None:
    """Skip a test but in one part of the deep run."""
    if not is_deep or part[0] != number % part[1]:
        pytest.skip("only the deep run has these faults")


class Faults:
    """What happens to links and services, drawn from a seed; counted."""

    def __init__(self, site: Site) -> None:
        self.site, self.rng = site, site.rng
        self.n_cuts = self.n_kills = self.n_inside = 0
        self.allowed = dict.fromkeys(ABOVE, 0)

    def cut_once(self) -> None:
        """Have something happen to the link of a host, after as many bytes as it comes to."""
        name = self._reached(self.site.below)
        host = self.site.hosts[name]
        kinds: list[tuple[float, Callable[[], None]]] = [
            (0.45, host.reset), (0.25, host.cut), (0.1, host.mute), (0.1, host.cut), (0.1, host.mute),
        ]  # fmt: skip
        at = int(self.rng.choice(len(kinds), p=[p for p, _ in kinds]))
        kinds[at][1]()
        if at:  # of the last two both sides lose patience
            time.sleep(float(self.rng.uniform(2.5, 3.0)) if at > 2 else float(self.rng.uniform(0.05, 0.6)))
            host.heal()
        self.n_cuts += 1
        self._count(name)

    def kill_once(self) -> None:
        """Kill a service, whatever it does; half of the time nobody hears of that before it is back."""
        name = self._reached(self.site.below)
        if not self.rng.integers(3):
            name = ABOVE[name]
        host = self.site.hosts[name]
        is_mute = bool(self.rng.integers(2))
        if is_mute:
            host.mute()
        host.kill()
        if is_mute:
            host.heal()
        if name in ABOVE:
            self.site.probe(name)
        host.start()
        self.n_kills += 1
        self._count(name)

    def _reached(self, names: list[str]) -> str:
        """Choose a host to which something is coming, where there is one; wait until some part of that came."""
        due = {name: self.site.still_due(name) for name in names}
        names = [name for name in names if due[name]] or names
        name = str(self.rng.choice(names))
        is_here = self.site.hosts[name].wait_for_bytes(int(self.rng.integers(0, max(due[name], 1))), 1.5)
        self.n_inside += is_here and self.site.still_due(name) > 0
        return name

    def _count(self, name: str) -> None:
        for below in self.site.below:
            if name in (below, ABOVE[below]):
                self.allowed[below] += min(self.site.due[below][1], WINDOW)


def test_links_are_cut_and_services_killed(tmp_path, rng, is_deep, part, record_property):
    n_cuts, n_kills = (-(-500 // part[1]), -(-300 // part[1])) if is_deep else (2, 1)
    with tiers(tmp_path, rng) as site:
        faults = Faults(site)
        for host in site.hosts.values():
            host.limit(RATE)
        site.change(3, 3 * MIB)
        site.settle()
        while faults.n_cuts < n_cuts or faults.n_kills < n_kills:
            is_slow = is_deep and rng.integers(12) == 0
            slow = site.hosts[str(rng.choice(list(ABOVE)))]
            if is_slow:
                slow.limit(2 * MIB)
            site.change(int(rng.integers(1, 5)), 4 * MIB)
            for _ in range(int(rng.integers(1, 4))):
                is_kill = faults.n_kills * n_cuts < faults.n_cuts * n_kills
                (faults.kill_once if is_kill else faults.cut_once)()
                site.probe()
            if is_slow:
                slow.limit(RATE)
            if rng.integers(4) == 0:
                site.settle()
        site.settle_all()
        twice = {name: site.hosts[name].n_received - site.n_put for name in ABOVE}
        site.check()
    for name, n_bytes in twice.items():
        assert n_bytes < (SHARE + HEADS) * site.n_put + faults.allowed[name] + len(site.states) * STEP
    record_property(
        "summary",
        f"hosts: {faults.n_cuts} cuts and {faults.n_kills} kills ({faults.n_inside} inside a transfer), "
        f"{site.n_probes} probes, {len(site.states)} states; of {site.n_put / MIB:.0f} MiB written "
        f"came at most {max(twice.values()) / MIB:.1f} MiB more to any host",
    )


def test_what_faults_send_again(tmp_path, rng, is_deep, part, record_property):
    """Large images, each there before the next begins: what travels twice is two hundredths of all that does."""
    n_cuts, n_kills = (-(-500 // part[1]), -(-300 // part[1])) if is_deep else (1, 1)
    names, n_files, size = (ABOVE, 3, "640M") if is_deep else (("east",), 1, "128M")
    with tiers(tmp_path, rng, names=("source", *names), sizes=dict.fromkeys(("source", *names), size)) as site:
        faults = Faults(site)
        for host in site.hosts.values():
            host.limit(LARGE_RATE)
        site.change(1, MIB)
        arrive(site)
        figures = [figures_of(site)]
        while faults.n_cuts < n_cuts or faults.n_kills < n_kills:
            site.change(n_files, 48 * MIB, others=True)
            if (
                len(figures) > 1
            ):  # the first without a fault: what comes with it beside what was written is no repetition
                is_kill = faults.n_kills * n_cuts < faults.n_cuts * n_kills
                (faults.kill_once if is_kill else faults.cut_once)()
                site.probe()
            arrive(site)
            figures.append(figures_of(site))
        site.settle_all()
        site.check()
    start, quiet, end = figures[0], figures[1], figures[-1]
    n_bytes = end["source"] - quiet["source"]
    beside = {name: (quiet[name] - start[name]) / (quiet["source"] - start["source"]) for name in names}
    twice = {name: end[name] - quiet[name] - beside[name] * n_bytes for name in names}
    record_property(
        "summary",
        f"sent again: of {n_bytes / MIB:.0f} MiB, with {faults.n_cuts} cuts and {faults.n_kills} kills "
        f"({faults.n_inside} inside a transfer), "
        + ", ".join(f"{name} {twice[name] / MIB:.1f} MiB ({twice[name] / n_bytes:.2%})" for name in names),
    )
    assert max(twice.values()) < SHARE * n_bytes + (0 if is_deep else LARGE_RATE // 4)


def arrive(site: Site) -> None:
    """Wait until all have what the source has."""
    site.settle()
    for name in site.below:
        site.wait_for(name, len(site.states) - 1)


def figures_of(site: Site) -> dict[str, int]:
    """Return what was written to the source, and what came to the others."""
    return {"source": site.n_put, **{name: site.hosts[name].n_received for name in site.below}}


def test_strangers_are_refused_and_a_peer_that_speaks_garbage_holds_nobody_up(tmp_path, rng, is_deep, part):
    only_in_deep(is_deep, part, 1)
    with tiers(tmp_path, rng) as site:
        source, east = site.hosts["source"], site.hosts["east"]
        site.change(2, MIB)
        site.settle()
        bp.make_certificates(tmp_path / "others", [f"source={source.address}"])
        asked = ("mirror", "add", tmp_path / "stranger", site.address("east"), "--tls")
        bp.Volume.create(tmp_path / "stranger", disks=1, size="8M").close()
        for tls, why in (("others/source", "trust"), ("tls/west", "not allowed")):
            found = source.failing(*asked, tmp_path / tls)
            assert why in found, found
        for _ in range(20):  # while transfers go on
            site.change(2, 2 * MIB)
            for _ in range(10):
                source.run(sys.executable, "-c", SPEAK, east.address, PORT, rng.bytes(int(rng.integers(1, 400))).hex())
            site.probe()
        site.settle_all()
        # whoever answers at east's address now is not it
        assert east.stop() == 0
        garbage = east.background(sys.executable, "-c", ANSWER, east.address, PORT)
        site.change(2, MIB)
        site.settle("east")
        assert garbage.poll() is None
        garbage.kill()
        garbage.wait()
        east.start()
        site.settle_all()
        site.check()


def test_a_full_destination_shows_its_last_state_until_there_is_room(tmp_path, rng, is_deep, part):
    only_in_deep(is_deep, part, 0)
    with tiers(tmp_path, rng, names=("source", "east", "west"), sizes={"east": "12M"}) as site:
        site.change(2, 2 * MIB)
        site.settle()
        at = site.seen["east"]
        for turn in range(8):
            site.put(f"f{turn}", rng.bytes(4 * MIB))
        site.settle("east")
        source = site.hosts["source"].service
        assert source is not None
        source.wait_for("job failed")
        site.probe("east")
        assert site.seen["east"] < len(site.states) - 1
        assert site.seen["east"] >= at
        must("grow", site.volume("east"), "--disks", 2, "--size", "32M", "--parity", 0, "--wait", 60)
        site.settle_all()
        site.check()


def test_a_destination_whose_host_is_full_goes_on_once_there_is_room(tmp_path, rng, is_deep, part):
    """The disks are files that grow, in a file system with less room than they want."""
    only_in_deep(is_deep, part, 0)
    small = tmp_path / "small"
    small.mkdir()
    with contextlib.ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small], check=True)
        stack.callback(subprocess.run, ["umount", "-l", small], check=True)
        (tmp_path / "east").symlink_to(small / "east")
        (small / "east").mkdir()
        site = stack.enter_context(tiers(tmp_path, rng, names=("source", "east", "west")))
        site.change(2, 2 * MIB)
        site.settle()
        for turn in range(8):
            site.put(f"f{turn}", rng.bytes(4 * MIB))
        site.settle("east")
        site.hosts["source"].service.wait_for("job failed")
        site.probe("east")
        assert site.seen["east"] < len(site.states) - 1
        subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
        site.settle_all()
        site.check()


def service_day(host: Host) -> int:
    """Return by how many days the clock of a host's service is off, by what it says."""
    assert host.service is not None
    said = datetime.fromisoformat(host.service.said("volume open")[0]["time"])
    return round((said - datetime.now(UTC)).total_seconds() / 86_400)


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_a_day_off(tmp_path, rng, days, is_deep, part):
    """At a destination, at the source, and right again: nothing waits for a day to pass."""
    only_in_deep(is_deep, part, 2)
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed")
    # not through `faketime` itself, which would be between the service and what ends it
    asked = ("faketime", "-m", "-f", f"{days:+d}d", "printenv", "LD_PRELOAD")
    library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    off = {"LD_PRELOAD": library, "FAKETIME": f"{days:+d}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(tiers(tmp_path, rng))
        for names in (["east", "tier"], ["source"], []):
            for name, host in site.hosts.items():
                assert host.stop() == 0
                pid = host.start(environment=off if name in names else None).process.pid
                for what in ("faketime_shm", "sem.faketime_sem"):  # which the library leaves behind
                    stack.callback(Path(f"/dev/shm/{what}_{pid}").unlink, missing_ok=True)
                assert service_day(host) == (days if name in names else 0)
            site.change(2, MIB)
            site.settle_all()
        site.check()


def test_a_half_open_connection_ends_by_itself(tmp_path, rng, is_deep, part, record_property):
    """With the limits as they are in use: nothing passes for longer than the patience of both sides."""
    only_in_deep(is_deep, part, 3)
    with tiers(tmp_path, rng, hasty=False) as site:
        for host in site.hosts.values():
            host.limit(RATE)
        site.change(3, 4 * MIB)
        site.hosts["east"].wait_for_bytes(MIB, 20)
        began = time.monotonic()
        site.hosts["east"].mute()
        site.change(2, 4 * MIB)
        site.settle("east")  # west is not held up
        took_s = time.monotonic() - began
        time.sleep(max(75 - took_s, 0))
        site.probe()
        site.hosts["east"].heal()
        site.settle_all()
        site.check()
    record_property("summary", f"half-open for 75 s: the other mirror had all after {took_s:.1f} s")
