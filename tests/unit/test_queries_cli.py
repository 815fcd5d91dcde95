"""Commands that take a query of the devices file, and say whom it means."""

from __future__ import annotations

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
