"""File-system image transfer: snapshots as sets of block numbers.

    import blockplane as bp

    vol = bp.Volume.create("pool", disks=5, size="2G", parity=1)
    fs = bp.FileSystem(vol)
    fs.put("/usr/include", "/include")
    vol.snapshot("june1")
    bp.send(vol.image("june1"), "june1.bps")
    bp.receive("june1.bps", "copy")

Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # not typing's: importing blockplane costs no module that Python has not loaded
if TYPE_CHECKING:
    from blockplane.api import BlockUse, FileUse, FullCheck, Volume, check, create_structure, owners
    from blockplane.cli.hosting import serve_control
    from blockplane.filesystem import Change, Difference, FileSystem, GetReport, PutReport
    from blockplane.image import Backup, BlockDifference, Freeing, Image, PlaneFile, SavedImage, divided, plan_levels
    from blockplane.model import (
        BLOCK_BYTES,
        BlockplaneError,
        Progress,
        ProgressEvent,
        format_size,
        parse_duration,
        parse_size,
    )
    from blockplane.model import errors as errors
    from blockplane.planes import Plane, combine, combine_count
    from blockplane.server.network import Certificate, Credentials, Listener, RemotePeer, Rights, make_certificates
    from blockplane.server.service import Service, read_policy
    from blockplane.server.streamplace import VolumePlace
    from blockplane.stream import (
        Key,
        StreamChain,
        command_changer,
        create_key,
        is_stream,
        is_tape,
        open_stream,
        read_key,
        stream_envelope,
    )
    from blockplane.transfer import (
        Brought,
        ChainReport,
        CopyReport,
        DriveTapes,
        InterruptedReceive,
        LocalChanges,
        LostBlocks,
        MergeReport,
        OfferReport,
        Opening,
        Part,
        PartsReport,
        Peer,
        PullReport,
        Reach,
        ReceiveReport,
        ReplicaReport,
        ResumeToken,
        SendReport,
        StreamComparison,
        StreamVerdict,
        TapeForm,
        TapeListing,
        TapePartsReport,
        TapeReadReport,
        TapeVerdict,
        TapeWriteReport,
        VolumePeer,
        abort_receive,
        compare_streams,
        copy,
        held,
        hold_left,
        interrupted_receives,
        is_half_copied,
        is_half_sent,
        list_tape_sets,
        list_tapes,
        merge_streams,
        mirrors,
        offer,
        reach,
        read_tape,
        read_token,
        receive,
        receive_streams,
        release_left,
        replicas,
        replicate,
        resume_token,
        retrieve_blocks,
        send,
        send_parts,
        stream_map,
        verify_streams,
        verify_tapes,
        write_stream_to_tape,
        write_tape,
        write_tape_parts,
    )
    from blockplane.volume import (
        DemotionPlan,
        Destination,
        Policy,
        Position,
        PressurePolicy,
        PruneReport,
        SettlePlan,
        SettleReport,
        ShrinkPlan,
        ShrinkReport,
        Snapshot,
        SnapshotPointer,
        State,
    )

_HOMES = {
    "blockplane.api": ("BlockUse", "FileUse", "FullCheck", "Volume", "check", "create_structure", "owners"),
    "blockplane.cli.hosting": ("serve_control",),
    "blockplane.filesystem": ("Change", "Difference", "FileSystem", "GetReport", "PutReport"),
    "blockplane.image": (
        "Backup", "BlockDifference", "Freeing", "Image", "PlaneFile", "SavedImage", "divided", "plan_levels",
    ),
    "blockplane.model": (
        "BLOCK_BYTES", "BlockplaneError", "Progress", "ProgressEvent", "errors", "format_size", "parse_duration",
        "parse_size",
    ),
    "blockplane.planes": ("Plane", "combine", "combine_count"),
    "blockplane.stream": (
        "Key", "StreamChain", "command_changer", "create_key", "is_stream", "is_tape", "open_stream", "read_key",
        "stream_envelope",
    ),
    "blockplane.server.streamplace": ("VolumePlace",),
    "blockplane.server.service": ("Service", "read_policy"),
    "blockplane.server.network": (
        "Certificate", "Credentials", "Listener", "RemotePeer", "Rights", "make_certificates",
    ),
    "blockplane.transfer": (
        "Brought", "ChainReport", "CopyReport", "DriveTapes", "InterruptedReceive", "LocalChanges", "LostBlocks",
        "MergeReport", "OfferReport", "Opening", "Part", "PartsReport", "Peer", "PullReport", "Reach",
        "ReceiveReport", "ReplicaReport", "ResumeToken", "SendReport", "StreamComparison", "StreamVerdict",
        "TapeForm", "TapeListing", "TapePartsReport", "TapeReadReport", "TapeVerdict", "TapeWriteReport",
        "VolumePeer", "abort_receive", "compare_streams", "copy", "held", "hold_left", "interrupted_receives",
        "is_half_copied", "is_half_sent", "list_tape_sets", "list_tapes", "merge_streams", "mirrors", "offer", "reach",
        "read_tape", "read_token", "receive", "receive_streams", "release_left", "replicas", "replicate",
        "resume_token", "retrieve_blocks", "send", "send_parts", "stream_map", "verify_streams", "verify_tapes",
        "write_stream_to_tape", "write_tape", "write_tape_parts",
    ),
    "blockplane.volume": (
        "DemotionPlan", "Destination", "Policy", "Position", "PressurePolicy", "PruneReport", "SettlePlan",
        "SettleReport", "ShrinkPlan", "ShrinkReport", "Snapshot", "SnapshotPointer", "State",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BLOCK_BYTES",
    "Backup",
    "BlockDifference",
    "BlockUse",
    "BlockplaneError",
    "Brought",
    "Certificate",
    "ChainReport",
    "Change",
    "CopyReport",
    "Credentials",
    "DemotionPlan",
    "Destination",
    "Difference",
    "DriveTapes",
    "FileSystem",
    "FileUse",
    "Freeing",
    "FullCheck",
    "GetReport",
    "Image",
    "InterruptedReceive",
    "Key",
    "Listener",
    "LocalChanges",
    "LostBlocks",
    "MergeReport",
    "OfferReport",
    "Opening",
    "Part",
    "PartsReport",
    "Peer",
    "Plane",
    "PlaneFile",
    "Policy",
    "Position",
    "PressurePolicy",
    "Progress",
    "ProgressEvent",
    "PruneReport",
    "PullReport",
    "PutReport",
    "Reach",
    "ReceiveReport",
    "RemotePeer",
    "ReplicaReport",
    "ResumeToken",
    "Rights",
    "SavedImage",
    "SendReport",
    "Service",
    "SettlePlan",
    "SettleReport",
    "ShrinkPlan",
    "ShrinkReport",
    "Snapshot",
    "SnapshotPointer",
    "State",
    "StreamChain",
    "StreamComparison",
    "StreamVerdict",
    "TapeForm",
    "TapeListing",
    "TapePartsReport",
    "TapeReadReport",
    "TapeVerdict",
    "TapeWriteReport",
    "Volume",
    "VolumePeer",
    "VolumePlace",
    "abort_receive",
    "check",
    "combine",
    "combine_count",
    "command_changer",
    "compare_streams",
    "copy",
    "create_key",
    "create_structure",
    "divided",
    "errors",
    "format_size",
    "held",
    "hold_left",
    "interrupted_receives",
    "is_half_copied",
    "is_half_sent",
    "is_stream",
    "is_tape",
    "list_tape_sets",
    "list_tapes",
    "make_certificates",
    "merge_streams",
    "mirrors",
    "offer",
    "open_stream",
    "owners",
    "parse_duration",
    "parse_size",
    "plan_levels",
    "reach",
    "read_key",
    "read_policy",
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
    "serve_control",
    "stream_envelope",
    "stream_map",
    "verify_streams",
    "verify_tapes",
    "write_stream_to_tape",
    "write_tape",
    "write_tape_parts",
]


def __getattr__(name: str) -> object:
    """Load a public name's module: importing blockplane alone costs nothing."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
