"""What disks may hold after a power cut at any moment of a recorded history.

A flush orders the writes of its own disk only. So a crash leaves, on each disk, every write before its last completed
flush and any subset of the later ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from blockplane.model import BLOCK_BYTES
from faults.recording import Entry, Flush, Mark, MemoryDisk, Recorder, Write, apply_write

SECTOR_BYTES = 512
SECTORS = BLOCK_BYTES // SECTOR_BYTES
#: Up to so many unflushed writes every subset is a state.
EXHAUSTIVE_WRITES = 10


@dataclass
class CrashState:
    """The disks after one possible crash. Good until the next state is taken; writes to it harm no other."""

    disks: list[MemoryDisk]
    #: entries of the log before the cut
    position: int
    #: names of the marks before the cut, in order
    marks: list[object]
    description: str


@dataclass
class Plan:
    """Which states to build; the numbers bound the work of one flush epoch."""

    seed: int = 0
    n_random: int = 50
    max_pairs: int = 200
    #: torn variants of each write; 0: none
    n_torn: int = 4
    #: (disk, block) -> whether a one-block write to it is torn in all 256 ways
    sectors_of: Callable[[int, int], bool] = field(default=lambda disk, block: False)


def crash_states(recorder: Recorder, plan: Plan | None = None) -> Iterator[CrashState]:
    """All states of the plan, in the order of the log."""
    explorer = _Explorer(recorder, plan or Plan())
    yield explorer.state("before anything", [])
    for entry in recorder.log:
        yield from explorer.advance(entry)
    yield from explorer.subsets("at the end")


class _Explorer:
    def __init__(self, recorder: Recorder, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.sizes = [(disk.path, disk.n_blocks) for disk in recorder.disks]
        self.durable = [dict(blocks) for blocks in recorder.base]
        self.pending: list[Write] = []
        self.marks: list[object] = []
        self.position = 0
        # whether pending grew since its subsets were taken
        self.grew = False

    def advance(self, entry: Entry) -> Iterator[CrashState]:
        if isinstance(entry, Mark):
            # what was promised must hold from here on, whatever is still unflushed
            self.marks.append(entry.name)
            self.grew = self.grew or bool(self.pending)
            self.position += 1
            yield self.state(f"after mark {entry.name!r}, none of {len(self.pending)} unflushed", [])
        elif isinstance(entry, Write):
            yield from self.torn(entry)
            self.pending.append(entry)
            self.grew = True
            self.position += 1
            yield self.state(f"prefix of {self.position} entries", self.pending)
        else:
            yield from self.subsets(f"before the flush of disk {entry.disk}")
            self.settle(entry)
            self.position += 1

    def settle(self, flush: Flush) -> None:
        for write in self.pending:
            if write.disk == flush.disk:
                apply_write(self.durable[write.disk], write.block, write.data)
        self.pending = [write for write in self.pending if write.disk != flush.disk]

    def state(self, description: str, kept: Sequence[Write]) -> CrashState:
        overlays: list[dict[int, bytes]] = [{} for _ in self.sizes]
        for write in kept:
            apply_write(overlays[write.disk], write.block, write.data)
        disks = [
            MemoryDisk(path, n_blocks, base, overlay)
            for (path, n_blocks), base, overlay in zip(self.sizes, self.durable, overlays, strict=True)
        ]
        return CrashState(disks, self.position, list(self.marks), f"entry {self.position}: {description}")

    def subsets(self, moment: str) -> Iterator[CrashState]:
        """Subsets of the unflushed writes, once for each time that writes were added."""
        if not self.grew:
            return
        self.grew = False
        n = len(self.pending)
        for chosen in self._choices(n):
            kept = [write for i, write in enumerate(self.pending) if i in chosen]
            yield self.state(f"{moment}: {sorted(chosen)} of {n} unflushed writes", kept)
        if self.plan.n_torn and n:
            yield from self._all_torn(moment)

    def _all_torn(self, moment: str) -> Iterator[CrashState]:
        """Every unflushed write broken off in every block, after the same sector: all disks lose power together."""
        for at in (1, 4, 7):
            kept = [Write(write.disk, write.block, self._broken(write, at)) for write in self.pending]
            yield self.state(f"{moment}: all {len(kept)} unflushed writes torn after sector {at}", kept)

    def _broken(self, write: Write, at: int) -> bytes:
        old = self.durable[write.disk]
        blocks = range(write.n_blocks)
        return b"".join(
            write.data[i * BLOCK_BYTES : i * BLOCK_BYTES + at * SECTOR_BYTES]
            + old.get(write.block + i, bytes(BLOCK_BYTES))[at * SECTOR_BYTES :]
            for i in blocks
        )

    def _choices(self, n: int) -> Iterator[frozenset[int]]:
        whole = frozenset(range(n))
        if n <= EXHAUSTIVE_WRITES:
            for size in range(n):
                yield from map(frozenset, itertools.combinations(range(n), size))
            return
        yield frozenset()
        for i in range(n):
            yield whole - {i}
            yield frozenset({i})
        pairs = [frozenset(pair) for pair in itertools.combinations(range(n), 2)]
        if len(pairs) > self.plan.max_pairs:
            pairs = self.random.sample(pairs, self.plan.max_pairs)
        for pair in pairs:
            yield whole - pair
            yield pair
        for _ in range(self.plan.n_random):
            share = self.random.random()
            yield frozenset(i for i in range(n) if self.random.random() < share)

    def torn(self, write: Write) -> Iterator[CrashState]:
        """The write broken off between sectors, all earlier ones done."""
        old = self._before(write)
        if write.n_blocks == 1 and self.plan.sectors_of(write.disk, write.block):
            for subset in range(1 << SECTORS):
                yield self._torn_state(write, _mix(old, write.data, subset), f"sectors {subset:08b}")
            return
        n_sectors = len(write.data) // SECTOR_BYTES
        cuts = range(1, n_sectors)
        for at in self.random.sample(cuts, min(self.plan.n_torn, len(cuts))):
            cut = at * SECTOR_BYTES
            rest, name = self.random.choice(
                [
                    (old[cut:], "the old"),
                    (bytes(len(old) - cut), "zero"),
                    (self.random.randbytes(min(len(old) - cut, SECTOR_BYTES)) + old[cut + SECTOR_BYTES :], "garbage"),
                ]
            )
            yield self._torn_state(write, write.data[:cut] + rest, f"after sector {at}, then {name}")
            yield self._torn_state(write, old[:cut] + write.data[cut:], f"before sector {at}")

    def _torn_state(self, write: Write, data: bytes, how: str) -> CrashState:
        torn = Write(write.disk, write.block, data)
        return self.state(f"write of block {write.block} of disk {write.disk} torn {how}", [*self.pending, torn])

    def _before(self, write: Write) -> bytes:
        """What the blocks of a write held, all earlier writes done."""
        disk = self.state("", self.pending).disks[write.disk]
        return b"".join(disk.block(write.block + i) for i in range(write.n_blocks))


def _mix(old: bytes, new: bytes, subset: int) -> bytes:
    """Sectors of new where the subset has a bit, else of old."""
    return b"".join(
        (new if subset >> i & 1 else old)[i * SECTOR_BYTES : (i + 1) * SECTOR_BYTES] for i in range(SECTORS)
    )
