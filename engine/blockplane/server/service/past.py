"""What is remembered of a volume's jobs beyond the process: `service.json` in its directory.

A hint: when each job last began decides what was missed while no service ran, and whether it failed then what is tried
again. Where it is lost or says nothing sensible, jobs count as never done.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

NAME: Final = "service.json"
_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Past:
    """What was last known of a job. Times in seconds since 1970; 0: never. error : of the last run; "": none.

    begun_s : may be before 1970, where it was set right by a clock that is about there.
    """

    begun_s: float = 0.0
    succeeded_s: float = 0.0
    seconds: float = 0.0
    error: str = ""


def read_past(directory: Path) -> dict[str, Past]:
    """Return what is remembered, by "KIND NAME"."""
    try:
        fd = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            found = json.loads(file.read(_MAX_BYTES))
        jobs = found["jobs"] if found["version"] == _VERSION else {}
        return {str(key): _past(value) for key, value in jobs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _past(value: Any) -> Past:
    times = [float(value[key]) for key in ("begun_s", "succeeded_s", "seconds")]
    if not all(math.isfinite(number) for number in times) or min(times[1:]) < 0:
        raise ValueError
    begun_s, succeeded_s, seconds = times
    return Past(begun_s, succeeded_s, seconds, str(value["error"])[:1000])


def write_past(directory: Path, jobs: dict[str, Past]) -> None:
    """Remember it: whole or not at all. A directory that takes no file is no reason to stop."""
    with contextlib.suppress(OSError):
        text = json.dumps({"version": _VERSION, "jobs": {key: asdict(past) for key, past in jobs.items()}})
        replace_file(directory / NAME, text, 0o600)


def replace_file(path: Path, text: str, mode: int) -> None:
    """Write a file so that whoever reads it finds the old one or the new one, whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, mode)
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
