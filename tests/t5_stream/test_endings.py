"""What streams are written to and read from by descriptors and objects: what these say, and fail to do, is believed."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from blockplane.model.errors import KeyFileError, StreamError
from blockplane.stream import behind, keyfile
from blockplane.stream.fdsink import FdSink
from blockplane.stream.input import FdInput
from blockplane.stream.sink import ObjectSink, SocketSink


def fails(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_descriptor_that_cannot_be_synced_is_not_durable(tmp_path, monkeypatch):
    with open(tmp_path / "x", "wb") as file:
        sink = FdSink(file.fileno(), "x")
        sink.write_all([b"data"])
        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(StreamError, match="cannot write x: Input/output error"):
            sink.commit()


def test_a_pipe_is_not_synced(monkeypatch):
    monkeypatch.setattr(os, "fsync", fails)
    reading, writing = os.pipe()
    FdSink(writing, "pipe", owned=True).commit()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("kind", ["ours", "the caller's", "socket"])
def test_a_write_that_is_stuck_when_all_is_given_up_goes_to_no_other_file(tmp_path, monkeypatch, kind):
    """Its number is another file's by the time that the reader takes more: a native loop knows nothing else of it."""
    monkeypatch.setattr(behind, "PATIENCE_S", 0.01)
    if kind == "socket":
        ours, theirs = socket.socketpair()
        sink, number, reading = SocketSink(ours), ours.fileno(), theirs.detach()
    else:
        reading, number = os.pipe()
        sink = FdSink(number, "pipe", owned=kind == "ours")
    before = set(threading.enumerate())
    writer = behind.BehindSink(sink)
    (thread,) = set(threading.enumerate()) - before
    writer.write_all([bytes(4096)] * 2000)
    n_read = len(os.read(reading, 1))  # it writes
    writer.close()
    assert thread.is_alive()
    sink.close()
    if kind == "socket":
        ours.close()
    elif kind == "the caller's":
        os.close(number)
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    os.dup2(other, number)
    while data := os.read(reading, 1 << 20):
        n_read += len(data)
    thread.join()
    assert (n_read, os.path.getsize(tmp_path / "other")) == (4096 * 2000, 0)
    for fd in {other, number, reading}:
        os.close(fd)


def test_a_key_whose_folder_cannot_be_synced_is_not_made(tmp_path, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    keyfile.create_key(tmp_path / "good")
    assert synced == [str(tmp_path / "good"), str(tmp_path)]
    monkeypatch.setattr(os, "fsync", lambda fd: fails(fd) if os.path.isdir(f"/proc/self/fd/{fd}") else None)
    with pytest.raises(KeyFileError, match="cannot write"):
        keyfile.create_key(tmp_path / "bad")
    assert os.listdir(tmp_path) == ["good"]


class Says:
    """Takes all of what is written, and says something else."""

    def __init__(self, said: int | None) -> None:
        self.said, self.taken = said, b""

    def write(self, data) -> int | None:
        assert len(self.taken) < 100, "it is written the same again and again"
        self.taken += bytes(data)
        return self.said


def test_an_object_that_does_not_say_how_much_it_took_took_all():
    taking = Says(None)
    ObjectSink(taking).write_all([b"one", b"two"])
    assert taking.taken == b"onetwo"


@pytest.mark.parametrize("said", [0, -1, 4])
def test_an_object_that_took_what_cannot_be_is_an_error(said):
    with pytest.raises(StreamError, match=f"says that it took {said} of 3 bytes"):
        ObjectSink(Says(said)).write_all([b"one"])


def test_a_pipe_that_does_not_wait_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    threading.Timer(0.2, lambda: (os.write(writing, b"abc"), os.close(writing))).start()
    room = bytearray(5)
    assert FdInput(reading, "pipe").read_into([memoryview(room)]) == 3
    assert bytes(room) == b"abc\0\0"
    os.close(reading)


def test_what_takes_a_seek_and_does_not_move_is_read_past():
    """A character device: where it ends, only reading shows."""
    with open("/dev/zero", "rb", buffering=0) as zero, open("/dev/null", "rb", buffering=0) as null:
        assert FdInput(zero.fileno(), "zero").skip(4096) == 4096
        assert FdInput(null.fileno(), "null").skip(4096) == 0
