"""The owner's side: a thread that answers a volume's control socket, and one thread for each client's verb."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from blockplane.model.errors import BlockplaneError, RefusedError
from blockplane.server import socketfile
from blockplane.server.session import CancelledError, Session
from blockplane.server.wire import (
    ENDED_HINT,
    MAX_DESCRIPTORS,
    MAX_REQUEST_BYTES,
    PROTOCOL,
    WireError,
    peer_of,
    receive_message,
    send_message,
)

#: Verbs of other processes that run at once; one more is told to come again.
MAX_SESSIONS: Final = 32
#: Connections that have said nothing yet: they cannot keep those out that have something to say.
MAX_GREETED: Final = 16
#: How long a verb runs before it makes a socket: one that ends at once must not become the host of one that lasts.
SETTLE_S: Final = 0.25
_BIND_EVERY_S: Final = 1.0
#: A file system without sockets, a directory that is not ours to write to: it stays so.
_NO_SOCKETS: Final = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EROFS)
#: How long nobody is answered where the process has no more descriptors, or threads.
_PAUSE_S: Final = 0.05

#: Runs a session's verb; returns its exit status.
Run = Callable[[Session], int]


class ControlServer:
    """Answers a volume's control socket from another thread, as long as it is open.

    Parameters
    ----------
    path : the volume's directory, whose lock this process holds.
    run : runs a verb in the calling thread. release : the version of the verbs, which a client must have too.
    verb : what this process does with the volume. settle_s : how long to wait before there is a socket.
    warn : told, in a sentence, why there is none.
    """

    def __init__(
        self,
        path: Path,
        run: Run,
        release: str,
        verb: str,
        settle_s: float = SETTLE_S,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._path, self._run, self._warn = path, run, warn
        self._greeting = {"protocol": PROTOCOL, "release": release, "pid": os.getpid(), "verb": verb}
        self._settle_s, self._bind_at = settle_s, float("inf")
        self._listener: socket.socket | None = None
        #: the error of the last try
        self._failed_by: int | None = None
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: guards the five below; sessions that end are not in the list any more, and counted till they have
        self._changed = threading.Condition()
        self._is_over = self._is_closing = False
        self._sessions: dict[Session, socket.socket] = {}
        self._n_greeted = self._n_ending = 0
        self._thread = threading.Thread(target=self._serve, name="blockplane control", daemon=True)

    # --- beginning and end -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._bind_at = time.monotonic() + self._settle_s
        if self._settle_s <= 0:
            self._bind_if_due()
        try:
            self._thread.start()
        except RuntimeError:  # there are as many as the system allows: whoever opened the volume tries again
            os.close(self._wake_fd)
            self._let_go_of_socket()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.finish()

    def finish(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Wait until no other process's verb runs, then answer no more. Not with the volume's lock held.

        Parameters
        ----------
        tell : told, in a sentence, that it waits, and for whom.

        Notes
        -----
        New verbs are still answered while others run. An interrupt while waiting cancels them; then they are waited
        for.
        """
        try:
            self._wait(tell)
        except KeyboardInterrupt:
            self.cancel()
            self._wait(tell)
            raise
        finally:
            os.eventfd_write(self._wake_fd, 1)
            if self._thread.is_alive():
                self._thread.join()
            os.close(self._wake_fd)

    def _wait(self, tell: Callable[[str], None]) -> None:
        with self._changed:
            if self._n_ending or self._n_greeted:
                self._changed.wait(0.1)
            if self._sessions:
                tell(f"waiting for {self._described()}")
            while self._n_ending or self._n_greeted:
                self._changed.wait()
            self._is_over = True

    def _described(self) -> str:
        found = [f"{session.arguments[0]} (process {session.pid})" for session in self._sessions]
        return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")

    def cancel(self) -> None:
        """End the verbs of other processes at their next step."""
        with self._changed:
            for session in self._sessions:
                session.cancel()

    def close_door(self) -> None:
        """Run no new verb from now on, and end those that run at their next step."""
        with self._changed:
            self._is_closing = True
        self.cancel()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Accept, and watch for clients that go; bind when it is time."""
        while not self._is_over:
            self._bind_if_due()
            left_s = self._bind_at - time.monotonic()
            self._watch(None if left_s == float("inf") else max(left_s, 0.0) * 1000 + 1)
        self._let_go_of_socket()

    def _let_go_of_socket(self) -> None:
        if self._listener is not None:
            socketfile.remove(self._path, self._listener)

    def _bind_if_due(self) -> None:
        if time.monotonic() >= self._bind_at:
            self._bind_at = time.monotonic() + _BIND_EVERY_S if self._bind() else float("inf")

    def _bind(self) -> bool:
        """Make the socket; return whether to try again: another process has it, or what is in the way may pass."""
        try:
            self._listener = socketfile.listen(self._path, MAX_GREETED)
        except RefusedError as error:
            self._warn(error.message)
            return False
        except OSError as error:
            may_pass = error.errno not in _NO_SOCKETS
            if error.errno not in (errno.EROFS, self._failed_by):  # readers share what is read-only; else said once
                again = "; it is tried again" if may_pass else ""
                self._warn(f"no control socket can be made in {self._path}: {error.strerror or error}{again}")
            self._failed_by = error.errno
            return may_pass
        return self._listener is None

    def _watch(self, timeout_ms: float | None) -> None:
        """Wait for what happens next, and act on it."""
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        listener = self._listener
        if listener is not None:
            poll.register(listener, select.POLLIN)
        with self._changed:
            watched = {sock.fileno(): session for session, sock in self._sessions.items() if not session.is_cancelled}
        for fd in watched:
            poll.register(fd, select.POLLIN | select.POLLRDHUP)
        for fd, _ in poll.poll(timeout_ms):
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
            elif listener is not None and fd == listener.fileno():
                self._accept(listener)
            elif fd in watched:
                with self._changed:
                    if watched[fd] in self._sessions:  # it is gone, or asks for it: nothing else is said meanwhile
                        watched[fd].cancel()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            time.sleep(_PAUSE_S)  # no descriptors left, say: those that run give some back
            return
        with self._changed:
            is_room = self._n_greeted < MAX_GREETED and not self._is_over
            self._n_greeted += is_room
        if not is_room:
            sock.close()
            return
        try:
            threading.Thread(target=self._answer, args=(sock,), name="blockplane client", daemon=True).start()
        except RuntimeError:  # there are as many as the system allows: those that end give some back
            sock.close()
            with self._changed:
                self._n_greeted -= 1
                self._changed.notify_all()
            time.sleep(_PAUSE_S)

    # --- one client --------------------------------------------------------------------------------------------------

    def _answer(self, sock: socket.socket) -> None:
        with sock:
            session = None
            try:
                session = self._hear(sock)
            except (BlockplaneError, OSError):
                pass  # it said nothing sensible, and is not owed an answer
            finally:
                with self._changed:
                    self._n_greeted -= 1
                    if session is not None:
                        self._sessions[session] = sock
                        self._n_ending += 1
                        if self._is_closing:
                            session.cancel()
                    self._changed.notify_all()
            if session is not None:
                self._host(sock, session)

    def _hear(self, sock: socket.socket) -> Session | None:
        """Greet a client and take its request; None: it was refused, and told so."""
        pid, uid = peer_of(sock)
        if uid not in (os.geteuid(), 0):
            send_message(sock, {"protocol": PROTOCOL, "refused": "this volume is in use by another user"})
            return None
        with self._changed:
            is_busy, is_closing = len(self._sessions) >= MAX_SESSIONS, self._is_closing
        if is_closing:
            send_message(sock, {**self._greeting, "refused": "it is stopping"})
            return None
        if is_busy:
            send_message(sock, {**self._greeting, "refused": f"it runs {MAX_SESSIONS} verbs of others already"})
            return None
        send_message(sock, self._greeting)
        message, fds = receive_message(sock, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        try:
            return Session.decode(message, pid, fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def _host(self, sock: socket.socket, session: Session) -> None:
        """Run a client's verb, and tell it how that ended."""
        os.eventfd_write(self._wake_fd, 1)  # the other thread is to watch this one too
        status: dict[str, Any] = {}
        try:
            status = {"status": self._run(session)}
        except BlockplaneError as error:
            status = {"refused": error.message, "hint": error.hint}
        except CancelledError:  # while it said why it failed
            status = {"status": 1}
        finally:
            # it could not say so itself any more
            if status.get("status") and session.is_cancelled and self._is_closing:
                status = {"refused": "it is stopping, and has ended this verb", "hint": ENDED_HINT}
            with self._changed:
                del self._sessions[session]
            session.close()
            with contextlib.suppress(OSError, WireError):
                send_message(sock, status)
            with self._changed:
                self._n_ending -= 1
                self._changed.notify_all()
