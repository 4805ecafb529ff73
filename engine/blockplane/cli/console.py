"""Standard input, output and error while verbs of other processes run in threads of this one: each has its own."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

#: Gives the running thread's own streams by name, or None where it works for this process. Set by `hosting`.
streams_of: Callable[[], object | None] = lambda: None  # noqa: E731
#: Raises where the running thread's verb is to end early. Set by `hosting`.
require_wanted: Callable[[], None] = lambda: None  # noqa: E731
#: Has something called, for the length of a `with`, when the running thread's verb is to end early. Set by `hosting`.
ending: Callable[[Callable[[], None]], AbstractContextManager[None]] = lambda _: contextlib.nullcontext()  # noqa: E731

_NAMES = ("stdin", "stdout", "stderr")
_lock = threading.Lock()
_n_users = 0


def raw(name: str) -> IO[bytes] | None:
    """Return the unbuffered `input` or `output` of whom the running thread works for; None: it is our own."""
    streams = streams_of()
    return getattr(streams, name) if streams is not None else None


class RoutedStream:
    """Stands where `sys.stdout` stood; is the stream of whom the running thread works for."""

    def __init__(self, name: str, plain: Any) -> None:
        self._name = name
        self.plain = plain

    def __getattr__(self, attribute: str) -> Any:
        streams = streams_of()
        if streams is not None:
            return getattr(getattr(streams, self._name), attribute)
        return getattr(self.plain if self.plain is not None else _nowhere(), attribute)


@functools.cache
def _nowhere() -> IO[str]:
    """Return what stands for a stream that is closed; as long-lived as the process."""
    return open(os.devnull, "r+")


@contextlib.contextmanager
def routed() -> Iterator[None]:
    """Route the standard streams for the length of a `with`; several may overlap."""
    global _n_users
    with _lock:
        _n_users += 1
    route()
    try:
        yield
    finally:
        with _lock:
            _n_users -= 1
            if _n_users == 0:
                _restore()


def route() -> None:
    """Route the standard streams, where somebody put others there too."""
    with _lock:
        for name in _NAMES:
            plain = getattr(sys, name)
            if not isinstance(plain, RoutedStream):
                setattr(sys, name, RoutedStream(name, plain))


def _restore() -> None:
    for name in _NAMES:
        stream = getattr(sys, name)
        if isinstance(stream, RoutedStream):  # what somebody put there is theirs to take away
            setattr(sys, name, stream.plain)
