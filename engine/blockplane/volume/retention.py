"""Retention: which snapshots a policy keeps, and why; the others may go.

Of each period (hour, day, ISO week, month, year) the newest snapshot stays, for as many of the newest periods that have
any as the policy says. Rules add up: a snapshot goes only if none keeps it.

Which are newest is asked twice, by what came into the table last and by the times that were recorded, and what either
answer keeps stays: clocks may have been ahead when a snapshot was made, and old ones may arrive last. A period is the
one that was recorded. No other clock corrects it, nor does today's: one that is behind by years would put all that is
there into one period, of which one snapshot stays.

What mirrors make for themselves goes again soon, and takes nobody's place: the others are judged among themselves too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from blockplane.model.errors import RefusedError, UsageError
from blockplane.volume import deleting
from blockplane.volume.codec import KIND_REGULAR, SnapshotRecord, TableEntry
from blockplane.volume.holds import holds_of, is_last_complete, is_rehearsed
from blockplane.volume.mirrorstates import is_own
from blockplane.volume.needed import needed_here
from blockplane.volume.passing import waiting_for

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: As a number of periods: all of them.
ALL: Final = -1

Period = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """How many to keep: the last ones, and the newest of so many hours, days, weeks, months, years; -1 is all.

    within_s : all that are at most so old, counted back from the newest. names : patterns of names that stay.
    only : patterns of the names that are judged at all; others stay and count for nothing.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_s: int = 0
    names: tuple[str, ...] = ()
    only: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A snapshot that was judged. reasons : the rules that keep it; none: it goes."""

    name: str
    created_ns: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What pruning deleted, or would: verdicts newest first, and how many blocks that freed.

    deferred : names of those that are being read, and go when they no longer are; free nothing until then.
    """

    verdicts: tuple[Verdict, ...]
    freed_blocks: int
    is_dry: bool
    deferred: tuple[str, ...] = ()

    @property
    def kept(self) -> list[str]:
        """Names that stay, newest first."""
        return [verdict.name for verdict in self.verdicts if verdict.reasons]

    @property
    def deleted(self) -> list[str]:
        """Names that went, newest first, or are deferred."""
        return [verdict.name for verdict in self.verdicts if not verdict.reasons]


_PERIODS: Final[tuple[tuple[str, Callable[[datetime], Period]], ...]] = (
    ("hourly", lambda at: (at.year, at.month, at.day, at.hour, at.fold)),  # one comes twice a year
    ("daily", lambda at: (at.year, at.month, at.day)),
    ("weekly", lambda at: tuple(at.isocalendar()[:2])),
    ("monthly", lambda at: (at.year, at.month)),
    ("yearly", lambda at: (at.year,)),
)
_RULES: Final = ("last", "within", "name", *(rule for rule, _ in _PERIODS))


def judge(records: Sequence[SnapshotRecord], policy: Policy, zone: tzinfo | None = None) -> list[Verdict]:
    """Return what a policy says of each snapshot it judges, newest first.

    Parameters
    ----------
    records : in the table's order. zone : in which days begin; the machine's where None.

    Raises
    ------
    UsageError : the policy says nothing, or something impossible.
    """
    _check(policy)
    judged = [r for r in records if r.kind == KIND_REGULAR and any(fnmatchcase(r.name, p) for p in policy.only)]
    why: dict[bytes, set[str]] = {record.id: set() for record in judged}
    for among in (judged, [record for record in judged if not is_own(record.name)]):
        came = among[::-1]
        for ordered in (came, sorted(came, key=lambda record: record.created_ns, reverse=True)):
            for record, reasons in zip(ordered, _reasons(ordered, policy, zone), strict=True):
                why[record.id].update(reasons)
    return [Verdict(r.name, r.created_ns, tuple(rule for rule in _RULES if rule in why[r.id])) for r in judged[::-1]]


