"""Volumes: labels, roots, trees, allocation, consistency points, snapshots, place maps."""

from blockplane.volume.codec import SnapshotRecord, StateRoot, TreeRoot
from blockplane.volume.destinations import Destination
from blockplane.volume.pointers import SnapshotPointer
from blockplane.volume.positions import Position
from blockplane.volume.pressure import DemotionPlan, PressurePolicy
from blockplane.volume.retention import Policy, PruneReport
from blockplane.volume.settling import SettlePlan, SettleReport
from blockplane.volume.shrink import ShrinkPlan, ShrinkReport
from blockplane.volume.snapshots import Snapshot
from blockplane.volume.state import State
from blockplane.volume.tree import BlockTree
from blockplane.volume.treeio import Span
from blockplane.volume.volume import Volume

__all__ = [
    "BlockTree",
    "DemotionPlan",
    "Destination",
    "Policy",
    "Position",
    "PressurePolicy",
    "PruneReport",
    "SettlePlan",
    "SettleReport",
    "ShrinkPlan",
    "ShrinkReport",
    "Snapshot",
    "SnapshotPointer",
    "SnapshotRecord",
    "Span",
    "State",
    "StateRoot",
    "TreeRoot",
    "Volume",
]
