"""A view that is shown again and again while things go on: --watch."""

from __future__ import annotations

import sys
import time

import click
from click.core import ParameterSource

from blockplane.cli import console
from blockplane.cli.options import Interval

_CLEAR = "\x1b[H\x1b[2J"

watch_option = click.option(
    "--watch", "watch_s", type=Interval(), metavar="TIME", help="Show it anew so often, until interrupted: 2s."
)


def watch(every_s: float) -> None:
    """Run the verb at hand every so often, each time as if it had been typed: whoever has its volume then is asked.

    On a terminal each view takes the place of the one before; else they follow each other. Ends with the status of the
    first view that fails.

    Raises
    ------
    RefusedError: another process is to do it, whose end that would put off.
    """
    from blockplane.cli.main import run  # not above: it loads this module
    from blockplane.model.errors import RefusedError

    if console.streams_of() is not None:
        raise RefusedError("--watch is not done by another process", "ask again for each view")
    words = _words(click.get_current_context())
    while True:
        started = time.monotonic()
        if sys.stdout.isatty():
            print(_CLEAR, end="", flush=True)
        status = run(words)
        if status:
            raise click.exceptions.Exit(status)
        time.sleep(max(started + every_s - time.monotonic(), 0))


def _words(context: click.Context) -> list[str]:
    """Return the words of a verb as they were typed, but --watch."""
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif name != "watch_s" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            is_flag = isinstance(parameter, click.Option) and parameter.is_flag
            options += [parameter.opts[0]] if is_flag else [f"{parameter.opts[0]}={value}"]
    return [*context.command_path.split()[1:], *options, "--", *arguments]
