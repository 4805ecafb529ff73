"""How fast data may go: a bucket of tokens, filled at a rate that may follow the time of day."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from blockplane.model.errors import ConnectionLostError, UsageError
from blockplane.model.sizes import parse_size

#: Sixteen times the least progress: what is throttled does not look stalled.
LEAST_RATE: Final = 16 << 10
_DAY_MIN: Final = 24 * 60
#: What may go at once after a pause, in seconds of the rate; and how long a rate counts before it is asked for again.
_BURST_S: Final = 0.25
_ASK_EVERY_S: Final = 1.0
_SPAN: Final = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)=(\S+)")

#: Gives bytes a second; None: as fast as it goes.
Rate = Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rates by the local time of day.

    spans : (first minute, minute after the last, bytes a second or None), the first that fits counts; a span may pass
    midnight. otherwise : at all other times.
    """

    spans: Sequence[tuple[int, int, float | None]]
    otherwise: float | None = None

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read `08:00-18:00=10MiB, 22:00-06:00=full, 50MiB`: spans, and a rate for all other times (by default full).

        Raises
        ------
        UsageError : it cannot be read, or a rate is below 16 KiB a second.
        """
        spans, otherwise, is_said = [], None, False
        for part in (part.strip() for part in text.split(",")):
            match = _SPAN.fullmatch(part)
            if match is None and is_said:
                raise UsageError(f"{part[:80]!r} is a second rate for all other times", "write HH:MM-HH:MM=RATE")
            if match is None:
                otherwise, is_said = _rate(part), True
                continue
            spans.append((_minute(match[1], match[2]), _minute(match[3], match[4]), _rate(match[5])))
        return cls(tuple(spans), otherwise)

    def at(self, minute: int) -> float | None:
        """Return the rate in a minute of the day."""
        for start, stop, rate in self.spans:
            if (minute - start) % _DAY_MIN < ((stop - start) % _DAY_MIN or _DAY_MIN):
                return rate
        return self.otherwise

    def __call__(self) -> float | None:
        """Return the rate now."""
        now = time.localtime()
        return self.at(now.tm_hour * 60 + now.tm_min)


def _minute(hours: str, minutes: str) -> int:
    if int(hours) > 24 or int(minutes) > 59 or (found := int(hours) * 60 + int(minutes)) > _DAY_MIN:
        raise UsageError(f"{hours}:{minutes} is no time of day", "write 00:00 to 24:00")
    return found


def _rate(text: str) -> float | None:
    if text == "full":
        return None
    rate = parse_size(text)
    if rate < LEAST_RATE:
        raise UsageError(f"{text} a second is too little for a transfer to get on", "write 16KiB or more, or `full`")
    return float(rate)


class Throttle:
    """A bucket that all connections of a transfer, or of several, take from. Thread-safe.

    Parameters
    ----------
    rate : asked about once a second. clock : seconds, ever growing.
    """

    def __init__(self, rate: Rate = lambda: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_of, self._clock = rate, clock
        self._changed = threading.Condition()
        self._tokens, self._at, self._asked_at = 0.0, clock(), float("-inf")
        self._rate: float | None = None

    @classmethod
    def of(cls, rate: Rate | Throttle) -> Throttle:
        """Return a bucket of a rate, or the one that is given, which others take from too."""
        return rate if isinstance(rate, Throttle) else cls(rate)

    def due_s(self, n_bytes: int) -> float:
        """Take bytes; return how many seconds to wait before they may go."""
        with self._changed:
            now = self._clock()
            before = self._rate
            if now - self._asked_at >= _ASK_EVERY_S:
                self._rate, self._asked_at = self._rate_of(), now
            rate, passed = self._rate, now - self._at
            self._at = now
            if rate is None:
                self._tokens = 0.0
                return 0.0
            rate = max(rate, LEAST_RATE)
            self._tokens = min(self._tokens + passed * rate, _BURST_S * rate) - n_bytes
            if before is None or rate < before:  # what was begun at the old rate is not paid for at the new one
                self._tokens = max(self._tokens, -_BURST_S * rate)
            return max(-self._tokens / rate, 0.0)

    def piece_bytes(self, most: int) -> int:
        """Return how much goes at once, so that no pause is long."""
        self.due_s(0)  # asks for the rate
        rate = self._rate
        return most if rate is None else max(min(most, int(rate * _BURST_S)), LEAST_RATE // 4)

    def take(self, n_bytes: int, ended: threading.Event) -> None:
        """Wait until bytes may go; ConnectionLostError: the transfer ended meanwhile."""
        due_s = self.due_s(n_bytes)
        if due_s and ended.wait(due_s):
            raise ConnectionLostError("the transfer ended")
