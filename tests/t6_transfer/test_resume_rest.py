"""Files that hold only what a destination lacked: gone on with by what said so, and never taken for the image."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import BlockplaneError, RefusedError, StreamMismatchError, StreamTruncatedError
from blockplane.transfer.imagesending import ImageSending
from blockplane.transfer.resume import drop_incoming

MIB = 1 << 20


class _StopError(Exception):
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume whose snapshot new shares 6 MiB with old, which went."""
    root, random_bytes = tmp_path_factory.mktemp("source"), random.Random(5).randbytes
    with bp.Volume.create(root / "pool", disks=2, size="24M") as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/old", random_bytes(6 * MIB))
        volume.snapshot("old")
        bp.send(volume.image("old"), root / "old.bps")
        files.write_bytes("/new", random_bytes(5 * MIB))
        volume.snapshot("new")
        volume.delete_snapshot("old")
        yield volume


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """What is read at once is less than an image."""
    monkeypatch.setattr(ImageSending.__init__, "__defaults__", ("disk", 256, *ImageSending.__init__.__defaults__[2:]))


@pytest.fixture
def token(source, tmp_path) -> bp.ResumeToken:
    """What a destination has of new, whose receive was cut off."""
    bp.send(source.image("new"), tmp_path / "whole.bps")
    (tmp_path / "cut.bps").write_bytes((tmp_path / "whole.bps").read_bytes()[: 4 * MIB])
    with pytest.raises(StreamTruncatedError):
        bp.receive(tmp_path / "cut.bps", tmp_path / "dest")
    with bp.Volume.open(tmp_path / "dest") as volume:
        return bp.resume_token(volume)


@pytest.fixture
def offer(source, tmp_path) -> Path:
    """What a destination that has old has."""
    bp.receive(source.path.parent / "old.bps", tmp_path / "dest")
    with bp.Volume.open(tmp_path / "dest") as volume:
        bp.offer(volume, tmp_path / "offer")
    return tmp_path / "offer"


def interrupt(volume, path: Path, n_bytes: int, **options) -> None:
    def progress(event) -> None:
        if event.phase == "blocks" and event.done_bytes > n_bytes:
            raise _StopError

    with pytest.raises(_StopError):
        bp.send(volume.image("new"), path, progress=progress, **options)
    assert path.with_name(path.name + ".partial").exists()


def test_the_rest_by_a_token(source, token, tmp_path):
    path = tmp_path / "rest.bps"
    interrupt(source, path, 3 * MIB, resume=token)
    half = path.with_name("rest.bps.partial").stat().st_size
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match="holds of new only the rest of an interrupted transfer") as caught:
            bp.send(source.image("new"), path, resume=True, dry_run=dry_run)
        assert "--resume TOKEN" in caught.value.hint
    assert path.with_name("rest.bps.partial").stat().st_size == half
    report = bp.send(source.image("new"), path, resume=token)
    assert 0 < report.n_blocks < token.n_left
    with pytest.raises(RefusedError, match="with of new only the rest of an interrupted transfer"):
        bp.send(source.image("new"), path, resume=True)
    again = bp.send(source.image("new"), path, resume=token)
    assert (again.n_blocks, again.n_blocks_before) == (0, token.n_left)
    assert bp.receive(path, tmp_path / "dest").arrived == ("new",)


def test_a_token_takes_up_nothing_else(source, token, tmp_path):
    """A file of all of the image, half or whole, is not what a token asks for: it is begun anew."""
    path = tmp_path / "rest.bps"
    interrupt(source, path, 3 * MIB)
    assert bp.send(source.image("new"), path, resume=token).n_blocks == token.n_left
    bp.send(source.image("new"), path)
    assert bp.send(source.image("new"), path, resume=token).n_blocks == token.n_left
    assert bp.receive(path, tmp_path / "dest").arrived == ("new",)


