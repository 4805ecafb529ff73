"""The file system of a volume, a snapshot, a stream: the path API, put and get, and the check."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import BinaryIO, cast

from blockplane.filesystem.changes import Changes
from blockplane.filesystem.check import CheckReport, check_store
from blockplane.filesystem.copyin import put
from blockplane.filesystem.copyout import GetReport, get
from blockplane.filesystem.file import File, parse_mode
from blockplane.filesystem.names import AnyPath, path_bytes, path_text
from blockplane.filesystem.putreport import PutReport
from blockplane.model import Progress


class FileSystem(Changes):
    """Files by path, in the manner of `os` and `pathlib`.

    Parameters
    ----------
    source : a Volume (readable and writable), or a State or any block source (readable only).

    Notes
    -----
    Calls may come from several threads; each holds the volume's lock. Changes become durable with the volume's next
    consistency point (`Volume.sync`). An empty volume shows an empty root directory.
    """

    def open(self, path: AnyPath, mode: str = "r", buffering: int = -1) -> BinaryIO:
        """Open a regular file, always binary: `r`, `r+`, `w`, `w+`, `a`, `a+`, `x`, `x+`.

        Parameters
        ----------
        buffering : 0 for the raw file, else the buffer's size; 64 KiB when negative.
        """
        raw = self.open_raw(path, mode)
        if buffering == 0:
            return cast(BinaryIO, raw)
        size = buffering if buffering > 1 else 65536
        if raw.readable() and raw.writable():
            return cast(BinaryIO, io.BufferedRandom(raw, size))
        return cast(BinaryIO, io.BufferedWriter(raw, size) if raw.writable() else io.BufferedReader(raw, size))

    def open_raw(self, path: AnyPath, mode: str = "r", permissions: int = 0o666) -> File:
        """Open a regular file without a buffer; permissions : of one that is made."""
        plain, _, writable = parse_mode(mode)
        with self.store.lock:
            if plain[0] in "wax":
                inode = self._open_for_writing(path, exclusive=plain[0] == "x", mode=permissions)
                if plain[0] == "w" and inode.size_bytes:
                    self.store.truncate(inode, 0)
            else:
                inode = self.regular(path)
                if writable:
                    self.store.require_writable(path_text(path_bytes(path)))
            return File(self.store, inode, path_text(path_bytes(path)), mode)

    def put(
        self,
        source: str | os.PathLike[str],
        dest: AnyPath = "/",
        *,
        update: bool = False,
        delete: bool = False,
        checksum: bool = False,
        exclude: Sequence[AnyPath] = (),
        progress: Progress | None = None,
    ) -> PutReport:
        """Copy a tree of the host in; see `copyin.put`."""
        return put(
            self, source, dest, update=update, delete=delete, checksum=checksum, exclude=exclude, progress=progress
        )

    def get(self, source: AnyPath, dest: str | os.PathLike[str], *, progress: Progress | None = None) -> GetReport:
        """Copy a tree out to the host; see `copyout.get`."""
        return get(self, source, dest, progress=progress)

    def check(self, step: Callable[[], None] = lambda: None) -> CheckReport:
        """Check inodes, directories and links; see `check.check_store`."""
        return check_store(self.store, step)
