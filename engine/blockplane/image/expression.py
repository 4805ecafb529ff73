"""The language of image expressions: snapshot names joined by ``+ - ^ & ..`` and parentheses.

``&`` binds tighter than ``+``, ``-`` and ``^``, which stand alike; all go left to right. A name is the longest run of
letters, digits and ``_ . : -`` that holds no ``..``, so ``-`` is an operator only between blanks. Parsing gives a tree
of `Expression` nodes whose text, `str(node)`, is canonical: it parses back to an equal tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from blockplane.model.errors import ExpressionError

ACTIVE: Final = "active"
MAX_NAME_BYTES: Final = 127
#: Longer texts are refused before they are looked at; nesting is bounded so that recursion is.
MAX_TEXT: Final = 1 << 16
MAX_DEPTH: Final = 64

_NAME: Final = re.compile(r"(?:[^\W]|[:-]|\.(?!\.))+")
_SPACE: Final = re.compile(r"[ \t]+")

Sign = Literal["+", "-", "^"]
MarkKind = Literal["alloc", "dealloc", "meta"]
_FUNCTIONS: Final[dict[str, MarkKind]] = {"alloc": "alloc", "dealloc": "dealloc", "meta": "meta"}
_SIGNS: Final[dict[str, Sign]] = {"+": "+", "-": "-", "^": "^"}


@dataclass(frozen=True, slots=True)
class Name:
    """The blocks of one snapshot (or of the live file system, where it is called ``active``)."""

    text: str
    position: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Span:
    """The blocks of every snapshot from one to a later one of the same line, both included."""

    first: Name
    last: Name

    def __str__(self) -> str:
        dots = " .. " if self.first.text.endswith(".") else ".."  # a name may end with a dot
        return f"{self.first}{dots}{self.last}"


@dataclass(frozen=True, slots=True)
class Chain:
    """Two or more expressions joined left to right by their signs; the first is added. `chain` makes them.

    ``+`` adds, ``-`` takes away, ``^`` keeps what is in one of both alone.
    """

    terms: tuple[tuple[Sign, Expression], ...]

    def __str__(self) -> str:
        parts = [str(self.terms[0][1])]
        for sign, node in self.terms[1:]:
            parts.append(f"{sign} ({node})" if isinstance(node, Chain) else f"{sign} {node}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Meet:
    """The blocks that are in all of two or more expressions. `meet` makes them."""

    terms: tuple[Expression, ...]

    def __str__(self) -> str:
        return " & ".join(f"({node})" if isinstance(node, Chain) else str(node) for node in self.terms)


@dataclass(frozen=True, slots=True)
class Marked:
    """What entered (`alloc`) or left (`dealloc`) the volume since a marked snapshot; or of a snapshot all that is no
    content of files (`meta`).
    """

    kind: MarkKind
    name: Name

    def __str__(self) -> str:
        return f"{self.kind}({self.name})"


Expression = Name | Span | Chain | Meet | Marked


def chain(terms: Sequence[tuple[Sign, Expression]]) -> Expression:
    """Join expressions by ``+``, ``-`` and ``^``; the first sign is ``+``; a leading chain becomes part of this one."""
    (_, first), *rest = terms
    if not rest:
        return first
    head = first.terms if isinstance(first, Chain) else (("+", first),)
    return Chain((*head, *rest))


def meet(terms: Sequence[Expression]) -> Expression:
    """Join expressions by ``&``; intersections among them become part of this one."""
    if len(terms) == 1:
        return terms[0]
    return Meet(tuple(part for node in terms for part in (node.terms if isinstance(node, Meet) else (node,))))


def is_name(text: str) -> bool:
    """Tell whether a text can name a snapshot (`active` cannot)."""
    return bool(text) and _name_problem(text) == "" and _NAME.fullmatch(text) is not None and text != ACTIVE


def parts(node: Expression) -> Iterator[Name | Span]:
    """Yield the names and spans of an expression, left to right; those of marks are none."""
    if isinstance(node, Chain):
        for _, part in node.terms:
            yield from parts(part)
    elif isinstance(node, Meet):
        for part in node.terms:
            yield from parts(part)
    elif not isinstance(node, Marked):
        yield node


def names(node: Expression) -> Iterator[Name]:
    """Yield every name of an expression, left to right, both ends of spans included."""
    for part in parts(node):
        yield from (part.first, part.last) if isinstance(part, Span) else (part,)


def spans(node: Expression) -> Iterator[Span]:
    """Yield the spans of an expression."""
    return (part for part in parts(node) if isinstance(part, Span))


def lone_names(node: Expression) -> Iterator[Name]:
    """Yield the names of an expression that are no ends of spans."""
    return (part for part in parts(node) if isinstance(part, Name))


def replaced(node: Expression, write: Callable[[Span], Expression]) -> Expression:
    """Return an expression with something else in place of each span."""
    if isinstance(node, Chain):
        return chain([(sign, replaced(part, write)) for sign, part in node.terms])
    if isinstance(node, Meet):
        return meet([replaced(part, write) for part in node.terms])
    return write(node) if isinstance(node, Span) else node


def every_name(node: Expression) -> Iterator[Name]:
    """Yield every name, left to right: those of spans and of marks too."""
    if isinstance(node, Chain):
        for _, part in node.terms:
            yield from every_name(part)
    elif isinstance(node, Meet):
        for part in node.terms:
            yield from every_name(part)
    elif isinstance(node, Span):
        yield from (node.first, node.last)
    else:
        yield node.name if isinstance(node, Marked) else node


def with_names(node: Expression, write: Callable[[Name], Expression]) -> Expression:
    """Return an expression with something else in place of each name.

    Raises
    ------
    ExpressionError : an end of a range, or what is marked, would be no name any more.
    """
    if isinstance(node, Chain):
        return chain([(sign, with_names(part, write)) for sign, part in node.terms])
    if isinstance(node, Meet):
        return meet([with_names(part, write) for part in node.terms])
    if isinstance(node, Span):
        return Span(_name_for(node.first, write), _name_for(node.last, write))
    return Marked(node.kind, _name_for(node.name, write)) if isinstance(node, Marked) else write(node)


def _name_for(name: Name, write: Callable[[Name], Expression]) -> Name:
    found = write(name)
    if not isinstance(found, Name):
        raise ExpressionError(f"{name} stands for {found}, and here one snapshot is meant", name.position)
    return found


def parse(text: str, *, allow_active: bool = False) -> Expression:
    """Read an expression.

    Parameters
    ----------
    allow_active : whether ``active`` may stand for the live file system.

    Raises
    ------
    ExpressionError : it does not parse; the message shows the place with a caret.
    """
    if len(text) > MAX_TEXT:
        raise ExpressionError(f"the expression is {len(text)} characters long; at most {MAX_TEXT} are read", MAX_TEXT)
    if not text.strip():
        raise ExpressionError("the expression is empty", 0, "name a snapshot, or newer - older")
    parser = _Parser(text, _tokens(text), allow_active)
    node = parser.sum()
    parser.finish()
    return node


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "name", one of + - ^ & .. ( ), or "end"
    text: str
    position: int

    def describe(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


def _fail(text: str, position: int, message: str, hint: str = "") -> ExpressionError:
    shown = "".join(character if character.isprintable() else "?" for character in text)
    start = max(0, position - 60)
    line, caret = shown[start : position + 40], " " * (position - start) + "^"
    return ExpressionError(f"{message}, at character {position + 1}\n    {line}\n    {caret}", position, hint)


def _name_problem(name: str) -> str:
    if name[0] in "-.":
        return f"a name does not start with {name[0]!r}"
    if len(name.encode(errors="surrogateescape")) > MAX_NAME_BYTES:
        return f"a name has at most {MAX_NAME_BYTES} bytes"
    return ""


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        if blank := _SPACE.match(text, position):
            position = blank.end()
            continue
        token = _token(text, position)
        tokens.append(token)
        position += len(token.text)
    return [*tokens, _Token("end", "", len(text))]


def _token(text: str, position: int) -> _Token:
    character = text[position]
    if text.startswith("..", position):
        return _Token("..", "..", position)
    if character in "+&^()":
        return _Token(character, character, position)
    if character == "-" and _ends_word(text, position + 1):
        return _Token("-", "-", position)
    match = _NAME.match(text, position)
    if match is None:
        raise _fail(text, position, f"{character!r} has no meaning here", "names hold letters, digits and _ . : -")
    if problem := _name_problem(match.group()):
        hint = "put blanks on both sides of - to subtract" if character == "-" else ""
        raise _fail(text, position, problem, hint)
    return _Token("name", match.group(), position)


def _ends_word(text: str, position: int) -> bool:
    return position == len(text) or text[position] in " \t"


class _Parser:
    """Recursive descent over the tokens; nesting is bounded by MAX_DEPTH."""

    def __init__(self, text: str, tokens: list[_Token], allow_active: bool) -> None:
        self._text, self._tokens, self._allow_active = text, tokens, allow_active
        self._next, self._depth = 0, 0

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += 1
        return token

    def _error(self, token: _Token, message: str, hint: str = "") -> ExpressionError:
        return _fail(self._text, token.position, message, hint)

    def finish(self) -> None:
        token = self._peek()
        if token.kind == ")":
            raise self._error(token, "')' closes nothing")
        if token.kind != "end":
            raise self._error(token, f"an operator was expected before {token.describe()}", self._minus_hint())

    def _minus_hint(self) -> str:
        before = self._tokens[self._next - 1] if self._next else None
        if before is not None and before.kind == "name" and before.text.endswith("-"):
            return f"{before.text!r} is one name; put blanks on both sides of - to subtract"
        return "join names with + - ^ & or .."

    def sum(self) -> Expression:
        terms: list[tuple[Sign, Expression]] = [("+", self.product())]
        while (sign := _SIGNS.get(self._peek().kind)) is not None:
            self._take()
            terms.append((sign, self.product()))
        return chain(terms)

    def product(self) -> Expression:
        terms = [self.factor()]
        while self._peek().kind == "&":
            self._take()
            terms.append(self.factor())
        return meet(terms)

    def factor(self) -> Expression:
        token = self._take()
        if token.kind == "(":
            return self._group(token)
        if token.kind != "name":
            raise self._error(token, f"a snapshot name was expected, not {token.describe()}")
        if self._peek().kind == "(":
            return self._function(token)
        first = self._name(token)
        if self._peek().kind != "..":
            return first
        self._take()
        last = self._take()
        if last.kind != "name":
            raise self._error(last, f"the range {first}.. needs a snapshot name, not {last.describe()}")
        if first.text == ACTIVE:
            raise self._error(token, "a range starts with a snapshot, not with active")
        return Span(first, self._name(last))

    def _group(self, opening: _Token) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(opening, f"more than {MAX_DEPTH} parentheses are open")
        node = self.sum()
        token = self._peek()
        if token.kind == "end":
            raise self._error(opening, "this '(' is not closed")
        if token.kind != ")":
            raise self._error(token, f"an operator or ')' was expected before {token.describe()}", self._minus_hint())
        self._take()
        self._depth -= 1
        return node

    def _function(self, token: _Token) -> Marked:
        kind = _FUNCTIONS.get(token.text)
        if kind is None:
            hint = (
                "there are alloc(SNAPSHOT) and dealloc(SNAPSHOT): what entered and left the volume since; "
                "meta(SNAPSHOT): what is no content of files"
            )
            raise self._error(token, f"there is no function {token.text}()", hint)
        self._take()
        name = self._take()
        if name.kind != "name" or name.text == ACTIVE:
            which = "a snapshot" if kind == "meta" else "a marked snapshot"
            raise self._error(name, f"{kind}() needs the name of {which}, not {name.describe()}")
        closing = self._take() if self._peek().kind != "end" else self._peek()
        if closing.kind != ")":
            raise self._error(closing, f"{kind}() takes one name, and ')' behind it", f"write {kind}({name.text})")
        return Marked(kind, Name(name.text, name.position))

    def _name(self, token: _Token) -> Name:
        if token.text == ACTIVE and not self._allow_active:
            raise self._error(token, "active cannot be used here", "create a snapshot and name it")
        return Name(token.text, token.position)
