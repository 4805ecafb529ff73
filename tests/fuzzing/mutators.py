"""Mutators that know a format: they change what it means, and put every length, checksum and digest right again."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pyroaring import BitMap

from blockplane.image.extents import numbers_in
from blockplane.model import BlockplaneError
from blockplane.model.checks import crc32c, fresh_checks
from blockplane.planes import Plane, combine
from blockplane.stream import Key, codec
from blockplane.stream.codec import FLAG_ZSTD, FrameKind
from blockplane.stream.digest import image_id, plane_digest
from blockplane.stream.media import codec as tapes
from blockplane.stream.offer import FRAME_BYTES, HEADER_BYTES
from forging import VALUES, encrypted, head_bytes, is_data, opened_parts, parts_of, sealed_parts
from rig.simh import read_objects, tap

KEY = Key(bytes(range(32)), "fuzz.key")
#: What a parser of ours, or of Python's, says of bytes that cannot be taken apart.
UNREADABLE = (BlockplaneError, ValueError, IndexError, struct.error, OverflowError)


@dataclass(frozen=True)
class Hand:
    """What a mutation may use: numbers that the fuzzer gave, and its own way to change bytes that mean nothing."""

    draw: random.Random
    havoc: Callable[[bytes, int], bytes]

    def one_in(self, n: int) -> bool:
        return self.draw.randrange(n) == 0

    def edit(self, part: bytearray, stop: int, start: int = 0) -> None:
        """Change a field of 1, 2, 4 or 8 bytes."""
        width = self.draw.choice([1, 2, 4, 8])
        at = start + self.draw.randrange(max(stop - start - width, 1))
        old = int.from_bytes(part[at : at + width], "little")
        value = self.draw.choice(
            [*VALUES, old + 1, old - 1, old ^ 1 << self.draw.randrange(64), self.draw.getrandbits(64)]
        )
        part[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")[: len(part) - at]


def plain_havoc(draw: random.Random) -> Callable[[bytes, int], bytes]:
    """Byte mutations for where no fuzzer gives any."""

    def havoc(data: bytes, most: int) -> bytes:
        out = bytearray(data or b"\0")
        for _ in range(draw.randrange(1, 5)):
            at = draw.randrange(len(out) + 1)
            choice = draw.randrange(3)
            if choice == 0:
                out[at : at + draw.randrange(1, 9)] = b""
            elif choice == 1:
                out[at:at] = draw.randbytes(draw.randrange(1, 9))
            elif at < len(out):
                out[at] = draw.randrange(256)
        return bytes(out[:most])

    return havoc


# --- tapes --------------------------------------------------------------------------------------------------------


def mutate_tape(data: bytes, most: int, hand: Hand) -> bytes:
    """Change fields, payloads, order and number of records of a tape; mostly with checksums that are right."""
    try:
        parts = read_objects(data)
    except (AssertionError, *UNREADABLE):
        return hand.havoc(data, most)
    for _ in range(hand.draw.randrange(1, 4)):
        index = hand.draw.randrange(len(parts))
        part = parts[index]
        choice = hand.draw.randrange(8)
        if choice == 0:
            parts[index:index] = [parts[hand.draw.randrange(len(parts))]]
        elif choice == 1 and len(parts) > 3:
            del parts[index]
        elif not isinstance(part, str):
            parts[index] = _changed_record(part, hand)
    return tap(*parts, 0xFFFFFFFF)[:most]


def _changed_record(record: bytes, hand: Hand) -> bytes:
    part = bytearray(record)
    if len(part) < tapes.HEAD_BYTES:
        return hand.havoc(record, tapes.MAX_RECORD_BYTES)
    if hand.one_in(2):
        hand.edit(part, tapes.HEAD_BYTES - 8, 6)
    else:
        hand.edit(part, len(part), tapes.HEAD_BYTES)
    if hand.one_in(8):
        part[tapes.HEAD_BYTES :] = hand.havoc(bytes(part[tapes.HEAD_BYTES :]), tapes.MAX_RECORD_BYTES)
    if not hand.one_in(8):
        struct.pack_into("<I", part, 28, len(part) - tapes.HEAD_BYTES)
        struct.pack_into("<I", part, 72, crc32c(bytes(part[tapes.HEAD_BYTES :])))
        struct.pack_into("<I", part, 76, crc32c(bytes(part[:76])))
    return bytes(part)


# --- streams ------------------------------------------------------------------------------------------------------


def mutate_stream(data: bytes, most: int, hand: Hand) -> bytes:
    """Change fields, payloads, order and number of frames of a stream; of an encrypted one before it is encrypted."""
    try:
        is_sealed = codec.is_sealed(data)
        parts = [bytearray(part) for part in (opened_parts(data, KEY) if is_sealed else parts_of(data))]
        if len(parts) < 3 or len(parts[-1]) < codec.TRAILER_FRAME_BYTES:
            return hand.havoc(data, most)
        for _ in range(hand.draw.randrange(1, 4)):
            _change_one(parts, hand)
        _move_frames(parts, hand)
        if hand.one_in(2):
            _renumber(parts)
        if hand.one_in(2):
            _rederive(parts)
        if hand.one_in(2) and not is_sealed:
            _recount(parts)
        made = sealed_parts(parts)
        out = encrypted(made, KEY) if is_sealed else b"".join(made)
    except UNREADABLE:
        return hand.havoc(data, most)
    return out if len(out) <= most else out[:most]


def _change_one(parts: list[bytearray], hand: Hand) -> None:
    index = hand.draw.randrange(len(parts))
    part = parts[index]
    if index == 0:
        hand.edit(part, min(len(part), codec.HEADER_FIXED_BYTES if hand.one_in(2) else len(part) - 4), 8)
        return
    n = head_bytes(part)
    if hand.one_in(2):
        hand.edit(part, n, 4)
    elif is_data(part) and hand.one_in(2):
        hand.edit(part, len(part), n)
        _recheck(part)
    elif is_data(part) and not struct.unpack_from("<H", part, 6)[0] & FLAG_ZSTD:
        _recheck(part)
    else:
        part[n:] = hand.havoc(bytes(part[n:]), codec.MAX_PAYLOAD_BYTES)
        if not hand.one_in(4):
            struct.pack_into("<I", part, 20, len(part) - n)


def _recheck(part: bytearray) -> None:
    """Give the blocks of a bare data frame the checks that they have."""
    n_items, n_blocks = struct.unpack_from("<II", part, 32)
    n = head_bytes(part)
    bare = not struct.unpack_from("<H", part, 6)[0] & FLAG_ZSTD
    if not bare or not n_items or len(part) - n != n_blocks * 4096 or n != 48 + 12 * n_items + 4 * n_blocks:
        return
    head = codec.decode_frame_fixed(bytes(part[:48]))
    starts = np.frombuffer(bytes(part[48 : 48 + 8 * n_items]), "<i8")
    counts = np.frombuffer(bytes(part[48 + 8 * n_items : 48 + 12 * n_items]), "<u4").astype(np.int64)
    if int(counts.sum()) == head.n_blocks and (starts >= 0).all() and (starts < 1 << 60).all():
        numbers = numbers_in(np.column_stack([starts, starts + counts]))
        part[n - 4 * n_blocks : n] = (
            fresh_checks(np.frombuffer(bytes(part[n:]), np.uint8), numbers).astype("<u4").tobytes()
        )


def _move_frames(parts: list[bytearray], hand: Hand) -> None:
    choice, last = hand.draw.randrange(12), len(parts) - 1
    here, there = hand.draw.randrange(1, last + 1), hand.draw.randrange(1, last + 1)
    if choice == 0:
        parts[here], parts[there] = parts[there], parts[here]
    elif choice == 1 and last > 2:
        del parts[here]
    elif choice == 2:
        parts.insert(min(there, last), bytearray(parts[here]))
    elif choice == 3:
        name, payload = b"a section", hand.draw.randbytes(hand.draw.randrange(1, 64))
        tag = parts[0][72:80]
        head = struct.pack("<4sHHQII", b"BPfr", 32768 + hand.draw.randrange(4), 0, 0, 48 + len(name), len(payload))
        parts.insert(min(there, last), bytearray(head + tag + bytes(16) + name + payload))


def _renumber(parts: list[bytearray]) -> None:
    for sequence, part in enumerate(parts[1:]):
        struct.pack_into("<Q", part, 8, sequence)


def _rederive(parts: list[bytearray]) -> None:
    """Make the header's counts, digest and image id those of the planes that the frames hold."""
    header = parts[0]
    space = min(struct.unpack_from("<Q", header, 160)[0], 1 << 28)
    planes = {FrameKind.IMAGE_PLANE: Plane.empty(space), FrameKind.DROPPED_PLANE: Plane.empty(space)}
    for part in parts[1:]:
        kind, n = struct.unpack_from("<H", part, 4)[0], head_bytes(part)
        if kind in planes and n == 64:
            (first,) = struct.unpack_from("<Q", part, 48)
            piece = Plane.deserialize(bytes(part[n:]), min(codec.PIECE_BLOCKS, space - first))
            struct.pack_into("<Q", part, 56, len(piece))
            planes[kind] = combine([planes[kind], Plane.from_extents(piece.extents() + first, space)])
    image, dropped = planes.values()
    digest = plane_digest(image, dropped)
    struct.pack_into("<Q", header, 168, len(image))
    struct.pack_into("<Q", header, 184, len(dropped))
    header[264:296] = digest
    header[88:104] = image_id(bytes(header[104:120]), bytes(header[120:136]), bytes(header[136:152]), digest)


