"""One world for all benchmarks of a run: the tree on the host, and a volume that holds it in two snapshots."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # yardstick: shared by the benchmarks, no part of the package

from yardstick.tree import TreeSize, chosen_size, make_tree
from yardstick.world import Source, make_source


@pytest.fixture(scope="session")
def size() -> TreeSize:
    return chosen_size()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="session")
def tree(folder: Path, size: TreeSize) -> Path:
    root = folder / "tree"
    root.mkdir()
    make_tree(root, size)
    return root


@pytest.fixture(scope="session")
def source(folder: Path, tree: Path, size: TreeSize) -> Iterator[Source]:
    made = make_source(folder / "source", tree, size)
    with made.volume:
        yield made
