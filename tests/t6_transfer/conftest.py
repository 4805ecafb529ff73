"""What tests of mirrors share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.mirrorworld import World


@pytest.fixture
def world(tmp_path: Path):
    """A source, and mirrors as they are added, all open in this process."""
    made = World(tmp_path)
    yield made
    made.close()
