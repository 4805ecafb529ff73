"""A service in a process of its own, and a clock that tests set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rig.owners import COMMAND, TIMEOUT_S, wait_for


class FakeClock:
    """Both clocks, moved by hand."""

    def __init__(self, wall_s: float = 1_800_000_000.0) -> None:
        self._monotonic_s, self._wall_s = 1000.0, wall_s

    def monotonic(self) -> float:
        return self._monotonic_s

    def wall(self) -> float:
        return self._wall_s

    def advance(self, seconds: float) -> None:
        self._monotonic_s += seconds
        self._wall_s += seconds

    def set(self, wall_s: float) -> None:
        """Have somebody set the wall's clock."""
        self._wall_s = wall_s


class Serving:
    """A service's process, and what it has said so far: a JSON object a line."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def events(self) -> list[dict]:
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def said(self, event: str, **about: object) -> list[dict]:
        found = [e for e in self.events if e["event"] == event]
        return [e for e in found if all(e.get(key) == value for key, value in about.items())]

    def wait_for(self, event: str, n: int = 1, **about: object) -> list[dict]:
        def is_there() -> bool:
            assert len(self.said(event, **about)) >= n or self.process.poll() is None, self._log.read_text()
            return len(self.said(event, **about)) >= n

        wait_for(is_there, f"{event} {about} in {self._log.read_text()}")
        return self.said(event, **about)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


@contextmanager
def serving(*words: str, environment: dict[str, str] | None = None, log: str = "serve.log") -> Iterator[Serving]:
    """A service in a process of its own, which is killed at the end where it has not ended."""
    path = Path(log).absolute()
    with path.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", *words, "--log", "json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield Serving(process, path)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)
