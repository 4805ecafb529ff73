"""The client's side: finding who answers for a volume, and having a verb run there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockplane.model.errors import VolumeInUseError
from blockplane.server import socketfile
from blockplane.server.wire import ENDED_HINT, PROTOCOL, WireError, peer_of, receive_message, send_message

#: How long a client that was interrupted waits for the other side to say how its verb ended.
_CANCEL_S = 5.0


@dataclass(frozen=True, slots=True)
class Contact:
    """A process that has a volume open and has greeted us; it waits for a request, not for long."""

    path: Path
    sock: socket.socket
    pid: int
    verb: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.verb})"

    def run(
        self, arguments: Sequence[str], fds: Sequence[int], umask: int, environment: Mapping[str, str], encoding: str
    ) -> int:
        """Have a verb run there; return its exit status.

        Parameters
        ----------
        fds : standard input, output and error. The working directory goes with them.

        Raises
        ------
        VolumeInUseError: it was not run, or its end was not heard of. KeyboardInterrupt: after one, when it ended.
        """
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        request = {
            "arguments": list(arguments),
            "umask": umask,
            "environment": dict(environment),
            "encoding": encoding,
        }
        with self.sock:
            try:
                send_message(self.sock, request, [directory, *fds])
                answer = self._answer()
            except (WireError, OSError):
                raise VolumeInUseError(
                    f"{self}, which has {self.path}, ended before it said how this verb did",
                    ENDED_HINT,
                ) from None
            finally:
                os.close(directory)
        if "refused" in answer:
            raise VolumeInUseError(
                f"{self.path} is in use by {self}, which refuses: {answer['refused']}", str(answer.get("hint", ""))
            )
        status = answer.get("status")
        return status if isinstance(status, int) else 1

    def _answer(self) -> dict[str, object]:
        """Wait for the end of the verb; an interrupt is passed on, and waited for a little."""
        try:
            return receive_message(self.sock, deadline_s=None)[0]
        except KeyboardInterrupt:
            with contextlib.suppress(WireError, OSError):
                self.sock.shutdown(socket.SHUT_WR)
                receive_message(self.sock, deadline_s=_CANCEL_S)
            raise

    def close(self) -> None:
        """Ask for nothing."""
        self.sock.close()


def contact(path: Path, release: str) -> Contact | None:
    """Return who has a volume open and answers; None: nobody answers, or not any more.

    Raises
    ------
    VolumeInUseError: it is another user's process, of another release, or has no room: the message says which.
    """
    sock = socketfile.connect(path)
    if sock is None:
        return None
    try:
        _refuse_foreign(sock, path)
        greeting, _ = receive_message(sock)
    except WireError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    found = Contact(path, sock, peer_of(sock)[0], str(greeting.get("verb", "?"))[:40])
    problem, hint = _problem(greeting, release)
    if problem:
        sock.close()
        raise VolumeInUseError(f"{path} is in use by {found}: {problem}", hint)
    return found


def _refuse_foreign(sock: socket.socket, path: Path) -> None:
    """Give no descriptor of ours to another user's process."""
    pid, uid = peer_of(sock)
    if uid != os.geteuid():
        raise VolumeInUseError(
            f"{path} is in use by process {pid} of user {uid}, and this is user {os.geteuid()}",
            "run it as that user, or wait until that process has ended",
        )


def _problem(greeting: Mapping[str, object], release: str) -> tuple[str, str]:
    """Return why nothing can be asked for, and what to do about it."""
    later = "wait until that process has ended, or use its release"
    if greeting.get("protocol") != PROTOCOL:
        return f"it speaks version {greeting.get('protocol')!r} of the control socket, this is {PROTOCOL}", later
    if "refused" in greeting:
        return str(greeting["refused"])[:200], "run it again later"
    if greeting.get("release") != release:
        return f"it runs blockplane {greeting.get('release')!r}, this is {release!r}", later
    return "", ""
