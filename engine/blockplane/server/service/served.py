"""A volume that the service has: opened by a thread of its own, tried again where that fails, and given up in order."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

from blockplane.api import Volume
from blockplane.model.errors import NO_THREAD, BlockplaneError, BusyError, RefusedError, is_lack_of_threads
from blockplane.server.activity import Activities, Kind, let_written
from blockplane.server.network.serving import Transfer
from blockplane.server.network.throttle import Throttle
from blockplane.server.service.clock import Clock
from blockplane.server.service.jobs import Near, open_near
from blockplane.server.service.log import Log
from blockplane.server.service.past import Past, read_past, write_past
from blockplane.server.service.policy import VolumePolicy
from blockplane.server.service.running import Plan, Run

#: A volume that cannot be opened is tried again after so long, then twice as long, and so on up to the other.
FIRST_AGAIN_S: Final = 1.0
LAST_AGAIN_S: Final = 60.0
#: How long a peer waits for what may not go on beside its transfer, and then for the volume's lock.
LEND_WAIT_S: Final = 5.0


class Door(Protocol):
    """Who answers a volume's control socket."""

    def close_door(self) -> None:
        """Run no new verb from now on, and end those that run at their next step."""


#: Answers a volume's control socket for the length of a `with`: the volume, for what, what goes on in it, whom to tell.
Answering = Callable[[Volume, str, Activities, Callable[[str], None]], AbstractContextManager[Door | None]]


def answer_nobody(
    volume: Volume, verb: str, activities: Activities, warn: Callable[[str], None]
) -> AbstractContextManager[Door | None]:
    """Answer no control socket."""
    del volume, verb, activities, warn
    return nullcontext(None)


#: What a peer's request does to the volume.
_KINDS: Final = {
    "standing": Kind.READS,
    "since": Kind.READS,
    "bring": Kind.READS,
    "become": Kind.SNAPSHOTS,
    "let go": Kind.SNAPSHOTS,
    "retain": Kind.SNAPSHOTS,
    "break": Kind.SNAPSHOTS,
}


