"""From a TOML file to a policy: see `POLICY.md` for what can stand in one."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockplane.model.errors import UsageError
from blockplane.server.service.following import MirrorJob, ReplicateJob, mirror_of, path_of, replicate_of
from blockplane.server.service.jobs import KINDS, Job
from blockplane.server.service.listening import network_of, rate_of, revoked_of
from blockplane.server.service.log import LEVELS
from blockplane.server.service.policy import PATIENCE_S, Policy, VolumePolicy, check_volume_name
from blockplane.server.service.reading import ALL_NAMES, MAX_BYTES, Mistake, Mistakes, PolicyError, Table
from blockplane.volume.pressure import PressurePolicy


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy; relative paths in it count from its directory.

    Raises
    ------
    PolicyError: with every mistake that was found. OSError: it cannot be read.
    """
    where = Path(os.path.abspath(path))
    with open(where, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        if len(data) > MAX_BYTES:
            raise UsageError("it is too long", f"a policy has {MAX_BYTES} bytes at most")
        text = data.decode()
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(os.fspath(path), [_syntax(text, str(error))]) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(os.fspath(path), [Mistake(line, "", "it is not UTF-8")]) from None
    except UsageError as error:
        raise PolicyError(os.fspath(path), [Mistake(0, "", error.message, error.hint)]) from None
    except (ValueError, RecursionError) as error:
        why = "a number is too long" if isinstance(error, ValueError) else "values are nested too deep"
        raise PolicyError(os.fspath(path), [Mistake(0, "", why)]) from None
    mistakes = Mistakes(text)
    policy = _policy(Table(found, (), mistakes), where)
    if mistakes.found:
        raise PolicyError(os.fspath(path), sorted(mistakes.found, key=lambda mistake: mistake.line))
    return policy


def _syntax(text: str, message: str) -> Mistake:
    """Return what tomllib says, with the line it says it of."""
    head, _, place = message.partition(" (at ")
    words = place.rstrip(")").replace(",", "").split()
    line = int(words[1]) if words[:1] == ["line"] and words[1].isdecimal() else text.count("\n") + 1
    return Mistake(line, "", f"no TOML: {head}")


def _policy(top: Table, where: Path) -> Policy:
    service = top.table("service")
    listening = top.table("network")
    revoked, rate = revoked_of(listening), rate_of(listening)
    volumes = tuple(_volume(name, table, where.parent, revoked) for name, table in top.table("volume").tables())
    network = network_of(listening, where.parent, {volume.name for volume in volumes}, revoked)
    policy = Policy(
        volumes=volumes,
        network=network,
        rate=rate,
        log=service.take("log", Table.one_of("plain", "json"), "plain"),
        log_level=service.take("log-level", Table.one_of(*LEVELS), "info"),
        metrics=service.take("metrics", address, None),
        metrics_file=service.take("metrics-file", lambda value: path_of(value, where.parent), None),
        is_strict=service.take("strict", Table.truth, False),
        patience_s=service.take("patience", _patience, PATIENCE_S),
        path=where,
    )
    service.finish()
    top.finish()
    top.require("volume", policy.require_distinct)
    return policy


def _volume(name: str, table: Table, directory: Path, revoked: tuple[str, ...]) -> VolumePolicy:
    table.require("", lambda: check_volume_name(name))
    if not table.has("path"):
        table.add("it has no path", 'path = "/srv/pool"')
    path = table.take("path", lambda value: path_of(value, directory), directory)
    pressure = _pressure(table)
    jobs: list[Job] = []
    following: dict[str, Callable[[str, Table], Job]] = {
        MirrorJob.kind: lambda name, table: mirror_of(name, table, directory, revoked),
        ReplicateJob.kind: lambda name, table: replicate_of(name, table, directory, revoked),
    }
    for kind, read in {**KINDS, **following}.items():
        for job_name, job_table in table.table(kind).tables():
            job_table.require("", lambda job_name=job_name: check_volume_name(job_name))  # type: ignore[misc]
            jobs.append(read(job_name, job_table))
            job_table.finish()
    table.finish()
    return VolumePolicy(name, path, tuple(jobs), pressure)


def _pressure(table: Table) -> PressurePolicy | None:
    found = table.take("demote-under", Table.text, "")
    keep = table.take("demote-keep", Table.whole, 1)
    only = table.take("demote-only", Table.texts, ALL_NAMES)
    if not found:
        if table.has("demote-keep") or table.has("demote-only"):
            table.add("it needs demote-under", 'demote-under = "5%"', "demote-keep")
        return None
    policy = PressurePolicy(found, keep, only)
    table.require("demote-under", policy.record)
    return policy


def _patience(value: Any) -> float:
    seconds = Table.duration(value)
    if seconds < 1:
        raise UsageError(f"{value!r} is no time to wait for a sign of life", "2m is usual")
    return seconds


def address(value: Any) -> tuple[str, int]:
    """Return (host, port) of `HOST:PORT`, `[ADDRESS]:PORT`, or `:PORT` for this machine alone."""
    host, colon, port = Table.text(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (colon and port.isdecimal() and port.isascii() and int(port) < 1 << 16):
        raise UsageError(f"{value!r} is no address", "write 127.0.0.1:9178")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
