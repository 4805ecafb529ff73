"""Links cut, silenced and flipped at chosen bytes of both directions: what arrives is a state the source had.

Of the control dialogue every byte with --deep, in parts, and 16 of them else; of the data 500 random bytes, and about
20 else. After each: the copy has a state that the source had; the next call ends equal; no thread, pin, temporary
file or interrupted receive is left; what travels twice is counted.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockplane.image import build
from blockplane.model.errors import BlockplaneError
from blockplane.server.network import Listener, RemotePeer, Rights
from blockplane.transfer.lag import replicas
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import image_towards
from rig.farside import FarSide, far_side
from rig.network import QUICK, Cut, Link, threads_left
from streams.volumes import contents, fresh

MIB = 1 << 20
#: What a silent link may cost before it is noticed.
HASTY = replace(QUICK, idle_s=0.5, least_over_s=0.5, alive_s=0.1, greeting_s=1.0)
#: What may travel twice beside two hundredths.
ALLOWANCE = 16 * MIB


def lengths(side: FarSide, n_blocks: int, n_connections: int, *, control: bool = False) -> dict[str, int]:
    """How many bytes of each direction a push takes that nothing happens to: in all, or of the control connection."""
    top = side.change(n_blocks)
    with Link(side.listener.address) as link:
        side.push(top, side.peer(link.address, n_connections=n_connections))
        side.require_done(top)
        side.forget_before(top)
        return dict(link.n_first if control else link.n_bytes)


def pushed_through(
    side: FarSide, cut: Cut, n_blocks: int, *, patience_s: float, n_connections: int
) -> tuple[int, bool]:
    """Push a change over a link that is cut; then, if that failed, once more over a whole one.

    Returns the bytes that went up, and whether the first call ended well.
    """
    top = side.change(n_blocks)
    image = image_towards(side.source, top, side.peer().standing())
    with Link(side.listener.address, cut) as link:
        peer = side.peer(link.address, patience_s=patience_s, n_connections=n_connections)
        try:
            peer.take(image, LocalChanges.REFUSE)
            went_well = True
        except BlockplaneError:
            went_well = False
            side.require_a_state()
        if not went_well:
            side.peer(link.address, patience_s=20, n_connections=n_connections).take(image, LocalChanges.REFUSE)
        n_bytes = link.n_bytes["up"]
    side.require_done(top)
    side.forget_before(top)
    return n_bytes, went_well


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_the_control_dialogue_cut_at_any_byte(tmp_path, rng, how, is_deep, part, record_property):
    with far_side(tmp_path, rng, limits=HASTY) as side:
        spans = lengths(side, 3, 1, control=True)
        every = [(direction, at) for direction in ("up", "down") for at in range(spans[direction])]
        n_chosen = {"reset": 12, "silent": 4}[how]
        chosen = every[part[0] :: part[1]] if is_deep else [every[i] for i in rng.choice(len(every), n_chosen, False)]
        n_well = 0
        for direction, at in chosen:
            _, went_well = pushed_through(
                side, Cut(at, direction, how, in_first=True), 3, patience_s=0, n_connections=1
            )
            n_well += went_well
        side.require_at_rest()
    record_property(
        "summary",
        f"control dialogue, {how}: {len(chosen)} of {len(every)} bytes cut, all ended equal ({n_well} at once)",
    )


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_the_data_cut_at_random_bytes(tmp_path, rng, how, is_deep, part, record_property):
    n_blocks = 7000 if is_deep else 1200  # what is up to 16 MiB is brought again whole
    with far_side(tmp_path, rng, "64M", "128M", limits=HASTY) as side:
        span = lengths(side, n_blocks, 4)["up"]
        n_cuts = {"reset": 250, "silent": 250} if is_deep else {"reset": 4, "silent": 2}
        n_mine = -(-n_cuts[how] // part[1])
        most_twice = 0
        for _ in range(n_mine):
            cut = Cut(int(rng.integers(1000, span)), "up", how)
            n_bytes, went_well = pushed_through(side, cut, n_blocks, patience_s=20, n_connections=4)
            assert went_well, "a cut link comes back: the call goes on by itself"
            most_twice = max(most_twice, n_bytes - span)
        assert most_twice < span * 0.02 + ALLOWANCE
        side.require_at_rest()
    record_property("summary", f"data, {how}: {n_mine} of {n_mine} cuts ended equal; at most {most_twice} bytes twice")


@pytest.mark.parametrize("pulls", [False, True], ids=["push", "pull"])
def test_what_matched_before_a_flip_is_kept(tmp_path, rng, pulls):
    n_blocks, at = 2400, 1800 * 4096
    with far_side(tmp_path, rng, "64M", "64M", limits=HASTY) as side:
        top = side.change(n_blocks)
        image = image_towards(side.source, top, side.peer().standing())
        rights = Rights({"@plaintext": {"copy": ["write"], "source": ["read"]}})
        served = {"copy": side.copy, "source": side.source}
        with (
            Listener("127.0.0.1:0", served, rights, None, limits=HASTY) as listener,
            Link(listener.address, Cut(at, "down" if pulls else "up", "flip")) as link,
        ):
            if pulls:
                RemotePeer(link.address, "source", None, limits=HASTY).bring(top, side.copy, LocalChanges.REFUSE)
            else:
                RemotePeer(link.address, "copy", None, limits=HASTY).take(image, LocalChanges.REFUSE)
            assert link.cut.happened.is_set()
            assert link.n_bytes["down" if pulls else "up"] < n_blocks * 4096 + 4 * MIB
        side.require_done(top)
        side.require_at_rest()


def test_a_pull_cut_at_random_bytes(tmp_path, rng, is_deep, part, record_property):
    n_mine = -(-250 // part[1]) if is_deep else 3
    with far_side(tmp_path, rng, limits=HASTY) as side:
        for turn in range(n_mine):
            top = side.change(1200)
            side.push(top)
            with fresh(tmp_path / f"pulled{turn}", size="24M") as pulled:
                span = build(side.source, top).n_blocks * 4096  # runs that were written may lie upon each other
                cut = Cut(int(rng.integers(1000, span)), "down", "silent" if turn % 3 == 2 else "reset")
                with Link(side.listener.address, cut) as link:
                    brought = side.peer(link.address, patience_s=20).bring(top, pulled, LocalChanges.REFUSE)
                    assert (brought.top, cut.happened.is_set()) == (top, True)
                    assert link.n_bytes["down"] < brought.n_bytes * 1.02 + ALLOWANCE
                assert contents(pulled.active) == side.states[top]
                assert pulled.pins.all() == []
            for known in replicas(side.copy, top):
                side.copy.forget_replica(known.name)
            side.forget_before(top)
        side.require_at_rest()
    record_property("summary", f"pulls: {n_mine} of {n_mine} cut ended equal")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_bit_flipped_in_transit_is_never_taken(tmp_path, rng, direction, is_deep, part, record_property):
    n_mine = -(-250 // part[1]) if is_deep else 3
    with far_side(tmp_path, rng, limits=HASTY) as side:
        span = lengths(side, 300, 2)[direction]
        for _ in range(n_mine):
            cut = Cut(int(rng.integers(0, span)), direction, "flip")
            pushed_through(side, cut, 300, patience_s=0, n_connections=2)
        side.require_at_rest()
    record_property("summary", f"flips, {direction}: 0 of {n_mine} accepted")


def test_flips_of_plain_tcp_are_never_taken(tmp_path, rng, is_deep, part, record_property):
    n_mine = -(-500 // part[1]) if is_deep else 5
    with far_side(tmp_path, rng, limits=HASTY) as side:
        rights = Rights({"@plaintext": {"pool": ["write"]}})
        with Listener("127.0.0.1:0", {"pool": side.copy}, rights, None, limits=HASTY) as listener:
            for turn in range(n_mine):
                top = side.change(300)
                image = image_towards(side.source, top, side.peer().standing())
                direction = "up" if turn % 3 else "down"
                at = int(rng.integers(0, 300 * 4096 if direction == "up" else 400))
                with Link(listener.address, Cut(at, direction, "flip")) as link:
                    peer = RemotePeer(link.address, "pool", None, limits=HASTY, patience_s=20, n_connections=2)
                    try:
                        peer.take(image, LocalChanges.REFUSE)
                    except BlockplaneError:
                        side.require_a_state()
                        peer.take(image, LocalChanges.REFUSE)
                side.require_done(top)
                side.forget_before(top)
        side.require_at_rest()
    assert threads_left() == []
    record_property("summary", f"flips of plain TCP: 0 of {n_mine} accepted")
