"""Telling the other side that one is at work, while there is nothing else to say."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from blockplane.model.errors import BlockplaneError
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import Kind


@contextlib.contextmanager
def alive(channel: Channel, every_s: float) -> Iterator[None]:
    """Say so again and again on a connection, for the length of a `with`; a connection that is lost shows elsewhere."""
    over = threading.Event()

    def beat() -> None:
        with contextlib.suppress(BlockplaneError):
            while not over.wait(every_s):
                channel.send(Kind.ALIVE)

    thread = threading.Thread(target=beat, name="blockplane alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
