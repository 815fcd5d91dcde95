"""Enrolment from the host: over a real sshd, by hand, cut short anywhere; the key never leaves the device."""

from __future__ import annotations

import base64
import multiprocessing
import os
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices import enrolment
from ferryman.devices.broker import parse_broker
from ferryman.devices.certificates import make_request, new_key, utc_now
from ferryman.devices.fleet import enroll as enroll_module
from ferryman.devices.fleet.authority.authority import PASSPHRASE, Authority, init
from ferryman.devices.fleet.enroll import enroll
from ferryman.devices.fleet.inventory import LocalDevice, SshDevice
from ferryman.devices.identity import CURRENT, NEXT_KEY, folder_of
from ferryman.devices.mqtt import Link
from ferryman.devices.signing import write_operator_key
from ferryman.devices.transport.base import CompletedCommand
from ferryman.devices.transport.local import LocalTransport
from ferryman.runtime.contracts.errors import CallerError, DeviceError, IdentityError, LinkError
from tests.support.authority import Realm, realm_folder
from tests.support.mosquitto import BINARY, free_port, wait_for_port
from tests.support.sshd import SSHD, running_sshd

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FERRYMAN = f"{shlex.quote(sys.executable)} -m ferryman.cli"


@pytest.fixture(scope="module")
def realm():
    with realm_folder() as folder, Realm(folder) as one:
        yield one


@pytest.fixture
def authority(tmp_path):
    init(tmp_path / "ca", utc_now())
    with Authority(tmp_path / "ca") as one:
        yield one


class Tapped(LocalTransport):
    """All that crosses between host and device; may break at one operation, before it is done or after."""

    def __init__(self, break_at=-1, *, after=False):
        self.crossed: list[bytes] = []
        self._count, self._break_at, self._after = 0, break_at, after

    def put(self, local, remote, progress):
        self.crossed.append(local.read_bytes())
        self._step(lambda: super(Tapped, self).put(local, remote, progress))

    def run(self, argv, *, timeout_s):
        done: list[CompletedCommand] = []
        self._step(lambda: done.append(super(Tapped, self).run(argv, timeout_s=timeout_s)))
        self.crossed += [" ".join(argv).encode(), done[0].stdout, done[0].stderr]
        return done[0]

    def _step(self, work):
        broken, self._count = self._count == self._break_at, self._count + 1
        if not broken or self._after:
            work()
        if broken:
            raise LinkError("the link broke")


def tapped(monkeypatch, **options) -> Tapped:
    transport = Tapped(**options)
    monkeypatch.setattr(enroll_module, "connect", lambda _device: transport)
    return transport


@pytest.mark.slow
@pytest.mark.skipif(SSHD is None, reason="sshd is not installed: apt-get install openssh-server")
def test_over_ssh_to_the_broker_and_again(realm, tmp_path):
    with running_sshd(tmp_path) as sshd:
        device = SshDevice(
            name="over-ssh",
            host=sshd.host,
            user=sshd.user,
            port=sshd.port,
            key=sshd.key,
            known_hosts=sshd.known_hosts,
            command=FERRYMAN,
            root=tmp_path / "device root",
        )
        broker = f"mqtts://127.0.0.1:{realm.ports[0]}"
        public = write_operator_key(tmp_path, "alice")
        steps = []
        first = enroll(device, realm.authority, broker=broker, operators=[public], progress=steps.append)
        assert (first.what, first.connected, first.certified.name) == ("enrolled", True, "over-ssh")
        assert steps[-1] == "connect from there to the broker"
        assert enrolment.show(device.root).operators == ("alice",)
        assert (folder_of(device.root) / CURRENT).stat().st_mode & 0o777 == 0o600
        assert not (folder_of(device.root) / "incoming.pem").exists()
        second = enroll(device, realm.authority, broker=broker)
        assert (second.what, second.certified.serial) == ("kept", first.certified.serial)
        realm.revoke("over-ssh")
        third = enroll(device, realm.authority)
        assert third.what == "enrolled"
        assert third.certified.serial != first.certified.serial


def test_the_key_never_leaves_the_device(authority, tmp_path, monkeypatch):
    transport = tapped(monkeypatch)
    device = LocalDevice(name="pi", root=tmp_path / "device")
    enroll(device, authority)
    pem = (folder_of(device.root) / CURRENT).read_bytes()
    key = base64.b64decode(b"".join(pem.split(b"-----END PRIVATE KEY-----")[0].splitlines()[1:]))
    secret = key[36:68]  # the scalar, in PKCS #8 of P-256 (RFC 5915)
    crossed = b"\n".join(transport.crossed)
    assert b"BEGIN CERTIFICATE" in crossed
    assert b"PRIVATE" not in crossed
    assert secret not in crossed
    assert base64.b64encode(key)[:60] not in crossed.replace(b"\n", b"")
    assert secret in key
    registry = (authority.folder / "registry.sqlite").read_bytes()
    assert secret not in registry


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("break_at", range(5))
def test_cut_short_anywhere_it_is_finished_by_the_same_command(authority, tmp_path, monkeypatch, break_at, after):
    device = LocalDevice(name="pi", root=tmp_path / "device")
    tapped(monkeypatch, break_at=break_at, after=after)
    with pytest.raises(LinkError):
        enroll(device, authority)
    tapped(monkeypatch)
    done = enroll(device, authority)
    assert enrolment.current(device.root) == done.certified
    assert not (folder_of(device.root) / NEXT_KEY).exists()
    assert len([one for one in authority.registry.of("pi") if one.state(utc_now()) == "good"]) == 1


