"""A systemd of its own, first process of its namespaces, that knows the units of one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rig.owners import TIMEOUT_S, wait_for

SYSTEMD = Path("/lib/systemd/systemd")
_BOOT_S = 60
#: Targets that units name; nothing of the host's is started.
_TARGETS = ("basic", "default", "local-fs", "multi-user", "network-online", "shutdown", "sysinit")
_NAMESPACES = [f"--{kind}" for kind in ("pid", "mount", "cgroup", "ipc", "uts")]
_BOOT = f"""
set -e
mount -t tmpfs tmpfs /run
mkdir /run/systemd
exec {SYSTEMD} --system --log-target=console --show-status=false
"""


def why_not() -> str:
    """Return why none can be started here; empty: it can."""
    if os.geteuid() != 0:
        return "a systemd is for root"
    for program in ("unshare", "nsenter", "systemctl", str(SYSTEMD)):
        if shutil.which(program) is None:
            return f"{Path(program).name} is not installed"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "true"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else "no namespaces can be had"


class Booted:
    """A running systemd."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def ctl(self, *words: str) -> str:
        """Run systemctl beside it; return what it printed."""
        command = ["nsenter", "--target", str(self._pid), "--all", "systemctl", "--no-pager", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        return done.stdout.strip() or done.stderr.strip()

    def shown(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.ctl("show", "--value", f"--property={name}", unit)

    def signal(self, unit: str, name: str) -> None:
        """Send a signal to a unit's main process."""
        self.ctl("kill", "--kill-whom=main", f"--signal={name}", unit)


@contextmanager
def booted(units: Path, log: Path) -> Iterator[Booted]:
    """Start one; it ends, and with it all that it has started, when the block does."""
    for target in _TARGETS:
        (units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    command = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", _BOOT]
    told = {"container": "tests", "SYSTEMD_UNIT_PATH": str(units), "SYSTEMD_GENERATOR_PATH": "/nonexistent"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | told)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: process.poll() is not None or children.read_text(), "a first process")
        manager = Booted(int(children.read_text().split()[0])) if process.poll() is None else None
        if manager is None or not _comes_up(process, manager):
            pytest.skip("systemd does not come up here")
        yield manager
    finally:
        process.kill()
        process.wait()


def _comes_up(process: subprocess.Popen[bytes], manager: Booted) -> bool:
    end = time.monotonic() + _BOOT_S
    while process.poll() is None and time.monotonic() < end:
        if manager.ctl("is-system-running") in ("running", "degraded"):
            return True
        time.sleep(0.05)
    return False
