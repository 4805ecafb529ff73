"""A reader of .tap files, written from the format's description alone: the tests' own, not the engine's."""

from __future__ import annotations

import struct
from pathlib import Path

FILEMARK = "filemark"


def objects(path: Path | str) -> list[bytes | str]:
    """Records as bytes, filemarks as FILEMARK; refuses what is no whole tape image."""
    return read_objects(Path(path).read_bytes())


def read_objects(raw: bytes) -> list[bytes | str]:
    """The same of a file's bytes."""
    found: list[bytes | str] = []
    at = 0
    while at < len(raw):
        (word,) = struct.unpack_from("<I", raw, at)
        at += 4
        if word == 0xFFFFFFFF:
            assert at == len(raw), "bytes behind the end of the medium"
            return found
        if word == 0xFFFFFFFE:
            continue
        if word == 0:
            found.append(FILEMARK)
            continue
        assert word >> 28 == 0, f"class {word >> 28}"
        record = raw[at : at + word]
        at += word + word % 2
        assert struct.unpack_from("<I", raw, at) == (word,), "the length is not repeated"
        at += 4
        found.append(record)
    return found


def places(path: Path | str) -> list[tuple[int, int]]:
    """Where the bytes of each record lie in the file: (offset, length)."""
    raw = Path(path).read_bytes()
    found, at = [], 0
    while at < len(raw):
        (word,) = struct.unpack_from("<I", raw, at)
        if word == 0xFFFFFFFF:
            break
        if word:
            found.append((at + 4, word))
            at += 8 + word + word % 2
        else:
            at += 4
    return found


def tap(*parts: bytes | str | int) -> bytes:
    """A .tap file: records, FILEMARK, words as they are."""
    out = b""
    for part in parts:
        if part == FILEMARK:
            out += bytes(4)
        elif isinstance(part, int):
            out += struct.pack("<I", part)
        else:
            word = struct.pack("<I", len(part))
            out += word + part + bytes(len(part) % 2) + word
    return out


def boundaries(path: Path | str) -> list[int]:
    """Where each object of the file ends, its end's marker too."""
    raw = Path(path).read_bytes()
    found, at = [], 0
    while at < len(raw):
        (word,) = struct.unpack_from("<I", raw, at)
        at += 4 if word in (0, 0xFFFFFFFF) else 8 + word + word % 2
        found.append(at)
    return found
