"""The wire's messages: WIRE.md against the codec, and whatever else may come."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.model import BlockplaneError
from blockplane.model.checks import crc32c
from blockplane.model.errors import ConnectionLostError, UsageError
from blockplane.planes import Plane
from blockplane.server.network import Limits, codec
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import BOUNDS, HEAD_BYTES, Head, Kind, WireError, encode_head
from blockplane.server.network.serving import REQUESTS
from blockplane.server.network.spoken import error_heard, error_said, standing_heard, standing_said
from blockplane.server.network.striped import PIECE_BYTES, Incoming, Outgoing
from blockplane.server.network.throttle import Throttle
from blockplane.server.network.tokens import decode_token
from blockplane.transfer.resume import InterruptedReceive, ResumeToken
from blockplane.transfer.standing import Standing
from rig.network import QUICK

PAGE = Path(codec.__file__).with_name("WIRE.md").read_text()


def tables() -> list[list[list[str]]]:
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    ]


def table(*heads: str) -> list[list[str]]:
    """The rows of the table with these heads."""
    (found,) = [rows[2:] for rows in tables() if rows[0] == list(heads)]
    return found


def test_the_page_says_what_the_codec_does():
    assert f"# The wire, protocol {codec.PROTOCOL}\n" in PAGE
    body, at = b"some body", 0
    for whole in (False, True):
        packed, at = encode_head(Kind.PIECE, body, 0x0102030405060708, whole=whole), 0
        values = {
            "magic": b"BPW\x01", "kind": b"\x08", "flags": bytes([whole]), "zero": b"\0\0",
            "length": len(body).to_bytes(4, "big"), "sequence": bytes(range(1, 9)),
            "crc": crc32c(packed[:20] + (body if whole else b"")).to_bytes(4, "big"),
        }  # fmt: skip
        for offset, size, name, _ in table("offset", "size", "field", "meaning"):
            assert int(offset) == at
            assert packed[at : at + int(size)] == values.pop(name), name
            at += int(size)
        assert (at, values) == (HEAD_BYTES, {})
    kinds = {(int(number), name, int(most)) for number, name, most, _ in table("kind", "name", "body at most", "says")}
    assert kinds == {(kind.value, kind.name, BOUNDS[kind]) for kind in Kind}
    defaults = {name.strip("`"): float(value) for name, value, _ in table("limit", "default", "of")}
    assert defaults == {field.name: getattr(Limits(), field.name) for field in fields(Limits)}
    assert {row[0].strip("`") for row in table("verb", "request says", "answer says", "then")} == set(REQUESTS)


def test_no_limit_is_without_bound():
    for field in fields(Limits):
        for value in (0, -1, float("nan")):
            with pytest.raises(UsageError):
                Limits(**{field.name: value})


@given(st.sampled_from(Kind), st.binary(max_size=300), st.integers(0, (1 << 64) - 1), st.booleans())
def test_messages_come_back(kind, body, sequence, whole):
    body = body[: BOUNDS[kind]]
    packed = encode_head(kind, body, sequence, whole=whole)
    head = Head.decode(packed)
    assert (head.kind, head.n_bytes, head.sequence) == (kind, len(body), sequence)
    head.require_whole(packed, [body])


@given(st.sampled_from(Kind), st.binary(min_size=1, max_size=60), st.data())
def test_a_changed_bit_is_never_taken(kind, body, data):
    body = body[: BOUNDS[kind]]
    packed = bytearray(encode_head(kind, body, 5, whole=True) + body)
    at = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[at // 8] ^= 1 << at % 8
    with pytest.raises(WireError):
        Head.decode(packed[:HEAD_BYTES]).require_whole(packed[:HEAD_BYTES], [packed[HEAD_BYTES:]])


@given(st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES))
def test_any_bytes_are_a_head_within_bounds_or_refused(data):
    with contextlib.suppress(WireError):
        head = Head.decode(data)
        assert head.n_bytes <= BOUNDS[head.kind]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = ["generation", "n_snapshots", "n_pointers", "n_below", "n_group_bytes"]
FIELDS = st.sampled_from(
    [*NUMBERS, "volume_id", "space_id", "at", "label", "interrupted", "kind", "message", "hint", "brought", "top"]
)


@given(st.dictionaries(FIELDS, JSON, max_size=8), st.binary(max_size=600))
def test_whatever_is_said_is_understood_or_refused(found, blob):
    for read in (lambda: error_heard(found), lambda: standing_heard(found, blob), lambda: decode_token(blob, 1 << 40)):
        with contextlib.suppress(BlockplaneError):
            read()


@given(st.binary(max_size=400) | JSON.map(lambda found: codec.encode_object({"x": found})))
def test_bodies_are_objects_or_refused(body):
    with contextlib.suppress(WireError):
        assert isinstance(codec.decode_object(body), dict)


def test_deep_nesting_is_refused():
    with pytest.raises(WireError):
        codec.decode_object(b'{"a":' + b"[" * 60_000)


@given(
    st.binary(min_size=16, max_size=16),
    st.lists(
        st.builds(
            InterruptedReceive, st.text(max_size=40), st.binary(min_size=16, max_size=16), st.integers(0, 1 << 56),
            st.integers(0, 1 << 56), st.integers(0, 1 << 62), st.booleans(), st.booleans(),
        ), max_size=40,
    ),
)  # fmt: skip
def test_standings_come_back(some_id, interrupted):
    standing = Standing(some_id, some_id[::-1], some_id, (), tuple(interrupted))
    said, blob = standing_said(standing)
    body = codec.encode_object(said)
    assert len(body) <= codec.MAX_CONTROL_BYTES
    heard = standing_heard(codec.decode_object(body), blob)
    assert (heard.volume_id, heard.space_id, heard.at) == (some_id, some_id[::-1], some_id)
    assert [found.image_id for found in heard.interrupted] == [found.image_id for found in interrupted[-32:]]
    assert all(found.top_name.isprintable() for found in heard.interrupted)


def test_errors_keep_their_kind_and_lose_control_characters():
    error = UsageError("no\x1b[31m such\n thing", "do\x00 this")
    heard = error_heard(codec.decode_object(codec.encode_object(error_said(error))))
    assert (type(heard), heard.exit_status) == (UsageError, 2)
    assert heard.message.isprintable()
    assert heard.hint.isprintable()
    unforeseen = error_heard(codec.decode_object(codec.encode_object(error_said(KeyError("secret")))))
    assert "secret" not in str(unforeseen)


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6), st.randoms(use_true_random=False))
def test_a_channel_takes_bytes_as_they_come(pieces, random):
    """Garbage, and messages cut in pieces: messages, or an error, and never more than what was sent."""
    data = b"".join(
        encode_head(Kind.ANSWER, piece, whole=True) + piece if random.random() < 0.7 else piece for piece in pieces
    )

    cuts = sorted({random.randint(0, len(data)) for _ in range(6)} | {0, len(data)})

    one, other = socket.socketpair()
    channel = Channel(one, QUICK, "the other side")

    def write() -> None:
        for start, stop in itertools.pairwise(cuts):
            other.sendall(data[start:stop])
        other.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with contextlib.suppress(WireError, ConnectionLostError):
            while True:
                assert channel.receive(Kind.ANSWER).body in data
        assert channel.n_received <= len(data)
    finally:
        thread.join()
        channel.close()


def test_a_deadline_ends_a_message_that_is_taken_slowly():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    channel = Channel(one, QUICK, "the other side", deadline=time.monotonic() + 0.3)

    def take() -> None:
        while other.recv(4096):
            time.sleep(0.005)

    thread = threading.Thread(target=take)
    thread.start()
    with pytest.raises(ConnectionLostError, match="took too long"):
        channel.send(Kind.BLOB, bytes(codec.MAX_PIECE_BYTES))
    channel.close()
    thread.join()
    other.close()


def test_a_token_of_more_block_numbers_than_there_are_is_none():
    """What it lists costs memory by its numbers, not by its bytes."""
    found = ResumeToken(
        bytes(16),
        bytes(16),
        bytes(16),
        bytes(16),
        9,
        "top",
        Plane.from_extents([[5, 6], [1 << 39, (1 << 39) + 1]], 1 << 40),
    )
    data = found.encode()
    assert ResumeToken.decode(data).copied == found.copied
    assert decode_token(data, 1 << 40) is not None
    with pytest.raises(WireError, match="block numbers"):
        decode_token(data, 1 << 20)


# --- time ------------------------------------------------------------------------------------------------------------

#: A hundredth of the defaults.
SHORT = Limits(idle_s=0.6, least_over_s=0.6, alive_s=0.15)


@contextlib.contextmanager
def dripping(*messages: tuple[bytes, float]):
    """A channel to one that says messages again and again, each after a pause."""
    near, far = socket.socketpair()
    is_over = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            for data, pause_s in itertools.chain(messages[:-1], itertools.repeat(messages[-1])):
                if is_over.wait(pause_s):
                    return
                far.sendall(data)

    thread = threading.Thread(target=drip)
    thread.start()
    channel = Channel(near, SHORT, "a slow one")
    try:
        yield channel
    finally:
        is_over.set()
        thread.join()
        channel.close()
        far.close()


def message(kind: Kind, body: bytes) -> bytes:
    return encode_head(kind, body, whole=True) + body


@pytest.mark.parametrize(
    "messages",
    [
        [(encode_head(Kind.BLOB, bytes(1 << 20), whole=True), 0.0), (b"x", 0.3)],
        [(message(Kind.BLOB, b"x"), 0.3)],
        [(message(Kind.ALIVE, b""), 0.3)],
    ],
    ids=["a byte of a body at a time", "a byte a message", "alive for ever"],
)
def test_who_is_never_idle_and_never_gets_on_is_lost(messages):
    started = time.monotonic()
    with dripping(*messages) as channel, pytest.raises(ConnectionLostError, match="took too long"):
        channel.receive_blob(1 << 20)
    assert time.monotonic() - started < 20 * SHORT.least_over_s


@pytest.mark.parametrize("silent_s", [0.1, 2.0])
def test_what_is_said_beside_pieces_is_no_progress_of_the_stream(silent_s):
    started = time.monotonic()
    with dripping((message(Kind.ALIVE, bytes(4096)), 0.02)) as channel:
        into = Incoming([channel], replace(SHORT, silent_s=silent_s), Throttle())
        with pytest.raises(ConnectionLostError, match="only 0 bytes moved"):
            into.readinto(memoryview(bytearray(1 << 20)))
    assert silent_s < time.monotonic() - started < silent_s + 20 * SHORT.least_over_s


def test_a_sender_that_is_at_work_is_waited_for():
    near, far = socket.socketpair()
    out = Outgoing([Channel(far, SHORT, "there")], SHORT, Throttle())
    into, room = Incoming([Channel(near, SHORT, "here")], SHORT, Throttle()), memoryview(bytearray(100))
    with contextlib.closing(into), contextlib.closing(out):
        threading.Timer(3 * SHORT.least_over_s, lambda: out.write(bytes(100))).start()
        assert into.readinto(room) == 100


def test_a_reader_below_the_least_rate_is_lost():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    is_over = threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError):
            while not is_over.wait(0.2) and far.recv(2048):
                continue

    for sock, option in ((near, socket.SO_SNDBUF), (far, socket.SO_RCVBUF)):
        sock.setsockopt(socket.SOL_SOCKET, option, 4096)
    thread = threading.Thread(target=read)
    thread.start()
    with contextlib.closing(Channel(near, SHORT, "a slow one")) as channel:
        with pytest.raises(ConnectionLostError, match="took too long"):
            channel.send_blob(bytes(8 << 20))
        is_over.set()
        thread.join()
    far.close()


def test_one_connection_may_wait_for_long_while_others_move():
    """The other side takes nothing from one of two for three times as long as one may be idle."""
    pairs = [socket.socketpair() for _ in range(2)]
    for near, far in pairs:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        far.settimeout(0.1)
    out = Outgoing([Channel(near, SHORT, "there") for near, _ in pairs], SHORT, Throttle())
    is_over, started = threading.Event(), time.monotonic()

    def take(far: socket.socket, from_s: float) -> None:
        while not is_over.is_set():
            if time.monotonic() - started >= from_s:
                with contextlib.suppress(TimeoutError):
                    far.recv(1 << 18)
            time.sleep(0.02)

    threads = [threading.Thread(target=take, args=(pairs[i][1], 3 * SHORT.idle_s * i)) for i in range(2)]
    for thread in threads:
        thread.start()
    with contextlib.closing(out):
        while time.monotonic() - started < 4 * SHORT.idle_s:
            out.write(bytes(16 << 10))
            time.sleep(0.005)
        out.finish()
    is_over.set()
    for thread in threads:
        thread.join()
    for _, far in pairs:
        far.close()


def test_a_reader_that_takes_nothing_is_lost_when_it_may_be_idle_no_longer():
    limits = Limits(idle_s=0.5, least_over_s=600.0)
    near, far = socket.socketpair()
    started = time.monotonic()
    out = Outgoing([Channel(near, limits, "there")], limits, Throttle())
    with far, contextlib.closing(out), pytest.raises(ConnectionLostError, match="took too long"):
        out.write(bytes(8 << 20))
    assert time.monotonic() - started < 60


def test_pieces_are_a_small_part_of_what_has_moved_and_wait_here_for_their_turn():
    """What is cut on the way is lost, on each connection: so is what the kernel holds back for one of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    out, into = Outgoing([Channel(near, SHORT, "there")], SHORT, Throttle()), Channel(far, SHORT, "here")
    n_bytes, most = 40 << 20, 0
    thread = threading.Thread(target=lambda: [out.write(bytes(n_bytes)), out.finish()])
    with contextlib.closing(into), contextlib.closing(out):
        thread.start()
        room, n_read = memoryview(bytearray(1 << 20)), 0
        while (head := into.receive_head()) is not None and head.kind is not Kind.END:
            into.receive_body(head, [room[: head.n_bytes]])
            n_read += head.n_bytes
            most = max(most, head.n_bytes)
            assert head.n_bytes <= max(PIECE_BYTES, n_read // 64)
        thread.join()
        assert 0 < near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) <= 2 * max(most, PIECE_BYTES)
    assert n_read == n_bytes
