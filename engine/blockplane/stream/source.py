"""Stream files as block sources: files can be listed and read out of a stream, or a chain of them, without restoring
it.

A chain is read by state: the blocks of a snapshot lie in the stream that brings it, or in what that stream builds on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES, Bytes, Extents
from blockplane.model.checks import crc32c
from blockplane.model.errors import (
    NoSuchSnapshotError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamTruncatedError,
)
from blockplane.stream import codec
from blockplane.stream.codec import INDEX_DTYPE, KNOWN_FEATURES, FrameHead, FrameKind, Header, Role, Trailer
from blockplane.stream.input import FdInput, open_path
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.volume.codec import SnapshotRecord

SUFFIX: Final = ".bps"
#: An index of more entries than this describes more than 64 TiB in whole frames; nothing is sized by it before.
_MAX_INDEX: Final = 1 << 26


class StreamFile:
    """One stream file, its map and index in memory; blocks are read by VBN.

    Raises
    ------
    StreamError, StreamTruncatedError, StreamDamagedError : it cannot be read, is cut off, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = open_path(path)
        try:
            self._n_bytes = os.fstat(self._fd).st_size
            reader = StreamReader(FdInput(self._fd, self.path))
            self._require_readable(reader.header)
            self.map: StreamMap = reader.read_map()
            self._load_index(self._trailer())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file; twice does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _require_readable(self, header: Header) -> None:
        unknown = header.features.reading & ~KNOWN_FEATURES.reading
        if unknown or header.n_parts != 1:
            what = f"features {unknown:#x} of a later release" if unknown else f"all of its {header.n_parts} parts"
            raise StreamError(f"reading files out of {self.path} needs {what}", "it can still be received or copied")

    def _trailer(self) -> Trailer:
        offset = self._n_bytes - codec.TRAILER_FRAME_BYTES
        head, payload = self._frame(max(offset, 0))
        if head.kind is not FrameKind.TRAILER:
            raise self._truncated()
        trailer = codec.decode_trailer(payload)
        if trailer.stream_bytes != self._n_bytes or head.sequence + 1 != trailer.n_frames:
            raise self._truncated()
        if trailer.n_blocks != self.map.header.image_blocks or trailer.n_index > _MAX_INDEX:
            raise StreamDamagedError(f"the trailer of {self.path} does not fit its header", "fetch the stream again")
        return trailer

    def _truncated(self) -> StreamTruncatedError:
        return StreamTruncatedError(f"{self.path} does not end with a trailer", "it was cut off; fetch the rest")

    def _frame(self, offset: int) -> tuple[FrameHead, bytes]:
        """Read a whole frame that is not data."""
        fixed = os.pread(self._fd, codec.FRAME_FIXED_BYTES, offset)
        if len(fixed) < codec.FRAME_FIXED_BYTES or not fixed.startswith(codec.FRAME_MAGIC):
            raise self._truncated()
        head = codec.decode_frame_fixed(fixed)
        table = os.pread(self._fd, head.head_bytes - len(fixed), offset + len(fixed))
        payload = os.pread(self._fd, head.payload_bytes, offset + head.head_bytes)
        head = codec.decode_frame_head(fixed, table, self.map.header.tag, head.sequence)
        if len(payload) != head.payload_bytes or crc32c(payload) != head.payload_crc:
            raise StreamDamagedError(f"a frame of {self.path} does not match its checksum", "fetch the stream again")
        return head, payload

    def _load_index(self, trailer: Trailer) -> None:
        parts: list[np.ndarray[tuple[int], np.dtype[np.void]]] = []
        offset, n_left = trailer.index_offset, trailer.n_index
        while n_left > 0:
            head, payload = self._frame(offset)
            if head.kind is not FrameKind.INDEX or head.n_items > n_left:
                raise StreamDamagedError(f"the index of {self.path} is not where its trailer says", "fetch it again")
            parts.append(np.frombuffer(payload, INDEX_DTYPE))
            offset += head.head_bytes + head.payload_bytes
            n_left -= head.n_items
        index = np.concatenate(parts) if parts else np.empty(0, INDEX_DTYPE)
        index = index[np.argsort(index["vbn"], kind="stable")]
        self._starts = index["vbn"].astype(np.int64)
        self._stops = self._starts + index["n_blocks"].astype(np.int64)
        self._offsets = index["offset"].astype(np.int64)
        self._require_sane(trailer)

    def _require_sane(self, trailer: Trailer) -> None:
        """Hold the index against the stream: in its space, apart, inside the file, as many blocks as the image."""
        n_bytes = (self._stops - self._starts) * BLOCK_BYTES
        good = (
            (self._starts >= 0).all()
            and (self._stops > self._starts).all()
            and (self._stops <= self.map.header.space_blocks).all()
            and (self._starts[1:] >= self._stops[:-1]).all()
            and (self._offsets >= 0).all()
            and (self._offsets <= self._n_bytes - n_bytes).all()
            and int((self._stops - self._starts).sum()) == trailer.n_blocks
        )
        if not good:
            raise StreamDamagedError(f"the index of {self.path} contradicts the stream", "fetch the stream again")

    def ids(self) -> set[bytes]:
        """Return the ids of the snapshots that the stream brings."""
        return {record.id for record, role in self.map.snapshots if role in (Role.TOP, Role.ARRIVES)}

    def read_some(self, vbn: int, n_blocks: int, out: Bytes) -> int:
        """Read consecutive VBNs as far as they lie together here; return how many, or minus how many are not here."""
        at = int(np.searchsorted(self._stops, vbn, side="right"))
        if at == len(self._starts) or self._starts[at] > vbn:
            nearest = int(self._starts[at]) - vbn if at < len(self._starts) else n_blocks
            return -min(n_blocks, nearest)
        take = min(n_blocks, int(self._stops[at]) - vbn)
        offset = int(self._offsets[at]) + (vbn - int(self._starts[at])) * BLOCK_BYTES
        view, done = out.data[: take * BLOCK_BYTES], 0
        while done < len(view):
            n_read = os.preadv(self._fd, [view[done:]], offset + done)
            if not n_read:
                raise self._truncated()
            done += n_read
        return take


