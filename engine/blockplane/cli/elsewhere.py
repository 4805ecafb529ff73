"""A verb whose volume another process has, and will run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockplane.server import Contact


class ElsewhereError(BaseException):
    """Ends a verb before it has done anything: `contact` runs it."""

    def __init__(self, contact: Contact) -> None:
        super().__init__()
        self.contact = contact
