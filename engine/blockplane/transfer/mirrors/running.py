"""Mirrors at their intervals: which is due, steps side by side, and what their last runs came to."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

from blockplane.model.errors import BlockplaneError, BusyError, RefusedError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.transfer.mirrors.listing import (
    BROKEN_OFF,
    NEXT,
    WAITING,
    LastRun,
    MirrorDefinition,
    definitions,
    noted,
)
from blockplane.transfer.mirrors.peers import Peers
from blockplane.transfer.mirrors.stepping import CLEAN_FAILURES, BrokenOffError, StepReport, step
from blockplane.transfer.mirrors.turns import Turn, turn
from blockplane.transfer.peer import Peer
from blockplane.volume.volume import Volume

#: How often the definitions are looked at, and a stop is asked for.
POLL_S: Final = 0.25
#: How often a destination is asked where it stands though there is nothing to bring: it may be gone, or broken off.
ASK_EVERY_S: Final = 60.0
#: How long after a failure a loop tries again, where the interval is longer. Who runs single steps has its own pace.
RETRY_S: Final = 10.0


class StoppedError(KeyboardInterrupt):
    """The mirrors were asked to stop: what has landed is kept, as of an interrupt."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt. report : of a step that went well; error : why it did not; refused : both sides are as they were."""

    mirror: MirrorDefinition
    report: StepReport | None
    error: str = ""
    hint: str = ""
    refused: bool = False

    @property
    def told(self) -> str:
        """Why it did not go well, naming the destination."""
        return self.mirror.naming(self.error)


