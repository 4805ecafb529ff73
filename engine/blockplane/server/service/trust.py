"""The certificates that a policy names, of the listener and of jobs: when they end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from blockplane.model.errors import BlockplaneError
from blockplane.server.network.tls import Credentials
from blockplane.server.service.following import MirrorJob, ReplicateJob
from blockplane.server.service.policy import Policy


def folders_of(policy: Policy) -> list[Path]:
    """Return the folders of certificates, each once, the listener's first."""
    network = policy.network
    jobs = [job for volume in policy.volumes for job in volume.jobs if isinstance(job, (MirrorJob, ReplicateJob))]
    folders = [network.tls if network is not None else None, *(job.reach.tls for job in jobs)]
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def ends_of(policy: Policy) -> dict[str, float]:
    """Return when each certificate and each CA ends, seconds since 1970, by its path, as far as they can be read."""
    found: dict[str, float] = {}
    for folder in folders_of(policy):
        with suppress(BlockplaneError, OSError):
            found |= {str(path): ends.timestamp() for path, ends in Credentials.find(folder).ends().items()}
    return found
