"""The command `blockplane`: its verbs, and how every failure ends."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import ClassVar

import click

from blockplane.cli import (
    certs,
    chains,
    completion,
    copies,
    copying,
    demo,
    differences,
    files,
    holders,
    images,
    keys,
    mirrors,
    plans,
    pointers,
    pressure,
    receiving,
    reintegrating,
    replicating,
    retention,
    serving,
    settling,
    shrinking,
    snapshots,
    stored,
    streams,
    tapelooks,
    tapes,
    transfers,
    volumes,
)
from blockplane.cli.elsewhere import ElsewhereError
from blockplane.cli.failure import BROKEN_PIPE_STATUS, Failure, failure_of, report_failure, wants_json
from blockplane.cli.start import INTERRUPTED_STATUS

# The engine multiplies no matrices: without this every start makes a thread per core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verbs(click.Group):
    """The verbs, and those of two words beside a verb that takes arguments itself: `image plan`, `image VOL EXPR`."""

    pairs: ClassVar[dict[tuple[str, str], click.Command]] = {}

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take two words for a verb where they are one."""
        verb = self.pairs.get((words[0], words[1])) if len(words) > 1 else None
        if verb is not None:
            return f"{words[0]} {words[1]}", verb, words[2:]
        return super().resolve_command(context, words)


@click.group(cls=Verbs, context_settings=_CONTEXT, subcommand_metavar="VERB ...")
@click.version_option(package_name="blockplane")
def cli() -> None:
    """Volumes, snapshots, and image transfer: a snapshot is a set of block numbers.

    VOL is a volume's directory, VOL@SNAP a snapshot of it, VOL:/PATH or VOL@SNAP:/PATH a file in it,
    FILE.bps[@SNAP]:/PATH a file in a stream, A.bps,B.bps:/PATH or FOLDER:/PATH in a chain of them.
    Sizes are 4096, 256KiB, 10G. Exit status: 0 done, 1 failed or damage found, 2 usage, 130 interrupted.

    \b
    blockplane create pool --disks 5 --size 2G
    blockplane put pool:/ /usr/include
    blockplane snapshot create pool@june1
    blockplane send pool june1 -o june1.bps
    blockplane receive copy -i june1.bps
    blockplane ls -l copy@june1:/include
    """


_MODULES = (
    volumes, shrinking, settling, copies, files, snapshots, pointers, pressure, retention, differences, holders,
    images, transfers, replicating, receiving, copying, plans, streams, chains, tapes, tapelooks, keys, certs, mirrors,
    reintegrating,
    serving, demo, completion,
)  # fmt: skip
for _module in _MODULES:
    for _verb in _module.VERBS:
        cli.add_command(_verb)
Verbs.pairs |= plans.PAIRS | stored.PAIRS


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status. No user error ends in a traceback."""
    _occupy_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return run_verb(arguments)
    except ElsewhereError as found:
        from blockplane.cli.hosting import run_there  # loaded by what raised this

        contact = found.contact
    return run_verb(arguments, lambda: run_there(contact, arguments))


def run_served(arguments: Sequence[str]) -> int:
    """As `run`, for another process, in a thread: without what `click` does to a whole process at a broken pipe."""

    def act() -> object:
        try:
            with cli.make_context("blockplane", list(arguments)) as context:
                return cli.invoke(context)
        except click.exceptions.Exit as end:
            return end.exit_code

    return run_verb(arguments, act)


def run_verb(arguments: Sequence[str], act: Callable[[], object] | None = None) -> int:
    """Run a verb, or what stands for it, and return the exit status however it ends."""
    try:
        status = act() if act is not None else cli.main(list(arguments), prog_name="blockplane", standalone_mode=False)
        print(end="", flush=True)
    except (KeyboardInterrupt, click.Abort) as error:
        return _interrupted(error, arguments)
    except BrokenPipeError:
        _give_up_output()
        return BROKEN_PIPE_STATUS
    except Exception as error:
        if os.environ.get("BLOCKPLANE_TRACEBACK"):
            raise
        return _fail(error, arguments)
    return status if isinstance(status, int) else 0


def _interrupted(error: BaseException, arguments: Sequence[str]) -> int:
    """Say what was kept, where a verb noted that, and to programs in any case; return the exit status."""
    notes = getattr(error.__cause__ or error, "__notes__", [])  # click puts an error of its own round it
    message, hint, *_ = [*notes, ""] if notes else ["interrupted", ""]
    if notes or wants_json(arguments):
        with contextlib.suppress(KeyboardInterrupt):  # again; or who asked hears no more of it from this process
            _report(Failure("interrupted", message, hint, INTERRUPTED_STATUS), arguments, _lost_output())
    return INTERRUPTED_STATUS


def _occupy_standard_descriptors() -> None:
    """Open what a caller closed of 0, 1 and 2 onto nothing: a disk must not get one of these numbers."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long-lived as the process


def _fail(error: Exception, arguments: Sequence[str]) -> int:
    lost = _lost_output()
    failure = failure_of(error)
    if lost is not None and isinstance(error, OSError) and (error.errno, error.filename) == (lost.errno, None):
        failure = Failure("os", f"standard output: {lost.strerror}", "", 1)
    _report(failure, arguments, lost)
    return failure.exit_status


def _report(failure: Failure, arguments: Sequence[str], lost: OSError | None) -> None:
    """Print a failure where that can be read; lost: why standard output takes nothing."""
    try:
        report_failure(failure, arguments, output_is_lost=lost is not None)
    except BrokenPipeError:
        _give_up_output()
    except OSError as full:  # the output is: what is wrong goes where it can be read
        _give_up_output()
        with contextlib.suppress(OSError):
            print(f"blockplane: {failure.message} (and it cannot be printed: {full.strerror})", file=sys.stderr)


def _lost_output() -> OSError | None:
    """Give up standard output where it does not take what was printed before a failure; return why."""
    try:
        print(end="", flush=True)  # whoever called may have closed it
    except OSError as error:
        _give_up_output()
        return error
    return None


def _give_up_output() -> None:
    """Let nothing more be written to an output that takes nothing; the interpreter flushes on its way out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
