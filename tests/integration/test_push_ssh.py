"""Push to a real sshd; whatever goes wrong, the old slot serves and the error names the party."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from ferryman.devices.fleet.inventory import SshDevice
from ferryman.devices.fleet.push import push, rollback
from ferryman.devices.transport.ssh import SshAddress, SshTransport
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    LinkError,
    PackageError,
    ParityError,
    RequestTimeout,
)
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.sshd import SSHD, Sshd, running_sshd

pytestmark = pytest.mark.skipif(SSHD is None, reason="sshd is not installed: apt-get install openssh-server")

FERRYMAN = f"{sys.executable} -m ferryman.cli"
LARGE_BYTES = 40_000_000


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@dataclass(frozen=True)
class Scene:
    """A device whose active package is `old`."""

    device: SshDevice
    store: SlotStore
    old_sha256: str
    tmp: Path
    sshd: Sshd

    def assert_old_serves(self):
        active = self.store.active()  # reads every file back
        assert active.slot.package_sha256 == self.old_sha256

    def with_(self, **changes) -> SshDevice:
        return msgspec.structs.replace(self.device, **changes)


@pytest.fixture
def scene(sshd, tmp_path):
    root = tmp_path / "device root"  # a space, for whoever forgets to quote
    device = SshDevice(
        name="bench",
        host=sshd.host,
        user=sshd.user,
        port=sshd.port,
        key=sshd.key,
        known_hosts=sshd.known_hosts,
        command=FERRYMAN,
        root=root,
    )
    old = write_tiny_package(tmp_path / "old.ferry", added=1.0)
    install(old, root, golden=lambda _directory, _manifest: ())
    return Scene(device, SlotStore(root), sha256_of(old), tmp_path, sshd)


def test_push_activates_and_a_second_one_sends_nothing(scene):
    new = write_tiny_package(scene.tmp / "new.ferry", added=2.0)
    steps: list[tuple[str, int, int]] = []
    first = push(new, scene.device, progress=lambda *step: steps.append(step))
    assert first.install is not None
    assert first.install.changed
    assert first.install.golden[0].sqnr_db > 100
    assert first.upload_bytes_per_s is not None
    assert ("upload", first.package_bytes, first.package_bytes) in steps
    active = scene.store.active()
    assert active.slot.package_sha256 == sha256_of(new)
    state = scene.store.read_state()
    assert state.previous is not None
    assert state.previous.package_sha256 == scene.old_sha256
    assert list(scene.store.incoming.iterdir()) == []

    second = push(new, scene.device)
    assert second.install is None
    assert second.active == first.active


def test_unknown_host_key_is_refused_with_the_command_that_helps(scene):
    new = write_tiny_package(scene.tmp / "new.ferry", added=2.0)
    unknown = scene.sshd.empty_known_hosts
    for known_hosts in (unknown, scene.tmp / "no such file"):
        with pytest.raises(LinkError, match=f"{known_hosts}, .*`ferryman devices trust {scene.device.name}`"):
            push(new, scene.with_(known_hosts=known_hosts))
    scene.assert_old_serves()


def test_changed_host_key_is_refused(scene):
    changed = scene.tmp / "known_hosts"
    impostor = scene.sshd.other_key.with_suffix(".pub").read_text().split()[:2]
    changed.write_text(f"[127.0.0.1]:{scene.sshd.port} {' '.join(impostor)}\n")
    with pytest.raises(LinkError, match="host key"):
        push(write_tiny_package(scene.tmp / "new.ferry", added=2.0), scene.with_(known_hosts=changed))
    scene.assert_old_serves()


def test_wrong_key_is_refused_naming_it(scene):
    with pytest.raises(LinkError, match=f"does not let us in.*{scene.sshd.other_key}"):
        push(write_tiny_package(scene.tmp / "new.ferry", added=2.0), scene.with_(key=scene.sshd.other_key))


def test_missing_key_file_is_the_callers_fault(scene):
    with pytest.raises(CallerError, match=r"^bench: .*no-such-key: No such file"):
        push(write_tiny_package(scene.tmp / "new.ferry"), scene.with_(key=scene.tmp / "no-such-key"))


def test_a_key_file_that_is_none_is_the_callers_fault(scene):
    (scene.tmp / "folder").mkdir()
    (scene.tmp / "text").write_text("hello")
    for name in ("folder", "text"):
        with pytest.raises(CallerError, match=f"^bench: .*{name}"):
            push(write_tiny_package(scene.tmp / "new.ferry"), scene.with_(key=scene.tmp / name))


@pytest.mark.parametrize(
    ("data", "message"), [(b"hello\n", "Invalid known hosts entry"), (b"\xff\x00\n" * 9, "utf-8"), (None, "directory")]
)
def test_a_known_hosts_file_that_is_none_is_the_callers_fault(scene, data, message):
    path = scene.tmp / "text"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(CallerError, match=rf"^bench: known_hosts .*text: .*{message}"):
        push(write_tiny_package(scene.tmp / "new.ferry"), scene.with_(known_hosts=path))


@pytest.mark.parametrize("command", ["sh -c yes", "sh -c 'yes >&2'"])
def test_a_command_that_says_too_much_is_the_devices_fault(scene, command):
    with pytest.raises(DeviceError, match=r"`sh` on .* said more than 4,194,304 bytes.*; see `command` in the devices"):
        push(write_tiny_package(scene.tmp / "new.ferry", added=2.0), scene.with_(command=command))


def test_nobody_listening_is_a_link_error(scene):
    for known_hosts in (scene.sshd.known_hosts, scene.sshd.empty_known_hosts, scene.tmp / "no such file"):
        with pytest.raises(LinkError, match=r"127\.0\.0\.1:1 failed: .*Connect call failed.*; check power"):
            push(write_tiny_package(scene.tmp / "new.ferry"), scene.with_(port=1, known_hosts=known_hosts))


def test_a_missing_known_hosts_file_does_not_let_the_users_own_one_answer(scene, monkeypatch):
    home = scene.tmp / "home" / ".ssh"
    home.mkdir(parents=True)
    (home / "known_hosts").write_text(scene.sshd.known_hosts.read_text())
    monkeypatch.setenv("HOME", str(home.parent))
    with pytest.raises(LinkError, match="host key"):
        push(write_tiny_package(scene.tmp / "new.ferry"), scene.with_(known_hosts=scene.tmp / "no such file"))


def test_rollback_lets_the_device_serve_what_it_served_before(scene):
    push(write_tiny_package(scene.tmp / "new.ferry", added=2.0), scene.device)
    active = rollback(scene.device)
    assert active.package_sha256 == scene.old_sha256
    scene.assert_old_serves()
    with pytest.raises(DeviceError, match=r"^bench: no previous slot to roll back to"):
        rollback(scene.device)


def test_damaged_package_is_refused_before_connecting(scene):
    bad = write_tiny_package(scene.tmp / "bad.ferry", added=2.0)
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    with pytest.raises(PackageError, match="seal"):
        push(bad, scene.with_(port=1))  # nobody listens there: connecting would be a LinkError


def test_device_without_ferryman_is_named(scene):
    new = write_tiny_package(scene.tmp / "new.ferry", added=2.0)
    with pytest.raises(DeviceError, match=r"bench has no `ferryman-is-not-here`.*not found"):
        push(new, scene.with_(command="ferryman-is-not-here"))
    with pytest.raises(DeviceError, match=r"No module named.*no_ferryman"):
        push(new, scene.with_(command=f"{sys.executable} -m no_ferryman"))
    with pytest.raises(DeviceError, match="did not answer as ferryman does"):
        push(new, scene.with_(command="echo"))
    scene.assert_old_serves()


def test_golden_failure_on_the_device_leaves_the_old_slot_serving(scene):
    lying = write_tiny_package(scene.tmp / "lying.ferry", added=2.0, promised=3.0)
    with pytest.raises(ParityError, match=r"bench: .*dB"):
        push(lying, scene.device)
    scene.assert_old_serves()
    assert not scene.store.directory("b").exists()
    assert list(scene.store.incoming.iterdir()) == []


def test_device_without_an_interpreter_is_told_what_to_install(scene):
    package = write_tiny_package(scene.tmp / "new.ferry", interpreters={"ai-edge-litert": "999.0"})
    with pytest.raises(DeviceError, match=r"ai-edge-litert >= 999\.0"):
        push(package, scene.device)
    scene.assert_old_serves()


def test_link_cut_in_the_middle_of_an_upload(scene):
    large = write_tiny_package(scene.tmp / "large.ferry", added=2.0, padding=os.urandom(LARGE_BYTES))

    killed = 0

    def cut(step: str, done: int, total: int) -> None:
        nonlocal killed
        if step == "upload" and done > total // 4 and not killed:
            killed = scene.sshd.kill_sessions()

    with pytest.raises(LinkError, match=r"upload of large\.ferry: the link .* failed"):
        push(large, scene.device, progress=cut)
    assert killed
    scene.assert_old_serves()
    assert push(large, scene.device).install is not None  # and what the first try left is no obstacle
    (left,) = scene.store.incoming.iterdir()
    long_ago = time.time() - 1000
    os.utime(left, (long_ago, long_ago))
    assert push(large, scene.device).install is None
    assert list(scene.store.incoming.iterdir()) == []


def test_silent_link_fails_in_bounded_time(scene):
    """The session's processes stop answering, as a device whose Wi-Fi went away."""
    with SshTransport(
        SshAddress(scene.sshd.host, scene.sshd.user, scene.sshd.port, scene.sshd.key, scene.sshd.known_hosts),
        keepalive_s=0.5,
    ) as link:
        assert scene.sshd.freeze_sessions() > 0
        try:
            with pytest.raises(LinkError) as caught:
                link.run(["sleep", "30"], timeout_s=60)
            assert not isinstance(caught.value, RequestTimeout)  # the keepalive noticed, not the command's own limit
        finally:
            scene.sshd.kill_sessions()


