"""What a service can say of itself at a moment: for metrics, for a view, for whoever asks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockplane.api import Volume
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError
from blockplane.server.service.copies import Copies, Copy
from blockplane.server.service.running import Plan
from blockplane.server.service.served import ServedVolume
from blockplane.volume.mirrorstates import is_own

#: How long to wait for a volume's lock before what was last known is told.
_LOCK_S: Final = 0.2
#: How long to wait for all volumes together.
_WAIT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Space:
    """A volume's space in bytes, and its snapshots by kind; the newest is of those that no mirror made for itself.

    as_of_s : when that was so, seconds since 1970.
    """

    size_bytes: int
    used_bytes: int
    available_bytes: int
    held_bytes: int
    snapshots: dict[str, int]
    newest_snapshot_s: float | None
    as_of_s: float


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job. due_in_s : None while it runs, or its volume is not open. Times in seconds since 1970, None: never.

    n_done, n_failed, moved_bytes, freed_bytes : since the service began.
    """

    kind: str
    name: str
    what: str
    when: str
    is_running: bool
    running_s: float
    due_in_s: float | None
    succeeded_s: float | None
    seconds: float | None
    error: str
    n_done: int
    n_failed: int
    moved_bytes: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A volume.

    problem : why it is not open. verbs : what goes on in it, jobs and verbs of other processes. copies : its mirrors
    and replicas.
    """

    name: str
    path: Path
    is_open: bool
    problem: str
    space: Space | None
    jobs: tuple[JobStatus, ...]
    verbs: tuple[str, ...]
    copies: tuple[Copy, ...] = ()


class Observer:
    """Looks at volumes without waiting for them: what cannot be had soon is told as it was last known."""

    def __init__(self) -> None:
        self._known: dict[Path, Space] = {}
        self._copies = Copies()

    def look(self, volumes: Iterable[ServedVolume], wall_s: float, *, afresh: bool = False) -> list[VolumeStatus]:
        """Return how volumes are. afresh : their copies too, though they were counted of late."""
        volumes, end_s = list(volumes), time.monotonic() + _WAIT_S
        for served in volumes:
            self._copies.begin(served.policy.path, served.volume, afresh=afresh)
        return [self._look(served, wall_s, end_s) for served in volumes]

    def _look(self, served: ServedVolume, wall_s: float, end_s: float) -> VolumeStatus:
        volume, policy = served.volume, served.policy
        jobs = tuple(_job(plan, volume is not None) for plan in list(served.plans.values()))
        space = self._space(volume, policy.path, wall_s, end_s) if volume is not None else None
        verbs = tuple(str(activity) for activity in served.activities.all() if activity.verb != "serve")
        copies = self._copies.of(policy.path, volume, end_s - time.monotonic())
        return VolumeStatus(policy.name, policy.path, volume is not None, served.problem, space, jobs, verbs, copies)

    def _space(self, volume: Volume, path: Path, wall_s: float, end_s: float) -> Space | None:
        if not volume.lock.acquire(timeout=max(min(_LOCK_S, end_s - time.monotonic()), 0.0)):
            return self._known.get(path)
        try:
            if not volume.stopped_at:
                with suppress(BlockplaneError, OSError):  # damage, which `check` tells of
                    self._known[path] = _space_of(volume, wall_s)
        finally:
            volume.lock.release()
        return self._known.get(path)


def _space_of(volume: Volume, wall_s: float) -> Space:
    """Return a volume's space; the caller holds its lock."""
    snapshots = volume.snapshots
    blocks = (volume.n_blocks, volume.used_blocks, volume.coming_blocks, volume.local.root.n_held)
    # made last, whatever the clock said, and not by a mirror for itself
    newest = next((s.created_ns for s in reversed(snapshots) if not is_own(s.name)), None)
    size, used, available, held = (n * BLOCK_BYTES for n in blocks)
    kinds = dict(Counter(s.kind for s in snapshots))
    return Space(size, used, available, held, kinds, newest / 1e9 if newest is not None else None, wall_s)


def _job(plan: Plan, is_open: bool) -> JobStatus:
    run, past = plan.run, plan.past
    is_running = run is not None and not run.is_over
    return JobStatus(
        kind=plan.job.kind,
        name=plan.job.name,
        what=plan.job.describe(),
        when=str(plan.job.due),
        is_running=is_running,
        running_s=run.seconds if run is not None and is_running else 0.0,
        due_in_s=None if is_running or not is_open else max(plan.pace.due_in(), 0.0),
        succeeded_s=past.succeeded_s or None,
        seconds=past.seconds if past.succeeded_s else None,
        error=past.error,
        n_done=plan.n_done,
        n_failed=plan.n_failed,
        moved_bytes=plan.moved_bytes,
        freed_bytes=plan.freed_bytes,
    )