def _reasons(ordered: Sequence[SnapshotRecord], policy: Policy, zone: tzinfo | None) -> list[list[str]]:
    """Return which rules keep each of some snapshots, newest first."""
    reasons: list[list[str]] = [[] for _ in ordered]
    for at, (record, age_ns) in enumerate(zip(ordered, _ages_ns(ordered), strict=True)):
        if policy.last == ALL or at < policy.last:
            reasons[at].append("last")
        if policy.within_s and age_ns <= policy.within_s * 10**9:
            reasons[at].append("within")
        if any(fnmatchcase(record.name, pattern) for pattern in policy.names):
            reasons[at].append("name")
    times = [datetime.fromtimestamp(record.created_ns // 10**9, zone) for record in ordered]
    for rule, period_of in _PERIODS:
        for at in _newest_of_each([period_of(time) for time in times], getattr(policy, rule)):
            reasons[at].append(rule)
    return reasons


def _ages_ns(newest_first: Sequence[SnapshotRecord]) -> list[int]:
    """Return how much older than the newest each is.

    One whose clock was ahead of the newest's is as old as the next one of its branch, where CPs prove that to be newer;
    else its age is negative: it may be what arrived last that is old.
    """
    ages: list[int] = []
    after: dict[bytes, tuple[int, int]] = {}
    for record in newest_first:
        age_ns = newest_first[0].created_ns - record.created_ns
        cp, after_ns = after.get(record.branch_id, (-1, 0))
        if age_ns < 0 and cp >= record.cp:
            age_ns = after_ns
        after[record.branch_id] = (record.cp, age_ns)
        ages.append(age_ns)
    return ages


def _newest_of_each(periods: Sequence[Period], n_periods: int) -> list[int]:
    """Return which snapshots, newest first, are the first of their period, for so many periods."""
    first: dict[Period, int] = {}
    for at, period in enumerate(periods):
        first.setdefault(period, at)
    found = list(first.values())
    return found if n_periods == ALL else found[:n_periods]


def _check(policy: Policy) -> None:
    counts = {rule: getattr(policy, rule) for rule in ("last", *(rule for rule, _ in _PERIODS))}
    for rule, n in counts.items():
        if n < ALL:
            raise UsageError(f"keep {rule} {n}", "say how many to keep, or -1 for all")
    if policy.within_s < 0:
        raise UsageError(f"keep what is within {policy.within_s} s", "say a time that is not negative")
    if not (any(counts.values()) or policy.within_s or policy.names):
        raise UsageError("the policy does not say what to keep", "say for example --keep-daily 7 --keep-weekly 4")


def prune(
    volume: LiveVolume, policy: Policy, *, dry_run: bool = False, zone: tzinfo | None = None, defer: bool = False
) -> PruneReport:
    """Delete, in one commit, the snapshots that a policy judges and does not keep, and that nobody needs.

    Who reads or holds them may, pointers, known destinations and replicas, receives that were interrupted.

    Parameters
    ----------
    defer : one that is being read and would go else goes when it no longer is.

    Raises
    ------
    RefusedError : the policy keeps none of those it judges; none was deleted.
    """
    with volume.lock:
        needed = needed_here(volume)
        judged = judge(_records(volume), policy, zone)
        entries = {entry.record.name: entry for entry in volume.local.entries()}
        verdicts = [_unless_needed(volume, verdict, entries, needed, defer) for verdict in judged]
        gone = [verdict.name for verdict in verdicts if not verdict.reasons]
        if verdicts and len(gone) == len(verdicts):
            raise RefusedError(
                f"the policy keeps none of {len(gone)} snapshots",
                "keep one at least; `snapshot delete` deletes by name",
            )
        if dry_run:
            at_once = deleting.plan_delete(volume, gone, defer)
            n_freed = deleting.freed_by(volume, at_once) if at_once else 0
            waiting = set(gone).difference(at_once)
        else:
            n_freed = deleting.delete(volume, gone, defer) if gone else 0
            waiting = {record.name for record in _records(volume) if record.is_deleting}
        return PruneReport(tuple(verdicts), n_freed, dry_run, tuple(name for name in gone if name in waiting))


def _records(volume: LiveVolume) -> list[SnapshotRecord]:
    return [entry.record for entry in volume.local.entries()]


def _unless_needed(
    volume: LiveVolume, verdict: Verdict, entries: dict[str, TableEntry], needed: dict[bytes, str], defer: bool
) -> Verdict:
    """Keep what would go where somebody reads or holds it, or a transfer that is known of, a replica or a pointer needs
    it.
    """
    if verdict.reasons:
        return verdict
    entry = entries[verdict.name]
    if is_last_complete(volume, entry) or is_rehearsed(volume, entry):
        return replace(verdict, reasons=("mirror",))
    reasons = ["being read"] if volume.is_pinned(entry.record.id) and not defer else []
    reasons += ["held"] if holds_of(volume, entry.record.id) else []
    reasons += [needed[entry.record.id]] if entry.record.id in needed else []
    if behind := waiting_for(volume, entry):
        reasons.append(f"is a master that {', '.join(behind)} has not passed")
    return replace(verdict, reasons=tuple(reasons))
