"""A tape drive: Linux's `st` driver through its calls, in variable block mode, where one write is one record."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Protocol

from blockplane.model.addresses import Bytes
from blockplane.model.errors import TapeError
from blockplane.stream.fdsink import Buffer, write_error
from blockplane.stream.media import mtio
from blockplane.stream.media.medium import Found, Kind, MediumFullError
from blockplane.stream.media.mtio import Op, Status


class Calls(Protocol):
    """The system calls that a drive is driven by."""

    def open(self, name: str, flags: int) -> int:
        """As open(2)."""
        ...

    def read_into(self, fd: int, out: memoryview) -> int:
        """As read(2)."""
        ...

    def write(self, fd: int, data: bytes) -> int:
        """As write(2)."""
        ...

    def control(self, fd: int, request: int, argument: bytes) -> bytes:
        """As ioctl(2); returns what became of the argument."""
        ...

    def close(self, fd: int) -> None:
        """As close(2)."""
        ...


class SystemCalls:
    """The kernel's."""

    def open(self, name: str, flags: int) -> int:
        """See Calls."""
        return os.open(name, flags)

    def read_into(self, fd: int, out: memoryview) -> int:
        """See Calls."""
        return os.readv(fd, [out])

    def write(self, fd: int, data: bytes) -> int:
        """See Calls."""
        return os.write(fd, data)

    def control(self, fd: int, request: int, argument: bytes) -> bytes:
        """See Calls."""
        return fcntl.ioctl(fd, request, argument)

    def close(self, fd: int) -> None:
        """See Calls."""
        os.close(fd)


class TapeDrive:
    """The tape in a drive.

    Raises
    ------
    TapeError : the device cannot be opened, holds no tape, or one that is write-protected where it is to be written.

    Notes
    -----
    Positions are the drive's own: it seeks by itself. A record is copied once, so that it goes out in one write.
    """

    room_bytes = None

    def __init__(self, name: str, *, writable: bool = False, calls: Calls | None = None) -> None:
        self.name, self._calls = name, calls if calls is not None else SystemCalls()
        self.position = self.read_bytes = 0
        self.is_near_end = False
        try:
            self._fd = self._calls.open(name, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._require_tape(writable)
            self._do(Op.SET_BLOCK_BYTES, 0)
            self._do(Op.REWIND, 1)
        except BaseException:
            self.close()
            raise

    def _refused(self, error: OSError) -> TapeError:
        if error.errno == errno.ENOMEDIUM:
            return TapeError(f"there is no tape in {self.name}", "load one")
        if error.errno == errno.EROFS:
            return TapeError(f"the tape in {self.name} is write-protected", "take another, or move its switch")
        return TapeError(f"cannot open {self.name}: {error.strerror}")

    def _require_tape(self, writable: bool) -> None:
        try:
            raw = self._calls.control(self._fd, mtio.MTIOCGET, bytes(mtio.STATE_BYTES))
        except OSError as error:
            raise TapeError(
                f"{self.name} is no tape drive: {error.strerror}", "name a device of the st driver, as /dev/nst0"
            ) from error
        status = mtio.decode_state(raw).status
        if Status.DOOR_OPEN in status or Status.ONLINE not in status:
            raise TapeError(f"there is no tape in {self.name}", "load one")
        if writable and Status.WRITE_PROTECTED in status:
            raise self._refused(OSError(errno.EROFS, ""))

    def _do(self, op: Op, count: int) -> None:
        try:
            self._calls.control(self._fd, mtio.MTIOCTOP, mtio.encode_op(op, count))
        except OSError as error:
            what = op.name.lower().replace("_", " ")
            raise TapeError(f"{self.name} failed to {what}: {error.strerror}") from error

    def _ask_position(self) -> int:
        try:
            raw = self._calls.control(self._fd, mtio.MTIOCPOS, bytes(mtio.POSITION_BYTES))
        except OSError as error:
            raise TapeError(f"{self.name} does not say where its tape stands: {error.strerror}") from error
        return mtio.decode_position(raw)

    def read(self, out: memoryview) -> Found:
        """See Medium."""
        try:
            n_bytes = self._calls.read_into(self._fd, out)
        except OSError as error:
            return self._unread(error)
        if n_bytes:
            self.position += 1
            self.read_bytes += n_bytes
            return Found(Kind.RECORD, n_bytes)
        # no bytes: a filemark, which was passed, or the end, which never is
        here = self._ask_position()
        if here == self.position:
            return Found(Kind.END)
        self.position = here
        return Found(Kind.FILEMARK)

    def _unread(self, error: OSError) -> Found:
        """Pass a record that could not be read; the end shows as an error too."""
        raw = self._calls.control(self._fd, mtio.MTIOCGET, bytes(mtio.STATE_BYTES))
        if Status.END_OF_DATA in mtio.decode_state(raw).status:
            return Found(Kind.END)
        if error.errno not in (errno.EIO, errno.ENOMEM):
            raise TapeError(f"cannot read {self.name}: {error.strerror}") from error
        self.seek(self.position + 1)
        return Found(Kind.BAD)

    def write(self, pieces: Sequence[Buffer]) -> None:
        """See Medium."""
        data = b"".join(pieces)
        for is_again in (False, True):
            try:
                n_written = self._calls.write(self._fd, data)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise write_error(self.name, error) from error
                # the driver says once that the end is near; what is written again may still fit
                self.is_near_end = True
                if is_again:
                    raise MediumFullError from error
                continue
            if n_written != len(data):
                raise TapeError(f"{self.name} took {n_written} bytes of a record of {len(data)}")
            self.position += 1
            return

    def write_records(self, heads: Bytes, payload: memoryview) -> int:
        """See Medium: one write is one record."""
        return 0

    def settle(self) -> None:
        """See Medium: what was written was copied."""

    def write_filemark(self, *, wait: bool) -> None:
        """See Medium."""
        op = Op.WRITE_FILEMARKS if wait else Op.WRITE_FILEMARKS_SOON
        for is_again in (False, True):
            try:
                self._calls.control(self._fd, mtio.MTIOCTOP, mtio.encode_op(op, 1))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise TapeError(f"{self.name} failed to write a filemark: {error.strerror}") from error
                self.is_near_end = True
                if is_again:
                    raise MediumFullError from error
                continue
            self.position += 1
            return

    def seek(self, position: int) -> None:
        """See Medium."""
        if position != self.position:
            self._do(Op.SEEK, position)
            self.position = position

    def seek_end(self) -> None:
        """See Medium."""
        self._do(Op.SEEK_END, 1)
        self.position = self._ask_position()

    def pass_filemark(self) -> bool:
        """See Medium."""
        try:
            self._calls.control(self._fd, mtio.MTIOCTOP, mtio.encode_op(Op.FORWARD_FILEMARKS, 1))
        except OSError as error:
            if error.errno != errno.EIO:
                raise TapeError(f"{self.name} failed to go to a filemark: {error.strerror}") from error
            self.seek_end()
            return False
        self.position = self._ask_position()
        return True

    def finish(self) -> None:
        """See Medium: a second filemark is not written; the drive knows where its data end."""

    def close(self) -> None:
        """See Medium."""
        if self._fd >= 0:
            self._calls.close(self._fd)
            self._fd = -1
