"""`ferryman devices` against real peers: sshd, the agent behind mosquitto, adb; by the command line itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.facts.ways import over_mqtt
from ferryman.devices.fleet.inventory import MqttDevice
from ferryman.runtime.contracts.errors import CallerError, to_wire
from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.messages import FactsRequest, Failure, Response, Status, StatusRequest
from ferryman.runtime.contracts.record import decode, encode
from tests.integration.test_client import answering
from tests.support.adbd import ADB, FakePhone, adb_server
from tests.support.agent import AgentProcess, StatusWatch
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.packages import write_tiny_package
from tests.support.sshd import SSHD, running_sshd
from tests.unit.profiler.trees import ODPM, ODPM_ENABLED, write_tree

FERRYMAN = f"{sys.executable} -m ferryman.cli"
needs_sshd = pytest.mark.skipif(SSHD is None, reason="sshd is not installed: apt-get install openssh-server")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "devices.toml"))


def ferryman(*words, exit_code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == exit_code, done.output
    return done


def add(sshd, name, tmp_path, *, command=FERRYMAN, known_hosts=None, **more):
    words = ["--host", sshd.host, "--user", sshd.user, "--port", sshd.port, "--key", sshd.key, "--command", command]
    words += ["--known-hosts", known_hosts or sshd.known_hosts, "--root", tmp_path / "root"]
    for option, value in more.items():
        words += [f"--{option}", value]
    return ferryman("devices", "add", name, *words)


def reports(done):
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_facts_are_one_json_object(tmp_path):
    done = ferryman("facts", "--root", tmp_path, "--json")
    assert isinstance(decode(done.stdout.encode(), DeviceFacts), DeviceFacts)
    assert "interpreters" in ferryman("facts", "--root", tmp_path).stdout


@pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")
def test_facts_take_no_torch():
    code = (
        "import sys\n"
        "sys.argv = ['ferryman', 'facts', '--json']\n"
        "from ferryman.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([DEVICE_PYTHON, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@needs_sshd
def test_a_device_is_asked_over_ssh_and_listed(sshd, tmp_path):
    add(sshd, "bench", tmp_path, label="site=lab")
    (report,) = reports(ferryman("devices", "probe", "bench", "--json"))
    assert report["probe"]["ways"] == [{**report["probe"]["ways"][0], "way": "ssh", "error": None, "note": ""}]
    assert report["probe"]["facts"]["ferryman"]
    assert report["probe"]["facts"]["root"] == str(tmp_path / "root")
    assert {"topic", "level", "says", "because", "do"} == set(report["advice"][0])
    (row,) = reports(ferryman("devices", "list", "site=lab", "--json"))
    assert row["known"]["facts"] == report["probe"]["facts"]
    table = ferryman("devices", "list").stdout
    assert "bench" in table
    assert "just now" in table


@needs_sshd
def test_a_package_is_checked_against_the_facts(sshd, tmp_path):
    add(sshd, "bench", tmp_path)
    package = write_tiny_package(tmp_path / "new.ferry")
    (report,) = reports(ferryman("devices", "probe", "bench", "--package", package, "--json"))
    (line,) = (one for one in report["advice"] if one["topic"] == "package")
    assert (line["level"], line["says"].endswith("would run")) == ("ok", True)


@needs_sshd
@pytest.mark.parametrize(
    "command",
    [
        "/no/such/ferryman",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("/etc/passwd", "false", "echo hello")),
    ],
)
def test_a_bare_device_is_asked_through_its_shell(sshd, tmp_path, command):
    add(sshd, "bare", tmp_path, command=command)
    (report,) = reports(ferryman("devices", "probe", "bare", "--json"))
    facts = report["probe"]["facts"]
    assert facts["ferryman"]["type"] == "unavailable"
    assert facts["cores"]
    assert facts["memory_bytes"] > 0
    assert facts["root_writable"] is True
    assert "no ferryman there that tells of itself" in {one["says"] for one in report["advice"]}
    text = ferryman("devices", "probe", "bare").stdout
    assert "provision.sh" in text


@needs_sshd
def test_the_shell_and_ferryman_tell_the_same(sshd, tmp_path):
    add(sshd, "own", tmp_path)
    add(sshd, "bare", tmp_path, command="/no/such/ferryman")
    found = {
        one["probe"]["device"]: one["probe"]["facts"]
        for one in reports(ferryman("devices", "probe", "own", "bare", "--json"))
    }
    same = ("model", "soc", "machine", "userland_bits", "cores", "isa", "memory_bytes", "os", "kernel", "libc", "root")
    assert {name: found["own"][name] for name in same} == {name: found["bare"][name] for name in same}
    assert found["bare"]["root_writable"] == found["own"]["root_writable"]


@needs_sshd
def test_an_older_ferryman_is_told_from_none(sshd, tmp_path):
    old = tmp_path / "old-ferryman"
    old.write_text("#!/bin/sh\necho \"Error: No such command 'facts'.\" >&2\nexit 2\n")
    old.chmod(0o755)
    add(sshd, "old", tmp_path, command=str(old))
    (report,) = reports(ferryman("devices", "probe", "old", "--json"))
    assert "too old to tell facts" in report["probe"]["facts"]["ferryman"]["reason"]


@needs_sshd
def test_one_devices_failure_is_a_row_and_the_exit_code(sshd, tmp_path):
    add(sshd, "good", tmp_path)
    add(sshd, "stranger", tmp_path, known_hosts=sshd.empty_known_hosts)
    ferryman("devices", "add", "down", "--host", "127.0.0.1", "--user", "u", "--port", free_port())
    done = ferryman("devices", "probe", "good", "stranger", "down", "--json", exit_code=1)
    by_name = {one["probe"]["device"]: one["probe"] for one in reports(done)}
    assert by_name["good"]["facts"]["ferryman"]
    assert "host key" in by_name["stranger"]["ways"][0]["error"]["message"]
    assert by_name["down"]["ways"][0]["error"]["party"] == "link"
    assert "2 of 3 devices did not answer on every way: stranger, down" in done.stderr
    done = ferryman("devices", "list", "down", "--probe", "--timeout", 5, exit_code=1)
    assert "down: ssh: link: " in done.stderr


@needs_sshd
def test_a_host_key_is_trusted_by_its_fingerprint_alone(sshd, tmp_path):
    known_hosts = tmp_path / "ssh" / "known_hosts"
    add(sshd, "pi", tmp_path, known_hosts=known_hosts)
    shown = ferryman("devices", "trust", "pi")
    fingerprint = shown.stdout.split()[0]
    printed = subprocess.run(
        ["ssh-keygen", "-lf", sshd.log.parent / "host.pub"], capture_output=True, text=True, check=True
    )
    assert fingerprint == printed.stdout.split()[1]  # as the device itself prints it
    assert not known_hosts.exists()
    wrong = ferryman("devices", "trust", "pi", "SHA256:" + "A" * 43, exit_code=1)
    assert "Nothing was trusted" in wrong.stderr
    assert not known_hosts.exists()
    ferryman("devices", "probe", "pi", exit_code=1)
    ferryman("devices", "trust", "pi", fingerprint)
    ferryman("devices", "probe", "pi")
    assert "was trusted already" in ferryman("devices", "trust", "pi", fingerprint).stdout
    assert len(known_hosts.read_text().splitlines()) == 1


@needs_sshd
def test_a_host_key_that_changed_is_not_trusted_over_the_old_one(sshd, tmp_path):
    known_hosts = tmp_path / "known_hosts"
    impostor = sshd.other_key.with_suffix(".pub").read_text().split()[:2]
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {' '.join(impostor)}")
    add(sshd, "pi", tmp_path, known_hosts=known_hosts)
    fingerprint = ferryman("devices", "trust", "pi").stdout.split()[0]
    done = ferryman("devices", "trust", "pi", fingerprint, exit_code=1)
    assert "ssh-keygen -R" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pi"], "one of --host, --adb and --mqtt"),
        (["pi", "--host", "h", "--adb", "s"], "found --host and --adb"),
        (["pi", "--host", "h"], "--host needs --user"),
        (["pi", "--adb", "s", "--port", "22"], "--port: of SSH"),
        (["pi", "--mqtt", "mqtt://b", "--broker", "mqtt://b"], "leave --broker out"),
    ],
)
def test_ways_that_do_not_go_together_are_refused(words, message):
    assert message in ferryman("devices", "add", *words, exit_code=2).stderr
    assert not Path("devices.toml").exists()


def test_a_query_that_means_nobody_says_who_is_there(tmp_path):
    ferryman("devices", "add", "phone", "--adb", "R58N", "--label", "site=lab")
    assert "there are: local, phone" in ferryman("devices", "probe", "site=attic", exit_code=1).stderr
    ferryman("devices", "label", "phone", "site=attic", "stage=canary")
    (row,) = reports(ferryman("devices", "list", "site=attic", "--json"))
    assert (row["ways"], row["labels"]) == (["adb"], {"site": "attic", "stage": "canary"})
    assert "site=attic" in ferryman("devices", "label", "phone", "stage-").stdout
    ferryman("devices", "remove", "phone")
    assert "phone" not in ferryman("devices", "list").stdout


@pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")
def test_an_agent_tells_its_facts(tmp_path):
    with Mosquitto(tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        ferryman("devices", "add", "pi", "--mqtt", url)
        with StatusWatch(broker.config) as status, AgentProcess(broker.config, tmp_path / "root"):
            status.wait_for(lambda one: one.online, 60)
            (report,) = reports(ferryman("devices", "probe", "pi", "--json"))
        facts = report["probe"]["facts"]
        assert facts["root"] == str(tmp_path / "root")
        assert "ai-edge-litert" in {one["name"] for one in facts["interpreters"]}
        assert report["probe"]["ways"][0]["note"] == ""
        ferryman("devices", "probe", "pi", exit_code=1)  # the agent has gone


@pytest.mark.parametrize("busy", [False, True])
def test_an_agent_that_is_too_old_or_busy_tells_what_its_status_holds(tmp_path, busy):
    def answer(request):
        if isinstance(request.body, FactsRequest):
            if busy:
                return []
            error = CallerError("the request cannot be read: Invalid value 'facts' - at `$.body.type`; see that ...")
            return [Response(id=request.id, device="pi", body=Failure(error=to_wire(error)))]
        assert isinstance(request.body, StatusRequest)
        status = Status(device="pi", online=True, ferryman="0.1.0", model="Raspberry Pi 4")
        return [Response(id=request.id, device="pi", body=status)]

    with Mosquitto(tmp_path) as broker, answering(broker.config, answer):
        device = MqttDevice(name="pi", broker=f"mqtt://127.0.0.1:{broker.port}")
        found = over_mqtt(device, 2.0)
    assert found.facts.model == "Raspberry Pi 4"
    assert ("busy" if busy else "too old") in found.note


def test_what_an_old_agent_says_of_the_request_is_what_is_looked_for(tmp_path):
    """The real words of an agent that cannot read a request, by a request that no agent can read yet."""
    from ferryman.devices.agent.desk import Desk
    from ferryman.devices.mqtt import Link

    class Later(msgspec.Struct, tag="later"):
        pass

    with Mosquitto(tmp_path) as broker:
        link = Link(broker.config, "agent-pi")
        Desk("pi", link, lambda *_: pytest.fail("was worked on"))
        link.start()
        link.wait_ready(60)
        try:
            with AgentClient(broker.config, "pi") as client:
                assert "cannot be read" in encode_unreadable(client)
        finally:
            link.stop()


def encode_unreadable(client) -> str:
    import ferryman.devices.fleet.client as module

    real = module._packed
    module._packed = lambda request: real(request).replace(b"facts", b"later")
    try:
        with pytest.raises(CallerError) as caught:
            client.facts(timeout_s=60)
    finally:
        module._packed = real
    return str(caught.value)


@pytest.mark.skipif(ADB is None, reason="adb is not installed: apt-get install adb")
def test_a_phone_is_asked_over_the_real_adb(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "phone", {f"sys/bus/iio/devices/{name}": text for name, text in ODPM.items()})
    (root / "bin").mkdir()
    getprop = root / "bin/getprop"
    getprop.write_text(
        "#!/bin/sh\ncase $1 in ro.build.version.sdk) echo 34 ;; ro.build.version.release) echo 14 ;; "
        'ro.product.model) echo "Pixel 8" ;; ro.product.manufacturer) echo Google ;; esac\n'
    )
    getprop.chmod(0o755)
    phone = FakePhone(root)
    try:
        with adb_server(monkeypatch, phone):
            ferryman("devices", "add", "phone", "--adb", phone.serial)
            (report,) = reports(ferryman("devices", "probe", "phone", "--json"))
    finally:
        phone.close()
    facts = report["probe"]["facts"]
    assert (facts["model"], facts["os"]) == ("Google Pixel 8", "Android 14 (API 34)")
    (odpm,) = (one for one in facts["sensors"] if one["name"] == "odpm")
    assert odpm["available"]
    assert ODPM_ENABLED.split("[")[1].partition("]")[0] in odpm["detail"]
    assert facts["cores"]


def test_a_phone_that_is_not_there_is_a_row(monkeypatch, tmp_path):
    if ADB is None:
        pytest.skip("adb is not installed: apt-get install adb")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("HOME", str(tmp_path))
    ferryman("devices", "add", "phone", "--adb", "not-there")
    try:
        (report,) = reports(ferryman("devices", "probe", "phone", "--json", exit_code=1))
    finally:
        subprocess.run([ADB, "kill-server"], check=False, capture_output=True, timeout=60)
    assert report["probe"]["ways"][0]["error"]["party"] == "link"


def test_facts_cross_the_wire_unchanged(tmp_path):
    facts = decode(ferryman("facts", "--root", tmp_path, "--json").stdout.encode(), DeviceFacts)
    assert decode(encode(facts), DeviceFacts) == facts