class ServedVolume:
    """One volume of a policy, from the first try to open it until it is closed.

    Parameters
    ----------
    near : gives other volumes of this machine. throttle : what its jobs' data to and from peers takes from.
    changed : called, from its thread, when it was opened, could not be, or was closed, and from a job's when that is
    over.

    Attributes
    ----------
    volume : open for writing; None: it is not. problem : why not. was_tried : whether opening was tried once.
    is_over : whether all of it has ended. was_closed_badly : whether closing it failed.
    plans : its jobs, by kind and name; of whoever calls the methods, from one thread alone.
    """

    def __init__(
        self,
        policy: VolumePolicy,
        answering: Answering,
        log: Log,
        clock: Clock,
        changed: Callable[[], None],
        near: Near = open_near,
        throttle: Throttle | None = None,
    ) -> None:
        self.policy = policy
        self.activities = Activities(str(policy.path))
        self.volume: Volume | None = None
        self.problem = ""
        self.was_tried = self.was_closed_badly = self.is_over = False
        self._answering, self._log, self._clock, self._changed = answering, log, clock, changed
        self._near, self._throttle = near, throttle or Throttle()
        self.past = read_past(policy.path)
        self._was_open = False
        self.plans: dict[tuple[str, str], Plan] = {}
        self._changing: list[threading.Thread] = []
        self._lending = threading.Condition()
        self._n_lent = 0
        #: each ends what a peer does with the volume
        self._aborts: list[Callable[[], None]] = []
        #: whether what is remembered was wrong, and is not written yet: only of a volume that is open
        self._is_set_right = False
        self._take_jobs()
        self._ending = threading.Event()
        #: set to end serving the volume; it is then opened anew, unless everything ends
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"blockplane volume {policy.name}", daemon=True)
        #: by the monotonic clock, when to start it once more where there was no room for one more thread
        self._again_s = 0.0

    def start(self) -> None:
        """Begin to open it; where there is no room for one more thread, `settle` tries again."""
        self._again_s = self._clock.monotonic() + FIRST_AGAIN_S
        try:
            self._thread.start()
        except RuntimeError as error:
            self._fail(error)

    def stop(self) -> None:
        """Close it and end: see `is_over`."""
        self._ending.set()
        self._closing.set()
        self.is_over = self.is_over or self._thread.ident is None

    def reopen(self) -> None:
        """Close it and open it anew: it stopped at an error."""
        self._closing.set()

    @property
    def is_stopping(self) -> bool:
        """Whether no new job may begin."""
        return self._closing.is_set()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def change(self, policy: VolumePolicy) -> None:
        """Go on as another policy says, of the same name and directory; jobs that run go on."""
        wanted, self.policy = policy.pressure, policy
        self._take_jobs()
        if self.volume is not None and wanted is not None and not self.is_stopping:
            thread = threading.Thread(target=self._press, args=(self.volume,), name="blockplane policy", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # opened anew, it is taken up
                self._log.error("volume", f"the pressure policy is not taken up: {NO_THREAD}", volume=policy.name)
            else:
                self._changing.append(thread)

    def _take_jobs(self) -> None:
        """Bring the plans in line with the policy. A job that went, and runs, stays until it is over."""
        wanted = {(job.kind, job.name): job for job in self.policy.jobs}
        for key, job in wanted.items():
            if key in self.plans:
                self.plans[key].change(job)
            else:
                past = self.past.setdefault(" ".join(key), Past())
                begun_s = past.begun_s
                self.plans[key] = Plan(job, self._clock, past)
                self._is_set_right |= past.begun_s != begun_s
        for key in [key for key, plan in self.plans.items() if key not in wanted and plan.run is None]:
            del self.plans[key]

    def settle(self) -> int:
        """Take up what is over; return how many runs were."""
        if self._waits_for_thread() and self.due_in() <= 0:
            self.start()
        n_over = sum(plan.settle(self._log, self.policy.name) for plan in self.plans.values())
        if n_over:
            self._take_jobs()
            self._remember()
        if self.volume is not None and self.volume.stopped_at and not self.is_stopping:
            self._log.error("volume stopped", f"{self.volume.stopped_at}; it is opened anew", volume=self.policy.name)
            self.reopen()
        return n_over

    def _remember(self) -> None:
        self._is_set_right = False
        write_past(self.policy.path, {key: past for key, past in self.past.items() if past.begun_s})

    def begin_due(self) -> int:
        """Begin the jobs that are due; return how many."""
        volume = self.volume
        if volume is None or self.is_stopping:
            return 0
        if not self._was_open:  # its directory may have come since, mounted late, and what it remembers with it
            self._was_open, self._is_set_right = True, False
            self.past = read_past(self.policy.path)
            self.plans.clear()
            self._take_jobs()
        if self._is_set_right:
            self._remember()
        due = [plan for plan in self._planned() if plan.run is None and plan.pace.due_in() <= 0]
        for plan in due:
            plan.begin(volume, self.activities, self._changed, self._near, self._throttle)
        return len(due)

    def due_in(self) -> float:
        """Return in how many seconds the next job is due, or opening is tried again; infinite: nothing waits."""
        if self._waits_for_thread():
            return self._again_s - self._clock.monotonic()
        if self.volume is None or self.is_stopping:
            return math.inf
        return min((plan.pace.due_in() for plan in self._planned() if plan.run is None), default=math.inf)

    def _waits_for_thread(self) -> bool:
        return self._thread.ident is None and not self.is_stopping

    def _planned(self) -> list[Plan]:
        """Return the plans of jobs that the policy has."""
        return [self.plans[job.kind, job.name] for job in self.policy.jobs]

    def runs(self) -> list[Run]:
        """Return what runs."""
        return [plan.run for plan in list(self.plans.values()) if plan.run is not None and not plan.run.is_over]

    # --- peers -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lent(self, transfer: Transfer) -> Iterator[Volume]:
        """Give the volume to a peer's transfer for the length of a `with`; as `used`, and not to wait for its lock.

        Raises
        ------
        BusyError: it is not open, or in use; by whom is not for a peer to know.
        """
        kind = _KINDS.get(transfer.request, Kind.LIVE)
        in_use = BusyError(f"{self.policy.name} is in use", "it is tried again by itself")
        with contextlib.ExitStack() as stack:
            try:
                verb = f"{transfer.verb.value} by {transfer.identity}"
                volume = stack.enter_context(self.used(kind, verb, transfer.in_vain))
            except RefusedError as error:
                self._log.info("peer put off", error.message, volume=self.policy.name)
                raise in_use from error
            if not volume.lock.acquire(timeout=LEND_WAIT_S):  # a check has it, say: who waits must not fill the door
                raise in_use
            volume.lock.release()
            self._aborts.append(transfer.abort)
            try:
                yield volume
            finally:
                self._aborts.remove(transfer.abort)
                if transfer.request == "break":  # also where it fails: it may have been broken off before
                    let_written(volume, self.activities)

    @contextlib.contextmanager
    def used(self, kind: Kind, verb: str, end: Callable[[], None] | None = None) -> Iterator[Volume]:
        """Give the volume to somebody for the length of a `with`; it is not closed meanwhile. end : see `going_on`.

        Raises
        ------
        BusyError: it is not open. RefusedError: something goes on beside which that may not.
        """
        with self._lending:
            volume = self.volume
            if volume is None or self.is_stopping:
                raise BusyError(f"{self.policy.name} is not open now", "try again later")
            self._n_lent += 1
        try:
            with self.activities.going_on(kind, verb, os.getpid(), LEND_WAIT_S, end=end):
                yield volume
        finally:
            with self._lending:
                self._n_lent -= 1
                self._lending.notify_all()
            if volume.stopped_at:
                self._changed()

    # --- its thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        again_s = FIRST_AGAIN_S
        while not self._ending.is_set():
            self._closing.clear()
            if self._ending.is_set():  # asked for between the two
                break
            if self._serve():
                again_s = FIRST_AGAIN_S
            else:
                self._ending.wait(again_s)
                again_s = min(again_s * 2, LAST_AGAIN_S)
        self.is_over = True
        self._changed()

    def _serve(self) -> bool:
        """Have the volume open until it is to be closed; return False where that failed."""
        name = self.policy.name
        try:
            with Volume.open(self.policy.path, verb="serve", answers=True) as volume:
                try:
                    for warning in volume.warnings:
                        self._warn(warning)
                    self._prepare(volume)
                    with self._answering(volume, "serve", self.activities, self._warn) as door:
                        self.volume, self.problem, self.was_tried = volume, "", True
                        self._log.info("volume open", f"{self.policy.path} is open", volume=name)
                        self._changed()
                        self._closing.wait()
                        if door is not None:
                            door.close_door()
                        self._end_jobs()
                finally:
                    self.volume = None
        except Exception as error:  # noqa: BLE001 - one volume must not end the service for all others
            self._fail(error)
            return False
        self._log.info("volume closed", f"{self.policy.path} is closed", volume=name)
        return True

    def _end_jobs(self) -> None:
        """End what runs, and wait for it; nothing begins any more."""
        runs = [plan.run for plan in list(self.plans.values()) if plan.run is not None]
        for run in runs:
            run.stop()
        for run in runs:
            run.wait()
        for thread in self._changing:
            thread.join()
        self._changing.clear()
        for abort in list(self._aborts):
            abort()
        with self._lending:
            while self._n_lent:
                self._lending.wait()

    def _press(self, volume: Volume) -> None:
        """Take up another pressure policy while the volume is open."""
        try:
            self._prepare(volume)
        except (BlockplaneError, OSError) as error:
            self._log.error("volume", str(error), volume=self.policy.name)

    def _prepare(self, volume: Volume) -> None:
        wanted = self.policy.pressure
        if wanted is not None and (volume.pressure is None or volume.pressure.record() != wanted.record()):
            volume.set_pressure(wanted)

    def _fail(self, error: Exception) -> None:
        self.was_closed_badly = self.was_closed_badly or self._closing.is_set()
        is_ours = isinstance(error, (BlockplaneError, OSError))
        problem = str(error) if is_ours else f"internal error: {type(error).__name__}: {error}"
        if is_lack_of_threads(error):
            is_ours, problem = True, NO_THREAD
        if problem != self.problem:  # said once, not at every try
            hint = getattr(error, "hint", "")
            text = f"{problem} ({hint})" if hint else problem
            self._log.error(
                "volume not open",
                text,
                volume=self.policy.name,
                error=getattr(error, "kind", "os" if is_ours else "internal"),
            )
        self.problem, self.was_tried = problem, True
        self._changed()

    def _warn(self, text: str) -> None:
        self._log.warning("volume", text, volume=self.policy.name)
