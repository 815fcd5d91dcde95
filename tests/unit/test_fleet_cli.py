"""`ferryman fleet` as people and scripts call it."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from ferryman import fleet_show
from ferryman.cli import main
from ferryman.devices.fleet.query.schema import schema
from ferryman.devices.fleet.store.store import Batch, open_store
from ferryman.profiler import report_text
from ferryman.runtime.contracts.record import encode
from tests.support.line_protocol import parse
from tests.support.measurements import measurement
from tests.support.seeded import SHA, alert, join, put, sample, status

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "telemetry" / "fleet.schema.json"
MINUTE = 60 * 10**9
COMMANDS = ("status", "devices", "runs", "compare", "logs", "alerts")


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "store.sqlite"
    store = open_store(path)
    now_ns = time.time_ns()

    join(
        store,
        status("kitchen", model="Raspberry Pi 5", labels={"site": "lab"}, release="digits/3"),
        status("roof", online=False, birth=0, outbox_dropped=12),
        now_ns=now_ns,
    )

    def send(device, kind, bodies):
        put(store, device, kind, bodies, received_ns=now_ns)

    for n in range(8):
        send("kitchen", "sample", {now_ns - n * MINUTE: sample([5.0 + n], SHA["one"], temperature_c=61.5)})
        send("roof", "sample", {now_ns - n * MINUTE: sample([50.0 + n], SHA["two"], errors=1)})
    send("roof", "log", {now_ns - 1: {"level": "ERROR", "logger": "x", "message": "no \x1b[31mdisk", "times": 3}})
    send("kitchen", "measurement", {now_ns: encode(measurement("digits", SHA["one"]))})
    alert(store, "roof", since_ns=now_ns - 7200 * 10**9)
    store.close()
    return path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["fleet", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def asked(command, database, *more):
    return run(command, "--database", database, *more)


def test_a_screen_tells_how_the_fleet_does(database):
    shown = asked("status", database).stdout
    for words in ("1 of 2 devices, 1 offline", "1 warning", "digits/3 1", "12 ever", "roof", "61.5 °C"):
        assert words in shown
    assert "kitchen" in asked("status", database, "site=lab").stdout
    assert "1 of 1 devices" in asked("status", database, "model~pi 5").stdout


def test_tables_for_people(database):
    devices = asked("devices", database).stdout
    for words in ("kitchen", "OFFLINE", "Raspberry Pi 5", "site=lab", "61.5", "one 111111111111"):
        assert words in devices
    assert "digits 111111111111" in asked("runs", database).stdout
    assert "offline" in asked("alerts", database).stdout
    compared = asked("compare", database, "--by", "device", "--metric", "latency_ms").stdout
    assert "an hour is one value" in compared
    compared = asked("compare", database, "--metric", "latency_ms").stdout
    assert "one 111111111111" in compared
    lines = asked("logs", database).stdout
    assert lines.endswith("roof ERROR x: no \ufffd[31mdisk (3 times)\n")
    assert "\x1b" not in lines


def test_a_row_for_each_device_fits_a_wide_terminal_and_says_what_is_the_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    path, now_ns = tmp_path / "wide.sqlite", time.time_ns()
    told = {
        "model": "Raspberry Pi 4 Model B Rev 1.4",
        "labels": {"site": "lab", "line": "3"},
        "release": "2026-11-20.3",
    }
    with contextlib.closing(open_store(path)) as store:
        store.insert(Batch(statuses=[status("kitchen-camera-7", **told), status("hall", **told)]), now_ns)
        values = {"latency_ms": 14.125, "inferences": 123_456, "temperature_c": 61.25, "outbox_records": 1234}
        put(store, "kitchen-camera-7", "sample", {now_ns: {"period_s": 60, "values": values}})
    shown = asked("devices", path).stdout
    assert len([line for line in shown.splitlines() if "kitchen-camera-7" in line]) == 1
    assert "ferryman 0.2.0" in shown.splitlines()[0]
    assert not {"trouble", "Rev"} & set(shown.split())
    with contextlib.closing(open_store(path)) as store:
        troubled = status("hall", birth=2, storage="read-only", outbox_dropped=33)
        store.insert(Batch(statuses=[troubled, status("gone")]), now_ns - 3600 * 10**9)
    shown = asked("devices", path).stdout
    assert {"read-only", "33", "ped"} <= set(shown.split())
    assert "SILENT" in next(line for line in shown.splitlines() if line.startswith("gone"))
    assert "1 of 3 devices, 2 silent" in asked("status", path).stdout


def test_measurements_that_do_not_fit_are_told_by_device_and_variant(database, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.split() for line in asked("runs", database).stdout.splitlines()]
    heads = [below for line, below in itertools.pairwise(lines) if line[:1] == ["when"]]
    assert len(heads) > 1
    assert all(head[:3] == ["UTC", "device", "variant"] for head in heads)


def test_a_query_that_means_no_device_is_an_error(database, tmp_path):
    for command in COMMANDS:
        done = asked_of_nobody(command, database, "nosuch")
        assert "no device is meant by 'nosuch'; there are: kitchen, roof; labels are: site" in done.stderr
        assert not done.stdout
    empty = tmp_path / "empty.sqlite"
    open_store(empty).close()
    assert "nor any other" in asked_of_nobody("status", empty, "site=lab").stderr
    assert "0 of 0 devices" in asked("status", empty).stdout


def asked_of_nobody(command, database, query):
    return run(command, query, "--database", database, code=1)


def test_without_rich_the_tables_are_plain(database, monkeypatch):
    monkeypatch.setattr(report_text.util, "find_spec", lambda _: None)
    for command in ("status", "devices", "runs", "alerts"):
        assert "kitchen" in asked(command, database).stdout or command == "alerts"
    assert "─" not in asked("devices", database).stdout


def test_an_operator_silences_looks_and_ends_it(database, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    schema_ = json.loads(SCHEMA_FILE.read_bytes())
    made = asked("silence", database, "roo*", "--rule", "offline", "--for", "2h", "--why", "a new\x1b roof").stdout
    assert made.startswith("silence 1 until ")
    assert made.endswith("1 of 1 alerts that hold are silenced; `ferryman fleet unsilence 1` ends it\n")
    assert ", by 1" in asked("alerts", database).stdout
    listed = asked("silences", database).stdout
    for words in ("silences: 1 in force", "roo*", "offline", "@", "a new? roof"):
        assert words in listed
    ended = json.loads(asked("unsilence", database, "1", "--by", "eve", "--json").stdout)
    jsonschema.validate(ended, schema_)
    assert ended["rows"][0]["ended_by"] == "eve"
    assert ", by 1" not in asked("alerts", database).stdout
    assert "silences: 0 in force" in asked("silences", database).stdout
    assert "eve, " in asked("silences", database, "--past").stdout
    jsonschema.validate(json.loads(asked("silences", database, "--past", "--json").stdout), schema_)
    refused = run("unsilence", "1", "--database", database, code=1)
    assert "no silence 1 is in force; there are: none" in refused.stderr
    refused = run("silence", "all", "--for", "2", "--why", "x", "--database", database, code=1)
    assert "'2' is no length of time" in refused.stderr
    refused = run("silence", "all", "--for", "2h", "--why", "x", "--database", database.parent / "none", code=1)
    assert "no such file" in refused.stderr
    assert not (database.parent / "none").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_as_the_schema_says(database, command, tmp_path):
    empty = tmp_path / "empty.sqlite"
    open_store(empty).close()
    for where in (database, *([empty] if command != "compare" else [])):
        document = json.loads(asked(command, where, "--json").stdout)
        assert document["type"].startswith("fleet-")
        jsonschema.Draft202012Validator(json.loads(schema())).validate(document)


@pytest.mark.parametrize(
    ("online", "mode", "word"),
    [
        (True, "", "online"),
        (True, "full", "online"),
        (True, "metered", "metered"),
        (False, "offline", "paused"),
        (False, "metered", "OFFLINE"),
    ],
)
def test_how_a_device_uses_its_link_is_seen(tmp_path, online, mode, word):
    path = tmp_path / "one.sqlite"
    with contextlib.closing(open_store(path)) as store:
        store.insert(Batch(statuses=[status("pi", online=online, mode=mode)]), time.time_ns())
    shown = run("devices", "--database", path).stdout
    assert [one for one in ("online", "metered", "paused", "OFFLINE") if one in shown] == [word]
    assert json.loads(run("devices", "--database", path, "--json").stdout)["rows"][0]["mode"] == mode


def test_the_documented_schema_is_that_of_the_records():
    written = SCHEMA_FILE.read_bytes()
    assert written == schema(), f"python -m ferryman.devices.fleet.query.schema {SCHEMA_FILE}"
    jsonschema.Draft202012Validator.check_schema(json.loads(written))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json.loads(written)).validate({"type": "fleet-logs", "rows": [{}]})


def test_an_export_says_how_to_go_on(database, tmp_path):
    path = tmp_path / "samples.lp"
    told = run("export", "samples", "--database", database, "--to", path).stdout
    assert "16 samples" in told
    assert len(parse(path.read_text())) == 16
    then = told.rpartition("--since ")[2].strip()
    assert "0 samples" in run("export", "samples", "--database", database, "--to", path, "--since", then).stdout
    document = json.loads(
        run("export", "logs", "--database", database, "--to", path, "--json", "--device", "roof").stdout
    )
    assert (document["rows"], document["type"]) == (1, "fleet-export")
    jsonschema.Draft202012Validator(json.loads(schema())).validate(document)


def test_what_is_left_out_is_said_beside_the_answer(database):
    result = asked("devices", database, "--limit", "1")
    assert "left out: 1 of 2 devices" in result.stderr
    assert "left out" not in result.stdout
    assert json.loads(asked("devices", database, "--limit", "1", "--json").stdout)["left_out"]
    assert "left out" not in asked("devices", database, "--limit", "0").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("devices", "site="), "caller: query, character 6"),
        (("devices", "--device", "attic"), "caller: no device 'attic' in this store; there are: kitchen, roof"),
        (("status", "--since", "soon"), "caller: 'soon' is no time"),
        (("logs", "--since", "1h", "--until", "2h"), "caller: the window ends before it begins"),
        (("logs", "--level", "INFO"), "caller: no level 'INFO'"),
        (("logs", "--grep", "("), "no regular expression"),
        (("compare", "--baseline", "x"), "caller: 'x' is no group"),
        (("compare", "--since", "2020-01-01", "--until", "2020-02-01"), "caller: no samples in the window"),
        (("devices", "--sort", "age"), "not sorted by 'age'"),
        (("export", "dreams", "--to", "x.csv"), "'dreams' cannot be exported"),
        (("export", "logs", "--to", "x.doc"), "ends in none of .parquet, .csv, .lp"),
        (("export", "logs", "--to", "no/x.csv"), "name a file in a folder that is there"),
    ],
)
def test_bad_questions_are_told_what_is_wrong(database, arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert words in run(*arguments, "--database", database, code=1).stderr


def test_an_export_does_not_overwrite_the_store(tmp_path):
    path = tmp_path / "store.csv"
    open_store(path).close()
    before = path.read_bytes()
    assert "would overwrite" in run("export", "logs", "--database", path, "--to", path, code=1).stderr
    assert path.read_bytes() == before


def test_a_database_that_is_none_is_told(tmp_path, database, monkeypatch):
    assert "no such file; run `ferryman collect` first" in asked_badly(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("no database at all, but some text that is long enough " * 30)
    assert "store: " in asked_badly(tmp_path / "text.sqlite")
    later = open_store(database)
    later.write(lambda c: c.exec_driver_sql("UPDATE store SET version = 99"))
    later.close()
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "a later ferryman wrote it" in asked_badly(database)
    monkeypatch.setenv("FERRYMAN_DATABASE", str(tmp_path / "named.sqlite"))
    assert "named.sqlite: no such file" in run("status", code=1).stderr
    assert "postgresql://" in asked_badly("postgresql://nobody@127.0.0.1:1/none")


def asked_badly(database):
    return run("status", "--database", database, code=1).stderr


def test_following_shows_lines_as_they_come_and_an_interrupt_ends_it(database):
    command = [sys.executable, "-m", "ferryman.cli", "fleet", "logs", "--database", str(database), "--follow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().endswith("(3 times)\n")
    store = open_store(database)
    now_ns = time.time_ns()
    for message in ("first", "second"):
        body = {"level": "ERROR", "logger": "x", "message": message}
        put(store, "kitchen", "log", {now_ns: body}, boot=message, received_ns=time.time_ns())
        assert process.stdout.readline().endswith(f"{message}\n")
    store.close()
    process.send_signal(2)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")


def test_ages_are_short():
    assert [fleet_show.age(seconds * 10**9) for seconds in (-5, 0, 119, 120, 7200, 200_000)] == [
        "0 s", "0 s", "119 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip
