"""What is remembered of a volume's jobs beyond the process: `service.json` in its directory.

A hint: when each job last began decides what was missed while no service ran, and whether it failed then what is tried
again. Where it is lost or says nothing sensible, jobs count as never done.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from blockplane.model.errors import RefusedError
from blockplane.model.ownfiles import own_suffix, read_own, replace_own

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
        found = json.loads(read_own(directory / NAME, _MAX_BYTES))
        jobs = found["jobs"] if found["version"] == _VERSION else {}
        return {str(key): _past(value) for key, value in jobs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RefusedError):
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
        replace_own(directory / NAME, text, 0o600, suffix=own_suffix(), durable=False)
