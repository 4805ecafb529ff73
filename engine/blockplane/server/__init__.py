"""Control sockets: how other processes reach a volume that a process has open; streams in files of volumes."""

from blockplane.server.activity import Activities, Activity, Kind, let_written
from blockplane.server.client import Contact, contact
from blockplane.server.control import ControlServer
from blockplane.server.session import CancelledError, Session, current

__all__ = [
    "Activities",
    "Activity",
    "CancelledError",
    "Contact",
    "ControlServer",
    "Kind",
    "Session",
    "contact",
    "current",
    "let_written",
]
