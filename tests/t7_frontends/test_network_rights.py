"""Who may do what: every client, volume and verb; what no rule says is refused, in the same words for all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from blockplane.model.errors import BlockplaneError, NotAllowedError, UsageError
from blockplane.server.network import PLAINTEXT, Identity, Rights, Verb, parse_peer
from blockplane.server.network.rights import require_volume_name
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import image_towards, standing_of
from blockplane.volume.mirrorcodec import BROKEN, MIRROR, WRITES_REFUSED, MirrorRecord
from blockplane.volume.mirrored import mirror_of
from rig.network import Hosts
from streams.volumes import Files, contents, fresh

HOSTILE = [
    "", ".", "..", ".hidden", "a/b", "../x", "a" * 65, "a b", "a\n", "\x1b[31m", "a\0", "ä", "*", "a:b", "@x", "a\\b",
    "/", "~", "$HOME", "a;b", "a\n.b",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_none(name):
    with pytest.raises(UsageError, match="is no name of a volume"):
        require_volume_name(name)
    with pytest.raises(UsageError):
        Rights({"source": {name: ["read"]}})


@pytest.mark.parametrize("name", ["a", "-", "_", "a.b-c_9", "A" * 64, "9"])
def test_names(name):
    assert require_volume_name(name) == name
    assert parse_peer(f"host:7000/{name}")[1] == name


def test_what_names_a_peer():
    assert str(parse_peer("[::1]:7000/pool")[0]) == "[::1]:7000"
    assert str(parse_peer("unix:/run/x/sock/pool")[0]) == "unix:/run/x/sock"
    assert [parse_peer(text) for text in ("pool", "./a:b", "/srv/pool", "host/pool", "a:b/c", "host:1")] == [None] * 6
    with pytest.raises(UsageError):
        parse_peer("host:7000/.x")


@pytest.mark.parametrize(
    "rules",
    [
        {"source": {"pool": ["reed"]}},
        {"source": {"pool": ["read", ""]}},
        {"": {"pool": ["read"]}},
        {"*": {"pool": ["read"]}},
        {"sha256:abc": {"pool": ["read"]}},
        {"a b": {"pool": ["read"]}},
    ],
)
def test_a_rule_that_cannot_be_understood_gives_nobody_a_right(rules):
    with pytest.raises(UsageError):
        Rights({"good": {"pool": ["read"]}, **rules})


def test_who_a_rule_means():
    digest = bytes(range(32))
    rights = Rights(
        {"Source.Example": {"a": "read"}, f"SHA256:{digest.hex(':')}": {"b": [Verb.WRITE]}, PLAINTEXT: {"c": ["admin"]}}
    )
    who = Identity(("other", "source.example"), digest)
    found = {(v, verb) for v, verb in itertools.product("abc", Verb) if rights.allow(who, v, verb)}
    assert found == {("a", Verb.READ), ("b", Verb.WRITE)}
    assert rights.allow(Identity(), "c", Verb.ADMIN)
    assert not rights.allow(Identity(("source.example",)), "a", Verb.READ), "a name without a certificate"
    assert not rights.allow(Identity((PLAINTEXT,), b"x" * 32), "c", Verb.ADMIN), "a certificate of that name"
    assert not rights.allow(Identity((f"sha256:{digest.hex()}",), b"x" * 32), "b", Verb.WRITE), "and of a fingerprint"
    assert not rights.knows(Identity(("x",), b"y" * 32))
    assert not Rights({"x": {"a": []}}).knows(Identity(("x",), b"y" * 32))


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("2001:db8::7", "2001:db8::7"),
        ("2001:0DB8:0:0:0:0:0:7", "2001:db8::7"),
        ("::1", "::1"),
        ("::ffff:10.0.0.7", "::ffff:a00:7"),
        ("10.0.0.7", "10.0.0.7"),
    ],
)
def test_an_address_is_one_however_it_is_written(tmp_path, rule, name):
    hosts = Hosts.make(tmp_path / "tls", "host=127.0.0.1", f"caller={name}", "other=2001:db8::8")
    with (
        fresh(tmp_path / "pool") as pool,
        hosts.listening({"pool": pool}, {rule: {"pool": ["read"]}}, "host") as listener,
    ):
        assert hosts.peer(listener.address, name="caller", patience_s=0).standing().volume_id == pool.info.volume_id
        with pytest.raises(BlockplaneError):
            hosts.peer(listener.address, name="other", patience_s=0).standing()


CLIENTS = ("reader", "writer", "both", "admin", "nobody")
ALLOWED = {
    "reader": {"one": ["read"]},
    "writer": {"one": ["write"]},
    "both": {"one": ["read", "write"], "two": ["read"]},
    "admin": {"two": ["admin"]},
}


def expected(client: str, volume: str, call: str) -> bool:
    verbs = ALLOWED.get(client, {}).get(volume, [])
    return {
        "standing": "read" in verbs or "write" in verbs,
        "bring": "read" in verbs,
        "take": "write" in verbs,
        "give up": "admin" in verbs,
    }[call]


def outcome_of(call, peer) -> BlockplaneError | None:
    try:
        call(peer)
    except BlockplaneError as error:
        return error
    return None


def test_every_client_volume_and_verb(tmp_path, rng, record_property):
    hosts = Hosts.make(tmp_path / "tls", "host=127.0.0.1", *CLIENTS)
    with (
        fresh(tmp_path / "one") as one,
        fresh(tmp_path / "two") as two,
        fresh(tmp_path / "mine") as mine,
        fresh(tmp_path / "target") as target,
    ):
        for volume in (one, two, mine):
            Files(volume, rng).write(1, 0, 3)
            volume.snapshot("first")
        image = image_towards(mine, "first", standing_of(target))
        before = {name: contents(volume.active) for name, volume in (("one", one), ("two", two))}
        calls = {
            "standing": lambda peer: peer.standing(),
            "bring": lambda peer: peer.bring("nothing", target, LocalChanges.REFUSE),
            "take": lambda peer: peer.take(image, LocalChanges.REFUSE),
            "give up": lambda peer: peer.give_up(bytes(16)),
        }
        said, found, told = [], {}, []
        every = list(itertools.product(CLIENTS, ("one", "two", "three"), calls))
        with hosts.listening({"one": one, "two": two}, ALLOWED, "host", tell=told.append) as listener:
            for client, volume, call in every:
                outcome = outcome_of(calls[call], hosts.peer(listener.address, volume, client, patience_s=0))
                found[client, volume, call] = not isinstance(outcome, NotAllowedError)
                if isinstance(outcome, NotAllowedError):
                    said.append((client, outcome.message + outcome.hint))
                else:  # it may ask; there is no snapshot of that name, or nothing to give up
                    assert outcome is None or outcome.kind in ("no-such-snapshot", "refused")
        assert found == {asked: expected(*asked) for asked in every}
        assert {event.what for event in told} == {"done", "failed", "denied", "refused", "began"}
        assert not [text for _, text in said if any(word in text for word in ("one", "two", "first", str(tmp_path)))]
        assert len({text for client, text in said if client != "nobody"}) == 1
        assert {name: contents(volume.active) for name, volume in (("one", one), ("two", two))} == before
        assert contents(target.active) == {}
    record_property("summary", f"rights: {len(every)} of {len(every)} of (client, volume, call) as the list says")


def test_rights_change_while_it_listens(tmp_path):
    hosts = Hosts.make(tmp_path / "tls")
    with fresh(tmp_path / "pool") as pool, hosts.listening({"pool": pool}, {}) as listener:
        peer = hosts.peer(listener.address, patience_s=0)
        with pytest.raises(NotAllowedError):
            peer.standing()
        listener.rights = Rights({"source": {"pool": ["read"]}})
        assert peer.standing().volume_id == pool.info.volume_id
        listener.volumes = {}
        with pytest.raises(NotAllowedError):
            peer.standing()


def test_whose_mirror_a_volume_is_its_source_alone_says(tmp_path):
    """And who may break it off; with `write` alone a volume is made a mirror that is nobody's, or was broken off."""
    hosts = Hosts.make(tmp_path / "tls", "host=127.0.0.1", "source", "other", "boss")
    rights = {name: {"pool": ["write"]} for name in ("source", "other")} | {"boss": {"pool": ["write", "admin"]}}
    record = MirrorRecord(MIRROR, WRITES_REFUSED, b"s" * 16, 1, 1, "/source")
    broken, anothers = replace(record, state=BROKEN), replace(record, source_id=b"o" * 16)
    with fresh(tmp_path / "pool") as pool, hosts.listening({"pool": pool}, rights, "host") as listener:
        source, other, boss = (hosts.peer(listener.address, name=name, patience_s=0) for name in rights)

        def require_safe_from(peer, *said) -> None:
            before = mirror_of(pool)
            for each in said:
                with pytest.raises(NotAllowedError, match="another peer made it one"):
                    peer.become(each)
                assert mirror_of(pool) == before

        source.become(record)
        require_safe_from(other, None, broken, anothers)
        other.become(replace(record, source="/moved"))  # the same source, whose certificate has another name now, say
        require_safe_from(other, None, broken, anothers)
        source.become(None)
        assert mirror_of(pool) is None

        source.become(record)
        boss.break_off()
        assert mirror_of(pool).state == "broken"
        source.become(record)
        source.become(broken)  # what joined it again has failed
        other.become(anothers)
        require_safe_from(source, None, broken, record)
        boss.become(None)

        VolumePeer(pool).become(record)  # from its own machine
        require_safe_from(source, None, broken, anothers)
        boss.become(anothers)
        assert mirror_of(pool).source_id == anothers.source_id.hex()
