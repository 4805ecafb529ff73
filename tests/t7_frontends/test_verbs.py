"""Every verb does what INTERFACE says, and its --json has the keys that scripts rely on."""

from __future__ import annotations

import errno
import os
import random
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.filesystem import hostread
from equality import differences, host_tree
from places import contents
from rig.owners import COMMAND

VERBS = (
    "cat", "check", "completion", "create", "demo", "diff", "get", "grow", "image", "info", "ls", "mkdir", "mv",
    "prune", "put", "receive", "rm", "rollback", "send", "snapshot", "stat", "stream", "who",
)  # fmt: skip
TRANSFER_KEYS = {"n_blocks", "n_bytes", "stream_bytes", "seconds", "bytes_per_second"}


def test_create_makes_disk_files_of_the_size_asked_for(done):
    found = done("create", "v", "--disks", 3, "--size", "4MiB", "--json").json
    assert [os.path.getsize(f"v/disks/{i}") for i in range(3)] == [4 << 20] * 3
    assert found["n_blocks"] == 2 * ((1024 - 32) // 64 * 64)
    assert found["n_parity"] == 1
    assert found["id"] == done("info", "v", "--json").json["id"]
    assert "2 + 1 parity disks" in done("create", "w", "--disks", 3, "--size", "4MiB").out


def test_create_on_named_files(done):
    for name in ("a", "b"):
        Path(name).touch()
        os.truncate(name, 3 << 20)
    done("create", "v", "--disk", "a", "--disk", "b")
    assert [d["path"] for d in done("info", "v", "--json").json["disks"]] == [
        os.path.abspath("a"),
        os.path.abspath("b"),
    ]


def test_create_dry_run_makes_nothing(done, blockplane):
    before = sorted(os.listdir())
    found = done("create", "v", "--disks", 4, "--size", "1G", "--parity", 2, "--chunk", "1MiB", "-n", "--json").json
    assert sorted(os.listdir()) == before
    assert (found["dry_run"], found["n_parity"], found["chunk_blocks"]) == (True, 2, 256)
    made = done("create", "v", "--disks", 4, "--size", "1G", "--parity", 2, "--chunk", "1MiB", "--json").json
    assert (made["n_blocks"], made["disks"]) == (found["n_blocks"], found["disks"])
    assert blockplane("create", "v", "--size", "1G", "-n").status == 1


def test_info(done, pool):
    found = done("info", pool, "--json").json
    assert {"id", "n_blocks", "block_bytes", "disks", "used_blocks", "free_blocks", "snapshots"} <= set(found)
    assert found["used_blocks"] + found["free_blocks"] == found["n_blocks"]
    assert found["block_bytes"] == 4096
    assert [s["name"] for s in found["snapshots"]] == ["june1", "june2"]
    for snapshot in found["snapshots"]:
        assert {"name", "id", "created", "kind", "n_blocks", "exclusive_blocks"} <= set(snapshot)
        assert snapshot["kind"] == "regular"
    text = done("info", pool).out
    assert "june2" in text
    assert found["id"] in text


def test_put_and_get_bring_a_tree_back_whole(done, tree):
    done("create", "v", "--disks", 5, "--size", "8MiB")
    found = done("put", "v:/", tree, "--json").json
    assert (found["n_files"], found["n_directories"], found["skipped"]) == (3, 2, [])
    got = done("get", "v:/tree", "back", "--json").json
    assert got["n_files"] == 3
    assert differences(host_tree(tree), host_tree("back")) == []


def test_put_into_a_directory_as_a_name_and_contents_alone(done, tree):
    done("create", "v", "--disks", 3, "--size", "8MiB")
    done("mkdir", "v:/into")
    done("put", "v:/into", tree)
    done("put", "v:/as", tree)
    done("put", "v:/into", f"{tree}/.")
    names = done("ls", "v:/into", "--json").json["entries"]
    assert sorted(e["name"] for e in names) == ["folder", "hello", "large", "link", "tree"]
    assert done("ls", "v:/as").out.split() == ["folder", "hello", "large", "link"]


def test_put_update_rewrites_what_differs_and_deletes_when_told(done, tree):
    done("create", "v", "--disks", 3, "--size", "8MiB")
    done("put", "v:/tree", tree)
    (tree / "hello").unlink()
    with open(tree / "large", "r+b") as file:
        file.seek(4096 * 7)
        file.write(b"!" * 10)
    kept = done("put", "--update", "v:/tree", tree, "--json").json
    assert kept["n_blocks_written"] == 1
    assert "hello" in done("ls", "v:/tree").out
    done("put", "--update", "--delete", "v:/tree", tree)
    assert "hello" not in done("ls", "v:/tree").out
    done("get", "v:/tree/.", "back")
    assert differences(host_tree(tree), host_tree("back")) == []


def test_put_leaves_out_what_is_excluded(done, blockplane, tree):
    done("create", "v", "--disks", 3, "--size", "8MiB")
    found = done("put", "v:/", tree, "--exclude", "large", "--exclude", "/folder/*", "--json").json
    assert found["n_excluded"] == 2
    assert done("ls", "v:/tree").out.split() == ["folder", "hello", "link"]
    assert done("ls", "v:/tree/folder").out == ""
    assert "1 entry left out" in done("put", "v:/again", tree, "--exclude", "large").out
    assert blockplane("put", "v:/", tree, "--exclude", "").status == 1


def test_ls_long_and_json(done, pool):
    text = done("ls", "-l", f"{pool}:/tree").out
    assert "link -> hello" in text
    assert "drwx" in text
    entries = {e["name"]: e for e in done("ls", f"{pool}:/tree", "--json").json["entries"]}
    assert entries["large"]["n_bytes"] == 524288
    assert entries["large"]["type"] == "file"
    assert entries["folder"]["type"] == "directory"
    assert entries["link"]["target"] == "hello"
    assert done("ls", f"{pool}:/tree/hello").out == "hello\n"
    assert done("ls", "-d", f"{pool}:/tree").out == "tree\n"
    assert done("ls", pool).out.split() == ["later", "tree"]
    assert done("ls", f"{pool}@june1").out.split() == ["tree"]


def test_what_is_available_is_what_a_file_may_take(done, blockplane):
    """Also just after `rm`, though what it gave up is kept for two consistency points more."""
    done("create", "v", "--disks", 1, "--size", "24MiB")
    before = done("info", "v", "--json").json["available_blocks"]
    size = before * 4096 * 9 // 10
    Path("large").write_bytes(random.Random(5).randbytes(size))
    done("put", "v:/", "large")
    assert done("info", "v", "--json").json["available_blocks"] < before // 8
    done("rm", "v:/large")
    after = done("info", "v", "--json").json["available_blocks"]
    assert before - 16 < after <= before
    assert f"available  {after:,} blocks" in done("info", "v").out
    done("put", "v:/", "large")
    assert blockplane("put", "v:/again", "large").status == 1


def test_ls_goes_down_where_it_is_asked_to(done, pool, tree):
    """Every path once, those of a directory together; a link to a directory is not entered; of streams too."""
    (tree / "folder" / "below").mkdir()
    (tree / "folder" / "below" / "deep").write_text("x")
    (tree / "aside").symlink_to("folder")
    done("put", f"{pool}:/down", tree)
    there = [*tree.rglob("*")]
    wanted = sorted(str(path.relative_to(tree)) for path in there)
    shown = done("ls", "-R", f"{pool}:/down").out.split("\n")[:-1]
    assert sorted(shown) == wanted
    assert "aside/below" not in shown
    done("snapshot", "create", f"{pool}@deep")
    done("send", pool, "deep", "-o", "deep.bps")
    entries = done("ls", "--recursive", "deep.bps:/down", "--json").json["entries"]
    assert {e["name"]: e["type"] == "directory" for e in entries} == {
        str(path.relative_to(tree)): path.is_dir() and not path.is_symlink() for path in there
    }
    assert done("ls", "-lR", f"{pool}:/down/folder").out.splitlines()[-1].endswith(" below/deep")
    assert done("ls", "-R", f"{pool}:/down/hello").out == "hello\n"
    assert done("ls", "-dR", f"{pool}:/down").out == "down\n"


def test_ls_shows_the_numbers_of_a_device(done):
    done("create", "v", "--disks", 1, "--size", "4MiB")
    with bp.Volume.open("v") as volume:
        bp.FileSystem(volume).mknod("/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert " 1, 3 " in done("ls", "-l", "v:/").out
    assert "1 disk of" in done("info", "v").out


def test_a_put_of_a_tree_that_changes_names_each_file_once_and_fails(done, blockplane, tree, monkeypatch):
    done("create", "v", "--disks", 2, "--size", "4M")
    real, moments = hostread.list_directory, iter([0])

    def change_after_the_first(*arguments: object) -> object:
        listing = real(*arguments)
        for _ in moments:
            (tree / "hello").unlink()
            os.truncate(tree / "large", 100)
        return listing

    monkeypatch.setattr(hostread, "list_directory", change_after_the_first)
    outcome = blockplane("put", "v:/", tree, "--json")
    assert outcome.status == 1
    assert outcome.err.splitlines() == [
        f"blockplane: skipped {tree}/hello: vanished while the tree was copied",
        f"blockplane: changed {tree}/large: shrank from 524288 to 100 bytes while the tree was copied",
    ]
    assert [row["path"] for row in outcome.json["skipped"]] == [f"{tree}/hello"]
    assert [row["path"] for row in outcome.json["changed"]] == [f"{tree}/large"]
    assert done("ls", "v:/tree", "--json").json["entries"] != []
    assert done("cat", "v:/tree/folder/inner").out == "inner\n"
    assert done("check", "v", "--json").json["ok"] is True


def test_a_put_that_replaces_says_so(done, tree):
    done("create", "v", "--disks", 3, "--size", "8MiB")
    done("put", "v:/", tree)
    assert "4 entries replaced" in done("put", "v:/", tree).out


def test_a_get_passes_over_what_has_a_folder_in_its_way_and_fails(done, blockplane, pool):
    os.makedirs("out/hello")
    outcome = blockplane("get", f"{pool}:/tree/.", "out")
    assert outcome.status == 1
    assert outcome.err == "blockplane: skipped out/hello: Is a directory\n"
    assert sorted(os.listdir("out")) == ["folder", "hello", "large", "link"]


def test_put_counts_blocks_with_and_without_update(done, tree):
    done("create", "v", "--disks", 3, "--size", "8MiB")
    os.setxattr(tree / "hello", "user.large", b"v" * 3000)
    expected = os.path.getsize(tree / "large") // 4096 + 1  # what is small lies in inodes
    assert done("put", "v:/one", tree, "--json").json["n_blocks_written"] == expected
    assert done("put", "v:/two", tree, "--update", "--json").json["n_blocks_written"] == expected
    assert done("put", "v:/two", tree, "--update", "--json").json["n_blocks_written"] == 0


def test_cat_and_stat(done, pool, tree):
    assert done("cat", f"{pool}:/tree/hello", f"{pool}@june1:/tree/folder/inner").out == "hello\ninner\n"
    found = done("stat", f"{pool}:/tree/hello", "--json").json
    host = (tree / "hello").stat()
    assert found["n_bytes"] == 6
    assert found["mtime_ns"] == host.st_mtime_ns
    assert found["mode"] == stat.S_IMODE(host.st_mode)
    assert "6 bytes" in done("stat", f"{pool}:/tree/hello").out
    assert done("stat", f"{pool}:/tree/link", "--json").json["target"] == "hello"


def test_rm_and_mkdir(done, blockplane, pool):
    done("mkdir", f"{pool}:/new", f"{pool}:/new/inner")
    made = done("mkdir", "-p", f"{pool}:/a/b/c", f"{pool}:/new", f"{pool}:/a", "--json").json
    assert made == {"made": [f"{pool}:/a/b/c"]}
    assert blockplane("rm", f"{pool}:/new").status == 2
    done("rm", f"{pool}:/later")
    done("rm", "-r", f"{pool}:/new", f"{pool}:/a")
    assert done("rm", "-f", f"{pool}:/absent", "--json").json == {"removed": []}
    assert done("ls", f"{pool}:/").out.split() == ["tree"]
    assert done("ls", f"{pool}@june2:/").out.split() == ["later", "tree"]


def test_snapshots(done, pool):
    made = done("snapshot", "create", f"{pool}@june3", "--json").json
    assert made["name"] == "june3"
    done("snapshot", "rename", f"{pool}@june3", "july")
    listed = done("snapshot", "list", pool, "--json").json["snapshots"]
    assert [s["name"] for s in listed] == ["june1", "june2", "july"]
    assert listed[2]["id"] == made["id"]
    assert "july" in done("snapshot", "list", pool).out
    promised = done("image", pool, "--freed", "june1..june2", "--json").json["freed_blocks"]
    would = done("snapshot", "delete", f"{pool}@june1..june2", "--dry-run", "--json").json
    assert would == {
        "deleted": ["june1", "june2"], "deferred": [], "freed_blocks": promised, "metafile_blocks": 0, "dry_run": True,
    }  # fmt: skip
    before = done("info", pool, "--json").json
    gone = done("snapshot", "delete", f"{pool}@june1..june2", "--json").json
    assert (gone["deleted"], gone["freed_blocks"], gone["dry_run"]) == (["june1", "june2"], promised, False)
    after = done("info", pool, "--json").json
    assert after["free_blocks"] == before["free_blocks"] + promised - gone["metafile_blocks"]
    done("snapshot", "delete", f"{pool}@july")
    assert done("snapshot", "list", pool).out == "no snapshots\n"
    assert done("check", pool, "--json").json["ok"] is True


def test_rollback_keeps_what_was_changed(done, pool):
    done("rm", f"{pool}:/later")
    found = done("rollback", f"{pool}@june1", "--json").json
    assert found == {"live": "june1", "kept_as": "before-rollback-to-june1"}
    assert done("ls", f"{pool}:/").out.split() == ["tree"]
    assert "june2" in done("snapshot", "list", pool).out
    done("mkdir", f"{pool}:/x")
    done("rollback", f"{pool}@june1", "--drop-later", "--drop-changes")
    assert [s["name"] for s in done("snapshot", "list", pool, "--json").json["snapshots"]] == ["june1"]
    assert done("check", pool, "--json").json["ok"] is True


def test_image_says_exactly_what_it_holds(done, pool):
    found = done("image", pool, "june2 - june1", "--json").json
    assert {"n_blocks", "n_bytes", "blocks_per_disk", "top", "base", "complete"} <= set(found)
    assert (found["top"], found["base"], found["complete"]) == ("june2", "june1", True)
    assert found["n_bytes"] == 4096 * found["n_blocks"]
    assert sum(found["blocks_per_disk"]) == found["n_blocks"]
    assert len(found["blocks_per_disk"]) == 5
    assert done("image", pool, "june2", "-", "june1").out.startswith("image      june2 - june1\n")
    assert done("image", pool, "june2", "--older", "all", "--json").json["arriving"] == ["june2", "june1"]


def test_send_and_receive_full_and_increment_onto_another_geometry(done, pool):
    planned = done("send", pool, "june1", "-n", "--json").json
    sent = done("send", pool, "june1", "-o", "full.bps", "--json").json
    assert set(sent) >= TRANSFER_KEYS
    assert sent["stream_bytes"] == os.path.getsize("full.bps") == planned["stream_bytes"]
    received = done(
        "receive", "copy", "-i", "full.bps", "--disks", 3, "--size", "16M", "--chunk", "512KiB", "--json"
    ).json
    assert set(received) >= TRANSFER_KEYS
    assert received["n_blocks"] == sent["n_blocks"] == planned["n_blocks"]
    assert "june2" in done("receive", "copy", "-i", "june2.bps").out
    assert done("receive", "copy", "-i", "june2.bps", "--json").json["already_there"] is True
    for verb in (["get", "{}@june1:/tree"], ["get", "{}@june2:/tree"], ["get", "{}:/tree"]):
        name = verb[1].replace("/", "").replace("{}", "")
        done("get", verb[1].format(pool), f"pool{name}")
        done("get", verb[1].format("copy"), f"copy{name}")
        assert differences(host_tree(f"pool{name}"), host_tree(f"copy{name}")) == []
    assert done("check", "copy", "--json").json["ok"] is True
    geometry = done("info", "copy", "--json").json["groups"]
    assert (geometry[0]["n_data"], geometry[0]["chunk_blocks"]) == (2, 128)


def test_every_lost_disk_is_named_and_what_to_do(done, blockplane, pool):
    for number in (1, 3):
        os.rename(f"{pool}/disks/{number}", f"lost{number}")
    error = blockplane("info", pool, "--json").error
    assert [f"{pool}/disks/{n}" in error["message"] for n in range(5)] == [False, True, False, True, False]
    assert (error["kind"], "volume.toml" in error["hint"]) == ("disk-missing", True)


def test_a_difference_without_blanks_is_explained(blockplane, pool):
    assert "did you mean june2 - june1?" in blockplane("send", pool, "june2-june1", "-n").err


def test_what_is_no_key_file_is_said_to_be_none(blockplane, pool):
    found = blockplane("ls", "june1.bps:/", "--key", "june1.bps")
    assert (found.status != 0, "is no key file" in found.err) == (True, True)


def test_a_dash_is_no_file(done, pool):
    before = sorted(os.listdir())
    assert done("send", pool, "june1", "-n", "-o", "-", "--json").json["bytes_per_second"] is None
    words = f"{shlex.join(COMMAND)} send {pool} june1 -o - | {shlex.join(COMMAND)} receive dashed -i -"
    subprocess.run(["sh", "-c", words], check=True)
    assert sorted(os.listdir()) == sorted([*before, "dashed"])


def test_receive_takes_the_source_geometry_by_default_groups_and_all(done, pool):
    done("grow", pool, "--disks", 2, "--size", "8MiB")
    done("snapshot", "create", f"{pool}@june3")
    done("send", pool, "june3 + june2 + june1", "-o", "all.bps")
    done("receive", "copy", "-i", "all.bps")
    keys = ("n_data", "n_parity", "chunk_blocks", "disk_blocks", "first")
    groups = [[[g[k] for k in keys] for g in done("info", v, "--json").json["groups"]] for v in (pool, "copy")]
    assert groups[0] == groups[1]
    names = [s["name"] for s in done("snapshot", "list", "copy", "--json").json["snapshots"]]
    assert names == ["june1", "june2", "june3"]


def test_streams_are_read_as_volumes_are(done, pool):
    assert done("ls", "june1.bps:/").out == "tree\n"
    assert done("cat", "june1.bps:/tree/hello").out == "hello\n"
    assert done("ls", "june1.bps,june2.bps:/").out.split() == ["later", "tree"]
    assert done("ls", "june1.bps,june2.bps@june1:/").out.split() == ["tree"]
    done("get", "june1.bps:/tree", "back")
    done("get", f"{pool}@june1:/tree", "same")
    assert differences(host_tree("back"), host_tree("same")) == []
    os.mkdir("streams")
    for name in ("june1.bps", "june2.bps"):
        os.rename(name, f"streams/{name}")
    assert done("ls", "streams:/").out.split() == ["later", "tree"]


def test_stream_info_and_verify(done, blockplane, pool):
    found = done("stream", "info", "june2.bps", "--json").json
    assert (found["top"], found["base"]) == ("june2", "june1")
    assert "june1" in done("stream", "info", "june2.bps").out
    assert done("stream", "verify", "june1.bps", "june2.bps", "--json").json["ok"] is True
    assert "complete chain" in done("stream", "verify", "june1.bps", "june2.bps").out
    found = done("stream", "verify", "june2.bps", "june1.bps", "--json").json
    assert (found["order"], found["proved"]) == (["june1.bps", "june2.bps"], ["june1", "june2"])
    Path("june2.bps").rename("other.bps")
    wrong = blockplane("stream", "verify", "other.bps", "june2.bps", "--json")
    assert (wrong.status, wrong.error["kind"]) == (1, "not-found")


def test_grow_makes_room(done, blockplane, pool, tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(24 << 20))
    assert blockplane("put", f"{pool}:/big", "big").status == 1
    before = done("info", pool, "--json").json
    found = done("grow", pool, "--disks", 3, "--size", "16MiB", "--json").json
    after = done("info", pool, "--json").json
    assert after["n_blocks"] == before["n_blocks"] + found["n_blocks"]
    assert len(after["disks"]) == 8
    done("put", f"{pool}:/big", "big")
    assert done("check", pool, "--json").json["ok"] is True
    done("get", f"{pool}:/big", "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    done("rollback", f"{pool}@june1", "--drop-later", "--drop-changes")
    assert done("check", pool, "--json").json["ok"] is True


def test_check_says_what_is_wrong(done, blockplane, pool):
    found = done("check", pool, "--json").json
    assert found["ok"] is True
    assert found["problems"] == []
    disks = [Path(pool, "disks", str(i)) for i in range(4)]
    disk = next(disk for disk in disks if b"laterlater" in disk.read_bytes())
    data = bytearray(disk.read_bytes())
    data[data.find(b"laterlater") + 3] ^= 1
    disk.write_bytes(data)
    broken = blockplane("check", pool, "--json")
    assert broken.status == 1
    assert broken.json["ok"] is False
    assert any("does not match its checksum" in problem for problem in broken.json["problems"])
    assert "DAMAGED" in blockplane("check", pool).out
    reading = blockplane("cat", f"{pool}:/later")
    assert (reading.status, reading.out) == (1, "")


def test_completion_scripts(done):
    for shell in ("bash", "zsh", "fish"):
        assert "_BLOCKPLANE_COMPLETE" in done("completion", shell).out


def test_every_verb_explains_itself(done):
    top = done("--help").out
    for verb in VERBS:
        assert f"\n  {verb} " in top
        assert "Usage:" in done(verb, "--help").out
    assert done("--version").out.startswith("blockplane, version ")


def test_no_arguments_show_the_help_and_are_an_error(blockplane):
    outcome = blockplane()
    assert (outcome.status, outcome.out) == (2, "")
    assert "Usage:" in outcome.err


def test_the_public_names_are_all_there():
    for name in bp.__all__:
        assert getattr(bp, name) is not None
    assert set(bp.__all__) <= set(dir(bp))
    with pytest.raises(AttributeError):
        bp.nothing  # noqa: B018


# --- what only reads ---

READING = [
    ["info", "pool"], ["ls", "-l", "pool:/tree"], ["cat", "pool:/tree/hello"], ["stat", "pool@june1:/tree/large"],
    ["get", "pool:/tree", "out"], ["snapshot", "list", "pool"], ["image", "pool", "june2 - june1"],
    ["send", "pool", "june2", "-o", "out.bps"], ["check", "pool"],
]  # fmt: skip


@pytest.fixture
def frozen(pool, monkeypatch):
    """The pool where nothing can be opened for writing or made: as on a read-only mount, whoever runs the tests."""
    place, opened = Path(pool).absolute(), os.open

    def refusing(path, flags, *rest, **options):
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and place in Path(os.fsdecode(path)).absolute().parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
        return opened(path, flags, *rest, **options)

    for path in place.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    place.chmod(0o555)
    monkeypatch.setattr(os, "open", refusing)
    yield pool
    for path in (place, place / "disks"):
        path.chmod(0o755)


@pytest.mark.parametrize("verb", READING, ids=lambda verb: verb[0])
@pytest.mark.parametrize("lock", ["lock", "no lock"])
def test_reading_verbs_work_where_nothing_can_be_written(frozen, done, blockplane, verb, lock):
    if lock == "no lock":
        os.chmod(frozen, 0o755)
        os.unlink("pool/lock")
        os.chmod(frozen, 0o555)
    before = contents(frozen)
    assert done(*verb).err == ""
    assert contents(frozen) == before
    assert os.path.exists("pool/lock") == (lock == "lock")
    refused = blockplane("mkdir", "pool:/new", "--json")
    assert "Read-only file system" in refused.error["message"]


@pytest.mark.parametrize("verb", READING, ids=lambda verb: verb[0])
def test_reading_writes_nothing_and_goes_on_beside_readers(pool, done, blockplane, verb):
    before = contents(pool)
    times = {path: path.stat().st_mtime_ns for path in Path(pool).rglob("*")}
    with bp.Volume.open(pool, writable=False):
        done(*verb)
        refused = blockplane("mkdir", "pool:/new", "--json").error
        assert refused["kind"] == "in-use"
        assert f"process {os.getpid()} (reading)" in refused["message"]
    assert contents(pool) == before
    assert {path: path.stat().st_mtime_ns for path in Path(pool).rglob("*")} == times


def test_a_reader_that_can_have_no_lock_says_so(pool, done, monkeypatch):
    def no_locks(fd, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    outcome = done("ls", "pool:/")
    assert outcome.out.split() == ["later", "tree"]
    assert outcome.err.startswith("blockplane: pool could not be locked")
