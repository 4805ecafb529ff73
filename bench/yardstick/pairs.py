"""A subject and its baseline, run in turns: the median of the pairs' ratios holds when the machine's speed drifts."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

N_PAIRS = 5


@dataclass(slots=True)
class Spent:
    """Seconds of one run: wall, and CPU of this process and the children it waited for."""

    wall_s: float
    cpu_s: float


def cpu_seconds() -> float:
    """Return CPU seconds of this process, all its threads, and its finished children."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def timed(work: Callable[[], Any]) -> tuple[Any, Spent]:
    """Run once; return the answer and what it took."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    answer = work()
    return answer, Spent(time.perf_counter() - wall, cpu_seconds() - cpu)


@dataclass(slots=True)
class Pairs:
    """What the runs took, pair by pair."""

    subject: list[Spent] = field(default_factory=list)
    baseline: list[Spent] = field(default_factory=list)
    limit: list[Spent] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """The subject's speed as a share of the baseline's: the median over the pairs."""
        return statistics.median(b.wall_s / s.wall_s for s, b in zip(self.subject, self.baseline, strict=True))

    @property
    def speed_of_limit(self) -> float:
        """The same of the limit's speed; 0 where none was measured."""
        if not self.limit:
            return 0.0
        return statistics.median(b.wall_s / s.wall_s for s, b in zip(self.subject, self.limit, strict=True))

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the subject, median."""
        return statistics.median(spent.cpu_s for spent in self.subject)

    def add(self, subject: Callable[[], Any], baseline: Callable[[], Any], before: Callable[[], None]) -> Any:
        """Run one pair; return the subject's answer."""
        before()
        _, spent = timed(baseline)
        self.baseline.append(spent)
        before()
        answer, spent = timed(subject)
        self.subject.append(spent)
        return answer


def run_pairs(
    benchmark: BenchmarkFixture,
    subject: Callable[[], Any],
    baseline: Callable[[], Any],
    *,
    before: Callable[[], None],
    n_bytes: int,
    target: float = 0.0,
    limit: Callable[[], Any] | None = None,
) -> Pairs:
    """Time subject and baseline in turns and record speeds, CPU and the ratio; once each when benchmarks are off.

    Parameters
    ----------
    before : brings about the state both start from (cold caches, an absent destination); not timed.
    n_bytes : bytes of the job, for speeds.
    target : the share of the baseline's speed that is wanted; recorded beside the ratio.
    limit : a second baseline that no subject can reach.
    """
    pairs = Pairs()

    def setup() -> None:
        before()
        pairs.baseline.append(timed(baseline)[1])
        before()
        if limit is not None:
            pairs.limit.append(timed(limit)[1])
            before()

    def run() -> Any:
        answer, spent = timed(subject)
        pairs.subject.append(spent)
        return answer

    benchmark.pedantic(run, setup=setup, rounds=N_PAIRS if benchmark.enabled else 1)
    mib = n_bytes / (1 << 20)
    found = {
        "bytes": n_bytes,
        "speed_ratio": round(pairs.speed, 3),
        "target_ratio": round(target, 3),
        "subject_mib_s": round(mib / statistics.median(s.wall_s for s in pairs.subject)),
        "baseline_mib_s": round(mib / statistics.median(s.wall_s for s in pairs.baseline)),
        "cpu_s_per_gib": round(pairs.cpu_s / mib * 1024, 3),
        "baseline_cpu_s_per_gib": round(statistics.median(s.cpu_s for s in pairs.baseline) / mib * 1024, 3),
        "limit_ratio": round(pairs.speed_of_limit, 3),
        "ratios": [round(b.wall_s / s.wall_s, 3) for s, b in zip(pairs.subject, pairs.baseline, strict=True)],
    }
    benchmark.extra_info.update(found)
    print(f"\n{benchmark.name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    return pairs
