"""What the mirror verbs print, for people and for programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import blockplane as bp
from blockplane.cli.text import blocks, count, duration, iso, moment, print_table, printable, rate

if TYPE_CHECKING:
    from blockplane.transfer.mirrors import BreakReport, MirrorStatus, Ran, ResyncPlan, ResyncReport
    from blockplane.transfer.peer import Brought
    from blockplane.transfer.since import Since
    from blockplane.volume.mirrored import MirrorOf


def ran_text(ran: Ran) -> str:
    """Say what a step did."""
    report, dest = ran.report, printable(ran.mirror.dest)
    assert report is not None
    if report.brought is not None:
        return f"{dest} has {brought_text(report.brought)}"
    if report.outcome == "waiting":
        where = printable(report.rehearses or ran.mirror.dest)
        return f"{dest}: a rehearsal goes on in {where}, and updates wait"
    if report.outcome == "busy":
        return f"{dest} is being brought up to date already"
    settled = f": {report.settled} had arrived" if report.settled is not None else ""
    return f"{dest} is up to date{settled}"


def brought_text(brought: Brought) -> str:
    """Say what arrived."""
    base = f" onto {brought.base}" if brought.base else ""
    kept = f"; what that replaced is kept in {brought.kept}" if brought.kept else ""
    took = f" in {duration(brought.seconds)} ({rate(brought.n_bytes, brought.seconds)})"
    left_out = f"; left out, since it has others so named: {', '.join(brought.left_out)}" if brought.left_out else ""
    return f"{brought.top}{base}: {blocks(brought.n_blocks)}{took}{kept}{left_out}"


def described_ran(ran: Ran) -> dict[str, object]:
    """Return a step for programs."""
    report = ran.report
    brought = report.brought if report is not None else None
    return {
        "name": ran.mirror.name,
        "dest": ran.mirror.dest,
        "outcome": report.outcome if report is not None else "failed",
        "top": report.top if report is not None else None,
        "settled": report.settled if report is not None else None,
        "error": ran.error or None,
        **_brought(brought),
    }


def _brought(brought: Brought | None) -> dict[str, object]:
    return {
        "base": brought.base if brought is not None else None,
        "n_blocks": brought.n_blocks if brought is not None else 0,
        "n_bytes": brought.n_bytes if brought is not None else 0,
        "seconds": brought.seconds if brought is not None else 0.0,
        "kept": brought.kept if brought is not None else None,
        "left_out": list(brought.left_out) if brought is not None else [],
    }


def described_status(found: Sequence[MirrorStatus], mine: MirrorOf | None) -> dict[str, object]:
    """Return where mirrors stand for programs."""
    return {"mirrors": [_status(each) for each in found], "mirror_of": _mirror_of(mine)}


def _status(found: MirrorStatus) -> dict[str, object]:
    mirror = found.mirror
    return {
        "name": mirror.name,
        "dest": mirror.dest,
        "kind": mirror.kind,
        "every_s": mirror.every_s,
        "local_changes": mirror.local_changes,
        "late": mirror.late,
        "state": found.state,
        "newest": found.newest,
        "newest_made": iso(found.made_ns) if found.made_ns else None,
        "under_way": found.under_way,
        "is_current": found.is_current,
        "lag_s": found.lag_s,
        "lag_seconds": found.lag_s,  # as `replicas` has it
        "lag_blocks": found.lag_blocks,
        "left_blocks": found.left_blocks,
        "left_bytes": found.left_bytes,
        "bytes_per_second": found.bytes_per_second,
        "eta_s": found.eta_s,
        "next": iso(found.next_ns) if found.next_ns else None,
        "error": found.error or None,
        "hint": found.hint or None,
    }


def _mirror_of(mine: MirrorOf | None) -> dict[str, object] | None:
    if mine is None:
        return None
    return {
        "state": mine.state,
        "source_id": mine.source_id,
        "source": mine.source or None,
        "since": iso(mine.since_ns),
        "changed": iso(mine.changed_ns),
        "may_write": mine.may_write,
        "last_complete": mine.last_complete,
    }


def print_status(vol: str, found: Sequence[MirrorStatus], mine: MirrorOf | None) -> None:
    """Show where mirrors stand."""
    if mine is not None:
        of = printable(mine.source) if mine.source else f"volume {mine.source_id}"
        what = {"mirror": "a mirror of", "broken": "broken off from", "rehearsing": "in a rehearsal, a mirror of"}
        last = f"; its last complete state is {mine.last_complete}" if mine.last_complete else ""
        print(f"{printable(vol)} is {what[mine.state]} {of} since {moment(mine.changed_ns)}{last}")
    if not found:
        if mine is None:
            print(f"{printable(vol)} has no mirrors")
        return
    rows = [["mirror", "state", "newest", "lag", "behind", "left", "rate", "eta", "next"]]
    rows += [_row(each) for each in found]
    print_table(rows, right=(3, 4, 5, 6, 7))
    for each in found:
        if each.error:
            print(f"  {printable(each.mirror.naming(each.error))}")
            if each.hint:
                print(f"    {printable(each.hint)}")


def _row(found: MirrorStatus) -> list[str]:
    wait_s = found.next_ns / 1e9 - time.time()
    return [
        printable(found.mirror.dest),
        found.state,
        moment(found.made_ns) if found.made_ns else "-",
        duration(found.lag_s),
        bp.format_size(found.lag_blocks * bp.BLOCK_BYTES),
        bp.format_size(found.left_bytes),
        rate(found.bytes_per_second, 1.0) if found.bytes_per_second is not None else "-",
        duration(found.eta_s) if found.eta_s is not None else "-",
        f"in {duration(wait_s)}" if wait_s > 0 else "due",
    ]


def break_text(dest: str, found: BreakReport, rehearse: bool, ended: bool) -> str:
    """Say what became writable, or a mirror again."""
    name = printable(dest)
    state = found.state or "an empty file system"
    if ended:
        kept = f"; what the rehearsal changed is kept in {found.kept}" if found.kept else ""
        return f"{name} is a mirror again, at {state}{kept}"
    aside = f"; what came of {', '.join(found.set_aside)} is kept" if found.set_aside else ""
    for_now = ", for a rehearsal; updates wait until --end-rehearsal" if rehearse else ""
    return f"{name} can be written, at {state}, in {duration(found.seconds)}{for_now}{aside}"


def described_plan(plan: ResyncPlan, report: ResyncReport | None) -> dict[str, object]:
    """Return a resync, or what it would do, for programs."""
    return {
        "dest": plan.mirror.dest,
        "common": plan.common,
        "source": _since(plan.source),
        "destination": _since(plan.destination),
        "is_split": plan.is_split,
        "winner": plan.winner,
        "would_move_blocks": plan.n_blocks,
        "dry_run": report is None,
        **_brought(report.brought if report is not None else None),
        "kept": report.kept if report is not None else None,
    }


def _since(since: Since) -> dict[str, object]:
    return {
        "snapshots": list(since.snapshots),
        "n_snapshots": since.n_snapshots,
        "n_blocks": since.n_blocks,
        "is_changed": since.is_changed,
    }


def plan_text(plan: ResyncPlan, report: ResyncReport | None) -> str:
    """Say what a resync did, or would do, and what each side has beyond the common state."""
    dest = printable(plan.mirror.dest)
    lines = [
        f"newest common state: {plan.common or 'none'}",
        f"the source has beyond it: {_has(plan.source)}",
        f"{dest} has beyond it: {_has(plan.destination)}",
    ]
    if report is None:
        if plan.winner is None:
            return "\n".join([*lines, "both were written to: nothing is done without --from source or destination"])
        lines.append(f"would bring {blocks(plan.n_blocks)} from the {plan.winner}")
        loses = plan.loses
        if loses is not None and not loses.is_nothing:
            lines.append("what the other side has would stay in snapshots of its own (--drop-changes: not)")
        return "\n".join(lines)
    what = brought_text(report.brought) if report.brought is not None else f"{plan.common}"
    kept = f"; what it replaced is kept in {report.kept}" if report.kept and report.brought is None else ""
    return "\n".join([*lines, f"both sides have {what}{kept}; {dest} is a mirror again"])


def _has(since: Since) -> str:
    if since.is_nothing:
        return "nothing"
    parts = [count(since.n_snapshots, "snapshot") + f" ({', '.join(since.snapshots[:5])})"] if since.snapshots else []
    parts += [f"changes of {blocks(since.n_blocks)}"] if since.is_changed else []
    return " and ".join(parts)
