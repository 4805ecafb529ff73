"""Images: what they hold, and the words that choose one."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

import blockplane as bp
from blockplane.cli.completion import ExpressionWord, HostPath, VolumeName
from blockplane.cli.naming import open_volume, volume_only
from blockplane.cli.options import (
    json_option,
    key_option,
    wait_option,
)
from blockplane.cli.parts import describe_reach, part_option, parts_of, print_reach, print_shown, shown_parts
from blockplane.cli.text import blocks, print_json, print_table, printable

if TYPE_CHECKING:
    pass


class ExpressionVerb(click.Command):
    """A verb whose words are an expression: one that begins with an operator is not taken for an option."""

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """Give `- june1` and the like a blank in front, unless an option before it wants it as its value."""
        takers = {name for option in self.params if isinstance(option, click.Option) and not option.is_flag
                  for name in option.opts}  # fmt: skip
        before = ["", *words]
        shifted = [
            f" {word}" if _OPERATOR_FIRST.match(word) and before[at] not in takers else word
            for at, word in enumerate(words)
        ]
        return super().parse_args(context, shifted)


_OPERATOR_FIRST = re.compile(r"-[^\w-]")
EXPRESSION = click.argument("words", metavar="EXPR", nargs=-1, required=True, type=ExpressionWord())


@dataclass(frozen=True, slots=True)
class Choice:
    """What was said about the terms of an image beside its expression."""

    older: Literal["all"] | Sequence[str] = ()
    with_: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def image(self, volume: bp.Volume, words: Sequence[str], *, allow_active: bool = False) -> bp.Image:
        """Return the image of an expression and the choice."""
        return volume.image(
            _joined(words),
            older=self.older,
            with_=self.with_,
            include=self.include,
            exclude=self.exclude,
            allow_active=allow_active,
        )


def choice_options(function: Callable[..., object]) -> Callable[..., object]:
    """Add the options that choose terms; the verb takes them as `choice`."""

    @functools.wraps(function)
    def wrapped(
        *arguments: object,
        older: str | None,
        with_: str | None,
        include: str | None,
        exclude: str | None,
        **options: object,
    ) -> object:
        lists = [tuple(_names(text)) for text in (older, with_, include, exclude)]
        choice = Choice("all" if older == "all" else lists[0], *lists[1:])
        return function(*arguments, choice=choice, **options)

    found: Callable[..., object] = wrapped
    for names, metavar, text in reversed(_CHOICES):
        found = click.option(*names, metavar=metavar, type=ExpressionWord(), help=text)(found)
    return found


_CHOICES = (
    (("--older",), "all|NAMES", "Add these older snapshots, or all that the base lacks."),
    (("--with", "with_"), "NAMES", "Allow these snapshots (commas), though no ancestors."),
    (("--include",), "NAMES", "Of the ranges in EXPR take only these snapshots."),
    (("--exclude",), "NAMES", "Of the ranges in EXPR leave these snapshots out."),
)


def _joined(words: Sequence[str]) -> str:
    """Return the expression that words make, unquoted or in one piece."""
    return " ".join(words).strip()


def _names(text: str | None) -> list[str]:
    return [name for name in re.split(r"[,\s]+", text) if name] if text else []


@click.command(cls=ExpressionVerb)
@click.argument("vol", type=VolumeName())
@EXPRESSION
@choice_options
@part_option
@click.option("--at", type=HostPath(), metavar="FILE[,FILE...]", help="What these streams, or a folder, have of it.")
@key_option
@click.option("--freed", is_flag=True, help="EXPR names snapshots: what deleting all of them would free.")
@json_option
@wait_option
def image(
    vol: str,
    words: Sequence[str],
    choice: Choice,
    parts: Sequence[str],
    at: str | None,
    keys: Sequence[str],
    freed: bool,
    as_json: bool,
    wait_s: float,
) -> None:
    """Say exactly what an image holds; `image save`, `list`, `delete` store images, `image plan` plans levels of them.

    No block of it is read. A volume called `plan` is ./plan, and so on.

    \b
    blockplane image pool 'june5 - june3'
    blockplane image pool 'june5 + june4 - june3'
    blockplane image pool 'june5 ^ june3'              what one of the two has alone
    blockplane image pool 'june1..june9' --exclude june3,june4
    blockplane image pool --freed june3 june4
    blockplane image pool june9 --part fast.bps='meta(june9) + (june9 - june2)' --part slow.bps

    blockplane image pool june9 --at fast.bps

    With --part it says what each stream of a send in parts would have, and of which snapshots; with --at what of the
    image can be read from streams at hand, and what is in parts that are not.
    """
    with open_volume(volume_only(vol), "image", wait_s, writable=False) as volume:
        if freed:
            if choice != Choice() or parts or at is not None:
                raise bp.errors.UsageError("--freed takes names and ranges alone", "leave the other options out")
            _freed(volume, words, as_json)
            return
        found = choice.image(volume, words, allow_active=True)
        shown = shown_parts(found, parts_of(parts)) if parts else []
        there = bp.reach(found, *at.split(","), key=keys) if at is not None else None
        if as_json:
            more: dict[str, object] = {"parts": shown} if parts else {}
            print_json(describe_image(found) | more | ({"at": describe_reach(there)} if there is not None else {}))
        else:
            _print_image(volume, found)
            print_shown(shown)
            if there is not None:
                print_reach(there)


def _freed(volume: bp.Volume, words: Sequence[str], as_json: bool) -> None:
    found = volume.freeing(*_snapshots_in(volume, " ".join(words)))
    if as_json:
        print_json(describe_freeing(found))
        return
    print(f"deleting {', '.join(found.names)} would free {blocks(found.n_blocks)}")
    if len(found.names) > 1:
        print_table([[f"  {name} alone", blocks(n_blocks)] for name, n_blocks in found.alone.items()])
    for disk, n_blocks in zip(volume.array.disks, found.blocks_per_disk, strict=True):
        print(f"  {printable(disk.path)}: {blocks(n_blocks)}")


def _snapshots_in(volume: bp.Volume, text: str) -> list[str]:
    """Return the snapshots that names and ranges, joined by blanks, commas or +, stand for; each once."""
    names: list[str] = []
    for word in _names(text.replace("+", " ")):
        if word in ("-", "&", "^") or "(" in word or ")" in word:
            hint = "name snapshots, or ranges: june3 june5..june8"
            raise bp.errors.UsageError(f"{word!r} does not say which snapshots are to go", hint)
        first, dots, last = word.partition("..")
        names += volume.snapshot_range(first, last) if dots else [word]
    return list(dict.fromkeys(names))


def describe_freeing(found: bp.Freeing) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "snapshots": list(found.names),
        "freed_blocks": found.n_blocks,
        "freed_bytes": found.n_bytes,
        "blocks_per_disk": list(found.blocks_per_disk),
        "alone_blocks": found.alone,
    }


def describe_image(found: bp.Image) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "expression": str(found),
        "n_blocks": found.n_blocks,
        "n_bytes": found.n_bytes,
        "blocks_per_disk": found.blocks_per_disk,
        "top": found.top.name if found.top is not None else None,
        "base": found.base.name if found.base is not None else None,
        "complete": found.complete,
        "sendable": not found.why_not_sendable,
        "arriving": [record.name for record in found.arriving],
        "left_out": [record.name for record in found.left_out],
        "dropped_blocks": len(found.dropped),
    }


def _print_image(volume: bp.Volume, found: bp.Image) -> None:
    top = found.top.name if found.top is not None else "the live file system"
    print(f"image      {found}")
    print(f"holds      {blocks(found.n_blocks)}")
    print(f"top        {top}" + ("" if found.complete else " (not whole: it cannot be sent)"))
    if found.base is not None:
        print(f"base       {found.base.name}, of which {blocks(len(found.dropped))} go")
    print(f"arriving   {', '.join(record.name for record in found.arriving) or 'no snapshot'}")
    if found.left_out:
        print(f"left out   {', '.join(record.name for record in found.left_out)}")
    if found.complete and found.why_not_sendable:
        print(f"not to be sent: {found.why_not_sendable}")
    for disk, n_blocks in zip(volume.array.disks, found.blocks_per_disk, strict=True):
        print(f"  {printable(disk.path)}: {blocks(n_blocks)}")


VERBS = (image,)
