"""When a job is due: every so often, or at times of day; how that is followed on clocks of which one may jump.

Waiting is by the monotonic clock. Times of day are looked up anew at every look at the wall's clock: set forward, what
was passed over is due once; set back, what was done is not done again, and nothing waits for the old time to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo
from typing import Final

from blockplane.model.durations import format_duration
from blockplane.server.service.clock import Clock

#: After a failure: so long, and twice as long after each further one, up to what is usual between two runs, or to the
#: first of these where that is longer.
RETRY_S: Final = 30.0
RETRY_MAX_S: Final = 3600.0
WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Every:
    """Every so many seconds."""

    period_s: float

    @property
    def gap_s(self) -> float:
        """The shortest time between two runs."""
        return self.period_s

    def __str__(self) -> str:
        return f"every {format_duration(self.period_s)}"


@dataclass(frozen=True, slots=True)
class At:
    """At times of day, on some weekdays (0 is Monday; all where empty). zone : the machine's where None."""

    times: tuple[time, ...]
    days: tuple[int, ...] = ()
    zone: tzinfo | None = None

    @property
    def gap_s(self) -> float:
        """The shortest time between two runs."""
        seconds = sorted(t.hour * 3600 + t.minute * 60 + t.second for t in self.times)
        gaps = [b - a for a, b in zip(seconds, [*seconds[1:], seconds[0] + _DAY_S], strict=True)]
        return float(min(gaps))

    def next_after(self, wall_s: float) -> float:
        """Return the first moment after one, both in seconds since 1970.

        Notes
        -----
        A time that the day does not have (clocks go forward) is an hour later, one that it has twice is the first.
        """
        day = datetime.fromtimestamp(wall_s, self.zone).date() - timedelta(days=1)
        for _ in range(9):
            if not self.days or day.weekday() in self.days:
                moments = [datetime.combine(day, t, self.zone).timestamp() for t in self.times]
                later = [moment for moment in moments if moment > wall_s]
                if later:
                    return min(later)
            day += timedelta(days=1)
        raise AssertionError("every weekday comes within eight days")

    def __str__(self) -> str:
        times = ", ".join(t.isoformat("minutes" if not t.second else "seconds") for t in self.times)
        days = ", ".join(WEEKDAYS[day] for day in self.days)
        return f"at {times} on {days}" if days else f"at {times} every day"


Rule = Every | At


def _believed(last_wall_s: float, rule: Rule, wall_s: float) -> float:
    """Return when a job last began; where that is after now the clock went back: so that it is due in a day at most."""
    return last_wall_s if last_wall_s <= wall_s else wall_s - max(rule.gap_s - _DAY_S, 0.0)


class Pace:
    """When a job is due next.

    Parameters
    ----------
    last_wall_s : when it last began, by the wall's clock, from before this process; None: not known that it ever did.
    first_retry_s : how long after a first failure. n_failures : how often it failed, up to when it last began.

    Attributes
    ----------
    last_wall_s : the same as far as it is believed: never after now. To be remembered in its place, or each process
    that begins waits anew.
    """

    def __init__(
        self,
        rule: Rule,
        clock: Clock,
        last_wall_s: float | None = None,
        first_retry_s: float = RETRY_S,
        n_failures: int = 0,
    ) -> None:
        self.rule, self._clock, self._first_retry_s = rule, clock, first_retry_s
        self._retry_s: float | None = None
        self.n_failures = n_failures
        wall, now = clock.wall(), clock.monotonic()
        self.last_wall_s = _believed(last_wall_s, rule, wall) if last_wall_s is not None else None
        #: by the monotonic clock, when it last began; None: never, or so it is remembered
        self._begun_s = now - (wall - self.last_wall_s) if self.last_wall_s is not None else None
        self._occurrence = 0.0
        if isinstance(rule, At):
            self._occurrence = rule.next_after(max(self.last_wall_s, 0.0) if self.last_wall_s is not None else wall)
        if n_failures:
            self._retry_after(self._begun_s if self._begun_s is not None else now)

    def due_in(self) -> float:
        """Return in how many seconds the job is due; 0 or less: now."""
        now = self._clock.monotonic()
        if self._retry_s is not None:
            return self._retry_s - now
        if isinstance(self.rule, At):
            return self._at_in(self.rule, now)
        return 0.0 if self._begun_s is None else self._begun_s + self.rule.period_s - now

    def _at_in(self, rule: At, now: float) -> float:
        wall = self._clock.wall()
        if self._occurrence <= wall:
            return 0.0
        # the clock may have been set back; what was done less than half a gap ago is not what comes next
        left_s = 0.0 if self._begun_s is None else max(self._begun_s + rule.gap_s / 2 - now, 0.0)
        self._occurrence = min(self._occurrence, rule.next_after(wall + left_s))
        return self._occurrence - wall

    def begin(self) -> None:
        """Note that the job begins now: what is due next comes later, however much was missed."""
        self._begun_s = self._clock.monotonic()
        self._retry_s = None
        if isinstance(self.rule, At):
            self._occurrence = self.rule.next_after(self._clock.wall())

    def succeed(self) -> None:
        """Note that it was done."""
        self.n_failures, self._retry_s = 0, None

    def end_early(self) -> None:
        """Note that it was ended before its end: it is due at once."""
        self._retry_s = self._clock.monotonic()

    def fail(self) -> None:
        """Note that it failed: it is tried again, later each time."""
        self.n_failures += 1
        self._retry_after(self._clock.monotonic())

    def _retry_after(self, since_s: float) -> None:
        longest = min(max(self.rule.gap_s, self._first_retry_s), RETRY_MAX_S)
        self._retry_s = since_s + min(self._first_retry_s * 2 ** min(self.n_failures - 1, 20), longest)