def test_by_hand_in_three_steps(authority, tmp_path):
    run = CliRunner()
    root, csr, pem = tmp_path / "device", tmp_path / "pi.csr", tmp_path / "pi.pem"
    there = ["--root", str(root)]
    for words in (
        ["identity", "request", "pi", "-o", str(csr), *there],
        ["ca", "sign", str(authority.folder), str(csr), "-o", str(pem)],
        ["identity", "accept", str(pem), *there],
        ["identity", "accept", str(pem), *there],  # once more is no harm
    ):
        done = run.invoke(main, words)
        assert done.exit_code == 0, done.output
    assert "this is pi, serial" in done.output
    shown = run.invoke(main, ["identity", "show", *there]).output
    assert shown.startswith("pi, serial ")
    assert "commands: signed or not" in shown


@pytest.mark.parametrize("bad", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_answer_leaves_the_old_identity(authority, tmp_path, bad):
    root = tmp_path / "device"
    enrolment.accept(root, authority.sign_device(enrolment.request(root, "pi").csr.encode(), utc_now()))
    before = (folder_of(root) / CURRENT).read_bytes()
    enrolment.request(root, "pi")
    with pytest.raises(IdentityError):
        enrolment.accept(root, bad)
    stranger = authority.sign_device(make_request(new_key(), "pi"), utc_now())
    with pytest.raises(IdentityError, match="not for a key of this device"):
        enrolment.accept(root, stranger)
    assert (folder_of(root) / CURRENT).read_bytes() == before


def test_a_full_disk_leaves_the_old_identity(authority, tmp_path, monkeypatch):
    root = tmp_path / "device"
    enrolment.accept(root, authority.sign_device(enrolment.request(root, "pi").csr.encode(), utc_now()))
    before = (folder_of(root) / CURRENT).read_bytes()
    pem = authority.sign_device(enrolment.request(root, "pi").csr.encode(), utc_now())

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DeviceError, match="No space left"):
            enrolment.accept(root, pem)
    assert (folder_of(root) / CURRENT).read_bytes() == before
    assert enrolment.accept(root, pem).name == "pi"


def test_a_key_that_others_may_read_is_mended_and_said(authority, tmp_path, caplog):
    root = tmp_path / "device"
    enrolment.accept(root, authority.sign_device(enrolment.request(root, "pi").csr.encode(), utc_now()))
    path = folder_of(root) / CURRENT
    path.chmod(0o644)
    enrolment.current(root)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "held a key that others could read (mode 644)" in caplog.text
    elsewhere = tmp_path / "elsewhere.pem"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(IdentityError, match="is no plain file"):
        enrolment.current(root)


def test_names_of_hosts_and_devices_are_apart(authority):
    authority.make_host("hub", ["collector"], utc_now())
    with pytest.raises(CallerError, match="hub is a collector already"):
        authority.sign_device(make_request(new_key(), "hub"), utc_now())
    authority.sign_device(make_request(new_key(), "pi"), utc_now())
    with pytest.raises(CallerError, match="pi is a device already"):
        authority.make_host("pi", ["operator"], utc_now())


def _enroll_many(folder, number):
    with Authority(folder) as authority:
        for n in range(10):
            authority.sign_device(make_request(new_key(), f"pi-{number}-{n}"), utc_now())
            authority.revoke(f"pi-{number}-{n}", utc_now())


@pytest.mark.slow
def test_several_at_once_lose_nothing(authority):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_enroll_many, args=(authority.folder, n)) for n in range(3)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
        assert one.exitcode == 0
    entries = authority.registry.newest()
    assert len(entries) == 30
    assert {one.state(utc_now()) for one in entries} == {"revoked"}


def test_the_authoritys_keys_are_encrypted_by_a_passphrase(tmp_path, monkeypatch):
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    init(tmp_path / "ca", utc_now())
    assert b"ENCRYPTED" in (tmp_path / "ca" / "devices.key").read_bytes()
    csr = make_request(new_key(), "pi")
    with Authority(tmp_path / "ca") as authority:
        authority.sign_device(csr, utc_now())
        for wrong, match in (("", "put its passphrase into"), ("other", "passphrase in .* is wrong")):
            monkeypatch.setenv(PASSPHRASE, wrong)
            with pytest.raises(CallerError, match=match) as caught:
                authority.sign_device(make_request(new_key(), "px"), utc_now())
            assert "correct horse" not in str(caught.value)


