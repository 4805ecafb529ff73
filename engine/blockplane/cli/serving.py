"""The service: serve."""

from __future__ import annotations

from collections.abc import Sequence

import click

import blockplane as bp
from blockplane.cli.completion import HostPath
from blockplane.cli.options import json_option


@click.command()
@click.argument("policy", required=False, type=HostPath(), metavar="[POLICY.toml]")
@click.option("--volume", "named", multiple=True, metavar="NAME=VOL", help="A volume to serve; repeat.")
@click.option("--listen", metavar="HOST:PORT", help="Serve peers there, as the policy's rights say.")
@click.option("--tls", type=HostPath(), metavar="DIR", help="Certificates, as `blockplane cert` makes them.")
@click.option("--insecure-plaintext", is_flag=True, default=None, help="Plain connections, anybody's to read.")
@click.option("--check", "is_check", is_flag=True, help="Say what would be done, and when next; open nothing.")
@click.option("--once", is_flag=True, help="Do what is due now, and end.")
@click.option("--strict", is_flag=True, default=None, help="End where a volume cannot be opened at the start.")
@click.option("--log", type=click.Choice(["plain", "json"]), help="How to say on standard error what happens (plain).")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="The least that is said (info)."
)
@click.option("--metrics", metavar="HOST:PORT", help="Answer Prometheus there; `:9178` for this machine alone.")
@click.option("--metrics-file", type=HostPath(), metavar="FILE", help="Keep the metrics in a file, for node_exporter.")
@click.option("--unit", is_flag=True, help="Print a systemd unit for this command.")
@click.option("--user", metavar="NAME", help="Whose process the unit is to be (yours).")
@click.option("--alerts", is_flag=True, help="Print alert rules for Prometheus.")
@json_option
def serve(
    policy: str | None,
    named: Sequence[str],
    listen: str | None,
    tls: str | None,
    insecure_plaintext: bool | None,
    is_check: bool,
    once: bool,
    strict: bool | None,
    log: str | None,
    log_level: str | None,
    metrics: str | None,
    metrics_file: str | None,
    unit: bool,
    user: str | None,
    alerts: bool,
    as_json: bool,
) -> int:
    """Own volumes: answer for them, and do what a policy says when it is time.

    Runs until SIGTERM or SIGINT, and then closes all volumes; a second one ends it at once, all volumes as of their
    last consistency point. SIGHUP reads the policy again. Every other verb works on the volumes meanwhile.

    \b
    blockplane serve --volume pool=/srv/pool
    blockplane serve --check policy.toml
    blockplane serve policy.toml --log json --metrics :9178
    blockplane serve policy.toml --unit > blockplane.service
    """
    from blockplane.cli import services  # not above: it loads all that help and completion do without

    if as_json and (unit or alerts):
        raise bp.errors.UsageError("--unit and --alerts print a file for others", "leave --json out")
    if alerts:
        return services.print_alerts()
    settings = {
        "log": log,
        "log_level": log_level,
        "is_strict": strict,
        "metrics": metrics,
        "metrics_file": metrics_file,
        "listen": listen,
        "tls": tls,
        "insecure_plaintext": insecure_plaintext,
    }
    wish = services.wish_of(policy, named, {key: value for key, value in settings.items() if value is not None})
    if is_check:
        return services.explain_policy(wish, as_json)
    if unit:
        return services.print_unit(wish, user)
    return services.serve(wish, once, as_json)


VERBS = (serve,)
