"""Stream files: info and verify."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

import blockplane as bp
from blockplane.cli.completion import HostPath
from blockplane.cli.options import json_option, key_option, progress_option, require_encrypted_option, wait_option
from blockplane.cli.progress import ProgressLine
from blockplane.cli.streamplaces import opened_streams
from blockplane.cli.text import blocks, count, duration, iso, moment, print_json, printable, rate, sentence, size

if TYPE_CHECKING:
    from blockplane.server.streamplace import VolumePlace
    from blockplane.stream import Envelope, StreamMap
    from blockplane.transfer import StreamVerdict

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only in later releases


@click.group(subcommand_metavar="VERB ...")
def stream() -> None:
    """Look into stream files without a volume."""


@stream.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=HostPath())
@key_option
@json_option
@wait_option
def info(files: Sequence[str], keys: Sequence[str], as_json: bool, wait_s: float) -> None:
    """Show what streams say about themselves: image, snapshots, base, order, compression.

    Of an encrypted one without its key: ids, who wrote it, and the id of the key.

    --json: an object; of several streams {"streams": [...]}.
    """
    with opened_streams(files, "stream info", wait_s) as streams:
        found = [_looked_into(stream, keys) for stream in streams]
    if not as_json:
        for file, its in zip(files, found, strict=True):
            _print_one(file, its)
    elif len(files) == 1:
        print_json(_described(found[0]))
    else:
        print_json({"streams": [{"file": file, **_described(its)} for file, its in zip(files, found, strict=True)]})


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known of a stream.

    shown : what an encrypted one shows without its key. map : None where the key was not named.
    """

    shown: Envelope | None
    map: StreamMap | None


def _looked_into(file: str | VolumePlace, keys: Sequence[str]) -> _Look:
    is_read_once = isinstance(file, str) and os.path.exists(file) and not os.path.isfile(file)
    shown = None if is_read_once else bp.stream_envelope(file)
    return _Look(shown, None if shown is not None and not keys else bp.stream_map(file, key=keys))


def _described(look: _Look) -> dict[str, object]:
    key_id = look.shown.key_id.hex() if look.shown is not None else None
    if look.map is not None:
        return {**_described_map(look.map), "encrypted": key_id is not None, "key_id": key_id}
    shown = look.shown
    assert shown is not None, "a stream that is not encrypted has a map"
    return {
        "writer": shown.writer,
        "space_id": shown.space_id.hex(),
        "top_id": shown.top_id.hex(),
        "base_id": shown.base_id.hex() if any(shown.base_id) else None,
        "created": iso(shown.created_ns),
        "encrypted": True,
        "key_id": key_id,
    }


def _described_map(found: StreamMap) -> dict[str, object]:
    header = found.header
    return {
        "writer": header.writer,
        "image_id": header.image_id.hex(),
        "space_id": header.space_id.hex(),
        "space_blocks": header.space_blocks,
        "n_blocks": header.image_blocks,
        "n_bytes": header.image_blocks * bp.BLOCK_BYTES,
        "following_blocks": header.following_blocks,
        "part": header.part,
        "n_parts": header.n_parts,
        "carried_id": header.carried_id.hex() if any(header.carried_id) else None,
        "dropped_blocks": header.dropped_blocks,
        "after_blocks": header.after_blocks,
        "order": header.order,
        "locations": header.locations.name.lower(),
        "compressed": _is_compressed(found),
        "created": iso(header.created_ns),
        "top": found.top.name,
        "base": found.base.name if found.base is not None else None,
        "sections": list(found.sections),
        "lender": found.lender.name if found.lender is not None else None,
        "snapshots": [
            {"name": record.name, "id": record.id.hex(), "role": role.name.lower(), "n_blocks": record.n_blocks}
            for record, role in found.snapshots
        ],
    }


def _is_compressed(found: StreamMap) -> bool:
    """Whether frames may be: with zstd, the one way there is."""
    return found.header.may_be_compressed


def _print_one(file: str, look: _Look) -> None:
    if look.map is not None:
        _print_map(file, look.map)
    elif look.shown is not None:
        shown = look.shown
        print(f"stream     {printable(file)}, by {printable(shown.writer)}, {moment(shown.created_ns)}")
        print(f"top        id {shown.top_id.hex()}")
        print(f"base       id {shown.base_id.hex()}" if any(shown.base_id) else "base       none: a full image")
    if look.shown is not None:
        print(f"encrypted  with the key of id {look.shown.key_id.hex()}")


