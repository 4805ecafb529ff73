"""Sending between two sites, everything predicted: what the image holds, what arrives, what is refused."""

from __future__ import annotations

import io
import itertools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal
from unittest import mock

import pytest

from blockplane.image.image import Image, build
from blockplane.model import NoSpaceError, RefusedError, StreamMismatchError, StreamTruncatedError
from blockplane.stream import codec
from blockplane.transfer.receive import ReceiveReport, receive
from blockplane.transfer.resume import ResumeToken, drop_incoming, interrupted_receives, resume_token
from blockplane.transfer.send import send
from model import ModelSnapshot
from rig.sets import numbers, pairs_of
from rig.site import Site

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Wish:
    """What to send: the top, older snapshots beside it, the base."""

    top: str
    beside: tuple[str, ...] = ()
    base: str | None = None

    @property
    def text(self) -> str:
        return " + ".join((self.top, *self.beside)) + (f" - {self.base}" if self.base else "")


@dataclass(frozen=True)
class Cut:
    """How a transfer is interrupted: after how many hundredths of its stream, with a crash or not; how it goes on."""

    at: int
    crash: bool
    how: Literal["again", "token", "abort", "onward"]


def small_frames() -> AbstractContextManager[object]:
    """Have streams written in frames of few blocks: what is cut leaves whole ones before."""
    return mock.patch.object(codec, "MAX_FRAME_BLOCKS", 2)


def interrupt(target: Site, image: Image, stream: bytes, cut: Cut, *, discard: bool) -> bytes | ResumeToken:
    """Receive a part of a stream; return the stream to go on with, or the token to go on from."""
    n_bytes = len(stream) * cut.at // 100
    try:
        receive(io.BytesIO(stream[:n_bytes]), target.volume, discard=discard)
    except (NoSpaceError, RefusedError):
        return stream
    except StreamTruncatedError:
        pass
    target.reopen(crash=cut.crash)
    there = interrupted_receives(target.volume)
    assert len(there) <= 1
    target.n_interrupted += len(there)
    if not there or cut.how == "again":
        return stream
    assert (there[0].n_image, there[0].top_name) == (image.n_blocks, image.top.name if image.top else "")
    if cut.how == "abort":
        drop_incoming(target.volume)
        return stream
    token = resume_token(target.volume)
    assert numbers(token.copied.extents()) <= numbers(image.plane.extents())
    if cut.how == "onward":
        return token
    rest = io.BytesIO()
    with small_frames():
        report = send(image, rest, resume=token)
    assert report.n_blocks == token.n_left
    return rest.getvalue()


def checked_image(source: Site, wish: Wish) -> tuple[Image, list[ModelSnapshot], dict[int, int]]:
    """Build an image, and hold it against sets. Returns it, what must arrive, older first, and where its blocks lie."""
    image = build(source.volume, wish.text)
    volume, model = source.volume, source.model
    by_id = {s.id: s for s in volume.snapshots}
    base = model.named(wish.base) if wish.base else None
    base_pairs = pairs_of(by_id[base.id]) if base is not None else set()
    terms = [model.named(name) for name in (wish.top, *wish.beside)]
    wanted = set().union(*(pairs_of(by_id[term.id]) for term in terms if term is not None)) - base_pairs
    vbns = {vbn for vbn, _ in wanted}
    assert numbers(image.plane.extents()) == vbns
    assert image.n_blocks == len(vbns)
    assert sum(image.blocks_per_disk) == len(vbns)
    top = terms[0]
    assert top is not None
    assert image.top is not None
    assert image.top.id.hex() == top.id
    listed = [s for i, s in model.regular().items() if i in top.moment.listed and i != top.id]
    # under one name the stream brings one block, the newest term's; what the base holds under that name is gone
    age = {s.id: (s.record.cp, s.record.created_ns) for s in volume.snapshots}
    sent: dict[int, int] = {}
    for term in (top, *sorted((t for t in terms[1:] if t), key=lambda t: age[t.id], reverse=True)):
        for vbn, place in pairs_of(by_id[term.id]) - base_pairs:
            sent.setdefault(vbn, place)
    assert sent.keys() == vbns
    there = set(sent.items()) | {pair for pair in base_pairs if pair[0] not in vbns}
    base_root = by_id[base.id].record.root if base is not None else None
    # a second name of the base's state stays out, unless it is asked for
    asked = [s for s in listed if s in terms or by_id[s.id].record.root != base_root]
    whole = [s for s in [*asked, top] if pairs_of(by_id[s.id]) <= there]
    assert {record.id.hex() for record in image.arriving} == {s.id for s in whole}
    order = [record.id.hex() for record in sorted(image.arriving, key=lambda record: (record.cp, record.created_ns))]
    return image, [model.snapshots[i] for i in order], sent