def _recount(parts: list[bytearray]) -> None:
    """Make the trailer's counts those of the frames."""
    frames, trailer = parts[1:], parts[-1]
    data = [part for part in frames if is_data(part)]
    at, index_offset, n_index = len(parts[0]), 0, 0
    for part in frames:
        if struct.unpack_from("<H", part, 4)[0] == FrameKind.INDEX:
            index_offset, n_index = index_offset or at, n_index + struct.unpack_from("<I", part, 32)[0]
        at += len(part)
    n_blocks = sum(struct.unpack_from("<I", part, 36)[0] for part in data)
    counts = len(frames), len(data), n_blocks, at, index_offset, n_index
    struct.pack_into("<6Q", trailer, codec.FRAME_FIXED_BYTES, *(count % (1 << 64) for count in counts))


def mutate_header(data: bytes, most: int, hand: Hand) -> bytes:
    """Change a header, or what can be read of an encrypted one, with its length and its CRC put right."""
    out = bytearray(data)
    for _ in range(hand.draw.randrange(1, 4)):
        hand.edit(out, len(out), 8 if hand.one_in(4) else 16)
    if hand.one_in(4):
        out[320:-4] = hand.havoc(bytes(out[320:-4]), max(most - 324, 1))
    if len(out) >= 16 and not hand.one_in(8):
        struct.pack_into("<I", out, 12, len(out))
    return _with_crc(out)[:most]