def test_an_authority_whose_making_was_killed_is_finished(tmp_path):
    folder = tmp_path / "ca"
    init(folder, utc_now())
    key = (folder / "devices.key").read_bytes()
    (folder / "devices.pem").unlink()
    (folder / "hosts.pem").unlink()
    (folder / "hosts.key").unlink()
    with pytest.raises(CallerError, match="holds no authority"):
        Authority(folder)
    init(folder, utc_now())
    assert (folder / "devices.key").read_bytes() == key
    with pytest.raises(CallerError, match="an authority already"):
        init(folder, utc_now())
    with Authority(folder) as authority:
        authority.sign_device(make_request(new_key(), "pi"), utc_now())


def test_the_command_line_from_nothing_to_a_broker_that_starts(tmp_path):
    with realm_folder() as folder:
        run = CliRunner()
        ca = folder / "ca"
        for words in (
            ["ca", "init", ca],
            ["ca", "server", ca, "hub.lan", "192.0.2.7"],
            ["ca", "client", ca, "collector", "--role", "collector", "-o", folder / "collector.pem"],
            ["ca", "broker", ca, "--bind", "127.0.0.1", "--port", "0"],
        ):
            done = run.invoke(main, [str(word) for word in words])
            if words[1] != "broker":
                assert done.exit_code == 0, done.output
        assert done.exit_code == 2  # no port 0
        done = run.invoke(main, ["ca", "broker", str(ca), "--home-assistant", "--sparkplug", "plant"])
        assert done.exit_code == 0, done.output
        rules = run.invoke(main, ["ca", "acl", str(ca)]).output
        assert "user collector\n" in rules
        assert "pattern write homeassistant/device/%u/config" in rules
        assert "pattern write spBv1.0/plant/NBIRTH/%u" in rules
        done = run.invoke(main, ["ca", "revoke", str(ca), "collector"])
        assert "revoked" in done.output
        assert "restart it" in done.output
        assert "user collector\ntopic deny #" in (folder / "ca-broker" / "acl").read_text()
        listed = run.invoke(main, ["ca", "list", str(ca)]).output
        assert "collector" in listed
        assert "revoked" in listed
        crl = run.invoke(main, ["ca", "crl", str(ca), "--hosts"]).output
        text = subprocess.run(
            ["openssl", "crl", "-text", "-noout"], input=crl, capture_output=True, text=True, check=True
        ).stdout
        assert "Serial Number" in text


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_printed_command_starts_a_broker_that_knows_its_hosts(umask):
    """As root too, whose mosquitto becomes another user."""
    if BINARY is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    ports = [str(free_port()), str(free_port())]
    before = os.umask(umask)
    try:
        with realm_folder() as folder:
            ca, identity = folder / "ca", folder / "c.pem"
            for words in (
                ["init", ca],
                ["server", ca, "127.0.0.1"],
                ["broker", ca, "--bind", "127.0.0.1", "--port", ports[0], "--hosts-port", ports[1]],
                ["client", ca, "c", "--role", "collector", "-o", identity],
            ):
                done = CliRunner().invoke(main, ["ca", *map(str, words)])
                assert done.exit_code == 0, done.output
                if words[0] == "broker":
                    command = shlex.split(done.stdout.split("start it with: ")[1])
            process = subprocess.Popen([BINARY, *command[1:]], stderr=subprocess.PIPE)
            try:
                wait_for_port(int(ports[1]))
                link = Link(parse_broker(f"mqtts://127.0.0.1:{ports[1]}?ca={identity}&cert={identity}"), "c")
                link.start()
                try:
                    link.wait_ready(60)
                finally:
                    link.stop()
            finally:
                process.terminate()
                said = process.communicate(timeout=60)[1].decode()
            assert "Unable to open" not in said
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's mosquitto becomes another user")
def test_root_is_told_where_mosquitto_can_read_its_files(tmp_path):
    pytest.importorskip("pwd").getpwnam("mosquitto")
    tmp_path.chmod(0o700)
    for words in (["init", "ca"], ["server", "ca", "h"], ["broker", "ca"]):
        done = CliRunner().invoke(main, ["ca", words[0], str(tmp_path / "ca"), *words[2:]])
        assert done.exit_code == 0, done.output
    assert "start it with" not in done.output
    assert "who may not enter" in done.stderr
    assert "-o /etc/mosquitto/ferryman" in done.stderr


def test_a_device_that_the_broker_was_not_asked_about_is_enrolled_and_said_so(authority, tmp_path, monkeypatch):
    tapped(monkeypatch)
    device = LocalDevice(name="pi", root=tmp_path / "device")
    done = enroll(device, authority, broker=f"mqtts://127.0.0.1:{free_port()}")
    assert (done.what, done.connected) == ("enrolled", False)
    assert "not connected" in str(done.problem)
    assert enrolment.current(device.root) == done.certified
