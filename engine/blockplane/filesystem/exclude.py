"""Which entries of a tree a put leaves out, by patterns as rsync and restic read them.

A pattern with a slash at its start or within it names a path from the tree's top; one without names an entry wherever
it lies. A slash at the end: directories only. `*` and `?` stop at a slash, `**` does not, `[a-z]` and `[!a-z]` are one
character of a set, and a backslash takes the next character as it is. What lies below a directory that is left out is
left out with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from blockplane.filesystem.errors import InvalidRequestError
from blockplane.filesystem.names import AnyPath, path_text

_TOKEN = re.compile(rb"(\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]/]*\]|\\.|[^\\])", re.DOTALL)
_WILD = {b"**/": b"(?:.*/)?", b"**": b".*", b"*": b"[^/]*", b"?": b"[^/]"}


class Exclusions:
    """Patterns, ready to be asked.

    Raises
    ------
    InvalidRequestError: a pattern names nothing, or ends within a set or behind a backslash.
    """

    def __init__(self, patterns: Sequence[AnyPath] = ()) -> None:
        self._rules = [_rule(os.fsencode(pattern)) for pattern in patterns]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excludes(self, path: bytes, is_directory: bool) -> bool:
        """Whether an entry is left out; path: from the tree's top, without a slash before it."""
        name = path.rpartition(b"/")[2]
        return any(
            rule.fullmatch(path if is_anchored else name) is not None
            for rule, is_anchored, for_directories in self._rules
            if is_directory or not for_directories
        )


def _rule(pattern: bytes) -> tuple[re.Pattern[bytes], bool, bool]:
    """Return the expression, whether it stands for a whole path, whether it means directories only."""
    core = pattern.rstrip(b"/")
    if not core:
        raise _wrong(pattern, "names nothing")
    is_anchored = b"/" in core
    expression, at = b"", 0
    core = core.lstrip(b"/")
    while at < len(core):
        token = _TOKEN.match(core, at)
        if token is None:
            raise _wrong(pattern, "ends behind a backslash")
        at = token.end()
        expression += _expression(token.group(), pattern)
    return re.compile(expression, re.DOTALL), is_anchored, pattern.endswith(b"/")


def _expression(token: bytes, pattern: bytes) -> bytes:
    if token in _WILD:
        return _WILD[token]
    if token.startswith(b"\\"):
        return re.escape(token[1:])
    if token == b"[":
        raise _wrong(pattern, "has a [ without its ]")
    if token.startswith(b"["):
        negation = b"^/" if token[1:2] in (b"!", b"^") else b""
        members = token[2:-1] if negation else token[1:-1]
        escaped = re.sub(rb"([\\\[\]^&~|])", rb"\\\1", members)
        try:
            re.compile(b"[" + escaped + b"]")
        except re.error as error:
            raise _wrong(pattern, f"has a set that is none: {error.msg}") from None
        return b"[" + negation + escaped + b"]"
    return re.escape(token)


def _wrong(pattern: bytes, what: str) -> InvalidRequestError:
    text = path_text(pattern)
    return InvalidRequestError(text, f"the pattern {text!r} {what}", "write *.o, /build or cache/")