def due_ns(mirror: MirrorDefinition, begun_ns: int | None = None) -> int:
    """Return when a mirror's next step is due, ns since 1970; 0: it never had one.

    Parameters
    ----------
    begun_ns : when its last step began, where that is known to be later than what the definition says.

    Notes
    -----
    None queue up: when a step took longer than the interval, the next is due at once and sends the state that is newest
    then; or, for `late="next"`, waits for the next whole interval. After one that failed it is due at once; in a loop,
    which knows when it began, soon. What began or ended later than now, by a clock that was set back since, does not
    count.
    """
    now = time.time_ns()
    if mirror.last.error:
        tried_ns = begun_ns or 0
        return tried_ns + round(min(mirror.every_s, RETRY_S) * 1e9) if 0 < tried_ns <= now else 0
    begun = max((ns for ns in (mirror.last.begun_ns, begun_ns or 0) if ns <= now), default=0)
    if not begun:
        return 0
    every_ns = round(mirror.every_s * 1e9)
    took_ns = mirror.last.ended_ns - begun
    if mirror.late == NEXT and every_ns < took_ns <= now - begun:
        return begun + -(-took_ns // every_ns) * every_ns
    return begun + every_ns


def attempt(
    volume: Volume,
    mirror: MirrorDefinition,
    opened: AbstractContextManager[Peer],
    progress: Progress = ignore_progress,
    *,
    waits: bool = False,
) -> Ran:
    """Do one step and write down how it went, where it did anything; errors of this volume and the peer are reported.

    Parameters
    ----------
    waits : until a step of the mirror that goes on is over; else nothing is done beside one.

    Raises
    ------
    StoppedError, KeyboardInterrupt : it was stopped; what came is kept.
    """
    with ExitStack() as stack:
        try:
            its = stack.enter_context(turn(volume, mirror.name, progress if waits else None))
        except BusyError:
            return Ran(mirror, StepReport(mirror.name, mirror.dest, "busy"))
        now = next((each for each in definitions(volume.path) if each.name == mirror.name), None)
        if now is None:  # it was taken out
            return Ran(mirror, StepReport(mirror.name, mirror.dest, "idle"))
        return _attempt(volume, now, opened, progress, its)


def _attempt(
    volume: Volume, mirror: MirrorDefinition, opened: AbstractContextManager[Peer], progress: Progress, its: Turn
) -> Ran:
    begun_ns, asked_s = time.time_ns(), time.monotonic()
    asks = bool(mirror.last.error or mirror.last.state) or asked_s - its.heard_s >= ASK_EVERY_S
    try:
        with opened as peer:
            its.peer = peer
            report = step(volume, mirror, peer, its.watched(progress), asks=asks)
    except (BlockplaneError, OSError) as error:
        text, hint = str(error) or type(error).__name__, getattr(error, "hint", "")
        state = _state_after(mirror, error)
        if (text, hint, state) != (mirror.last.error, mirror.last.hint, mirror.last.state):
            last = replace(mirror.last, begun_ns=begun_ns, ended_ns=time.time_ns(), error=text, hint=hint, state=state)
            mirror = _note(volume, mirror, last)
        return Ran(mirror, None, text, hint, isinstance(error, CLEAN_FAILURES))
    if asks or report.outcome != "idle":
        its.heard_s = asked_s
    return Ran(_noted(volume, mirror, report, begun_ns), report)


def _state_after(mirror: MirrorDefinition, error: BlockplaneError | OSError) -> str:
    """Return what a destination was found as by a step that failed; where it could not be asked, what it was before."""
    if isinstance(error, BrokenOffError):
        return BROKEN_OFF
    return "" if isinstance(error, CLEAN_FAILURES) else mirror.last.state


def _noted(volume: Volume, mirror: MirrorDefinition, report: StepReport, begun_ns: int) -> MirrorDefinition:
    """Write down what a step did; of an idle one nothing, unless it is the first after a failure, or a wait."""
    brought = report.brought
    if brought is not None:
        last = LastRun(
            begun_ns, time.time_ns(), brought.n_blocks, brought.n_bytes, brought.seconds, kept=brought.kept or ""
        )
        return _note(volume, mirror, last)
    state = WAITING if report.outcome == "waiting" else ""
    if mirror.last.error or mirror.last.state != state:
        last = replace(mirror.last, begun_ns=begun_ns, ended_ns=time.time_ns(), error="", hint="", state=state)
        return _note(volume, mirror, last)
    return mirror


def _note(volume: Volume, mirror: MirrorDefinition, last: LastRun) -> MirrorDefinition:
    with volume.lock:  # guards the file too: whoever has the volume open writes it
        return noted(volume.path, mirror, last)


def run_once(
    volume: Volume,
    *,
    peers: Peers | None = None,
    only: str | None = None,
    now: bool = False,
    progress: Progress = ignore_progress,
) -> Iterator[Ran]:
    """Do one step of each mirror that is due, one after the other, in the order in which they were added.

    Parameters
    ----------
    only : of this one alone, by its place or name. now : of those that are not due too.
    """
    for mirror in definitions(volume.path):
        is_asked = only is None or only in (mirror.dest, mirror.name)
        if is_asked and (now or due_ns(mirror) <= time.time_ns()):
            yield attempt(volume, mirror, (peers or Peers()).open(mirror.dest), progress, waits=True)


def run_side_by_side(
    volume: Volume,
    *,
    peers: Peers | None = None,
    progress: Progress = ignore_progress,
    wanted: Callable[[], None] = lambda: None,
    give_up: Callable[[], None] = lambda: None,
) -> list[Ran]:
    """Do a step of each mirror that is due, a thread each; return when all have ended.

    Parameters
    ----------
    progress : called from several threads. wanted : called several times a second; may raise, which ends all of it:
    what has landed is kept. give_up : called then; lets the steps end that wait for a peer.

    Notes
    -----
    One that takes long, or whose place does not answer, holds nobody up: others whose time comes meanwhile have their
    next steps, until all that were due at first have ended.
    """
    steps = _Steps(volume, peers or Peers(), progress)
    try:
        while True:
            wanted()
            steps.begin_due()
            steps.take_up()
            if not steps.running:
                return steps.ran
            next(iter(steps.running.values())).join(POLL_S)
    finally:
        if steps.running:
            give_up()
        for thread in steps.running.values():
            thread.join()


class _Steps:
    """Steps of several mirrors, a thread each.

    Attributes
    ----------
    running : by the mirror's name. ran : how those that ended went.
    """

    def __init__(self, volume: Volume, peers: Peers, progress: Progress) -> None:
        self._volume, self._peers, self._progress = volume, peers, progress
        self.running: dict[str, threading.Thread] = {}
        self.ran: list[Ran] = []
        self._begun_ns: dict[str, int] = {}
        self._first: set[str] | None = None  # of those that were due at first, whose step goes on
        self._failed: list[BaseException] = []

    def begin_due(self) -> None:
        """Begin the step of each mirror that is due, has none, and has not failed; none once the first have ended."""
        if self._first is None or self._first:
            self._begin_due()
        if self._first is None:
            self._first = set(self.running)

    def _begin_due(self) -> None:
        lost = {each.mirror.name for each in self.ran if each.error}
        for mirror in definitions(self._volume.path):
            name = mirror.name
            if name in self.running or name in lost or due_ns(mirror, self._begun_ns.get(name)) > time.time_ns():
                continue
            self._begun_ns[name] = time.time_ns()
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(self._work, mirror), name=f"mirror {name}")
            thread.start()
            self.running[name] = thread

    def _work(self, mirror: MirrorDefinition) -> None:
        try:
            self.ran.append(attempt(self._volume, mirror, self._peers.open(mirror.dest), self._progress))
        except OSError as error:  # how it went could not be written down: others go on
            self.ran.append(Ran(mirror, None, str(error), "see whether the volume's folder can be written to"))
        except BaseException as error:  # noqa: BLE001 - raised by who waits for it
            self._failed.append(error)

    def take_up(self) -> None:
        """Forget the threads that have ended; raise what one of them was ended by."""
        for name in [name for name, thread in self.running.items() if not thread.is_alive()]:
            self.running.pop(name).join()
            (self._first or set()).discard(name)
        if self._failed:
            raise self._failed[0]


@dataclass
class _Slot:
    """One mirror in a loop.

    thread : of the step that goes on. peer : kept open between steps; is_suspect : contact was lost, it is opened anew.
    """

    mirror: MirrorDefinition
    begun_ns: int = 0
    thread: threading.Thread | None = None
    peer: Peer | None = None
    is_suspect: bool = False
    held: ExitStack = field(default_factory=ExitStack)


