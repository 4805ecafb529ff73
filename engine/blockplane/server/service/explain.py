"""What a policy means, in words, and when everything is next due; nothing is opened for writing, or changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockplane.model.durations import format_duration
from blockplane.model.errors import BlockplaneError
from blockplane.server.network.tls import Credentials
from blockplane.server.service.clock import Clock, SystemClock
from blockplane.server.service.past import Past, read_past
from blockplane.server.service.policy import Policy, VolumePolicy
from blockplane.server.service.policyfile import is_loopback
from blockplane.server.service.running import pace_of
from blockplane.server.service.trust import folders_of
from blockplane.volume.config import read_config


@dataclass(frozen=True, slots=True)
class JobMeaning:
    """A job in words, and when it is next due: in how many seconds, and seconds since 1970."""

    kind: str
    name: str
    what: str
    when: str
    due_in_s: float
    next_s: float


@dataclass(frozen=True, slots=True)
class VolumeMeaning:
    """A volume and its jobs. problem : why it could not be opened, as far as that can be seen without opening it."""

    name: str
    path: Path
    problem: str
    pressure: str
    jobs: tuple[JobMeaning, ...]


@dataclass(frozen=True, slots=True)
class Meaning:
    """A policy. service : sentences about the service itself."""

    volumes: tuple[VolumeMeaning, ...]
    service: tuple[str, ...]


def explain(policy: Policy, clock: Clock | None = None) -> Meaning:
    """Return what a service would do that began now."""
    clock = clock or SystemClock()
    return Meaning(tuple(_of_volume(volume, clock) for volume in policy.volumes), tuple(_of_service(policy)))


def _of_volume(volume: VolumePolicy, clock: Clock) -> VolumeMeaning:
    past = read_past(volume.path)
    jobs = []
    for job in volume.jobs:
        known = past.get(f"{job.kind} {job.name}", Past())
        due_in_s = max(pace_of(job, clock, known).due_in(), 0.0)
        jobs.append(JobMeaning(job.kind, job.name, job.describe(), str(job.due), due_in_s, clock.wall() + due_in_s))
    problem = ""
    try:
        read_config(volume.path)
    except (BlockplaneError, OSError) as error:
        problem = str(error)
    pressure = str(volume.pressure) if volume.pressure is not None else ""
    return VolumeMeaning(volume.name, volume.path, problem, pressure, tuple(jobs))


def _of_service(policy: Policy) -> list[str]:
    found = [f"what happens is said on standard error, {policy.log}, from {policy.log_level} on"]
    if policy.metrics is not None:
        host, port = policy.metrics
        whom = "this machine" if is_loopback(host) else "whoever reaches it, without asking who it is"
        found.append(f"metrics are at http://{host}:{port}/metrics, for {whom}")
    if policy.metrics_file is not None:
        found.append(f"metrics are kept in {policy.metrics_file}")
    if (network := policy.network) is not None:
        how = f"with the certificates of {network.tls}" if network.tls is not None else "plain, for anybody to read"
        found.append(f"peers are served at {network.listen}, {how}")
        found += [f"the certificate {digest} is refused" for digest in network.revoked]
        found += [f"{peer} may {', '.join(verbs)} {volume}" for peer, volume, verbs in network.rights]
    if policy.rate:
        found.append(f"data of all peers together goes at {policy.rate} a second, jobs' calls included")
    found += [warning for folder in folders_of(policy) if (warning := Credentials.find(folder).warning())]
    if policy.is_strict:
        found.append("a volume that cannot be opened at the start ends the service")
    found.append(f"a job without a sign of life for {format_duration(policy.patience_s)} counts as hung")
    return found
