"""What most tests of volumes begin with: workers that run where they are asked, a volume in memory, a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blockplane.volume import Volume
from faults.inline import inline_workers
from faults.world import FileClient, geometry_of, make_volume


@pytest.fixture
def inline() -> Iterator[None]:
    """For whole modules: `pytestmark = pytest.mark.usefixtures("inline")`."""
    with inline_workers():
        yield


@pytest.fixture
def volume() -> Volume:
    return make_volume(geometry_of(3, 1, 256))


@pytest.fixture
def client(volume: Volume) -> FileClient:
    return FileClient(volume)
