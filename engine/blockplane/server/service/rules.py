"""When something is due, as policies say it: `every = "1h"`, or `at = ["03:00"]` with or without `days`."""

from __future__ import annotations

import datetime
from typing import Any, Final

from blockplane.model.errors import UsageError
from blockplane.server.service.reading import Table
from blockplane.server.service.timetable import WEEKDAYS, At, Every, Rule

#: Less is no schedule, but a loop.
LEAST_S: Final = 1.0
_MOST_S: Final = 366 * 86_400.0
#: Where a rule is wrong something has to stand; the policy is not followed.
ALL_DAYS: Final[tuple[int, ...]] = ()
_NONE: Final = Every(3600.0)


def rule_of(table: Table) -> Rule:
    """Return when a job's table says that it is due; what is wrong with it is noted."""
    has_every, has_at, has_days = table.has("every"), table.has("at"), table.has("days")
    if has_every == has_at:
        table.add("say either every or at", 'every = "1h", or at = ["03:00"]')
        return _NONE
    if has_every:
        if has_days:
            table.add("days go with at", 'at = ["03:00"]', "days")
        return Every(table.take("every", period, _NONE.period_s))
    days = table.take("days", _days, ALL_DAYS)
    return table.take("at", lambda value: At(_times(value), days), None) or _NONE


def period(value: Any) -> float:
    """Return a time between two runs."""
    seconds = Table.duration(value)
    if not LEAST_S <= seconds <= _MOST_S:
        raise UsageError(f"{value!r} is too short or too long", "from 1s to 366d")
    return seconds


def _times(value: Any) -> tuple[datetime.time, ...]:
    texts = Table.texts(value)
    if not texts:
        raise UsageError("no time is given", 'at = ["03:00"]')
    found = set()
    for text in texts:
        try:
            moment = datetime.time.fromisoformat(text)
        except ValueError:
            moment = None
        if moment is None or ":" not in text or moment.tzinfo is not None or moment.microsecond:
            raise UsageError(f"{text[:40]!r} is no time of day", "write 03:00 or 18:30:15") from None
        found.add(moment)
    return tuple(sorted(found))


def _days(value: Any) -> tuple[int, ...]:
    day = Table.one_of(*WEEKDAYS)
    found = {WEEKDAYS.index(day(text)) for text in Table.texts(value)}
    if not found:
        raise UsageError("no day is given", 'days = ["sat", "sun"]; leave it out for every day')
    return tuple(sorted(found))
