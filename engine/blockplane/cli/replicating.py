"""Replication: replicate, and replicas, which shows who has what."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.calling import Calling, is_remote, network_options, network_wait_option, rate_option
from blockplane.cli.completion import PeerName, VolumeName
from blockplane.cli.naming import is_same_place, is_there, open_volume, opening_to_make, volume_only
from blockplane.cli.options import (
    DiskOptions,
    Duration,
    Interval,
    disk_options,
    json_option,
    progress_option,
    wait_option,
)
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import blocks, duration, iso, moment, print_json, print_table, printable, sentence, size
from blockplane.cli.watching import watch, watch_option

if TYPE_CHECKING:
    from blockplane.server.network.throttle import Throttle
    from blockplane.transfer import Peer, PullReport, ReplicaReport

_POLL_S = 0.2
_CHANGES = ("keep", "flush", "refuse")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options say about pulls."""

    source: str
    place: str
    pointer: str
    changes: str | None
    wish: DiskOptions
    calling: Calling
    wait_s: float


@click.command()
@click.argument("source", type=PeerName())
@click.argument("vol", type=VolumeName())
@click.option("--once", is_flag=True, help="Pull once, and end (default).")
@click.option("--every", type=Interval(), metavar="TIME", help="Pull again and again, as often as said: 30s, 10m.")
@click.option("--pointer", default="master", metavar="NAME", help="What to follow (master): a pointer, or a snapshot.")
@click.option(
    "--changes",
    type=click.Choice(_CHANGES),
    help="What becomes of what VOL has of its own: kept in a snapshot, given up, or nothing is pulled. By default "
    "changes are kept, and a VOL that has nothing of SOURCE's is refused.",
)
@network_options
@rate_option
@disk_options
@json_option
@network_wait_option
@progress_option
def replicate(
    source: str,
    vol: str,
    once: bool,
    every: float | None,
    pointer: str,
    changes: str | None,
    tls: str | None,
    insecure_plaintext: bool,
    throttle: Throttle | None,
    wish: DiskOptions,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Bring VOL to where a pointer of SOURCE stands, and its pointers after it.

    VOL says what it has; SOURCE sends what is missing since the newest snapshot that both have, or everything, and
    notes where VOL stands: what VOL needs to go on from there is held. SOURCE may itself be a replica, and any replica
    may go on with another source. Snapshots of VOL stay; its pointers move when all that is new is there.

    \b
    blockplane snapshot master pool@june3
    blockplane replicate pool copy
    blockplane replicate copy far --every 10m
    blockplane replicate source.example:7777/pool copy --tls tls
    blockplane replicas pool

    What was interrupted goes on with the next pull. With --every a pull that fails is told of on standard error, and
    tried again at the next time.
    """
    if once and every is not None:
        raise bp.errors.UsageError("--once and --every contradict each other", "say one of them")
    calling = Calling(tls, insecure_plaintext, wait_s, throttle)
    asked = _Asked(source, volume_only(vol), pointer, changes, wish, calling, wait_s)
    if not is_remote(source) and is_same_place(asked.source, asked.place):
        raise bp.errors.RefusedError(f"{vol} is its own source", "name another volume")
    while True:
        started = time.monotonic()
        try:
            _tell(_pulled(asked, progress), asked, as_json)
        except bp.BlockplaneError as error:
            if every is None:
                raise
            print(f"blockplane: {sentence(error.message)}", file=sys.stderr, flush=True)
        if every is None:
            return
        _wait(started + every)


def _wait(until: float) -> None:
    """Wait for the next time, as long as somebody wants it."""
    while (left_s := until - time.monotonic()) > 0:
        console.require_wanted()
        time.sleep(min(left_s, _POLL_S))


def _pulled(asked: _Asked, progress: bool | None) -> PullReport:
    """Pull once."""
    wish, changes = asked.wish, bp.LocalChanges(asked.changes) if asked.changes is not None else None
    with _source(asked) as peer, ProgressLine(progress) as line:
        if is_there(asked.place) and wish.is_plain:
            with open_volume(asked.place, "replicate", asked.wait_s, writable=True) as volume:
                return bp.replicate(peer, volume, asked.pointer, changes, progress=line)
        return bp.replicate(
            peer, asked.place, asked.pointer, changes, disks=wish.disks, size=wish.size, parity=wish.parity,
            chunk=wish.chunk, wipe=wish.wipe, progress=line, opening=opening_to_make("replicate"),
        )  # fmt: skip


@contextmanager
def _source(asked: _Asked) -> Iterator[Peer]:
    """Open a source: a volume's directory, or one behind a network."""
    if is_remote(asked.source):
        with asked.calling.open(asked.source) as peer:
            yield peer
        return
    place = volume_only(asked.source)
    with open_volume(place, "replicate", asked.wait_s, writable=True, kind="SNAPSHOTS") as volume:
        yield bp.VolumePeer(volume)


def _tell(found: PullReport, asked: _Asked, as_json: bool) -> None:
    brought = found.brought
    if as_json:
        print_json(
            {
                "source": found.source,
                "top": found.top,
                "base": brought.base,
                "n_blocks": brought.n_blocks,
                "n_bytes": brought.n_bytes,
                "seconds": brought.seconds,
                "already_there": brought.already_there,
                "kept": brought.kept,
                "moved": list(found.moved),
                "gone": list(found.gone),
                "source_is_behind": found.is_ahead,
                "left": found.left,
            }
        )
        return
    place = printable(asked.place)
    if found.is_ahead:
        print(f"{place} is ahead of {printable(asked.source)}: {asked.pointer} was moved more often here")
        print("nothing was brought; if the source was put back from an older copy, let it pull from here")
    elif brought.already_there:
        print(f"{place} has {brought.top} already")
    else:
        onto = f" onto {brought.base}" if brought.base else ""
        print(f"{place} has {brought.top}{onto}: {blocks(brought.n_blocks)} in {duration(brought.seconds)}")
    if found.left:
        print(
            f"what was here is unknown there, and may be nowhere else: {found.left} has it, and is held (left-behind)"
        )
    if brought.kept:
        print(f"what had been changed here is in {brought.kept}")
    if found.moved:
        print(f"moved: {', '.join(found.moved)}")
    if found.gone:
        print(f"deleted, as they were there: {', '.join(found.gone)}")


@click.command()
@click.argument("vol", type=VolumeName())
@click.option("--pointer", default="master", metavar="NAME", help="What they are held against (master).")
@click.option(
    "--limit",
    metavar="TIME|never",
    help="Wait for a replica that is not heard of so long (7d), then let shadows stand for the masters it needed.",
)
@click.option("--forget", metavar="NAME", help="Drop a replica, and what is held for it.")
@watch_option
@json_option
@wait_option
def replicas(
    vol: str,
    pointer: str,
    limit: str | None,
    forget: str | None,
    watch_s: float | None,
    as_json: bool,
    wait_s: float,
) -> None:
    """Show who pulls from VOL, or from those that do, and where each stands.

    Behind is how long ago the first snapshot was made that a replica has not; left, what would travel to it, exactly.
    A replica that is lost was not heard of within the limit; when it comes back it is brought what it lacks all the
    same. `prune`, by hand or as a job of a service, then lets shadows stand for what only it needed.

    \b
    blockplane replicas pool
    blockplane replicas pool --watch 5s
    blockplane replicas pool --limit 7d
    blockplane replicas pool --forget old-copy
    """
    seconds = None if limit is None else 0 if limit == "never" else int(Duration().convert(limit, None, None))
    writes = limit is not None or forget is not None
    if watch_s is not None:
        if writes:
            raise bp.errors.UsageError("--watch with --limit or --forget", "change it first, then watch")
        watch(watch_s)
    with open_volume(volume_only(vol), "replicas", wait_s, writable=writes) as volume:
        if forget is not None:
            volume.forget_replica(forget)
        if seconds is not None:
            volume.set_replica_limit(seconds)
        found, limit_s = bp.replicas(volume, pointer), volume.replica_limit_s
    if as_json:
        print_json({"replicas": [_described(replica) for replica in found], "limit_seconds": limit_s or None})
    else:
        _print(found, limit_s)


def _described(found: ReplicaReport) -> dict[str, object]:
    return {
        "name": found.name,
        "volume_id": found.volume_id,
        "via": found.via or None,
        "status": found.status,
        "newest": found.newest,
        "wanted": found.wanted or None,
        "lag_s": found.lag_s,
        "left_blocks": found.left_blocks,
        "lag_seconds": found.lag_s,  # this and the next: further names of the two above, which scripts may use
        "lag_blocks": found.left_blocks,
        "left_bytes": found.left_bytes,
        "contact": iso(found.contact_ns),
        "error": found.error or None,
        "error_at": iso(found.error_ns) if found.error_ns else None,
    }


def _print(found: Sequence[ReplicaReport], limit_s: int) -> None:
    if not found:
        print("no replicas")
    else:
        rows = [["replica", "through", "status", "has", "behind", "blocks", "left", "last heard of"]]
        rows += [_row(replica) for replica in found]
        print_table(rows, right=(4, 5, 6))
    for replica in found:
        if replica.error:
            print(f"{printable(replica.name)}, {moment(replica.error_ns)}: {sentence(replica.error)}")
    if limit_s:
        print(f"one that is not heard of is waited for {duration(limit_s)}")


def _row(found: ReplicaReport) -> list[str]:
    behind = duration(found.lag_s) if found.lag_s else "-"
    left = ("?", "?") if found.left_blocks is None else (f"{found.left_blocks:,}", size(found.left_bytes or 0))
    has = found.newest or ("nothing yet" if found.left_blocks is not None or not found.wanted else "unknown here")
    return [found.name, found.via or "-", found.status, has, behind, *left, moment(found.contact_ns)]


VERBS = (replicate, replicas)
