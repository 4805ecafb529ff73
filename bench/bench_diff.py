"""The names of what changed between two snapshots of the tree, beside a walk of both that asks every file's times."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold
from yardstick.pairs import run_pairs
from yardstick.tree import TreeSize
from yardstick.world import Source

from blockplane.filesystem import Difference, FileSystem, compare


def listing(source: Source, name: str) -> dict[str, tuple[int, int]]:
    fs = FileSystem(source.volume.get_snapshot(name))
    found = {}
    for folder, _, names in fs.walk("/tree"):
        for each in names:
            status = fs.lstat(f"{folder}/{each}")
            found[f"{folder}/{each}"] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.parametrize("temperature", ["cold", "warm"])
def test_names_of_what_changed(benchmark: BenchmarkFixture, source: Source, size: TreeSize, temperature: str) -> None:
    benchmark.group = f"names of what changed in {size.n_files} files, {temperature}"

    def before() -> None:
        for snapshot in source.volume.snapshots:
            source.volume.forget_state(snapshot.record.id)
        if temperature == "cold":
            make_cold([source.path])

    def run() -> Difference:
        return compare(source.volume.state("june1"), source.volume.state("june2"))

    def walk() -> None:
        one, two = listing(source, "june1"), listing(source, "june2")
        changed = [path for path in one.keys() & two.keys() if one[path] != two[path]]
        assert len(changed) == size.n_files // 50 + 1

    run_pairs(benchmark, run, walk, before=before, n_bytes=size.n_files * 512, target=10.0)
    count = size.n_files // 50
    found = run()
    assert found.counts == {"added": count + 1, "changed": count + 1, "deleted": count, "renamed": count}
    benchmark.extra_info |= {"n_reads": found.n_reads, "n_changes": len(found.changes)}
