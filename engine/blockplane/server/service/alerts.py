"""Alert rules for Prometheus on the metrics: printed, for its administrator to judge and to install."""

from __future__ import annotations

from typing import Final

#: A job's name: Prometheus has a label `job` of its own, and stores ours as `exported_job` unless told `honor_labels`.
_JOB: Final = "{{ or $labels.exported_job $labels.job }}"

#: name, expression, for how long, severity, what it means
RULES: Final = (
    ("BlockplaneDown", 'up{job=~"blockplane.*"} == 0', "5m", "critical", "no service answers for its metrics"),
    (
        "BlockplaneVolumeDown",
        "blockplane_volume_up == 0",
        "5m",
        "critical",
        "volume {{ $labels.volume }} cannot be opened",
    ),
    (
        "BlockplaneVolumeFull",
        "blockplane_volume_available_bytes / blockplane_volume_size_bytes < 0.05",
        "15m",
        "warning",
        "volume {{ $labels.volume }} has less than 5 % available",
    ),
    (
        "BlockplaneCheckFailing",
        'blockplane_job_failing{kind="check"} == 1',
        "0m",
        "critical",
        "check " + _JOB + " of volume {{ $labels.volume }} found damage, or could not run",
    ),
    (
        "BlockplaneJobFailing",
        'blockplane_job_failing{kind!="check"} == 1',
        "30m",
        "warning",
        "{{ $labels.kind }} " + _JOB + " of volume {{ $labels.volume }} fails",
    ),
    (
        "BlockplaneJobStuck",
        "blockplane_job_running == 1",
        "12h",
        "warning",
        "{{ $labels.kind }} " + _JOB + " of volume {{ $labels.volume }} has run for 12 hours",
    ),
    (
        "BlockplaneNoNewSnapshot",
        'blockplane_job_runs_total{kind="snapshot"} >= 0 and on(volume) '
        "(time() - blockplane_volume_newest_snapshot_timestamp_seconds > 2 * 86400)",
        "15m",
        "warning",
        "volume {{ $labels.volume }} has snapshots by schedule, and none of the last two days",
    ),
    (
        "BlockplaneCopyBehind",
        "blockplane_copy_lag_seconds > 86400",
        "15m",
        "warning",
        "{{ $labels.kind }} {{ $labels.copy }} of volume {{ $labels.volume }} is more than a day behind",
    ),
    (
        "BlockplaneCopyFailing",
        "blockplane_copy_failing == 1",
        "30m",
        "warning",
        "transfers to {{ $labels.kind }} {{ $labels.copy }} of volume {{ $labels.volume }} fail",
    ),
    (
        "BlockplaneReplicaLost",
        "blockplane_copy_lost == 1",
        "0m",
        "warning",
        "replica {{ $labels.copy }} of volume {{ $labels.volume }} was not heard of within the limit",
    ),
    (
        "BlockplaneCertificateEnds",
        "blockplane_certificate_end_timestamp_seconds - time() < 30 * 86400",
        "1h",
        "warning",
        "the certificate {{ $labels.path }} ends within 30 days, or has ended",
    ),
    (
        "BlockplanePolicyRefused",
        'increase(blockplane_service_reloads_total{outcome="refused"}[1h]) > 0',
        "0m",
        "warning",
        "a new policy has mistakes and is not followed",
    ),
)


def alerts_text() -> str:
    """Return a rules file. Values are in single quotes, as YAML takes them without escapes."""
    lines = ["groups:", "  - name: blockplane", "    rules:"]
    for name, expression, lasting, severity, meaning in RULES:
        lines += [
            f"      - alert: {name}",
            f"        expr: {_quoted(expression)}",
            f"        for: {lasting}",
            "        labels:",
            f"          severity: {severity}",
            "        annotations:",
            f"          summary: {_quoted(meaning)}",
        ]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
