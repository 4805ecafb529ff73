"""Mirrors of volumes: which there are, steps to bring them up to date, takeover and back, where they stand."""

from blockplane.transfer.mirror.joining import ResyncPlan, ResyncReport, plan_resync, resync
from blockplane.transfer.mirror.listing import LastRun, MirrorDefinition, definitions, find
from blockplane.transfer.mirror.managing import AddReport, RemoveReport, add, remove_mirror
from blockplane.transfer.mirror.peers import Opener, Peers
from blockplane.transfer.mirror.running import MirrorLoop, Ran, attempt, due_ns, run_once
from blockplane.transfer.mirror.stepping import StepReport, step
from blockplane.transfer.mirror.takeover import BreakReport, break_mirror, end_rehearsal

__all__ = [
    "AddReport",
    "BreakReport",
    "LastRun",
    "MirrorDefinition",
    "MirrorLoop",
    "Opener",
    "Peers",
    "Ran",
    "RemoveReport",
    "ResyncPlan",
    "ResyncReport",
    "StepReport",
    "add",
    "attempt",
    "break_mirror",
    "definitions",
    "due_ns",
    "end_rehearsal",
    "find",
    "plan_resync",
    "remove_mirror",
    "resync",
    "run_once",
    "step",
]
