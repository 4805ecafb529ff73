"""Processes that have a volume for long, and verbs in processes of their own."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-c", "from blockplane.cli import main; main()"]
TIMEOUT_S = 120


def finish(*arguments: object, **options) -> subprocess.CompletedProcess[bytes]:
    """Run a verb in a process of its own."""
    words = [os.fspath(word) if isinstance(word, Path) else str(word) for word in arguments]
    return subprocess.run([*COMMAND, *words], capture_output=True, timeout=TIMEOUT_S, **options)


def answers(volume: str | Path) -> bool:
    """Whether somebody answers the volume's control socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(Path(volume, "control.sock")))
        except OSError:
            return False
    return True


def wait_for(condition, what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.01)


class Owner:
    """A verb that stalls at a pipe: `send` into one that nobody reads, or `receive` from one that says nothing more."""

    def __init__(self, process: subprocess.Popen[bytes], volume: str, is_sending: bool) -> None:
        self.process, self.volume, self.is_sending = process, volume, is_sending

    @property
    def pid(self) -> int:
        return self.process.pid

    def let_go(self) -> bytes:
        """Let the verb come to its end; return what it wrote on standard error."""
        if self.is_sending:
            _, err = self.process.communicate(timeout=TIMEOUT_S)
        else:
            self.process.stdin.close()
            self.process.stdin = None
            _, err = self.process.communicate(timeout=TIMEOUT_S)
        return err

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)


@contextmanager
def stalled(*verb: str, volume: str = "pool", begun: bytes = b"", answering: bool = True) -> Iterator[Owner]:
    """A process with a verb that stalls. verb: one that writes to standard output, or reads from standard input."""
    is_sending = verb[0] not in ("receive",)
    stdin = subprocess.DEVNULL if is_sending else subprocess.PIPE
    with subprocess.Popen([*COMMAND, *verb], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if begun:
                process.stdin.write(begun)
                process.stdin.flush()
            if answering:
                wait_for(lambda: answers(volume) or process.poll() is not None, "the control socket")
                assert process.poll() is None, process.stderr.read()
            yield Owner(process, volume, is_sending)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@contextmanager
def no_room_for_threads() -> Iterator[None]:
    """Have the system refuse this process one more thread, and nothing else: each asks for more than is left."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = threading.stack_size(1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (512 << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        threading.stack_size(before)
