"""Streams whose checksums and digests are right and whose fields are anything: refused clearly, or received (F16)."""

from __future__ import annotations

import io
import os

from blockplane.model import BlockplaneError
from blockplane.transfer import receive, send
from forging import VALUES, head_bytes, is_data, parts_of, sealed
from streams.storage import DictSending, DictStorage, pair

N_STREAMS = 200_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 1_000


def test_forged_streams(rng):
    source, old, new = pair()
    first, out = io.BytesIO(), io.BytesIO()
    send(DictSending(source, old), first)
    left_out = source.snapshot("x", frozenset({1}), 1)
    send(DictSending(source, new, old, window_blocks=3, left_out=(left_out,)), out)
    n_refused = n_received = 0
    for _ in range(N_STREAMS):
        parts = [bytearray(part) for part in parts_of(out.getvalue())]
        for _ in range(int(rng.integers(1, 4))):
            part = parts[int(rng.integers(len(parts)))]
            end = head_bytes(part) if part is not parts[0] and is_data(part) else len(part)
            width = int(rng.choice([1, 2, 4, 8]))
            at = int(rng.integers(max(end - width, 1)))
            value = VALUES[int(rng.integers(len(VALUES)))] if rng.integers(4) else int(rng.integers(1 << 62))
            part[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        target = DictStorage()
        receive(io.BytesIO(first.getvalue()), target)
        before = dict(target.blocks)
        try:
            receive(io.BytesIO(sealed(parts)), target)
            n_received += 1
        except BlockplaneError:
            n_refused += 1
            assert target.blocks == before
    assert n_refused + n_received == N_STREAMS
    assert n_refused > N_STREAMS // 4
