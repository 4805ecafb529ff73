"""Stored images: image save, image list, image delete."""

from __future__ import annotations

from collections.abc import Sequence

import click

import blockplane as bp
from blockplane.cli.completion import ExpressionWord, VolumeName
from blockplane.cli.images import ExpressionVerb
from blockplane.cli.naming import open_volume, volume_only
from blockplane.cli.options import json_option, wait_option
from blockplane.cli.text import blocks, iso, moment, print_json, print_table


@click.command(cls=ExpressionVerb)
@click.argument("vol", type=VolumeName())
@click.argument("name", metavar="NAME")
@click.argument("words", metavar="EXPR", nargs=-1, required=True, type=ExpressionWord())
@click.option("--with", "with_", metavar="NAMES", help="Allow these snapshots (commas), though no ancestors.")
@json_option
@wait_option
def save(vol: str, name: str, words: Sequence[str], with_: str | None, as_json: bool, wait_s: float) -> None:
    """Store an image: NAME stands for its definition, evaluated anew each time.

    The definition follows renamed snapshots. The plane that it has now is kept as VOL:/.planes/NAME.

    \b
    blockplane image save pool week 'june5 + june4 - june1'
    blockplane send pool week -o week.bps
    """
    with open_volume(volume_only(vol), "image save", wait_s, writable=True) as volume:
        allowed = [word for word in (with_ or "").replace(",", " ").split() if word]
        volume.save_image(name, " ".join(words).strip(), with_=allowed)
        made = next(image for image in volume.saved_images if image.name == name)
    if as_json:
        print_json(_describe(made))
    else:
        print(f"{name} is {made.definition}: {blocks(made.was_blocks)}")


@click.command("list")
@click.argument("vol", type=VolumeName())
@json_option
@wait_option
def list_(vol: str, as_json: bool, wait_s: float) -> None:
    """List stored images: what each is defined as, held when it was saved, holds now, and whether it can be sent."""
    with open_volume(volume_only(vol), "image list", wait_s, writable=False) as volume:
        found = volume.saved_images
    if as_json:
        print_json({"images": [_describe(image) for image in found]})
    elif not found:
        print("no stored images")
    else:
        rows = [["image", "saved", "blocks then", "now", "can be sent", "definition"]]
        for i in found:
            now = "?" if i.n_blocks is None else f"{i.n_blocks:,}"
            verdict = "yes" if i.is_sendable else f"no: {i.obstacle}"
            rows.append([i.name, moment(i.made_ns), f"{i.was_blocks:,}", now, verdict, i.definition])
        print_table(rows, right=(2, 3))


@click.command()
@click.argument("vol", type=VolumeName())
@click.argument("name", metavar="NAME")
@json_option
@wait_option
def delete(vol: str, name: str, as_json: bool, wait_s: float) -> None:
    """Drop a stored image; no snapshot changes."""
    with open_volume(volume_only(vol), "image delete", wait_s, writable=True) as volume:
        volume.delete_image(name)
    if as_json:
        print_json({"deleted": name})


def _describe(image: bp.SavedImage) -> dict[str, object]:
    return {
        "name": image.name,
        "definition": image.definition,
        "made": iso(image.made_ns),
        "was_blocks": image.was_blocks,
        "n_blocks": image.n_blocks,
        "sendable": image.is_sendable,
        "obstacle": image.obstacle or None,
    }


PAIRS = {("image", "save"): save, ("image", "list"): list_, ("image", "delete"): delete}