def test_command_that_takes_too_long_is_a_timeout(scene):
    with (
        SshTransport(
            SshAddress(scene.sshd.host, scene.sshd.user, scene.sshd.port, scene.sshd.key, scene.sshd.known_hosts)
        ) as link,
        pytest.raises(RequestTimeout, match="`sleep`"),
    ):
        link.run(["sleep", "30"], timeout_s=0.3)
    scene.sshd.kill_sessions()


@pytest.fixture
def small_disk(tmp_path):
    """8 MB, as root only."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_device_is_told_before_the_upload(scene, small_disk):
    device = scene.with_(root=small_disk / "root")
    install(scene.tmp / "old.ferry", device.root, golden=lambda _directory, _manifest: ())
    large = write_tiny_package(scene.tmp / "large.ferry", added=2.0, padding=bytes(6_000_000))
    steps: list[str] = []
    with pytest.raises(DeviceError, match=r"bench: .* bytes free, found .*make room"):
        push(large, device, progress=lambda step, _done, _total: steps.append(step))
    assert "upload" not in steps
    assert SlotStore(device.root).active().slot.package_sha256 == scene.old_sha256


def test_disk_that_fills_up_during_the_upload(scene, small_disk):
    target = small_disk / "incoming.part"
    large = scene.tmp / "large"
    large.write_bytes(bytes(20_000_000))
    with (
        SshTransport(
            SshAddress(scene.sshd.host, scene.sshd.user, scene.sshd.port, scene.sshd.key, scene.sshd.known_hosts)
        ) as link,
        pytest.raises(DeviceError, match="No space left on device"),
    ):
        link.put(large, str(target), lambda _done, _total: None)
    shutil.rmtree(small_disk / "root", ignore_errors=True)


@pytest.fixture
def fleet(scene):
    """Runs ferryman with a devices file of one device that is gone, one with a bad key, and this machine."""
    devices = scene.tmp / "devices.toml"
    reached = f'port = {scene.sshd.port}\nknown_hosts = "{scene.sshd.known_hosts}"\n'
    devices.write_text(
        f'[local]\nroot = "{scene.tmp / "local root"}"\n'
        f'[gone]\nhost = "127.0.0.1"\nport = 1\nuser = "x"\nkey = "{scene.sshd.key}"\n'
        f'[keyless]\nhost = "127.0.0.1"\nuser = "x"\nkey = "no-such-key"\n{reached}'
        f'[bench]\nhost = "127.0.0.1"\nuser = "{scene.sshd.user}"\nkey = "{scene.sshd.key}"\n{reached}'
        f'command = "{FERRYMAN}"\nroot = "{scene.device.root}"\n'
    )

    def ferryman(*words):
        command = [sys.executable, "-m", "ferryman.cli", *map(str, words), "--devices", str(devices)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return ferryman


def test_one_devices_failure_does_not_keep_the_others_from_theirs(scene, fleet):
    new = write_tiny_package(scene.tmp / "new.ferry", added=2.0)
    done = fleet("push", new, "keyless", "gone", "local")
    assert done.returncode == 1
    assert "gone: link: " in done.stderr
    assert "keyless: caller: " in done.stderr
    assert "2 of 3 devices keep what they had: keyless, gone" in done.stderr
    assert SlotStore(scene.tmp / "local root").active().slot.package_sha256 == sha256_of(new)


@pytest.mark.parametrize("words", [("new.ferry", "gone", "nope", "local"), ("nope.ferry", "gone", "local")])
def test_a_wrong_name_stops_a_push_before_it_begins(scene, fleet, words):
    write_tiny_package(scene.tmp / "new.ferry", added=2.0)
    done = fleet("push", scene.tmp / words[0], *words[1:])
    assert done.returncode == 1
    assert done.stderr.startswith("Error: caller: ")
    assert "nope" in done.stderr
    assert not (scene.tmp / "local root").exists()


def test_rollback_of_a_device_from_the_command_line(scene, fleet):
    assert fleet("push", write_tiny_package(scene.tmp / "new.ferry", added=2.0), "bench").returncode == 0
    done = fleet("rollback", "bench")
    assert (done.returncode, done.stdout) == (0, "bench: add-1 is active again in slot a\n")
    scene.assert_old_serves()


def test_confirm_of_a_device_from_the_command_line(scene, fleet):
    assert fleet("push", write_tiny_package(scene.tmp / "new.ferry", added=2.0), "bench").returncode == 0
    done = fleet("confirm", "bench")
    assert (done.returncode, done.stdout) == (0, "bench: add-2 in slot b serves for good\n"), done.stderr
