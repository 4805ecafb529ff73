"""The first and the last moments of a process: an interrupt is quiet in them too."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED_STATUS = 130  # as a shell reports a process that SIGINT ended


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a job that ignores interrupts goes on so
    if is_ours:
        signal.signal(signal.SIGINT, _leave)
    # not above: loading takes most of a short verb's time
    from blockplane.cli.confine import FROM_OTHERS, confine
    from blockplane.cli.main import run

    status = INTERRUPTED_STATUS
    try:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        words = sys.argv[1:] if arguments is None else arguments
        if words[:1] and words[0] in FROM_OTHERS:
            confine()
        status = run(words)
    except KeyboardInterrupt:
        pass
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the verb has ended: what is left is the interpreter's end
    sys.exit(status)


def _leave(number: int, frame: object) -> None:
    """End at once: nothing is open yet."""
    os._exit(INTERRUPTED_STATUS)
