"""What `serve` does: reads what is wanted, explains it, or runs a service until a signal ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blockplane as bp
from blockplane.cli.failure import failure_of
from blockplane.cli.hosting import serve_control
from blockplane.cli.text import count, duration, iso, print_json, printable, sentence
from blockplane.server.service import explain
from blockplane.server.service.alerts import alerts_text
from blockplane.server.service.listening import NetworkPolicy
from blockplane.server.service.log import Log
from blockplane.server.service.notify import Notifier
from blockplane.server.service.policy import Policy, VolumePolicy, check_volume_name
from blockplane.server.service.policyfile import address, read_policy
from blockplane.server.service.reading import PolicyError
from blockplane.server.service.service import Service
from blockplane.server.service.unit import unit_text

if TYPE_CHECKING:
    from types import FrameType


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What the command line says; it goes before the policy. None: nothing."""

    policy: str | None
    volumes: tuple[VolumePolicy, ...]
    settings: dict[str, Any]

    def read(self) -> Policy:
        """Return the policy as it is in its file now, with what the command line says."""
        base = read_policy(self.policy) if self.policy is not None else Policy()
        settings = dict(self.settings)
        network = _network(base.network, settings)
        policy = dataclasses.replace(base, **settings, network=network).with_volumes(self.volumes)
        if not policy.volumes:
            raise bp.errors.UsageError(
                "there is no volume to serve", "name a policy with one, or --volume pool=/srv/pool"
            )
        return policy


def _network(base: NetworkPolicy | None, settings: dict[str, Any]) -> NetworkPolicy | None:
    """Return how peers are served; takes what the command line says of that out of its settings."""
    said = {key: settings.pop(key) for key in ("listen", "tls", "insecure_plaintext") if key in settings}
    if base is None and not said:
        return None
    made = base or NetworkPolicy("")
    if "tls" in said or "insecure_plaintext" in said:
        tls = Path(said["tls"]) if "tls" in said else None
        made = dataclasses.replace(made, tls=tls, is_insecure=bool(said.get("insecure_plaintext")))
    made = dataclasses.replace(made, listen=said.get("listen", made.listen))
    if not made.listen:
        raise bp.errors.UsageError("nobody says where to listen", "say --listen HOST:PORT")
    made.parsed_rights()
    made.credentials()
    return made


def wish_of(policy: str | None, named: Sequence[str], settings: dict[str, Any]) -> Wish:
    """Return what the command line says; UsageError: it says nothing sensible."""
    if "metrics" in settings:
        settings["metrics"] = address(settings["metrics"])
    if "metrics_file" in settings:
        settings["metrics_file"] = Path(os.path.abspath(settings["metrics_file"]))
    if "tls" in settings:
        settings["tls"] = os.path.abspath(settings["tls"])
    return Wish(policy, tuple(map(_volume, named)), settings)


def print_alerts() -> int:
    """Print rules for alerts."""
    print(alerts_text(), end="")
    return 0


def explain_policy(wish: Wish, as_json: bool) -> int:
    """Say what a policy means, or every mistake in it; return the exit status."""
    try:
        _explain(wish.read(), as_json)
    except PolicyError as error:
        return _tell_mistakes(wish.policy or "", error, as_json)
    return 0


def print_unit(wish: Wish, user: str | None) -> int:
    """Print a systemd unit."""
    print(unit_text(wish.read(), _command(wish), user or getpass.getuser()), end="")
    return 0


def serve(wish: Wish, once: bool, as_json: bool) -> int:
    """Run a service; return the exit status."""
    try:
        policy = wish.read()
    except PolicyError as error:
        return _tell_mistakes(wish.policy or "", error, as_json)
    return _serve(policy, wish.read, once)


def _volume(text: str) -> VolumePolicy:
    name, equals, place = text.partition("=")
    if not equals or not place:
        raise bp.errors.UsageError(f"{printable(text)!r} names no volume", "write --volume pool=/srv/pool")
    return VolumePolicy(check_volume_name(name), Path(os.path.abspath(place)))


# --- running ---------------------------------------------------------------------------------------------------------


