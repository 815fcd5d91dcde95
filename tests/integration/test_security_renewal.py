"""A certificate renews itself over a real broker, and whatever goes wrong the old one serves."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from contextlib import contextmanager

import pytest

from ferryman.devices import certificates, enrolment, topics
from ferryman.devices.agent.renewal import Renewal
from ferryman.devices.certificates import utc_now
from ferryman.devices.fleet.authority.authority import LIFE, RENEWALS_A_DAY
from ferryman.devices.fleet.authority.service import RenewalService
from ferryman.devices.identity import CURRENT, NEXT, NEXT_KEY, folder_of, write_secret
from ferryman.devices.mqtt import Link, Message
from tests.support.authority import Realm, realm_folder
from tests.support.telemetry import until

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
QUICK = {"look_s": 0.1, "ask_first_s": 30.0, "trial_s": 30.0}


@pytest.fixture(scope="module")
def realm():
    with realm_folder() as folder, Realm(folder, hosts={"renewals": ("ca",)}) as one:
        yield one


@pytest.fixture
def service(realm):
    with serving(realm) as one:
        yield one


@contextmanager
def serving(realm):
    stop, there = threading.Event(), threading.Event()
    one = RenewalService(realm.authority, realm.host("renewals", "ca"))
    thread = threading.Thread(target=one.run, args=(stop, there.set))
    thread.start()
    assert there.wait(60)
    try:
        yield one
    finally:
        stop.set()
        thread.join()


def due(realm, device):
    """An identity with a quarter of its life left, and how it reaches the broker."""
    root = realm.root(device)
    if not (folder_of(root) / CURRENT).exists():
        csr = enrolment.request(root, device).csr.encode()
        enrolment.accept(root, realm.authority.sign_device(csr, utc_now() - LIFE * 3 / 4))
    return realm.device(device)


@contextmanager
def renewing(realm, device, **options):
    link = Link(due(realm, device), device)
    downs = []
    renewal = Renewal(device, realm.root(device), link, **QUICK | options)
    link.on_down(lambda: downs.append(1))
    link.start()
    link.wait_ready(60)
    stop = threading.Event()
    thread = threading.Thread(target=renewal.run, args=(stop,))
    thread.start()
    try:
        yield link
    finally:
        stop.set()
        renewal.wake()
        thread.join()
        link.stop()


def serial(realm, device):
    return enrolment.current(realm.root(device)).serial


def left(realm, device):
    return enrolment.current(realm.root(device)).left(utc_now())


def test_a_certificate_that_is_due_is_renewed_and_serves(realm, service):
    due(realm, "pi")
    before, key = serial(realm, "pi"), enrolment.current(realm.root("pi")).key_sha256
    with renewing(realm, "pi") as link:
        until(lambda: left(realm, "pi") > 0.9, 60)
        until(lambda: link.connected_by)
        assert serial(realm, "pi") != before
        assert enrolment.current(realm.root("pi")).key_sha256 != key  # a new key, too
        assert link.connected_by.tls_cert.endswith((CURRENT, NEXT))
        folder = folder_of(realm.root("pi"))
        until(lambda: not (folder / NEXT).exists())
        assert not (folder / NEXT_KEY).exists()
        assert (folder / CURRENT).stat().st_mode & 0o777 == 0o600
        time.sleep(0.5)
        assert service.signed == 1  # once is enough


def test_a_fresh_certificate_is_left_alone(realm, service):
    realm.enrolled("fresh")
    before = serial(realm, "fresh")
    with renewing(realm, "fresh"):
        time.sleep(0.5)
    assert serial(realm, "fresh") == before
    assert service.signed == 0


def test_an_answer_that_was_lost_is_asked_for_again_and_is_the_same(realm, service):
    due(realm, "lossy")
    csr = enrolment.request(realm.root("lossy"), "lossy").csr.encode()
    first = realm.authority.sign_device(csr, utc_now(), name="lossy", renewal=True)  # and never sent
    with renewing(realm, "lossy"):
        until(lambda: left(realm, "lossy") > 0.9, 60)
    assert serial(realm, "lossy") == f"{certificates.read_certificates(first, '')[0].serial_number:x}"
    assert len(realm.authority.registry.of("lossy")) == 2


def test_no_service_means_a_warning_and_the_old_certificate(realm, caplog):
    due(realm, "alone")
    before = serial(realm, "alone")
    with renewing(realm, "alone", ask_first_s=1.0), caplog.at_level(logging.WARNING):
        until(lambda: "does `ferryman ca serve` run?" in caplog.text, 60)
    assert serial(realm, "alone") == before


def test_a_certificate_the_broker_refuses_is_not_taken(realm, caplog):
    """Signed by a real authority, and revoked before it was used."""
    due(realm, "unlucky")
    root = realm.root("unlucky")
    csr = enrolment.request(root, "unlucky").csr.encode()
    pem = realm.authority.sign_device(csr, utc_now())
    assert enrolment.accept_renewal(root, pem, "unlucky")
    with realm.authority.registry.writing():
        new = realm.authority.registry.of("unlucky")[0]
        realm.authority.registry._connection.execute(
            "UPDATE certificates SET revoked_s = 1 WHERE serial = ?", [new.serial]
        )
    realm.refresh()
    before = serial(realm, "unlucky")
    with renewing(realm, "unlucky", trial_s=3.0) as link, caplog.at_level(logging.WARNING):
        until(lambda: "the old one goes on" in caplog.text, 60)
        until(lambda: link.connected_by)
        assert link.connected_by.tls_cert.endswith(CURRENT)
        until(lambda: not (folder_of(root) / NEXT).exists())
    assert serial(realm, "unlucky") == before


@pytest.mark.parametrize("left_behind", [(NEXT_KEY,), (NEXT_KEY, NEXT), (NEXT,)])
def test_a_renewal_that_was_killed_is_finished(realm, service, left_behind):
    device = f"killed-{len(left_behind)}-{left_behind[-1][:8].replace('.', '-')}"
    due(realm, device)
    root = realm.root(device)
    csr = enrolment.request(root, device).csr.encode()
    if NEXT in left_behind:
        pem = realm.authority.sign_device(csr, utc_now(), name=device, renewal=True)
        enrolment.accept_renewal(root, pem, device)
    if NEXT_KEY not in left_behind:
        (folder_of(root) / NEXT_KEY).unlink()
    with renewing(realm, device):
        until(lambda: left(realm, device) > 0.9, 60)
    assert not (folder_of(root) / NEXT).exists()


def test_an_expired_certificate_says_to_enroll_anew(realm, caplog):
    root = realm.root("late")
    key = certificates.new_key()
    pem = realm.authority.sign_device(certificates.make_request(key, "late"), utc_now() - 2 * LIFE)
    folder_of(root).mkdir(parents=True)
    write_secret(folder_of(root) / CURRENT, certificates.key_to_pem(key) + pem)
    stop = threading.Event()
    renewal = Renewal("late", root, Link(realm.device("late"), "late"), **QUICK)
    thread = threading.Thread(target=renewal.run, args=(stop,))
    thread.start()
    until(lambda: "on the host: ferryman enroll late" in caplog.text)
    stop.set()
    renewal.wake()
    thread.join()


class TestService:
    """What the service is asked that it must not do."""

    @pytest.fixture
    def ask(self, realm, service):
        """Publish a request as a device, and whether anything was signed."""

        def work(device, csr):
            before = service.signed, service.refused
            link = Link(realm.device(device), device)
            link.start()
            link.wait_ready(60)
            link.publish(Message(topic=topics.csr(device), payload=csr))
            until(lambda: (service.signed, service.refused) != before)
            link.stop()
            return service.signed > before[0]

        return work

    def csr(self, name):
        return certificates.make_request(certificates.new_key(), name)

    def test_anothers_name(self, realm, ask, caplog):
        realm.enrolled("thief")
        realm.enrolled("victim")
        assert not ask("thief", self.csr("victim"))
        assert "thief asks for a certificate of victim" in caplog.text

    def test_what_is_no_request(self, realm, ask):
        realm.enrolled("odd")
        good = self.csr("odd")
        for bad in (b"", b"\0" * 100, good[:-60], good.replace(b"A", b"B", 5), b"x" * 60_000, good + b"\xff"):
            assert not ask("odd", bad) or bad.startswith(good)
        assert ask("odd", good)

    def test_too_often(self, realm, ask, caplog):
        realm.enrolled("eager")
        assert [ask("eager", self.csr("eager")) for _ in range(RENEWALS_A_DAY)] == [True] * 3 + [False]
        assert "had 4 certificates within a day" in caplog.text

    def test_a_device_that_was_revoked_while_it_is_connected(self, realm, service, caplog):
        broker = realm.enrolled("gone")
        link = Link(broker, "gone")
        link.start()
        link.wait_ready(60)
        realm.authority.revoke("gone", utc_now())  # and the broker has not read it yet
        link.publish(Message(topic=topics.csr("gone"), payload=self.csr("gone")))
        until(lambda: "gone may not renew a certificate, its certificate is revoked" in caplog.text)
        link.stop()

    def test_a_key_that_was_revoked(self, realm):
        key = certificates.new_key()
        csr = certificates.make_request(key, "keyed")
        realm.authority.sign_device(csr, utc_now())
        realm.authority.revoke("keyed", utc_now())
        with pytest.raises(certificates.IdentityError, match="was revoked; enroll it anew, with another key"):
            realm.authority.sign_device(csr, utc_now())

    def test_a_weak_or_foreign_key(self, realm):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, rsa

        for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
            csr = x509.CertificateSigningRequestBuilder(certificates.name_of("weak")).sign(key, hashes.SHA256())
            with pytest.raises(certificates.IdentityError, match="ECDSA P-256"):
                realm.authority.sign_device(csr.public_bytes(certificates.Encoding.PEM), utc_now())


def test_no_answer_of_another_authority_is_taken(realm):
    """Whoever can write a device's certificate topic cannot move it to another authority."""
    due(realm, "firm")
    root = realm.root("firm")
    csr = enrolment.request(root, "firm").csr.encode()
    with realm_folder() as folder:
        other = Realm(folder)
        pem = other.authority.sign_device(csr, utc_now())
        other.authority.close()
    with pytest.raises(certificates.IdentityError, match="not signed by the authority beside it"):
        enrolment.accept_renewal(root, pem, "firm")
    assert not (folder_of(root) / NEXT).exists()
    assert dt.timedelta(0) < enrolment.current(root).not_after - utc_now()
