"""put while the host's tree changes: every moment is chosen by a seam, none by time.

`after_listing` acts when a directory was listed and nothing in it opened; `while_reading` when a file's first bytes are
about to be read.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockplane.filesystem import FileSystem, datain, hostread, update
from blockplane.filesystem.exclude import Exclusions
from blockplane.filesystem.hostread import HostEntry, Listing
from equality import differences, host_tree, volume_tree
from hosttrees import inside

SIZES = {"inline": 200, "small": 50_000, "large": 6 << 20}
MEANWHILE = " while the tree was copied"
Change = Callable[[Path], None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of each size class between others that nobody touches."""
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    for name, size in SIZES.items():
        (top / name).write_bytes(os.urandom(size))
    for name in ("a", "z", "sub/inner"):
        (top / name).write_bytes(name.encode() * 3000)
    return top


@pytest.fixture
def after_listing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Calls a function once, when the first directory was listed."""

    def arrange(act: Callable[[], None]) -> None:
        real = hostread.list_directory
        acts = iter([act])

        def list_directory(entry: HostEntry, top: HostEntry, exclusions: Exclusions) -> Listing:
            listing = real(entry, top, exclusions)
            for now in acts:
                now()
            return listing

        monkeypatch.setattr(hostread, "list_directory", list_directory)

    return arrange


@pytest.fixture(params=[datain, update], ids=["put", "update"])
def while_reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls a function once, when the content of the file at a path is about to be read; and says how to put."""

    def arrange(path: Path, act: Callable[[], None]) -> dict[str, bool]:
        real = request.param.open_listed
        acts = iter([act])

        def open_listed(opened: bytes, listed: os.stat_result) -> int:
            fd = real(opened, listed)
            if opened == bytes(path):
                for now in acts:
                    now()
            return int(fd)

        monkeypatch.setattr(request.param, "open_listed", open_listed)
        return {"update": request.param is update}

    return arrange


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 20_000)


