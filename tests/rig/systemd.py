"""A systemd of its own, first process of its namespaces, that knows the units of one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rig.owners import TIMEOUT_S, wait_for

SYSTEMD = Path("/lib/systemd/systemd")
#: Targets that units name; nothing of the host's is started.
_TARGETS = ("basic", "default", "local-fs", "multi-user", "network-online", "shutdown", "sysinit")
_BOOT = f"""
set -e
mount -t tmpfs tmpfs /run
mkdir /run/systemd
exec {SYSTEMD} --system --log-target=console --show-status=false
"""


def why_not() -> str:
    """Return why none can be started here; empty: it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in ("unshare", "nsenter", "systemctl") if shutil.which(program) is None]
    return f"needs {', '.join(missing)}" if missing else "" if SYSTEMD.exists() else "needs systemd"


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
    namespaces = [f"--{kind}" for kind in ("pid", "mount", "cgroup", "ipc", "uts")]
    command = ["unshare", *namespaces, "--fork", "--kill-child", "--mount-proc", "sh", "-c", _BOOT]
    told = {"container": "tests", "SYSTEMD_UNIT_PATH": str(units), "SYSTEMD_GENERATOR_PATH": "/nonexistent"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | told)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: process.poll() is not None or children.read_text(), "a first process")
        assert process.poll() is None, log.read_text()
        manager = Booted(int(children.read_text().split()[0]))
        wait_for(lambda: manager.ctl("is-system-running") in ("running", "degraded"), "systemd")
        yield manager
    finally:
        process.kill()
        process.wait()
