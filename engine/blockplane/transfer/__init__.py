"""Sending images as streams, receiving them, copying from disk to disk; verifying, merging, comparing stream files."""

from blockplane.transfer import mirrors
from blockplane.transfer.compare import StreamComparison, compare_streams
from blockplane.transfer.copy import CopyReport, copy, is_half_copied
from blockplane.transfer.lag import ReplicaReport, replicas
from blockplane.transfer.merge import MergeReport, merge_streams
from blockplane.transfer.newvolume import Opening
from blockplane.transfer.offer import OfferReport, offer
from blockplane.transfer.peer import Brought, Peer, VolumePeer
from blockplane.transfer.pull import PullReport, replicate
from blockplane.transfer.reach import Reach, reach
from blockplane.transfer.receive import ReceiveReport, receive
from blockplane.transfer.receivemany import ChainReport, receive_streams
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import (
    InterruptedReceive,
    ResumeToken,
    held,
    hold_left,
    interrupted_receives,
    read_token,
    release_left,
    resume_token,
)
from blockplane.transfer.send import SendReport, is_half_sent, send
from blockplane.transfer.sendparts import Part, PartsReport, send_parts
from blockplane.transfer.structure import create_structure
from blockplane.transfer.tapecheck import (
    LostBlocks,
    TapeListing,
    TapeVerdict,
    list_tape_sets,
    list_tapes,
    retrieve_blocks,
    verify_tapes,
)
from blockplane.transfer.tapeparts import DriveTapes, TapePartsReport, write_tape_parts
from blockplane.transfer.taperead import TapeReadReport, read_tape
from blockplane.transfer.tapewrite import TapeForm, TapeWriteReport, write_stream_to_tape, write_tape
from blockplane.transfer.targets import abort_receive
from blockplane.transfer.verify import StreamVerdict, stream_map, verify_streams

__all__ = [
    "Brought",
    "ChainReport",
    "CopyReport",
    "DriveTapes",
    "InterruptedReceive",
    "LocalChanges",
    "LostBlocks",
    "MergeReport",
    "OfferReport",
    "Opening",
    "Part",
    "PartsReport",
    "Peer",
    "PullReport",
    "Reach",
    "ReceiveReport",
    "ReplicaReport",
    "ResumeToken",
    "SendReport",
    "StreamComparison",
    "StreamVerdict",
    "TapeForm",
    "TapeListing",
    "TapePartsReport",
    "TapeReadReport",
    "TapeVerdict",
    "TapeWriteReport",
    "VolumePeer",
    "abort_receive",
    "compare_streams",
    "copy",
    "create_structure",
    "held",
    "hold_left",
    "interrupted_receives",
    "is_half_copied",
    "is_half_sent",
    "list_tape_sets",
    "list_tapes",
    "merge_streams",
    "mirrors",
    "offer",
    "reach",
    "read_tape",
    "read_token",
    "receive",
    "receive_streams",
    "release_left",
    "replicas",
    "replicate",
    "resume_token",
    "retrieve_blocks",
    "send",
    "send_parts",
    "stream_map",
    "verify_streams",
    "verify_tapes",
    "write_stream_to_tape",
    "write_tape",
    "write_tape_parts",
]
