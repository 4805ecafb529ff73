"""Names of new blocks where many are taken: which they get, and that it costs no Python for each of them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.volume import shrink
from blockplane.volume.emptying import Emptying
from blockplane.volume.grow import add_group
from faults.recording import MemoryDisk
from faults.world import FileClient, again, make_volume, raw_blocks, read_files, verdict

N_OLD, N_BLOCKS = 2600, 1500
FIRST = 65536
GROUPS = [GroupRecord(0, 2, 1, 64, 4096, (0, 1, 2)), GroupRecord(FIRST, 2, 1, 64, 4096, (3, 4, 5))]


def n_calls(work: Callable[[], None]) -> int:
    """How many Python functions are called."""
    n = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal n
        n += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return n


def scattered_volume(every: int):
    """A volume in whose second group, wholly free, every so many names are taken."""
    geometry = Geometry(GROUPS)
    volume = make_volume(geometry, reserve_blocks=128)
    client = FileClient(volume)
    volume.placer._cursor[False] = (1, 0)
    client.write(1, 0, range(N_OLD))
    volume.sync()
    for index in range(N_OLD):
        if index % every:
            client.punch(1, index, index + 1)
    volume.snapshot("before")
    for _ in range(3):
        volume.commit(force=True)
    volume.commit(clean=True)
    volume.close_group(1)
    emptying = Emptying(volume, GROUPS[1])
    while emptying.step():
        pass
    shrink._leave(volume)
    shrink.remove_group(volume, lambda: None)
    disks = [MemoryDisk(f"new{i}", raw_blocks(geometry, i)) for i in GROUPS[1].disks]
    add_group(volume, GROUPS[1], disks, lambda: None)
    client = FileClient(volume)
    volume.placer._cursor[False] = (1, 0)
    return volume, client


def test_no_python_for_each_scattered_name(record_property):
    found = {}
    for every in (2, 1 << 20):
        volume, client = scattered_volume(every)
        client.write(9, 0, range(N_BLOCKS))  # what is looked up once is known now
        found[every] = n_calls(lambda client=client: client.write(9, 0, range(7, 7 + 1000)))
        volume.sync()
        vbns = np.array([int(p) for p in volume.committed.placemap.vbns()], np.int64)
        assert (len(vbns) > N_BLOCKS // 4) == (every == 2)
        assert read_files(volume.committed)[9] == {
            **dict(enumerate(range(N_BLOCKS))), **dict(enumerate(range(7, 1007)))
        }  # fmt: skip
        verdict(volume)
        volume = again(volume)
        assert read_files(volume.committed)[9][999] == 1006
        verdict(volume)
    record_property("summary", f"names: {found[2]} calls for 1,000 blocks, {found[1 << 20]} where no name is taken")
    assert found[2] < 2 * found[1 << 20] + 100
