"""TLS 1.3, certificates on both sides: eight bad ones are refused by each, plain TCP is asked for by name."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Use
from cryptography.x509.oid import NameOID

import blockplane as bp
from blockplane.model.errors import ConnectionLostError, KeyFileError, NetworkError, UntrustedError, UsageError
from blockplane.server import socketfile
from blockplane.server.network import Credentials, Listener, RemotePeer, Rights, make_certificates
from blockplane.server.network.address import Address
from blockplane.server.network.channel import Ending
from blockplane.server.network.tls import fingerprint_of
from rig.network import QUICK, Hosts, fingerprint, threads_left
from rig.owners import TIMEOUT_S
from streams.volumes import fresh

RIGHTS = {"source": {"pool": ["read"]}}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with fresh(tmp_path_factory.mktemp("trust") / "pool") as volume:
        yield volume


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Hosts:
    folder = tmp_path_factory.mktemp("hosts") / "tls"
    return Hosts.make(folder, "source=127.0.0.1", "backup=127.0.0.1", "elsewhere=10.0.0.1")


def issue(folder: Path, ca: Path | None, *, use=(Use.SERVER_AUTH, Use.CLIENT_AUTH), days=1) -> Credentials:
    """Make a certificate for source and 127.0.0.1 that the verb would not: of its own, expired, of one use."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    now, name = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "source")])
    issuer, signer = name, key
    if ca is not None:
        issuer = x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes()).subject
        signer = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
    builder = x509.CertificateBuilder(
        issuer_name=issuer, subject_name=name, public_key=key.public_key(), serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(days=10), not_valid_after=now + timedelta(days=days),
    )  # fmt: skip
    names = [x509.DNSName("source"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(use)), critical=False)
    signed = builder.sign(signer, hashes.SHA256())
    (folder / "source.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "source.key").write_bytes(secret)
    (folder / "source.key").chmod(0o600)
    trusted = (ca or folder) / ("ca.pem" if ca is not None else "source.pem")
    (folder / "ca.pem").write_bytes(trusted.read_bytes())
    return Credentials.find(folder)


CASES = ("none", "self-signed", "expired", "wrong CA", "wrong name", "of the other use", "revoked pin", "TLS 1.2")


def bad(case: str, hosts: Hosts, folder: Path, side: str) -> Credentials:
    """What the bad side shows; `none` and `TLS 1.2` are no matter of certificates."""
    good = hosts.credentials("source")
    other_use = {"caller": Use.SERVER_AUTH, "listener": Use.CLIENT_AUTH}[side]
    if case == "wrong CA":
        make_certificates(folder / "other", ["source=127.0.0.1"])
        return replace(Credentials.find(folder / "other", "source"), ca=good.ca)
    return {
        "self-signed": lambda: replace(issue(folder / "self", None), ca=good.ca),
        "expired": lambda: issue(folder / "expired", hosts.folder, days=-1),
        "wrong name": lambda: hosts.credentials("elsewhere"),
        "of the other use": lambda: issue(folder / "use", hosts.folder, use=(other_use,)),
    }.get(case, lambda: good)()


def raw(case: str, purpose: int, credentials: Credentials) -> ssl.SSLContext:
    """TLS of a side that shows no certificate, or speaks TLS 1.2 at most, and believes anything."""
    context = ssl.SSLContext(purpose)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if case == "TLS 1.2":
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    if case != "none":
        context.load_cert_chain(credentials.certificate, credentials.key)
    return context


@pytest.mark.parametrize("case", CASES)
def test_a_bad_caller_is_refused(case, hosts, pool, tmp_path):
    theirs, ours, told = bad(case, hosts, tmp_path, "caller"), hosts.credentials("backup"), []
    if case == "revoked pin":
        ours = replace(ours, revoked=frozenset({fingerprint_of(fingerprint(theirs))}))
    with Listener("127.0.0.1:0", {"pool": pool}, Rights(RIGHTS), ours, limits=QUICK, tell=told.append) as listener:
        if case in ("none", "TLS 1.2"):
            host, port = listener.address.split(":")
            context = raw(case, ssl.PROTOCOL_TLS_CLIENT, theirs)
            with (
                pytest.raises(ssl.SSLError, match=r"certificate required|protocol version"),
                context.wrap_socket(socket.create_connection((host, int(port)))) as sock,
            ):
                sock.recv(1)
        else:
            with pytest.raises(NetworkError) as refused:
                RemotePeer(listener.address, "pool", theirs, limits=QUICK, patience_s=0).standing()
            # a name of the CA that no rule has is believed, and has no right
            kind = "not-allowed" if case == "wrong name" else "untrusted"
            assert (refused.value.kind, "pool" in refused.value.message) == (kind, False), refused.value.message
        if case != "revoked pin":
            good = RemotePeer(listener.address, "pool", hosts.credentials("source"), limits=QUICK)
            assert good.standing().volume_id == pool.info.volume_id
    assert [event.what for event in told[:1]] == ["refused"]
    assert threads_left() == []


@contextlib.contextmanager
def bad_listener(case: str, theirs: Credentials, pool):
    """A listener that must not be believed; yields its address."""
    if case == "none":
        with Listener("127.0.0.1:0", {"pool": pool}, Rights({"@plaintext": RIGHTS["source"]}), None) as listener:
            yield listener.address
    elif case == "TLS 1.2":
        with socket.create_server(("127.0.0.1", 0)) as server:
            context = raw(case, ssl.PROTOCOL_TLS_SERVER, theirs)

            def answer() -> None:
                sock, _ = server.accept()
                with sock, contextlib.suppress(OSError):
                    context.wrap_socket(sock, server_side=True).close()

            thread = threading.Thread(target=answer)
            thread.start()
            yield f"127.0.0.1:{server.getsockname()[1]}"
            thread.join()
    else:
        rights = Rights({"source": RIGHTS["source"], "backup": RIGHTS["source"]})
        with Listener("127.0.0.1:0", {"pool": pool}, rights, theirs, limits=QUICK) as listener:
            yield listener.address


@pytest.mark.parametrize("case", CASES)
def test_a_bad_listener_is_refused(case, hosts, pool, tmp_path):
    theirs, ours = bad(case, hosts, tmp_path, "listener"), hosts.credentials("backup")
    expects = None
    if case == "revoked pin":
        expects = fingerprint(hosts.credentials("elsewhere"))
    with bad_listener(case, theirs, pool) as address, pytest.raises(UntrustedError):
        RemotePeer(address, "pool", ours, expects=expects, limits=QUICK, patience_s=0).standing()
    assert threads_left() == []


def test_a_pin_is_enough_and_a_name_can_be_said(hosts, pool):
    with Listener("127.0.0.1:0", {"pool": pool}, Rights(RIGHTS), hosts.credentials("elsewhere"), limits=QUICK) as there:
        for expects in (fingerprint(hosts.credentials("elsewhere")), "elsewhere", "10.0.0.1"):
            peer = RemotePeer(there.address, "pool", hosts.credentials("source"), expects=expects, limits=QUICK)
            assert peer.standing().volume_id == pool.info.volume_id
        pinned = Rights({fingerprint(hosts.credentials("source")): {"pool": ["read"]}})
        there.rights = pinned
        assert peer.standing().volume_id == pool.info.volume_id
        with pytest.raises(NetworkError):
            RemotePeer(there.address, "pool", hosts.credentials("backup"), expects="elsewhere", patience_s=0).standing()


def test_nothing_is_taken_up_again_without_a_certificate(hosts, pool):
    """No session tickets: whoever connects again shows its certificate again."""
    with Listener("127.0.0.1:0", {"pool": pool}, Rights(RIGHTS), hosts.credentials("backup"), limits=QUICK) as listener:
        host, port = listener.address.split(":")
        context = hosts.credentials("source").calling(checks_name=True)
        with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) as sock:
            sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                sock.recv(1)
            assert (sock.version(), sock.session.has_ticket) == ("TLSv1.3", False)