def _with_crc(out: bytearray) -> bytes:
    """Put right a CRC32C that stands in the last four bytes."""
    if len(out) > 4:
        struct.pack_into("<I", out, len(out) - 4, crc32c(bytes(out[:-4])))
    return bytes(out)


# --- offers, tokens, planes ---------------------------------------------------------------------------------------


def mutate_offer(data: bytes, most: int, hand: Hand) -> bytes:
    """Change fields and payloads of an offer, with its CRCs and the digest at its end put right."""
    parts = _offer_parts(data)
    if len(parts) < 2:
        return hand.havoc(data, most)
    for _ in range(hand.draw.randrange(1, 4)):
        part = parts[hand.draw.randrange(len(parts))]
        if part is parts[0] or hand.one_in(2):
            hand.edit(part, HEADER_BYTES if part is parts[0] else FRAME_BYTES, 8 if part is parts[0] else 4)
        else:
            part[FRAME_BYTES:] = hand.havoc(bytes(part[FRAME_BYTES:]), codec.MAX_PAYLOAD_BYTES)
    here, there = hand.draw.randrange(1, len(parts)), hand.draw.randrange(1, len(parts))
    if hand.one_in(8):
        parts[here], parts[there] = parts[there], parts[here]
    elif hand.one_in(8):
        parts.insert(here, bytearray(parts[there]))
    return sealed_offer(parts, resized=not hand.one_in(8))[:most]


def _offer_parts(data: bytes) -> list[bytearray]:
    parts, at = [bytearray(data[:HEADER_BYTES])], HEADER_BYTES
    while at + FRAME_BYTES <= len(data):
        stop = at + FRAME_BYTES + struct.unpack_from("<I", data, at + 16)[0]
        parts.append(bytearray(data[at:stop]))
        at = stop
    return parts