#: The loops that run, by the id of their volume.
_loops: dict[int, MirrorLoop] = {}


def loop_of(volume: Volume) -> MirrorLoop | None:
    """Return the loop that runs a volume's mirrors in this process; None: there is none."""
    return _loops.get(id(volume))


class MirrorLoop:
    """Runs a volume's mirrors until it is stopped: each at its interval, in a thread of its own.

    Parameters
    ----------
    told : called with each attempt that did something, from the mirror's thread. around : entered round each step.

    Notes
    -----
    Destinations are opened by the thread that calls `run`, and stay open between steps, so that what reads them is
    served by this process. Mirrors that are added, changed or removed meanwhile are taken up.
    """

    def __init__(
        self,
        volume: Volume,
        peers: Peers | None = None,
        told: Callable[[Ran], None] = lambda _: None,
        progress: Progress = ignore_progress,
        around: Callable[[Peer], AbstractContextManager[object]] = lambda _: nullcontext(),
    ) -> None:
        self._volume, self._peers, self._told, self._progress, self._around = (
            volume, peers or Peers(), told, progress, around,
        )  # fmt: skip
        self._stop = threading.Event()
        self._slots: dict[str, _Slot] = {}

    def stop(self) -> None:
        """Have `run` return: a transfer that is under way ends at its next step, and what came is kept. Any thread."""
        self._stop.set()

    def run(self, wanted: Callable[[], None] = lambda: None) -> None:
        """Go on until `stop`.

        Parameters
        ----------
        wanted : called several times a second; may raise, which ends it.
        """
        if _loops.setdefault(id(self._volume), self) is not self:
            raise RefusedError(f"the mirrors of {self._volume.path} are run already", "one loop runs all of them")
        try:
            while not self._stop.is_set():
                wanted()
                self._look()
                self._stop.wait(POLL_S)
        finally:
            del _loops[id(self._volume)]
            self._stop.set()
            for slot in self._slots.values():
                if slot.peer is not None:
                    slot.peer.close()
                if slot.thread is not None:
                    slot.thread.join()
                self._let_go(slot)

    def begun_ns(self, name: str) -> int:
        """Return when the last step of a mirror began, ns since 1970; 0: none did."""
        slot = self._slots.get(name)
        return slot.begun_ns if slot is not None else 0

    def _look(self) -> None:
        """Take up definitions, and begin what is due."""
        known = {mirror.name: mirror for mirror in definitions(self._volume.path)}
        for name in [name for name in self._slots if name not in known]:
            slot = self._slots[name]
            if slot.thread is None or not slot.thread.is_alive():
                self._let_go(self._slots.pop(name))
        for name, mirror in known.items():
            slot = self._slots.setdefault(name, _Slot(mirror))
            is_busy = slot.thread is not None and slot.thread.is_alive()
            if is_busy and slot.mirror.dest != mirror.dest:
                continue  # the peer is that of the other place
            slot.is_suspect |= slot.mirror.dest != mirror.dest
            slot.mirror = mirror
            if not is_busy and due_ns(mirror, slot.begun_ns) <= time.time_ns():
                self._begin(slot)

    def _let_go(self, slot: _Slot) -> None:
        """Close a destination; one that fails at that holds up no other."""
        try:
            slot.held.close()
        except (BlockplaneError, OSError) as error:
            self._tell(Ran(slot.mirror, None, str(error), getattr(error, "hint", "")))

    def _begin(self, slot: _Slot) -> None:
        slot.begun_ns = time.time_ns()
        if slot.is_suspect:
            slot.peer, slot.is_suspect = None, False
            self._let_go(slot)
        if slot.peer is None:
            try:
                slot.peer = slot.held.enter_context(self._peers.open(slot.mirror.dest))
            except (BlockplaneError, OSError) as error:
                self._tell(attempt(self._volume, slot.mirror, _Failing(error)))
                return
        thread = threading.Thread(target=self._work, args=(slot, slot.peer), name=f"mirror {slot.mirror.name}")
        thread.start()
        slot.thread = thread

    def _work(self, slot: _Slot, peer: Peer) -> None:
        try:
            with self._around(peer):
                ran = attempt(self._volume, slot.mirror, nullcontext(peer), self._watched)
        except KeyboardInterrupt:
            return
        except BlockplaneError as error:  # what goes on beside it is in the way; it is tried again
            ran = Ran(slot.mirror, None, str(error), error.hint, refused=True)
        except OSError as error:  # how it went could not be written down
            ran = Ran(slot.mirror, None, str(error), "see whether the volume's folder can be written to")
        slot.is_suspect = bool(ran.error) and not ran.refused
        self._tell(ran)

    def _watched(self, event: ProgressEvent) -> None:
        if self._stop.is_set():
            raise StoppedError
        self._progress(event)

    def _tell(self, ran: Ran) -> None:
        if ran.error or (ran.report is not None and ran.report.outcome not in ("idle", "busy")):
            self._told(ran)


class _Failing(AbstractContextManager[Peer]):
    """Stands for a peer that could not be opened."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __enter__(self) -> Peer:
        raise self._error

    def __exit__(self, *_: object) -> None:
        return None
