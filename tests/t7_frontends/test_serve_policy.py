"""Policies of the service: every mistake is found, and said with its line and with what was probably meant."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.server.service import PolicyError, read_policy
from blockplane.server.service.alerts import RULES, alerts_text
from blockplane.server.service.metrics import Counts, metrics_text
from blockplane.server.service.policyfile import address, is_loopback
from blockplane.server.service.reading import MAX_BYTES, key_lines
from blockplane.server.service.timetable import At, Every
from blockplane.server.service.trust import ends_of

GOOD = """\
[service]
log = "json"
metrics = ":9178"
metrics-file = "blockplane.prom"
patience = "90s"

[volume.pool]
path = "pool"
demote-under = "5%"

[volume.pool.snapshot.hourly]
every = "1h"
name = "auto-%Y%m%d-%H%M"
mark = true

[volume.pool.prune.nightly]
at = ["03:00"]
keep-daily = 7
keep-weekly = -1
keep-within = "2d"
only = ["auto-*"]

[volume.pool.check.weekly]
at = ["04:30", "16:30"]
days = ["sun"]
parity = false

[volume."other.pool"]
path = "/srv/other"
"""


def write(text: str | bytes) -> str:
    Path("policy.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return "policy.toml"


def mistakes_of(text: str | bytes) -> list[tuple[int, str]]:
    """The line and the key of each mistake."""
    with pytest.raises(PolicyError) as caught:
        read_policy(write(text))
    assert caught.value.exit_status == 1
    return [(mistake.line, mistake.where) for mistake in caught.value.mistakes]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_policy_says_what_it_says(tmp_path):
    policy = read_policy(write(GOOD))
    assert (policy.log, policy.metrics, policy.patience_s) == ("json", ("127.0.0.1", 9178), 90.0)
    assert policy.metrics_file == tmp_path / "blockplane.prom"
    pool, other = policy.volumes
    assert (pool.name, pool.path, other.name, other.path) == (
        "pool",
        tmp_path / "pool",
        "other.pool",
        Path("/srv/other"),
    )
    assert pool.pressure == bp.PressurePolicy("5%")
    assert other.jobs == ()
    hourly, nightly, weekly = pool.jobs
    assert (hourly.kind, hourly.name, hourly.due, hourly.pattern, hourly.mark) == (
        "snapshot", "hourly", Every(3600.0), "auto-%Y%m%d-%H%M", True,
    )  # fmt: skip
    assert nightly.keep == bp.Policy(daily=7, weekly=-1, within_s=172800, only=("auto-*",))
    assert isinstance(weekly.due, At)
    assert (weekly.due.days, [t.isoformat() for t in weekly.due.times]) == ((6,), ["04:30:00", "16:30:00"])
    assert read_policy("policy.toml") == policy


A = '[volume.a]\npath = "p"\n'
PRUNE = A + '[volume.a.prune.n]\nevery = "1h"\n'
BAD = {
    "[servise]": [(1, "servise")],
    "[service]\nlgo = 1": [(2, "service.lgo")],
    '[service]\nlog = "jsno"': [(2, "service.log")],
    "[service]\nlog-level = 3": [(2, "service.log-level")],
    '[service]\nmetrics = "9178"': [(2, "service.metrics")],
    '[service]\nmetrics = "host:70000"': [(2, "service.metrics")],
    '[service]\nstrict = "yes"': [(2, "service.strict")],
    '[service]\npatience = "0s"': [(2, "service.patience")],
    "service = 3": [(1, "service")],
    "[volume]\npool = 3": [(2, "volume.pool"), (2, "volume.pool")],
    "[volume.pool]": [(1, "volume.pool")],
    '[volume.pool]\npath = ""': [(2, "volume.pool.path")],
    "[volume.pool]\npath = 7": [(2, "volume.pool.path")],
    '[volume.".pool"]\npath = "a"': [(1, "volume..pool")],
    '[volume."a/b"]\npath = "a"': [(1, "volume.a/b")],
    '[volume."a\\u001bb"]\npath = "a"': [(1, "volume.a\\x1bb")],
    A + '[volume.b]\npath = "./p"': [(1, "volume")],
    A + 'demote-under = "500%"': [(3, "volume.a.demote-under")],
    A + "demote-keep = 3": [(3, "volume.a.demote-keep")],
    A + '[volume.a.snapshots.h]\nevery = "1h"': [(3, "volume.a.snapshots")],
    A + '[volume.a.snapshot]\nevery = "1h"': [(4, "volume.a.snapshot.every")] * 2,
    A + "[volume.a.snapshot.h]": [(3, "volume.a.snapshot.h")],
    A + '[volume.a.snapshot.h]\nevery = "1h"\nat = "03:00"': [(3, "volume.a.snapshot.h")],
    A + '[volume.a.snapshot.h]\nevery = "1h"\ndays = ["mon"]': [(5, "volume.a.snapshot.h.days")],
    A + '[volume.a.snapshot.h]\nevery = "0s"': [(4, "volume.a.snapshot.h.every")],
    A + "[volume.a.snapshot.h]\nevery = 60": [(4, "volume.a.snapshot.h.every")],
    A + '[volume.a.snapshot.h]\nat = ["24:30"]': [(4, "volume.a.snapshot.h.at")],
    A + "[volume.a.snapshot.h]\nat = []": [(4, "volume.a.snapshot.h.at")],
    A + '[volume.a.snapshot.h]\nat = ["03:00+01:00"]': [(4, "volume.a.snapshot.h.at")],
    A + "[volume.a.snapshot.h]\nat = 1979-05-27": [(4, "volume.a.snapshot.h.at")],
    A + '[volume.a.snapshot.h]\nat = "03:00"\ndays = ["monday"]': [(5, "volume.a.snapshot.h.days")],
    A + '[volume.a.snapshot.h]\nevery = "1h"\nname = "a b"': [(5, "volume.a.snapshot.h.name")],
    A + '[volume.a.snapshot."a b"]\nevery = "1h"\nname = "x"': [(3, "volume.a.snapshot.a b")],
    PRUNE: [(3, "volume.a.prune.n")],
    PRUNE + "keep-daily = -2": [
        (3, "volume.a.prune.n"),
        (5, "volume.a.prune.n.keep-daily"),
    ],
    PRUNE + "keep-dayly = 2": [
        (3, "volume.a.prune.n"),
        (5, "volume.a.prune.n.keep-dayly"),
    ],
    PRUNE + "keep-last = true": [
        (3, "volume.a.prune.n"),
        (5, "volume.a.prune.n.keep-last"),
    ],
    A + '[volume.a.check.n]\nevery = "1w"\nparty = false': [(5, "volume.a.check.n.party")],
    "x = = 3": [(1, "")],
    "[volume.a]\n\npath = 'p": [(3, "")],
    A + 'path = "q"': [(3, "")],
    b'[volume.a]\npath = "\xff"': [(2, "")],
    "#" * (MAX_BYTES + 1): [(0, "")],
}


@pytest.mark.parametrize("text", list(BAD), ids=range(len(BAD)))
def test_a_bad_policy_is_refused_with_the_place(text):
    assert mistakes_of(text) == BAD[text]


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 3000 + "]" * 3000])
def test_values_without_end_are_one_mistake(blockplane, text):
    assert mistakes_of(f"{GOOD}\n{text}\n") == [(0, "")]
    told = blockplane("serve", "--check", write(text))
    assert (told.status, "Traceback" in told.err) == (1, False)


def test_every_mistake_of_a_policy_is_found_and_what_was_meant_is_said(blockplane):
    words = GOOD.replace("log =", "lgo =").replace('"1h"', '"1hour"').replace("keep-weekly", "keep-weakly")
    outcome = blockplane("serve", "--check", write(words), "--json")
    assert outcome.status == 1
    found = outcome.json
    assert found["error"]["kind"] == "policy"
    assert [(m["line"], m["where"], m["hint"]) for m in found["mistakes"]] == [
        (2, "service.lgo", "did you mean log?"),
        (12, "volume.pool.snapshot.hourly.every", "write 90s, 30m, 12h, 7d or 4w"),
        (19, "volume.pool.prune.nightly.keep-weakly", "did you mean keep-weekly?"),
    ]
    plain = blockplane("serve", "--check", "policy.toml")
    assert plain.status == 1
    assert "policy.toml:12: volume.pool.snapshot.hourly.every: '1hour'" in plain.err
    assert blockplane("serve", "policy.toml").status == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [("3", "3"), ("true", "true"), ("1.5", "1.5"), ("{}", "a table"), ("[]", "a list"), ("1979-05-27", "1979-05-27")],
)
def test_a_value_of_another_type_is_shown_as_it_stands(value, shown):
    """Not in quotes, as the string that it should be."""
    with pytest.raises(PolicyError) as refusal:
        read_policy(write(f"[volume.p]\npath = {value}\n"))
    assert [mistake.message for mistake in refusal.value.mistakes] == [f"{shown} is not a string"]


@pytest.mark.parametrize("setting", ["revoked = []", 'rate = "1MiB"', 'listen = ":7420"'])
@pytest.mark.parametrize("table", ["service", "volume.p", "volume.p.mirror.m"])
def test_a_setting_of_the_network_that_stands_elsewhere(table, setting):
    tables = {"service": "", "volume.p": 'path = "p"\n', "volume.p.mirror.m": 'every = "1s"\n'}
    text = "".join(f"[{name}]\n{words}{setting if name == table else ''}\n" for name, words in tables.items())
    with pytest.raises(PolicyError) as refusal:
        read_policy(write(text))
    (mistake,) = refusal.value.mistakes
    assert (mistake.message, mistake.hint) == ("there is no such setting", "it belongs in [network]")
    assert mistake.where == f"{table}.{setting.split()[0]}"


def test_certificates_of_jobs_are_looked_for():
    jobs = '[volume.p.mirror.m]\nevery = "1h"\ntls = "none"\n[volume.p.replicate.r]\nevery = "1h"\nsource = "h:1/p"\n'
    assert mistakes_of(f'[volume.p]\npath = "p"\n{jobs}tls = "tls/none"\n') == [
        (5, "volume.p.mirror.m.tls"),
        (9, "volume.p.replicate.r.tls"),
    ]


@pytest.mark.parametrize(("days", "said"), [(-1, "near.pem ended on"), (20, "near.pem ends on"), (40, "")])
def test_check_tells_of_certificates_that_end(blockplane, monkeypatch, days, said):
    monkeypatch.setattr("blockplane.server.network.certificates._LASTS", timedelta(days=days))
    bp.make_certificates("tls", ["near"])
    network = '[network]\nlisten = "127.0.0.1:0"\ntls = "tls/near"\n[network.rights.far]\np = ["read"]\n'
    mirror = '[volume.p.mirror.m]\nevery = "1h"\ntls = "tls/near"\n'
    for more in (network, mirror):
        out = blockplane("serve", "--check", write(f'[volume.p]\npath = "p"\n{more}')).out
        advice = f"`blockplane cert --renew {Path('tls').absolute()} near`, where ca.key is, makes a new one"
        assert (said in out, advice in out) == (True, bool(said)), out


def test_the_end_of_every_certificate_is_a_metric():
    *_, far, near = bp.make_certificates("tls", ["far", "near"])
    network = '[network]\nlisten = "127.0.0.1:0"\ntls = "tls/near"\n[network.rights.far]\np = ["read"]\n'
    mirror = '[volume.p.mirror.m]\nevery = "1h"\ntls = "tls/far"\n'
    policy = read_policy(write(f'[volume.p]\npath = "p"\n{mirror}{network}'))
    ends = ends_of(policy)
    ca = str(Path("tls/ca.pem").absolute())
    assert {Path(path).name for path in ends} == {"near.pem", "far.pem", "ca.pem"}
    assert ends[str(near.certificate.absolute())] == near.expires.timestamp() <= ends[ca]
    text = metrics_text("1", Counts(0.0), [], certificates=ends)
    assert f'blockplane_certificate_end_timestamp_seconds{{path="{ca}"}} {int(ends[ca])}' in text
    far.key.unlink()
    assert {Path(path).name for path in ends_of(policy)} == {"near.pem", "ca.pem"}


def test_a_job_may_make_masters():
    read = read_policy(write('[volume.p]\npath = "p"\n[volume.p.snapshot.s]\nevery = "1h"\nmaster = true\n'))
    (job,) = read.volumes[0].jobs
    assert job.describe() == "makes a snapshot named as s-%Y%m%d-%H%M%S, for replicas"


def test_check_explains_and_says_when_what_is_due(done):
    bp.Volume.create("pool", disks=3, size="8M").close()
    words = done("serve", "--check", write(GOOD)).out
    assert "makes a snapshot named as auto-%Y%m%d-%H%M, with marks, every 1h; next now" in words
    assert "keeps daily 7, weekly all, all within 172800 s of the newest, at 03:00 every day; next in" in words
    assert "other.pool is /srv/other\n  it cannot be opened as things are: /srv/other does not exist" in words
    found = done("serve", "--check", "policy.toml", "--json").json
    jobs = {(volume["name"], job["kind"]): job for volume in found["volumes"] for job in volume["jobs"]}
    assert set(jobs) == {("pool", "snapshot"), ("pool", "prune"), ("pool", "check")}
    assert jobs["pool", "snapshot"]["next_in_seconds"] == 0
    assert 0 < jobs["pool", "check"]["next_in_seconds"] <= 7 * 86400
    assert sorted(Path("pool").iterdir()) == sorted(Path("pool", n) for n in ("disks", "lock", "volume.toml"))


def test_lines_of_keys_are_found_through_values_of_many_lines():
    text = 'a = 1\n[t."x.y"]\nb = """\nc = 2\n"""\nd = [\n  1,\n]\n[[u]]\ne = {f = 1}\n[[u]]\ng = 2\n'
    assert key_lines(text) == {
        ("a",): 1, ("t",): 2, ("t", "x.y"): 2, ("t", "x.y", "b"): 3, ("t", "x.y", "d"): 6,
        ("u",): 9, ("u", "e"): 10, ("u", "e", "f"): 10, ("u", "g"): 12,
    }  # fmt: skip


def test_addresses():
    assert address("[::1]:80") == ("::1", 80)
    assert address("example.org:9") == ("example.org", 9)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["serve"],
        ["serve", "--volume", "pool"],
        ["serve", "--volume", ".pool=pool"],
        ["serve", "--volume", "a=pool", "--volume", "a=other"],
        ["serve", "--volume", "a=pool", "--volume", "b=./pool"],
        ["serve", "--volume", "a=pool", "--metrics", "nowhere"],
        ["serve", "--volume", "a=pool", "--unit", "--user", "a\nb"],
    ],
)
def test_words_that_serve_nothing_are_usage_errors(blockplane, words):
    assert blockplane(*words).status == 2


def test_the_unit_starts_the_service_that_was_described(done):
    Path("a dir").mkdir()
    write(GOOD)
    unit = done("serve", "policy.toml", "--volume", "more=a dir/100%", "--strict", "--unit", "--user", "bp").out
    settings = [line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#")]
    (command,) = [value for key, value in settings if key == "ExecStart"]
    here = Path.cwd()
    assert command.endswith(f'serve {here}/policy.toml "--volume=more={here}/a dir/100%%" --strict')
    for wanted in ("Type=notify", "User=bp", "NoNewPrivileges=yes", "UMask=0077", "LimitCORE=0", "WatchdogSec=60"):
        assert wanted in unit.splitlines()
    assert f"RequiresMountsFor={here}/pool" in unit.splitlines()
    assert [line for line in unit.splitlines() if line.startswith("[")] == ["[Unit]", "[Service]", "[Install]"]


@pytest.mark.parametrize("what", ["--unit", "--alerts"])
def test_what_is_a_file_for_others_is_no_json(blockplane, what):
    outcome = blockplane("serve", "--volume", "pool=pool", what, "--json")
    assert outcome.status == 2
    assert "print a file for others" in json.loads(outcome.out)["error"]["message"]


def test_alert_rules_are_on_metrics_that_there_are(done):
    text = done("serve", "--alerts").out
    assert text == alerts_text()
    assert text.count("- alert:") == len(RULES)
    known = Path(bp.__file__).with_name("server") / "service" / "metrics.py"
    names = {word for _, expression, *_ in RULES for word in expression.replace("{", " ").split()}
    names = {name for name in names if name.startswith("blockplane_")}
    assert len(names) >= 6
    for name in names:
        assert f'"{name}"' in known.read_text(), name


def test_alert_rules_name_the_job_and_not_the_one_that_prometheus_has_a_target_in():
    of_jobs = [meaning for _, _, _, _, meaning in RULES if "$labels.job" in meaning]
    assert len(of_jobs) == 3
    assert [m.count("{{ or $labels.exported_job $labels.job }}") for m in of_jobs] == [1] * 3
    assert [m.count("$labels.job") for m in of_jobs] == [1] * 3


def test_paths_of_jobs_count_from_the_policy(tmp_path):
    folder = tmp_path / "etc"
    bp.make_certificates(folder / "tls", ["near"])
    (folder / "policy.toml").write_text(
        '[volume.pool]\npath = "pool"\n[volume.pool.mirror.all]\nevery = "1m"\ntls = "tls/near"\n'
        '[volume.copy]\npath = "copy"\n[volume.copy.replicate.one]\nevery = "1m"\nsource = "../far"\n'
        '[volume.copy.replicate.two]\nevery = "1m"\nsource = "far.example:7420/pool"\n'
    )
    pool, copy = read_policy(folder / "policy.toml").volumes
    assert pool.jobs[0].reach.tls == folder / "tls" / "near"
    assert [job.source for job in copy.jobs] == [str(tmp_path / "far"), "far.example:7420/pool"]
