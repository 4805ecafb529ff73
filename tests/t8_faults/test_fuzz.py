"""F16, F17: the fuzz targets, over seeds and mutants of them; in a deep run led by coverage, a million executions."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from faults.inline import inline_workers
from fuzzing.mutators import Hand, plain_havoc
from fuzzing.targets import TARGETS

#: Of a deep run's executions, how many an ordinary run makes: it shows that targets and mutators work.
CI_SHARE = 800
#: A target that takes longer for its part hangs.
HOURS_S = 4 * 3600


@pytest.fixture
def _inline() -> Iterator[None]:
    with inline_workers():
        yield


@pytest.mark.usefixtures("_inline")
@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_mutants(name: str, rng: np.random.Generator) -> None:
    target, draw = TARGETS[name], random.Random(int(rng.integers(1 << 62)))
    seeds, hand = list(target.seeds()), Hand(draw, plain_havoc(draw))
    n_refused = n_taken = n_changed = 0
    for number in range(len(seeds) + target.runs // CI_SHARE):
        seed = seeds[number] if number < len(seeds) else draw.choice(seeds)
        data = seed if number < len(seeds) else target.mutate(seed, target.most_bytes, hand)
        n_changed += data != seed
        refusal = target.refusal(data)
        n_refused, n_taken = n_refused + (refusal is not None), n_taken + (refusal is None)
    assert n_taken >= len(seeds) // 2
    assert n_changed > target.runs // CI_SHARE // 2
    assert n_refused > 0 or name == "files"  # which says what it thinks of a stream that is whole, and takes it


def share_of(total: int, part: tuple[int, int]) -> int:
    number, n_parts = part
    return (number + 1) * total // n_parts - number * total // n_parts


@pytest.mark.parametrize("name", TARGETS)
def test_led_by_coverage(name: str, is_deep: bool, part: tuple[int, int], tmp_path: Path, record_property) -> None:
    if not is_deep:
        pytest.skip("only the deep run fuzzes")
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    runs, seed = share_of(TARGETS[name].runs, part), int(os.environ["BLOCKPLANE_SEED"]) % (1 << 31) + part[0] + 1
    done = subprocess.run(
        [sys.executable, "-m", "fuzzing", name, f"--runs={runs}", f"--seed={seed}", f"--findings={tmp_path}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True, text=True, timeout=HOURS_S, check=False, errors="replace",
    )  # fmt: skip
    counted = re.search(r"stat::number_of_executed_units: +(\d+)", done.stderr)
    n_done, findings = int(counted[1]) if counted else 0, sorted(tmp_path.glob("finding-*"))
    record_property("summary", f"fuzzed {name}: {n_done} executions, {len(findings)} findings")
    assert (done.returncode, findings) == (0, []), f"BLOCKPLANE_SEED gave {seed}\n{done.stderr[-6000:]}"
    assert n_done >= runs
