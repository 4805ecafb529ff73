"""What this process holds in memory, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def status_kib(field: str) -> int:
    """Return a field of the process's status: `VmRSS` now, `VmHWM` at most since that was cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
