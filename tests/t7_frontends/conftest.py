"""The command line in this process, and a small volume with two snapshots."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.cli.main import run


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    @property
    def error(self) -> dict:
        found = self.json
        assert found["ok"] is False
        assert found["error"]["exit"] == self.status
        assert set(found["error"]) == {"kind", "message", "hint", "exit"}
        return found["error"]


@pytest.fixture
def blockplane(capfd, tmp_path, monkeypatch):
    """Runs a verb in an empty directory; refuses tracebacks and internal errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKPLANE_TRACEBACK", "")

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert "internal error" not in out + err, err
        return Outcome(status, out, err)

    return call


@pytest.fixture
def done(blockplane):
    """Runs a verb that must succeed, and returns what it printed."""

    def call(*arguments: object) -> Outcome:
        outcome = blockplane(*arguments)
        assert outcome.status == 0, outcome.err + outcome.out
        return outcome

    return call


def make_host_tree(top: Path) -> Path:
    top.mkdir()
    (top / "hello").write_text("hello\n")
    (top / "large").write_bytes(bytes(range(256)) * 2048)
    (top / "folder").mkdir()
    (top / "folder" / "inner").write_text("inner\n")
    (top / "link").symlink_to("hello")
    return top


@pytest.fixture
def tree(tmp_path) -> Path:
    return make_host_tree(tmp_path / "tree")


@pytest.fixture
def pool(done, tree) -> str:
    """4 + 1 disks; /tree is in both snapshots, /later only in june2; june1.bps and june2.bps hold both."""
    with bp.Volume.create("pool", disks=5, size="6MiB") as volume:
        files = bp.FileSystem(volume)
        files.put(tree, "/")
        volume.snapshot("june1")
        with files.open("/tree/large", "r+") as file:
            file.seek(8192)
            file.write(b"changed")
        with files.open("/later", "w") as file:
            file.write(b"later" * 5000)
        volume.snapshot("june2")
        bp.send(volume.image("june1"), "june1.bps")
        bp.send(volume.image("june2 - june1"), "june2.bps")
    return "pool"
