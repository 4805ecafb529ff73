"""Shell completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

import blockplane as bp

VARIABLE = "_BLOCKPLANE_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a completion script.

    \b
    eval "$(blockplane completion bash)"
    """
    found = get_completion_class(shell)
    if found is None:
        raise bp.errors.UsageError(f"no completion for {shell}")
    print(found(context.find_root().command, {}, "blockplane", VARIABLE).source())


VERBS = (completion,)
