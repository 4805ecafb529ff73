from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockplane.filesystem import FileSystem
from blockplane.volume import Volume


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "vol", disks=3, size="64M") as made:
        yield made


@pytest.fixture
def fs(volume: Volume) -> FileSystem:
    return FileSystem(volume)
