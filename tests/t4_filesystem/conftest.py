from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from blockplane.filesystem import FileSystem
from blockplane.model import BLOCK_BYTES, NoSpaceError
from blockplane.volume import Volume


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume.create(tmp_path / "vol", disks=3, size="64M") as made:
        yield made


@pytest.fixture
def fs(volume: Volume) -> FileSystem:
    return FileSystem(volume)


@pytest.fixture
def fill_up() -> Callable[[Volume, int], None]:
    """Fills a volume until so many blocks are available, or too few for one more, and none waits to become it."""

    def fill(volume: Volume, n_left: int) -> None:
        with FileSystem(volume).open("/filling", "a", buffering=0) as file, suppress(NoSpaceError):
            while volume.available_blocks > n_left:
                file.write(bytes(BLOCK_BYTES * max(1, (volume.available_blocks - n_left) // 2)))
                volume.commit(force=True)
                volume.commit(force=True)

    return fill
