"""The kinds of jobs: what is done to a volume when it is due. Each is a small object; `KINDS` lists them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol

from blockplane.api import Volume
from blockplane.api import check as check_volume
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, UsageError, VolumeDamagedError
from blockplane.model.progress import ProgressEvent
from blockplane.server.activity import Kind
from blockplane.server.network.throttle import Throttle
from blockplane.server.service.reading import ALL_NAMES, Table
from blockplane.server.service.rules import rule_of
from blockplane.server.service.timetable import RETRY_S, Rule
from blockplane.volume.naming import check_name
from blockplane.volume.retention import Policy as Retention

_MAX_SUFFIX: Final = 1000


Near = Callable[[Path, Kind], AbstractContextManager[Volume]]


def open_near(path: Path, kind: Kind) -> AbstractContextManager[Volume]:
    """Open a volume that the service does not have."""
    del kind
    return Volume.open(path, verb="serve")


class StoppedError(BaseException):
    """Ends a job before its end: the service stops, or the volume is to be closed."""


class PartlyFailedError(BlockplaneError):
    """Part of what a job had to do failed. moved_bytes : of what did not, as in Outcome."""

    def __init__(self, message: str, hint: str, moved_bytes: int) -> None:
        super().__init__(message, hint)
        self.moved_bytes = moved_bytes


@dataclass(frozen=True, slots=True)
class Work:
    """What a job is given for one run.

    volume : open for writing. wall_s : now, seconds since 1970. step : to be called at every step of what lasts: shows
    that the job is alive, and raises StoppedError when it is to end. near : gives another volume of this machine, open
    for writing, for the length of a `with` in which something of a kind is done to it: as the service has it, or from
    its disks. require_wanted : as step, and shows no life: for who watches something that does. throttle : what
    data to and from peers takes from.
    """

    volume: Volume
    wall_s: float
    step: Callable[[], None]
    near: Near = open_near
    require_wanted: Callable[[], None] = lambda: None
    throttle: Throttle = field(default_factory=Throttle)

    def progress(self, event: ProgressEvent) -> None:
        """Take what a long call tells of itself."""
        del event
        self.step()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did, in words and in figures. moved_bytes : brought elsewhere or here; freed_bytes : given back.

    is_idle : there was nothing to do, which is worth no line in the log every few seconds. is_odd : it went well, and
    somebody should look at it.
    """

    text: str
    moved_bytes: int = 0
    freed_bytes: int = 0
    is_idle: bool = False
    is_odd: bool = False


class Job(Protocol):
    """Something to be done to a volume when it is due. Equal jobs do the same: a reload leaves them alone.

    Attributes
    ----------
    kind : the word of the policy. does : what may not go on beside it. name : unique among the volume's jobs of a kind.
    due : when. retry_s : how long after a first failure it is tried again.
    """

    kind: ClassVar[str]
    does: ClassVar[Kind]
    retry_s: ClassVar[float]

    @property
    def name(self) -> str:
        """See the class."""

    @property
    def due(self) -> Rule:
        """See the class."""

    def describe(self) -> str:
        """Return in words what is done, without when."""

    def run(self, work: Work) -> Outcome:
        """Do it; what it did is durable on return. Called in a thread of its own, never twice at once."""


@dataclass(frozen=True, slots=True)
class SnapshotJob:
    """Makes snapshots.

    pattern : of their names, as `strftime` has it, local time. mark : keep marks from each on. master : have replicas
    synchronise to each.
    """

    kind: ClassVar[str] = "snapshot"
    does: ClassVar[Kind] = Kind.SNAPSHOTS
    retry_s: ClassVar[float] = RETRY_S

    name: str
    due: Rule
    pattern: str
    mark: bool = False
    master: bool = False

    def describe(self) -> str:
        """See Job."""
        marks, replicas = ", with marks" if self.mark else "", ", for replicas" if self.master else ""
        return f"makes a snapshot named as {self.pattern}{marks}{replicas}"

    def run(self, work: Work) -> Outcome:
        """See Job."""
        made = work.volume.snapshot(self._name(work), self.mark)
        if self.master:
            work.volume.make_master(made.name)
        return Outcome(f"made {made.name}, {made.n_blocks} blocks")

    def _name(self, work: Work) -> str:
        """Return a name that is free: the clock may have been set back, or have an hour twice."""
        plain = snapshot_name(self.pattern, work.wall_s)
        taken = {snapshot.name for snapshot in work.volume.snapshots}
        names = (plain, *(f"{plain}.{n}" for n in range(2, _MAX_SUFFIX)))
        return next((name for name in names if name not in taken), plain)


