"""What a standing says of pointers, replicas and geometry arrives as it was said; what none can say is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.transfer.standing import Standing
from blockplane.transfer.standingcodec import n_replication_bytes, replication_heard, replication_said
from blockplane.volume.codec import NO_ID
from blockplane.volume.replicationcodec import PointerRecord, ReplicaRecord, Replication
from faults.world import geometry_of

BARE = Standing(NO_ID, NO_ID, NO_ID, (), ())
FULL = replace(
    BARE, label="poöl", generation=7, pointers=(PointerRecord("master", bytes(range(16)), 3, b"v" * 16, 9),),
    below=(ReplicaRecord("far", b"r" * 16, 5, b"s" * 16, b"m" * 16, 11),), groups=geometry_of(2, 1, n_groups=2).groups,
)  # fmt: skip

values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=300), st.lists(st.integers(), max_size=4),
    st.lists(st.lists(st.integers(0, 2**62), min_size=5, max_size=5), max_size=3),
)  # fmt: skip


@pytest.mark.parametrize("standing", [BARE, FULL])
def test_it_arrives_as_it_was_said(standing):
    said, blob = replication_said(standing)
    said = json.loads(json.dumps(said))
    assert n_replication_bytes(said) == len(blob)
    assert replication_heard(BARE, said, blob) == standing


@given(st.sampled_from(["label", "generation", "n_records", "groups"]), values, st.binary(max_size=1600))
def test_whatever_is_said_is_a_standing_or_refused(field, value, blob):
    said, mine = replication_said(FULL)
    for data in (mine, blob, mine[: len(blob)] + blob[: max(len(mine) - len(blob), 0)]):
        try:
            found = replication_heard(BARE, {**said, field: value}, data)
        except ValueError:
            continue
        assert found.generation < 1 << 64
        assert len(Replication(found.pointers, found.below).encode()) == len(data)


@pytest.mark.parametrize(
    "table",
    [
        Replication((PointerRecord("a b", NO_ID, 1, NO_ID),)),
        Replication((PointerRecord("a\x1b", NO_ID, 1, NO_ID),)),
        Replication((PointerRecord("a", NO_ID, 1 << 62, NO_ID),)),
        Replication(limit_s=3),
        Replication(others=(bytes([9]) + bytes(511),)),
        Replication(tuple(PointerRecord(f"p{n}", NO_ID, 1, NO_ID) for n in range(300))),
    ],
)
def test_records_that_no_volume_has(table):
    blob = table.encode()
    said = {**replication_said(BARE)[0], "n_records": len(blob) // 512}
    with pytest.raises(ValueError, match=r"pointer|number"):
        replication_heard(BARE, said, blob)
