"""Sending images as streams, and receiving them; verifying, merging and comparing stream files."""

from blockplane.transfer.compare import StreamComparison, compare_streams
from blockplane.transfer.merge import MergeReport, merge_streams
from blockplane.transfer.receive import ReceiveReport, receive
from blockplane.transfer.send import SendReport, send
from blockplane.transfer.verify import StreamVerdict, stream_map, verify_streams

__all__ = [
    "MergeReport",
    "ReceiveReport",
    "SendReport",
    "StreamComparison",
    "StreamVerdict",
    "compare_streams",
    "merge_streams",
    "receive",
    "send",
    "stream_map",
    "verify_streams",
]