def snapshot_name(pattern: str, wall_s: float) -> str:
    """Return a snapshot's name for a moment; UsageError: the pattern makes none."""
    name = time.strftime(pattern, time.localtime(wall_s))
    check_name(name)
    return name


@dataclass(frozen=True, slots=True)
class PruneJob:
    """Deletes the snapshots that a policy does not keep. defer : what is being read goes when it no longer is."""

    kind: ClassVar[str] = "prune"
    does: ClassVar[Kind] = Kind.SNAPSHOTS
    retry_s: ClassVar[float] = RETRY_S

    name: str
    due: Rule
    keep: Retention
    defer: bool = True

    def describe(self) -> str:
        """See Job."""
        rules = [f"{word} {n if n >= 0 else 'all'}" for word in _COUNTS if (n := getattr(self.keep, word))]
        rules += [f"all within {self.keep.within_s} s of the newest"] if self.keep.within_s else []
        rules += [f"those named {' or '.join(self.keep.names)}"] if self.keep.names else []
        which = "" if self.keep.only == ("*",) else f" named {' or '.join(self.keep.only)}"
        return f"deletes snapshots{which} but keeps {', '.join(rules)}"

    def run(self, work: Work) -> Outcome:
        """See Job."""
        work.volume.expire_replicas()  # first: what only those needed that are lost may go
        report = work.volume.prune(self.keep, defer=self.defer)
        n_bytes = report.freed_blocks * BLOCK_BYTES
        return Outcome(f"deleted {len(report.deleted)}, kept {len(report.kept)}, freed {n_bytes} bytes", 0, n_bytes)


@dataclass(frozen=True, slots=True)
class CheckJob:
    """Checks the whole volume; damage that it finds is a failure."""

    kind: ClassVar[str] = "check"
    does: ClassVar[Kind] = Kind.CHECKS
    retry_s: ClassVar[float] = RETRY_S

    name: str
    due: Rule
    parity: bool = True

    def describe(self) -> str:
        """See Job."""
        return f"checks every block, plane and file{'' if self.parity else ', but no parity'}"

    def run(self, work: Work) -> Outcome:
        """See Job."""
        report = check_volume(work.volume, parity=self.parity, step=work.step)
        if not report.ok:
            raise VolumeDamagedError(
                f"{len(report.problems)} problems, the first: {report.problems[0]}", "run `blockplane check`"
            )
        return Outcome(f"found nothing wrong in {report.n_states} states, {report.n_blocks} blocks")


# --- out of a policy -------------------------------------------------------------------------------------------------

_NO_NAMES: Final[tuple[str, ...]] = ()
_COUNTS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _snapshot_of(name: str, table: Table) -> SnapshotJob:
    rule = rule_of(table)
    pattern = table.take("name", table.text, f"{name}-%Y%m%d-%H%M%S")
    mark, master = (table.take(word, table.truth, False) for word in ("mark", "master"))
    table.require("name", lambda: snapshot_name(pattern, 0.0))
    return SnapshotJob(name, rule, pattern, mark, master)


def _prune_of(name: str, table: Table) -> PruneJob:
    rule = rule_of(table)
    counts = {word: table.take(f"keep-{word}", table.whole, 0) for word in _COUNTS}
    within_s = table.take("keep-within", table.duration, 0.0)
    names = table.take("keep-name", table.texts, _NO_NAMES)
    only = table.take("only", table.texts, ALL_NAMES)
    keep = Retention(**counts, within_s=int(within_s), names=names, only=only)
    table.require("", lambda: _require_keeping(keep))
    return PruneJob(name, rule, keep, table.take("defer", table.truth, True))


def _require_keeping(keep: Retention) -> None:
    if not (any(getattr(keep, word) for word in _COUNTS) or keep.within_s or keep.names):
        raise UsageError("it does not say what to keep", "say for example keep-daily = 7")


def _check_of(name: str, table: Table) -> CheckJob:
    return CheckJob(name, rule_of(table), table.take("parity", table.truth, True))


#: The kinds of jobs that a volume has by itself, by their word in policies.
KINDS: Final[dict[str, Callable[[str, Table], Job]]] = {
    SnapshotJob.kind: _snapshot_of,
    PruneJob.kind: _prune_of,
    CheckJob.kind: _check_of,
}
