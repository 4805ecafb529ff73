"""Reading a policy's tables so that every mistake is found, and said with its line and with what was probably meant."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from blockplane.model.durations import parse_duration
from blockplane.model.errors import BlockplaneError, UsageError
from blockplane.model.sizes import parse_size
from blockplane.text import printable

#: No policy is as long; finding the lines of mistakes would become a cost.
MAX_BYTES: Final = 256 << 10

#: Patterns of names, where none are given.
ALL_NAMES: Final[tuple[str, ...]] = ("*",)

#: Settings that stand in one table alone, and hold for all that a policy says: of the network.
_NETWORK: Final = "network"
_OF_NETWORK: Final = ("listen", "rate", "revoked", "rights")

T = TypeVar("T")
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong in a policy. line : from 1; 0: not known. where : the table and key, as written with dots."""

    line: int
    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        where = f"{self.where}: " if self.where else ""
        return f"{place}{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class PolicyError(BlockplaneError):
    """A policy that cannot be followed; nothing of it is.

    Attributes
    ----------
    mistakes : all that were found.
    """

    kind = "policy"

    def __init__(self, path: str, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        first = f"{path}: {self.mistakes[0]}"
        more = len(self.mistakes) - 1
        super().__init__(
            first + (f", and {more} more" if more else ""), "`blockplane serve --check` shows what a policy means"
        )


class Mistakes:
    """Collects what is wrong."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines: dict[Path, int] | None = None
        self.found: list[Mistake] = []

    def add(self, path: Path, message: str, hint: str = "") -> None:
        """Note a mistake."""
        if self._lines is None:
            self._lines = key_lines(self._text)
        line = next((self._lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._lines), 0)
        self.found.append(Mistake(line, printable(".".join(path)), message, hint))


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, where each key and table of a TOML text stands; items of arrays of tables share one."""
    found: dict[Path, int] = {}
    table: Path = ()
    pending: list[str] = []
    begun = 1
    for number, line in enumerate(text.splitlines(), 1):
        if not pending:
            begun = number
        pending.append(line)
        try:
            statement = tomllib.loads("\n".join(pending))
        except (ValueError, RecursionError):
            continue  # a value that goes on
        is_header = pending[0].lstrip().startswith("[")
        pending = []
        for path in _paths(statement):
            found.setdefault(path if is_header else (*table, *path), begun)
        if is_header:
            table = max(_paths(statement), key=len)
    return found


def _paths(found: object, prefix: Path = ()) -> list[Path]:
    """Return the paths of all keys in a table, tables in arrays included."""
    if isinstance(found, list):
        return [path for item in found for path in _paths(item, prefix)]
    if not isinstance(found, dict):
        return []
    return [path for key, value in found.items() for path in ((*prefix, key), *_paths(value, (*prefix, key)))]


class Table:
    """A table of a policy, of which every key must be taken by somebody."""

    def __init__(self, found: Mapping[str, Any], path: Path, mistakes: Mistakes) -> None:
        self._found, self.path, self._mistakes = found, path, mistakes
        self._known: set[str] = set()

    # --- taking ------------------------------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Whether a key is there, which is known now."""
        self._known.add(key)
        return key in self._found

    def take(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """Return a key's value, converted; the default where it is not there, or wrong, which is noted."""
        if not self.has(key):
            return default
        try:
            return convert(self._found[key])
        except UsageError as error:
            self._mistakes.add((*self.path, key), error.message, error.hint)
            return default

    def table(self, key: str) -> Table:
        """Return a table in this one; empty where it is not there."""
        return Table(self.take(key, self.mapping, {}), (*self.path, key), self._mistakes)

    def tables(self) -> list[tuple[str, Table]]:
        """Return all of this one's tables, by names that people chose."""
        self._known |= set(self._found)
        return [
            (key, Table(self.take(key, self.mapping, {}), (*self.path, key), self._mistakes)) for key in self._found
        ]

    def names(self) -> list[str]:
        """Return the keys there are, which are names that people chose."""
        return list(self._found)

    def require(self, key: str, test: Callable[[], object]) -> None:
        """Note what a test raises of a key, or of the table where that is empty."""
        try:
            test()
        except UsageError as error:
            self.add(error.message, error.hint, key)

    def add(self, message: str, hint: str = "", key: str = "") -> None:
        """Note a mistake of the table, or of a key in it."""
        self._mistakes.add((*self.path, key) if key else self.path, message, hint)

    def finish(self) -> None:
        """Note the keys that nobody took."""
        for key in self._found:
            if key not in self._known:
                self._mistakes.add((*self.path, key), "there is no such setting", self._instead_of(key))

    def _instead_of(self, key: str) -> str:
        """Return what was probably meant by a key that nobody took."""
        if key in _OF_NETWORK and self.path != (_NETWORK,):
            return f"it belongs in [{_NETWORK}]"
        near = difflib.get_close_matches(key, self._known, 1, 0.5)
        known = ", ".join(sorted(self._known))
        return f"did you mean {near[0]}?" if near else f"known here: {known}" if known else ""

    # --- conversions -------------------------------------------------------------------------------------------------

    @staticmethod
    def mapping(value: Any) -> Mapping[str, Any]:
        """A table."""
        return _typed(value, dict, "a table")

    @staticmethod
    def text(value: Any) -> str:
        """A string that is not empty, without control characters."""
        found = _typed(value, str, "a string")
        if not found or not found.isprintable():
            raise UsageError(f"{printable(found)!r} is empty, or has control characters in it")
        return found

    @staticmethod
    def texts(value: Any) -> tuple[str, ...]:
        """Strings in a list, or one."""
        return tuple(Table.text(item) for item in (value if isinstance(value, list) else [value]))

    @staticmethod
    def truth(value: Any) -> bool:
        """True or false."""
        return _typed(value, bool, "true or false")

    @staticmethod
    def whole(value: Any) -> int:
        """A whole number, -1 for all."""
        found = _typed(value, int, "a whole number")
        if not -1 <= found <= 1_000_000:
            raise UsageError(f"{found} is no number of snapshots", "say how many, or -1 for all")
        return found

    @staticmethod
    def duration(value: Any) -> float:
        """A length of time."""
        return parse_duration(_typed(value, str, "a length of time, as 90s or 12h"))

    @staticmethod
    def size(value: Any) -> int:
        """A size, in bytes."""
        return value if type(value) is int and value >= 0 else parse_size(_typed(value, str, "a size, as 10G"))

    @staticmethod
    def one_of(*words: str) -> Callable[[Any], str]:
        """One of some words."""

        def convert(value: Any) -> str:
            found = Table.text(value)
            if found not in words:
                near = difflib.get_close_matches(found, words, 1, 0.5)
                raise UsageError(
                    f"{printable(found)[:40]!r} is none of {', '.join(words)}",
                    f"did you mean {near[0]}?" if near else "",
                )
            return found

        return convert


def _typed(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{_shown(value)} is not {what}")
    return value


def _shown(value: Any) -> str:
    """Return a value as a policy has it: text in quotes alone."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(printable(value)[:40]) if isinstance(value, str) else str(value)[:40]
