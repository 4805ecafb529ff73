"""A systemd unit for a policy: printed, for its administrator to judge and to install."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blockplane.model.errors import UsageError
from blockplane.server.service.policy import Policy

#: How often the service is to show a sign of life. A job has the policy's `patience` for one of its own.
_WATCHDOG_S: Final = 60

_UNIT: Final = """\
# /etc/systemd/system/blockplane.service
[Unit]
Description=blockplane volumes
Documentation=man:systemd.service(5)
After=local-fs.target network-online.target
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
User={user}
Restart=on-failure
RestartSec=5
WatchdogSec={watchdog}
TimeoutStartSec=infinity
TimeoutStopSec=30
KillMode=mixed
UMask=0077
LimitCORE=0

# Verbs of other processes run in the service, with their own paths: it must see the files that they see, and may write
# where they may. So no PrivateTmp, ProtectHome or ProtectSystem=strict here.
ProtectSystem=full
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"""


def unit_text(policy: Policy, command: Sequence[str], user: str) -> str:
    """Return a unit that serves a policy.

    Parameters
    ----------
    command : the program and its words. user : whose process it is: the volumes' files are to be that user's.
    """
    if not user or not all(c.isascii() and (c.isalnum() or c in "._-") for c in user):
        raise UsageError(f"{user[:40]!r} is no user's name")
    mounts = "".join(f"RequiresMountsFor={_quoted(str(path))}\n" for path in _paths(policy))
    text = _UNIT.format(command=" ".join(map(_quoted, command)), user=user, watchdog=_WATCHDOG_S)
    return text.replace("\n[Service]", f"{mounts}\n[Service]", 1)


def _paths(policy: Policy) -> list[Path]:
    own = [policy.path.parent] if policy.path is not None else []
    return sorted({*(volume.path for volume in policy.volumes), *own})


def _quoted(word: str) -> str:
    """Return a word as a unit's line has it: in quotes where it needs them, nothing in it meaning anything else."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    if any(not c.isprintable() for c in word):
        raise UsageError(f"{word!r} cannot stand in a unit: it has control characters")
    return f'"{escaped}"' if any(c in word for c in " \t\"'\\;") else escaped