def _print_map(file: str, found: StreamMap) -> None:
    header = found.header
    implicit = ", locations implicit" if header.locations.name == "IMPLICIT" else ""
    zstd = ", zstd" if _is_compressed(found) else ""
    print(f"stream     {printable(file)}, by {printable(header.writer)}, {moment(header.created_ns)}")
    form = f"{header.order} order{implicit}{zstd}"
    print(f"image      {blocks(header.image_blocks)} in {form}, id {header.image_id.hex()}")
    if found.lender is not None:
        print(f"follows    {blocks(header.following_blocks)}: all else is in {found.lender.name} at its destination")
    elif header.is_one_of_parts:
        part = f"part {header.part + 1} of {header.n_parts}; the others are in other streams"
        print(f"follows    {blocks(header.following_blocks)}: {part}")
    elif header.is_part:
        of = f", which began with another image (id {header.carried_id.hex()})" if any(header.carried_id) else ""
        print(f"follows    {blocks(header.following_blocks)}: the rest of an interrupted transfer{of}")
    print(f"top        {found.top.name}")
    base = found.base
    print("base       none: a full image" if base is None else f"base       {base.name}, id {base.id.hex()}")
    for name in found.sections:
        print(f"section    {name}, which this release does not know and does without")
    for record, role in found.snapshots:
        what = role.name.lower().replace("_", " ")
        print(f"  {record.name}: {what}, {blocks(record.n_blocks)}, id {record.id.hex()}")


class Part(_ParamType):
    """K/N: the K-th of N parts, from 1."""

    name = "part"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        """Return (k, n); anything else is a usage error."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value) if isinstance(value, str) else None
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is not K/N, from 1/N to N/N, N up to 999,999", parameter, context)
        return int(match[1]), int(match[2])


@stream.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=HostPath())
@click.option("--part", type=Part(), metavar="K/N", help="Of the blocks read only the K-th of N parts.")
@key_option
@require_encrypted_option
@json_option
@wait_option
@progress_option
def verify(
    files: Sequence[str],
    part: tuple[int, int] | None,
    keys: Sequence[str],
    require_encrypted: bool,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> int:
    """Read streams whole and hold every byte against its checksums.

    The FILEs, in any order, or a folder of them, are also proved to be a whole chain: every block of every snapshot
    that they bring is in one of them. With --part the blocks of one of N parts of the bytes are read, and all else:
    parts may be done one by one, when there is time. Exit status 1 when something is wrong.

    \b
    blockplane stream verify june1.bps june2.bps june3.bps
    blockplane stream verify --part 3/7 backups
    """
    with opened_streams(files, "stream verify", wait_s) as streams, ProgressLine(progress) as line:
        verdict = bp.verify_streams(*streams, part=part, key=keys, require_encrypted=require_encrypted, progress=line)
    tell_plain(keys, verdict.plain)
    if as_json:
        print_json(
            {
                "ok": verdict.ok,
                "problems": verdict.problems,
                "n_blocks": verdict.n_blocks,
                "verified_blocks": verdict.verified_blocks,
                "part": f"{part[0]}/{part[1]}" if part is not None else None,
                "stream_bytes": verdict.stream_bytes,
                "seconds": verdict.seconds,
                "snapshots": verdict.snapshots,
                "order": verdict.order,
                "proved": verdict.proved,
                "branches": verdict.branches,
                "repeated": verdict.repeated,
            }
        )
    else:
        _print_verdict(files, verdict)
    return 0 if verdict.ok else 1


def tell_plain(keys: Sequence[str], names: Sequence[str]) -> None:
    """Say on standard error which streams are not encrypted, where a key was named for them."""
    if keys and names:
        which = ", ".join(printable(name) for name in names)
        are, was = ("is", "it") if len(names) == 1 else ("are", "them")
        what = f"{which} {are} not encrypted: no key says who wrote {was}"
        print(f"blockplane: {what}; --require-encrypted refuses that", file=sys.stderr)


def _print_verdict(files: Sequence[str], verdict: StreamVerdict) -> None:
    for problem in verdict.problems:
        print(sentence(problem))
    if verdict.ok and verdict.order != list(files) and len(verdict.order) > 1:
        print(f"order      {', '.join(printable(name) for name in verdict.order)}")
    if verdict.repeated:
        print(f"twice      {', '.join(printable(name) for name in verdict.repeated)}")
    if verdict.branches:
        print(f"branches   {', '.join(verdict.branches)}")
    if verdict.proved:
        print(f"whole      {', '.join(verdict.proved)}")
    if verdict.branches:
        chain = f", but of {len(verdict.branches)} branches, of which a volume takes one"
    else:
        chain = ", a complete chain" if len(verdict.order) > 1 else ""
    part = (
        f", {blocks(verdict.verified_blocks)} read as part {verdict.part[0]} of {verdict.part[1]}"
        if verdict.part
        else ""
    )
    print(
        f"{'ok' + chain if verdict.ok else 'DAMAGED'}: {count(len(verdict.order), 'stream')}, "
        f"{blocks(verdict.n_blocks)}{part}, {size(verdict.stream_bytes)} in {duration(verdict.seconds)} "
        f"({rate(verdict.stream_bytes, verdict.seconds)})"
    )


VERBS = (stream,)
