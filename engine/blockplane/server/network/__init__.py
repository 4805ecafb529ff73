"""Volumes over the network: certificates, rights, the wire, a listener, and peers behind connections."""

from blockplane.server.network.limits import Limits
from blockplane.server.network.listener import Event, Listener, Opened, Transfer
from blockplane.server.network.rights import PLAINTEXT, Identity, Rights, Verb
from blockplane.server.network.tls import Credentials

__all__ = [
    "PLAINTEXT",
    "Credentials",
    "Event",
    "Identity",
    "Limits",
    "Listener",
    "Opened",
    "Rights",
    "Transfer",
    "Verb",
]
