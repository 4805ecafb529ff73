"""Seeds and depth of all tests.

BLOCKPLANE_SEED repeats a run's random inputs; HYPOTHESIS_PROFILE=deep runs many more examples.
"""

from __future__ import annotations

import os
import signal
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Examples share a machine with other workers: time says nothing about them.
_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=100, **_COMMON)
settings.register_profile("deep", max_examples=5000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("blockplane")
    group.addoption("--deep", action="store_true", help="many more examples: hours instead of minutes")
    group.addoption("--part", default="1/1", metavar="K/N", help="the K-th of N parts of a deep run, from 1")


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: what tests start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Set here, in the controlling process, so that all workers take the same one.
    os.environ.setdefault("BLOCKPLANE_SEED", str(int.from_bytes(os.urandom(4), "little")))


def pytest_report_header() -> str:
    return f"BLOCKPLANE_SEED={os.environ['BLOCKPLANE_SEED']}"


@pytest.fixture
def rng(request: pytest.FixtureRequest, part: tuple[int, int]) -> np.random.Generator:
    """A generator that differs by run, test and part of a deep run, and prints how to have it again."""
    seed = int(os.environ["BLOCKPLANE_SEED"])
    print(f"BLOCKPLANE_SEED={seed}")
    return np.random.default_rng([seed, zlib.crc32(request.node.nodeid.encode()), *part[:1] * (part[0] > 0)])


@pytest.fixture(scope="session")
def is_deep(pytestconfig: pytest.Config) -> bool:
    """Whether --deep was given."""
    return bool(pytestconfig.getoption("--deep"))


@pytest.fixture(scope="session")
def part(pytestconfig: pytest.Config) -> tuple[int, int]:
    """Which part of how many this run is, from 0."""
    number, n_parts = map(int, pytestconfig.getoption("--part").split("/"))
    assert 1 <= number <= n_parts, "--part is K/N, from 1/N to N/N"
    return number - 1, n_parts


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests noted under "summary", whichever worker ran them."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key == "summary" and getattr(report, "when", "") == "call":
                    terminalreporter.write_line(str(value))
