"""The service's metrics: what is counted, under which names. `alerts` has rules on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from blockplane.server.service.exposition import Family, exposition
from blockplane.server.service.status import VolumeStatus


@dataclass(slots=True)
class Counts:
    """What the service counts of itself since it began. began_s : seconds since 1970."""

    began_s: float
    n_wakeups: int = 0
    n_reloads: int = 0
    n_bad_reloads: int = 0


def metrics_text(
    release: str,
    counts: Counts,
    volumes: Iterable[VolumeStatus],
    transfers: Iterable[tuple[str, str, int]] = (),
    moved: Mapping[str, int] | None = None,
    certificates: Mapping[str, float] | None = None,
) -> str:
    """Return everything in Prometheus' text format.

    Parameters
    ----------
    transfers : of peers, by volume and outcome. moved : bytes that these moved, by volume. certificates : when each
    ends, seconds since 1970, by its path.
    """
    volumes = list(volumes)
    families = [*_of_service(release, counts), *_of_volumes(volumes), *_of_copies(volumes), *_of_jobs(volumes)]
    return exposition([*families, *_of_peers(transfers, moved or {}), _of_certificates(certificates or {})])


def _of_service(release: str, counts: Counts) -> Iterator[Family]:
    info = Family("blockplane_info", "gauge", "The release that runs.")
    info.add(1, version=release)
    began = Family("blockplane_service_start_time_seconds", "gauge", "When the service began, since 1970.")
    began.add(counts.began_s)
    wakeups = Family("blockplane_service_wakeups_total", "counter", "How often the service looked what is to do.")
    wakeups.add(counts.n_wakeups)
    reloads = Family("blockplane_service_reloads_total", "counter", "Policies read while running.")
    reloads.add(counts.n_reloads, outcome="taken")
    reloads.add(counts.n_bad_reloads, outcome="refused")
    yield from (info, began, wakeups, reloads)


def _of_volumes(volumes: list[VolumeStatus]) -> Iterator[Family]:
    up = Family("blockplane_volume_up", "gauge", "1 where the volume is open, 0 where it cannot be opened.")
    size = Family("blockplane_volume_size_bytes", "gauge", "Room on all data disks.")
    used = Family(
        "blockplane_volume_used_bytes", "gauge", "Occupied by the live files, snapshots and the volume itself."
    )
    available = Family("blockplane_volume_available_bytes", "gauge", "What files may take now.")
    held = Family("blockplane_volume_snapshot_bytes", "gauge", "Occupied by snapshots alone.")
    snapshots = Family("blockplane_volume_snapshots", "gauge", "How many snapshots there are, by kind.")
    newest = Family(
        "blockplane_volume_newest_snapshot_timestamp_seconds",
        "gauge",
        "When the newest snapshot was made, without those that mirrors make for themselves.",
    )
    verbs = Family("blockplane_volume_activities", "gauge", "Jobs and verbs that go on in the volume now.")
    for volume in volumes:
        up.add(int(volume.is_open), volume=volume.name)
        verbs.add(len(volume.verbs), volume=volume.name)
        if (space := volume.space) is not None:
            size.add(space.size_bytes, volume=volume.name)
            used.add(space.used_bytes, volume=volume.name)
            available.add(space.available_bytes, volume=volume.name)
            held.add(space.held_bytes, volume=volume.name)
            newest.add(space.newest_snapshot_s, volume=volume.name)
            for kind, n in sorted(space.snapshots.items()):
                snapshots.add(n, volume=volume.name, kind=kind)
    yield from (up, size, used, available, held, snapshots, newest, verbs)


def _of_copies(volumes: list[VolumeStatus]) -> Iterator[Family]:
    lag = Family(
        "blockplane_copy_lag_seconds",
        "gauge",
        "How old the newest state of a copy is, or the copy where it has none; 0 where it has all.",
    )
    left = Family("blockplane_copy_left_bytes", "gauge", "What has still to travel to a copy.")
    heard = Family("blockplane_copy_heard_timestamp_seconds", "gauge", "When a copy was last heard of.")
    rate = Family("blockplane_copy_bytes_per_second", "gauge", "How fast the last transfer to a copy was.")
    failing = Family("blockplane_copy_failing", "gauge", "1 where the last transfer to a copy failed.")
    lost = Family("blockplane_copy_lost", "gauge", "1 where a replica is waited for no longer.")
    for volume in volumes:
        for copy in volume.copies:
            labels = {"volume": volume.name, "kind": copy.kind, "copy": copy.name}
            lag.add(copy.lag_s, **labels)
            left.add(copy.left_bytes, **labels)
            heard.add(copy.heard_s, **labels)
            rate.add(copy.rate, **labels)
            failing.add(int(copy.is_failing), **labels)
            lost.add(int(copy.is_lost), **labels)
    yield from (lag, left, heard, rate, failing, lost)


def _of_peers(transfers: Iterable[tuple[str, str, int]], moved: Mapping[str, int]) -> Iterator[Family]:
    ended = Family("blockplane_peer_transfers_total", "counter", "Requests of peers that ended, by outcome.")
    carried = Family("blockplane_peer_bytes_total", "counter", "Bytes that went over connections with peers.")
    for volume, outcome, n in sorted(transfers):
        ended.add(n, volume=volume, outcome=outcome)
    for volume, n_bytes in sorted(moved.items()):
        carried.add(n_bytes, volume=volume)
    yield from (ended, carried)


def _of_certificates(certificates: Mapping[str, float]) -> Family:
    ends = Family("blockplane_certificate_end_timestamp_seconds", "gauge", "When a certificate ends, or its CA's.")
    for path, end_s in sorted(certificates.items()):
        ends.add(end_s, path=path)
    return ends


def _of_jobs(volumes: list[VolumeStatus]) -> Iterator[Family]:
    running = Family("blockplane_job_running", "gauge", "1 while the job runs.")
    failing = Family("blockplane_job_failing", "gauge", "1 where the job's last run failed.")
    runs = Family("blockplane_job_runs_total", "counter", "Runs that ended, by outcome, since the service began.")
    success = Family("blockplane_job_last_success_timestamp_seconds", "gauge", "When the job last succeeded.")
    took = Family("blockplane_job_last_duration_seconds", "gauge", "How long the job's last success took.")
    due = Family("blockplane_job_due_in_seconds", "gauge", "In how many seconds the job is due.")
    moved = Family(
        "blockplane_job_moved_bytes_total",
        "counter",
        "Bytes that the job brought to another place, once there are any.",
    )
    freed = Family("blockplane_job_freed_bytes_total", "counter", "Bytes that the job gave back, once there are any.")
    for volume in volumes:
        for job in volume.jobs:
            labels = {"volume": volume.name, "kind": job.kind, "job": job.name}
            running.add(int(job.is_running), **labels)
            failing.add(int(bool(job.error)), **labels)
            runs.add(job.n_done, **labels, outcome="done")
            runs.add(job.n_failed, **labels, outcome="failed")
            success.add(job.succeeded_s, **labels)
            took.add(job.seconds, **labels)
            due.add(job.due_in_s, **labels)
            moved.add(job.moved_bytes or None, **labels)
            freed.add(job.freed_bytes or None, **labels)
    yield from (running, failing, runs, success, took, due, moved, freed)
