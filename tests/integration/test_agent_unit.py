"""The agent's unit under a real systemd: provisioned, ready, watched, given up and tried again, shut in its folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import pytest

from tests.support.booted import Booted, booted, pointing_wheel, unpack, why_none
from tests.support.interpreters import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_none()), reason=why_none())]
SCRIPTS = ROOT / "firmware_scripts"
PROVISION = "/srv/firmware_scripts/provision.sh"
AGENT = "ferryman-agent.service"
FERRYMAN = "/opt/ferryman/bin/ferryman"

# What the unit's process may and may not; each is tried on its own, and the answer is what happened.
PROBE = """\
import json, mmap, os, pathlib, socket, subprocess, sys, time
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.synchronized import clock_synchronized

def attempt(name, call):
    try:
        found[name] = str(call())
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"

def write(path):
    pathlib.Path(path).write_text("x")
    return "written"

def infer(artifact, runtime, interpreter):
    cache = "/var/lib/ferryman/cache"
    with IsolatedSession(artifact, runtime, interpreter=interpreter, threads=2, cache=cache):
        return "opened"

found = {}
for path in sys.argv[2:]:
    attempt(path, lambda: write(path))
attempt("others", lambda: [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()])
attempt("memory written and run", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))
attempt("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("namespace", lambda: subprocess.run(["unshare", "-U", "true"], check=True))
attempt("set the clock", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
places = [one for one in ("/var/log/journal", "/run/log/journal") if os.path.exists(one)]
attempt("journal", lambda: os.listdir(places[0]))
attempt("memory device", lambda: open("/dev/mem", "rb"))
attempt("set-uid", lambda: os.chmod("/var/lib/ferryman/probe", 0o4755))
attempt("clock", lambda: type(clock_synchronized()).__name__)
for one in json.loads(sys.argv[1]):
    attempt(one[2], lambda: infer(*one))
print("FOUND " + json.dumps(found))
"""
MAY_WRITE = ("/var/lib/ferryman/probe", "/tmp/probe")
MAY_NOT_WRITE = (
    "/etc/probe",
    "/opt/probe",
    "/var/probe",
    "/usr/probe",
    "/root/probe",
    "/proc/sys/kernel/hostname",
    "/sys/power/state",
    "/var/lib/ferryman/.ssh/authorized_keys",
)
REFUSED = {
    "memory written and run",
    "packets",
    "namespace",
    "set the clock",
    "priority",
    "memory device",
    "set-uid",
}
ARTIFACTS = [
    ["/srv/golden/pte/linear.pte", "executorch", "executorch"],
    ["/srv/golden/add_one.tflite", "tflite", "ai-edge-litert"],
    ["/srv/golden/add_one.tflite", "tflite", "tflite-runtime"],
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return pointing_wheel(tmp_path_factory.mktemp("wheel"), version="1.0")


@pytest.fixture(scope="module")
def device(tmp_path_factory, wheel):
    folder = tmp_path_factory.mktemp("booted")
    unpack(folder / "root")
    shutil.copy(wheel, folder / "root" / "srv")
    (folder / "root/etc/mosquitto/conf.d/open.conf").write_text("listener 1883 127.0.0.1\nallow_anonymous true\n")
    try:
        with booted(folder / "root") as container:
            provision(container, wheel, "--device", "kitchen", "--broker", "mqtt://127.0.0.1")
            yield container
    except RuntimeError as error:
        pytest.skip(str(error))


def provision(device: Booted, wheel, *options, check=True):
    return device.run(
        PROVISION, "--wheel", f"/srv/{wheel.name}", "--interpreter", "none", "--extra", "enroll", *options, check=check
    )


@pytest.fixture
def quick(device):
    """The unit with shorter times; what they are for is as it is."""
    device.run("mkdir", "-p", f"/run/systemd/system/{AGENT}.d")
    text = "[Service]\\nWatchdogSec=4\\nRestartSec=0.1\\n"
    device.run("sh", "-c", f"printf '{text}' >/run/systemd/system/{AGENT}.d/quick.conf; systemctl daemon-reload")
    device.run("systemctl", "restart", AGENT)
    yield
    device.run("rm", "-r", f"/run/systemd/system/{AGENT}.d")
    device.run("systemctl", "daemon-reload")
    device.run("systemctl", "reset-failed", check=False)
    device.run("systemctl", "restart", AGENT)


def test_it_is_ready_and_says_what_it_serves_and_again_there_is_nothing_to_do(device, wheel):
    device.until(AGENT, "SubState", "running")
    assert device.show(AGENT, "StatusText")
    assert device.show(AGENT, "NRestarts") == "0"
    pid = device.show(AGENT, "MainPID")
    assert "nothing to do" in provision(device, wheel)
    assert device.show(AGENT, "MainPID") == pid
    assert device.run("stat", "-c", "%U %a", "/var/lib/ferryman/outbox.sqlite") == "ferryman 600"


def test_it_writes_its_folder_alone_and_runs_every_interpreter(device):
    unit = (SCRIPTS / AGENT).read_text()
    lines = [
        line for line in unit.splitlines() if not line.startswith(("Type=", "Restart=", "WatchdogSec=", "ExecStart"))
    ]
    at = lines.index("[Service]") + 1
    tried = f"'{json.dumps(ARTIFACTS)}' {' '.join((*MAY_WRITE, *MAY_NOT_WRITE))}"
    lines[at:at] = ["Type=oneshot", f"ExecStart=/opt/ferryman/bin/python3 /srv/probe.py {tried}"]
    (device.path / "srv" / "probe.py").write_text(PROBE)
    (device.path / "etc/systemd/system/probe.service").write_text("\n".join(lines))
    device.run("mkdir", "-p", "/var/lib/ferryman/.ssh")
    device.run("systemctl", "daemon-reload")
    device.run("systemctl", "start", "probe")
    (line,) = [line for line in device.log("probe").splitlines() if line.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))

    assert [name for name, said in found.items() if said == "written"] == list(MAY_WRITE), found
    assert device.run("ls", "/tmp/probe", check=False).startswith("ls: cannot access")  # that was one of its own
    opened = {interpreter: found[interpreter] for _, _, interpreter in ARTIFACTS}
    assert set(opened.values()) == {"opened"}, opened
    assert found["others"] == "[]"
    assert found["journal"].startswith("PermissionError")  # others may list it, and its group reads what is in it
    assert found["clock"] == "bool"
    assert all("Error" in found[name] for name in REFUSED), found


def test_one_that_hangs_is_ended_and_started_again(device, quick):
    device.until(AGENT, "SubState", "running")
    pid = device.show(AGENT, "MainPID")
    device.run("kill", "-STOP", pid)
    device.until(AGENT, "NRestarts", "1")
    device.until(AGENT, "SubState", "running")
    assert device.show(AGENT, "MainPID") != pid
    assert "Failed with result 'watchdog'" in device.log(AGENT)


def test_one_that_never_starts_is_given_up_and_tried_again_later(device, quick):
    device.run("sh", "-c", "echo FERRYMAN_OPTIONS=--nonsense >>/etc/ferryman/agent.env")
    device.run("systemctl", "reset-failed", AGENT, check=False)
    device.run("systemctl", "restart", AGENT, check=False)
    device.until(AGENT, "SubState", "failed", timeout_s=180)
    assert 8 <= int(device.show(AGENT, "NRestarts")) <= 10
    device.until("ferryman-agent-later.service", "SubState", "running")
    device.run("sed", "-i", "/nonsense/d", "/etc/ferryman/agent.env")
    device.run("systemctl", "stop", "ferryman-agent-later.service")


def test_a_version_that_does_not_start_gives_way_to_the_one_before(device, wheel, tmp_path):
    broken = pointing_wheel(tmp_path, version="2.0", main="broken_ferryman:main")
    shutil.copy(broken, device.path / "srv")
    before = device.run("readlink", "/opt/ferryman")
    device.until(AGENT, "SubState", "running")
    said = provision(device, broken, check=False)
    assert "The one before is back" in said
    assert device.run("readlink", "/opt/ferryman") == before
    device.until(AGENT, "SubState", "running")
    assert "nothing to do" not in provision(device, wheel)  # what was built of the other is removed


def test_it_waits_for_its_identity(device, wheel):
    provision(device, wheel, "--enroll", "--no-start")
    device.run("systemctl", "restart", "ferryman-enrolled.path")
    device.run("systemctl", "restart", AGENT)
    assert device.show(AGENT, "ActiveState") == "inactive"
    device.run("runuser", "-u", "ferryman", "--", "mkdir", "-p", "/var/lib/ferryman/identity")
    device.run("sh", "-c", "cd /var/lib/ferryman/identity && touch .new && mv .new identity.pem")
    device.until(AGENT, "SubState", "running")
    device.run("systemctl", "stop", AGENT)
    assert device.show(AGENT, "ActiveState") == "inactive"
    device.run("systemctl", "start", AGENT)


def test_the_collector_stores_in_its_sandbox(device):
    device.path.joinpath("etc/systemd/system/ferryman-collector.service").write_text(
        (SCRIPTS / "ferryman-collector.service").read_text()
    )
    device.run("systemctl", "daemon-reload")
    device.run("systemctl", "start", "ferryman-collector", AGENT)
    # Read by its owner, and only read: a file that root makes here would not be the collector's.
    count = (
        "import sqlite3\n"
        "store = sqlite3.connect('file:/var/lib/ferryman-collector/ferryman.sqlite?mode=ro', uri=True)\n"
        "print(store.execute('select count(*) from records').fetchone()[0])"
    )
    end, found = time.monotonic() + 120, "0"
    while time.monotonic() < end and (not found.isdigit() or found == "0"):
        time.sleep(0.5)
        found = device.run("runuser", "-u", "ferryman", "--", "python3", "-c", count, check=False)
    assert found.isdigit() and int(found), found + device.log("ferryman-collector")  # noqa: PT018
    assert device.show("ferryman-collector", "NRestarts") == "0"
    device.run("systemctl", "stop", "ferryman-collector")


def test_who_pushes_reads_what_it_says_once_that_is_asked_for(device, wheel):
    def logs(*, check=True):
        return device.run("runuser", "-u", "ferryman", "--", FERRYMAN, "logs", "local", "--lines", "1000", check=check)

    assert "sudo usermod -aG systemd-journal ferryman (provision.sh --journal" in logs(check=False)
    provision(device, wheel, "--journal")
    assert f"Started {AGENT}" in logs()


def test_its_root_may_be_read_only(device, wheel, tmp_path):
    """Another start of what was provisioned: only its state is writable, beside what is in memory."""
    root, state = tmp_path / "root", tmp_path / "state"
    subprocess.run(["cp", "-al", device.path, root], check=True)
    subprocess.run(["cp", "-a", device.path / "var/lib/ferryman", state], check=True)
    memory = [f"--tmpfs={folder}" for folder in ("/tmp", "/var/tmp", "/var/log")]
    with booted(root, "--read-only", f"--bind={state}:/var/lib/ferryman", *memory) as again:
        again.until(AGENT, "SubState", "running")
        assert "Read-only file system" in again.run("touch", "/etc/probe", check=False)
        assert "remount,rw" in provision(again, wheel, check=False)


def test_uninstall_stops_it(device):
    device.run(PROVISION, "--uninstall")
    assert device.show(AGENT, "LoadState") == "not-found"
    assert device.run("pgrep", "-f", FERRYMAN, check=False) == ""
    assert device.run("sh", "-c", "ls /opt; ls /etc/ferryman", check=False).count("ferryman") == 1  # no such folder
