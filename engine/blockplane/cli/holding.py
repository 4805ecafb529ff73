"""Holds that interrupted transfers leave at their source."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import blockplane as bp
from blockplane.cli.images import Choice
from blockplane.cli.text import printable


@contextmanager
def held_image(
    volume: bp.Volume,
    words: Sequence[str],
    choice: Choice,
    hold: float | None,
    outputs: Sequence[str],
    is_left: Callable[[bp.Image], bool],
) -> Iterator[bp.Image]:
    """Give the image of a transfer to these places; its snapshots are held so long if that fails.

    Parameters
    ----------
    hold : None: as long as usual, and only if it leaves what can be gone on with; 0: not at all.
    """
    found = choice.image(volume, words)
    to, shown = "\0".join(map(os.path.abspath, outputs)), printable(" ".join(words))
    with bp.held(volume, found, hold, to) if hold else nullcontext():
        try:
            yield found
        except BaseException as error:
            # nothing was begun where the words were wrong
            if hold != 0 and not isinstance(error, (bp.errors.UsageError, bp.errors.KeyFileError)):
                unknown = "whether that can be gone on with is not known"
                unheld = f"nothing holds what {shown} is made of until it is gone on with"
                with _telling(unknown if hold else unheld):
                    if is_left(found):
                        _tell_interrupted(error)
                        if hold is None:
                            owner = bp.hold_left(volume, found, to)
                            what = f"its snapshots are held for 30 days, by {printable(owner)}"
                            print(f"blockplane: {what}", file=sys.stderr)
            raise
    if hold is None and outputs:
        with _telling(f"what an interrupted transfer of {shown} holds stays held"):
            bp.release_left(volume, found, to)


def _tell_interrupted(error: BaseException) -> None:
    """Add to an interrupt how to go on, where nobody has."""
    if isinstance(error, KeyboardInterrupt) and not getattr(error, "__notes__", ()):
        error.add_note("interrupted; what is written can be gone on with")
        error.add_note("say the same again with --resume")


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Say in a line what comes of it where a volume cannot be written to."""
    try:
        yield
    except (bp.errors.BlockplaneError, OSError) as error:
        print(f"blockplane: {what}: {error}", file=sys.stderr)
