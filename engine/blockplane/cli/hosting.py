"""Hosting: a volume that this process has open is there for the verbs of others, and theirs for ours.

A process answers the volume's control socket while one of its verbs lasts (`server`). A verb that finds the volume in
use is run there, with its own descriptors, directory and umask, and ends with the same output and exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.elsewhere import ElsewhereError
from blockplane.cli.main import run_served
from blockplane.cli.pressure import tell_demoted
from blockplane.cli.start import INTERRUPTED_STATUS
from blockplane.cli.text import sentence
from blockplane.cli.verbtable import ALONE, KINDS, verb_of
from blockplane.model.errors import RefusedError, UsageError, VolumeInUseError
from blockplane.model.ownfiles import read_own
from blockplane.model.release import WRITER
from blockplane.server import Activities, Contact, ControlServer, Kind, Session, contact, current, let_written
from blockplane.server.control import SETTLE_S
from blockplane.volume import Volume as PlainVolume
from blockplane.volume.making import LOCK_NAME

#: Verbs are one with their release: what one prints and takes is not another's.
RELEASE: Final = WRITER
#: How long a verb waits for a process that has just taken the volume: it ends soon, or answers soon; and for one that
#: has answered that it will not: it may be ending.
_GRACE_S, _REFUSED_S = 5.0, 1.0
_POLL_S: Final = 0.02
#: Verbs that show who reads what, or whose dry runs depend on it.
_SEE_PINS: Final = ("info", "prune", "settle", "snapshot delete", "snapshot list", "snapshot policy")

DirectoryKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Host:
    """A volume that this process answers for, and what goes on in it."""

    volume: bp.Volume
    activities: Activities
    directory: Path


_hosts: dict[DirectoryKey, Host] = {}


def _require_wanted() -> None:
    session = current()
    if session is not None:
        session.require_alive()


def _ending(end: Callable[[], None]) -> AbstractContextManager[None]:
    session = current()
    return session.ending(end) if session is not None else contextlib.nullcontext()


console.streams_of = current
console.require_wanted = _require_wanted
console.ending = _ending


# --- opening for a verb ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(
    place: str, verb: str, wait_s: float, *, writable: bool, kind_name: str | None = None
) -> Iterator[bp.Volume]:
    """Open a volume for a verb: the one this process hosts where the verb is another process's, else from its disks.

    Parameters
    ----------
    kind_name : what is done to this volume, where that is not the verb's own kind: of a verb that has two volumes.

    Raises
    ------
    ElsewhereError: another process has it, and will run the verb.
    """
    session, host = current(), _hosts.get(_key(place) or (-1, -1))
    name = kind_name or KINDS.get(verb)
    kind = Kind[name] if name is not None else Kind.READS
    kind = kind if writable or kind is Kind.CHECKS else Kind.READS
    if session is not None and host is not None:
        with _as_guest(host, session, verb, kind, wait_s, writable) as volume:
            yield volume
        return
    volume = _from_disks(place, verb, wait_s, writable)
    try:
        with volume, _used(volume, verb, kind):
            yield volume
    finally:
        tell_demoted(volume)


@contextlib.contextmanager
def _used(volume: bp.Volume, verb: str, kind: Kind) -> Iterator[None]:
    """Say what is wrong with a volume that was opened, and answer for it."""
    for warning in volume.warnings:
        print(f"blockplane: {sentence(warning)}", file=sys.stderr)
    with _hosting(volume, verb, kind):
        yield


def making(verb: str) -> bp.Opening:
    """Return how a verb opens a volume that it makes: one that others' verbs can work on meanwhile."""

    def around(volume: PlainVolume) -> AbstractContextManager[None]:
        assert isinstance(volume, bp.Volume)
        return _used(volume, verb, Kind[KINDS[verb]])

    return bp.Opening(bp.Volume, around, verb)


@contextlib.contextmanager
def _as_guest(
    host: Host, session: Session, verb: str, kind: Kind, wait_s: float, writable: bool
) -> Iterator[bp.Volume]:
    """Work on a volume that this process has open; what the verb changed is durable when it ends."""
    with host.activities.going_on(kind, verb, session.pid, wait_s, session.require_alive):
        host.volume.path = host.directory  # whole: from here on threads work in several directories
        if writable:
            host.volume.take_for_writing(max(wait_s, _GRACE_S))
        known = len(host.volume.demoted)
        yield host.volume
        if writable:
            host.volume.sync()
            tell_demoted(host.volume, known)


def _from_disks(place: str, verb: str, wait_s: float, writable: bool) -> bp.Volume:
    """Open a volume, waiting a little for one that others have just opened."""
    started = time.monotonic()
    if verb in _SEE_PINS:  # readers may share the volume, but what one of them pins only it can say
        with contextlib.suppress(VolumeInUseError):
            _go_there(place)
    while True:
        try:
            return bp.Volume.open(place, writable=writable, verb=verb, answers=True)
        except VolumeInUseError as error:
            problem, grace_s = error, _GRACE_S
        if verb.partition(" --")[0] in KINDS:
            try:
                _go_there(place)
            except VolumeInUseError as error:
                problem, grace_s = error, _REFUSED_S
        waited_s = time.monotonic() - started
        if waited_s >= max(wait_s, grace_s if _may_answer(place) else 0.0):
            raise problem
        time.sleep(_POLL_S)


