"""Phones through the real adb: push, rollback, profile, facts and what goes wrong; our own adbd at the other end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices.fleet.phone.profile import profile_on_phone
from ferryman.devices.transport import adb as adb_module
from ferryman.devices.transport.adb import AdbTransport
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.errors import BusyError, CallerError, DeviceError, LinkError, RequestTimeout
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.package import open_package
from tests.support.adbd import ADB, AndroidPhone, adb_server, plug
from tests.support.mosquitto import free_port
from tests.support.packages import sha256_of
from tests.support.phone import AndroidSystem
from tests.support.phones import WHY_NO_PHONES, phone_scene

pytestmark = pytest.mark.skipif(bool(WHY_NO_PHONES), reason=WHY_NO_PHONES)


def quiet(_done: int, _total: int) -> None: ...


@pytest.fixture
def scene(tmp_path, monkeypatch):
    with phone_scene(tmp_path, monkeypatch) as made:
        yield made


def test_a_file_goes_there_whole_and_the_real_adb_fetches_it(scene):
    data = os.urandom(700_001)
    (scene.folder / "big").write_bytes(data)
    link = AdbTransport("")
    assert link.serial == scene.phone.serial
    said = []
    link.put(
        scene.folder / "big", f"{scene.system.home.parent}/big file", lambda done, total: said.append((done, total))
    )
    assert said[-1] == (len(data), len(data))
    subprocess.run([ADB, "pull", f"{scene.system.home.parent}/big file", "back"], check=True, cwd=scene.folder)
    assert (scene.folder / "back").read_bytes() == data


def test_commands_tell_how_they_ended(scene):
    link = AdbTransport(scene.phone.serial)
    done = link.shell("echo out; echo err >&2; exit 3", timeout_s=10)
    assert (done.exit_status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert link.shell("kill -9 $$", timeout_s=10).exit_status == -9
    assert link.run(["echo", "a b", "$HOME"], timeout_s=10).stdout == b"a b $HOME\n"
    with pytest.raises(RequestTimeout, match=r"did not end within 0.3 s"):
        link.shell("sleep 3", timeout_s=0.3)
    with pytest.raises(DeviceError, match="said more than 1,000 bytes"):
        link.shell("head -c 5000 /dev/zero", timeout_s=10, output_max_bytes=1000)


def test_what_the_phone_cannot_write_comes_with_its_reason(scene):
    link = AdbTransport(scene.phone.serial)
    with pytest.raises(DeviceError, match=r"cannot write /no/such/folder/x: .*No such file or directory"):
        link.put(scene.first, "/no/such/folder/x", quiet)


def test_push_profile_probe_and_back(scene):
    said = scene.ferryman("push", scene.first, "phone")
    assert "phone: add-1 is active in slot a" in said
    assert "fp32-executorch on executorch 1.5.1: 200.0 dB, 1.000 ms, 7.0 MB" in said
    assert "was active already" in scene.ferryman("push", scene.first, "phone")
    scene.ferryman("push", scene.second, "phone")
    assert scene.serving == sha256_of(scene.second)
    said = scene.ferryman(
        "profile", scene.second, "phone", "--json", "--starts", "2", "--runs", "3", "--warmup", "1", "--no-energy"
    )
    (line,) = (line for line in said.splitlines() if line.startswith("{"))
    found = decode(json.dumps(json.loads(line).get("measurement", json.loads(line))).encode(), Measurement)
    assert (found.interpreter, len(found.samples_ns)) == ("executorch", 6)
    facts = json.loads(CliRunner().invoke(main, ["devices", "probe", "phone", "--json", *scene.words("x")[1:]]).stdout)
    assert facts["probe"]["facts"]["interpreters"] == [{"name": "executorch", "version": "1.5.1"}]
    assert "add-1 is active again in slot a" in scene.ferryman("rollback", "phone")
    assert scene.serving == sha256_of(scene.first)


def test_a_phone_that_does_not_trust_us_says_what_to_do(tmp_path, monkeypatch):
    phone = AndroidPhone(AndroidSystem(tmp_path / "phone"))
    phone.trusts = False
    with adb_server(monkeypatch):
        subprocess.run([ADB, "connect", phone.serial], capture_output=True, timeout=60, check=False)
        with pytest.raises(LinkError, match=r"is (unauthorized|offline|authorizing): .*"):
            AdbTransport(phone.serial, find_s=0.5)
    phone.close()


def test_no_phone_and_several(scene, tmp_path):
    with pytest.raises(LinkError, match=f"no phone PIXEL is connected, there are: {scene.phone.serial}"):
        AdbTransport("PIXEL", find_s=0)
    other = AndroidPhone(AndroidSystem(tmp_path / "other"))
    plug(other)
    with pytest.raises(CallerError, match=r"2 phones are connected: .*give one as `adb`"):
        AdbTransport("")
    assert AdbTransport(other.serial).serial == other.serial
    for phone in (scene.phone, other):
        subprocess.run([ADB, "disconnect", phone.serial], check=True, capture_output=True, timeout=30)
    with pytest.raises(LinkError, match="no phone is connected: connect one with USB debugging on"):
        AdbTransport("", find_s=0)
    other.close()


def test_an_android_too_old(tmp_path, monkeypatch):
    phone = AndroidPhone(AndroidSystem(tmp_path / "phone"))
    phone.features = "cmd"
    with adb_server(monkeypatch, phone), pytest.raises(DeviceError, match="Android 7 or later"):
        AdbTransport(phone.serial)
    phone.close()


def test_no_adb_here(tmp_path, monkeypatch):
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CallerError, match="no adb on this machine; on Debian or Ubuntu: sudo apt-get install adb"):
        AdbTransport("")


def test_a_port_that_is_none(monkeypatch):
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "many")
    with pytest.raises(CallerError, match="ANDROID_ADB_SERVER_PORT is 'many', which is no port"):
        AdbTransport("")


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"OKAY00040020", "is of version 32, .* of 41: each ends the other's server"),
        (b"HTTP", "does not answer as adb"),
    ],
)
def test_a_server_of_another_version(monkeypatch, answer, match):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.getsockname()[1]))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        if connection.recv(100):
                            connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(CallerError, match=match):
            AdbTransport("")


def test_a_cable_that_is_pulled_in_an_upload_leaves_the_old_slot(scene):
    scene.push(scene.first)
    scene.phone.cut = lambda what, done: what.startswith("send ") and done > 1_000_000
    with pytest.raises(LinkError, match="check cable or Wi-Fi"):
        scene.push(scene.second)
    assert scene.serving == sha256_of(scene.first)
    scene.phone.cut = lambda _what, _done: False
    plug(scene.phone)
    scene.push(scene.second)
    assert scene.serving == sha256_of(scene.second)


def test_a_server_that_is_killed_between_leaves_the_old_slot(scene):
    scene.push(scene.first)

    told, killed = threading.Event(), threading.Event()

    def cut(what: str, done: int) -> bool:
        if what.startswith("send ") and done > 1_000_000 and not told.is_set():
            told.set()
            subprocess.run([ADB, "kill-server"], check=False, capture_output=True, timeout=60)
            killed.set()
        return False

    scene.phone.cut = cut
    with pytest.raises(LinkError):
        scene.push(scene.second)
    assert scene.serving == sha256_of(scene.first)
    assert killed.wait(60)  # the next server is not meant
    scene.phone.cut = lambda _what, _done: False
    subprocess.run([ADB, "start-server"], check=True, capture_output=True, timeout=30)
    plug(scene.phone)
    scene.push(scene.second)
    assert scene.serving == sha256_of(scene.second)


def test_two_hosts_at_once_do_not_mix(scene):
    scene.push(scene.first)
    begun, go = threading.Event(), threading.Event()

    def wait(what: str, done: int) -> bool:
        if what.startswith("send ") and done > 1_000_000:
            begun.set()
            go.wait(60)
        return False

    scene.phone.cut = wait
    pushing = threading.Thread(target=scene.push, args=(scene.second,))
    pushing.start()
    assert begun.wait(60)
    with pytest.raises(BusyError, match=rf"phone: process {os.getpid()} on .* is at work on the phone"):
        scene.push(scene.first)
    go.set()
    pushing.join(60)
    assert scene.serving == sha256_of(scene.second)


@pytest.mark.slow
def test_a_host_that_is_killed_at_any_step(scene):
    scene.push(scene.first)
    packages = [scene.second, scene.first]
    seen: list[str] = []
    scene.phone.cut = lambda what, _done: bool(seen.append(what))
    scene.push(packages[0])
    steps = len(seen)
    for turn, kill_at in enumerate(range(3, steps, max(1, steps // 5))):
        new, old = packages[(turn + 1) % 2], packages[turn % 2]
        process = subprocess.Popen(
            [sys.executable, "-m", "ferryman.cli", *scene.words("push", new, "phone")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seen.clear()

        def kill(what: str, _done: int, at: int = kill_at, host: int = process.pid) -> bool:
            seen.append(what)
            if len(seen) == at:
                os.kill(host, signal.SIGKILL)
            return False

        scene.phone.cut = kill
        process.wait(60)
        scene.phone.cut = lambda _what, _done: False
        time.sleep(0.2)  # what the phone was told still goes on there
        assert scene.serving in (sha256_of(old), sha256_of(new)), kill_at
        scene.push(new)
        assert scene.serving == sha256_of(new), kill_at


class Battery:
    """Discharges at 0.8 A and 0.9 A in turn, at 3.8 V, as sysfs tells it."""

    def __init__(self, system: AndroidSystem) -> None:
        self._supply = "sys/class/power_supply/battery"
        self._system = system
        for name, text in (("status", "Discharging"), ("voltage_now", "3800000"), ("current_now", "-800000")):
            system.write(f"{self._supply}/{name}", text + "\n")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def _turn(self) -> None:
        for current_ua in itertools.cycle((-900_000, -800_000)):
            if self._stop.wait(0.35):
                return
            self._system.write(f"{self._supply}/new", f"{current_ua}\n")
            folder = self._system.root / self._supply
            (folder / "new").replace(folder / "current_now")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
def test_joules_from_the_phones_own_battery(scene):
    scene.ferryman("push", scene.first, "phone")
    # Its time since boot is this machine's, by which the stand-in tells when its runs were.
    (scene.system.root / "proc/uptime").unlink()
    (scene.system.root / "proc/uptime").symlink_to("/proc/uptime")
    with contextlib.closing(Battery(scene.system)), open_package(scene.first) as opened:
        spec = ProfileSpec(starts=1, warmup_runs=0, runs=5)
        (found,) = profile_on_phone(opened, scene.device, spec, bundle_file=scene.bundle)
    energy = found.energy
    assert isinstance(energy, Energy), energy
    assert energy.source.name == f"battery of {scene.phone.serial} (sysfs)"
    assert 0.8 * 3.8 < energy.active.power_w < 0.9 * 3.8
    assert energy.active.window_s >= 10
    assert energy.active.runs == pytest.approx(1000 * energy.active.window_s, rel=0.02), "one run a millisecond"
    assert energy.gross_j == pytest.approx(0.85 * 3.8 * 1e-3, rel=0.07)


def test_no_adbutils_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "adbutils", None)
    with pytest.raises(CallerError, match=r"pip install 'ferryman\[adb\]'"):
        adb_module._server()
