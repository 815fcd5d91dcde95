"""From a device's outbox, over a real broker and the collector, to what `ferryman fleet` answers while it collects."""

from __future__ import annotations

import json
import time

from click.testing import CliRunner

from ferryman import Fleet
from ferryman.cli import main
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.fleet.store.store import open_store
from ferryman.runtime.contracts.telemetry import LogLine, Sample
from tests.support.line_protocol import parse
from tests.support.mosquitto import Mosquitto
from tests.support.seeded import put, sample
from tests.support.telemetry import agent, collecting, until


def asked(*arguments):
    result = CliRunner().invoke(main, ["fleet", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_a_device_records_is_answered(tmp_path, monkeypatch):
    database = tmp_path / "store.sqlite"
    monkeypatch.setenv("FERRYMAN_DATABASE", str(database))
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "none.toml"))
    outbox, store = Outbox(tmp_path / "outbox.db"), open_store(database)
    for temperature_c in (50.0, 60.0):
        values = {"inferences": 3.0, "errors": 1.0, "latency_ms": 2.0, "temperature_c": temperature_c}
        outbox.append("sample", Sample(period_s=60.0, values=values, latencies_ms=(1.0, 2.0, 3.0)))
    outbox.append("log", LogLine(level="ERROR", logger="x", message="no disk"))
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store):
        with agent(broker.config, outbox):
            check(store, outbox, tmp_path)
        until(lambda: "OFFLINE" in asked("devices"))
    store.close()
    outbox.close()


def check(store, outbox, folder):
    """While all of them run."""
    until(lambda: outbox.counts().records == 0)
    until(lambda: len(store.devices()) == 1)
    (row,) = json.loads(asked("devices", "--json"))["rows"]
    assert (row["online"], row["inferences"], row["errors"]) == (True, 6, 2)
    assert (row["latency_p50_ms"], row["temperature_c"]) == (2.0, 60.0)
    status = json.loads(asked("status", "--json"))
    assert (status["online"], status["latency_ms"]["count"]) == (1, 6)
    assert "ERROR x: no disk" in asked("logs")
    assert "2 samples" in asked("export", "samples", "--to", folder / "s.lp")
    assert [point.fields["temperature_c"] for point in parse((folder / "s.lp").read_text())] == [50.0, 60.0]
    assert Fleet().samples()["temperature_c"].tolist() == [50.0, 60.0]


def test_the_command_line_takes_what_is_absurd(tmp_path, monkeypatch):
    monkeypatch.setenv("FERRYMAN_DATABASE", str(tmp_path / "store.sqlite"))
    store, now_ns = open_store(tmp_path / "store.sqlite"), time.time_ns()
    ahead = {"level": "ERROR", "logger": "l", "message": "ahead"}
    put(store, "p3", "log", {now_ns: {**ahead, "times": 10**30}, (1 << 63) - 2: ahead})
    put(store, "p3", "sample", {now_ns - 10**9: sample([1.0], errors=1e308), now_ns: sample([2.0])})
    store.close()
    for limit in (2**63 - 1, 2**63):
        assert "ahead" in asked("logs", "--limit", limit)
        assert "0 measurements" in asked("runs", "--limit", limit)
    assert "1 of 1 devices" in asked("devices", "--device", "p3")
    for command in ("status", "devices", "compare"):
        assert len(asked(command, "--since", "1970-01-01")) < 3000
    said = asked("export", "logs", "--to", tmp_path / "l.csv")
    since_ns = int(said.rsplit("next: --since ", 1)[1])
    assert now_ns < since_ns <= time.time_ns()
    assert "ahead" in (tmp_path / "l.csv").read_text()
    (tmp_path / "wal.csv").symlink_to("store.sqlite-wal")
    for name, words in (("wal.csv", "would overwrite the database"), ("a\x1b[31m.csv", "control characters")):
        result = CliRunner().invoke(main, ["fleet", "export", "logs", "--to", str(tmp_path / name)])
        assert result.exit_code == 1
        assert words in result.output
        assert "\x1b" not in result.output
    for long in ("x" * 300, "x/" * 3000):
        result = CliRunner().invoke(main, ["fleet", "export", "logs", "--to", f"{long}.csv"])
        assert (result.exit_code, "File name too long; name another file" in result.output) == (1, True)
        result = CliRunner().invoke(main, ["fleet", "logs", "--database", long])
        assert (result.exit_code, "File name too long" in result.output) == (1, True)
