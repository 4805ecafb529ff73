"""Volumes behind a network as destinations and sources of verbs: `HOST:PORT/NAME`, --tls, --insecure-plaintext."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.completion import HostPath

if TYPE_CHECKING:
    from blockplane.server.network import RemotePeer
    from blockplane.server.network.throttle import Throttle

    _ParamType = click.ParamType[Throttle]
else:
    _ParamType = click.ParamType  # generic only in later releases

#: How long a call goes on trying where a connection that there was breaks, if nobody says how long.
_PATIENCE_S = 30.0

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Calling:
    """How volumes behind a network are reached.

    tls : a folder of certificates; None: by none. wait_s : how long they are tried; 0: while none has answered
    yet not at all, and for a while where contact was lost. throttle : what data takes from; None: it goes as fast as it
    goes.
    """

    tls: str | None = None
    insecure_plaintext: bool = False
    wait_s: float = 0.0
    throttle: Throttle | None = None

    @contextmanager
    def open(self, dest: str) -> Iterator[RemotePeer]:
        """Give the peer that HOST:PORT/NAME means, for the length of a `with`; nothing is connected before a call.

        Raises
        ------
        UsageError: it means none, or would be called over plain TCP though nobody said so.
        """
        from blockplane.server.network.address import parse_peer  # what help and completion do without

        found = parse_peer(dest)
        if found is None:
            raise bp.errors.UsageError(f"{dest} is no volume behind a network", "name it as HOST:PORT/NAME")
        credentials = bp.Credentials.find(self.tls) if self.tls is not None else None
        peer = bp.RemotePeer(
            str(found[0]), found[1], credentials, insecure_plaintext=self.insecure_plaintext,
            patience_s=self.wait_s or _PATIENCE_S, reach_s=self.wait_s, require=console.require_wanted,
            rate=self.throttle or (lambda: None),
        )  # fmt: skip
        with closing(peer), console.ending(peer.close):
            yield peer


def is_remote(name: str) -> bool:
    """Whether a name is HOST:PORT/NAME, and no directory that is there."""
    from blockplane.model.places import is_remote as is_remote_name

    return is_remote_name(name)


class RateName(_ParamType):
    """How fast data may go, as policies have it; what all peers of a verb take from together."""

    name = "rate"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Throttle:
        """Return a throttle; what is no rate is a usage error."""
        from blockplane.server.network.throttle import Schedule, Throttle  # what help and completion do without

        del parameter, context
        return value if isinstance(value, Throttle) else Throttle(Schedule.parse(value))


rate_option = click.option(
    "--rate", "throttle", type=RateName(), metavar="RATE",
    help="Bytes a second to and from HOST:PORT/NAME, all together: 10MiB, or 08:00-18:00=10MiB,50MiB.",
)  # fmt: skip


network_wait_option = click.option(
    "--wait", "wait_s", type=click.FloatRange(0), default=0.0, metavar="S",
    help="Seconds to wait for a volume in use, and for HOST:PORT/NAME (0; where a connection broke, 30).",
)  # fmt: skip


def network_options(function: F) -> F:
    """Add the options that say how others are called; the verb takes `tls, insecure_plaintext`."""
    for option in reversed(
        (
            click.option(
                "--tls", type=HostPath(), metavar="DIR", envvar="BLOCKPLANE_TLS",
                help="Certificates for HOST:PORT/NAME, as `blockplane cert` makes them.",
            ),
            click.option("--insecure-plaintext", is_flag=True, help="Call HOST:PORT/NAME without TLS."),
        )
    ):  # fmt: skip
        function = option(function)
    return function
