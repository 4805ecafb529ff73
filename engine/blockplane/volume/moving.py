"""Moving blocks of states to other places: places change and names never do (DESIGN.md, law 4).

One step is one consistency point: blocks are copied to free places, and the place map of every state that has them says
so, all at once. What several states share moves once. The old places stay as they are until the CPs before are not
wanted any more. Cut short anywhere, the volume is as the last step left it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.disk import aligned_buffer
from blockplane.disks.pending import Pending
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import ChecksumError, RefusedError, VolumeDamagedError
from blockplane.volume.leafbits import Leaf
from blockplane.volume.placemap import PlaceMap, moved
from blockplane.volume.runs import runs_of
from blockplane.volume.space import AREA_STRIPES
from blockplane.volume.state import State

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: Blocks of a step: 1 GiB. What a kill costs; each step writes anew what of the place maps it changes.
STEP_BLOCKS: Final = (1 << 30) // BLOCK_BYTES
#: Blocks read at once: 8 MiB.
BATCH_BLOCKS: Final = 2048
#: Stripes of a band that is written at places that were chosen: 1 MiB a disk, one request.
BAND_STRIPES: Final = 256

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


def state_leaf(volume: LiveVolume, leaf: int) -> Leaf:
    """Return the places of a leaf's range that states of the last CP have, shadows' trees included."""
    return volume.committed.place_leaf(leaf) | volume.committed_local.held_leaf(leaf)


def begin(volume: LiveVolume) -> None:
    """Begin a step: everything is committed, and every snapshot's state is at hand. The volume's lock is held.

    Raises
    ------
    RefusedError : a receive is under way. VolumeDamagedError : a snapshot cannot be read: nobody knows what lies where.
    """
    if volume.incoming.is_running:
        raise RefusedError("a receive is under way", "go on when it has ended: what moved stays moved")
    volume.commit()
    for entry in volume.local.regular():
        volume.snapshot_state(entry)


def copied(volume: LiveVolume, places: Numbers, *, are_known: bool = True) -> Numbers:
    """Copy blocks to whatever places are free; return these, in order: reads see them there.

    Parameters
    ----------
    are_known : states have them, and they are held against their checks.

    Raises
    ------
    ChecksumError : a block is damaged; nothing moves.
    """
    new = np.empty(len(places), np.int64)
    with _Undone(volume):
        for start in range(0, len(places), BATCH_BLOCKS):
            data = _read(volume, places[start : start + BATCH_BLOCKS], are_known)
            at, n_blocks = start, len(data) // BLOCK_BYTES
            for first, n, buffer in volume.placer.run(n_blocks):
                low = (at - start) * BLOCK_BYTES
                buffer[:] = data[low : low + n * BLOCK_BYTES].reshape(buffer.shape)
                volume.placer.filled(first, n)
                new[at : at + n] = np.arange(first, first + n)
                at += n
        volume.placer.close_all()
        volume.placer.settle()
    return new


def copied_to(volume: LiveVolume, places: Numbers, new: Numbers) -> None:
    """Copy blocks to places that are free, and given to nobody else meanwhile: reads see them there.

    Raises
    ------
    ChecksumError : a block, or one beside a new place, is damaged; nothing moves.
    """
    writes: list[Pending] = []
    volume.space.take_numbers(new)
    with _Undone(volume):
        for group in range(len(volume.geometry.groups)):
            record = volume.geometry.groups[group]
            mine = np.flatnonzero((new >= record.first) & (new < record.stop))
            _, dbn = volume.geometry.to_disk(new[mine])
            order = np.argsort(dbn // BAND_STRIPES, kind="stable")
            index = dbn[order] // BAND_STRIPES
            cuts = np.flatnonzero(np.diff(index)) + 1
            for at in np.split(mine[order], cuts) if len(mine) else ():
                writes += _write_band(volume, group, places[at], new[at])
        for write in writes:
            write.wait()


def _write_band(volume: LiveVolume, group: int, places: Numbers, new: Numbers) -> list[Pending]:
    """Copy blocks to places of one band."""
    disk, dbn = volume.geometry.to_disk(new)
    record = volume.geometry.groups[group]
    first = int(dbn[0]) // BAND_STRIPES * BAND_STRIPES
    data = _read(volume, places).reshape(-1, BLOCK_BYTES)
    volume.declare_areas([(group, first // AREA_STRIPES)])
    band = volume.array.new_band(group, first, min(BAND_STRIPES, record.disk_blocks - first), zero=False)
    member = np.searchsorted(np.array(record.disks[: record.n_data], np.int64), disk)
    band.written[:] = False
    band.written[member, dbn - first] = True
    band.data[member, dbn - first] = data
    try:
        return volume.beside.write(band)
    except BaseException:
        volume.array.drop_band(band)
        raise


class _Undone:
    """Where something cannot be read what was copied is nobody's, and the volume goes on; any other error stops it."""

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, VolumeDamagedError):
            self._volume.array.drain()
            self._volume.commit(force=True)
            self._volume.space.forget()
        elif error is not None:
            self._volume.stop(error)


