"""Standard input, output and error while verbs of other processes run in threads of this one: each has its own."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

#: Gives the running thread's own streams by name, or None where it works for this process. Set by `hosting`.
streams_of: Callable[[], object | None] = lambda: None  # noqa: E731
#: Raises where the running thread's verb is to end early. Set by `hosting`.
require_wanted: Callable[[], None] = lambda: None  # noqa: E731

_NAMES = ("stdin", "stdout", "stderr")
_lock = threading.Lock()
_plain: dict[str, Any] = {}
_n_users = 0


def raw(name: str) -> IO[bytes] | None:
    """Return the unbuffered `input` or `output` of whom the running thread works for; None: it is our own."""
    streams = streams_of()
    return getattr(streams, name) if streams is not None else None


class RoutedStream:
    """Stands where `sys.stdout` stood; is the stream of whom the running thread works for."""

    def __init__(self, name: str, plain: Any) -> None:
        self._name = name
        self._plain = plain

    def __getattr__(self, attribute: str) -> Any:
        streams = streams_of()
        return getattr(self._plain if streams is None else getattr(streams, self._name), attribute)


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
        if _n_users == 1:
            for name in _NAMES:
                _plain[name] = getattr(sys, name)
                setattr(sys, name, RoutedStream(name, _plain[name] if _plain[name] is not None else _nowhere()))
    try:
        yield
    finally:
        with _lock:
            _n_users -= 1
            if _n_users == 0:
                for name in _NAMES:
                    if isinstance(getattr(sys, name), RoutedStream):  # nobody put something else there
                        setattr(sys, name, _plain[name])
                _plain.clear()
