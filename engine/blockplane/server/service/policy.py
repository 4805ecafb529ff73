"""What a service is to do: volumes with their jobs, and how it tells of itself. Plain values, compared by content."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from blockplane.model.errors import UsageError
from blockplane.server.service.jobs import Job
from blockplane.server.service.listening import NetworkPolicy
from blockplane.volume.pressure import PressurePolicy

#: How long a job may show no sign of life before the service counts as hung.
PATIENCE_S: Final = 120.0
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def check_volume_name(name: str) -> str:
    """Return a name that a volume can have to others; UsageError: it cannot."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot name a volume", "take at most 64 letters, digits and . _ - (no . first)"
        )
    return name


@dataclass(frozen=True, slots=True)
class VolumePolicy:
    """A volume and what is done to it. pressure : set when it is opened; None: left as it is."""

    name: str
    path: Path
    jobs: tuple[Job, ...] = ()
    pressure: PressurePolicy | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a service does.

    log : "plain" or "json". metrics : (host, port) to answer at; None: nowhere. metrics_file : rewritten when a job
    ended, and every minute. is_strict : a volume that cannot be opened ends the service. patience_s : see PATIENCE_S.
    network : how peers are served; None: they are not. rate : of all peers together, as `Schedule.parse` reads it;
    "": as fast as it goes.
    """

    volumes: tuple[VolumePolicy, ...] = ()
    log: str = "plain"
    log_level: str = "info"
    metrics: tuple[str, int] | None = None
    metrics_file: Path | None = None
    is_strict: bool = False
    patience_s: float = PATIENCE_S
    network: NetworkPolicy | None = None
    rate: str = ""
    path: Path | None = field(default=None, compare=False)

    def with_volumes(self, more: tuple[VolumePolicy, ...]) -> Policy:
        """Return the policy with further volumes; UsageError: a name or a directory stands twice."""
        made = replace(self, volumes=(*self.volumes, *more))
        made.require_distinct()
        return made

    def require_distinct(self) -> None:
        """Raise UsageError where two volumes have one name or one directory."""
        names: set[str] = set()
        paths: dict[Path, str] = {}
        for volume in self.volumes:
            if volume.name in names:
                raise UsageError(f"two volumes are named {volume.name}", "name each once")
            other = paths.setdefault(volume.path, volume.name)
            if other != volume.name:
                raise UsageError(f"{other} and {volume.name} are both {volume.path}", "name each volume once")
            names.add(volume.name)
