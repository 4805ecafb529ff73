"""The service: one loop that begins what is due, takes up what is over, and ends in order.

All decisions are taken in the thread that calls `run`; volumes and jobs have threads of their own, and wake it.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

from blockplane.api import Volume
from blockplane.disks.label import refuse_disk
from blockplane.model.errors import BlockplaneError, RefusedError
from blockplane.model.ownfiles import own_suffix, replace_own
from blockplane.model.places import is_same_place
from blockplane.model.release import WRITER
from blockplane.server.activity import Kind
from blockplane.server.network.serving import Opened
from blockplane.server.network.throttle import Schedule, Throttle
from blockplane.server.service.clock import Clock, SystemClock
from blockplane.server.service.door import MetricsDoor
from blockplane.server.service.jobs import open_near
from blockplane.server.service.listening import Endpoint, NetworkPolicy, shares_place
from blockplane.server.service.log import Log
from blockplane.server.service.metrics import Counts, metrics_text
from blockplane.server.service.notify import Notifier
from blockplane.server.service.policy import Policy, VolumePolicy
from blockplane.server.service.served import Answering, ServedVolume, answer_nobody
from blockplane.server.service.status import Observer, VolumeStatus
from blockplane.server.service.timetable import At
from blockplane.server.service.trust import ends_of

#: How long volumes may take to be closed once the service is to end.
GRACE_S: Final = 5.0
#: Being asked to end twice within so long is once: whoever signals a group signals its members too.
AGAIN_S: Final = 0.5
#: Times of day are looked up anew so often, in case the clock was set; the metrics' file is written so often.
LOOK_S: Final = 60.0
#: Waited at a time at most: the kernel counts milliseconds in 31 bits.
_WAIT_S: Final = 86_400.0


class Service:
    """Owns volumes and does what a policy says, from `run` until `stop`.

    Parameters
    ----------
    reread : reads the policy anew, for `reload`. answering : answers control sockets, as `serve_control` does.
    once : does what is due when it begins, and ends.

    Attributes
    ----------
    policy : that is followed. counts : of the loop and of policies.
    unfinished : after `run`, what had not ended when there was no more time: the process should end at once.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        reread: Callable[[], Policy] | None = None,
        answering: Answering = answer_nobody,
        log: Log | None = None,
        notifier: Notifier | None = None,
        clock: Clock | None = None,
        once: bool = False,
        grace_s: float = GRACE_S,
    ) -> None:
        self.policy = policy
        self.log = log or Log(lambda: sys.stderr, policy.log, policy.log_level)
        self._reread, self._answering, self._once, self._grace_s = reread, answering, once, grace_s
        self._notifier, self._clock = notifier or Notifier(), clock or SystemClock()
        self.counts = Counts(self._clock.wall())
        self._served: dict[str, ServedVolume] = {}
        self._leaving: list[ServedVolume] = []
        self._observer = Observer()
        self._door: MetricsDoor | None = None
        self._endpoint: Endpoint | None = None
        self._lent: dict[str, Opened] = {}
        #: what data takes from, to and from all who call and all whom jobs call
        self._throttle = Throttle(self._rate)
        #: a byte written to `waking_fd` ends a wait: a signal's too (`signal.set_wakeup_fd`), whichever thread it meets
        self._wake_fd, self.waking_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for fd in (self._wake_fd, self.waking_fd):
            weakref.finalize(self, os.close, fd)  # not sooner: signals and threads that are left write to it
        self._n_stops, self._is_reload_wanted = 0, False
        self._asked_s = 0.0  # by the monotonic clock, as the next one
        self._stop_by_s: float | None = None
        self._is_ready = self._has_begun_once = self._has_hung = False
        self._written_s = self._fed_s = -math.inf
        self._status = 0
        self.unfinished: tuple[str, ...] = ()

    # --- from any thread, and from signal handlers -------------------------------------------------------------------

    def stop(self) -> None:
        """End: no new work, what runs is ended at its next step, volumes are closed. Asked for again later: at once."""
        now = self._clock.monotonic()
        if not self._n_stops or now - self._asked_s > AGAIN_S:
            self._n_stops, self._asked_s = self._n_stops + 1, now
        self._wake()

    def reload(self) -> None:
        """Read the policy anew; a bad one is told, and changes nothing."""
        self._is_reload_wanted = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full: the wait ends anyway
            os.write(self.waking_fd, b"\0")

    def status(self, *, afresh: bool = False) -> list[VolumeStatus]:
        """Return how the volumes and their jobs are; waits for no volume. afresh : see Observer.look."""
        return self._observer.look(list(self._served.values()), self._clock.wall(), afresh=afresh)

    def metrics(self, *, afresh: bool = False) -> str:
        """Return the metrics in Prometheus' text format. afresh : see Observer.look."""
        endpoint = self._endpoint
        peers = [(volume, what, n) for (volume, what), n in endpoint.n_transfers.copy().items()] if endpoint else []
        moved = dict(endpoint.n_bytes) if endpoint else {}
        return metrics_text(
            WRITER, replace(self.counts), self.status(afresh=afresh), peers, moved, ends_of(self.policy)
        )

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Where metrics are asked for."""
        return self._door.address if self._door is not None else None

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until `stop`; return the exit status: 0, or 1 where a volume was not closed, or not opened as wanted.

        Raises
        ------
        OSError: metrics, or volumes to peers, cannot be offered at the address; nothing was opened.
        """
        try:
            self._door = self._open_door(self.policy)
            for volume in self.policy.volumes:
                self._add(volume)
            self._endpoint = self._listen(self.policy)  # which may fail: before anything is opened
            for served in self._served.values():
                served.start()
            while (wait_s := self.turn()) is not None:
                self._wait(wait_s)
        finally:
            if self._endpoint is not None:
                (self._endpoint.stop if self.unfinished else self._endpoint.wait)()
            if self._door is not None:
                self._door.close()
            self._notifier.close()
        return self._status

    def turn(self) -> float | None:
        """Do what is to be done now; return in how many seconds to look again at the latest, None: it is over."""
        self.counts.n_wakeups += 1
        if self._n_stops and self._stop_by_s is None:
            self._begin_stop()
        if self._is_reload_wanted:
            self._is_reload_wanted = False
            if self._stop_by_s is None:
                self._reload()
        n_over = sum(served.settle() for served in [*self._served.values(), *self._leaving])
        self._leaving = [served for served in self._leaving if not served.is_over]
        if self._stop_by_s is None:
            self._take_new()
        if self._stop_by_s is not None and self._is_stopped(self._stop_by_s):
            return None
        self._begin_due()
        self._see_readiness()
        if n_over:
            self._written_s = -math.inf
        return min(self._tell(), self._next_s())

    def _begin_due(self) -> None:
        if self._stop_by_s is not None or (self._once and self._has_begun_once):
            return
        if self._once:
            if not all(served.was_tried for served in self._served.values()):
                return
            self._has_begun_once = True
        for served in self._served.values():
            served.begin_due()

    def _see_readiness(self) -> None:
        """Say that the service is up, once every volume was tried; or end, where that is not enough."""
        all_served = list(self._served.values())
        if not self._is_ready and self._stop_by_s is None and all(served.was_tried for served in all_served):
            self._is_ready = True
            self._notifier.ready()
            bad = [served for served in all_served if served.problem]
            if bad and (self.policy.is_strict or self._once):
                self._status = 1
            if bad and self.policy.is_strict:
                self.log.error("stopping", f"{bad[0].policy.name} cannot be served, and is to be")
                self.stop()
        if self._once and self._has_begun_once and not any(p.run for s in all_served for p in s.plans.values()):
            if any(plan.n_failed for served in all_served for plan in served.plans.values()):
                self._status = 1
            if not self._n_stops:
                self.stop()

    def _next_s(self) -> float:
        """Return when something is due, or may be."""
        if self._n_stops and self._stop_by_s is None:
            return 0.0
        if self._stop_by_s is not None:
            return max(self._stop_by_s - self._clock.monotonic(), 0.0)
        if self._once and self._has_begun_once:
            return math.inf
        waits = [served.due_in() for served in self._served.values()]
        if any(isinstance(job.due, At) for volume in self.policy.volumes for job in volume.jobs):
            waits.append(LOOK_S)
        return max(min(waits, default=math.inf), 0.0)

    def _wait(self, seconds: float) -> None:
        """Wait until somebody wakes us, or asks for metrics, or the time has come."""
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        if self._door is not None:
            poll.register(self._door, select.POLLIN)
        ready = poll.poll(math.ceil(min(seconds, _WAIT_S) * 1000))
        for fd, _ in ready:
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_fd, 1 << 16)
            elif self._door is not None:
                self._door.accept()

    # --- telling -----------------------------------------------------------------------------------------------------

    def _tell(self) -> float:
        """Tell systemd and the metrics' file what is due to be told; return in how many seconds that is due again."""
        now = self._clock.monotonic()
        wait_s = math.inf
        self._notifier.status(self.summary())
        if self._notifier.watchdog_s is not None:
            half_s = self._notifier.watchdog_s / 2
            if now - self._fed_s >= half_s:
                self._fed_s = now
                if self._is_alive(now):
                    self._notifier.alive()
            wait_s = self._fed_s + half_s - now
        if self.policy.metrics_file is not None and self._stop_by_s is None:
            if now - self._written_s >= LOOK_S:
                self._written_s = now
                self._write_metrics()
            wait_s = min(wait_s, self._written_s + LOOK_S - now)
        return max(wait_s, 0.0)

    def _is_alive(self, now: float) -> bool:
        """Whether every job that runs has shown a sign of life of late."""
        hung = [
            f"{run.job.kind} {run.job.name} of {served.policy.name}"
            for served in [*self._served.values(), *self._leaving]
            for run in served.runs()
            if now - run.beat_s > self.policy.patience_s
        ]
        if hung and not self._has_hung:
            self.log.error("hung", f"no sign of life from {', '.join(hung)}: the watchdog is not fed")
        self._has_hung = bool(hung)
        return not hung

    def summary(self) -> str:
        """Return in a line what goes on."""
        served = list(self._served.values())
        if self._stop_by_s is not None:
            return "stopping"
        text = f"{sum(one.volume is not None for one in served)} of {len(served)} volumes open"
        bad = [f"{one.policy.name}: {one.problem}" for one in served if one.problem]
        running = [f"{run.job.kind} {run.job.name} of {one.policy.name}" for one in served for run in one.runs()]
        return "; ".join([text, *running, *bad])

    def _write_metrics(self, *, afresh: bool = False) -> None:
        path = self.policy.metrics_file
        if path is None:
            return
        try:
            refuse_disk(path)
            replace_own(path, self.metrics(afresh=afresh), 0o644, suffix=own_suffix(), durable=False)
        except BlockplaneError as error:
            self.log.error("metrics", error.message, error=error.kind)
        except OSError as error:
            self.log.error("metrics", f"{path} cannot be written: {error.strerror}", error="os")

    def _listen(self, policy: Policy) -> Endpoint | None:
        return self._endpoint_of(policy.network) if policy.network is not None else None

    def _endpoint_of(self, network: NetworkPolicy) -> Endpoint:
        return Endpoint(network, self._lent, self.log, self._throttle)

    def _rate(self) -> float | None:
        """Return how many bytes a second may go now, by the policy that is followed; None: as fast as it goes."""
        return Schedule.parse(self.policy.rate)() if self.policy.rate else None

    @property
    def address(self) -> str | None:
        """Where peers are served."""
        return self._endpoint.address if self._endpoint is not None else None

    def _open_door(self, policy: Policy) -> MetricsDoor | None:
        return MetricsDoor(*policy.metrics, self.metrics) if policy.metrics is not None else None

    # --- policies ----------------------------------------------------------------------------------------------------

    def _take(self, volume: VolumePolicy) -> None:
        """Serve a volume from now on."""
        self._add(volume).start()

    def _add(self, volume: VolumePolicy) -> ServedVolume:
        """Have a volume that is to be served; it is opened once it is started."""
        self._served[volume.name] = served = ServedVolume(
            volume, self._answering, self.log, self._clock, self._wake, self._near, self._throttle
        )
        self._lent[volume.name] = served.lent
        return served

    def _near(self, path: Path, kind: Kind) -> AbstractContextManager[Volume]:
        """Give a volume of this machine to a job of another one: one that is served, or from its disks."""
        for served in list(self._served.values()):
            if served.policy.path == path or is_same_place(served.policy.path, path):
                return served.used(kind, "a job of another volume")
        return open_near(path, kind)

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            if self._reread is None:
                raise RefusedError("there is no policy to be read anew")
            self._change(self._reread())
        except (BlockplaneError, OSError, RuntimeError) as error:  # of the last kind: no room for one more thread
            self.counts.n_bad_reloads += 1
            for problem in getattr(error, "mistakes", None) or (error,):
                self.log.error("policy refused", f"{problem}; what was followed is followed still", error="policy")
        else:
            self.counts.n_reloads += 1
            self.log.info("policy taken", f"{len(self.policy.volumes)} volumes")
        self._notifier.ready()

    def _change(self, policy: Policy) -> None:
        """Follow another policy: what is the same in it goes on undisturbed."""
        self._change_door(policy)  # what may fail goes first
        try:
            self._change_listener(policy)
        except BaseException:
            self._change_door(self.policy, policy)
            raise
        self.policy = policy
        self.log.set(policy.log, policy.log_level)
        wanted = {volume.name: volume for volume in policy.volumes}
        for name, served in list(self._served.items()):
            if name not in wanted or wanted[name].path != served.policy.path:
                self._leaving.append(self._served.pop(name))
                self._lent.pop(name)
                served.stop()
            elif wanted[name] != served.policy:
                served.change(wanted[name])
        self._take_new()

    def _take_new(self) -> None:
        """Serve what the policy names and is not served yet; not what is still had under another name."""
        for volume in self.policy.volumes:
            if volume.name not in self._served and not any(
                is_same_place(one.policy.path, volume.path) for one in self._leaving
            ):
                self._take(volume)

    def _change_door(self, policy: Policy, before: Policy | None = None) -> None:
        """Have metrics asked for where a policy says; where nobody can listen there, where one before it says.

        Parameters
        ----------
        before : the policy that was followed until now; the one that is followed by default.
        """
        before = before or self.policy
        if policy.metrics == before.metrics:
            return
        old = self._door
        takes_its_port = old is not None and policy.metrics is not None and policy.metrics[1] == old.address[1]
        if old is not None and takes_its_port:
            old.close()
        try:
            self._door = self._open_door(policy)
        except BaseException:
            if takes_its_port:
                self._door = self._open_door(before)
            raise
        if old is not None and not takes_its_port:
            old.close()

    def _change_listener(self, policy: Policy) -> None:
        """Listen as a policy says; connections stay where that is possible, and where it cannot be done."""
        old = ended = self._endpoint
        if policy.network is not None and old is not None:
            if old.takes(policy.network):  # also where nothing changed: certificates may have been renewed
                return
            policy.network.parsed_rights()
            policy.network.credentials()
            if shares_place(old.address, policy.network.listen):
                old.wait()  # before another one takes the same port
                self._endpoint = old = None
        try:
            made = self._listen(policy)
        except BaseException:
            if self._endpoint is None and ended is not None:  # where it was, a port that was left to chance too
                self._endpoint = self._endpoint_of(replace(ended.policy, listen=ended.address))
                self._endpoint.policy = ended.policy
            raise
        if old is not None:
            old.wait()
        self._endpoint = made

    # --- the end -----------------------------------------------------------------------------------------------------

    def _begin_stop(self) -> None:
        self._stop_by_s = self._clock.monotonic() + self._grace_s
        self._notifier.stopping()
        self.log.info("stopping", "no new work; volumes are being closed")
        if self._endpoint is not None:
            self._endpoint.stop()
        for run in [run for served in self._served.values() for run in served.runs()]:
            run.stop()
        self._write_metrics(afresh=True)  # as long as there is something to tell; the file stays as it is then
        for served in self._served.values():
            served.stop()

    def _is_stopped(self, stop_by_s: float) -> bool:
        """Whether all is closed, or there is no more time."""
        everything = [*self._served.values(), *self._leaving]
        left = [served.policy.name for served in everything if not served.is_over]
        if left and self._n_stops < 2 and self._clock.monotonic() < stop_by_s:
            return False
        if left:
            self.unfinished = tuple(left)
            self.log.error(
                "not closed", f"{', '.join(left)}: as of the last consistency point; opening puts that right"
            )
        if left or any(served.was_closed_badly for served in everything):
            self._status = 1
        else:
            self.log.info("stopped", "all volumes are closed")
        return True