def _serve(policy: Policy, reread: Callable[[], Policy], once: bool) -> int:
    os.umask(0o077)
    plain = sys.stderr
    log = Log(lambda: plain, policy.log, policy.log_level)
    service = Service(
        policy,
        reread=reread,
        answering=serve_control,
        log=log,
        notifier=Notifier.from_environment(os.environ),
        once=once,
    )
    with _signals(service):
        status = service.run()
    if service.unfinished:  # their threads would keep what has to be given up now
        sys.stdout.flush()
        os._exit(status)
    return status


@contextlib.contextmanager
def _signals(service: Service) -> Iterator[None]:
    """Have signals end the service, or make it read its policy again."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        service.stop()

    def reload(number: int, frame: FrameType | None) -> None:
        del number, frame
        service.reload()

    before: dict[int, Any] = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
    # one that comes just before the service waits, or meets another thread, would be heard of when that wait is over
    old_fd = signal.set_wakeup_fd(service.waking_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(wish: Wish) -> list[str]:
    """Return the command line that does the same from anywhere."""
    program = shutil.which(sys.argv[0]) or shutil.which("blockplane") or "/usr/bin/env blockplane"
    words = [os.path.abspath(program), "serve"]
    words += [os.path.abspath(wish.policy)] if wish.policy is not None else []
    words += [f"--volume={volume.name}={volume.path}" for volume in wish.volumes]
    for key, value in wish.settings.items():
        option = f"--{key.removeprefix('is_').replace('_', '-')}"
        if value is True:
            words.append(option)
        else:
            words.append(f"{option}={f'{value[0]}:{value[1]}' if isinstance(value, tuple) else value}")
    return words


# --- telling ---------------------------------------------------------------------------------------------------------


def _tell_mistakes(policy: str, error: PolicyError, as_json: bool) -> int:
    if as_json:
        failure = failure_of(error)
        shown = {
            "kind": failure.kind,
            "message": failure.message,
            "hint": failure.hint,
            "exit": failure.exit_status,
        }
        mistakes = [dataclasses.asdict(mistake) for mistake in error.mistakes]
        print_json({"ok": False, "error": shown, "mistakes": mistakes})
        return failure.exit_status
    for mistake in error.mistakes:
        place = f"{policy}:{mistake.line}" if mistake.line else policy
        print(f"blockplane: {sentence(place)}: {sentence(_said(mistake))}", file=sys.stderr)
        if mistake.hint:
            print(f"  {sentence(mistake.hint)}", file=sys.stderr)
    return error.exit_status


def _said(mistake: Any) -> str:
    return f"{mistake.where}: {mistake.message}" if mistake.where else mistake.message


def _explain(policy: Policy, as_json: bool) -> None:
    found = explain.explain(policy)
    if as_json:
        print_json(
            {
                "ok": True,
                "volumes": [
                    {
                        "name": volume.name,
                        "path": str(volume.path),
                        "problem": volume.problem,
                        "pressure": volume.pressure,
                        "jobs": [
                            {
                                "kind": job.kind,
                                "name": job.name,
                                "does": job.what,
                                "when": job.when,
                                "next": iso(round(job.next_s * 10**9)),
                                "next_in_seconds": job.due_in_s,
                            }
                            for job in volume.jobs
                        ],
                    }
                    for volume in found.volumes
                ],
                "service": found.service,
            }
        )
        return
    for volume in found.volumes:
        print(f"{volume.name} is {printable(str(volume.path))}")
        if volume.problem:
            print(f"  it cannot be opened as things are: {sentence(volume.problem)}")
        if volume.pressure:
            print(f"  {volume.pressure}")
        for job in volume.jobs:
            when = "now" if job.due_in_s <= 0 else f"in {duration(job.due_in_s)}"
            print(f"  {job.kind} {job.name} {sentence(job.what)}, {job.when}; next {when}")
        if not volume.jobs:
            print("  no jobs: its control socket is answered")
    for line in found.service:
        print(sentence(line))
    print(f"{count(len(found.volumes), 'volume')}, {count(sum(len(v.jobs) for v in found.volumes), 'job')}")
