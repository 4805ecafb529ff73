"""A virtual tape drive: Debian's `tgt` serves one, and this speaks SCSI to it through `libiscsi`, as a Medium.

What the kernel's `st` driver would ask by ioctls is asked here by the commands it sends: READ and WRITE of variable
blocks, WRITE FILEMARKS, REWIND. The drive keeps records, filemarks and the end of data itself.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockplane.stream.media import Found, Kind, MediumFullError

TARGET = "iqn.2026-11.blockplane.test:tape"
BLANK_CHECK, VOLUME_OVERFLOW = 8, 13
_LIBRARY = "libiscsi.so.7"
_NONE, _READ, _WRITE = 0, 1, 2


class _Sense(ctypes.Structure):
    _fields_ = (
        ("error_type", ctypes.c_ubyte),
        ("key", ctypes.c_int),
        ("ascq", ctypes.c_int),
        ("bits", ctypes.c_ubyte),
        ("bit_pointer", ctypes.c_ubyte),
        ("field_pointer", ctypes.c_uint16),
    )


class _Data(ctypes.Structure):
    _fields_ = (("size", ctypes.c_int), ("data", ctypes.POINTER(ctypes.c_ubyte)))


class _Task(ctypes.Structure):
    """The beginning of libiscsi's struct scsi_task."""

    _fields_ = (
        ("status", ctypes.c_int),
        ("cdb_size", ctypes.c_int),
        ("xfer_dir", ctypes.c_int),
        ("expxferlen", ctypes.c_int),
        ("cdb", ctypes.c_ubyte * 16),
        ("residual_status", ctypes.c_int),
        ("residual", ctypes.c_size_t),
        ("sense", _Sense),
        ("datain", _Data),
    )


@dataclass(frozen=True)
class _Answer:
    """How a command ended. sense : as SPC has it; residual : bytes that were asked for and did not come."""

    status: int
    key: int
    sense: bytes
    residual: int

    @property
    def is_filemark(self) -> bool:
        return bool(self.sense and self.sense[2] & 0x80)

    @property
    def is_near_end(self) -> bool:
        return bool(self.sense and self.sense[2] & 0x40)

    @property
    def is_of_other_length(self) -> bool:
        return bool(self.sense and self.sense[2] & 0x20)

    @property
    def information(self) -> int:
        return int.from_bytes(self.sense[3:7], "big", signed=True) if len(self.sense) > 6 else 0


