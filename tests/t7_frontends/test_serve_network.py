"""A service that peers call: rights, transfers beside jobs and verbs, stopping and reloading under them."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import BlockplaneError, UntrustedError
from blockplane.server.network.throttle import Schedule, Throttle
from blockplane.server.service import PolicyError, Service, read_policy
from blockplane.server.service.following import Calls
from blockplane.server.service.log import Log
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import image_towards
from rig.network import Cut, Hosts, Link, fingerprint
from rig.services import Serving, serving

POOL = '[volume.pool]\npath = "pool"\n'
NETWORK = '[network]\nlisten = "127.0.0.1:0"\ntls = "tls/backup"\n[network.rights.source]\n'


@pytest.fixture
def hosts(pool) -> Hosts:
    return Hosts.make(Path("tls").absolute())


def write(text: str) -> str:
    Path("policy.toml").write_text(text)
    return "policy.toml"


def address_of(service: Serving) -> str:
    return service.wait_for("listening")[0]["text"].rpartition(" ")[2]


def test_peers_pull_and_push_as_their_rights_say(pool, hosts, blockplane):
    words = write(POOL + NETWORK + 'pool = ["read"]\n')
    with serving(words) as service, bp.Volume.create("far", disks=2, size="24M") as far:
        address = address_of(service)
        service.wait_for("volume open")
        with contextlib.closing(hosts.peer(address)) as peer:
            assert [record.name for record in peer.standing().snapshots] == ["june1", "june2"]
            peer.bring("june2", far, LocalChanges.REFUSE)
            assert far.get_snapshot("june2").id == far.snapshots[-1].id
            bp.FileSystem(far).write_bytes("/far", b"far")
            far.snapshot("july")
            with pytest.raises(BlockplaneError):
                peer.take(image_towards(far, "july", peer.standing()), LocalChanges.REFUSE)
        service.wait_for("peer done")
        write(POOL + NETWORK + 'pool = ["read", "write"]\n')
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("policy taken")
        with contextlib.closing(hosts.peer(address)) as peer:  # the port stays
            peer.take(image_towards(far, "july", peer.standing()), LocalChanges.REFUSE)
        assert "far" in blockplane("cat", "pool:/far").out
        assert service.end() == 0
    assert {entry.name for entry in Path("pool").iterdir()} <= {"disks", "lock", "volume.toml", "service.json"}
    assert blockplane("check", "pool").status == 0


def test_a_certificate_that_a_policy_revokes_is_refused(pool, hosts):
    rights = '[network.rights.source]\npool = ["read"]\n'
    with serving(write(POOL + NETWORK + 'pool = ["read"]\n')) as service:
        address = address_of(service)
        service.wait_for("volume open")
        with contextlib.closing(hosts.peer(address)) as peer:
            assert peer.standing().snapshots
        refused = f'revoked = "{fingerprint(hosts.credentials("source"))}"\n'
        write(POOL + NETWORK.replace("[network.rights.source]\n", refused + rights))
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("policy taken")
        with contextlib.closing(hosts.peer(address)) as peer, pytest.raises(UntrustedError, match="revoked"):
            peer.standing()
        assert service.end() == 0


def test_a_renewed_certificate_is_shown_after_a_reload(pool, hosts):
    before = fingerprint(hosts.credentials("backup"))
    with serving(write(POOL + NETWORK + 'pool = ["read"]\n')) as service:
        address = address_of(service)
        service.wait_for("volume open")
        bp.make_certificates(hosts.folder, ["backup"], renew=True)
        after = fingerprint(hosts.credentials("backup"))
        for number, shown in enumerate((before, after)):
            if number:
                service.process.send_signal(signal.SIGHUP)
                service.wait_for("policy taken")
            with contextlib.closing(hosts.peer(address, expects=shown)) as peer:
                assert peer.standing().snapshots
        assert service.end() == 0
    assert before != after


def test_a_certificate_that_a_policy_revokes_is_not_called(pool, hosts):
    """Though the policy has no listener: replicas pull nothing, and mirrors are brought nothing."""
    bp.Volume.create("copy", disks=2, size="24M").close()
    revoked = fingerprint(hosts.credentials("backup"))
    with bp.Volume.open("pool") as volume:
        volume.make_master("june2")
        with hosts.listening({"pool": volume}, {"source": {"pool": ["read", "write"]}}) as listener:
            words = f'every = "1s"\ntls = "tls/source"\nsource = "{listener.address}/pool"\n'
            policy = f'[volume.copy]\npath = "copy"\n[volume.copy.replicate.one]\n{words}'
            with serving(write(f'[network]\nrevoked = ["{revoked}"]\n{policy}')) as service:
                assert revoked in service.wait_for("job failed")[0]["text"]
                assert not service.said("job done")
                write(policy)
                service.process.send_signal(signal.SIGHUP)
                service.wait_for("job done")
                assert service.end() == 0
            mirrors = f'{POOL}[volume.pool.mirror.all]\nevery = "1s"\ntls = "tls/source"\n'
            (job,) = read_policy(write(f'[network]\nrevoked = ["{revoked}"]\n{mirrors}')).volumes[0].jobs
            reached = job.reach.remote(f"{listener.address}/pool", Calls(), Throttle())
            with reached as peer, pytest.raises(UntrustedError, match="revoked"):
                peer.standing()


@pytest.fixture
def taken(monkeypatch) -> Counter[Throttle]:
    """How many bytes each throttle has let go, without waiting."""
    found: Counter[Throttle] = Counter()
    monkeypatch.setattr(Throttle, "take", lambda self, n_bytes, _: found.update({self: n_bytes}))
    monkeypatch.setattr("blockplane.server.network.throttle._ASK_EVERY_S", 0.0)
    return found


@contextlib.contextmanager
def far_sides(hosts, done):
    """A link to a listener with `far`, a mirror of pool, and `source`, that has one snapshot of some KiB; and `far`."""
    with (
        bp.Volume.create("far", disks=2, size="24M") as far,
        bp.Volume.create("source", disks=2, size="24M") as source,
    ):
        bp.FileSystem(source).write_bytes("/file", bytes(range(256)) * 1000)
        source.make_master(source.snapshot("one").name)
        rights = {"far": ["read", "write", "admin"], "source": ["read"]}
        with (
            hosts.listening({"far": far, "source": source}, {"source": rights}) as listener,
            Link(listener.address) as link,
        ):
            done("mirror", "add", "pool", f"{link.address}/far", "--tls", "tls/source", "--every", "1s")
            yield link, far


@pytest.mark.parametrize("listens", [True, False])
def test_jobs_take_from_the_rate_that_the_listener_takes_from(pool, hosts, done, taken, listens):
    bp.Volume.create("copy", disks=2, size="24M").close()
    network = NETWORK + 'pool = ["read"]\n' if listens else "[network]\n"
    with far_sides(hosts, done) as (link, _):
        job, source = 'every = "1s"\ntls = "tls/source"\n', f'source = "{link.address}/source"\n'
        volumes = {
            "pool": f"{POOL}[volume.pool.mirror.all]\n{job}",
            "copy": f'[volume.copy]\npath = "copy"\n[volume.copy.replicate.one]\n{job}{source}',
        }
        for name, volume in volumes.items():
            policy = network.replace("[network]\n", '[network]\nrate = "64KiB"\n') + volume
            if name == "copy":
                policy = policy.replace('pool = ["read"]', 'copy = ["read"]')
            service = Service(read_policy(write(policy)), log=Log(io.StringIO), once=True)
            assert service.run() == 0
            assert taken[service._throttle] > 200_000, name
            assert service._throttle.piece_bytes(1 << 20) == 16 << 10  # a quarter of a second's
            assert (service._endpoint is not None) is listens
            assert not listens or service._endpoint._listener.throttle is service._throttle
            service._change(read_policy(write(policy.replace("64KiB", "full"))))
            assert service._throttle.piece_bytes(1 << 20) == 1 << 20


def test_verbs_take_from_the_rate_that_they_are_told(pool, hosts, blockplane, done, taken):
    rate, tls = "08:00-18:00=10MiB,50MiB", ("--tls", "tls/source")
    with far_sides(hosts, done) as (link, _):
        far = f"{link.address}/far"
        for words in (
            ["mirror", "run", pool, "--once", "--now"],
            ["mirror", "resync", far, "--source", pool],
            ["replicate", f"{link.address}/source", "copy"],
        ):
            if "resync" in words:
                done("mirror", "break", far, *tls)
                done("put", f"{pool}:/", "june1.bps")
            taken.clear()
            done(*words, *tls, "--rate", rate)
            (told,) = (throttle for throttle in taken if throttle._rate_of == Schedule.parse(rate))
            assert taken[told] > 100_000, words
            assert blockplane(*words, *tls, "--rate", "1").status == 2
    assert "10MiB" in done("serve", "--check", write(f'[network]\nrate = "{rate}"\n{POOL}')).out


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_resync_that_is_cut_goes_on_by_itself_or_says_to_run_it_again(
    pool, hosts, blockplane, done, direction, waits
):
    tls, data = ("--tls", "tls/source"), bytes(range(256)) * 8000
    with far_sides(hosts, done) as (link, far):
        dest = f"{link.address}/far"
        done("mirror", "run", pool, "--once", *tls)
        done("mirror", "break", dest, *tls)
        if direction == "down":
            bp.FileSystem(far).write_bytes("/new", data)
        else:
            Path("new").write_bytes(data)
            done("put", f"{pool}:/", "new")
        link.cut = Cut(link.n_bytes[direction] + 800_000, direction, "reset")
        words = ["mirror", "resync", dest, "--source", pool, *tls, *["--reverse"] * (direction == "down")]
        if not waits:
            error = blockplane(*words, "--wait", "0.001", "--json").error
            assert (error["kind"], error["hint"]) == (
                "connection-lost",
                "run it again: what has arrived is passed over",
            )
        done(*words)
        assert link.cut.happened.is_set()
        for volume in (bp.Volume.open(pool), contextlib.nullcontext(far)):
            with volume as opened:
                assert bp.FileSystem(opened).read_bytes("/new") == data


def test_an_address_that_cannot_be_had_leaves_no_volume_open(pool, hosts):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        policy = read_policy(write(POOL + NETWORK.replace("127.0.0.1:0", listen) + 'pool = ["read"]\n'))
        with pytest.raises(OSError, match="in use"):
            Service(policy, log=Log(io.StringIO)).run()
    assert "blockplane volume pool" not in [thread.name for thread in threading.enumerate()]
    bp.Volume.open("pool").close()


def test_an_address_that_cannot_be_had_leaves_the_listener_that_there_is(pool, hosts):
    rights = 'pool = ["read"]\n'
    with socket.create_server(("127.0.0.1", 0)) as taken, serving(write(POOL + NETWORK + rights)) as service:
        address = address_of(service)
        service.wait_for("volume open")
        port = address.rpartition(":")[2]
        with contextlib.closing(hosts.peer(address)) as peer:
            for n, (listen, event) in enumerate(
                [
                    (f"127.0.0.1:{taken.getsockname()[1]}", "policy refused"),
                    ("127.0.0.1:99999", "policy refused"),
                    (f"192.0.2.1:{port}", "policy refused"),  # of the port that is listened at, on no host of ours
                    (f"localhost:{port}", "policy taken"),
                    (f"127.0.0.1:{port}", "policy taken"),
                ]
            ):
                write(POOL + NETWORK.replace("127.0.0.1:0", listen) + rights)
                service.process.send_signal(signal.SIGHUP)
                service.wait_for(event, n % 3 + 1)
                assert peer.standing().snapshots
        assert service.end() == 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('[network]\nlisten = "127.0.0.1:0"\n[network.rights.a]\npool = "read"\n', [3]),
        ('[network]\nlisten = "127.0.0.1:0"\ntls = "nowhere"\n[network.rights.a]\npool = "read"\n', [5]),
        (NETWORK + 'pool = ["raed"]\n', [6, 7]),
        (NETWORK.replace(":0", ":99999") + 'pool = ["read"]\n', [4]),
        (NETWORK + 'other = ["read"]\n', [7]),
        (NETWORK.replace("[network.rights.source]\n", ""), [3]),
        (NETWORK.replace("listen", 'rate = "1"\nlisten') + 'pool = ["read"]\n', [4]),
        (NETWORK.replace("listen", "lisen") + 'pool = ["read"]\n', [4]),
    ],
)
def test_what_is_wrong_with_a_network_is_found(hosts, text, lines):
    with pytest.raises(PolicyError) as caught:
        read_policy(write(POOL + text))
    assert [mistake.line for mistake in caught.value.mistakes] == lines


@pytest.mark.parametrize(
    "words",
    [
        ["--listen", ":0"],
        ["--listen", ":0", "--tls", "tls"],
        ["--tls", "tls"],
        ["--listen", ":0", "--insecure-plaintext"],
    ],
)
def test_a_listener_without_rights_or_an_address_is_a_usage_error(hosts, blockplane, words):
    assert blockplane("serve", "--volume", "pool=pool", *words).status == 2
