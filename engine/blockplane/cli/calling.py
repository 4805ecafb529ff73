"""Volumes behind a network as destinations and sources of verbs: `HOST:PORT/NAME`, --tls, --insecure-plaintext."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

import blockplane as bp
from blockplane.cli.completion import HostPath

if TYPE_CHECKING:
    from blockplane.server.network import RemotePeer

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Calling:
    """How volumes behind a network are reached. tls : a folder of certificates; None: by none."""

    tls: str | None = None
    insecure_plaintext: bool = False
    wait_s: float = 0.0

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
            str(found[0]), found[1], credentials, insecure_plaintext=self.insecure_plaintext, patience_s=self.wait_s
        )
        with closing(peer):
            yield peer


def is_remote(name: str) -> bool:
    """Whether a name is HOST:PORT/NAME, and no directory that is there."""
    from blockplane.model.places import is_remote as is_remote_name

    return is_remote_name(name)


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
