"""What the README shows can be typed: its tour and its Python, on a small tree in place of /usr/include."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import blockplane as bp

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def include(tmp_path) -> Path:
    top = tmp_path / "usr" / "include"
    top.mkdir(parents=True)
    (top / "stdio.h").write_text("#define EOF (-1)\n" * 1000)
    (top / "math.h").write_text("double sin(double);\n" * 5000)
    return top


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_tour(done, include):
    (tour,) = [block for block in blocks_of("sh") if "blockplane create" in block]
    n_typed = 0
    for line in tour.splitlines():
        small = line.replace("/usr/include", str(include)).replace("256M", "8M").replace("512M", "16M")
        words = shlex.split(small, comments=True)
        if words[:1] == ["echo"]:
            Path(words[-1]).write_text(words[1])
        elif words:
            assert words[0] == "blockplane"
            done(*(words[1 : words.index("|")] if "|" in words else words[1:]))
            n_typed += 1
    assert n_typed > 20
    assert done("check", "pool", "--json").json["ok"] is True
    assert (Path("restored") / "stdio.h").read_text() == (include / "stdio.h").read_text()


def test_the_python(tmp_path, include, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks_of("python")
    exec(compile(code.replace("/usr/include", str(include)).replace("256M", "8M"), "README.md", "exec"), {})
    assert capsys.readouterr().out == "b'new'\n"


def test_every_document_that_it_links_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_its_two_commands_name_what_exists():
    commands = blocks_of("sh")[0]
    project = (ROOT / "pyproject.toml").read_text()
    assert ".venv/bin/blockplane demo" in commands
    assert 'blockplane = "blockplane.cli:main"' in project
    assert "test = [" in project


def test_the_package_documents_its_own_first_steps(tmp_path, include, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bp.__doc__ is not None
    code = "\n".join(line.strip() for line in bp.__doc__.splitlines() if line.startswith("    "))
    exec(compile(code.replace("/usr/include", str(include)).replace("2G", "8M"), "blockplane", "exec"), {})
    with bp.Volume.open("copy") as copy:
        assert bp.FileSystem(copy).listdir("/") == ["include"]


def test_the_api_page_names_what_exists():
    page = (ROOT / "engine" / "blockplane" / "API.md").read_text()
    owners = {
        "volume": bp.Volume,
        "Volume": bp.Volume,
        "files": bp.FileSystem,
        "chain": bp.StreamChain,
        "Plane": bp.Plane,
        "service": bp.Service,
        "Credentials": bp.Credentials,
        "listener": bp.Listener,
        "peer": bp.RemotePeer,
        "mirrors": bp.mirrors,
    }
    called = re.findall(r"`(?:(\w+)\.)?(\w+)\(", page)
    assert len(called) > 20
    for owner, name in called:
        assert hasattr(owners[owner] if owner else bp, name), (owner, name)
    (listed,) = re.findall(r"`files.open\(path, mode\)`.*?as `os`", page, re.DOTALL)
    for name in re.findall(r"`(\w+)`[,:]", listed):
        assert hasattr(bp.FileSystem, name), name
