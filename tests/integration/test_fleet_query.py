"""From a device's outbox, over a real broker and the collector, to what `ferryman fleet` answers while it collects."""

from __future__ import annotations

import json

from click.testing import CliRunner

from ferryman import Fleet
from ferryman.cli import main
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.fleet.store.store import open_store
from ferryman.runtime.contracts.telemetry import LogLine, Sample
from tests.support.line_protocol import parse
from tests.support.mosquitto import Mosquitto
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
