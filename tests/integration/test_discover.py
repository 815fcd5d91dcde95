"""Discovery with real mDNS: advertisements in a network namespace, heard on the other end of a veth pair."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices.fleet.discover import ANSWERS_MAX, discover
from ferryman.devices.fleet.inventory import read_devices
from tests.support.netns import far_device

AVAHI = shutil.which("avahi-daemon", path="/usr/sbin:/sbin")
ADVERTISE = """
import json, sys, socket, time
from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, DNSText, ServiceInfo, Zeroconf

address, how, services = sys.argv[1], sys.argv[2], json.load(sys.stdin)
packed = socket.inet_aton(address)
infos = []
if how == "answer":
    zeroconf = Zeroconf(interfaces=[address])
    for kind, name, port, server, texts in services:
        zeroconf.registry.async_add(
            ServiceInfo(kind, f"{name}.{kind}", port=port, server=server, properties=texts, addresses=[packed])
        )
    print("ready", flush=True)
    time.sleep(60)
# shout: whatever zeroconf itself would refuse to say
out = DNSOutgoing(0x8400)
for kind, name, port, server, texts in services:
    whole = f"{name}.{kind}"
    pairs = [f"{key}={value}".encode("latin-1") for key, value in texts.items()]
    text = b"".join(bytes([len(pair)]) + pair for pair in pairs)
    for record in (
        DNSPointer(kind, 12, 1, 4500, whole),
        DNSService(whole, 33, 1, 4500, 0, 0, port, server),
        DNSText(whole, 16, 1, 4500, text),
        DNSAddress(server, 1, 1, 4500, packed),
    ):
        out.add_answer_at_time(record, 0)
packets = out.packets()
sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sink.bind((address, 5353))
sink.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, packed)
print("ready", flush=True)
for _ in range(200):
    for packet in packets:
        sink.sendto(packet, ("224.0.0.251", 5353))
    time.sleep(0.3)
"""
KITCHEN = [
    ("_ferryman._tcp.local.", "kitchen", 22, "kitchen.local.", {"device": "pi", "version": "0.2.0"}),
    ("_ssh._tcp.local.", "kitchen", 22, "kitchen.local.", {}),
    ("_mqtt._tcp.local.", "hub", 1883, "hub.local.", {}),
    ("_adb-tls-connect._tcp.local.", "adb-R58N", 37123, "phone.local.", {}),
]


@contextmanager
def advertising(link, services, how="answer"):
    """Answer for services in the namespace, or shout them, until the `with` ends."""
    address, pipe = f"{link.host.rpartition('.')[0]}.2", subprocess.PIPE
    process = link.run([sys.executable, "-c", ADVERTISE, address, how], stdin=pipe, stdout=pipe)
    try:
        process.stdin.write(json.dumps(services))
        process.stdin.close()
        assert process.stdout.readline() == "ready\n"
        yield address
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="module")
def link():
    with far_device(7) as link:
        yield link


@pytest.mark.slow
def test_devices_are_found_and_nothing_is_written(link, tmp_path, monkeypatch):
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "devices.toml"))
    with advertising(link, KITCHEN) as address:
        words = ["devices", "discover", "--seconds", "3", "--interface", link.host, "--json"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        found = {one["host"]: one for one in map(json.loads, done.stdout.splitlines())}
        assert set(found) == {"kitchen.local", "hub.local", "phone.local"}
        kitchen = found["kitchen.local"]
        assert kitchen["services"] == {"ferryman": 22, "ssh": 22}
        assert (kitchen["device"], kitchen["version"], kitchen["addresses"]) == ("pi", "0.2.0", [address])
        assert not (tmp_path / "devices.toml").exists()

        done = CliRunner().invoke(
            main, [*words, "--add", "kitchen.local", "--add", "phone.local=mobile", "--user", "me"]
        )
        assert done.exit_code == 0, done.output
        devices = read_devices()
        assert (devices["pi"].host, devices["pi"].user) == ("kitchen.local", "me")
        assert devices["mobile"].adb == f"{address}:37123"

        done = CliRunner().invoke(main, [*words, "--add", "nobody.local"])
        assert done.exit_code == 1
        assert "no such host answered; there are: hub.local, kitchen.local, phone.local" in done.stderr


def test_what_strangers_say_is_cut_and_harmless(link):
    hostile = [
        ("_ferryman._tcp.local.", "evil", 22, "evil.local.", {"device": "../x", "version": "\x1b[2J" + "v" * 200}),
        ("_ssh._tcp.local.", "a\x1b[31mb", 22, "esc.local.", {"k": "\xff" * 200}),
        ("_ssh._tcp.local.", "nowhere", 0, "nowhere.local.", {}),
    ]
    with advertising(link, hostile, "shout"):
        found = discover(2.0, interfaces=(link.host,))
        shown = CliRunner().invoke(main, ["devices", "discover", "--seconds", "2", "--interface", link.host])
    (evil,) = (one for one in found.hosts if one.host == "evil.local")
    assert evil.device == ""
    assert len(evil.version) == 128
    assert "\x1b" not in shown.stdout
    assert "nowhere.local" not in {one.host for one in found.hosts}
    assert found.left_out >= 1
    assert "answers were left out" in shown.stderr


@pytest.mark.slow
def test_thousands_of_answers_are_bounded_in_number_and_time(link):
    many = [("_ssh._tcp.local.", f"host{n}", 22, f"host{n}.local.", {"k": "v" * 200}) for n in range(ANSWERS_MAX + 500)]
    with advertising(link, many, "shout"):
        begin = time.monotonic()
        found = discover(3.0, interfaces=(link.host,))
        assert time.monotonic() - begin < 60
    assert 0 < len(found.hosts) <= ANSWERS_MAX


@pytest.mark.slow
@pytest.mark.skipif(AVAHI is None, reason="avahi-daemon is not installed: apt-get install avahi-daemon")
def test_a_device_that_avahi_advertises_is_found(link, tmp_path):
    services = tmp_path / "services"
    services.mkdir()
    (services / "ferryman.service").write_text(
        '<?xml version="1.0" standalone="no"?>\n<!DOCTYPE service-group SYSTEM "avahi-service.dtd">\n'
        '<service-group><name replace-wildcards="yes">%h</name><service><type>_ferryman._tcp</type><port>22</port>'
        "<txt-record>device=pi</txt-record><txt-record>version=0.2.0</txt-record></service>"
        "<service><type>_ssh._tcp</type><port>22</port></service></service-group>\n"
    )
    config = tmp_path / "avahi.conf"
    config.write_text(
        "[server]\nhost-name=roof\nenable-dbus=no\nallow-interfaces=eth0\nuse-ipv6=no\n[wide-area]\nenable-wide-area=no\n"
        "[publish]\npublish-workstation=no\n[rlimits]\n"
    )
    script = (
        'mkdir -p /run/avahi-daemon && mount -t tmpfs none /run/avahi-daemon && mount --bind "$1" /etc/avahi/services'
    )
    run = f'{script} && exec "$0" --no-drop-root --no-rlimits --no-chroot --file "$2"'
    log = tmp_path / "avahi.log"
    with log.open("wb") as sink:
        daemon = link.run(["sh", "-c", run, str(AVAHI), str(services), str(config)], stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + 60
        while not (found := discover(1.0, interfaces=(link.host,)).hosts):
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
        (roof,) = found
        assert (roof.host, roof.device, roof.version) == ("roof.local", "pi", "0.2.0")
        assert roof.services == {"ferryman": 22, "ssh": 22}
    finally:
        daemon.terminate()
        daemon.wait(60)
