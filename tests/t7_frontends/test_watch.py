"""`--watch`: a view again and again, whoever has the volume then, until somebody has seen enough."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

import blockplane as bp

BLOCKPLANE = (sys.executable, "-m", "blockplane")
VIEWS = (("replicas",), ("mirror", "status"))


@contextlib.contextmanager
def watching(*words, stdout=subprocess.PIPE):
    with subprocess.Popen([*BLOCKPLANE, *words], stdout=stdout, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def opened(pool):
    """Open a volume between two views."""
    while True:
        with contextlib.suppress(bp.errors.VolumeInUseError):
            return bp.Volume.open(pool, verb="a test", answers=True)


@pytest.mark.parametrize("verb", VIEWS)
def test_a_line_each_time_for_programs(pool, verb):
    with watching(*verb, pool, "--json", "--watch", "0.05s") as process:
        views = [json.loads(process.stdout.readline()) for _ in range(3)]
        with opened(pool) as volume, bp.serve_control(volume):  # who has the volume meanwhile is asked
            views += [json.loads(process.stdout.readline()) for _ in range(3)]
        views += [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read().strip() == b""
    assert all(view == views[0] for view in views)


def test_a_view_takes_the_place_of_the_one_before_on_a_terminal(pool):
    master, slave = os.openpty()
    with watching("replicas", pool, "--watch", "0.05s", stdout=slave) as process:
        shown = b""
        while shown.count(b"no replicas") < 2:
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert shown.startswith(b"\x1b[H\x1b[2Jno replicas\r\n\x1b[H\x1b[2Jno replicas")
    os.close(master)
    os.close(slave)


def test_the_first_view_that_fails_is_the_last(pool, blockplane):
    missing = blockplane("replicas", f"{pool}x", "--watch", "1s")
    assert (missing.status, missing.err.count("does not exist")) == (1, 1), missing.err
    both = blockplane("replicas", pool, "--watch", "1s", "--limit", "7d")
    assert (both.status, "change it first" in both.err) == (2, True), both.err
    with bp.Volume.open(pool, writable=False) as volume:
        assert volume.replica_limit_s == 0


@pytest.mark.parametrize(
    ("words", "option"),
    [(("mirror", "status"), "--watch"), (("replicas",), "--watch"), (("replicate", "far"), "--every")],
)
def test_without_a_pause_is_refused(pool, blockplane, words, option):
    found = blockplane(*words, pool, option, "0s")
    assert (found.status, "every 0 s would be without a pause" in found.err) == (2, True), found.err
