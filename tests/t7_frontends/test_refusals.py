"""Bad input gets one clear error, exit status 1 or 2, and changes nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

import blockplane as bp
from places import contents
from rig.owners import no_room_for_threads


@pytest.fixture
def refused(blockplane):
    """Runs a verb that must fail, twice: as text and as JSON; checks the form and that nothing changed."""

    def call(*arguments: object, kind: str, status: int = 1, watch: tuple[str, ...] = (".",)) -> str:
        before = contents(*watch)
        text = blockplane(*arguments)
        assert text.status == status, text.err
        assert text.out == ""
        first = text.err.splitlines()[0]
        assert first.startswith("blockplane: ")
        assert contents(*watch) == before
        shown = blockplane(*arguments, "--json")
        assert shown.status == status
        found = json.loads(shown.out or shown.err.splitlines()[-1])
        assert found["ok"] is False
        assert found["error"]["kind"] == kind
        assert found["error"]["exit"] == status
        assert contents(*watch) == before
        return text.err

    return call


NO_VERBS_ON = [
    ["info", "{}"],
    ["check", "{}"],
    ["ls", "{}:/"],
    ["get", "{}:/a", "out"],
    ["put", "{}:/", "tree"],
    ["snapshot", "create", "{}@s"],
    ["snapshot", "list", "{}"],
    ["snapshot", "delete", "{}@s"],
    ["rollback", "{}@s"],
    ["image", "{}", "a"],
    ["send", "{}", "a", "-o", "out.bps"],
    ["grow", "{}", "--disks", "2", "--size", "4M"],
    ["stat", "{}:/a"],
]


@pytest.mark.parametrize("verb", NO_VERBS_ON, ids=lambda verb: " ".join(verb[:2]))
@pytest.mark.parametrize("place", ["absent", "file", "folder"])
def test_not_a_volume(refused, tree, verb, place):
    Path("file").write_text("no volume")
    Path("folder").mkdir(exist_ok=True)
    refused(*[part.format(place) for part in verb], kind="not-a-volume")


# --- disks ---


def test_a_disk_that_is_missing(refused, pool):
    os.rename("pool/disks/3", "elsewhere")
    assert "disks/3" in refused("info", pool, kind="disk-missing")


def test_a_disk_of_another_volume(refused, pool):
    with bp.Volume.create("other", disks=5, size="6MiB"):
        pass
    shutil.copyfile("other/disks/3", "pool/disks/3")
    message = refused("info", pool, kind="disk-foreign")
    assert "disks/3" in message
    assert "another" in message or "not to" in message


def test_a_disk_in_the_wrong_place(refused, pool):
    for old, new in (("1", "x"), ("2", "1"), ("x", "2")):
        os.rename(f"pool/disks/{old}", f"pool/disks/{new}")
    refused("info", pool, kind="disk-misplaced")


def test_a_disk_that_is_too_short(refused, pool):
    os.truncate("pool/disks/2", os.path.getsize("pool/disks/2") - 65536)
    assert "disks/2" in refused("info", pool, kind="disk-short")


def test_a_disk_without_a_label(refused, pool):
    size = os.path.getsize("pool/disks/2")
    os.truncate("pool/disks/2", 0)
    os.truncate("pool/disks/2", size)
    assert "disks/2" in refused("info", pool, kind="disk-foreign")


def test_a_disk_twice(refused, pool):
    shutil.copyfile("pool/disks/2", "pool/disks/3")
    refused("info", pool, kind="disk-duplicate")


# --- create ---


def test_create_refuses_what_is_there(refused, pool):
    refused("create", pool, "--size", "4M", kind="refused")
    Path("full").mkdir()
    Path("full/file").touch()
    refused("create", "full", "--size", "4M", kind="refused")
    Path("afile").touch()
    refused("create", "afile", "--size", "4M", kind="refused")


@pytest.mark.parametrize(
    ("options", "kind", "status"),
    [
        ([], "usage", 2),
        (["--size", "many"], "usage", 2),
        (["--size", "4M", "--disks", "0"], "usage", 2),
        (["--size", "4M", "--disks", "2", "--parity", "2"], "usage", 2),
        (["--size", "4M", "--parity", "3"], "usage", 2),
        (["--size", "4M", "--chunk", "100"], "usage", 2),
        (["--size", "4M", "--chunk", "0"], "usage", 2),
        (["--size", "4M", "--chunk", "8M"], "disk-short", 1),
        (["--size", "4K"], "disk-short", 1),
        (["--disk", "absent"], "usage", 2),
        (["--disk", "empty"], "disk-short", 1),
        (["--disk", "empty", "--wipe"], "disk-short", 1),
        (["--disk", "/dev/null"], "disk", 1),
        (["--disk", "twice", "--disk", "twice"], "disk-duplicate", 1),
        (["--disk", "twice", "--disks", "3"], "usage", 2),
    ],
)
def test_create_refuses_disks_that_make_no_volume(refused, options, kind, status):
    Path("empty").touch()
    Path("twice").touch()
    os.truncate("twice", 4 << 20)
    refused("create", "v", *options, kind=kind, status=status)
    assert not os.path.exists("v")


def test_a_chunk_that_no_disk_holds_names_one_that_fits(refused, done):
    message = refused("create", "v", "--size", "64M", "--chunk", "128M", kind="disk-short")
    assert "--chunk 32MiB or less" in message
    done("create", "v", "--size", "64M", "--chunk", "32MiB")
    assert "1 MiB" in refused("create", "w", "--size", "200K", kind="disk-short")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("# nothing\n", "does not say id and disks"),
        ('id = "00"\ndisks = ["disks/0"]\n', "32 hexadecimal digits"),
        (f'id = "{32 * "0"}"\ndisks = 5\n', "not a list of paths"),
        ("id", "volume.toml"),
    ],
)
def test_a_volume_toml_that_says_nothing(refused, pool, text, message):
    Path("pool/volume.toml").write_text(text)
    said = refused("info", pool, kind="not-a-volume")
    assert message in said
    assert "remove it" in said


def test_disks_that_hold_data_are_taken_only_when_told(refused, done):
    for name in ("a", "b"):
        Path(name).write_bytes(b"somebody's data" + bytes(4 << 20))
    refused("create", "v", "--disk", "a", "--disk", "b", kind="refused")
    done("create", "v", "--disk", "a", "--disk", "b", "--wipe")
    for name in ("c", "d"):
        Path(name).touch()
        os.truncate(name, 4 << 20)
    refused("grow", "v", "--disk", "a", "--disk", "c", kind="in-use")
    done("grow", "v", "--disk", "c", "--disk", "d")


def test_what_is_in_the_place_of_a_new_disk_stays(refused, done, pool, monkeypatch):
    """A link whose device is away; a file that another maker made between the look and the making."""
    Path("away").symlink_to("/nowhere/disk")
    for verb in (["create", "v"], ["create", "v", "-n"], ["grow", pool]):
        said = refused(*verb, "--disk", "away", "--size", "4M", kind="usage", status=2)
        assert "leads nowhere" in said
    Path("another").write_bytes(b"a disk of another volume")
    with monkeypatch.context() as patched:
        patched.setattr("blockplane.volume.groups._is_there", lambda _: False)
        with pytest.raises(bp.errors.DiskError, match="exists"):
            bp.Volume.create("v", disks=["another"], size="4M")
        with bp.Volume.open(pool) as volume, pytest.raises(bp.errors.DiskError, match="exists"):
            volume.grow(["another"], size="4M")
    assert os.readlink("away") == "/nowhere/disk"
    assert Path("another").read_bytes() == b"a disk of another volume"
    link = Path(pool, "disks", str(len(os.listdir(f"{pool}/disks"))))
    link.symlink_to("/nowhere/disk")
    done("grow", pool, "--disks", "1", "--size", "4M")
    assert os.readlink(link) == "/nowhere/disk"


def test_a_grow_that_fails_leaves_the_volume_as_it_was(refused, done, pool):
    refused("grow", pool, kind="usage", status=2)
    refused("grow", pool, "--disks", 2, "--size", "8K", kind="disk-short")
    refused("grow", pool, "--disk", "absent", kind="usage", status=2)
    Path("data").write_bytes(b"x" * (4 << 20))
    refused("grow", pool, "--disk", "data", kind="refused")
    assert done("check", pool, "--json").json["ok"] is True


# --- names ---


@pytest.mark.parametrize(
    ("verb", "kind", "status"),
    [
        (["snapshot", "delete", "pool@absent"], "no-such-snapshot", 1),
        (["snapshot", "delete", "pool@june2..june1"], "usage", 2),
        (["snapshot", "rename", "pool@absent", "x"], "no-such-snapshot", 1),
        (["snapshot", "rename", "pool@june1", "june2"], "snapshot-exists", 1),
        (["snapshot", "rename", "pool@june1", "-x"], "usage", 2),
        (["snapshot", "create", "pool@june1"], "snapshot-exists", 1),
        (["snapshot", "create", "pool@active"], "usage", 2),
        (["snapshot", "create", "pool@a..b"], "usage", 2),
        (["snapshot", "create", "pool@" + 128 * "n"], "usage", 2),
        (["snapshot", "create", "pool"], "usage", 2),
        (["rollback", "pool@absent"], "no-such-snapshot", 1),
        (["rollback", "pool@june1", "--keep-as", "x", "--drop-changes"], "usage", 2),
        (["ls", "pool@absent:/"], "no-such-snapshot", 1),
        (["get", "pool@absent:/", "out"], "no-such-snapshot", 1),
        (["ls", "june1.bps@absent:/"], "no-such-snapshot", 1),
        (["ls", "pool:/absent"], "not-found", 1),
        (["stat", "pool:/absent"], "not-found", 1),
        (["get", "pool:/absent", "out"], "not-found", 1),
        (["put", "pool:/", "absent"], "not-found", 1),
        (["put", "pool:/absent/inner", "tree"], "not-found", 1),
        (["put", "pool@june1:/", "tree"], "read-only", 1),
        (["put", "june1.bps:/", "tree"], "read-only", 1),
        (["put", "pool", "tree"], "usage", 2),
        (["put", "pool:/", "tree", "--delete"], "usage", 2),
        (["image", "pool", "absent"], "no-such-snapshot", 1),
        (["image", "pool", "june1 +"], "expression", 2),
        (["image", "pool", "june1 june2"], "expression", 2),
        (["image", "pool", "(june1"], "expression", 2),
        (["image", "pool", ""], "expression", 2),
        (["image", "pool", "june1 - - june2"], "expression", 2),
        (["image", "pool", "- june2"], "expression", 2),
        (["send", "pool", "- o", "-o", "out.bps"], "expression", 2),
        (["send", "pool", "june1", "-x"], "usage", 2),
        (["image", "pool", "--freed", "absent"], "no-such-snapshot", 1),
        (["send", "pool", "absent", "-o", "out.bps"], "no-such-snapshot", 1),
        (["send", "pool", "june2 & june1", "-o", "out.bps"], "refused", 1),
        (["send", "pool", "june2 -", "-o", "out.bps"], "expression", 2),
        (["send", "pool", "june1", "-o", "absent/out.bps"], "stream", 1),
        (["send", "pool", "june1", "-o", "tree"], "stream", 1),
        (["stream", "info", "absent.bps"], "not-found", 1),
        (["stream", "verify", "absent.bps"], "not-found", 1),
        (["stream", "verify", "june1.bps", "absent.bps"], "not-found", 1),
        (["stream", "verify", "tree"], "stream", 1),
        (["stream", "info", "tree/large"], "stream", 1),
        (["nonsense"], "usage", 2),
        (["ls"], "usage", 2),
        (["ls", "pool:/", "--nonsense"], "usage", 2),
        (["info", "pool:/"], "usage", 2),
        (["info", "pool", "--wait", "-3"], "usage", 2),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_wrong_names(refused, pool, verb, kind, status):
    refused(*verb, kind=kind, status=status)


def test_rm_and_mkdir_refuse(blockplane, pool):
    before = contents(pool)
    for verb, status in (
        (["rm", "pool:/absent"], 1),
        (["rm", "-r", "pool:/"], 1),
        (["rm", "pool@june1:/tree"], 1),
        (["mkdir", "pool:/tree"], 1),
        (["mkdir", "pool:/absent/inner"], 1),
        (["cat", "pool:/tree"], 1),
        (["cat", "pool"], 2),
    ):
        outcome = blockplane(*verb)
        assert (outcome.status, outcome.out) == (status, "")
        assert outcome.err.startswith("blockplane: ")
    assert contents(pool) == before


def test_an_expression_error_points_at_the_place(blockplane, pool):
    lines = blockplane("image", pool, "june1 + + june2").err.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip() == "^")
    assert lines[at - 1][lines[at].index("^")] == "+"
    assert lines[at - 1].strip() == "june1 + + june2"


@pytest.mark.parametrize("words", [["- june1"], ["-", "june1"], ["-(june1)"]])
def test_an_expression_that_begins_with_an_operator_is_no_option(blockplane, pool, words):
    lines = blockplane("image", pool, *words).err.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip() == "^")
    assert lines[at - 1].strip() == " ".join(words)
    assert lines[at - 1][lines[at].index("^")] == "-"


# --- receiving ---


def test_a_base_that_is_not_there(refused, done, pool):
    assert "june1" in refused("receive", "absent", "-i", "june2.bps", kind="stream-mismatch")
    assert not os.path.exists("absent")
    with bp.Volume.create("other", disks=2, size="4MiB") as volume:
        bp.FileSystem(volume).mkdir("/mine")
    assert "june1" in refused("receive", "other", "-i", "june2.bps", kind="stream-mismatch")


def test_a_full_stream_onto_content(refused, done, pool):
    with bp.Volume.create("other", disks=5, size="8MiB") as volume:
        bp.FileSystem(volume).mkdir("/mine")
        volume.snapshot("kept")
    assert "replace" in refused("receive", "other", "-i", "june1.bps", kind="refused")
    done("receive", "other", "-i", "june1.bps", "--discard")
    assert done("ls", "other").out.split() == ["tree"]
    assert done("ls", "other@kept:/").out.split() == ["mine"]


def test_changes_at_the_destination_are_not_lost(refused, done, pool):
    done("receive", "copy", "-i", "june1.bps")
    done("mkdir", "copy:/mine")
    assert "written" in refused("receive", "copy", "-i", "june2.bps", kind="refused")
    assert done("ls", "copy").out.split() == ["mine", "tree"]
    done("receive", "copy", "-i", "june2.bps", "--discard")
    assert done("ls", "copy").out.split() == ["later", "tree"]


def test_a_destination_too_small(refused, pool):
    refused("receive", "small", "-i", "june1.bps", "--disks", 1, "--size", "512K", kind="refused")
    assert not os.path.exists("small")
    refused("receive", "small", "-i", "june1.bps", "--disks", 1, "--size", "8K", kind="disk-short")
    with bp.Volume.create("tiny", disks=1, size="512K"):
        pass
    refused("receive", "tiny", "-i", "june1.bps", kind="refused")


def test_disk_options_for_a_volume_that_is_there(refused, pool):
    refused("receive", pool, "-i", "june2.bps", "--disks", 3, kind="usage", status=2)


def test_input_that_is_no_stream(refused, pool):
    refused("receive", "copy", "-i", "tree/hello", kind="stream-truncated")
    refused("receive", "copy", "-i", "tree/large", kind="stream")
    refused("receive", "copy", "-i", "absent", kind="not-found")
    refused("receive", "copy", "-i", "tree", kind="stream")


def test_bytes_behind_a_streams_trailer(refused, done, blockplane, pool):
    with open("june1.bps", "ab") as file:
        file.write(b"\0")
    assert "behind the trailer" in refused("receive", "copy", "-i", "june1.bps", kind="stream")
    assert not os.path.exists("copy")
    assert "behind the trailer" in refused("receive", pool, "-i", "june1.bps", kind="stream")
    assert "behind the trailer" in blockplane("stream", "verify", "june1.bps").out
    with bp.Volume.create("empty", disks=5, size="6MiB"):
        pass
    assert blockplane("receive", "empty", "-i", "june1.bps", "--json").error["kind"] == "stream"
    assert done("snapshot", "list", "empty", "--json").json["snapshots"] == []


@pytest.mark.parametrize("place", range(12))
def test_a_truncated_stream(refused, pool, place):
    size = os.path.getsize("june1.bps")
    cut = random.Random(place).randrange(size) if place else size - 1
    os.truncate("june1.bps", cut)
    refused("receive", "copy", "-i", "june1.bps", kind="stream-truncated")
    assert not os.path.exists("copy")


@pytest.mark.parametrize("place", range(12))
def test_a_flipped_bit(blockplane, done, pool, place):
    done("receive", "copy", "-i", "june1.bps")
    chance = random.Random(place)
    data = bytearray(Path("june2.bps").read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    Path("june2.bps").write_bytes(data)
    before = done("get", "copy:/", "before") and contents("before")
    outcome = blockplane("receive", "copy", "-i", "june2.bps", "--json")
    assert outcome.status == 1
    assert outcome.error["kind"].startswith("stream")
    assert blockplane("stream", "verify", "june2.bps").status == 1
    done("get", "copy:/", "after")
    assert {k.replace("after", "before"): v for k, v in contents("after").items()} == before
    assert done("check", "copy", "--json").json["ok"] is True


# --- a full volume ---


def test_a_full_volume_keeps_its_last_cp_and_can_still_delete(blockplane, done, pool, tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(40 << 20))
    outcome = blockplane("put", f"{pool}:/big", "big", "--json")
    assert outcome.error["kind"] == "no-space"
    assert done("check", pool, "--json").json["ok"] is True
    done("cat", f"{pool}:/later")
    with bp.Volume.open(pool) as volume:
        files = bp.FileSystem(volume)
        with pytest.raises(bp.errors.NoSpaceError):
            _fill(files, "/fill")
    done("rm", "-f", f"{pool}:/fill")
    done("rm", "-r", f"{pool}:/tree")
    done("snapshot", "delete", f"{pool}@june1..june2")
    done("mkdir", f"{pool}:/room-again")
    assert done("check", pool, "--json").json["ok"] is True


def _fill(files: bp.FileSystem, path: str) -> None:
    with files.open(path, "w") as file:
        while True:
            file.write(os.urandom(1 << 20))


def test_no_room_for_one_more_thread_is_said_in_a_line(blockplane, done, pool):
    for words in (["get", f"{pool}@june1:/tree", "out"], ["receive", "copy", "-i", "june1.bps"]):
        with no_room_for_threads():
            outcome = blockplane(*words)
        assert outcome.status == 1
        assert outcome.err.startswith("blockplane: there is no room for one more thread\n  raise the limit")
        done(*words)
