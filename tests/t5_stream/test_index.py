"""The index in memory: which frame holds a block, against a dictionary."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.model import StreamDamagedError
from blockplane.stream.cache import FrameCache
from blockplane.stream.codec import INDEX_DTYPE
from blockplane.stream.index import Index, Wanted


@st.composite
def indexes(draw) -> tuple[Index, dict[int, tuple[int, int]]]:
    """An index, and (frame, block of the frame) of every VBN that it holds."""
    entries, vbn = [], draw(st.integers(0, 5))
    for _ in range(draw(st.integers(0, 8))):
        n_blocks = draw(st.integers(1, 6))
        entries.append((vbn, draw(st.integers(0, 1000)), n_blocks, draw(st.integers(0, 250))))
        vbn += n_blocks + draw(st.integers(0, 3))
    mixed = draw(st.permutations(entries))
    cut = draw(st.integers(0, len(mixed)))
    parts = [np.array(part, INDEX_DTYPE) for part in (mixed[:cut], mixed[cut:])]
    known = {v + i: (frame, first + i) for v, frame, n, first in entries for i in range(n)}
    return Index(parts), known


@given(indexes(), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6))
def test_find_gives_every_block_once_and_names_the_rest(made, asked):
    index, known = made
    extents = np.array([(start, start + n) for start, n in asked], np.int64).reshape(-1, 2)
    numbers = [vbn for start, n in asked for vbn in range(start, start + n)]
    found, rest = index.find(Wanted.one_after_another(extents))
    seen = {}
    for i in range(len(found)):
        for k in range(int(found.n_blocks[i])):
            position = int(found.position[i]) + k
            assert position not in seen
            assert numbers[position] == int(found.vbn[i]) + k
            seen[position] = (int(found.frame[i]), int(found.first[i]) + k)
    missing = [(p + k, s + k) for (s, e), p in zip(rest.extents.tolist(), rest.position.tolist(), strict=True)
               for k in range(e - s)]  # fmt: skip
    assert seen == {i: known[vbn] for i, vbn in enumerate(numbers) if vbn in known}
    assert sorted(missing) == [(i, vbn) for i, vbn in enumerate(numbers) if vbn not in known]
    assert [index.holds(vbn) for vbn in range(80)] == [vbn in known for vbn in range(80)]


def test_sanity():
    def sane(*entries):
        return Index([np.array(list(entries), INDEX_DTYPE)]).is_sane(100, 5000)

    assert sane((0, 10, 5, 0), (5, 10, 95, 5))
    assert not sane((0, 10, 5, 0), (4, 10, 5, 5))
    assert not sane((96, 10, 5, 0))
    assert Index([np.array([(0, 10, 56, 200)], INDEX_DTYPE)]).is_sane(1000, 5000)
    assert not Index([np.array([(0, 10, 57, 200)], INDEX_DTYPE)]).is_sane(1000, 5000)  # a frame has 256 at most
    assert not sane((-1, 10, 5, 0))
    assert not sane((0, 5000, 5, 0))
    assert not sane((0, -1, 5, 0))
    assert not sane((0, 10, 0, 0))


def test_closing_waits_for_threads_that_still_count():
    """One of the frames asked for together is damaged; another is still being read when the chain is closed."""
    cache, is_begun, is_closing = FrameCache(), threading.Event(), threading.Event()

    def work(number: int) -> bytes:
        if not number:
            is_begun.wait(1)  # one core: the other waits for this one
            raise StreamDamagedError("this one is damaged")
        is_begun.set()
        is_closing.wait(10)
        cache.count(1, 4096)
        return b""

    with pytest.raises(StreamDamagedError):
        list(cache.map(work, [0, 1]))
    closing = threading.Thread(target=cache.close, daemon=True)
    closing.start()
    time.sleep(0.05)
    is_closing.set()
    closing.join(10)
    assert not closing.is_alive()
    assert cache.counters.n_requests == int(is_begun.is_set())