def rewrite(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def to_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def to_nothing(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", [append, rewrite, to_half, to_nothing])
def test_a_file_that_changes_while_it_is_read(
    tree: Path, fs: FileSystem, while_reading: Any, name: str, change: Change
) -> None:
    path, size = tree / name, SIZES[name]
    how = while_reading(path, lambda: change(path))
    if how["update"]:
        fs.put(tree, "/tree")
        with path.open("r+b") as file:
            file.write(b"first")
    report = fs.put(tree, "/tree", **how)
    now = path.read_bytes()
    verb = "grew" if len(now) > size else "shrank"
    reason = f"{verb} from {size} to {len(now)} bytes" if len(now) != size else "written to"
    assert report.changed == [(str(path), reason + MEANWHILE)]
    assert report.skipped == []
    assert fs.read_bytes(f"/tree/{name}") == now[:size]
    others = differences(host_tree(tree), volume_tree(fs, "/tree"))
    assert {line.partition(":")[0] for line in others} <= {name}
    assert fs.check().problems == []
    later = fs.put(tree, "/tree", update=True)
    assert (later.changed, later.skipped) == ([], [])
    assert fs.read_bytes(f"/tree/{name}") == now
    assert differences(host_tree(tree), volume_tree(fs, "/tree")) == []


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", [append, rewrite, to_half, to_nothing])
def test_a_file_that_changes_between_its_listing_and_its_reading(
    tree: Path, fs: FileSystem, after_listing: Any, name: str, change: Change
) -> None:
    path = tree / name
    after_listing(lambda: change(path))
    report = fs.put(tree, "/tree")
    assert [found for found, _ in report.changed] == [str(path)]
    assert fs.read_bytes(f"/tree/{name}") == path.read_bytes()[: SIZES[name]]
    assert fs.check().problems == []


def test_a_sparse_file_that_shrinks_is_not_made_of_zeros(tree: Path, fs: FileSystem, after_listing: Any) -> None:
    path = tree / "sparse"
    path.write_bytes(b"data" * 5000)
    os.truncate(path, 32 << 20)
    after_listing(lambda: os.truncate(path, 20_000))
    report = fs.put(tree, "/tree")
    assert report.changed == [(str(path), f"shrank from {32 << 20} to 20000 bytes{MEANWHILE}")]
    assert fs.read_bytes("/tree/sparse") == b"data" * 5000
    assert fs.check().problems == []


def vanish(path: Path) -> None:
    path.unlink()


def to_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("a")


def to_other(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"secret")
    other.chmod(0o600)
    other.replace(path)


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_socket(path: Path) -> None:
    path.unlink()
    with inside(path.parent), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


REPLACEMENTS = {
    vanish: "vanished",
    to_link: "replaced by a symbolic link",
    to_other: "replaced by another file",
    to_fifo: "replaced by something that is no file",
    to_directory: "replaced by something that is no file",
    to_socket: "replaced by something that is no file",
}


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", REPLACEMENTS)
def test_a_file_that_is_another_when_it_is_opened(
    tree: Path, fs: FileSystem, after_listing: Any, name: str, change: Change, update: bool
) -> None:
    path = tree / name
    before = host_tree(tree)
    if update:
        fs.put(tree, "/tree")
        rewrite(path)
    after_listing(lambda: change(path))
    report = fs.put(tree, "/tree", update=update)
    assert report.skipped == [(str(path), REPLACEMENTS[change] + MEANWHILE)]
    assert report.changed == []
    found = differences(before, volume_tree(fs, "/tree"))
    assert found == ([] if update else [f"{name}: only left"])  # an update leaves what it has
    assert report.n_files == len(SIZES) + 3 - 1
    assert fs.check().problems == []


@pytest.mark.parametrize("name", SIZES)
def test_a_file_of_two_names_of_which_the_first_vanishes(
    tree: Path, fs: FileSystem, after_listing: Any, name: str
) -> None:
    """Small files are read later, and the second name waits for the first's; a large one is opened at once."""
    os.link(tree / name, tree / "second")
    listed = hostread.host_entry(bytes(tree), b"tree", os.stat(tree))
    order = [child.name.decode() for child in hostread.list_directory(listed, listed, Exclusions([])).children]
    first, second = sorted([name, "second"], key=order.index)
    content = (tree / name).read_bytes()
    after_listing((tree / first).unlink)
    report = fs.put(tree, "/tree")
    assert not fs.exists(f"/tree/{first}")
    if name == "large":
        assert report.skipped == [(str(tree / first), "vanished" + MEANWHILE)]
        assert fs.read_bytes(f"/tree/{second}") == content
    else:
        reason = f"another name of {tree / first}, which could not be read"
        assert report.skipped == [(str(tree / first), "vanished" + MEANWHILE), (str(tree / second), reason)]
        assert not fs.exists(f"/tree/{second}")
    assert fs.check().problems == []


def test_a_directory_that_became_a_link_leads_nowhere_else(tmp_path: Path, tree: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_bytes(b"secret")

    top = hostread.host_entry(bytes(tree), b"tree", os.stat(tree))
    listing = hostread.list_directory(top, top, Exclusions([]))
    sub = next(child for child in listing.children if child.name == b"sub")
    (tree / "sub").rename(tree / "moved")
    (tree / "sub").symlink_to(elsewhere)
    found = hostread.list_directory(sub, top, Exclusions([]))
    assert found.children == []
    assert found.skipped == [(str(tree / "sub"), "replaced by something that is no directory" + MEANWHILE)]


@pytest.mark.parametrize("update", [False, True])
def test_a_directory_that_vanishes(tree: Path, fs: FileSystem, after_listing: Any, update: bool) -> None:
    if update:
        fs.put(tree, "/tree")

    def remove() -> None:
        (tree / "sub/inner").unlink()
        (tree / "sub").rmdir()

    after_listing(remove)
    report = fs.put(tree, "/tree", update=update, delete=update)
    assert report.skipped == [(str(tree / "sub"), "vanished" + MEANWHILE)]
    assert fs.listdir("/tree/sub") == (["inner"] if update else [])
    assert fs.check().problems == []


@pytest.mark.parametrize("name", SIZES)
def test_what_is_to_be_replaced_stays_when_the_new_one_vanished(
    tree: Path, fs: FileSystem, after_listing: Any, name: str
) -> None:
    fs.makedirs("/tree")
    fs.write_bytes(f"/tree/{name}", b"old")
    after_listing((tree / name).unlink)
    report = fs.put(tree, "/")
    assert report.skipped == [(str(tree / name), "vanished" + MEANWHILE)]
    assert fs.read_bytes(f"/tree/{name}") == b"old"
    assert fs.check().problems == []


@pytest.mark.parametrize("update", [False, True])
def test_a_further_name_is_no_link_to_what_stayed_in_the_way(tree: Path, fs: FileSystem, update: bool) -> None:
    """Of two names of one file, one is taken by a directory."""
    os.link(tree / "small", tree / "second")
    for name in ("small", "second"):
        there = f"/{name}-taken"
        fs.makedirs(f"{there}/{name}/inner")
        report = fs.put(f"{tree}/.", there, update=update)
        assert [os.path.normpath(path) for path, _ in report.skipped] == [str(tree / name)]
        assert fs.listdir(f"{there}/{name}") == ["inner"]
        other = ({"small", "second"} - {name}).pop()
        assert fs.read_bytes(f"{there}/{other}") == (tree / "small").read_bytes()
    assert fs.check().problems == []
