"""Chains of streams beside plain copies: merging beside copying the result's bytes, reading in place, compression."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold, warm
from yardstick.pairs import run_pairs
from yardstick.raw import copy_file
from yardstick.tree import TreeSize
from yardstick.world import Source, make_chain

from blockplane.filesystem import FileSystem
from blockplane.image.image import build
from blockplane.stream import open_stream
from blockplane.transfer import merge_streams, send, stream_map, verify_streams

MIB = 1 << 20


@pytest.fixture(scope="module")
def chain(source: Source, folder: Path) -> list[Path]:
    """Full june1, june2 - june1, and a third increment in which little has changed."""
    fs = FileSystem(source.volume)
    if "june3" not in [snapshot.name for snapshot in source.volume.snapshots]:
        fs.write_bytes("/late", bytes(range(256)) * 4096)
        source.volume.snapshot("june3")
    made = []
    for name, expression in (("c1", "june1"), ("c2", "june2 - june1"), ("c3", "june3 - june2")):
        made.append(folder / f"{name}.bps")
        send(build(source.volume, expression), made[-1])
    return made


@pytest.mark.parametrize("kind", ["full", "increment"])
def test_merge(benchmark: BenchmarkFixture, source: Source, chain: list[Path], folder: Path, kind: str) -> None:
    benchmark.group = f"merge {kind}"
    members = chain if kind == "full" else chain[1:]
    expression = "june3" if kind == "full" else "june3 - june1"
    direct, merged, copied = folder / "direct.bps", folder / "merged.bps", folder / "copied.bps"
    n_bytes = send(build(source.volume, expression), direct).n_bytes

    def before() -> None:
        for path in (merged, copied):
            path.unlink(missing_ok=True)
        make_cold([])
        for path in (*members, direct):
            warm(path)

    def run() -> None:
        assert merge_streams(*members, sink=merged).sent.n_bytes == n_bytes

    run_pairs(
        benchmark, run, lambda: copy_file(direct, copied), before=before, n_bytes=n_bytes, target=0.70
    )  # fmt: skip
    assert stream_map(merged).header.plane_digest == stream_map(direct).header.plane_digest
    for path in (direct, merged, copied):
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["single", "runs"])
def test_merge_ten(benchmark: BenchmarkFixture, size: TreeSize, folder: Path, kind: str) -> None:
    """A full stream and ten increments, warm, beside copying the result: scattered blocks, and runs of a mebibyte."""
    benchmark.group = f"merge ten: {kind}"
    members, direct = make_chain(folder, size.n_bytes // MIB * MIB, kind)
    merged, copied = folder / "merged.bps", folder / "copied.bps"

    def before() -> None:
        for path in (merged, copied):
            path.unlink(missing_ok=True)
        for path in (*members, direct):
            warm(path)

    benchmark.extra_info.update(chain_bytes=sum(path.stat().st_size for path in members))
    run_pairs(
        benchmark, lambda: merge_streams(*members, sink=merged), lambda: copy_file(direct, copied), before=before,
        n_bytes=direct.stat().st_size, target=0.70,
    )  # fmt: skip
    assert stream_map(merged).header.plane_digest == stream_map(direct).header.plane_digest
    for path in (*members, direct, merged, copied):
        path.unlink(missing_ok=True)


def test_verify(benchmark: BenchmarkFixture, chain: list[Path]) -> None:
    """Beside reading the same bytes into one buffer."""
    benchmark.group = "verify a chain"
    n_bytes = sum(path.stat().st_size for path in chain)

    def read() -> None:
        buffer, done = memoryview(bytearray(MIB)), 0
        for path in chain:
            with open(path, "rb", buffering=0) as reader:
                while n_read := reader.readinto(buffer):
                    done += n_read
        assert done == n_bytes

    def run() -> None:
        verdict = verify_streams(*chain)
        assert (verdict.ok, len(verdict.proved)) == (True, 3)

    run_pairs(
        benchmark, run, read, before=lambda: [warm(path) for path in chain] and None, n_bytes=n_bytes, target=0.50
    )  # fmt: skip


@pytest.mark.parametrize("compress", [None, "zstd"], ids=["plain", "zstd"])
def test_read_in_place(
    benchmark: BenchmarkFixture, source: Source, chain: list[Path], folder: Path, compress: str | None
) -> None:
    """1 MiB out of an open chain of three, warm: time, and what was read for it."""
    benchmark.group = "read 1 MiB out of a chain"
    paths = chain
    if compress is not None:
        paths = [folder / f"z{i}.bps" for i in range(3)]
        for path, expression in zip(paths, ("june1", "june2 - june1", "june3 - june2"), strict=True):
            send(build(source.volume, expression), path, compress=compress)
    expected = FileSystem(source.volume.get_snapshot("june3")).read_bytes("/late")
    assert len(expected) == MIB
    with open_stream(*paths) as opened:
        cost = []

        def run() -> None:
            before = dataclasses.replace(opened.counters)
            assert FileSystem(opened).read_bytes("/late") == expected
            after = opened.counters
            cost.append((after.read_bytes - before.read_bytes, after.n_frames - before.n_frames))

        benchmark.pedantic(run, rounds=5 if benchmark.enabled else 1)
    read_bytes, n_frames = (max(column) for column in zip(*cost, strict=True))
    benchmark.extra_info.update(read_bytes=read_bytes, n_frames=n_frames)
    print(f"\nread 1 MiB in place ({compress}): {read_bytes} bytes, {n_frames} frames decompressed")
    assert (read_bytes <= 3 * MIB, n_frames <= 12) == (True, True)
