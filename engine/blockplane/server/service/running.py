"""A job of a volume: when it is due, its run in a thread of its own, what became of it."""

from __future__ import annotations

import math
import os
import threading
import traceback
from collections.abc import Callable
from typing import Final

from blockplane.api import Volume
from blockplane.model.errors import NO_THREAD, BlockplaneError, is_lack_of_threads
from blockplane.server.activity import Activities
from blockplane.server.network.throttle import Throttle
from blockplane.server.service.clock import Clock
from blockplane.server.service.jobs import Job, Near, Outcome, StoppedError, Work
from blockplane.server.service.log import Log
from blockplane.server.service.past import Past
from blockplane.server.service.timetable import Pace
from blockplane.volume.pins import reading_for

#: How long to wait for the volume's lock between two signs of life.
_LOCK_STEP_S: Final = 0.5


class Run:
    """One run of a job: a thread that has begun, or a failure where there was no room for one.

    Attributes
    ----------
    outcome : what it did; None: it failed, was ended early, or is not over. error : why it failed, "" otherwise.
    hint : what to do about that, where that is known. moved_bytes : by one that failed in part.
    beat_s : when it last showed a sign of life, by the monotonic clock.
    """

    def __init__(
        self,
        job: Job,
        volume: Volume,
        activities: Activities,
        clock: Clock,
        ended: Callable[[], None],
        near: Near,
        throttle: Throttle,
    ) -> None:
        self.job = job
        self.outcome: Outcome | None = None
        self.error, self.error_kind, self.hint = "", "", ""
        self.moved_bytes = 0
        self.begun_wall_s, self.begun_s = clock.wall(), clock.monotonic()
        self.ended_s = self.beat_s = self.begun_s
        self.is_over = False
        self._volume, self._activities, self._clock, self._ended = volume, activities, clock, ended
        self._near, self._throttle = near, throttle
        self._is_stopped = threading.Event()
        self.thread = threading.Thread(target=self._go, name=f"blockplane {job.kind} {job.name}", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:  # there are as many as the system allows: it is tried again as after any failure
            self.error, self.error_kind = NO_THREAD, "threads"
            self.is_over = True
            ended()

    def wait(self) -> None:
        """Wait until its thread has ended."""
        if self.thread.ident is not None:
            self.thread.join()

    def stop(self) -> None:
        """End it at its next step."""
        self._is_stopped.set()

    @property
    def seconds(self) -> float:
        """How long it took, or takes."""
        return (self.ended_s if self.is_over else self._clock.monotonic()) - self.begun_s

    def _step(self) -> None:
        self.beat_s = self._clock.monotonic()
        self._require_wanted()

    def _require_wanted(self) -> None:
        if self._is_stopped.is_set():
            raise StoppedError

    def _await_lock(self) -> None:
        """Wait until nobody does long work on the volume with its lock, a check of somebody else's, say."""
        while not self._volume.lock.acquire(timeout=_LOCK_STEP_S):
            self._step()
        self._volume.lock.release()
        self._step()

    def _go(self) -> None:
        verb = f"{self.job.kind} {self.job.name}"
        reading_for.set((verb, os.getpid()))
        try:
            with self._activities.going_on(self.job.does, verb, os.getpid(), math.inf, self._step):
                self._await_lock()
                work = Work(
                    self._volume, self.begun_wall_s, self._step, self._near, self._require_wanted, self._throttle
                )
                self.outcome = self.job.run(work)
        except StoppedError:
            pass
        except (BlockplaneError, OSError, MemoryError) as error:
            self.error, self.error_kind = str(error) or type(error).__name__, getattr(error, "kind", "os")
            self.hint, self.moved_bytes = getattr(error, "hint", ""), getattr(error, "moved_bytes", 0)
        except Exception as error:  # noqa: BLE001 - one kind of job must not end the service for all others
            self.error, self.error_kind = f"internal error: {traceback.format_exc()}", "internal"
            if is_lack_of_threads(error):
                self.error, self.error_kind = NO_THREAD, "threads"
        finally:
            self.ended_s = self._clock.monotonic()
            self.is_over = True
            self._ended()


def pace_of(job: Job, clock: Clock, past: Past, n_failures: int = 0) -> Pace:
    """Return the pace of a job with a past. n_failures : how often it failed, where more is known than that it did."""
    return Pace(job.due, clock, past.begun_s or None, job.retry_s, n_failures or bool(past.error))


class Plan:
    """A job with its pace, its past and its totals. Used by the service's own thread alone.

    Attributes
    ----------
    run : the one under way; None: none is. n_done, n_failed, moved_bytes, freed_bytes : since the service began.
    """

    def __init__(self, job: Job, clock: Clock, past: Past) -> None:
        self.job, self.past = job, past
        self._clock = clock
        self.pace = pace_of(job, clock, past)
        past.begun_s = self.pace.last_wall_s or 0.0
        self.run: Run | None = None
        self._begun_before_s = past.begun_s
        self.n_done = self.n_failed = self.moved_bytes = self.freed_bytes = 0

    def change(self, job: Job) -> None:
        """Go on with a job that a new policy has in its place; its past counts."""
        if job.due != self.job.due:
            self.pace = pace_of(job, self._clock, self.past, self.pace.n_failures)
        self.job = job

    def begin(
        self, volume: Volume, activities: Activities, ended: Callable[[], None], near: Near, throttle: Throttle
    ) -> None:
        """Begin a run."""
        assert self.run is None
        self.pace.begin()
        self.run = Run(self.job, volume, activities, self._clock, ended, near, throttle)
        self._begun_before_s, self.past.begun_s = self.past.begun_s, self.run.begun_wall_s

    def settle(self, log: Log, name: str) -> bool:
        """Take up what a run that is over did; return whether there was one."""
        run = self.run
        if run is None or not run.is_over:
            return False
        run.wait()
        self.run = None
        about = {"volume": name, "kind": run.job.kind, "job": run.job.name, "seconds": round(run.seconds, 3)}
        if run.outcome is not None:
            self._note_done(run, run.outcome)
            tell = log.warning if run.outcome.is_odd else log.debug if run.outcome.is_idle else log.info
            tell("job done", run.outcome.text, **about)
        elif run.error:
            self.pace.fail()
            self.n_failed += 1
            self.moved_bytes += run.moved_bytes
            self.past.error = run.error[:1000]
            text = f"{run.error} ({run.hint})" if run.hint else run.error
            log.error("job failed", text, **about, error=run.error_kind)
        else:
            self.pace.end_early()
            self.past.begun_s = self._begun_before_s  # so that whoever serves the volume next makes up for it
            log.info("job ended early", "it is due again when the volume is next open", **about)
        return True

    def _note_done(self, run: Run, outcome: Outcome) -> None:
        self.pace.succeed()
        self.n_done += 1
        self.moved_bytes += outcome.moved_bytes
        self.freed_bytes += outcome.freed_bytes
        self.past.succeeded_s = run.begun_wall_s + run.seconds
        self.past.seconds, self.past.error = run.seconds, ""
