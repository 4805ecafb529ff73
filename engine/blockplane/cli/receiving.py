"""Receiving: a stream, a list of them, a folder, the parts of an image."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.completion import HostPath, VolumeName
from blockplane.cli.naming import is_there, open_volume, opening_to_make, volume_only
from blockplane.cli.offering import print_offer
from blockplane.cli.options import (
    DiskOptions,
    disk_options,
    json_option,
    key_option,
    or_standard,
    progress_option,
    require_encrypted_option,
    wait_option,
)
from blockplane.cli.progress import ProgressLine
from blockplane.cli.resuming import give_up, print_token
from blockplane.cli.streamplaces import opened_streams, refuse_own
from blockplane.cli.streams import tell_plain
from blockplane.cli.text import blocks, dryness, duration, measured, print_json, printable, rate

if TYPE_CHECKING:
    from blockplane.server.streamplace import VolumePlace
    from blockplane.transfer import InterruptedReceive, ReceiveReport


@click.command()
@click.argument("vol", type=VolumeName())
@click.option(
    "-i",
    "--input",
    "origins",
    multiple=True,
    type=HostPath(),
    callback=or_standard,
    metavar="FILE",
    help="The stream file (standard input); repeat for several, in any order, or name a folder of them.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Of files, say which would be applied; change nothing.")
@click.option("--discard", is_flag=True, help="Give up changes that the stream would replace.")
@click.option("--relocate", is_flag=True, help="Lay blocks elsewhere where VOL has no place of their number.")
@click.option("--have", is_flag=True, help="Write a token of what an interrupted receive has, for send --resume.")
@click.option(
    "--offer",
    metavar="[SNAP]",
    is_flag=False,
    flag_value="",
    help="Write an offer of a snapshot (the newest), for send --against.",
)
@click.option("--run", "run_blocks", type=int, metavar="N", help="With --offer: blocks a digest covers, to 256 (8).")
@click.option("--abort", "gives_up", is_flag=True, help="Give up what interrupted receives have.")
@click.option(
    "--of",
    "top",
    metavar="SNAP",
    help="With --have or --abort: of several, the one of this top, or image id (the last; all).",
)
@key_option
@require_encrypted_option
@disk_options
@json_option
@wait_option
@progress_option
def receive(
    vol: str,
    origins: Sequence[str],
    dry_run: bool,
    discard: bool,
    relocate: bool,
    have: bool,
    offer: str | None,
    run_blocks: int | None,
    gives_up: bool,
    top: str | None,
    keys: Sequence[str],
    require_encrypted: bool,
    wish: DiskOptions,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Take a stream in.

    A full one makes VOL, an incremental one goes onto the base it names.

    The disk options are for a volume that is made; by default it gets the source's geometry. FILE holds one stream
    alone; of standard input no more is read than the stream. A receive that was interrupted keeps what came, and the
    next one of the same image goes on from there.

    \b
    blockplane receive copy -i june1.bps
    blockplane receive copy -i june1.bps --disks 3 --size 4G --chunk 1MiB
    blockplane send pool 'june3 - june1' | blockplane receive copy
    blockplane receive small -i june1.bps --disks 3 --size 1G --relocate
    blockplane receive copy --offer > offer
    blockplane receive copy --have --of june3 > token
    blockplane receive copy -i backups
    blockplane receive copy -i fast.bps -i slow.bps

    Of several files, or a folder, what is there is passed over, and the rest applied in order, found by ids: nothing,
    where it is no whole chain onto VOL. Parts of an image come in any order, and it is there when all of them are.

    With --relocate a volume need only have room for the blocks in use, however high their numbers are. Increments onto
    a snapshot that has a block of such a number find their places without it; where all fitted at their own, say it
    again.

    What arrives of a full image and is in VOL already, under the same block numbers, is compared and not written again.
    An offer reads its snapshot once, holds it for a week, and has 2 GiB a TiB of it with runs of 8 blocks, 1.5 with 16.
    """
    place = volume_only(vol)
    if have + gives_up + (offer is not None) > 1:
        raise bp.errors.UsageError("--have, --offer and --abort do not go together", "say one of them")
    if top is not None and not (have or gives_up):
        raise bp.errors.UsageError("--of is for --have and --abort", "say one of them too")
    if run_blocks is not None and offer is None:
        raise bp.errors.UsageError("--run is for an offer", "say --offer too")
    if offer is not None:
        print_offer(place, offer or None, run_blocks, wait_s, as_json, progress)
        return
    if have or gives_up:
        (print_token if have else give_up)(place, top, wait_s, as_json)
        return
    refuse_own(place, origins)
    is_several = len(origins) > 1 or dry_run or any(os.path.isdir(origin) for origin in origins)
    if dry_run and not origins:
        raise bp.errors.UsageError("standard input is read once", "say -n of files: -i FILE")
    alone = dry_run and len(origins) == 1 and not os.path.isdir(origins[0])
    source = "" if is_several else origins[0] if origins else standard_input()
    left: Sequence[InterruptedReceive] = ()
    with ProgressLine(progress) as line:
        if wish.is_plain and is_there(place):
            with open_volume(place, "receive", wait_s, writable=True) as volume:
                if is_several:
                    with opened_streams(origins, "receive", wait_s) as streams:
                        chain = bp.receive_streams(
                            *streams,
                            target=volume,
                            discard=discard,
                            relocate=relocate,
                            key=keys,
                            require_encrypted=require_encrypted,
                            progress=line,
                            dry_run=dry_run,
                            alone=alone,
                        )
                else:
                    with opened_source(source, wait_s) as stream:
                        report = bp.receive(
                            stream, volume, discard=discard, relocate=relocate, key=keys,
                            require_encrypted=require_encrypted, progress=line,
                        )  # fmt: skip
                left = bp.interrupted_receives(volume)
        elif is_several:
            with opened_streams(origins, "receive", wait_s) as streams:
                chain = bp.receive_streams(
                    *streams, target=place, disks=wish.disks, size=wish.size, parity=wish.parity, chunk=wish.chunk,
                    wipe=wish.wipe, discard=discard, relocate=relocate, key=keys, progress=line,
                    opening=opening_to_make("receive"),
                    dry_run=dry_run, alone=alone, require_encrypted=require_encrypted,
                )  # fmt: skip
        else:
            with opened_source(source, wait_s) as stream:
                report = bp.receive(
                    stream, place, disks=wish.disks, size=wish.size, parity=wish.parity, chunk=wish.chunk,
                    wipe=wish.wipe, discard=discard, relocate=relocate, key=keys, progress=line,
                    opening=opening_to_make("receive"), require_encrypted=require_encrypted,
                )  # fmt: skip
    tell_plain(keys, chain.plain if is_several else () if report.encrypted else (origins[0] if origins else "-",))
    if is_several and as_json and chain.planned is not None and not os.path.isdir(origins[0]):
        unknown = {"stream_bytes": None, "seconds": chain.seconds, "n_blocks_shared": None}
        print_json({**_received(chain.planned), **unknown, **dryness(True)})
    elif is_several and as_json:
        print_json(describe_chain(chain, [_received(its) for its in chain.received], dry_run))
    elif is_several:
        print_chain(vol, chain, dry_run)
    elif as_json:
        print_json(_received(report))
    else:
        print(_arrived(vol, report))
    wanted = not is_several and bool(report.n_blocks_missing)
    tell_interrupted(place, left[:-1] if wanted else left)


