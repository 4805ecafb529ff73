"""How long the other side may take, and how much of it there may be: never the peer's to say."""

from __future__ import annotations

from dataclasses import dataclass, fields

from blockplane.model.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a listener and its sessions; a connection that passes one is closed.

    greeting_s : from the accept to the end of authentication and greeting. n_greeting, n_greeting_of_one : connections
    that are still at that, in all and from one address. n_sessions, n_sessions_of_one : that are past it, in all
    and of one peer. n_connections : for the data of
    one transfer. n_failures : that one address has free in a minute, after which the next waits its turn.
    idle_s : without a byte where one is due. least_bytes : of data in least_over_s, while data are due.
    alive_s : how often a side that works in silence says that it does. silent_s : in all, of a sender that says so in a
    transfer: it may plan for long before the first block. answer_s : of one that says so where an answer is due: it may
    have much to commit, or a large volume to look through. stop_s : for sessions to end in.
    token_bytes : of a token of an interrupted transfer. n_snapshots : of a standing.
    """

    greeting_s: float = 10.0
    n_greeting: int = 16
    n_greeting_of_one: int = 4
    n_sessions: int = 16
    n_sessions_of_one: int = 8
    n_connections: int = 8
    n_failures: int = 10
    idle_s: float = 60.0
    least_bytes: int = 60 << 10
    least_over_s: float = 60.0
    alive_s: float = 15.0
    silent_s: float = 1800.0
    answer_s: float = 7200.0
    stop_s: float = 5.0
    token_bytes: int = 32 << 20
    n_snapshots: int = 1 << 17

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise UsageError(f"the limit {field.name} is {getattr(self, field.name)!r}", "none is without bound")
