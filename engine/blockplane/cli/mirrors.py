"""Mirrors: add, run, status, break, resync, remove."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.calling import Calling, is_remote, network_options, network_wait_option, rate_option
from blockplane.cli.completion import PeerName, VolumeName
from blockplane.cli.elsewhere import ElsewhereError
from blockplane.cli.mirrortext import (
    break_text,
    described_plan,
    described_ran,
    described_status,
    plan_text,
    print_status,
    ran_text,
)
from blockplane.cli.naming import is_there, open_volume, volume_only
from blockplane.cli.options import DiskOptions, Interval, disk_options, json_option, progress_option
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import print_json, printable, sentence
from blockplane.cli.watching import watch, watch_option

if TYPE_CHECKING:
    from blockplane.server.network.throttle import Throttle
    from blockplane.transfer.peer import MirrorPeer, Peer


#: How long a step waits for what goes on in a volume: a verb of somebody else ends soon, or the next step tries again.
_STEP_WAIT_S = 1.0


@click.group(subcommand_metavar="VERB ...")
def mirror() -> None:
    """Keep another volume in step with one, take over from it, and go back.

    \b
    blockplane mirror add pool /far/pool --every 10s
    blockplane mirror run pool                 until it is stopped; --once: one step
    blockplane mirror status pool
    blockplane mirror break /far/pool          writable at once, whatever pool does
    blockplane mirror resync /far/pool -n      what joining them again would move, and set aside
    """


def _peers(verb: str, calling: Calling, kind: str, writable: bool = True) -> bp.mirrors.Peers:
    """Return how destinations are reached: here, where others' verbs work on them meanwhile, or elsewhere."""

    @contextmanager
    def local(dest: str) -> Iterator[Peer]:
        with ExitStack() as stack:
            try:
                volume = stack.enter_context(open_volume(dest, verb, calling.wait_s, writable=writable, kind=kind))
            except ElsewhereError as found:
                found.contact.close()
                is_served, later = found.contact.verb == "serve", "wait until that has ended: it is tried again"
                raise bp.errors.VolumeInUseError(
                    f"{dest} is in use by {found.contact}", bp.errors.SERVED_HINT if is_served else later
                ) from None
            yield bp.VolumePeer(volume)

    return bp.mirrors.Peers(local, calling.open)


@mirror.command()
@click.argument("vol", type=VolumeName())
@click.argument("dest", type=PeerName())
@click.option("--kind", type=click.Choice(["full", "incremental"]), help="Whole, or beside --base.")
@click.option("--base", multiple=True, metavar="STREAM", help="What an incremental mirror is built on: streams, tapes.")
@click.option("--every", type=Interval(), metavar="TIME", help="Time between updates (10s).")
@click.option(
    "--local-changes",
    type=click.Choice(["refuse", "keep", "flush"]),
    help="Let files there be written to, and keep that in a snapshot, or flush it, at the next update.",
)
@click.option("--late", type=click.Choice(["latest", "next"]), help="What follows a slow transfer (latest).")
@network_options
@disk_options
@json_option
@network_wait_option
def add(
    vol: str,
    dest: str,
    kind: str | None,
    base: Sequence[str],
    every: float | None,
    local_changes: str | None,
    late: str | None,
    tls: str | None,
    insecure_plaintext: bool,
    wish: DiskOptions,
    as_json: bool,
    wait_s: float,
) -> None:
    """Make DEST a mirror of VOL.

    DEST is made where there is no volume, by default as VOL is. It shows VOL's last state that arrived whole, and is
    not written to, unless --local-changes says otherwise. `mirror run` brings it up to date. Once
    more, it changes the options that are named.

    When a transfer takes longer than the interval the next follows at once, with the newest state (--late latest), or
    at the next whole interval (--late next); none queue up.

    An incremental mirror holds only what differs from a full backup of VOL, which stays where it is: DEST is made, with
    disks for that much, and shows a whole state all the time. `mirror reintegrate` makes one volume of both.

    \b
    blockplane mirror add pool /far/pool
    blockplane mirror add pool /far/pool --every 5m --disks 3 --size 4G
    blockplane mirror add pool /far/pool --local-changes keep
    blockplane mirror add pool backup.example:7777/pool --tls tls
    blockplane mirror add pool fast --kind incremental --base full.bps --size 8G
    """
    changes = bp.LocalChanges(local_changes) if local_changes is not None else None
    with open_volume(volume_only(vol), "mirror add", wait_s, writable=True) as volume:
        found = bp.mirrors.add(
            volume,
            volume_only(dest),
            peers=_peers("mirror add", Calling(tls, insecure_plaintext, wait_s), "SNAPSHOTS"),
            kind=kind,
            base=base,
            every_s=every,
            local_changes=changes,
            late=late,
            wish=bp.mirrors.DiskWish(wish.disks, wish.size, wish.parity, wish.chunk, wish.wipe),
            opening=bp.Opening(bp.Volume, verb="mirror add"),
        )
    if as_json:
        said = {"name": found.mirror.name, "dest": found.mirror.dest, "made": found.made, "common": found.common}
        print_json({**said, "is_broken": found.is_broken})
        return
    if found.is_broken:
        dest = printable(found.mirror.dest)
        more = f" --source {printable(vol)} --tls DIR" if is_remote(dest) else ""
        print(f"{dest} is broken off from {printable(vol)} until: blockplane mirror resync {dest}{more}")
        return
    made = ", which was made," if found.made else ""
    start = f"from {found.common}" if found.common is not None else "with all there is"
    print(f"{printable(found.mirror.dest)}{made} is a mirror of {printable(vol)}; the first update begins {start}")


