"""Streams in files of a volume, `VOL:/PATH`: opened for verbs that read or write streams."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import blockplane as bp
from blockplane.cli.naming import (
    CONFIG_NAME,
    Target,
    live_file_of,
    open_files,
    open_volume,
    parse_target,
    volume_only,
)
from blockplane.cli.text import printable

if TYPE_CHECKING:
    from blockplane.server.streamplace import VolumePlace


def place_in_volume(text: str) -> Target | None:
    """Return what a text means where it is a path in a volume that is there; None: it is a file of the host."""
    if ":/" not in text or text.startswith(":/") or os.path.lexists(text):
        return None
    target = parse_target(text)
    return target if os.path.exists(os.path.join(target.place, CONFIG_NAME)) else None


def place_to_write(text: str) -> Target | None:
    """Return what a text means as `place_in_volume`; NotAVolumeError: neither that volume nor a folder of the host is
    there.
    """
    target = place_in_volume(text)
    if target is None and ":/" in text and not os.path.isdir(os.path.dirname(text)):
        place = parse_target(text).place
        raise bp.errors.NotAVolumeError(
            f"{text} cannot be written: {place} is no volume", "name a path in a volume that is there, or a file"
        )
    return target


def refuse_volumes(output: str, verb: str) -> None:
    """Raise UsageError where a verb that writes files of the host would write into a volume."""
    if place_to_write(output) is not None:
        raise bp.errors.UsageError(
            f"{output} is in a volume, and {verb} writes files of the host",
            f"name one with -o, and put it there: blockplane put {printable(output)} FILE",
        )


@contextmanager
def opened_streams(texts: Sequence[str], verb: str, wait_s: float) -> Iterator[list[str | VolumePlace]]:
    """Open the volumes that streams lie in; give the streams as what reads them takes them."""
    from blockplane.server.streamplace import VolumePlace  # not above: help and completion do without

    with ExitStack() as stack:
        opened: dict[tuple[str, str | None], bp.FileSystem] = {}
        found: list[str | VolumePlace] = []
        for text in texts:
            target = place_in_volume(text)
            if target is None:
                found.append(text)
                continue
            key = target.place, target.snapshot
            if key not in opened:
                opened[key] = stack.enter_context(open_files(target, verb, wait_s))
            found.append(VolumePlace(opened[key], target.path or "/", name=text))
        yield found


@contextmanager
def opened_to_send(
    vol: str, outputs: Sequence[str], wait_s: float, *, writable: bool
) -> Iterator[tuple[bp.Volume, list[str | VolumePlace]]]:
    """Open a volume to be sent from, and those that streams go into where outputs name files in volumes."""
    from blockplane.server.streamplace import VolumePlace  # as above

    place, targets = volume_only(vol), [place_to_write(output) for output in outputs]
    with ExitStack() as stack:
        opened: dict[str, bp.Volume] = {}
        for target in targets:
            if target is not None and _same(target.place, opened) is None:
                live_file_of(target.text)
                opened[target.place] = stack.enter_context(
                    open_volume(target.place, "send", wait_s, writable=True, kind="FILES")
                )
        volume = _same(place, opened) or stack.enter_context(open_volume(place, "send", wait_s, writable=writable))
        sinks: list[str | VolumePlace] = []
        for output, target in zip(outputs, targets, strict=True):
            into = _same(target.place, opened) if target is not None else None
            if target is None or into is None:
                sinks.append(output)
            else:
                live_file_of(output)
                sinks.append(VolumePlace(bp.FileSystem(into), target.path or "/", into, output))
        yield volume, sinks


def _same(place: str, opened: dict[str, bp.Volume]) -> bp.Volume | None:
    """Return the volume of a place among those that are open."""
    for other, volume in opened.items():
        if os.path.isdir(place) and os.path.samefile(place, other):
            return volume
    return None


def refuse_own(vol: str, texts: Sequence[str]) -> None:
    """Raise UsageError where a stream lies in the volume that would receive it."""
    for text in texts:
        target = place_in_volume(text)
        if target is not None and os.path.isdir(vol) and os.path.samefile(target.place, vol):
            raise bp.errors.UsageError(
                f"{text} lies in the volume that would receive it", "get it out first, or receive into another volume"
            )
