"""The unit that `serve --unit` prints, run by a systemd: what an administrator does with a service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import blockplane as bp
from rig.owners import COMMAND, TIMEOUT_S, answers, finish, wait_for
from rig.systemd import booted, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

POLICY = '[volume.pool]\npath = "pool"\n'
OFTEN = '[volume.pool.snapshot.often]\nevery = "1s"\nname = "often-%H%M%S"\n'
QUICK = "[Service]\nWatchdogSec=2\nRestartSec=0\n"


@pytest.fixture
def units(tmp_path, monkeypatch) -> Path:
    """A folder with the unit of a policy that serves a volume, and of how soon one that hangs is found out."""
    monkeypatch.chdir(tmp_path)
    bp.Volume.create("pool", disks=2, size=bp.parse_size("32MiB"), parity=0).close()
    Path("policy.toml").write_text(POLICY)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = subprocess.run(
        [*COMMAND, "serve", "policy.toml", "--unit", "--user", "root"],
        capture_output=True, check=True, timeout=TIMEOUT_S, env=os.environ | {"PATH": path},
    )  # fmt: skip
    found = tmp_path / "units"
    (found / "blockplane.service.d").mkdir(parents=True)
    (found / "blockplane.service").write_bytes(printed.stdout)
    (found / "blockplane.service.d" / "quick.conf").write_text(QUICK)
    return found


def snapshots_of(volume: str) -> list[str]:
    with bp.Volume.open(volume, writable=False) as opened:
        return [snapshot.name for snapshot in opened.snapshots]


def test_systemd_finds_no_fault_with_the_unit(units):
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", units / "blockplane.service"],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert "blockplane.service" not in verified.stdout + verified.stderr


def test_started_reloaded_hung_and_stopped(units, tmp_path):
    with booted(units, tmp_path / "systemd.log") as manager:
        assert manager.ctl("start", "blockplane") == ""
        assert manager.ctl("is-active", "blockplane") == "active"
        assert manager.shown("blockplane", "StatusText") == "1 of 1 volumes open"
        assert answers("pool")  # `start` waits until the service is ready
        assert finish("snapshot", "create", "pool@monday").returncode == 0

        Path("policy.toml").write_text(POLICY + OFTEN)
        assert manager.ctl("reload", "blockplane") == ""
        listed = ["snapshot", "list", "pool"]
        wait_for(lambda: b"often-" in finish(*listed).stdout, "a snapshot by the new policy")

        first = manager.shown("blockplane", "MainPID")
        manager.signal("blockplane", "STOP")
        wait_for(lambda: manager.shown("blockplane", "NRestarts") == "1", "the watchdog")
        wait_for(lambda: manager.ctl("is-active", "blockplane") == "active", "the service, restarted")
        assert manager.shown("blockplane", "MainPID") not in ("0", first)
        assert b"monday" in finish(*listed).stdout

        assert manager.ctl("stop", "blockplane") == ""
        assert manager.ctl("is-active", "blockplane") == "inactive"
        assert manager.shown("blockplane", "Result") == "success"
        assert manager.shown("blockplane", "ExecMainStatus") == "0"
    assert not answers("pool")
    assert "monday" in snapshots_of("pool")
    assert {entry.name for entry in Path("pool").iterdir()} == {"disks", "lock", "volume.toml", "service.json"}
