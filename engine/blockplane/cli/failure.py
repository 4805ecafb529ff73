"""From an exception to one line, a hint and an exit status."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

import blockplane as bp
from blockplane.cli.text import sentence

USAGE_STATUS = 2
BROKEN_PIPE_STATUS = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, for people and for programs."""

    kind: str
    message: str
    hint: str
    exit_status: int


def failure_of(error: Exception) -> Failure:
    """Describe an exception."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return Failure("help", error.format_message(), "", USAGE_STATUS)
    if isinstance(error, click.ClickException):
        return Failure("usage", error.format_message(), _usage_hint(error), USAGE_STATUS)
    if isinstance(error, bp.BlockplaneError):
        return Failure(error.kind, error.message, error.hint, error.exit_status)
    if isinstance(error, OSError):
        return Failure("os", _os_message(error), "", 1)
    if isinstance(error, MemoryError):
        return Failure("memory", "there is not enough memory", "", 1)
    if bp.errors.is_lack_of_threads(error):
        return Failure("threads", bp.errors.NO_THREAD, bp.errors.NO_THREAD_HINT, 1)
    message = f"internal error: {type(error).__name__}: {error}"
    return Failure("internal", message, "set BLOCKPLANE_TRACEBACK=1, run it again, and report what it prints", 1)


def _usage_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"`{context.command_path} --help` explains" if context is not None else ""


def _os_message(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    return f"{os.fsdecode(error.filename)}: {text}" if isinstance(error.filename, (str, bytes)) else text


def report_failure(failure: Failure, arguments: Sequence[str], *, output_is_lost: bool = False) -> None:
    """Print a failure: a line and a hint on standard error, or with --json an object.

    The object goes to standard output, or to standard error where that carries a stream or a file, or takes nothing.
    """
    if failure.kind == "help":
        print(failure.message, file=sys.stderr)
        return
    if wants_json(arguments):
        shown = {
            "kind": failure.kind,
            "message": failure.message,
            "hint": failure.hint,
            "exit": failure.exit_status,
        }
        text = json.dumps({"ok": False, "error": shown})
        is_elsewhere = output_is_lost or _output_carries_data(_options(arguments))
        print(text, file=sys.stderr if is_elsewhere else sys.stdout, flush=True)
        return
    first, *rest = failure.message.split("\n") if failure.kind == "expression" else [failure.message]
    print(f"blockplane: {sentence(first)}", file=sys.stderr)
    for line in rest:  # the expression, and a mark below the place
        print(f"  {sentence(line)}", file=sys.stderr)
    if failure.hint:
        print(f"  {sentence(failure.hint)}", file=sys.stderr)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a program is to read how a verb ends."""
    return "--json" in _options(arguments)


def _options(arguments: Sequence[str]) -> list[str]:
    """Return the words among which options are."""
    return list(arguments)[: list(arguments).index("--")] if "--" in arguments else list(arguments)


def _output_carries_data(options: Sequence[str]) -> bool:
    """Whether standard output has blocks or a stream: of a verb that writes them, and without a file."""
    if options[:1] == ["receive"]:
        return any(option.split("=")[0] == "--offer" for option in options)
    if options[:2] == ["tape", "retrieve"]:
        if not any(option.split("=")[0] == "--vbn" for option in options):
            return False
    elif options[:1] != ["send"] and options[:2] != ["stream", "merge"]:
        return False
    named = any(option.startswith("--part") or name not in ("", "-") for option, name in _outputs(options))
    return not (named or "-n" in options or "--dry-run" in options)


def _outputs(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give each option with the file that it names for the output; empty: it names none."""
    for option, following in zip(options, [*options[1:], ""], strict=True):
        if option in ("-o", "--output"):
            yield option, following
        elif option.startswith("-o"):
            yield option, option.removeprefix("-o")
        else:
            yield option, option.removeprefix("--output=") if option.startswith("--output=") else ""