class StreamChain:
    """A snapshot inside stream files, as a block source.

    Attributes
    ----------
    snapshots : every snapshot the streams bring, older first. snapshot : the one that is read.
    """

    def __init__(self, files: Sequence[StreamFile], snapshot: str | None = None) -> None:
        self._files = list(files)
        brought = [record for file in files for record in file.map.arriving()]
        self.snapshots = sorted({record.id: record for record in brought}.values(), key=lambda r: (r.cp, r.created_ns))
        self.snapshot = self._choose(snapshot)
        self._path = self._links(self.snapshot.id)

    def _choose(self, name: str | None) -> SnapshotRecord:
        if name is None:
            return self._files[-1].map.top
        for record in reversed(self.snapshots):
            if record.name == name:
                return record
        names = ", ".join(record.name for record in self.snapshots[-8:])
        raise NoSuchSnapshotError(f"the streams bring no snapshot {name}", f"there are {names}")

    def _links(self, snapshot_id: bytes) -> list[StreamFile]:
        """Return the stream that brings a snapshot, the one that brings its base, and so on to a full image."""
        path: list[StreamFile] = []
        wanted: bytes | None = snapshot_id
        while wanted is not None:
            file = next((f for f in reversed(self._files) if wanted in f.ids() and f not in path), None)
            if file is None:
                base = path[-1].map.base
                raise StreamMismatchError(
                    f"{path[-1].path} builds on snapshot {base.name if base else '?'}, which none of the others brings",
                    "name the whole chain, the full stream first",
                )
            if path and file.map.header.space_id != path[-1].map.header.space_id:
                raise StreamMismatchError(f"{file.path} and {path[-1].path} are of different numberings")
            path.append(file)
            wanted = file.map.base.id if file.map.base is not None else None
        return path

    def at(self, snapshot: str) -> StreamChain:
        """Return the same streams, another snapshot being read; close either one, once."""
        return StreamChain(self._files, snapshot)

    def root_pointer(self) -> tuple[int, int]:
        """See BlockSource."""
        return self.snapshot.root.number, self.snapshot.root.check

    def read_extents(self, extents: Extents, out: Bytes) -> None:
        """See BlockSource.

        Raises
        ------
        StreamDamagedError : no stream of the chain holds a block.
        """
        at = 0
        for start, stop in extents.tolist():
            self._read(start, stop, out[at * BLOCK_BYTES : (at + stop - start) * BLOCK_BYTES], 0)
            at += stop - start

    def _read(self, start: int, stop: int, out: Bytes, level: int) -> None:
        if level == len(self._path):
            raise StreamDamagedError(f"block {start} of {self.snapshot.name} is in none of the streams")
        vbn = start
        while vbn < stop:
            rest = out[(vbn - start) * BLOCK_BYTES :]
            n_blocks = self._path[level].read_some(vbn, stop - vbn, rest)
            if n_blocks < 0:
                n_blocks = -n_blocks
                self._read(vbn, vbn + n_blocks, rest[: n_blocks * BLOCK_BYTES], level + 1)
            vbn += n_blocks

    def close(self) -> None:
        """Release the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> StreamChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_stream(*paths: str | os.PathLike[str], snapshot: str | None = None) -> StreamChain:
    """Open a stream, or a chain of them.

    Parameters
    ----------
    paths : stream files, the full one first; or one folder of them.
    snapshot : which snapshot to read; by default the top of the last stream.

    Raises
    ------
    StreamError and its kinds : a file is no stream, cut off or damaged. StreamMismatchError : they are no chain.
    NoSuchSnapshotError : they do not bring that snapshot.
    """
    names = [os.fspath(path) for path in paths]
    in_folder = len(names) == 1 and os.path.isdir(names[0])
    if in_folder:
        names = sorted(str(path) for path in Path(names[0]).glob(f"*{SUFFIX}"))
    if not names:
        raise StreamError(f"there are no {SUFFIX} files to read", "name stream files, or a folder of them")
    files: list[StreamFile] = []
    try:
        for name in names:
            files.append(StreamFile(name))  # noqa: PERF401 - what is open must be known when one fails
        if in_folder:
            files.sort(key=lambda file: (file.map.top.cp, file.map.top.created_ns))
        return StreamChain(files, snapshot)
    except BaseException:
        for file in files:
            file.close()
        raise


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as a stream does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(codec.MAGIC)) == codec.MAGIC
    except OSError:
        return False
