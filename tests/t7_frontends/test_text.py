"""What people read: escaped names, sizes, times, progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockplane as bp
from blockplane.cli.progress import ProgressLine, describe
from blockplane.cli.text import blocks, count, duration, iso, printable, rate, sentence


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", "plain"),
        ("with space", "with space"),
        ("grüße", "grüße"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\\nb", "a\\\\nb"),
        (b"\xff\xfe".decode("utf-8", "surrogateescape"), "\\xff\\xfe"),
        ("\u202eabc", "\\u202eabc"),
        ("\x9b0m", "\\u009b0m"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_names_are_shown_without_control_bytes(name, shown):
    assert printable(name) == shown


@given(st.binary(min_size=1, max_size=8), st.binary(min_size=1, max_size=8))
def test_no_name_reaches_a_terminal_raw_and_no_two_are_shown_alike(one, other):
    shown = [printable(raw.decode("utf-8", "surrogateescape")) for raw in (one, other)]
    assert all(c == " " or c.isprintable() for name in shown for c in name)
    assert (shown[0] == shown[1]) is (one == other)


def test_a_sentence_keeps_its_backslashes():
    assert sentence("C:\\x\n\x1b") == "C:\\x\\n\\x1b"


def test_figures():
    assert blocks(1) == "1 block (4 KiB)"
    assert blocks(262_144) == "262,144 blocks (1 GiB)"
    assert count(2, "entry", "entries") == "2 entries"
    assert [duration(s) for s in (0.5, 45, 600, 10_000)] == ["0.50 s", "45 s", "10 min 0 s", "2 h 46 min"]
    assert rate(1 << 30, 2) == "512 MiB/s"
    assert rate(1, 0) == "-"
    assert iso(1_000_000_000_123_456_789) == "2001-09-09T01:46:40.123456+00:00"


def test_progress_says_how_much_how_fast_and_how_long():
    event = bp.ProgressEvent("blocks", 1 << 30, 4 << 30, 2.0)
    assert describe(event) == "blocks: 1 GiB of 4 GiB (25 %), 512 MiB/s, 6.00 s left"
    assert describe(bp.ProgressEvent("put", 1 << 20, 0, 1.0)) == "put: 1 MiB, 1 MiB/s"


@pytest.mark.parametrize(("wanted", "seconds", "is_shown"), [(None, 5, False), (True, 5, True), (True, 0.5, False)])
def test_progress_is_for_terminals_and_for_what_takes_more_than_a_second(capsys, wanted, seconds, is_shown):
    with ProgressLine(wanted) as line:
        line(bp.ProgressEvent("blocks", 1, 2, seconds))
    assert (capsys.readouterr().err != "") is is_shown