def missing() -> str | None:
    """Why there is no virtual drive here; None: there can be."""
    if os.geteuid():
        return "tgtd is for root"
    for program in ("tgtd", "tgtadm", "tgtimg"):
        if shutil.which(program) is None:
            return "tgt is not installed"
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return "libiscsi is not installed"
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(folder: Path, n_tapes: int, size_mib: int) -> Iterator[list[str]]:
    """Serve blank tapes, each in a drive of its own; yields their names."""
    port, control = _free_port(), str(os.getpid() % 30_000 + 100)
    daemon = subprocess.Popen(
        ["tgtd", "-f", "--control-port", control, "--iscsi", f"portal=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def admin(*words: str) -> None:
        command = ["tgtadm", "--control-port", control, "--lld", "iscsi", *words]
        subprocess.run(command, check=True, capture_output=True)

    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        admin("--mode", "target", "--op", "new", "--tid", "1", "--targetname", TARGET)
        for lun in range(1, n_tapes + 1):
            path = folder / f"{lun}.image"
            size = ["--barcode", f"T{lun:05}", "--size", str(size_mib), "--type", "data", "--file", str(path)]
            subprocess.run(["tgtimg", "--op", "new", "--device-type", "tape", *size], check=True, capture_output=True)
            unit = ["--tid", "1", "--lun", str(lun), "-Y", "tape", "-b", str(path)]
            admin("--mode", "logicalunit", "--op", "new", *unit)
        admin("--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
        yield [f"127.0.0.1:{port}/{lun}" for lun in range(1, n_tapes + 1)]
    finally:
        daemon.kill()  # it stays for SIGTERM while it has targets
        daemon.wait()


class VirtualTape:
    """One drive, by the name that `served` gave."""

    room_bytes = None

    def __init__(self, name: str, *, writable: bool = False, size_bytes: object = None) -> None:
        self.name = name
        portal, _, lun = name.rpartition("/")
        self._lun = int(lun)
        self._lib = lib = ctypes.CDLL(_LIBRARY)
        for function in ("iscsi_create_context", "scsi_create_task", "iscsi_scsi_command_sync"):
            getattr(lib, function).restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(lib.iscsi_create_context(f"iqn.2026-11.client:{os.getpid()}.{lun}".encode()))
        lib.iscsi_set_targetname(self._context, TARGET.encode())
        lib.iscsi_set_session_type(self._context, 2)
        assert lib.iscsi_full_connect_sync(self._context, portal.encode(), self._lun) == 0, name
        self._scratch = memoryview(bytearray(16))
        #: of a record longer than half of what was asked for, this drive blanks a part
        self._room = memoryview(bytearray(1 << 20))
        self.is_near_end = False
        self.position = self.read_bytes = 0
        self.seek(0)

    def _command(self, cdb: bytes, way: int = _NONE, data: bytes = b"", room: memoryview | None = None) -> _Answer:
        """Run a command; returns what `_Answer` says."""
        lib, n_bytes = self._lib, len(room) if room is not None else len(data)
        task = ctypes.c_void_p(lib.scsi_create_task(len(cdb), cdb, way, n_bytes))
        its = ctypes.cast(task, ctypes.POINTER(_Task)).contents
        if room is not None:
            buffer = (ctypes.c_ubyte * n_bytes).from_buffer(room)
            lib.scsi_task_add_data_in_buffer(task, n_bytes, buffer)
        elif data:
            lib.scsi_task_add_data_out_buffer(task, n_bytes, data)
        done = lib.iscsi_scsi_command_sync(self._context, self._lun, task, None)
        assert done, f"no answer from {self.name}"
        sense = bytes(its.datain.data[: its.datain.size])[2:] if its.status and its.datain.size > 9 else b""
        key, residual = its.sense.key if its.status else 0, its.residual if its.residual_status else 0
        found = _Answer(its.status, key, sense, residual)
        lib.scsi_free_scsi_task(task)
        return found

    @staticmethod
    def _cdb(operation: int, flags: int, n: int) -> bytes:
        return bytes([operation, flags]) + n.to_bytes(3, "big") + b"\0"

    def read(self, out: memoryview) -> Found:
        """See Medium."""
        its = self._command(self._cdb(0x08, 0, len(self._room)), _READ, room=self._room)
        if its.key == BLANK_CHECK:
            return Found(Kind.END)
        assert its.key == 0, f"sense key {its.key}"
        self.position += 1
        if its.is_filemark:
            return Found(Kind.FILEMARK)
        n_bytes = len(self._room) - (its.information if its.is_of_other_length else its.residual)
        if n_bytes > len(out):
            return Found(Kind.BAD)
        out[:n_bytes] = self._room[:n_bytes]
        self.read_bytes += n_bytes
        return Found(Kind.RECORD, n_bytes)

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See Medium."""
        data = b"".join(pieces)
        self._written(self._command(self._cdb(0x0A, 0, len(data)), _WRITE, data))

    def settle(self) -> None:
        """Nothing waits."""

    def write_records(self, heads: np.ndarray, payload: memoryview) -> int:
        return 0

    def write_filemark(self, *, wait: bool) -> None:
        """See Medium."""
        self._written(self._command(self._cdb(0x10, 0 if wait else 1, 1)))

    def _written(self, its: _Answer) -> None:
        if its.key == VOLUME_OVERFLOW:
            raise MediumFullError
        assert its.key == 0, f"sense key {its.key}"
        self.is_near_end |= its.is_near_end
        self.position += 1

    def _pass_one(self) -> _Answer:
        """Pass one object: by a short READ, for this drive's SPACE does not tell a filemark from a record."""
        return self._command(self._cdb(0x08, 0, 16), _READ, room=self._scratch)

    def seek(self, position: int) -> None:
        """See Medium: from the beginning, object by object: it has no counter that can be asked."""
        if position < self.position or position == 0:
            assert self._command(bytes([0x01, 0, 0, 0, 0, 0])).status == 0
            self.position = 0
        while self.position < position:
            assert self._pass_one().key != BLANK_CHECK, f"{self.name} ends before object {position}"
            self.position += 1

    def seek_end(self) -> None:
        """See Medium."""
        while self._pass_one().key != BLANK_CHECK:
            self.position += 1

    def pass_filemark(self) -> bool:
        """See Medium."""
        while True:
            its = self._pass_one()
            if its.key == BLANK_CHECK:
                return False
            self.position += 1
            if its.is_filemark:
                return True

    def finish(self) -> None:
        """See Medium."""

    def close(self) -> None:
        """See Medium."""
        if self._context:
            self._lib.iscsi_logout_sync(self._context)
            self._lib.iscsi_destroy_context(self._context)
            self._context = ctypes.c_void_p()
