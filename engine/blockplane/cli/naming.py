"""What people type to name volumes, snapshots, files and streams, and how each is opened.

`VOL`, `VOL@SNAP`, `VOL[@SNAP]:/PATH`, `FILE.bps[@SNAP][:/PATH]`, `A.bps,B.bps[@SNAP]:/PATH`, a folder of streams. The
first `:/` ends the volume part; `@` counts only after its last `/`.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blockplane as bp
from blockplane.cli.text import printable

if TYPE_CHECKING:
    from blockplane.stream import StreamChain
    from blockplane.transfer.newvolume import Opening

CONFIG_NAME = "volume.toml"
PLANES_DIRECTORY = "/.planes"
#: As in `volume.making`.
MARK_NAME = "making"
STREAM_SUFFIX = ".bps"


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed name. place: the volume's directory or the stream; snapshot, path: None where none was named."""

    text: str
    place: str
    snapshot: str | None
    path: str | None


def parse_target(text: str) -> Target:
    """Take a name apart; nothing is looked up."""
    head, separator, rest = text.partition(":/")
    path = "/" + rest if separator else None
    if not head:
        raise bp.errors.UsageError(f"{text!r} names no volume", "write VOL:/PATH, for example pool:/include")
    folder, slash, last = head.rpartition("/")
    name, at, snapshot = last.rpartition("@")
    if not at:
        return Target(text, head, None, path)
    if not (name or folder) or not snapshot:  # a shell completes a directory with its slash: pool/@june1
        raise bp.errors.UsageError(f"{text!r} is not VOL@SNAP", "write the volume's directory, @, the snapshot's name")
    return Target(text, folder + slash + name if name else folder, snapshot, path)


def volume_only(text: str) -> str:
    """Return the directory of a volume that must be named alone."""
    target = parse_target(text)
    if target.snapshot is not None or target.path is not None:
        raise bp.errors.UsageError(f"{text!r} is not a volume", f"name the volume alone: {target.place}")
    return target.place


def snapshot_of(text: str) -> tuple[str, str]:
    """Return (volume, snapshot) of VOL@SNAP."""
    target = parse_target(text)
    if target.snapshot is None or target.path is not None:
        raise bp.errors.UsageError(f"{text!r} is not VOL@SNAP", f"for example {target.place}@june1")
    return target.place, target.snapshot


def file_of(text: str) -> Target:
    """Return a target that must name a path."""
    target = parse_target(text)
    if target.path is None:
        raise bp.errors.UsageError(f"{text!r} names no path in a volume", f"for example {target.place}:/")
    return target


def live_file_of(text: str) -> Target:
    """Return a target that must name a path in a volume's live file system."""
    target = file_of(text)
    if target.snapshot is not None or stream_paths(target.place):
        what = f"snapshot {target.snapshot}" if target.snapshot is not None else "a stream"
        raise bp.errors.ReadOnlyError(f"{text!r}: {what} cannot be written", "name the live file system: VOL:/PATH")
    if plane_name(target) is not None:
        raise bp.errors.ReadOnlyError(
            f"{text!r}: the planes of the volume are shown there, and cannot be written",
            f"take another name; {target.place}:/.{PLANES_DIRECTORY} is a file of the volume called so",
        )
    return target


def plane_name(target: Target) -> str | None:
    """Return the name of the plane that a target means, empty for all of them; None where it means a file.

    The volume part of a name alone has them: `VOL@SNAP:/.planes` and `VOL:/./.planes` are files as any other.
    """
    path = (target.path or "").rstrip("/")
    if target.snapshot is not None or (path != PLANES_DIRECTORY and not path.startswith(f"{PLANES_DIRECTORY}/")):
        return None
    return None if stream_paths(target.place) else path[len(PLANES_DIRECTORY) + 1 :]


def stream_paths(place: str) -> list[str]:
    """Return the stream files that a place names: one, several with commas, a folder of them; none for a volume."""
    if os.path.isdir(place):
        is_folder = not os.path.exists(os.path.join(place, CONFIG_NAME)) and any(
            name.endswith((STREAM_SUFFIX, f"{STREAM_SUFFIX}.000")) for name in os.listdir(place)
        )
        return [place] if is_folder else []
    if bp.is_tape(place):
        return [place]
    if os.path.isfile(place) or _is_stream_file(place):
        return [place] if _is_stream_file(place) else []
    parts = place.split(",")
    # one that is not there is named when the chain is opened
    return parts if len(parts) > 1 and any(_is_stream_file(part) or bp.is_tape(part) for part in parts) else []


def _is_stream_file(path: str) -> bool:
    if os.path.lexists(path) and not (os.path.isfile(path) or pathlib.Path(path).is_block_device()):
        return False  # a pipe, which is read once
    return (os.path.isfile(path) and path.endswith(STREAM_SUFFIX)) or bp.is_stream(path)  # in pieces too


@contextmanager
def open_volume(
    place: str, verb: str, wait_s: float, *, writable: bool, kind: str | None = None
) -> Iterator[bp.Volume]:
    """Open a volume for a verb; ElsewhereError: another process has it, and will run the verb.

    kind : what is done to this one, by the names of `verbtable`, where that is not the verb's own kind.
    """
    from blockplane.cli.hosting import opened  # not above: it loads all that help and completion do without

    with opened(place, verb, wait_s, writable=writable, kind_name=kind) as volume:
        yield volume


def opening_to_make(verb: str) -> Opening:
    """Return how a verb opens a volume that it makes: others' verbs are answered meanwhile."""
    from blockplane.cli.hosting import making  # as above

    return making(verb)


def is_there(place: str) -> bool:
    """Whether a place has a volume, and no receive that was killed before it had anything left it half made."""
    return os.path.exists(os.path.join(place, CONFIG_NAME)) and not os.path.exists(os.path.join(place, MARK_NAME))


@contextmanager
def open_volumes(places: Iterable[str], verb: str, wait_s: float) -> Iterator[dict[str, bp.Volume]]:
    """Open volumes for a verb that writes, each once, and all before anything is done; by the places that name them."""
    with ExitStack() as stack:
        found: dict[str, bp.Volume] = {}
        for place in places:
            known = next((found[other] for other in found if is_same_place(place, other)), None)
            found[place] = known or stack.enter_context(open_volume(place, verb, wait_s, writable=True))
        yield found


def is_same_place(one: str, other: str) -> bool:
    """Whether two names mean one volume's directory."""
    return one == other or (os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other))


def tell_problems(chain: StreamChain) -> None:
    """Say what of a chain was damaged, and made up for when it was opened."""
    for problem in chain.problems:
        print(f"blockplane: {printable(problem)}", file=sys.stderr)


@contextmanager
def open_files(target: Target, verb: str, wait_s: float, keys: Sequence[str] = ()) -> Iterator[bp.FileSystem]:
    """Open what a target names for reading: the live file system, a snapshot (pinned), a stream or chain.

    keys : key files, for streams that are encrypted.
    """
    paths = stream_paths(target.place)
    with ExitStack() as stack:
        if paths:
            chain: StreamChain = stack.enter_context(bp.open_stream(*paths, snapshot=target.snapshot, key=keys))
            tell_problems(chain)
            yield bp.FileSystem(chain)
            return
        volume = stack.enter_context(open_volume(target.place, verb, wait_s, writable=False))
        if target.snapshot is None:
            yield stack.enter_context(bp.FileSystem(volume).steady())
            return
        snapshot = volume.get_snapshot(target.snapshot)
        stack.enter_context(volume.pin(snapshot.record.id))
        yield bp.FileSystem(snapshot)
