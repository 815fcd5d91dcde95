from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices.agent.modes import Modes
from ferryman.devices.agent.outbox import FILE, Outbox
from ferryman.devices.agent.spending import Spending, TelemetryConfig
from tests.unit.devices.agent.test_upkeep import Hands, Note


def outbox(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["outbox", *map(str, words)])
    return done.exit_code, done.output


@pytest.fixture
def root(tmp_path: Path) -> Path:
    box = Outbox(tmp_path / FILE, max_bytes=8192, clock=Hands())
    for _ in range(60):
        box.append("sample", Note(text="x" * 100))
    box.append_all([("note", Note()), ("note", Note()), ("update", Note())])
    spending = Spending(box, TelemetryConfig(day_max_bytes=50_000, mode="metered"))
    spending.roll()
    spending.spend(7000, 0.0)
    box.close()
    return tmp_path


def test_what_waits_is_shown(root):
    code, output = outbox("show", "--root", root)
    assert code == 0
    for line in (
        "mode metered; 7,000 of 50,000 bytes spent today",
        "last receipt never",
        "  note (normal): 2 records",
        "  update (vital): 1 records",
        "  dropped sample (bulk): ",
    ):
        assert line in output


def test_what_waits_is_shown_as_json(root):
    code, output = outbox("show", "--root", root, "--json")
    shown = json.loads(output)
    assert code == 0
    assert (shown["mode"], shown["day_spent_bytes"], shown["day_max_bytes"]) == ("metered", 7000, 50_000)
    assert {one["kind"]: (one["priority"], one["records"]) for one in shown["waiting"]}["note"] == ("normal", 2)
    assert sum(one["records"] for one in shown["waiting"]) == shown["records"]
    assert sum(one["bytes"] for one in shown["waiting"]) == shown["bytes"]
    assert sum(one["records"] for one in shown["drops"]) == shown["dropped"] > 0
    assert shown["receipt_ns"] is None


def test_a_receipt_is_shown(root):
    box = Outbox(root / FILE)
    box.forget(box.boot, [(1, 1)])
    box.close()
    assert "last receipt 0 seconds ago" in outbox("show", "--root", root)[1]


def test_the_mode_is_switched(root):
    code, output = outbox("mode", "offline", "--root", root)
    assert (code, output) == (0, f"{root}: mode offline\n")
    assert Modes(root).now() == "offline"
    assert json.loads(outbox("mode", "metered", "--root", root, "--json")[1]) == {"mode": "metered"}
    assert "mode metered;" in outbox("show", "--root", root)[1]


def test_the_mode_is_shown(root):
    assert outbox("mode", "--root", root) == (0, f"{root}: mode metered\n")
    outbox("mode", "offline", "--root", root)
    assert json.loads(outbox("mode", "--root", root, "--json")[1]) == {"mode": "offline"}


def test_what_is_not_there_is_a_clear_error(tmp_path):
    code, output = outbox("show", "--root", tmp_path)
    assert code == 1
    assert "no agent has run" in output
    assert not list(tmp_path.iterdir())
    code, output = outbox("mode", "full", "--root", tmp_path / "no", "--json")
    assert code == 1
    assert json.loads(output)["party"] == "caller"
