"""`cert`: a private CA and certificates that both sides can use; nothing is overwritten."""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

import blockplane as bp
from blockplane.server.network import Credentials
from blockplane.server.network.certificates import certificate_beside
from blockplane.server.network.tls import fingerprint_of


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_one_command_makes_all(done, tmp_path):
    made = done("cert", "tls", "source", "backup=backup.example,10.0.0.2,::1", "--json").json["certificates"]
    assert [entry["names"] for entry in made] == [["ca"], ["source"], ["backup", "backup.example", "10.0.0.2", "::1"]]
    names = {"ca.pem", "ca.key", "source.pem", "source.key", "backup.pem", "backup.key"}
    assert set(os.listdir("tls")) == names
    assert mode("tls") == 0o700
    assert {mode(f"tls/{name}") for name in names if name.endswith(".key")} == {0o600}
    for entry in made:
        der = ssl.PEM_cert_to_DER_cert((tmp_path / entry["certificate"]).read_text())
        assert fingerprint_of(entry["fingerprint"]) == hashlib.sha256(der).digest()
    before = {name: (tmp_path / "tls" / name).read_bytes() for name in names}
    text = done("cert", "tls", "third").out
    assert "tls/third.pem  sha256:" in text
    assert "ca.pem" not in text
    assert {name: (tmp_path / "tls" / name).read_bytes() for name in names} == before


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["a"], 1, "tls/a.pem exists: a certificate is never overwritten"),
        (["b", "a"], 1, "tls/a.pem exists: a certificate is never overwritten"),
        (["ca"], 2, "'ca' is the name of the CA itself"),
        (["../x"], 2, "is no name of a host"),
        ([".x"], 2, "is no name of a host"),
        (["x y"], 2, "is no name of a host"),
        (["x:1"], 2, "is no name of a host"),
        (["x=a,,b"], 2, "is no name of a host"),
        (["x" * 65], 2, "is no name of a host"),
        (["b", "b"], 2, "a name is given twice"),
    ],
)
def test_refusals_change_nothing(blockplane, done, words, status, said):
    done("cert", "tls", "a")
    before = sorted(os.listdir("tls"))
    outcome = blockplane("cert", "tls", *words, "--json")
    assert (outcome.status, said in outcome.error["message"]) == (status, True), outcome.error
    assert sorted(os.listdir("tls")) == before


def test_a_ca_without_its_key_makes_nothing(done, blockplane, tmp_path):
    done("cert", "tls", "a")
    os.unlink("tls/ca.key")
    outcome = blockplane("cert", "tls", "b", "--json")
    assert "tls/ca.key is not" in outcome.error["message"]
    assert not (tmp_path / "tls" / "b.pem").exists()


