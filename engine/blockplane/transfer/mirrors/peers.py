"""From a destination's text to a peer: volumes of this machine here, others by whoever knows the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from blockplane.model.errors import UsageError
from blockplane.model.places import is_remote
from blockplane.transfer.based import BasedVolume
from blockplane.transfer.peer import Peer, VolumePeer


class Opener(Protocol):
    """Gives the peer that a text names, for the length of a `with`."""

    def __call__(self, dest: str) -> AbstractContextManager[Peer]:
        """Open it; a BlockplaneError or OSError where it cannot be reached."""
        ...


@contextmanager
def open_local(dest: str) -> Iterator[Peer]:
    """Open a volume's directory for writing."""
    with BasedVolume.open(dest, verb="mirror") as volume:
        yield VolumePeer(volume)


@dataclass(frozen=True, slots=True)
class Peers:
    """How destinations are reached. remote : host:port/name; None: this process reaches none."""

    local: Opener = open_local
    remote: Opener | None = None

    def open(self, dest: str) -> AbstractContextManager[Peer]:
        """Return the peer that a text names, to be entered.

        Raises
        ------
        UsageError : it lies behind a network that this process does not reach.
        """
        if not is_remote(dest):
            return self.local(dest)
        if self.remote is None:
            raise UsageError(f"{dest} is on the network, which is not reached from here", "name a volume's directory")
        return self.remote(dest)


def place_of(dest: str) -> str:
    """Return a text that means the same from every directory."""
    return dest if is_remote(dest) else os.path.abspath(dest)
