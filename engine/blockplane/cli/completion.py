"""Shell completion: what each kind of argument is completed with, and the scripts that shells load.

Nothing that is looked up may fail or be heard: a volume that cannot be read, or is in use, offers nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

import blockplane as bp
from blockplane.cli.naming import open_files, open_volume, parse_target

VARIABLE = "_BLOCKPLANE_COMPLETE"
_MAX_OFFERED = 1000

Items = list[CompletionItem[Any]]


class HostPath(click.Path):
    """A file or directory of the host; that it cannot be read is found when it is."""

    def __init__(self) -> None:
        super().__init__(readable=False)


class PeerName(HostPath):
    """A volume's directory, or HOST:PORT/NAME."""

    def shell_complete(self, context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type="dir")]


class VolumeName(PeerName):
    """VOL: a directory; of a verb that calls no other machine."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Refuse what names a volume of another machine, which is no good name for one here."""
        from blockplane.model.places import is_remote

        if isinstance(value, str) and is_remote(value):
            raise bp.errors.UsageError(
                f"{value} is on another machine, and this verb works on volumes here",
                f"a directory that is called so is ./{value}; over the network go `replicate`, `mirror` and streams",
            )
        return super().convert(value, parameter, context)


class SnapshotName(HostPath):
    """VOL@SNAP: behind the `@` a snapshot of the volume."""

    def shell_complete(self, context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
        """Offer directories, or snapshots."""
        place, at, _ = incomplete.rpartition("@")
        if not at or "/" in incomplete[len(place) :]:
            return [CompletionItem(incomplete, type="dir")]
        return _items(f"{place}@{name}" for name in snapshot_names(place) if f"{place}@{name}".startswith(incomplete))


class FileName(SnapshotName):
    """VOL[@SNAP]:/PATH or FILE.bps:/PATH: behind the `:/` what lies there."""

    def shell_complete(self, context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
        """Offer entries of a directory, snapshots, or files of the host."""
        place, inside, path = incomplete.partition(":/")
        if inside:
            return _items(found for found in file_names(place, path) if found.startswith(incomplete))
        found = super().shell_complete(context, parameter, incomplete)
        return found if "@" in incomplete else [CompletionItem(incomplete, type="file")]


class ExpressionWord(click.types.StringParamType):
    """A word of an image expression over the snapshots of the volume named before it."""

    def shell_complete(self, context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
        """Offer snapshots for the name that the word ends in."""
        head, begun = re.fullmatch(r"(.*?(?:\.\.)?)((?:(?!\.\.)[\w.:-])*)", incomplete, re.DOTALL).groups()  # type: ignore[union-attr]
        names = snapshot_names(str(context.params.get("vol") or ""))
        return _items(head + name for name in names if name.startswith(begun))


def _items(values: Any) -> Items:
    """Return what can be typed as it is: no blanks, no control characters."""
    return [CompletionItem(value) for value in values if value.isprintable() and " " not in value][:_MAX_OFFERED]


def _quietly(look: Callable[[], list[str]]) -> list[str]:
    try:
        return look()
    except (bp.BlockplaneError, OSError):
        return []


def snapshot_names(place: str) -> list[str]:
    """Return the names of a volume's snapshots and pointers; none where they cannot be read now."""

    def look() -> list[str]:
        with open_volume(place, "completion", 0.0, writable=False) as volume:
            return [*(s.name for s in volume.snapshots), *(pointer.name for pointer in volume.pointers)]

    return _quietly(look)


def file_names(place: str, path: str) -> list[str]:
    """Return what lies in the directory part of a path in a volume, snapshot or stream, spelled as one types it."""
    above = path.rpartition("/")[0]
    head = f"{place}:/{above}/" if above else f"{place}:/"

    def look() -> list[str]:
        with open_files(parse_target(head), "completion", 0.0) as files:
            directory = f"/{above}"
            return [f"{head}{entry.name}{'/' * entry.is_dir()}" for entry in files.scandir(directory)]

    return _quietly(look)


class _Bash(BashComplete):
    """Bash, which takes words apart at `@` and `:`; they are put together here, and what it holds already is left out.

    COMP_WORDS is the line up to the cursor, COMP_WORDBREAKS where bash cuts.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value

    response=$(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
%(complete_var)s=bash_complete $1)

    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
            [[ $value == */ ]] && compopt -o nospace
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the whole words before the cursor, and the one it stands in."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        if line[-1:].isspace() and not (words and words[-1][-1:].isspace()):  # an open quote keeps its blanks
            words.append("")
        return words[1:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> Items:
        """Return completions less what stands before the last place where bash cuts."""
        breaks = [at for at, c in enumerate(incomplete) if c in "@:" and c in os.environ.get("COMP_WORDBREAKS", "")]
        found = super().get_completions(args, incomplete)
        if breaks:
            for item in found:
                item.value = item.value[breaks[-1] + 1 :] if item.type == "plain" else item.value
        return found


add_completion_class(_Bash, "bash")


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
