"""Tapes as media of streams: TAPE.md, its codec, drives and .tap files, writing, reading in order and at random."""

from blockplane.stream.media.codec import (
    DEFAULT_RECORD_BYTES,
    MAX_RECORD_BYTES,
    MIN_RECORD_BYTES,
    ImageEntry,
    Label,
    Run,
    Table,
    TapeEntry,
)
from blockplane.stream.media.cutting import shown
from blockplane.stream.media.grouping import TapesOfSet, by_set, look_at, missing_parts, require_all_parts
from blockplane.stream.media.input import ImageInput, images
from blockplane.stream.media.labels import TapeIdentity, is_blank, read_label
from blockplane.stream.media.lossy import LossyReader
from blockplane.stream.media.medium import Found, Kind, Medium, MediumFullError
from blockplane.stream.media.rack import (
    Change,
    Changer,
    PathLike,
    Rack,
    command_changer,
    in_turns,
    is_drive,
    is_tape,
    is_unwritten,
    open_medium,
)
from blockplane.stream.media.scan import Resumption, Standing, ending, resumption, standing
from blockplane.stream.media.setstate import WHOLE, SetPart, SetState, new_set
from blockplane.stream.media.tapeset import TapeSet, TapeStore, stores
from blockplane.stream.media.tapfile import TapFile
from blockplane.stream.media.walk import Walk
from blockplane.stream.media.writer import MIN_TAPE_BYTES, Names, TapeSink

__all__ = [
    "DEFAULT_RECORD_BYTES",
    "MAX_RECORD_BYTES",
    "MIN_RECORD_BYTES",
    "MIN_TAPE_BYTES",
    "WHOLE",
    "Change",
    "Changer",
    "Found",
    "ImageEntry",
    "ImageInput",
    "Kind",
    "Label",
    "LossyReader",
    "Medium",
    "MediumFullError",
    "Names",
    "PathLike",
    "Rack",
    "Resumption",
    "Run",
    "SetPart",
    "SetState",
    "Standing",
    "Table",
    "TapFile",
    "TapeEntry",
    "TapeIdentity",
    "TapeSet",
    "TapeSink",
    "TapeStore",
    "TapesOfSet",
    "Walk",
    "by_set",
    "command_changer",
    "ending",
    "images",
    "in_turns",
    "is_blank",
    "is_drive",
    "is_tape",
    "is_unwritten",
    "look_at",
    "missing_parts",
    "new_set",
    "open_medium",
    "read_label",
    "require_all_parts",
    "resumption",
    "shown",
    "standing",
    "stores",
]