def test_plain_tcp_is_asked_for_by_name(hosts, pool, tmp_path):
    anybody = Rights({"@plaintext": {"pool": ["read"]}})
    for host in ("0.0.0.0", "192.0.2.1", "backup.example", "[2001:db8::1]"):
        with pytest.raises(UsageError, match="no certificates"):
            Listener(f"{host}:0", {"pool": pool}, anybody, None)
        with pytest.raises(UsageError, match="no certificates"):
            RemotePeer(f"{host}:1", "pool", None)
    with pytest.raises(UsageError, match="asked for at once"):
        Listener("127.0.0.1:0", {}, Rights(), hosts.credentials("backup"), insecure_plaintext=True)
    for address, more in (
        ("127.0.0.1:0", {}),
        (f"unix:{tmp_path}/sock", {}),
        ("0.0.0.0:0", {"insecure_plaintext": True}),
    ):
        with Listener(address, {"pool": pool}, anybody, None, **more) as listener:
            there = listener.address.replace("0.0.0.0", "127.0.0.1")
            assert RemotePeer(there, "pool", None).standing().volume_id == pool.info.volume_id
    assert not (tmp_path / "sock").exists()
    # a caller with certificates does not fall back, and is not fallen back to
    with (
        Listener("127.0.0.1:0", {"pool": pool}, Rights(RIGHTS), hosts.credentials("backup"), limits=QUICK) as listener,
        pytest.raises((UntrustedError, ConnectionLostError)),
    ):
        RemotePeer(listener.address, "pool", None, limits=QUICK, patience_s=0).standing()


