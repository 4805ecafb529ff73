"""The proof that streams are a whole chain: every block of every snapshot they bring is in one of them.

Nothing but block maps is read. For each stream, what its base holds, less what it drops, and what it brings must
contain the plane of each snapshot that arrives with it; the planes are the snapshots' own, read out of the streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from blockplane.disks import aligned_buffer
from blockplane.image.extents import extents_of, numbers_in
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import fresh_checks
from blockplane.model.errors import BlockplaneError, StreamError
from blockplane.planes import Plane, combine
from blockplane.stream.keyfile import Key
from blockplane.stream.lineage import Lineage
from blockplane.stream.partset import PartSet
from blockplane.stream.reader import StreamMap
from blockplane.stream.source import StreamChain, StreamName, open_stream
from blockplane.stream.stateplane import HeldPlane, plane_in
from blockplane.volume.codec import Pointer, SnapshotRecord
from blockplane.volume.landedchecks import LandedChecks
from blockplane.volume.state import State
from blockplane.volume.statechecks import StateChecks


@dataclass(slots=True)
class ChainProof:
    """What was proved.

    problems : one sentence each. order : names, as they apply. whole : snapshots proved whole. branches : where the
    streams are of several, the newest top of each.
    """

    problems: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def prove_chain(
    paths: Sequence[StreamName],
    keys: Sequence[Key] = (),
    bases: Mapping[bytes, Plane] | None = None,
    noted: Mapping[str, LandedChecks] | None = None,
) -> ChainProof:
    """Prove that streams hold every block of every snapshot they bring, each state its own.

    Parameters
    ----------
    paths : stream files in any order. An increment alone has nothing to be proved against: its order is itself.
    keys : for those that are encrypted. bases : by id, the planes of snapshots that are held elsewhere: what builds on
        one of them is proved too. noted : by stream, the checks that its blocks have beside them: they are held against
    those that the snapshots have, in a chain that begins with a full stream.

    Notes
    -----
    Reads maps, indexes and block maps. Memory: the planes of the streams, and of the states that others still build on.
    """
    proof = ChainProof()
    try:
        chain = open_stream(*paths, needs_full=False, key=keys, chooses=False)
    except StreamError as error:
        proof.order, proof.problems = [str(path) for path in paths], [error.message]
        return proof
    with closing(chain):
        try:
            chain.lineage.require_one_volume()
        except StreamError as error:
            proof.order, proof.problems = [str(path) for path in paths], [error.message]
            return proof
        _Prover(chain, proof, bases or {}, noted or {}).prove()
        tips = chain.lineage.tips
        proof.branches = [tip.map.top.name for tip in tips] if len(tips) > 1 else []
    return proof


def held_after(base: Plane, stream: StreamMap) -> Plane:
    """Return what is held of a base once a stream was applied: what it drops goes first, then what it brings comes."""
    return combine([combine([base], minus=stream.dropped), stream.image])


def missing_links(lineage: Lineage, bases: Container[bytes] = ()) -> list[str]:
    """Return a sentence for each stream that begins a chain without being full, or building on one of the bases; one
    for those together that build on each other.
    """
    found: dict[str, None] = {}
    for i, member in enumerate(lineage.members):
        base = member.map.base
        if base is not None and base.id not in bases and (i in lineage.stranded or not lineage.brings(base.id)):
            found[lineage.missing(i).message] = None
    return list(found)


class _Prover:
    """Goes through the members in the order in which they apply."""

    def __init__(
        self,
        chain: StreamChain,
        proof: ChainProof,
        bases: Mapping[bytes, Plane],
        noted: Mapping[str, LandedChecks],
    ) -> None:
        self._bases, self._noted = bases, noted
        self._chain, self._lineage, self._proof = chain, chain.lineage, proof
        self._last: tuple[Pointer, HeldPlane | None] = Pointer.none(), None
        #: by snapshot: how many members that build on it are still to be proved
        self._awaited = Counter(m.map.base.id for m in self._lineage.members if m.map.base is not None)
        #: by snapshot that is awaited: the blocks of it that the streams hold; none where its block map is not whole
        self._held: dict[bytes, Plane | None] = {}

    def prove(self) -> None:
        """Fill in the proof."""
        members = self._lineage.members
        self._proof.order = [name for i in self._lineage.order for name in self._chain.files[i].names]
        if len(members) > 1:
            self._proof.problems += missing_links(self._lineage, self._bases)
        for i in self._lineage.order:
            base = members[i].map.base
            if base is None or self._lineage.brings(base.id) or base.id in self._bases:
                self._prove_member(i)

    def _prove_member(self, i: int) -> None:
        """Prove the snapshots that a member brings, given what is held of those it builds on."""
        member = self._lineage.members[i]
        base, held = member.map.base, member.map.image
        if base is not None:
            below = self._held.get(base.id) if self._lineage.brings(base.id) else self._bases.get(base.id)
            self._awaited[base.id] -= 1
            if not self._awaited[base.id]:
                self._held.pop(base.id, None)
            if below is None:
                return  # nothing below is proved; what is missing there was named
            held = held_after(below, member.map)
        file = self._chain.files[i]
        if isinstance(file, PartSet) and file.missing:
            n_blocks, what = len(file.missing), file.missing_parts()
            self._proof.problems.append(
                f"{n_blocks} blocks of {member.map.top.name} are in {what}, which is not among the streams"
            )
            return
        n_before = len(self._proof.problems)
        for record in member.map.arriving():
            try:
                found = self._plane_of(record)
            except StreamError as error:
                self._proof.problems.append(f"{member.name}: snapshot {record.name} is not whole: {error.message}")
                continue
            lacking = found.plane - held
            if found.is_whole and len(found.plane) != record.n_blocks:
                self._proof.problems.append(
                    f"{member.name}: snapshot {record.name} holds {len(found.plane)} blocks, and its record says "
                    f"{record.n_blocks}"
                )
            elif found.is_whole and not lacking:
                self._proof.whole.append(record.name)
            elif found.is_whole or base is None or (lacking and self._bases) or self._is_full(i):
                self._proof.problems.append(f"{member.name}: {_lack(record.name, lacking)}")
            if self._awaited[record.id]:
                # of a snapshot whose block map is partly its base's, all that is held then
                partly = held if self._bases else None
                self._held[record.id] = found.plane - lacking if found.is_whole else partly
        if len(self._proof.problems) == n_before:
            self._prove_checks(i)

    def _plane_of(self, record: SnapshotRecord) -> HeldPlane:
        """Return a snapshot's plane; of several snapshots of one state it is read once."""
        root, found = self._last
        if found is None or root != record.root:
            found = plane_in(self._chain.at(record))
            self._last = record.root, found
        return found

    def _prove_checks(self, i: int) -> None:
        """Hold the checks beside the blocks of a member against those of the snapshots that it brings."""
        member, file = self._lineage.members[i], self._chain.files[i]
        if not all(name in self._noted for name in file.names) or not self._is_full(i):
            return
        base = member.map.base
        try:
            chains = {record.root: self._chain.at(record) for record in member.map.arriving()}
            states = [State.open(chain) for chain in chains.values()]
            for state in states:
                record = chains[state.pointer].snapshot
                if state.root.n_blocks != record.n_blocks:
                    raise StreamError(
                        f"snapshot {record.name} holds {record.n_blocks} blocks, and its root says "
                        f"{state.root.n_blocks}"
                    )
            before = State.open(self._chain.at(base)) if base is not None else None
            for part in file.parts:
                self._noted[part.path].require_equal(
                    states,
                    before,
                    part.map.following,
                    lambda state, plane: _first_other(chains[state.pointer], state, plane),
                )
        except BlockplaneError as error:
            self._proof.problems.append(f"{member.name}: {error.message}")

    def _is_full(self, i: int) -> bool:
        """Whether the chain below a member begins with a full stream."""
        path = self._lineage.path(self._lineage.members[i].map.top.id)
        return self._lineage.members[path[-1]].map.base is None


def _first_other(chain: StreamChain, state: State, plane: Plane) -> int:
    """Return the first block of a plane that a state holds and that is not what its check says, or -1."""
    vbns = numbers_in(plane.extents())
    vbns = vbns[state.holds(vbns)]
    data = aligned_buffer(len(vbns) * BLOCK_BYTES)
    if len(vbns):
        chain.read_extents(extents_of(vbns), data)
        bad = np.flatnonzero(fresh_checks(data, vbns) != StateChecks(state).of(vbns))
        return int(vbns[bad[0]]) if len(bad) else -1
    return -1


def _lack(name: str, lacking: Plane) -> str:
    if not lacking:
        return f"snapshot {name} is not whole: blocks of its block map are in none of the streams"
    first = int(lacking.select(0))
    return (
        f"snapshot {name} is not whole: {len(lacking)} of its blocks, block {first} first, are in none of the streams"
    )
