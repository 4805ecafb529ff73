"""Interrupted transfers: the token that says what is there, and giving it up."""

from __future__ import annotations

import os
import sys

import blockplane as bp
from blockplane.cli.naming import CONFIG_NAME, open_volume
from blockplane.cli.text import blocks, count, print_json, printable


def print_token(place: str, top: str | None, wait_s: float, as_json: bool) -> None:
    """Write the token of an interrupted receive, by default the last, to standard output; --json says what it holds."""
    if not as_json and (sys.stdout is None or sys.stdout.isatty()):
        raise bp.errors.UsageError("a token is not written to a terminal", "redirect it: receive VOL --have > TOKEN")
    with open_volume(place, "receive --have", wait_s, writable=True) as volume:
        token = bp.resume_token(volume, top)
        others = [each for each in bp.interrupted_receives(volume) if each.image_id != token.image_id]
    if as_json:
        print_json(
            {
                "top": token.top_name,
                "image_id": token.image_id.hex(),
                "n_blocks": token.n_image,
                "copied_blocks": token.n_copied,
                "left_blocks": token.n_left,
                "left_bytes": token.n_left * bp.BLOCK_BYTES,
                "others": [
                    {"top": its.top_name, "image_id": its.image_id.hex()} for its in others if not its.is_running
                ],
            }
        )
        return
    data = memoryview(token.encode())
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
    has = f"{printable(place)} has {count(token.n_copied, 'block')} of {token.top_name}"
    print(f"{has}; {blocks(token.n_left)} are left", file=sys.stderr)
    names = [f"{its.top_name} (image id {its.image_id.hex()})" for its in others if not its.is_running]
    if names and top is None:
        print(f"interrupted before it: {', '.join(names)}; for one of them say --of NAME", file=sys.stderr)


def give_up(place: str, top: str | None, wait_s: float, as_json: bool) -> None:
    """Give up what interrupted receives have left: all of them, or one."""
    n_blocks = bp.abort_receive(place, opened=open_volume(place, "receive --abort", wait_s, writable=True), top=top)
    if as_json:
        print_json({"freed_blocks": n_blocks, "removed_volume": not os.path.exists(os.path.join(place, CONFIG_NAME))})
    elif not os.path.exists(place):
        print(f"{printable(place)} is gone: an interrupted receive had made it")
    elif not os.path.exists(os.path.join(place, CONFIG_NAME)):
        print(f"the volume in {printable(place)} is gone: an interrupted receive had made it; the folder stays")
    else:
        print(f"gave up what was incoming: {blocks(n_blocks)} are free again")


def describe_interrupted(volume: bp.Volume) -> list[dict[str, object]]:
    """Return the interrupted receives as JSON shows them."""
    return [
        {
            "top": its.top_name,
            "image_id": its.image_id.hex(),
            "n_blocks": its.n_image,
            "landed_blocks": its.n_landed,
            "landed_is_lower_bound": True,
            "running": its.is_running,
        }
        for its in bp.interrupted_receives(volume)
    ]
