"""The authority's commands: they overwrite nothing of another's, and a revocation reaches the broker's files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from ferryman.cli import main
from ferryman.devices.certificates import make_request, new_key, utc_now
from ferryman.devices.fleet.authority.authority import Authority


@pytest.fixture
def ca(tmp_path) -> Path:
    folder = tmp_path / "ca"
    done(run("init", folder))
    done(run("server", folder, "hub.lan"))
    done(run("broker", folder))
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["ca", *map(str, words)])


def done(result: Result) -> Result:
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(result: Result, said: str) -> None:
    assert result.exit_code == 1, (result.output, result.exception)
    assert said in result.stderr


def request(folder: Path, name: str) -> Path:
    path = folder / f"{name}.csr"
    path.write_bytes(make_request(new_key(), name))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for one in (folder, beside(folder)) for path in one.rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and "sqlite-" not in path.name}


def beside(ca: Path) -> Path:
    return ca.with_name("ca-broker")


def denied(folder: Path, side: str = "devices") -> int:
    return len(x509.load_pem_x509_crl((beside(folder) / f"{side}.crl").read_bytes()))


@pytest.mark.parametrize("option", [("--sparkplug", "my group"), ("--home-assistant", "a b"), ("--bind", "a\nb")])
def test_a_wrong_option_is_refused_before_anything_is_written(ca, tmp_path, option):
    before = contents(ca)
    refused(run("broker", ca, *option), repr(option[1]))
    assert contents(ca) == before
    done(run("sign", ca, request(tmp_path, "pi"), "-o", tmp_path / "pi.pem"))


@pytest.mark.parametrize("damage", ['{"path": "x", "sparkplug_group": "my group"}', "no JSON"])
def test_a_revocation_is_in_the_broker_list_whatever_is_wrong_with_its_options(ca, tmp_path, damage):
    done(run("sign", ca, request(tmp_path, "pi"), "-o", tmp_path / "pi.pem"))
    (beside(ca) / "ferryman.json").write_text(damage)
    result = run("revoke", ca, "pi")
    assert denied(ca) == 1
    refused(result, f"the broker's files in {beside(ca)} are stale (acl)")
    refused(result, "ferryman ca broker")
    signed = done(run("sign", ca, request(tmp_path, "px")))
    assert "BEGIN CERTIFICATE" in signed.stdout
    assert "stale (acl)" in signed.stderr
    done(run("client", ca, "bob", "--role", "viewer", "-o", tmp_path / "bob.pem"))
    done(run("broker", ca))
    assert "user pi\ntopic deny #" in (beside(ca) / "acl").read_text()


def test_one_list_is_written_without_the_key_of_the_other(ca, tmp_path):
    done(run("sign", ca, request(tmp_path, "pi"), "-o", tmp_path / "pi.pem"))
    (ca / "hosts.key").unlink()
    refused(run("revoke", ca, "pi"), "stale (hosts.crl)")
    assert denied(ca) == 1


def test_a_name_that_nobody_has_keeps_no_other_from_being_revoked(ca, tmp_path):
    done(run("sign", ca, request(tmp_path, "pi"), "-o", tmp_path / "pi.pem"))
    refused(run("revoke", ca, "nobody", "pi"), "nobody is called nobody")
    assert denied(ca) == 1


@pytest.mark.parametrize(
    "output",
    [
        "devices.key",
        "hosts.pem",
        "registry.sqlite",
        "registry.sqlite-wal",
        "lock",
        "../ca-broker/acl",
        "../ca-broker/server.pem",
    ],
)
def test_no_output_overwrites_what_is_the_authoritys(ca, tmp_path, output):
    before = contents(ca)
    csr = request(tmp_path, "pi")
    for words in (("client", ca, "z", "--role", "viewer"), ("sign", ca, csr)):
        refused(run(*words, "-o", ca / output), "-o")
    assert {path: data for path, data in contents(ca).items() if path in before} == before
    with Authority(ca) as authority:
        assert authority.registry.of("z") == authority.registry.of("pi") == []


def test_a_client_called_as_the_authoritys_file_is_kept_from_it(ca, monkeypatch):
    monkeypatch.chdir(ca)
    before = contents(ca)
    refused(run("client", ".", "devices", "--role", "viewer"), "-o")
    assert contents(ca) == before


def test_a_client_file_is_replaced_by_that_of_the_same_client_alone(ca, tmp_path):
    mine, note = tmp_path / "bob.pem", tmp_path / "note"
    done(run("client", ca, "bob", "--role", "viewer", "-o", mine))
    before = mine.read_bytes()
    done(run("client", ca, "bob", "--role", "viewer", "-o", mine))
    assert mine.read_bytes() != before
    refused(run("client", ca, "eve", "--role", "viewer", "-o", mine), "is no identity of eve")
    note.write_text("dear diary")
    for words in (("client", ca, "eve", "--role", "viewer"), ("sign", ca, request(tmp_path, "pi"))):
        refused(run(*words, "-o", note), "move it away, or name another file")
    assert note.read_text() == "dear diary"


def test_the_brokers_folder_is_no_other_folder(ca, tmp_path):
    before = contents(ca)
    for words in (("broker", ca), ("server", ca, "h")):
        refused(run(*words, "-o", ca), "the authority's own folder")
    assert contents(ca) == before
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "mosquitto.conf").write_text("mine")
    (etc / "server.pem").write_text("mine")
    refused(run("server", ca, "h", "-o", etc), "is no certificate of the broker")
    refused(run("broker", ca, "-o", etc), "is not of `ferryman ca broker`")
    assert (etc / "mosquitto.conf").read_text() == (etc / "server.pem").read_text() == "mine"
    done(run("server", ca, "hub.lan", "192.0.2.1"))
    done(run("broker", ca))


def test_an_operators_key_overwrites_no_certificate(ca, tmp_path):
    done(run("client", ca, "bob", "--role", "viewer", "-o", tmp_path / "bob.pem"))
    before = (tmp_path / "bob.pem").read_bytes()
    refused(run("operator", "bob", "-o", tmp_path), "bob.pem is there already")
    assert (tmp_path / "bob.pem").read_bytes() == before


def test_a_host_keeps_its_roles_until_it_is_revoked(ca, tmp_path):
    out = tmp_path / "bob.pem"
    done(run("client", ca, "bob", "--role", "collector", "-o", out))
    refused(
        run("client", ca, "bob", "--role", "operator", "-o", out), "choose another name, or first: ferryman ca revoke"
    )
    assert "request" not in run("acl", ca).output.partition("user bob")[2]
    done(run("revoke", ca, "bob"))
    done(run("client", ca, "bob", "--role", "operator", "-o", out))
    assert denied(ca, "hosts") == 1
    with Authority(ca) as authority:
        late = utc_now() + dt.timedelta(days=400)
        authority.make_host("bob", ["viewer"], late)  # the other has expired


def test_a_registry_that_is_damaged_or_gone_is_restored_not_made_anew(ca):
    registry = ca / "registry.sqlite"
    for extra in ca.glob("registry.sqlite-*"):
        extra.unlink()
    registry.write_bytes(b"nonsense" * 1000)
    refused(run("list", ca), "restore it from a backup")
    registry.unlink()
    refused(run("list", ca), "restore it from a backup")
    assert not registry.exists()


@pytest.mark.parametrize(
    "host",
    ["a\nb", "999.1.1.1", "", "-a", "a-.b", "ä", "a b", "*.lan", "a..b", "x" * 64, "a." * 127 + "b", "a\n", "1.2"],
)
def test_what_is_no_host_of_a_broker_is_refused(ca, host):
    refused(run("server", ca, "--", host), "expected a host name")


@pytest.mark.parametrize("host", ["hub", "hub.lan", "192.0.2.7", "2001:db8::1", "a_b.c-d", "4u.xn--bcher-kva.ch"])
def test_hosts_of_a_broker(ca, host):
    done(run("server", ca, host))
    assert host in run("list", ca).output


def test_a_request_without_end_is_not_read_to_its_end(ca):
    refused(run("sign", ca, "/dev/zero"), "found 65537 bytes")


def test_every_brokers_folder_has_the_rules_whatever_the_order(ca, tmp_path):
    elsewhere = tmp_path / "br2"
    done(run("server", ca, "hub.lan", "-o", elsewhere))
    done(run("broker", ca, "-o", elsewhere, "--path", "/etc/there", "--hosts-port", "18884"))
    said = done(run("client", ca, "collector", "--role", "collector", "-o", tmp_path / "c.pem"))
    for folder in (beside(ca), elsewhere):
        assert "user collector\n" in (folder / "acl").read_text()
        assert f"{folder}: the broker's rules are written" in said.stderr
    assert "put it at /etc/there on the broker" in said.stderr
    done(run("sign", ca, request(tmp_path, "pi"), "-o", tmp_path / "pi.pem"))
    done(run("revoke", ca, "pi"))
    assert "user pi\ntopic deny #" in (elsewhere / "acl").read_text()
    (elsewhere / "acl").unlink()
    assert "user collector\n" in done(run("acl", ca)).stdout
    assert "user collector\n" in (elsewhere / "acl").read_text()


def test_a_brokers_folder_that_is_gone_is_said_and_the_others_are_written(ca, tmp_path):
    elsewhere = tmp_path / "br2"
    done(run("server", ca, "hub.lan", "-o", elsewhere))
    done(run("broker", ca, "-o", elsewhere))
    elsewhere.rename(tmp_path / "moved")
    said = done(run("client", ca, "collector", "--role", "collector", "-o", tmp_path / "c.pem"))
    assert f"{elsewhere}, written for a broker, is not there" in said.stderr
    assert "user collector\n" in (beside(ca) / "acl").read_text()
    refused(run("revoke", ca, "collector"), "not in every broker's folder")
    assert not elsewhere.exists()


def test_a_client_without_any_brokers_folder_is_told_so(tmp_path):
    ca = tmp_path / "new"
    done(run("init", ca))
    said = done(run("client", ca, "c", "--role", "collector", "-o", tmp_path / "c.pem"))
    assert "no broker's folder was written here yet" in said.stderr
    assert "for 365 days" in said.stdout


def test_the_folder_within_the_authority_that_an_earlier_version_wrote_is_written_on(ca, tmp_path):
    beside(ca).rename(ca / "broker")
    (ca / "brokers.json").unlink()
    done(run("client", ca, "c", "--role", "collector", "-o", tmp_path / "c.pem"))
    assert "user c\n" in (ca / "broker" / "acl").read_text()


def test_a_client_is_told_the_hosts_port_of_its_broker(ca, tmp_path):
    done(run("broker", ca, "--hosts-port", "18884"))
    said = done(run("client", ca, "c", "--role", "collector", "-o", tmp_path / "c.pem"))
    assert "mqtts://HOST:18884?" in said.stdout
