"""Commands that take a query of the devices file, and say whom it means."""

from __future__ import annotations

import json
import tomllib

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices.fleet import push as pushing
from ferryman.runtime.contracts.errors import LinkError
from tests.support.packages import write_tiny_package

DEVICES = """
[kitchen]
host = "kitchen.lan"
user = "ferryman"
labels = {site = "lab"}

[kiosk]
host = "kiosk.lan"
user = "ferryman"
labels = {site = "hall"}

[pixel]
adb = ""
labels = {site = "lab"}
"""
SSH = ("--host", "pi.lan", "--user", "ferryman")


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "devices.toml"
    path.write_text(DEVICES)
    monkeypatch.setenv("FERRYMAN_DEVICES", str(path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return path


@pytest.fixture
def pushed(monkeypatch):
    names: list[str] = []

    def push(_package, device, **_more):
        names.append(device.name)
        raise LinkError("gone")

    monkeypatch.setattr(pushing, "push", push)
    return names


def ferryman(*words, exit_code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == exit_code, done.output
    return done


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["site=lab"], ["kitchen", "pixel"]),
        (["ki*"], ["kitchen", "kiosk"]),
        (["all"], ["kitchen", "kiosk", "pixel"]),  # not this machine
        (["kiosk", "site=lab", "ki*"], ["kiosk", "kitchen", "pixel"]),  # each once
        (["local", "pixel"], ["local", "pixel"]),
    ],
)
def test_push_goes_to_whom_queries_mean_and_says_so(file, pushed, tmp_path, words, meant):
    done = ferryman("push", write_tiny_package(tmp_path / "p.ferry"), *words, exit_code=1)
    assert pushed == meant
    asks = any(set(word) & set("=*") or word == "all" for word in words)
    assert (f"to {len(meant)} devices: {', '.join(meant)}\n" in done.stderr) == asks


@pytest.mark.parametrize("words", [["kitchen", "site=moon"], ["kitchen", "site="], ["kitchen", "nope"]])
def test_push_begins_nowhere_if_a_word_means_nobody(file, pushed, tmp_path, words):
    ferryman("push", write_tiny_package(tmp_path / "p.ferry"), *words, exit_code=1)
    assert pushed == []


@pytest.mark.parametrize("option", ["--mqtt", "--broker"])
@pytest.mark.parametrize("url", ["foo", "http://hub.lan", "mqtt://"])
def test_a_broker_that_is_none_is_not_written(file, option, url):
    before = file.read_bytes()
    way = [] if option == "--mqtt" else ["--adb", "R58N"]
    done = ferryman("devices", "add", "new", *way, option, url, exit_code=1)
    assert "broker: expected mqtt://" in done.stderr
    assert file.read_bytes() == before


def labels(file):
    return {name: table.get("labels", {}) for name, table in tomllib.loads(file.read_text()).items()}


def test_labels_are_set_on_several_devices_at_once(file):
    done = ferryman("devices", "label", "ki*", "pixel", "stage=canary", "site-")
    assert labels(file) == {name: {"stage": "canary"} for name in ("kitchen", "kiosk", "pixel")}
    assert done.stdout == "".join(f"{name}: stage=canary\n" for name in ("kitchen", "kiosk", "pixel"))


def test_a_query_by_label_is_told_from_a_change(file):
    """The first word says who, whatever is in it."""
    ferryman("devices", "label", "site=lab", "site=attic")
    assert {name: one["site"] for name, one in labels(file).items()} == {
        "kitchen": "attic",
        "kiosk": "hall",
        "pixel": "attic",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ki*", "nope", "a=b"], "no device matches 'nope'"),
        (["ki*", "shelf-"], "has no label 'shelf'"),
        (["ki*"], "NAME=VALUE"),
    ],
)
def test_labels_of_several_are_set_on_all_or_none(file, words, message):
    before = file.read_bytes()
    done = CliRunner().invoke(main, ["devices", "label", *words])
    assert done.exit_code
    assert message in done.output
    assert file.read_bytes() == before


def test_passwords_are_shown_nowhere(file):
    """Neither of the broker that is the only way to a device, nor of another's."""
    url = "mqtt://hub:hunter2@127.0.0.1:1"
    told = [ferryman("devices", "add", "far", "--mqtt", url), ferryman("devices", "add", "pi", *SSH, "--broker", url)]
    told += [ferryman("devices", *words) for words in (["list"], ["list", "--json"], ["show", "far", "pi"])]
    told.append(ferryman("devices", "show", "far", "pi", "--json"))
    assert not [done.output for done in told if "hunter2" in done.output]
    assert "mqtt://hub:***@127.0.0.1:1" in told[4].output
    assert file.read_text().count("hunter2") == 2


def test_a_device_is_shown_without_being_asked(file):
    done = ferryman("devices", "show", "kitchen", "pixel")
    assert [line.split(maxsplit=1) for line in done.output.splitlines()] == [
        ["kitchen"],
        ["root", "/var/lib/ferryman"],
        ["command", "ferryman"],
        ["labels", "site=lab"],
        ["host", "kitchen.lan"],
        ["user", "ferryman"],
        ["port", "22"],
        ["known_hosts", "~/.ssh/known_hosts"],
        ["known", "nothing yet: `ferryman devices probe kitchen` asks it"],
        ["pixel"],
        ["root", "/data/local/tmp/ferryman"],
        ["command", "ferryman"],
        ["labels", "site=lab"],
        ["adb"],
        ["known", "nothing yet: `ferryman devices probe pixel` asks it"],
    ]
    ferryman("devices", "probe", "local")
    shown = ferryman("devices", "show", "local").output
    assert "over local, just now" in shown
    assert "  + memory: " in shown
    told = json.loads(ferryman("devices", "show", "local", "--json").output)
    assert told["device"] == "local"
    assert told["known"]["facts"]["machine"]


def test_a_device_is_renamed_and_several_are_removed(file):
    ferryman("devices", "rename", "kitchen", "hall")
    done = ferryman("devices", "remove", "hall", "attic", exit_code=1)
    assert "no device 'attic'" in done.output
    assert "taken out" not in done.output
    assert set(tomllib.loads(file.read_text())) == {"hall", "kiosk", "pixel"}
    ferryman("devices", "remove", "hall", "pixel")
    assert set(tomllib.loads(file.read_text())) == {"kiosk"}


def test_who_renames_an_agents_device_is_told_of_its_agent(file):
    ferryman("devices", "add", "pi", *SSH, "--broker", "mqtt://hub.lan")
    assert "`provision.sh --device attic` there" in ferryman("devices", "rename", "pi", "attic").output


@pytest.mark.parametrize("command", ["push", "status", "list"])
def test_who_names_a_device_that_is_not_there_is_told_how_to_add_it(file, tmp_path, command):
    file.write_text("")
    package = write_tiny_package(tmp_path / "p.ferry")
    words = {"push": ["push", package], "status": ["status"], "list": ["devices", "list"]}[command]
    done = ferryman(*words, "pi", exit_code=1)
    assert "there are: local (see" in done.stderr
    assert "`ferryman devices add pi --host HOST --user USER`" in done.stderr
    assert "`--mqtt URL`" in done.stderr
    if command == "list":
        assert "devices add" not in ferryman("devices", "list", "site=moon", exit_code=1).stderr
