"""One line of progress on standard error, for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from blockplane.cli import console
from blockplane.cli.text import duration, rate, size

if TYPE_CHECKING:
    import blockplane as bp

_FIRST_S = 1.0
_TERMINAL_EVERY_S = 0.1
_LOG_EVERY_S = 2.0


class ProgressLine:
    """Takes progress events; shows them on a terminal, or where asked for, from the second second on.

    Parameters
    ----------
    wanted : True to show it anywhere, False nowhere, None on a terminal only.
    """

    def __init__(self, wanted: bool | None) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._is_shown = self._on_terminal if wanted is None else wanted
        self._last_s = 0.0
        self._started_s = time.monotonic()
        self._width = 0

    def __call__(self, event: bp.ProgressEvent) -> None:
        """Take an event; ends the verb here where whoever asked for it is gone."""
        console.require_wanted()
        self._show(describe(event), event.seconds)

    def phase(self, name: str) -> None:
        """Take the name of what is under way where nobody counts bytes."""
        console.require_wanted()
        self._show(name, time.monotonic() - self._started_s)

    def _show(self, text: str, seconds: float) -> None:
        now = time.monotonic()
        every = _TERMINAL_EVERY_S if self._on_terminal else _LOG_EVERY_S
        if not self._is_shown or seconds < _FIRST_S or now - self._last_s < every:
            return
        self._last_s = now
        if self._on_terminal:
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)


def describe(event: bp.ProgressEvent) -> str:
    """Return an event as a line: how much of how much, the rate, the time that is left."""
    text = f"{event.phase}: {size(event.done_bytes)}"
    if event.total_bytes:
        text += f" of {size(event.total_bytes)} ({100 * event.done_bytes // event.total_bytes} %)"
    text += f", {rate(event.done_bytes, event.seconds)}"
    if event.total_bytes and event.done_bytes:
        left_s = event.seconds * (event.total_bytes - event.done_bytes) / event.done_bytes
        text += f", {duration(left_s)} left"
    return text
