"""Image streams: FORMAT.md, its codec, writer, reader, keys, and stream files as block sources."""

from blockplane.stream.codec import Envelope, Header, Role
from blockplane.stream.keyfile import Key, create_key, read_key
from blockplane.stream.media import command_changer, is_tape
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.stream.source import StreamChain, is_stream, open_stream, stream_envelope
from blockplane.stream.writer import StreamWriter

__all__ = [
    "Envelope",
    "Header",
    "Key",
    "Role",
    "StreamChain",
    "StreamMap",
    "StreamReader",
    "StreamWriter",
    "command_changer",
    "create_key",
    "is_stream",
    "is_tape",
    "open_stream",
    "read_key",
    "stream_envelope",
]