def transfer(
    source: Site,
    target: Site,
    wish: Wish,
    *,
    discard: bool = False,
    cut: Cut | None = None,
    begun: tuple[ResumeToken, list[ModelSnapshot]] | None = None,
) -> ReceiveReport | None:
    """Send and receive; None where that was refused, as it had to be.

    begun : the token of an interrupted transfer of another image, and the snapshots that it brings.
    """
    source.sync()
    target.sync()
    image, arriving, sent = checked_image(source, wish)
    if image.base is not None and not image.complete:
        return None
    written = io.BytesIO()
    with small_frames() if cut is not None else nullcontext():
        report = send(image, written, resume=begun[0] if begun is not None else False)
    assert report.n_blocks == image.n_blocks - (_n_carried(source, sent, *begun) if begun is not None else 0)
    stream = written.getvalue()
    base = source.model.named(wish.base) if wish.base else None
    refusal = _refusal(target, arriving, base, discard)
    if refusal is not None:
        with pytest.raises(refusal):
            receive(io.BytesIO(stream), target.volume, discard=discard)
        target.sync()
        return None
    if cut is not None:
        left = interrupt(target, image, stream, cut, discard=discard)
        if isinstance(left, ResumeToken):
            return _onward(source, target, wish, (left, arriving), discard=discard)
        stream = left
    try:
        received = receive(io.BytesIO(stream), target.volume, discard=discard)
    except NoSpaceError:
        target.n_full += 1
        target.sync()
        return None
    except RefusedError:
        plane = image.plane
        assert int(plane.select(len(plane) - 1)) >= target.volume.geometry.n_blocks
        target.sync()
        return None
    assert received.already_there == (arriving[-1].id in target.model.regular())
    if not received.already_there:
        assert set(received.arrived) == {s.name for s in arriving}
        target.model.receive(arriving, base)
    target.taken_in()
    return received


def _n_carried(source: Site, sent: dict[int, int], token: ResumeToken, members: list[ModelSnapshot]) -> int:
    """How many blocks of an image came with another one, and a snapshot of that has them where the image does."""
    by_id = {s.id: s for s in source.volume.snapshots}
    there = set().union(*(pairs_of(by_id[s.id]) for s in members if s.id in by_id))
    return sum((vbn, sent.get(vbn)) in there for vbn in numbers(token.copied.extents()))


def _onward(
    source: Site, target: Site, wish: Wish, begun: tuple[ResumeToken, list[ModelSnapshot]], *, discard: bool
) -> ReceiveReport | None:
    """Send what the source is by now, from what came of an older snapshot on; what is left of that is given up."""
    name = f"onward{next(_numbers)}"
    source.replace("/onward", name.encode() * 3000)
    source.create(name)
    outcome = None
    made = source.model.named(name)
    if made is not None and source.volume.get_snapshot(name).record.space_id != begun[0].space_id:
        with pytest.raises(RefusedError, match="of another volume"):  # the old top came from elsewhere
            send(build(source.volume, name), None, resume=begun[0], dry_run=True)
    elif made is not None:
        base = source.model.named(wish.base) if wish.base else None
        is_linear = base is not None and base.id in made.moment.listed
        onward = Wish(name, (), wish.base if is_linear else None)
        outcome = transfer(source, target, onward, discard=discard, begun=begun)
    if interrupted_receives(target.volume):
        drop_incoming(target.volume)
        target.taken_in()
    return outcome


def _refusal(
    target: Site, arriving: list[ModelSnapshot], base: ModelSnapshot | None, discard: bool
) -> type[Exception] | None:
    """Which error must come, if any."""
    there, whole = target.model.snapshots, target.model.regular()
    if arriving[-1].id in whole:
        return None
    if any(s.id in there and s.id not in whole for s in arriving):
        return RefusedError
    taken = {s.name: s.id for s in there.values()}
    if any(taken.get(s.name, s.id) != s.id for s in arriving if s.id not in there):
        return RefusedError
    if base is None:
        return None if discard or target.model.is_blank else RefusedError
    if base.id not in there or there[base.id].kind == "shadow":
        return StreamMismatchError
    return None if discard or target.model.may_succeed(arriving[-1]) else RefusedError
