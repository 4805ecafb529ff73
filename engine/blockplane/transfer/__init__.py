"""Sending images as streams, and receiving them."""

from blockplane.transfer.receive import ReceiveReport, receive
from blockplane.transfer.send import SendReport, send

__all__ = ["ReceiveReport", "SendReport", "receive", "send"]