def sealed_offer(parts: Sequence[bytearray], resized: bool = True) -> bytes:
    """Put lengths, numbers, CRCs and the digest of an offer right."""
    header, *frames = parts
    sha = hashlib.sha256(_with_crc(header[:HEADER_BYTES]))
    out = _with_crc(header)
    for sequence, frame in enumerate(frames):
        if len(frame) == FRAME_BYTES + 32 and frame is frames[-1]:
            frame[FRAME_BYTES:] = sha.digest()
        if resized:
            struct.pack_into("<QI", frame, 8, sequence, len(frame) - FRAME_BYTES)
            frame[32:40] = header[16:24]
        struct.pack_into("<I", frame, 40, crc32c(bytes(frame[FRAME_BYTES:])))
        struct.pack_into("<I", frame, 44, crc32c(bytes(frame[:44])))
        sha.update(frame[:FRAME_BYTES])
        out += bytes(frame)
    return out


#: Where a token's plane begins, and where its length stands (transfer/resume.py).
TOKEN_HEAD_BYTES, TOKEN_PLANE_AT = 237, 92


def mutate_token(data: bytes, most: int, hand: Hand) -> bytes:
    """Change a token's fields and its plane, with the plane's length and the CRC put right."""
    out = bytearray(data)
    if hand.one_in(2):
        hand.edit(out, min(TOKEN_HEAD_BYTES, len(out)), 8)
    else:
        out[TOKEN_HEAD_BYTES:-4] = mutate_roaring(bytes(out[TOKEN_HEAD_BYTES:-4]), max(most - 300, 1), hand)
    if len(out) > TOKEN_HEAD_BYTES and not hand.one_in(8):
        struct.pack_into("<Q", out, TOKEN_PLANE_AT, max(len(out) - TOKEN_HEAD_BYTES - 4, 0))
    return _with_crc(out)[:most]


def mutate_plane(data: bytes, most: int, hand: Hand) -> bytes:
    """A plane is a byte that says how large it may be, and a Roaring bitmap."""
    if hand.one_in(6) or not data:
        return bytes([hand.draw.randrange(256)]) + data[1:most]
    return data[:1] + mutate_roaring(data[1:], most - 1, hand)


def mutate_roaring(data: bytes, most: int, hand: Hand) -> bytes:
    """Another bitmap, or this one with a field or some bytes changed."""
    if hand.one_in(4):
        return random_bitmap(hand.draw)[:most]
    out = bytearray(data)
    if out and hand.one_in(2):
        hand.edit(out, min(len(out), 256))
        return bytes(out[:most])
    return hand.havoc(data, most)


def random_bitmap(draw: random.Random) -> bytes:
    """A portable bitmap of some containers of every kind."""
    bitmap = BitMap()
    for _ in range(draw.randrange(1, 4)):
        first = draw.randrange(1 << draw.choice([4, 16, 20, 22])) << draw.choice([0, 0, 8])
        choice = draw.randrange(3)
        if choice == 0:
            bitmap |= BitMap(draw.sample(range(first, first + 70_000), draw.randrange(1, 200)))
        elif choice == 1:
            bitmap |= BitMap(range(first, first + draw.randrange(1, 200_000)))
        else:
            bitmap |= BitMap(range(first, first + 65_536, draw.choice([2, 3, 7])))
    if draw.randrange(2):
        bitmap.run_optimize()
    return bitmap.serialize()


# --- scripts of edits ---------------------------------------------------------------------------------------------

#: where, what, offset, leaf, value; see `worlds.Edit`.
EDIT = struct.Struct("<BBHIQ")
MOST_EDITS = 8


def mutate_edits(data: bytes, most: int, hand: Hand) -> bytes:
    """Add, change, take away edits."""
    edits = [bytearray(data[at : at + EDIT.size]) for at in range(0, len(data) - EDIT.size + 1, EDIT.size)]
    choice = hand.draw.randrange(4)
    if not edits or (choice == 0 and len(edits) < MOST_EDITS):
        where, what = hand.draw.randrange(256), hand.draw.randrange(256)
        offset = hand.draw.choice([hand.draw.randrange(4096), hand.draw.randrange(512), hand.draw.randrange(64) * 8])
        value = hand.draw.choice([*VALUES, hand.draw.getrandbits(64), hand.draw.randrange(4096)])
        edits.append(bytearray(EDIT.pack(where, what, offset, hand.draw.randrange(16), value)))
    elif choice == 1 and len(edits) > 1:
        del edits[hand.draw.randrange(len(edits))]
    elif choice == 2:
        hand.edit(edits[hand.draw.randrange(len(edits))], EDIT.size)
    else:
        return hand.havoc(data, min(most, MOST_EDITS * EDIT.size))
    return b"".join(bytes(edit) for edit in edits)[:most]