def _go_there(place: str) -> None:
    """End the verb where another process answers for the volume, and will run it; else return.

    Raises
    ------
    VolumeInUseError: one answers, and will not run it.
    """
    found = contact(Path(place), RELEASE) if current() is None else None
    if found is not None:
        raise ElsewhereError(found)


def _may_answer(place: str) -> bool:
    """Whether who has the volume may answer soon: another verb, or readers, who do not say."""
    try:
        owner = json.loads(read_own(Path(place, LOCK_NAME), 4096) or b"{}")
    except (OSError, ValueError, RecursionError, RefusedError):
        return False
    return isinstance(owner, dict) and (not owner or owner.get("answers") is True)


def _key(place: str | os.PathLike[str]) -> DirectoryKey | None:
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


# --- answering ------------------------------------------------------------------------------------------------------


def serve_control(
    volume: bp.Volume,
    verb: str = "a program",
    activities: Activities | None = None,
    warn: Callable[[str], None] | None = None,
) -> AbstractContextManager[ControlServer | None]:
    """Answer a volume's control socket for the length of a `with`: the command line's verbs work on it meanwhile.

    Parameters
    ----------
    volume : open, for writing or reading. verb : what others are told that this process does.
    activities : what goes on in it, where the caller does things to it too. warn : told, in a sentence, what is wrong.

    Returns
    -------
    a context of who answers, which `close_door` makes end soon; None: this process answers for it already.

    Notes
    -----
    Leaving waits for verbs that run, also for those that begin while others do; do not hold the volume's lock.
    `sys.stdin`, `sys.stdout` and `sys.stderr` stand in for each thread's own meanwhile.
    """
    return _hosting(volume, verb, Kind.READS, 0.0, activities, warn)


@contextlib.contextmanager
def _hosting(
    volume: bp.Volume,
    verb: str,
    kind: Kind,
    settle_s: float = SETTLE_S,
    activities: Activities | None = None,
    warn: Callable[[str], None] | None = None,
) -> Iterator[ControlServer | None]:
    tell = warn or _warn
    key = _key(volume.path)
    if key is None or key in _hosts:
        yield None
        return
    host = Host(volume, activities or Activities(str(volume.path)), Path(os.path.abspath(volume.path)))
    server = ControlServer(host.directory, _host_verb, RELEASE, verb, settle_s, tell)
    with ExitStack() as stack:
        stack.enter_context(console.routed())
        _hosts[key] = host
        stack.callback(_hosts.pop, key)
        server.__enter__()
        stack.callback(server.finish, tell)
        with host.activities.going_on(kind, verb, os.getpid()):
            yield server


@contextlib.contextmanager
def going_on(volume: PlainVolume, verb: str, kind_name: str, wait_s: float) -> Iterator[None]:
    """Note, of a volume that this process hosts, that more goes on in it than the verb that opened it said.

    Raises
    ------
    RefusedError: something goes on beside which it may not, and did not end in time.
    """
    host = _hosts.get(_key(volume.path) or (-1, -1))
    if host is None:
        yield
        return
    with host.activities.going_on(Kind[kind_name], verb, os.getpid(), wait_s):
        yield


def broken_off(volume: PlainVolume) -> None:
    """See let_written; of a volume that this process hosts."""
    host = _hosts.get(_key(volume.path) or (-1, -1))
    if host is not None:
        let_written(host.volume, host.activities)


def _warn(text: str) -> None:
    print(f"blockplane: {sentence(text)}", file=sys.stderr, flush=True)


def _host_verb(session: Session) -> int:
    """Run a verb of another process in this thread.

    Raises
    ------
    UsageError, RefusedError: it is none that can be run here.
    """
    verb = verb_of(session.arguments)
    if verb in ALONE:
        raise RefusedError(f"{verb} is not run by another process: {ALONE[verb]}")
    if verb not in KINDS:
        raise UsageError(f"{verb[:40]!r} is no verb")
    with session.entered(verb):
        console.route()
        try:
            return run_served(session.arguments)
        except Exception:  # noqa: BLE001 - asked for: BLOCKPLANE_TRACEBACK
            traceback.print_exc()
            return 1


def run_there(found: Contact, arguments: Sequence[str]) -> int:
    """Have the process that has the volume run our verb; return the exit status.

    Raises
    ------
    KeyboardInterrupt: it was interrupted, here or there.
    """
    environment = {name: value for name, value in os.environ.items() if name.startswith("BLOCKPLANE_")}
    umask = os.umask(0o077)
    os.umask(umask)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    status = found.run(arguments, (0, 1, 2), umask, environment, encoding)
    if status == INTERRUPTED_STATUS:  # of which it could say nothing
        raise KeyboardInterrupt
    return status
