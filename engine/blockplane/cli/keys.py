"""Key files of encrypted streams."""

from __future__ import annotations

import click

import blockplane as bp
from blockplane.cli.completion import HostPath
from blockplane.cli.options import json_option
from blockplane.cli.text import print_json, printable


@click.group(subcommand_metavar="VERB ...")
def key() -> None:
    """Make and look at key files, which encrypt streams."""


@key.command()
@click.argument("file", metavar="FILE", type=HostPath())
@json_option
def create(file: str, as_json: bool) -> None:
    """Make a key file that its owner alone may read.

    Keep a copy elsewhere: what was encrypted with it cannot be read without. FILE must not exist.

    \b
    blockplane key create backup.key
    blockplane send pool june1 -o june1.bps --encrypt backup.key
    blockplane receive copy -i june1.bps --key backup.key
    """
    made = bp.create_key(file)
    if as_json:
        print_json({"file": file, "key_id": made.id.hex()})
    else:
        print(f"{printable(file)} holds the key of id {made.id.hex()}; keep a copy of it elsewhere")


@key.command()
@click.argument("file", metavar="FILE", type=HostPath())
@json_option
def info(file: str, as_json: bool) -> None:
    """Show the id of a key, which streams name."""
    found = bp.read_key(file)
    if as_json:
        print_json({"file": file, "key_id": found.id.hex()})
    else:
        print(f"{printable(file)} holds the key of id {found.id.hex()}")


VERBS = (key,)
