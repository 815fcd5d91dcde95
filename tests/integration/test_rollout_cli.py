"""`ferryman rollout` and `ferryman ship` over a real mosquitto, with a real repository and fake devices."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from ferryman.cli import main
from ferryman.devices import topics
from ferryman.devices.fleet.repository.files import locked
from ferryman.devices.fleet.rollout.query import Target
from ferryman.devices.fleet.rollout.start import Known, begin, cut, make_plan
from ferryman.devices.fleet.rollout.store import RolloutStore
from ferryman.devices.mqtt import Message
from ferryman.rollout_cli import rollout
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.tensor import Signature, TensorSpec
from ferryman.ship_cli import ship
from tests.support.mosquitto import Mosquitto
from tests.support.packages import write_tiny_package
from tests.support.repository import make_repository
from tests.support.rollouts import FakeDevice, FakeFleet

QUICK = ("--soak", "0", "--rings", "1,100%")


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setenv("FERRYMAN_DEVICES", os.devnull)
    monkeypatch.setattr("ferryman.devices.fleet.rollout.link.QUIET_S", 0.3)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made(tmp_path, monkeypatch):
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setenv("FERRYMAN_REPOSITORY", str(folder / "repository"))
    return make_repository(folder)


@pytest.fixture
def broker(tmp_path, monkeypatch):
    with Mosquitto(tmp_path) as running:
        monkeypatch.setenv("FERRYMAN_BROKER", f"mqtt://127.0.0.1:{running.port}")
        yield running


def call(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def releases(made):
    padding = os.urandom(50_000)
    return [made.publish_tiny(added, padding=padding) for added in (1.0, 2.0)]


@pytest.fixture
def fleet(broker, releases):
    devices = [
        FakeDevice(f"d{number}", model=f"pi{number % 2}", serves=releases[0].package_sha256, release="digits/1")
        for number in range(5)
    ]
    labels = {"d0": {"site": "lab"}, "d1": {"site": "lab"}}
    with FakeFleet(broker.config, devices, labels) as running:
        yield running


def serving(fleet):
    return [one.release for one in fleet.devices.values()]


def test_start_follows_to_the_end(fleet):
    result = call("rollout", "start", "digits/2", "--to", "site=lab", *QUICK)
    assert result.exit_code == 0, result.output
    assert serving(fleet) == ["digits/2"] * 2 + ["digits/1"] * 3
    assert "d1: confirmed" in result.stderr
    assert "to site=lab: done" in result.stdout
    assert result.output.count("to site=lab: done") == 1
    shown = call("rollout", "status")
    assert shown.exit_code == 0
    assert "2 confirmed" in shown.stdout
    view = json.loads(call("rollout", "status", "--json").stdout)
    assert [one["standing"] for one in view["devices"]] == ["confirmed"] * 2
    assert view["rings"][0]["health"]["slower"] == 1.0
    assert view["progress"]["phase"] == "done"
    assert "digits/2" in call("rollout", "list").stdout
    log = call("rollout", "log").stdout
    assert ": start (digits/2" in log
    assert "d0: confirmed" in log
    refused = call("rollout", "approve")
    assert refused.exit_code == 1
    assert "is done, and cannot approve now" in refused.stderr


def test_a_dry_run_sends_nothing_and_tells_the_bytes(fleet, releases, tmp_path):
    result = call("rollout", "start", "digits/2", "--to", "all", "--rings", "1,60%", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"digits/2 (add-2, {releases[1].package_sha256[:12]}) to all: 5 devices\n")
    assert "ring 1: 2 devices, at most" in result.stdout  # one of each kind
    assert "ring 3: 2 devices" in result.stdout
    assert not list(tmp_path.glob("*.sqlite*"))
    told = json.loads(call("rollout", "start", "digits/2", "--to", "all", "--dry-run", "--json").stdout)
    assert all(0 < one["wire_bytes"] < 10_000 for one in told["devices"])  # the padding is there already
    again = json.loads(call("rollout", "start", "digits/2", "--to", "all", "--dry-run", "--json").stdout)
    assert again["plan"]["id"] != told["plan"]["id"]
    assert again["devices"] == told["devices"]
    nothing = json.loads(call("rollout", "start", "digits/1", "--to", "all", "--dry-run", "--json").stdout)
    assert {one["wire_bytes"] for one in nothing["devices"]} == {0}
    assert serving(fleet) == ["digits/1"] * 5


def test_without_what_devices_have_a_release_costs_all_of_it(fleet):
    for one in fleet.devices.values():
        one.serves, one.release = "f" * 64, None
        fleet._announce(one)
    fleet.settle()
    told = json.loads(call("rollout", "start", "digits/2", "--to", "all", "--dry-run", "--json").stdout)
    assert all(one["wire_bytes"] > 50_000 for one in told["devices"])


def test_a_bad_release_is_told_by_the_exit_code(fleet):
    for one in fleet.devices.values():
        one.ends = lambda _: "rolled-back"
    result = call("rollout", "start", "digits/2", "--to", "all", *QUICK)
    assert result.exit_code == 3
    assert "halted" in result.stdout
    assert ": returned after rolled-back, runtime: it does not go" in result.stdout
    view = json.loads(call("rollout", "status", "--json").stdout)
    failed = [one for one in view["devices"] if one["failed"]]  # the second of the ring may have been stopped before
    assert view["rings"][0]["health"]["failures"] == len(failed) > 0
    assert {(one["standing"], one["failed"], one["error"]) for one in failed} == {
        ("returned", "rolled-back", "runtime: it does not go")
    }
    log = call("rollout", "log").stdout
    assert log.count(": rolled-back (runtime: it does not go)") == len(failed)
    assert log.count(": returned\n") == 2
    assert "confirmed" not in log
    for one in fleet.devices.values():
        one.ends = lambda _: "confirmed"
    assert call("rollout", "retry").exit_code == 0
    assert serving(fleet) == ["digits/2"] * 5
    assert call("rollout", "roll-back", "--why", "it is monday").exit_code == 5
    assert serving(fleet) == ["digits/1"] * 5
    assert "roll-back (it is monday)" in call("rollout", "log").stdout


def test_some_that_fail_are_told_by_the_exit_code(fleet):
    fleet.devices["d3"].ends = lambda _: "failed"
    result = call("rollout", "start", "digits/2", "--to", "all", "--rings", "100%", "--failures", "1", "--soak", "0")
    assert result.exit_code == 4
    assert "d3: failed, runtime: it does not go" in result.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "all,,x"), "query, character 5"),
        (("--to", "site=roof"), "means no device; there are: d0, d1"),
        (("--to", "lab"), "means no device; did you mean site=lab? there are: d0, d1"),
        (("--to", "x" * 3000), "xxx...' means no device"),
        (("--to", "all", "--rings", "5%,1%"), "expected growing totals"),
        (("--to", "all", "--failures", "lots"), "failures 'lots'"),
        (("--to", "all", "--pick", "best"), "pick 'best' is not known"),
        (("--to", "all", "--soak", "soon"), "is not a duration"),
        (("--to", "all", "--window", "25:00-26:00"), "is not a time of day"),
        (("--to", "all", "--budget", "1TB"), "is not a size"),
        (("--to", "all", "--slower", "-1"), "is neither a number"),
        (("--to", "all", "--slower", "nan"), "is neither a number"),
        (("--to", "all", "--broker", "http://x"), "broker: expected mqtt://"),
        ((), "Missing option '--to'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(fleet, tmp_path, words, says):
    result = call("rollout", "start", "digits/2", *words)
    assert result.exit_code in {1, 2}
    assert says in result.stderr
    assert not list(tmp_path.glob("*.sqlite"))
    assert serving(fleet) == ["digits/1"] * 5


def test_a_release_that_is_not_there_is_told(fleet):
    result = call("rollout", "start", "digits/9", "--to", "all")
    assert result.exit_code == 1
    assert "no release digits/9 in this repository; there are: digits/1, digits/2" in result.stderr


def test_no_broker_and_no_rollouts_are_told(made, monkeypatch):
    monkeypatch.delenv("FERRYMAN_BROKER", raising=False)
    assert "--broker is missing" in call("rollout", "start", "digits/1", "--to", "all").stderr
    for verb in ("status", "list", "log", "pause", "abort"):
        assert "no rollouts in ferryman-rollouts.sqlite" in call("rollout", verb).stderr
    Path("other.sqlite").write_bytes(b"not a database" * 100)
    assert "file is not a database" in call("rollout", "list", "--database", "other.sqlite").stderr


def test_interrupted_it_can_go_on_and_be_paused_in_between(fleet, tmp_path):
    driver = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ferryman.cli",
            "rollout",
            "start",
            "digits/2",
            "--to",
            "all",
            "--rings",
            "1,100%",
            "--soak",
            "1h",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    database = Path("ferryman-rollouts.sqlite")
    deadline = time.monotonic() + 60
    while not database.exists() or serving(fleet).count("digits/2") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    paused = call("rollout", "pause", "--why", "lunch")  # by the process that drives it
    assert paused.exit_code == 0, paused.output
    assert "paused" in paused.stdout
    again = call("rollout", "pause")
    assert again.exit_code == 1
    assert "is paused, and cannot pause" in again.stderr
    driver.send_signal(signal.SIGINT)
    stdout, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 6, stderr
    assert "left; go on with: ferryman rollout resume 2" in stderr
    assert "paused" in stdout
    assert call("rollout", "approve").exit_code == 1
    assert serving(fleet).count("digits/2") == 2
    assert call("rollout", "abort").exit_code == 5
    assert serving(fleet).count("digits/2") == 2  # those that confirmed it keep it


def test_pause_needs_nobody_to_drive(fleet):
    plan_store = RolloutStore(Path("ferryman-rollouts.sqlite"))
    plan = make_plan("digits/2", "2" * 64, "all")
    begin(plan_store, plan, cut(plan, [Known(target=Target(name="d0"), online=True)]))
    plan_store.close()
    result = call("rollout", "pause")
    assert result.exit_code == 0
    assert "paused" in result.stdout
    assert "is paused, and cannot pause" in call("rollout", "pause").stderr


def test_a_rollout_that_is_damaged_hides_no_other():
    store = RolloutStore(Path("ferryman-rollouts.sqlite"))
    plans = [make_plan("digits/2", "2" * 64, "all", now_ns=(1_800_000_000 + day * 86400) * 10**9) for day in range(3)]
    for plan in plans:
        begin(store, plan, cut(plan, [Known(target=Target(name="d0"), online=True)]))
    store.close()
    with closing(sqlite3.connect("ferryman-rollouts.sqlite")) as connection, connection:
        connection.execute("UPDATE rollouts SET plan = '{}' WHERE id = ?", (plans[1].id,))
    result = call("rollout", "list")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [plan.id for plan in plans]
    assert lines[1].endswith("is damaged")
    assert "is damaged: Object missing required field" in result.stderr
    assert call("rollout", "status").exit_code == 0


def test_the_same_as_functions(fleet, made, broker):
    from ferryman.devices.fleet.rollout.api import preview_rollout, resume_rollout, roll_out, rollout_status

    where = {"repository": made.path, "broker": f"mqtt://127.0.0.1:{broker.port}"}
    told = preview_rollout("digits/2", "site=lab", **where)
    assert [one.release for one in told.devices] == ["digits/1"] * 2
    for wrong in ({"ring": "1"}, {"window": "late"}, {"health": {"x": 1}}):
        for function in (roll_out, preview_rollout):
            with pytest.raises(CallerError):
                function("digits/2", "site=lab", **where, **wrong)
    assert not Path("ferryman-rollouts.sqlite").exists()
    done = roll_out("digits/2", "site=lab", **where, rings="100%", soak_s=0.0)
    assert (done.progress.phase, done.exit_code) == ("done", 0)
    assert rollout_status().progress == done.progress
    assert resume_rollout(broker=where["broker"]).exit_code == 0
    assert serving(fleet) == ["digits/2"] * 2 + ["digits/1"] * 3


def test_for_whom_the_first_ring_waits_is_told(fleet):
    gone = Status(device="gone", online=False, model="pi0")
    fleet._say(topics.status("gone"), encode(gone))
    fleet.settle()
    words = ("rollout", "start", "digits/2", "--to", "gone", "--rings", "100%", "--timeout", "2", "--soak", "0")
    assert "nobody of ring 1 is online" in call(*words, "--dry-run").stdout
    result = call(*words)
    assert result.exit_code == 4, result.output
    assert "ring 1 waits for gone: offline when the rollout began, and not heard of since" in result.stderr


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_another_model_is_shipped_only_where_that_is_meant(fleet, made, tmp_path, dry):
    ids = TensorSpec(name="ids", dtype="int64", shape=(1, 32))
    other = write_tiny_package(
        tmp_path / "text.ferry", added=3.0, name="text", signature=Signature(inputs=(ids,), outputs=(ids,))
    )
    words = ("ship", other, "--to", "all", "--keys", made.keys, *QUICK, *dry)
    assert "text, which is no family here; there are: digits" in call(*words).stderr
    refused = call(*words, "--family", "digits")
    assert refused.exit_code == 1
    assert "text has another signature than digits/2" in refused.stderr
    assert serving(fleet) == ["digits/1"] * 5
    meant = call(*words, "--family", "digits", "--new-signature")
    assert meant.exit_code == 0, meant.output
    assert serving(fleet) == ["digits/1" if dry else "digits/3"] * 5


def test_a_package_is_shipped(fleet, made, tmp_path):
    package = write_tiny_package(tmp_path / "three.ferry", added=3.0, name="digits")
    words = ("ship", package, "--to", "pi0-*|model=pi0", "--keys", made.keys, *QUICK)
    before = {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file() and path.name != "lock"}
    preview = call(*words, "--dry-run")
    assert preview.exit_code == 0, preview.output
    assert "would be published as digits/3" in preview.stderr
    assert "digits/3 (" in preview.stdout
    assert "nothing was sent" in preview.stdout
    after = {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before
    assert not list(tmp_path.glob("*.sqlite*"))
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "published as digits/3" in result.stderr
    real = json.loads(call("rollout", "status", "--json").stdout)
    rings = [line.rpartition(": ")[2].split(", ") for line in preview.stdout.splitlines() if "ring " in line]
    assert rings == [[one["device"] for one in real["devices"] if one["ring"] == ring] for ring in (1, 2)]
    again = call(*words, "--dry-run")
    assert "is digits/3 already" in again.stderr
    assert "d4: confirmed" in result.stderr
    assert serving(fleet) == ["digits/3", "digits/1"] * 2 + ["digits/3"]


@pytest.mark.parametrize("output", [None, "out"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_was_converted_is_kept_where_it_cannot_be_published(fleet, made, tmp_path, monkeypatch, output, dry):
    def converted(source, runtime, how, folder):
        folder.mkdir(exist_ok=True)
        return write_tiny_package(folder / "net.ferry", added=3.0, name="digits")

    monkeypatch.setattr("ferryman.ship_cli._converted", converted)
    (tmp_path / "models.py").touch()
    (tmp_path / "net.ferry").write_bytes(b"something else")
    monkeypatch.setattr("ferryman.devices.fleet.repository.files._WAIT_S", 0.1)
    words = ("ship", "models:net", "--family", "digits", "--to", "all", "--keys", made.keys, *QUICK, *dry)
    with locked(made.path):
        result = call(*words, *(("-o", output) if output else ()))
    assert result.exit_code == 1
    assert "is changing the repository" in result.stderr
    kept = tmp_path / "out" / "net.ferry" if output else tmp_path / "net-2.ferry"
    assert f"the package is kept: {kept}" in result.stderr
    assert kept.read_bytes() == write_tiny_package(tmp_path / "same.ferry", added=3.0, name="digits").read_bytes()
    assert (tmp_path / "net.ferry").read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "site=attic"), "query 'site=attic' means no device"),
        (("--to", "all", "--broker", "mqtt://127.0.0.1:1"), "not connected after"),
        (("--to", "all", "--name", "text"), "text, which is no family here; there are: digits"),
        (("--to", "all", "--keys", "elsewhere"), "elsewhere"),
        (("--to", "all", "--min-sqnr", "1"), "--min-sqnr is 5 to"),
        (("--to", "all", "--repository", "nowhere"), "nowhere"),
    ],
)
def test_what_can_be_known_before_a_conversion_is_told_before_it(fleet, made, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr("ferryman.devices.fleet.rollout.start.CONNECT_S", 0.3)
    monkeypatch.setattr("ferryman.ship_cli._converted", lambda *_: pytest.fail("it was converted"))
    (tmp_path / "models.py").touch()
    keys = () if "--keys" in words else ("--keys", made.keys)
    result = call("ship", "models:digits", *keys, *words, *QUICK)
    assert result.exit_code == 1, result.output
    assert message in result.stderr


def test_a_module_that_publishing_takes_is_missed_before_a_conversion(fleet, made, tmp_path, monkeypatch):
    missing = "ferryman.devices.fleet.repository.publish"  # whose imports are all that publishing takes
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("ferryman.ship_cli._converted", lambda *_: pytest.fail("it was converted"))
    (tmp_path / "models.py").touch()
    result = call("ship", "models:digits", "--to", "all", "--keys", made.keys, *QUICK)
    assert result.exit_code == 1
    assert f"{missing} is not installed here; pip install torch" in result.stderr


def test_what_is_no_source_is_told_before_anything(fleet, made):
    result = call("ship", "no-such-thing", "--to", "all", "--keys", made.keys)
    assert result.exit_code == 1
    assert "no-such-thing" in result.stderr


def test_a_device_that_talks_nonsense_is_named_once_and_skipped(fleet, broker, caplog):
    fleet.devices["d1"].work = list  # it does nothing, and says
    for text in (b"{}", b"\xff", encode(replace(fleet.devices["d1"].first(), desired_version=2**70))):
        fleet._link.publish(Message(topic=topics.reported("d1"), payload=text, retain=True))
    fleet.settle()
    result = call("rollout", "start", "digits/2", "--to", "all", "--rings", "100%", "--soak", "0", "--timeout", "2")
    assert result.exit_code == 4, result.output
    assert "d1: late, device: what it says is ignored: " in result.stdout
    assert serving(fleet).count("digits/2") == 4
    fleet._link.publish(Message(topic=topics.reported("d1"), payload=b"{}", retain=True))
    fleet.settle()
    caplog.clear()
    assert call("rollout", "start", "digits/2", "--to", "d1", *QUICK, "--dry-run").exit_code == 0
    warnings = [one.getMessage() for one in caplog.records if "ignored" in one.getMessage()]
    assert len(warnings) == 1
    assert "ferryman/v1/d1/reported" in warnings[0]


@pytest.mark.parametrize("command", [rollout, ship, *rollout.commands.values()])
def test_every_option_is_explained(command):
    assert command.help
    for option in command.params:
        assert getattr(option, "help", "") or option.param_type_name == "argument", option.name
