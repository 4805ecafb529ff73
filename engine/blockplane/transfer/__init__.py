"""Sending images as streams, receiving them, copying from disk to disk; verifying, merging, comparing stream files."""

from blockplane.transfer.compare import StreamComparison, compare_streams
from blockplane.transfer.copy import CopyReport, copy
from blockplane.transfer.destination import abort_receive
from blockplane.transfer.merge import MergeReport, merge_streams
from blockplane.transfer.newvolume import Opening
from blockplane.transfer.offer import OfferReport, offer
from blockplane.transfer.receive import ReceiveReport, receive
from blockplane.transfer.resume import (
    InterruptedReceive,
    ResumeToken,
    held,
    interrupted_receives,
    read_token,
    resume_token,
)
from blockplane.transfer.send import SendReport, send
from blockplane.transfer.verify import StreamVerdict, stream_map, verify_streams

__all__ = [
    "CopyReport",
    "InterruptedReceive",
    "MergeReport",
    "OfferReport",
    "Opening",
    "ReceiveReport",
    "ResumeToken",
    "SendReport",
    "StreamComparison",
    "StreamVerdict",
    "abort_receive",
    "compare_streams",
    "copy",
    "held",
    "interrupted_receives",
    "merge_streams",
    "offer",
    "read_token",
    "receive",
    "resume_token",
    "send",
    "stream_map",
    "verify_streams",
]
