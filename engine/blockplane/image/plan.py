"""Level plans: which image to take on each day so that every day can be restored from few streams.

A level-0 image is full; the base of a level-n image is the newest earlier day of a lower level. A scheme is a sequence
of levels: of a Tower of Hanoi, of grandfathers, fathers and sons, or written out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from blockplane.image.expression import Expression, Name, Sign, chain, is_name
from blockplane.model.errors import UsageError

#: Longer plans are refused: nobody reads them, and their chains grow with the square.
MAX_DAYS: Final = 2_000
MAX_LEVELS: Final = 32

Levels = Iterator[int]


@dataclass(frozen=True, slots=True)
class Backup:
    """One day of a plan.

    level : 0 for a full image. expression : what to send. base : the day it is an increment to.
    chain : the days whose streams restore this one, in the order in which they are received; this one is the last.
    keep_snapshot_until : the last day whose image names this one's snapshot; until that is sent the snapshot stays.
    keep_stream_until : the last day that is restored through this one's stream.
    """

    name: str
    level: int
    expression: str
    base: str | None
    chain: tuple[str, ...]
    keep_snapshot_until: str
    keep_stream_until: str


def plan_levels(
    names: Sequence[str], scheme: str, *, carry: bool = False, full_every: int | None = None
) -> list[Backup]:
    """Plan a backup for each day.

    Parameters
    ----------
    names : the days' snapshots, older first.
    scheme : `hanoi` or `hanoi:LEVELS`; `gfs` or `gfs:WEEK:MONTH`, in days; `levels:0,2,1,...`, which begins anew at its
        end; `full`; `cumulative` (each onto the last full one); `chain` (each onto the one before).
    carry : each image carries every snapshot since its base along, so that these arrive too: `june5 + june4 - june3`.
    full_every : a full image every so many days, with which the scheme begins anew.

    Raises
    ------
    UsageError : there is no such scheme, or a day has no name, or one that another has.
    """
    _check_names(names)
    levels = list(islice(_levels(scheme, full_every), len(names)))
    bases = _bases(levels)
    chains = [_chain(bases, day) for day in range(len(names))]
    carried = [range(base + 1, day) if carry and base is not None else range(0) for day, base in enumerate(bases)]
    used = _last_uses([(*carried[day], *chains[day][-2:]) for day in range(len(names))])
    through = _last_uses(chains)
    return [
        Backup(
            names[day],
            levels[day],
            str(_expression(names, day, carried[day], base)),
            names[base] if base is not None else None,
            tuple(names[i] for i in chains[day]),
            names[used[day]],
            names[through[day]],
        )
        for day, base in enumerate(bases)
    ]


def _last_uses(used: Sequence[Sequence[int]]) -> list[int]:
    """Return for each day the last one that uses it, given what each uses."""
    last = list(range(len(used)))
    for day, days in enumerate(used):
        for i in days:
            last[i] = day
    return last


def _expression(names: Sequence[str], day: int, since: Sequence[int], base: int | None) -> Expression:
    terms: list[tuple[Sign, Expression]] = [("+", Name(names[i])) for i in (day, *reversed(since))]
    return chain([*terms, ("-", Name(names[base]))] if base is not None else terms)


def _check_names(names: Sequence[str]) -> None:
    if not 0 < len(names) <= MAX_DAYS:
        raise UsageError(f"a plan of {len(names)} days", f"plan 1 to {MAX_DAYS:,} days")
    for name in names:
        if not is_name(name):
            raise UsageError(f"{name!r} cannot name a snapshot", "names hold letters, digits and _ . : -")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UsageError(f"{twice} is in the plan twice", "name each day once, older first")


def _bases(levels: Sequence[int]) -> list[int | None]:
    """Return for each day the newest earlier one of a lower level."""
    bases: list[int | None] = []
    open_days: list[int] = []  # of ascending levels: what a later day may build on
    for day, level in enumerate(levels):
        while open_days and levels[open_days[-1]] >= level:
            open_days.pop()
        if level and not open_days:
            raise UsageError(f"day {day + 1} has level {level} and no day before it a lower one", "begin with level 0")
        bases.append(open_days[-1] if level else None)
        open_days.append(day)
    return bases


def _chain(bases: Sequence[int | None], day: int) -> list[int]:
    found = [day]
    while (base := bases[found[-1]]) is not None:
        found.append(base)
    return found[::-1]


# --- schemes ---------------------------------------------------------------------------------------------------------


def _levels(scheme: str, full_every: int | None) -> Levels:
    """Yield the levels of days, without end."""
    name, *numbers = re.split(r"[:,]", scheme)
    if name not in _SCHEMES or not all(re.fullmatch(r"[0-9]{1,5}", number) for number in numbers):
        raise UsageError(f"there is no scheme {scheme!r}", f"take one of {', '.join(_USAGE)}")
    make = _SCHEMES[name]([int(number) for number in numbers])
    if full_every is None:
        yield from make()
        return
    if full_every < 1:
        raise UsageError(f"a full image every {full_every} days", "say 1 or more")
    while True:
        yield from islice(make(), full_every)


def _hanoi(numbers: list[int]) -> Callable[[], Levels]:
    """Return the Tower of Hanoi: on every second day the highest level, on every fourth the one below, ..."""
    [n_levels] = _numbers(numbers, [4], "hanoi:LEVELS")
    if not 1 <= n_levels <= MAX_LEVELS:
        raise UsageError(f"a Tower of Hanoi of {n_levels} levels", f"take 1 to {MAX_LEVELS}")

    def levels() -> Levels:
        yield 0
        day = 1
        while True:
            disc = (day & -day).bit_length() - 1  # which disc moves on this day: how often 2 divides it
            yield max(n_levels - disc, 1)
            day += 1

    return levels


def _gfs(numbers: list[int]) -> Callable[[], Levels]:
    """Return grandfather, father, son: full each month, level 1 each week, level 2 on the other days."""
    week, month = _numbers(numbers, [7, 28], "gfs:WEEK:MONTH")
    if not 1 <= week <= month:
        raise UsageError(f"a week of {week} days in a month of {month}", "write gfs:WEEK:MONTH, for example gfs:7:28")

    def levels() -> Levels:
        day = 0
        while True:
            yield 0 if day % month == 0 else 1 if day % month % week == 0 else 2
            day += 1

    return levels


def _written_out(numbers: list[int]) -> Callable[[], Levels]:
    if not numbers or numbers[0] != 0:
        raise UsageError("the first level is 0, a full image", "write levels:0,2,1,2 or the like")

    def levels() -> Levels:
        while True:
            yield from numbers

    return levels


def _cumulative(numbers: list[int]) -> Callable[[], Levels]:
    _numbers(numbers, [], "cumulative")
    return lambda: (min(day, 1) for day in range(MAX_DAYS))


def _each_onto_the_last(numbers: list[int]) -> Callable[[], Levels]:
    _numbers(numbers, [], "chain")
    return lambda: iter(range(MAX_DAYS))


def _full(numbers: list[int]) -> Callable[[], Levels]:
    _numbers(numbers, [], "full")
    return lambda: (0 for _ in range(MAX_DAYS))


def _numbers(given: list[int], default: list[int], usage: str) -> list[int]:
    if given and len(given) != len(default):
        raise UsageError(f"{len(given)} numbers for a scheme that takes {len(default)}", f"write {usage}")
    return given or default


_SCHEMES: Final[dict[str, Callable[[list[int]], Callable[[], Levels]]]] = {
    "hanoi": _hanoi,
    "gfs": _gfs,
    "levels": _written_out,
    "cumulative": _cumulative,
    "chain": _each_onto_the_last,
    "full": _full,
}
_USAGE: Final = ("hanoi[:LEVELS]", "gfs[:WEEK:MONTH]", "levels:0,2,1,...", "cumulative", "chain", "full")