def _read(volume: LiveVolume, places: Numbers, are_known: bool = True) -> Bytes:
    """Return the bytes of blocks, in order, each that states have held against its check.

    Raises
    ------
    ChecksumError : one is damaged.
    """
    data = aligned_buffer(len(places) * BLOCK_BYTES)
    volume.array.read_places(runs_of(places), data)
    if not are_known:
        return data
    bad = np.flatnonzero(volume.beside.checks.expected(places).bad(data.reshape(-1, BLOCK_BYTES)))
    if len(bad):
        place = int(places[bad[0]])
        raise ChecksumError(
            f"the block at place {place} does not match its checksum, and is not moved", place,
            "delete what `blockplane check` says it belongs to, then go on",
        )  # fmt: skip
    return data


def adopt(volume: LiveVolume, old: Numbers, new: Numbers) -> None:
    """Have every state that has blocks at old places look for them at the new ones, in the open CP.

    Who has a state at hand reads there from now on.

    Raises
    ------
    VolumeDamagedError : it cannot be read what a state has; nothing moves. What fails behind that stops the volume.
    """
    local = volume.local
    with _Undone(volume):
        found = [(entry, _moved(volume.snapshot_state(entry), old, new)) for entry in local.regular()]
        live = _moved(volume.active, old, new)
    with volume.changing():
        room = local.shadows.measure()
        if volume.space.closed is None:  # else what is given up was not counted as free
            room.take(len(new))
        local.shadows.relocate(old, new)
        for entry, placemap in found:
            if placemap is not None:
                local.replace_map(entry, placemap)
                volume.state_moved(entry.record.id, placemap)
        if live is not None:
            volume.relocate(live)
        local.move_held(old, new)
        local.is_dirty = True


def _moved(state: State, old: Numbers, new: Numbers) -> PlaceMap | None:
    """Return the place map of a state whose blocks at old places are at the new ones; None: it has none there."""
    vbns, mine = names_at(state, old)
    return moved(state.placemap, vbns[mine], new[mine]) if mine.any() else None


def names_at(state: State, places: Numbers) -> tuple[Numbers, Mask]:
    """Return the VBNs that a state has at places, and which of these it has any at."""
    vbns = state.placemap.to_vbns(places)
    mine = (vbns >= 0) & (vbns < state.space_blocks)
    mine[mine] = state.holds(vbns[mine])
    return vbns, mine


def touched(volume: LiveVolume, start: int, stop: int, most: int) -> int:
    """Have blocks of the local tree at places of a range placed anew in the open CP, at most so many; return how many.

    Notes
    -----
    An error stops the volume: tables are written on the way.
    """
    with volume.changing():
        n_touched = volume.local.touch_within(start, stop, most)
        if n_touched:
            volume.local.shadows.store()
    return n_touched