def test_a_socket_that_is_being_made_is_none_that_was_left(tmp_path, monkeypatch):
    listen, is_bound, may_listen = socket.socket.listen, threading.Event(), threading.Event()

    def slow(sock: socket.socket, backlog: int) -> None:
        if not is_bound.is_set():
            is_bound.set()
            may_listen.wait(TIMEOUT_S)
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", slow)
    monkeypatch.setattr(socketfile, "_MUTEX_S", 0.02)
    place, made = Address.parse(f"unix:{tmp_path}/sock"), []
    first = threading.Thread(target=lambda: made.append(place.listen(1)))
    first.start()
    is_bound.wait(TIMEOUT_S)
    try:
        with pytest.raises(OSError):
            place.listen(1).close()
    finally:
        may_listen.set()
        first.join()
    with made[0], place.connect(TIMEOUT_S, Ending()), made[0].accept()[0], pytest.raises(OSError):
        place.listen(1).close()
    place.listen(1).close()  # what is left now is nobody's


def test_the_name_of_a_socket_goes_before_it_listens_no_more(tmp_path, monkeypatch):
    forget, answered = Address.forget, []

    def watched(place: Address) -> None:
        place.connect(TIMEOUT_S, Ending()).close()
        answered.append(place)
        forget(place)

    monkeypatch.setattr(Address, "forget", watched)
    with Listener(f"unix:{tmp_path}/sock", {}, Rights(), None):
        pass
    assert (len(answered), (tmp_path / "sock").exists()) == (1, False)


def test_a_name_of_a_certificate_is_not_that_of_plain_callers(hosts, pool):
    with pytest.raises(UsageError):
        bp.make_certificates(hosts.folder, ["@plaintext"])
    with (
        Listener(
            "127.0.0.1:0", {"pool": pool}, Rights({"@plaintext": {"pool": ["read"]}}), hosts.credentials("backup")
        ) as listener,
        pytest.raises(NetworkError),
    ):
        RemotePeer(listener.address, "pool", hosts.credentials("source"), patience_s=0).standing()


def test_a_key_that_does_not_fit_is_refused(hosts):
    mixed = replace(hosts.credentials("source"), key=hosts.credentials("backup").key)
    with pytest.raises(KeyFileError, match="cannot be used"):
        Listener("127.0.0.1:0", {}, Rights(), mixed)