@mirror.command()
@click.argument("vol", type=VolumeName())
@click.option("--once", is_flag=True, help="One step of each mirror that is due, and end.")
@click.option("--now", is_flag=True, help="With --once: of those that are not due too.")
@click.option("--only", metavar="DEST", type=PeerName(), help="With --once: of this mirror alone.")
@network_options
@rate_option
@json_option
@network_wait_option
@progress_option
def run(
    vol: str,
    once: bool,
    now: bool,
    only: str | None,
    tls: str | None,
    insecure_plaintext: bool,
    throttle: Throttle | None,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> int:
    """Bring VOL's mirrors up to date, each at its interval, until stopped.

    Where nothing changed nothing is written and nothing travels. DEST can be read all the time: through this process
    (`blockplane ls DEST:/`, and so on) while it runs. SIGTERM or SIGINT ends it; what has landed of a transfer is kept,
    and the next run goes on from there. With --json one object a line for each step that did something.

    \b
    blockplane mirror run pool
    blockplane mirror run pool --once --now
    """
    place = volume_only(vol)
    if once:
        calling = Calling(tls, insecure_plaintext, wait_s, throttle)
        return _run_once(place, now, only, calling, as_json, progress)
    if now or only is not None:
        raise bp.errors.UsageError("--now and --only belong to --once", "without it every mirror has its interval")
    with open_volume(place, "mirror run", wait_s, writable=True, kind="READS") as volume:
        _run_on(volume, Calling(tls, insecure_plaintext, throttle=throttle), as_json)
    return 0


def _run_once(place: str, now: bool, only: str | None, calling: Calling, as_json: bool, progress: bool | None) -> int:
    found = []
    with (
        open_volume(place, "mirror run", calling.wait_s, writable=True) as volume,
        ProgressLine(progress) as line,
    ):
        n_mirrors = len(bp.mirrors.definitions(volume.path))
        if only is not None:
            only = bp.mirrors.find(volume.path, _place_or_name(volume, only)).name
        peers = _peers("mirror run", calling, "LIVE")
        for ran in bp.mirrors.run_once(volume, peers=peers, only=only, now=now, progress=line):
            found.append(ran)
            if not as_json:
                _tell(ran)
    if as_json:
        print_json({"ok": not any(ran.error for ran in found), "steps": [described_ran(ran) for ran in found]})
    elif not found:
        print("no mirror is due; --now does not wait" if n_mirrors else f"{printable(place)} has no mirrors")
    return 1 if any(ran.error for ran in found) else 0


def _place_or_name(volume: bp.Volume, dest: str) -> str:
    """Return what a mirror is found by: its name, or its place."""
    place = volume_only(dest)
    if any(place == each.name for each in bp.mirrors.definitions(volume.path)):
        return place
    with suppress(OSError):
        place = bp.mirrors.place_of(place)
    return place


def _run_on(volume: bp.Volume, calling: Calling, as_json: bool) -> None:
    """Run the mirrors until somebody asks for an end."""
    from blockplane.cli.hosting import going_on  # it loads all that help and completion do without

    @contextmanager
    def around(peer: Peer) -> Iterator[None]:
        with going_on(volume, "mirror run", "SNAPSHOTS", _STEP_WAIT_S), ExitStack() as stack:
            if isinstance(peer, bp.VolumePeer):
                stack.enter_context(going_on(peer.volume, "mirror run", "LIVE", _STEP_WAIT_S))
            yield

    def told(ran: bp.mirrors.Ran) -> None:
        if as_json:
            print_json(described_ran(ran))
        else:
            _tell(ran)

    loop = bp.mirrors.MirrorLoop(volume, _peers("mirror run", calling, "READS"), told, around=around)
    with _stopping(loop):
        loop.run(console.require_wanted)


@contextmanager
def _stopping(loop: bp.mirrors.MirrorLoop) -> Iterator[None]:
    """Have SIGTERM and SIGINT stop a loop, where this is a process's own verb."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, lambda *_: loop.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _tell(ran: bp.mirrors.Ran) -> None:
    if ran.error:
        hint = f"\n  {sentence(ran.hint)}" if ran.hint else ""
        print(f"blockplane: {sentence(ran.told)}{hint}", file=sys.stderr, flush=True)
    else:
        print(ran_text(ran), flush=True)


@mirror.command()
@click.argument("vol", metavar="[VOL]", default=".", type=VolumeName())
@network_options
@watch_option
@json_option
@network_wait_option
def status(
    vol: str, tls: str | None, insecure_plaintext: bool, watch_s: float | None, as_json: bool, wait_s: float
) -> None:
    """Show where VOL's mirrors stand (of the volume in this directory), and of whom it is one itself.

    How old the newest state is that arrived, how many blocks it lacks, what is left to travel, how fast that went last
    time, what went wrong, and when the next step is due.

    \b
    blockplane mirror status pool
    blockplane mirror status pool --watch 2s
    """
    if watch_s is not None:
        watch(watch_s)
    with open_volume(volume_only(vol), "mirror status", wait_s, writable=False) as volume:
        peers = _peers("mirror status", Calling(tls, insecure_plaintext, wait_s), "READS", writable=False)
        found, mine = bp.mirrors.status(volume, peers=peers), volume.mirror_of
    if as_json:
        print_json(described_status(found, mine))
    else:
        print_status(vol, found, mine)


@mirror.command("break")
@click.argument("dest", type=PeerName())
@click.option("--rehearse", is_flag=True, help="For a while: updates wait, and the mirror goes on afterwards.")
@click.option("--end-rehearsal", is_flag=True, help="Go back to the state at which the rehearsal began.")
@click.option("--drop-changes", is_flag=True, help="With --end-rehearsal: give its changes up.")
@network_options
@json_option
@network_wait_option
def break_(
    dest: str,
    rehearse: bool,
    end_rehearsal: bool,
    drop_changes: bool,
    tls: str | None,
    insecure_plaintext: bool,
    as_json: bool,
    wait_s: float,
) -> None:
    """Make DEST writable at the last state that it has whole.

    Its source is not asked. A transfer that is under way ends without effect; what came of it is kept. `mirror resync`
    joins the two again. Behind a network it takes the right `admin`.

    \b
    blockplane mirror break /far/pool
    blockplane mirror break far:7352/pool --tls tls
    blockplane mirror break /far/pool --rehearse          try it; updates wait meanwhile
    blockplane mirror break /far/pool --end-rehearsal     what was changed is kept in a snapshot
    """
    if rehearse and end_rehearsal:
        raise bp.errors.UsageError("--rehearse and --end-rehearsal", "a rehearsal begins, or it ends")
    if drop_changes and not end_rehearsal:
        raise bp.errors.UsageError("--drop-changes belongs to --end-rehearsal", "a break changes nothing")
    from blockplane.cli.hosting import broken_off, going_on  # it loads all that help and completion do without

    if is_remote(dest):
        with Calling(tls, insecure_plaintext, wait_s).open(dest) as peer:
            found = (
                peer.end_rehearsal(drop_changes=drop_changes) if end_rehearsal else peer.break_off(rehearse=rehearse)
            )
    else:
        with open_volume(volume_only(dest), "mirror break", wait_s, writable=True) as volume:
            if end_rehearsal:
                with going_on(volume, "mirror break", "LIVE", wait_s):
                    found = bp.mirrors.end_rehearsal(volume, drop_changes=drop_changes)
            else:
                try:
                    found = bp.mirrors.break_mirror(volume, rehearse=rehearse)
                finally:
                    broken_off(volume)
    if as_json:
        print_json(
            {"state": found.state, "seconds": found.seconds, "set_aside": list(found.set_aside), "kept": found.kept}
        )
    else:
        print(break_text(dest, found, rehearse, end_rehearsal))


@mirror.command()
@click.argument("dest", type=PeerName())
@click.option("--reverse", is_flag=True, help="Bring DEST's state to the source: --from destination.")
@click.option("--from", "winner", type=click.Choice(["source", "destination"]), help="The side whose state both get.")
@click.option("--source", metavar="VOL", type=VolumeName(), help="Where the source is, if it moved.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would travel, and what each side has beyond the other.")
@click.option("--drop-changes", is_flag=True, help="Do not keep what the other side has in a snapshot.")
@click.option("--full", is_flag=True, help="Bring all, where the two have nothing in common any more.")
@network_options
@rate_option
@json_option
@network_wait_option
@progress_option
def resync(
    dest: str,
    reverse: bool,
    winner: str | None,
    source: str | None,
    dry_run: bool,
    drop_changes: bool,
    full: bool,
    tls: str | None,
    insecure_plaintext: bool,
    throttle: Throttle | None,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Join DEST and its source again after a break.

    From the newest state that both have; only what differs travels. By default DEST gets the source's state. The side
    that is brought into line keeps its snapshots, and what none of them has in one more. Where both were written to,
    say --from. Afterwards DEST is a mirror as before.

    \b
    blockplane mirror resync /far/pool -n                  what each side has beyond the other
    blockplane mirror resync /far/pool
    blockplane mirror resync /far/pool --reverse           bring back what was done there
    """
    if reverse and winner == "source":
        raise bp.errors.UsageError("--reverse and --from source", "--reverse is --from destination")
    winner = "destination" if reverse else winner
    with ExitStack() as stack:
        if is_remote(dest):
            calling = Calling(tls, insecure_plaintext, wait_s, throttle)
            peer: MirrorPeer = stack.enter_context(calling.open(dest))
            place = _source_said(dest, source)
        else:
            there = stack.enter_context(open_volume(volume_only(dest), "mirror resync", wait_s, writable=True))
            peer, place = bp.VolumePeer(there), _source_of(there, source)
        here = stack.enter_context(open_volume(place, "mirror resync", wait_s, writable=True))
        found = bp.mirrors.find(here.path, bp.mirrors.place_of(volume_only(dest)))
        report = None
        plan = bp.mirrors.plan_resync(here, found, peer, winner)
        if not dry_run:
            line = stack.enter_context(ProgressLine(progress))
            report = bp.mirrors.resync(here, found, peer, winner, drop_changes=drop_changes, full=full, progress=line)
    if as_json:
        print_json(described_plan(plan, report))
    else:
        print(plan_text(plan, report))


def _source_said(dest: str, source: str | None) -> str:
    """Return the source of a mirror behind a network."""
    if source is None:
        raise bp.errors.UsageError(f"{dest} is behind a network", "say which volume here it mirrors: --source VOL")
    return volume_only(source)


def _source_of(there: bp.Volume, source: str | None) -> str:
    """Return where the source of a mirror is."""
    record = there.mirror_of
    if record is None:
        raise bp.errors.RefusedError(f"{there.path} is no mirror", "`blockplane mirror add VOL DEST` makes it one")
    place = volume_only(source) if source is not None else record.source
    if not place or not is_there(place):
        raise bp.errors.RefusedError(
            f"the source of {there.path} was {place or 'somewhere'}, and is not there", "say where: --source VOL"
        )
    return place


@mirror.command()
@click.argument("vol", type=VolumeName())
@click.argument("dest", type=PeerName())
@network_options
@json_option
@network_wait_option
def remove(vol: str, dest: str, tls: str | None, insecure_plaintext: bool, as_json: bool, wait_s: float) -> None:
    """Take a mirror out.

    What VOL keeps for it goes. DEST stays as it is, with its snapshots, and can be written to. It may be said by the
    name that `mirror status --json` and holds give it.
    """
    with open_volume(volume_only(vol), "mirror remove", wait_s, writable=True) as volume:
        peers = _peers("mirror remove", Calling(tls, insecure_plaintext, wait_s), "SNAPSHOTS")
        found = bp.mirrors.remove_mirror(volume, _place_or_name(volume, dest), peers=peers)
    if as_json:
        print_json({"dest": found.mirror.dest, "told": found.told, "why_not": found.why_not})
        return
    print(f"{printable(found.mirror.dest)} is no mirror of {printable(vol)} any more")
    if not found.told:
        dest = printable(found.mirror.dest)
        print(f"blockplane: {dest} does not know yet: {sentence(found.why_not)}", file=sys.stderr)
        more = " --tls DIR" if is_remote(dest) else ""
        print(f"  make it writable there: blockplane mirror break {dest}{more}", file=sys.stderr)


VERBS = (mirror,)
