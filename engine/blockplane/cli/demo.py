"""The verb demo."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

import blockplane as bp
from blockplane.cli.completion import HostPath
from blockplane.cli.demonstration import demonstrate
from blockplane.cli.options import json_option
from blockplane.cli.text import duration, print_json, sentence


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=HostPath())
@click.option("--keep", type=HostPath(), metavar="PLACE", help="Work in PLACE (empty or absent), and leave all there.")
@json_option
def demo(directory: str | None, keep: str | None, as_json: bool) -> int:
    """Show the main job on real data.

    In a temporary place: a volume, the data (DIR, or Python's own library), snapshots, a full and an incremental
    send, a receive on another geometry, the proof that both sides are equal, a check of both, and the figures.

    Exit status 1 when anything differs.
    """
    tell = (lambda line: None) if as_json else _say
    if keep is not None:
        place = Path(keep)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise bp.errors.RefusedError(f"{keep} is not empty", "name a directory that is empty or does not exist")
        place.mkdir(parents=True, exist_ok=True)
        found = demonstrate(directory, place, tell)
    else:
        with tempfile.TemporaryDirectory(prefix="blockplane-demo-") as name:
            found = demonstrate(directory, Path(name), tell)
    if as_json:
        print_json({**found.figures, "problems": found.problems})
    else:
        for problem in found.problems:
            print(sentence(problem))
        seconds = found.figures["seconds"]
        verdict = "everything equal" if found.ok else "NOT EQUAL"
        print(f"{verdict}, in {duration(float(str(seconds)))}" + (f"; all of it is in {keep}" if keep else ""))
    return 0 if found.ok else 1


def _say(line: str) -> None:
    print(sentence(line), flush=True)


VERBS = (demo,)
