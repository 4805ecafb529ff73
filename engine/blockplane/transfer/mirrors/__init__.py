"""Mirrors of volumes: which there are, steps to bring them up to date, takeover and back, where they stand."""

from blockplane.transfer.mirrors.joining import ResyncPlan, ResyncReport, plan_resync, resync
from blockplane.transfer.mirrors.listing import LastRun, MirrorDefinition, definitions, find
from blockplane.transfer.mirrors.managing import AddReport, RemoveReport, add, remove_mirror
from blockplane.transfer.mirrors.peers import Opener, Peers, place_of
from blockplane.transfer.mirrors.running import MirrorLoop, Ran, attempt, due_ns, run_once, run_side_by_side
from blockplane.transfer.mirrors.status import MirrorStatus, status
from blockplane.transfer.mirrors.stepping import BrokenOffError, StepReport, step
from blockplane.transfer.mirrors.takeover import BreakReport, break_mirror, end_rehearsal
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.since import Since

__all__ = [
    "AddReport",
    "BreakReport",
    "BrokenOffError",
    "DiskWish",
    "LastRun",
    "MirrorDefinition",
    "MirrorLoop",
    "MirrorStatus",
    "Opener",
    "Peers",
    "Ran",
    "RemoveReport",
    "ResyncPlan",
    "ResyncReport",
    "Since",
    "StepReport",
    "add",
    "attempt",
    "break_mirror",
    "definitions",
    "due_ns",
    "end_rehearsal",
    "find",
    "place_of",
    "plan_resync",
    "remove_mirror",
    "resync",
    "run_once",
    "run_side_by_side",
    "status",
    "step",
]
