"""Sending images as streams, and receiving them; verifying stream files."""

from blockplane.transfer.receive import ReceiveReport, receive
from blockplane.transfer.send import SendReport, send
from blockplane.transfer.verify import StreamVerdict, stream_map, verify_streams

__all__ = ["ReceiveReport", "SendReport", "StreamVerdict", "receive", "send", "stream_map", "verify_streams"]
