"""Volumes over the network: certificates, rights, the wire, a listener, and peers behind connections."""

from blockplane.server.network.address import Address, parse_peer
from blockplane.server.network.certificates import Certificate, make_certificates
from blockplane.server.network.limits import Limits
from blockplane.server.network.listener import Event, Listener
from blockplane.server.network.remote import RemotePeer
from blockplane.server.network.rights import PLAINTEXT, Identity, Rights, Verb
from blockplane.server.network.serving import Opened, Transfer
from blockplane.server.network.throttle import Schedule
from blockplane.server.network.tls import Credentials

__all__ = [
    "PLAINTEXT",
    "Address",
    "Certificate",
    "Credentials",
    "Event",
    "Identity",
    "Limits",
    "Listener",
    "Opened",
    "RemotePeer",
    "Rights",
    "Schedule",
    "Transfer",
    "Verb",
    "make_certificates",
    "parse_peer",
]
