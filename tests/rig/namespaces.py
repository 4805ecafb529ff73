"""Several hosts on one machine: network namespaces at a switch, whose links have a rate and are cut, muted and healed.

A `cut` link is down; a `mute` one is up and passes nothing on: neither side hears of it. Connections outlive both,
until somebody's patience ends. `reset` ends a host's connections at once, as a router does that forgot them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rig.owners import TIMEOUT_S
from rig.services import Serving

PORT = 7420
_PREFIX = "bpns"
#: Of each packet: Ethernet, IPv4, and TCP with a time stamp.
_HEAD_BYTES = 14 + 20 + 32
#: Less would be a burst that is slower than the rate asked for.
_BURST_BYTES = 128 << 10

#: `blockplane`, with limits that a test can wait for: what these are is in WIRE.md.
_HASTY = """
from dataclasses import fields
from blockplane.server.network.limits import Limits
hasty = {"idle_s": 2.0, "least_over_s": 2.0, "alive_s": 0.4, "greeting_s": 2.0, "n_failures": 10_000}
Limits.__init__.__defaults__ = tuple(hasty.get(each.name, each.default) for each in fields(Limits))
from blockplane.cli import main
main()
"""
_PLAIN = "from blockplane.cli import main; main()"


def _tool(*words: object, check: bool = True) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert not check or done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@dataclass
class Host:
    """A namespace with one address, at most one service in it, and its link to the switch."""

    name: str
    address: str
    namespace: str
    switch: str
    folder: Path
    switch_pid: int
    is_hasty: bool = True
    service: Serving | None = None
    _n_starts: int = 0
    _is_mute: bool = False
    _others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def port(self) -> str:
        """The switch's end of the link."""
        return f"p-{self.name}"

    # --- its link ----------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Take the link down."""
        _tool("ip", "-n", self.switch, "link", "set", self.port, "down")

    def mute(self) -> None:
        """Have the switch pass nothing on, in both directions; the link stays up."""
        self._is_mute = True
        _tool("bridge", "-n", self.switch, "link", "set", "dev", self.port, "state", 0)

    def heal(self) -> None:
        """Have the link as it was."""
        _tool("ip", "-n", self.switch, "link", "set", self.port, "up")
        if self._is_mute:
            _tool("bridge", "-n", self.switch, "link", "set", "dev", self.port, "state", 3)
        self._is_mute = False

    def limit(self, bytes_per_second: int | None) -> None:
        """Set the link's rate, the same in both directions; None: none."""
        for namespace, device in ((self.namespace, "eth0"), (self.switch, self.port)):
            if bytes_per_second is None:
                _tool("tc", "-n", namespace, "qdisc", "del", "dev", device, "root", check=False)
                continue
            burst = max(_BURST_BYTES, bytes_per_second // 100)
            bucket = ("rate", f"{bytes_per_second * 8}bit", "burst", f"{burst}b", "latency", "100ms")
            _tool("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *bucket)

    def reset(self) -> None:
        """End its connections; both sides are told."""
        self.run("ss", "-K", "state", "established", check=False)

    @property
    def n_received(self) -> int:
        """Bytes that the link carried to it, without the heads of packets."""
        return self._counted(8)

    @property
    def n_sent(self) -> int:
        """Bytes that the link carried from it, without the heads of packets."""
        return self._counted(0)

    def _counted(self, at: int) -> int:
        lines = Path(f"/proc/{self.switch_pid}/net/dev").read_text().splitlines()
        (found,) = [line.split(":")[1].split() for line in lines if line.strip().startswith(f"{self.port}:")]
        return int(found[at]) - int(found[at + 1]) * _HEAD_BYTES

    def wait_for_bytes(self, n_bytes: int, timeout_s: float) -> bool:
        """Wait until so many bytes more came to it; return whether they did, in time."""
        end, stop = time.monotonic() + timeout_s, self.n_received + n_bytes
        while self.n_received < stop:
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    # --- what runs in it ---------------------------------------------------------------------------------------------

    def command(self, *words: object) -> list[str]:
        """Return what runs something in it."""
        return ["ip", "netns", "exec", self.namespace, *map(str, words)]

    def run(self, *words: object, check: bool = True) -> str:
        """Run something in it to its end; return what it wrote."""
        return _tool(*self.command(*words), check=check)

    def blockplane(self, *words: object) -> str:
        """Run a verb in it, which must succeed."""
        return self.run(sys.executable, "-c", self._code, *words)

    def failing(self, *words: object) -> str:
        """Run a verb in it, which must fail; return what it said on standard error."""
        command = self.command(sys.executable, "-c", self._code, *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 1, done.stderr
        return done.stderr

    @property
    def _code(self) -> str:
        return _HASTY if self.is_hasty else _PLAIN

    def background(self, *words: object) -> subprocess.Popen[bytes]:
        """Begin something in it; it is killed at the end."""
        self._others.append(subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL))
        return self._others[-1]

    @property
    def policy(self) -> Path:
        """What its service does."""
        return self.folder / f"{self.name}.toml"

    def start(self, *, environment: Mapping[str, str] | None = None, ready: bool = True) -> Serving:
        """Start its service."""
        assert self.service is None
        self._n_starts += 1
        log = self.folder / f"{self.name}.{self._n_starts}.log"
        words = [sys.executable, "-c", self._code, "serve", self.policy, "--log", "json"]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        self.service = Serving(process, log)
        if ready:
            self.ready()
        return self.service

    def ready(self) -> None:
        """Wait until its service has opened its volume."""
        assert self.service is not None
        self.service.wait_for("volume open")

    def kill(self) -> None:
        """Kill its service."""
        assert self.service is not None
        self.service.process.kill()
        self.service.process.wait(TIMEOUT_S)
        self.service = None

    def stop(self) -> int:
        """Have its service end; return its exit status."""
        assert self.service is not None
        service, self.service = self.service, None
        status = service.end()
        if status:
            print("\n".join(map(str, service.events[-40:])))
        return status

    def close(self) -> None:
        """Kill what runs in it."""
        if self.service is not None:
            self.kill()
        for process in self._others:
            process.kill()
            process.wait(TIMEOUT_S)
        _kill_all_in(self.namespace)


def require_namespaces() -> None:
    """Skip the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces are for root")
    for tool in ("ip", "tc", "bridge", "ss"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


@contextlib.contextmanager
def namespaces(folder: Path, *names: str, hasty: bool = True) -> Iterator[dict[str, Host]]:
    """Give hosts at one switch; whatever happens, nothing of them is left."""
    require_namespaces()
    _sweep()
    mark = f"{_PREFIX}-{os.getpid()}"
    switch = f"{mark}-switch"
    resident = None
    hosts: dict[str, Host] = {}
    try:
        _tool("ip", "netns", "add", switch)
        resident = subprocess.Popen(["ip", "netns", "exec", switch, "sleep", "infinity"])  # its /proc has the counters
        _tool("ip", "-n", switch, "link", "add", "br0", "type", "bridge", "forward_delay", 0)
        _tool("ip", "-n", switch, "link", "set", "br0", "up")
        for i, name in enumerate(names, 1):
            hosts[name] = Host(name, f"10.77.0.{i}", f"{mark}-{name}", switch, folder, resident.pid, hasty)
            _join(hosts[name])
        yield hosts
    finally:
        for host in hosts.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                host.close()
        for host in hosts.values():
            _tool("ip", "netns", "del", host.namespace, check=False)
        if resident is not None:
            resident.kill()
            resident.wait(TIMEOUT_S)
        _tool("ip", "netns", "del", switch, check=False)


def _join(host: Host) -> None:
    """Make a host's namespace, and its link."""
    _tool("ip", "netns", "add", host.namespace)
    made = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _tool("ip", "-n", host.switch, "link", "add", host.port, *made)
    _tool("ip", "-n", host.switch, "link", "set", host.port, "master", "br0", "up")
    _tool("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _tool("ip", "-n", host.namespace, "link", "set", device, "up")


def _sweep() -> None:
    """Remove what a killed test run has left."""
    for line in _tool("ip", "netns", "list").splitlines():
        name = line.split()[0]
        prefix, _, pid = name.rpartition("-")[0].partition("-")
        if prefix == _PREFIX and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _kill_all_in(name)
            _tool("ip", "netns", "del", name)


def _kill_all_in(namespace: str) -> None:
    for left in _tool("ip", "netns", "pids", namespace, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(left), signal.SIGKILL)