def tell_interrupted(place: str, left: Sequence[InterruptedReceive]) -> None:
    """Say on standard error what earlier receives of something else have left."""
    for its in left:
        if not its.is_running:
            what = f"an interrupted receive of {printable(its.top_name)} still has {blocks(its.n_image)} reserved"
            abort = f"blockplane receive {printable(place)} --abort --of {printable(its.top_name)}"
            how = f"go on with it, or give it up: {abort}"
            print(f"blockplane: {what}; {how}", file=sys.stderr)


def _received(report: ReceiveReport) -> dict[str, object]:
    return {
        **measured(report),
        "arrived": list(report.arrived),
        "left_out": list(report.left_out),
        "already_there": report.already_there,
        "n_blocks_shared": report.n_blocks_shared,
        "part": report.part,
        "n_parts": report.n_parts,
        "n_blocks_missing": report.n_blocks_missing,
    }


def _arrived(vol: str, report: ReceiveReport) -> str:
    if report.already_there:
        return f"{printable(vol)} has {report.top} already; nothing to do"
    if report.n_blocks_missing:
        return incomplete(vol, report)
    base = f" onto {report.base}" if report.base else ""
    if report.n_blocks_shared:
        base += f", {blocks(report.n_blocks_shared)} of it there before"
    return (
        f"{printable(vol)} has {', '.join(report.arrived)}{base}: {blocks(report.n_blocks)} "
        f"in {duration(report.seconds)} ({rate(report.stream_bytes, report.seconds)})"
    )


