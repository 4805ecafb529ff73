"""Image streams: FORMAT.md, its codec, writer, reader, and stream files as block sources."""

from blockplane.stream.codec import Header, Role
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.stream.source import StreamChain, is_stream, open_stream
from blockplane.stream.writer import StreamWriter

__all__ = ["Header", "Role", "StreamChain", "StreamMap", "StreamReader", "StreamWriter", "is_stream", "open_stream"]