def test_what_an_offer_left_to_be_sent(source, offer, tmp_path):
    path = tmp_path / "rest.bps"
    interrupt(source, path, 2 * MIB, against=offer)
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match="holds of new only what a destination lacks that has old") as caught:
            bp.send(source.image("new"), path, resume=True, dry_run=dry_run)
        assert "--against" in caught.value.hint
    with bp.Volume.open(tmp_path / "dest") as volume:
        volume.snapshot("other")
        bp.offer(volume, tmp_path / "another", snapshot="other")
    with pytest.raises(RefusedError, match="that has old"):
        bp.send(source.image("new"), path, resume=True, against=tmp_path / "another")
    report = bp.send(source.image("new"), path, resume=True, against=offer)
    assert 0 < report.n_blocks < 6 * MIB // 4096
    again = bp.send(source.image("new"), path, resume=True, against=offer)
    assert (again.n_blocks, again.n_blocks_before > 1000) == (0, True)
    with pytest.raises(RefusedError, match="is there already, with of new only what a destination lacks"):
        bp.send(source.image("new"), path, resume=True)
    assert bp.receive(path, tmp_path / "dest").arrived == ("new",)


@pytest.mark.parametrize("begun", [None, "zstd:1"])
@pytest.mark.parametrize("asked", [None, "zstd:5"])
def test_what_is_gone_on_with_is_compressed_as_it_was_begun(source, tmp_path, begun, asked):
    path = tmp_path / "new.bps"
    interrupt(source, path, 3 * MIB, compress=begun)
    expected = None if begun is None else asked or "zstd:3"
    dry = bp.send(source.image("new"), path, resume=True, compress=asked, dry_run=True)
    report = bp.send(source.image("new"), path, resume=True, compress=asked)
    assert (dry.compression, report.compression) == (expected, expected)
    assert dry.n_blocks == report.n_blocks > 0
    assert dry.stream_bytes >= dry.n_bytes
    assert dry.stream_bytes >= report.stream_bytes
    assert bp.stream_map(path).header.may_be_compressed is (begun is not None)
    again = bp.send(source.image("new"), path, resume=True, compress=asked)
    assert (again.n_blocks, again.compression) == (0, None if begun is None else "zstd")


def test_a_dry_run_knows_a_finished_file(source, tmp_path):
    bp.send(source.image("new"), tmp_path / "new.bps")
    report = bp.send(source.image("new"), tmp_path / "new.bps", resume=True, dry_run=True)
    assert (report.n_blocks, report.stream_bytes, report.n_blocks_before) == (0, 0, source.image("new").n_blocks)


def planned(path: Path, target: Path) -> bp.ReceiveReport | str:
    """What a dry run says that receiving one file comes to, or why it is refused."""
    try:
        return bp.receive_streams(path, target=target, dry_run=True, alone=True).planned
    except BlockplaneError as error:
        return error.message


def require_as_planned(path: Path, target: Path, n_blocks: int) -> None:
    plan = planned(path, target)
    report = bp.receive(path, target)
    assert (plan.n_blocks, plan.arrived, plan.already_there) == (n_blocks, ("new",), False)
    assert (report.n_blocks, report.arrived) == (n_blocks, ("new",))
    assert planned(path, target).already_there is True


def test_a_dry_run_of_the_rest_says_what_its_receive_does(source, token, tmp_path):
    path, target = tmp_path / "rest.bps", tmp_path / "dest"
    n_blocks = bp.send(source.image("new"), path, resume=token).n_blocks
    shutil.copytree(target, tmp_path / "another")
    with bp.Volume.open(tmp_path / "another") as volume:
        drop_incoming(volume)
    require_as_planned(path, target, n_blocks)
    why = planned(path, tmp_path / "another")
    assert "blocks of its first part are not in" in why
    with pytest.raises(StreamMismatchError) as caught:
        bp.receive(path, tmp_path / "another")
    assert caught.value.message == why


def test_a_dry_run_of_what_is_sent_against_an_offer(source, offer, tmp_path):
    path = tmp_path / "rest.bps"
    n_blocks = bp.send(source.image("new"), path, against=offer).n_blocks
    require_as_planned(path, tmp_path / "dest", n_blocks)


def test_a_dry_run_of_one_older_stream_is_refused_as_its_receive_is(source, tmp_path):
    target, old = tmp_path / "dest", source.path.parent / "old.bps"
    bp.send(source.image("new"), tmp_path / "new.bps")
    bp.receive(tmp_path / "new.bps", target)
    why = planned(old, target)
    with pytest.raises(RefusedError) as caught:
        bp.receive(old, target)
    assert caught.value.message == why
    assert bp.receive_streams(old, target=target).older == (str(old),)