def standard_input() -> int | IO[bytes]:
    """Return what a stream comes from: a descriptor, or another process's; UsageError: nobody writes it there."""
    if sys.stdin is None or sys.stdin.isatty():
        what = "from a terminal" if sys.stdin is not None else "from nowhere: standard input is closed"
        raise bp.errors.UsageError(f"a stream is not read {what}", "say -i FILE, or pipe it in")
    return console.raw("input") or sys.stdin.fileno()


@contextmanager
def opened_source(source: str | int | IO[bytes], wait_s: float) -> Iterator[str | int | IO[bytes] | VolumePlace]:
    """Open the volume that a stream lies in, where it lies in one."""
    if not isinstance(source, str):
        yield source
        return
    with opened_streams([source], "receive", wait_s) as (stream,):
        yield stream


def describe_chain(report: bp.ChainReport, received: list[dict[str, object]], dry_run: bool) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "n_blocks": report.n_blocks,
        "n_bytes": report.n_blocks * bp.BLOCK_BYTES,
        "stream_bytes": sum(its.stream_bytes for its in report.received) if not dry_run else None,
        "seconds": report.seconds,
        "arrives": list(report.arrives),
        "order": list(report.order),
        "there": list(report.there),
        "older": list(report.older),
        "n_blocks_missing": report.n_blocks_missing,
        "streams": received,
        "dry_run": dry_run,
    }


def print_chain(vol: str, report: bp.ChainReport, dry_run: bool) -> None:
    """Say what came."""
    for what, names in (("there", report.there), ("older", report.older)):
        if names:
            print(f"{what:10} {', '.join(printable(name) for name in names)}")
    if not report.order:
        has = "is past all of it" if report.older and not report.there else "has all of it already"
        print(f"{printable(vol)} {has}; nothing to do")
        return
    print(f"{'order':10} {', '.join(printable(name) for name in report.order)}")
    did = "would have" if dry_run else "has"
    took = "" if dry_run else f" in {duration(report.seconds)}"
    if report.arrives:
        print(f"{printable(vol)} {did} {', '.join(report.arrives)}: {blocks(report.n_blocks)}{took}")
    if report.n_blocks_missing:
        print(f"{blocks(report.n_blocks_missing)} of the last image are in parts that are not there; what came is kept")


def incomplete(vol: str, report: ReceiveReport) -> str:
    """Say that a part came, and others are to come."""
    return (
        f"{printable(vol)} keeps {blocks(report.n_blocks)} of {report.top}, part {report.part + 1} of "
        f"{report.n_parts}; {blocks(report.n_blocks_missing)} are still to come with the others"
    )


VERBS = (receive,)
