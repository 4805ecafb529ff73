"""What the service says: a line for each event, plain or as JSON, in whose text nothing foreign is raw."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Final

from blockplane.server.service.clock import Clock, SystemClock
from blockplane.text import sentence

LEVELS: Final = ("debug", "info", "warning", "error")


class Log:
    """Writes events. Thread-safe.

    Parameters
    ----------
    stream : where to, asked for anew at each event, so that it may change. form : "plain" or "json". level : the least
    that is written.

    Notes
    -----
    JSON objects have `time` (ISO 8601, UTC), `level`, `event` (a word or two that never changes) and `text`; others as
    the event has them: `volume`, `kind`, `job`, `seconds`, `error`. A reader that went away silences the log.
    """

    def __init__(
        self, stream: Callable[[], IO[str] | None], form: str = "plain", level: str = "info", clock: Clock | None = None
    ) -> None:
        self._stream, self._clock = stream, clock or SystemClock()
        self._lock = threading.Lock()
        self.set(form, level)

    def set(self, form: str, level: str) -> None:
        """Go on in another form, or at another level."""
        self._form, self._least = form, LEVELS.index(level)

    def debug(self, event: str, text: str, **more: object) -> None:
        """Tell what helps to see why."""
        self._write("debug", event, text, more)

    def info(self, event: str, text: str, **more: object) -> None:
        """Tell what was done."""
        self._write("info", event, text, more)

    def warning(self, event: str, text: str, **more: object) -> None:
        """Tell what somebody should look at some time."""
        self._write("warning", event, text, more)

    def error(self, event: str, text: str, **more: object) -> None:
        """Tell what failed."""
        self._write("error", event, text, more)

    def _write(self, level: str, event: str, text: str, more: dict[str, object]) -> None:
        if LEVELS.index(level) < self._least:
            return
        now = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds")
        if self._form == "json":
            line = json.dumps({"time": now, "level": level, "event": event, "text": text, **more})
        else:
            about = " ".join(str(more[key]) for key in ("volume", "kind", "job") if key in more)
            line = sentence(f"{now} {level} {about + ': ' if about else ''}{text}")
        with self._lock:
            try:
                stream = self._stream()
                if stream is not None:
                    stream.write(line + "\n")
                    stream.flush()
            except (OSError, ValueError):  # nobody reads any more: the work goes on
                return