def let_ca_end(folder: Path, days: float) -> None:
    """Sign the CA's certificate anew, so that it ends in so many days."""
    old = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
        .serial_number(5).not_valid_before(now - timedelta(3650)).not_valid_after(now + timedelta(days))
    )  # fmt: skip
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    (folder / "ca.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def test_a_ca_that_has_ended_makes_nothing(done, blockplane, tmp_path):
    done("cert", "tls", "a")
    let_ca_end(tmp_path / "tls", -1)
    before = sorted(os.listdir("tls"))
    outcome = blockplane("cert", "tls", "b", "--json")
    assert "the CA tls/ca.pem ended on 2" in outcome.error["message"]
    assert outcome.error["hint"].startswith("move tls away")
    assert sorted(os.listdir("tls")) == before


def test_a_certificate_ends_with_its_ca(done, tmp_path):
    assert "ends with its CA" not in done("cert", "tls", "a").out
    let_ca_end(tmp_path / "tls", 100)
    ca = x509.load_pem_x509_certificate(Path("tls/ca.pem").read_bytes())
    assert f"ends with its CA, on {ca.not_valid_after_utc:%Y-%m-%d}" in done("cert", "tls", "b").out
    assert x509.load_pem_x509_certificate(Path("tls/b.pem").read_bytes()).not_valid_after_utc == ca.not_valid_after_utc


def names_of(path: str) -> list[str]:
    found = x509.load_pem_x509_certificate(Path(path).read_bytes()).extensions
    return [str(name.value) for name in found.get_extension_for_class(x509.SubjectAlternativeName).value]


def test_a_renewed_certificate_has_another_key_and_the_same_names(done, blockplane):
    (_, old) = done("cert", "tls", "a=a.example,10.0.0.2", "--json").json["certificates"]
    others = {name: Path("tls", name).read_bytes() for name in ("ca.pem", "ca.key")}
    key = Path("tls/a.key").read_bytes()
    out = done("cert", "--renew", "tls", "a").out
    signed = x509.load_pem_x509_certificate(Path("tls/a.pem").read_bytes())
    assert f"tls/a.pem  sha256:{signed.fingerprint(hashes.SHA256()).hex()}\n" in out
    assert old["fingerprint"].removeprefix("sha256:") not in out
    assert "until they have the new files and are reloaded, or restarted" in out
    assert "must be told the new one" in out
    assert Path("tls/a.key").read_bytes() != key
    assert mode("tls/a.key") == 0o600
    assert names_of("tls/a.pem") == ["a", "a.example", "10.0.0.2"]
    assert {name: Path("tls", name).read_bytes() for name in others} == others
    assert "of NAME=OTHER,OTHER with these alone" in " ".join(done("cert", "--help").out.split())
    done("cert", "--renew", "tls", "a=b.example")
    assert names_of("tls/a.pem") == ["a", "b.example"]
    outcome = blockplane("cert", "--renew", "tls", "a", "c", "--json")
    assert outcome.error["message"] == "tls/c.pem is not there: there is nothing to renew"
    assert "--renew" in blockplane("cert", "tls", "a", "--json").error["hint"]
    assert sorted(os.listdir("tls")) == ["a.key", "a.pem", "ca.key", "ca.pem"]


KILLED = """
import os, sys
left = int(sys.argv[1])
def see(event, arguments):
    global left
    left -= event in ("os.link", "os.rename", "os.remove", "fcntl.flock")
    if left < 0 and event in ("os.link", "os.rename", "os.remove", "fcntl.flock"):
        os._exit(9)
sys.addaudithook(see)
from blockplane.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


def killed_at(step: int, *words: str) -> bool:
    """Run a verb that is killed before the change of that number; return whether it was."""
    found = subprocess.run([sys.executable, "-c", KILLED, str(step), *words], stdout=subprocess.DEVNULL, check=False)
    assert found.returncode in (0, 9)
    return found.returncode == 9


def test_a_renewal_that_is_killed_leaves_a_pair_that_fits(done):
    done("cert", "tls", "a")
    step = 0
    while killed_at(step, "cert", "--renew", "tls", "a"):
        Credentials.find("tls", "a").listening()
        step += 1
    assert step >= 3
    assert sorted(os.listdir("tls")) == ["a.key", "a.pem", "ca.key", "ca.pem"]
    signed = x509.load_pem_x509_certificate(Path("tls/a.pem").read_bytes())
    assert certificate_beside(Path("tls/a.key").read_bytes()) == signed.public_bytes(serialization.Encoding.PEM)


def test_what_was_killed_half_way_is_in_nobodys_way(done):
    step = 0
    while killed_at(step, "cert", f"tls{step}", "a"):
        folder = f"tls{step}"
        done("cert", folder, "b")
        done("cert", *(["--renew"] if os.path.lexists(f"{folder}/a.key") else []), folder, "a")
        assert sorted(os.listdir(folder)) == ["a.key", "a.pem", "b.key", "b.pem", "ca.key", "ca.pem"]
        Credentials.find(folder, "a").listening()
        step += 1
    assert step >= 8


def test_which_certificate_a_folder_means(tmp_path):
    folder = tmp_path / "tls"
    with pytest.raises(bp.errors.KeyFileError, match="no such folder"):
        Credentials.find(folder)
    bp.make_certificates(folder, ["a", "b"])
    with pytest.raises(bp.errors.KeyFileError, match="several certificates: a, b"):
        Credentials.find(folder)
    assert Credentials.find(folder / "b") == Credentials.find(folder, "b")
    with pytest.raises(bp.errors.KeyFileError, match=r"c\.pem: no such file"):
        Credentials.find(folder, "c")
    with pytest.raises(bp.errors.KeyFileError, match="no such folder") as none:
        Credentials.find(folder / "c")
    assert none.value.hint == f"make it: blockplane cert {folder} c"  # and no CA within
    for name in ("ca.key", "b.pem", "b.key"):
        (folder / name).unlink()
    assert Credentials.find(folder).certificate == folder / "a.pem"
    (folder / "a.key").chmod(0o640)
    with pytest.raises(bp.errors.KeyFileError, match="others than its owner may read"):
        Credentials.find(folder)
