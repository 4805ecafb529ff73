"""Receiving onto a volume with fewer places than the source has numbers: what came, what comes later, what goes on."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import NoSpaceError, RefusedError
from blockplane.volume.check import check
from blockplane.volume.space import AREA_STRIPES
from forging import parts_of, sealed


def spread(volume: bp.Volume, rng: np.random.Generator) -> None:
    """Have the next blocks written somewhere else in the volume, as they are in one that is old."""
    volume.sync()
    group = int(rng.integers(len(volume.geometry.groups)))
    area = int(rng.integers(-(-volume.geometry.groups[group].disk_blocks // AREA_STRIPES)))
    volume.placer._cursor[False] = (group, area)


def churn(volume: bp.Volume, rng: np.random.Generator, step: int, n_bytes: int) -> None:
    """Write files at places all over the volume, rewrite parts of older ones, remove one."""
    files = bp.FileSystem(volume)
    for part in range(3):
        spread(volume, rng)
        files.write_bytes(f"/{step}-{part}", rng.bytes(int(rng.integers(1, n_bytes))))
        spread(volume, rng)
        files.write_bytes(f"/{step}-{part}-small", rng.bytes(int(rng.integers(1, 5000))))
    names = sorted(files.listdir("/"))
    with files.open(f"/{names[int(rng.integers(len(names)))]}", "r+") as file:
        file.seek(int(rng.integers(n_bytes)))
        file.write(rng.bytes(9000))
    files.unlink(f"/{names[int(rng.integers(len(names)))]}")


def content(state: object) -> dict[str, str]:
    files = bp.FileSystem(state)
    return {name: hashlib.sha256(files.read_bytes(f"/{name}")).hexdigest() for name in files.listdir("/")}


def contents(volume: bp.Volume) -> dict[str, dict[str, str]]:
    return {snapshot.name: content(snapshot) for snapshot in volume.snapshots}


def verdict(volume: bp.Volume) -> None:
    assert check(volume).problems == []


def sent(volume: bp.Volume, expression: str, **how: object) -> io.BytesIO:
    out = io.BytesIO()
    bp.send(volume.image(expression), out, **how)
    out.seek(0)
    return out


@pytest.fixture
def source(tmp_path, rng):
    """A volume of two groups, 2 GiB of numbers, that holds a few mebibytes, in six snapshots."""
    with bp.Volume.create(tmp_path / "source", disks=5, size="260MiB", parity=1) as volume:
        volume.grow(disks=3, size="520MiB", parity=1)
        for step in range(6):
            churn(volume, rng, step, 900_000)
            volume.snapshot(f"s{step}")
        yield volume


ALL = "s5 + s4 + s3 + s2 + s1 + s0"
SMALL = {"disks": 3, "size": "64MiB", "parity": 1, "chunk": "256KiB"}


def small_copy(source: bp.Volume, path: Path, expression: str = ALL, **shape: object) -> bp.Volume:
    bp.receive(sent(source, expression), path, relocate=True, **{**SMALL, **shape})
    return bp.Volume.open(path)


@pytest.mark.parametrize("chunk", ["256KiB", "1280KiB", "disk"])
@pytest.mark.parametrize("order", ["disk", "tape"])
def test_every_snapshot_reads_back_on_a_volume_with_a_fraction_of_the_numbers(source, tmp_path, chunk, order):
    bp.receive(sent(source, ALL, order=order), tmp_path / "small", relocate=True, **{**SMALL, "chunk": chunk})
    with bp.Volume.open(tmp_path / "small") as small:
        top = small.get_snapshot("s5").state
        assert top.space_blocks > 4 * small.geometry.n_blocks
        assert top.placemap.n_blocks > top.root.n_blocks // 2
        assert top.placemap.extents[-1, 1] > small.geometry.n_blocks
        assert contents(small) == contents(source)
        assert content(small) == content(source.get_snapshot("s5"))
        verdict(small)
        # all in a row: an extent ends where the blocks' numbers do, or a window of their order
        runs = len(small.plane(top).extents())
        assert len(top.placemap.extents) <= 2 * runs + top.root.n_blocks // 64


def test_later_increments_apply_and_a_tier_behind_goes_on(source, tmp_path, rng):
    with small_copy(source, tmp_path / "small") as small, small_copy(small, tmp_path / "third") as third:
        for step in (6, 7, 8):
            churn(source, rng, step, 900_000)
            source.snapshot(f"s{step}")
            bp.receive(sent(source, f"s{step} - s{step - 1}"), small)
            bp.receive(sent(small, f"s{step} - s{step - 1}"), third)
            verdict(small)
            verdict(third)
        assert contents(small) == contents(source)
        assert contents(third) == contents(source)
        # and back to one of full size
        bp.receive(sent(small, "s8"), tmp_path / "wide", disks=5, size="700MiB", parity=1)
        with bp.Volume.open(tmp_path / "wide") as wide:
            assert wide.committed.placemap.n_blocks < 100  # what the new volume itself had there
            assert content(wide) == content(source.get_snapshot("s8"))


def test_increments_are_copied_onto_a_relocated_volume(source, tmp_path, rng):
    with small_copy(source, tmp_path / "small") as small:
        churn(source, rng, 6, 900_000)
        source.snapshot("s6")
        planned = bp.copy(source.image("s6 - s5"), small, dry_run=True)
        assert planned.n_blocks == bp.copy(source.image("s6 - s5"), small).n_blocks > 0
        assert contents(small) == contents(source)
        verdict(small)


@pytest.mark.parametrize("is_there", [False, True])
def test_copied_onto_a_smaller_volume_without_a_stream(source, tmp_path, rng, is_there):
    """What it would come to, full, interrupted and gone on with, an increment; each compared byte by byte."""
    target, shape = tmp_path / "small", dict(SMALL)
    if is_there:
        bp.Volume.create(target, **shape).close()
        shape = {}
    image = source.image(ALL)
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match=r"holds block \d+, and .* has \d+ blocks") as refused:
            bp.copy(image, target, dry_run=dry_run, **shape)
        assert "--relocate" in refused.value.hint
    assert target.exists() == is_there
    foreseen = bp.copy(image, target, relocate=True, dry_run=True, **shape)
    assert (foreseen.n_blocks, foreseen.makes_volume) == (image.n_blocks, not is_there)
    with pytest.raises(KeyboardInterrupt):
        bp.copy(image, target, relocate=True, progress=_stopped_after(image.n_bytes // 2), **shape)
    report = bp.copy(source.image(ALL), target, relocate=True, verify=True)
    assert report.n_blocks + report.n_blocks_before == report.n_blocks_verified == image.n_blocks
    assert report.n_blocks_before > 0
    churn(source, rng, 6, 900_000)
    source.snapshot("s6")
    increment = source.image("s6 - s5")
    assert bp.copy(increment, target, dry_run=True).n_blocks == increment.n_blocks
    assert bp.copy(increment, target, verify=True).n_blocks_verified == increment.n_blocks
    with bp.Volume.open(target) as small:
        assert small.committed.placemap.stop > small.geometry.n_blocks
        assert contents(small) == contents(source)
        verdict(small)


def _stopped_after(n_bytes: int):
    def note(event: object) -> None:
        if event.done_bytes > n_bytes:
            raise KeyboardInterrupt

    return note


def test_a_grown_volume_takes_increments_as_before(source, tmp_path, rng):
    with small_copy(source, tmp_path / "small") as small:
        for step, grows in ((6, True), (7, False)):
            churn(source, rng, step, 900_000)
            source.snapshot(f"s{step}")
            if grows:
                small.grow(disks=2, size="40MiB", parity=1)
            bp.receive(sent(source, f"s{step} - s{step - 1}"), small)
            verdict(small)
        assert contents(small) == contents(source)


def test_local_writes_beside_what_lies_elsewhere(source, tmp_path, rng):
    """Free places are of use whatever their numbers name; a full volume is full, and says so; what was held stays."""
    with small_copy(source, tmp_path / "small") as small:
        before = contents(small)
        files, written = bp.FileSystem(small), {}
        for step in range(120):
            data = rng.bytes(int(rng.integers(1, 6_000_000)))
            try:
                files.write_bytes(f"/mine-{step}", data)
                small.sync()
            except NoSpaceError:
                break
            written[f"/mine-{step}"] = data
        else:
            pytest.fail("the volume was never full")
        assert small.available_blocks < 1600  # the file that was too much has up to 1,465
        assert small.committed.placemap.n_blocks > 0
        assert {vbn for vbn in small.committed.placemap.vbns() if vbn >= small.geometry.n_blocks}
        assert contents(small) == before
        assert {path: files.read_bytes(path) for path in written} == written
        for path in sorted(written)[::2]:
            files.unlink(path)
            small.sync()
        verdict(small)
        small.delete_snapshot("s0", "s1", "s2")
        for step in range(8):
            files.write_bytes(f"/again-{step}", rng.bytes(200_000))
            small.sync()
        verdict(small)
    with bp.Volume.open(tmp_path / "small") as small:
        verdict(small)
        assert contents(small)["s5"] == before["s5"]


def test_a_branch_written_on_a_relocated_volume_is_sent_on(source, tmp_path, rng):
    with small_copy(source, tmp_path / "small") as small:
        bp.receive(sent(small, "s5"), tmp_path / "wide", disks=5, size="700MiB", parity=1)
        files = bp.FileSystem(small)
        for step in range(4):
            files.write_bytes(f"/own-{step}", rng.bytes(700_000))
            small.snapshot(f"own{step}")
        with bp.Volume.open(tmp_path / "wide") as wide:
            bp.receive(sent(small, "own3 + own2 - s5"), wide)
            assert content(wide) == content(small.get_snapshot("own3"))
            verdict(wide)


def test_marks_and_shadows_on_a_relocated_volume(source, tmp_path, rng):
    with small_copy(source, tmp_path / "small") as small:
        small.mark("s5")
        small.shadow_snapshot("s2")
        files = bp.FileSystem(small)
        for step in range(6):
            files.write_bytes(f"/own-{step}", rng.bytes(400_000))
            if step % 2:
                files.unlink(f"/own-{step - 1}")
            small.snapshot(f"own{step}")
            verdict(small)
        small.delete_snapshot("own0", "own2")
        verdict(small)
        shadowed, whole = small.image("own5 - s2"), small.image("own5")
        assert shadowed.n_blocks <= whole.n_blocks


def test_a_group_taken_out_changes_nothing_for_images_and_increments(source, tmp_path, rng):
    """At the source, and at a replica whose blocks lie elsewhere already; between and after increments."""
    bp.receive(sent(source, ALL), tmp_path / "copy")
    with small_copy(source, tmp_path / "small") as small, bp.Volume.open(tmp_path / "copy") as copy:
        small.grow(disks=2, size="60MiB", parity=0)
        for step in (6, 7, 8):
            churn(source, rng, step, 900_000)
            source.snapshot(f"s{step}")
            if step == 6:
                small.shrink(0)
            if step == 7:
                before = source.image("s7 - s6").plane.extents().tolist()
                assert source.plan_shrink(1).n_moving > 0
                source.shrink(1)
                assert source.image("s7 - s6").plane.extents().tolist() == before
                verdict(source)
            if step == 8:
                copy.shrink(0)
            for volume in (small, copy):
                bp.receive(sent(source, f"s{step} - s{step - 1}"), volume)
                verdict(volume)
        assert contents(small) == contents(source)
        assert contents(copy) == contents(source)
        bp.receive(sent(source, "s8"), tmp_path / "wide", disks=5, size="700MiB", parity=1)
        with bp.Volume.open(tmp_path / "wide") as wide:
            assert content(wide) == content(small.get_snapshot("s8"))
            assert wide.committed.placemap.n_blocks < 100  # what the new volume itself had there


def test_what_does_not_fit_is_refused_with_what_it_needs(source, tmp_path):
    with pytest.raises(RefusedError, match=r"holds block \d+, and .* has \d+ blocks; its \d+ blocks would fit") as fits:
        bp.receive(sent(source, ALL), tmp_path / "small", **SMALL)
    assert "--relocate" in fits.value.hint
    tiny = {**SMALL, "size": max(source.image(ALL).n_bytes // 4, 1 << 20)}  # of two data disks: half of what is wanted
    with pytest.raises(RefusedError, match=r"would not fit at other places either, \d+ are free") as tight:
        bp.receive(sent(source, ALL), tmp_path / "small", **tiny)
    assert "--relocate" not in tight.value.hint
    with pytest.raises(NoSpaceError, match=r"the image has \d+ blocks, and .* has room for \d+"):
        bp.receive(sent(source, ALL), tmp_path / "small", relocate=True, **tiny)
    assert not (tmp_path / "small").exists()


def test_where_every_number_has_a_place_nothing_is_relocated(source, tmp_path):
    bp.receive(sent(source, ALL), tmp_path / "wide", disks=5, size="700MiB", parity=1, relocate=True)
    with bp.Volume.open(tmp_path / "wide") as wide:
        assert wide.committed.placemap.n_blocks < 100  # what the new volume itself had there


def test_an_interrupted_relocation_goes_on(source, tmp_path):
    stream = sent(source, ALL).getvalue()
    for at in (55, 90):
        with pytest.raises(bp.errors.StreamTruncatedError):
            bp.receive(io.BytesIO(stream[: len(stream) * at // 100]), tmp_path / "small", relocate=True, **SMALL)
    report = bp.receive(io.BytesIO(stream), tmp_path / "small", relocate=True, **SMALL)
    assert report.top == "s5"
    with bp.Volume.open(tmp_path / "small") as small:
        assert contents(small) == contents(source)
        verdict(small)


def _received_in(stream: Path, target: Path, **shape: object) -> float:
    started = time.monotonic()
    bp.receive(stream, target, **shape)
    return time.monotonic() - started


def test_forty_gibibytes_of_numbers_in_ten(tmp_path, rng, is_deep, record_property):
    """30 snapshots spread over the whole space; in CI a twentieth of it all."""
    n_snapshots, n_bytes, whole, quarter = (
        (30, 12_000_000, "10GiB", "2560MiB") if is_deep else (5, 3_000_000, "512MiB", "130MiB")
    )
    with bp.Volume.create(tmp_path / "source", disks=5, size=whole, parity=1) as source:
        for step in range(n_snapshots):
            churn(source, rng, step, n_bytes)
            source.snapshot(f"s{step}")
        everything = " + ".join(f"s{step}" for step in reversed(range(n_snapshots)))
        bp.send(source.image(everything), tmp_path / "all.bps")
        plain_s, relocated_s = [], []
        for _ in range(3):
            for name in ("plain", "small"):
                if (tmp_path / name).exists():
                    bp.Volume.open(tmp_path / name).close()
                    for file in sorted((tmp_path / name).rglob("*"), reverse=True):
                        file.rmdir() if file.is_dir() else file.unlink()
                    (tmp_path / name).rmdir()
            plain_s.append(_received_in(tmp_path / "all.bps", tmp_path / "plain"))
            shape = {"disks": 5, "size": quarter, "parity": 1}
            relocated_s.append(_received_in(tmp_path / "all.bps", tmp_path / "small", relocate=True, **shape))
        with bp.Volume.open(tmp_path / "small") as small:
            top = small.committed
            assert top.space_blocks >= 3.9 * small.geometry.n_blocks
            assert contents(small) == contents(source)
            verdict(small)
            for step in (n_snapshots, n_snapshots + 1):
                churn(source, rng, step, n_bytes)
                source.snapshot(f"s{step}")
                bp.receive(sent(source, f"s{step} - s{step - 1}"), small)
            assert contents(small) == contents(source)
            verdict(small)
            n_maps = sum(len(small.snapshot_state(entry).placemap.extents) for entry in small.local.regular())
            record_property(
                "summary",
                f"relocation: {top.root.n_blocks:,} blocks live of {top.space_blocks:,} numbers in "
                f"{small.geometry.n_blocks:,} places, {len(small.snapshots)} snapshots; "
                f"{min(plain_s):.2f} s plain, {min(relocated_s):.2f} s relocated; "
                f"{len(top.placemap.extents):,} extents in the live map, {n_maps:,} in all",
            )
        if is_deep:
            assert min(relocated_s) < min(plain_s) / 0.8


@pytest.mark.parametrize("window_blocks", [0, 1, 1 << 20])
def test_an_order_of_windows_that_nobody_writes_is_no_hindrance(source, tmp_path, window_blocks):
    """Where blocks are listed, it is no more than a guess at how they will come."""
    parts = [bytearray(part) for part in parts_of(sent(source, ALL).getvalue())]
    parts[0][236:240] = window_blocks.to_bytes(4, "little")
    bp.receive(io.BytesIO(sealed(parts)), tmp_path / "small", relocate=True, **SMALL)
    with bp.Volume.open(tmp_path / "small") as small:
        assert contents(small) == contents(source)
        verdict(small)
