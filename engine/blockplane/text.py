"""Text for terminals and logs: what others named is shown without raw control bytes. Loads nothing else."""

from __future__ import annotations

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def printable(text: str) -> str:
    r"""Return text that a terminal shows as it is: control characters, stray bytes and backslashes escaped.

    ASCII's control characters and bytes that are no UTF-8 (held as surrogates) become ``\xNN``, others ``\uNNNN``; no
    two names are shown alike.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_shown(character) for character in text)


def sentence(text: str) -> str:
    """Return a message with its control characters escaped; backslashes stay, they are the message's own."""
    return "".join(c if c == "\\" else _shown(c) for c in text)


def _shown(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character == " " or character.isprintable():
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
