"""Options that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

import blockplane as bp
from blockplane.cli.completion import HostPath

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only in later releases

F = TypeVar("F", bound=Callable[..., object])


def or_standard(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Take `-` for no file: standard output, or standard input."""
    del context
    if parameter.multiple:
        return () if tuple(value) == ("-",) else value
    return None if value == "-" else value


class Size(_ParamType):
    """Bytes as people write them: 4096, 256KiB, 10G."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        """Return bytes; a wrong size is a usage error."""
        del parameter, context
        return value if isinstance(value, int) else bp.parse_size(value)


class Chunk(Size):
    """A size, or `disk` for whole disks."""

    name = "chunk"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Return bytes, or "disk"."""
        return value if value == "disk" else super().convert(value, parameter, context)


class Duration(_ParamType):
    """Seconds as people write them: 90s, 30m, 12h, 7d, 4w."""

    name = "time"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return seconds; what is no length of time is a usage error."""
        del parameter, context
        return value if isinstance(value, float) else bp.parse_duration(value)


class Interval(Duration):
    """A length of time between two turns of something: more than nothing."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return seconds; none is a usage error."""
        seconds = super().convert(value, parameter, context)
        if not seconds:
            raise bp.errors.UsageError("every 0 s would be without a pause", "write 1s, 90s, 30m, 12h, 7d or 4w")
        return seconds


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=0.0,
    metavar="S",
    help="Seconds to wait for a volume in use.",
)
key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    type=HostPath(),
    metavar="KEYFILE",
    envvar="BLOCKPLANE_KEY_FILE",
    help="Key file for encrypted streams; repeat for several (or BLOCKPLANE_KEY_FILE).",
)
require_encrypted_option = click.option(
    "--require-encrypted", is_flag=True, help="Take no stream that is not encrypted: anybody may have written it."
)
compress_option = click.option("--compress", metavar="zstd[:LEVEL]", help="Compress what shrinks; level 1 to 19 (3).")
encrypt_option = click.option(
    "--encrypt", type=HostPath(), metavar="KEYFILE", help="Encrypt with a key that `key create` made."
)
hold_option = click.option(
    "--hold", type=Duration(), metavar="TIME", help="Keep its snapshots so long (as 7d) if it fails."
)
defer_option = click.option(
    "--defer", is_flag=True, help="What is being read, or held, goes when it no longer is; until then it is `deleting`."
)
progress_option = click.option(
    "--progress/--no-progress", default=None, help="Show progress on standard error (default: on a terminal)."
)


def file_options(function: F) -> F:
    """Add the options that say how a stream lies in files; the verb takes `split, preallocate, digests`."""
    for option in reversed(
        (
            click.option("--split", type=Size(), metavar="SIZE", help="Write FILE.000, FILE.001, ..., each so long."),
            click.option("--preallocate", is_flag=True, help="Make room for the whole stream before writing it."),
            click.option("--digests", is_flag=True, help="Write FILE.sha256 too, for `sha256sum -c`."),
        )
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """What was said about a new group's disks; None where nothing was."""

    disks: int | Sequence[str] | None
    size: int | None
    parity: int | None
    chunk: int | str | None
    wipe: bool

    @property
    def is_plain(self) -> bool:
        """Whether nothing was said about the disks."""
        return self.disks is None and self.size is None and self.parity is None and self.chunk is None


def disk_options(function: Callable[..., object]) -> Callable[..., object]:
    """Add the options that describe a group's disks; the verb takes `wish: DiskOptions`.

    It raises UsageError where --disks and --disk contradict each other.
    """

    @functools.wraps(function)
    def collected(
        n_disks: int | None,
        size: int | None,
        disk: Sequence[str],
        parity: int | None,
        chunk: int | str | None,
        wipe: bool,
        **rest: object,
    ) -> object:
        if disk and n_disks is not None and n_disks != len(disk):
            raise bp.errors.UsageError(f"--disks {n_disks} and {len(disk)} times --disk", "leave --disks out")
        return function(wish=DiskOptions(list(disk) if disk else n_disks, size, parity, chunk, wipe), **rest)

    verb: Callable[..., object] = collected
    for option in reversed(
        (
            click.option("--disks", "n_disks", type=click.IntRange(1, 255), metavar="N", help="Disk files to make."),
            click.option("--size", type=Size(), metavar="SIZE", help="Size of each disk."),
            click.option("--disk", multiple=True, metavar="PATH", help="A file or device to use; repeat."),
            click.option("--parity", type=click.IntRange(0, 2), metavar="0|1|2", help="Parity disks among them."),
            click.option("--chunk", type=Chunk(), metavar="SIZE", help="Chunk, or `disk` for whole disks (256KiB)."),
            click.option("--wipe", is_flag=True, help="Use named disks although they hold data."),
        )
    ):  # fmt: skip
        verb = option(verb)
    return verb
