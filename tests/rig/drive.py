"""A double of Linux's `st` driver, from its documentation: what TapeDrive's system calls meet, without a drive.

Objects lie in a list; None is a filemark. Behind the early warning every other write fails with ENOSPC, as the
driver has it: the first says that the end is near and wrote nothing, the one after it is let through; at the physical
end all fail.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field

MTIOCTOP, MTIOCGET, MTIOCPOS = 0x40086D01, 0x80306D02, 0x80086D03
FSF, WEOF, REW, EOM, SETBLK, SEEK, WEOFI = 1, 5, 6, 12, 20, 22, 35
EOD, WR_PROT, ONLINE = 0x08000000, 0x04000000, 0x01000000


@dataclass
class Tape:
    """What is on a tape. bad : positions that cannot be read. capacity : bytes; the warning comes `warning` before."""

    objects: list[bytes | None] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)
    capacity: int = 1 << 60
    warning: int = 0
    protected: bool = False


@dataclass
class DoubleDrive:
    """One drive; `log` is what was asked of it."""

    tape: Tape | None
    log: list[tuple[str, object]] = field(default_factory=list)
    at: int = 0
    is_eod: bool = False
    has_warned: bool = False
    is_open: bool = False

    def open(self, name: str, flags: int) -> int:
        self.log.append(("open", flags & os.O_ACCMODE))
        if self.tape is None:
            raise OSError(errno.ENOMEDIUM, "No medium found")
        if self.tape.protected and flags & os.O_RDWR:
            raise OSError(errno.EROFS, "Read-only file system")
        self.at, self.is_open = 0, True
        return 99

    def close(self, fd: int) -> None:
        self.is_open = False

    def read_into(self, fd: int, out: memoryview) -> int:
        assert self.tape is not None
        if self.at == len(self.tape.objects):
            if self.is_eod:
                raise OSError(errno.EIO, "Input/output error")
            self.is_eod = True
            return 0
        found, self.at = self.tape.objects[self.at], self.at + 1
        if self.at - 1 in self.tape.bad:
            raise OSError(errno.EIO, "Input/output error")
        if found is None:
            return 0
        if len(found) > len(out):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        out[: len(found)] = found
        return len(found)

    def _used(self) -> int:
        assert self.tape is not None
        return sum(len(o) for o in self.tape.objects if o is not None)

    def _require_room(self, n_bytes: int) -> None:
        assert self.tape is not None
        del self.tape.objects[self.at :]
        used = self._used() + n_bytes
        if used > self.tape.capacity:
            raise OSError(errno.ENOSPC, "No space left on device")
        if used > self.tape.capacity - self.tape.warning:
            self.has_warned = not self.has_warned
            if self.has_warned:
                raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, fd: int, data: bytes) -> int:
        assert self.tape is not None
        self.log.append(("write", len(data)))
        self._require_room(len(data))
        self.tape.objects.append(bytes(data))
        self.at += 1
        return len(data)

    def control(self, fd: int, request: int, argument: bytes) -> bytes:
        assert self.tape is not None
        if request == MTIOCGET:
            status = ONLINE | (EOD if self.is_eod else 0) | (WR_PROT if self.tape.protected else 0)
            return struct.pack("@lllllii", 0x72, 0, 0, status, 0, 0, self.at)
        if request == MTIOCPOS:
            return struct.pack("@l", self.at)
        assert request == MTIOCTOP
        op, count = struct.unpack("@hi", argument)
        self.log.append(("op", (op, count)))
        self._do(op, count)
        return argument

    def _do(self, op: int, count: int) -> None:
        assert self.tape is not None
        objects = self.tape.objects
        if op in (WEOF, WEOFI):
            self._require_room(0)
            objects += [None] * count
            self.at += count
        elif op == REW:
            self.at = 0
        elif op == EOM:
            self.at = len(objects)
        elif op == SEEK:
            if count > len(objects):
                raise OSError(errno.EIO, "Input/output error")
            self.at = count
        elif op == FSF:
            marks = [i for i in range(self.at, len(objects)) if objects[i] is None]
            if not marks:
                self.at = len(objects)
                raise OSError(errno.EIO, "Input/output error")
            self.at = marks[0] + 1
        else:
            assert op == SETBLK, op
            assert count == 0, "variable blocks"
        self.is_eod = False
