"""Files that hold what the store holds, whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from ferryman.devices.fleet.exports.export import check_target, export
from ferryman.devices.fleet.exports.tables import EXPORTABLES, visible
from ferryman.devices.fleet.store.store import open_store
from ferryman.profiler.files import whole_file
from ferryman.runtime.contracts.errors import CallerError, StoreError
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import VALUE_MAX
from tests.support.line_protocol import parse
from tests.support.measurements import measurement
from tests.support.seeded import HOUR_BEGIN_NS, NOW_NS, SHA, join, put, roll_up, sample, status

ENDS = (".parquet", ".csv", ".lp")


@pytest.fixture
def filled(store):
    join(store, status("a", labels={"site": "lab"}), status("b"))
    body = sample([1.5, 2.5], SHA["one"], temperature_c=61.25, my_own_v=3.3)
    put(store, "a", "sample", {NOW_NS - 2: {**body, "unavailable": {"power_w": "no meter"}}, NOW_NS - 1: sample()})
    put(store, "b", "sample", {NOW_NS - 3: sample(throttled=1)}, sure=False)
    message = 'disk "full", =1+1\nat C:\\x'
    put(store, "a", "log", {NOW_NS - 5: {"level": "ERROR", "logger": "l", "message": message}})
    put(store, "a", "log", {NOW_NS - 4: {"level": "WARNING", "logger": "l", "message": "=HYPERLINK()"}})
    put(store, "b", "measurement", {NOW_NS: encode(measurement("digits, v=2", SHA["two"]))})
    roll_up(store, "a", "latency_ms", HOUR_BEGIN_NS // 10**9 - 3600, [1.0, 2.0, 4.0], package=SHA["one"])
    return store


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_samples_as_parquet(filled, tmp_path):
    told = export(filled, "samples", tmp_path / "s.parquet", now_ns=NOW_NS)
    table = parquet.read_table(tmp_path / "s.parquet")
    assert str(table.schema.field("time").type) == "timestamp[ns, tz=UTC]"
    assert str(table.schema.field("temperature_c").type) == "double"
    first, second, third = table.to_pylist()
    assert table["time"].cast("int64").to_pylist() == [NOW_NS - 2, NOW_NS - 1, NOW_NS - 3]
    assert (first["device"], first["boot"], first["sequence"], first["clock"]) == ("a", "b.k", 1, "sure")
    assert (first["temperature_c"], first["package_sha256"], first["throttled"]) == (61.25, SHA["one"], None)
    assert first["latencies_ms"] == [1.5, 2.5]
    assert json.loads(first["other"]) == {"my_own_v": 3.3}
    assert json.loads(first["unavailable"]) == {"power_w": "no meter"}
    assert (second["other"], second["temperature_c"], third["throttled"], third["clock"]) == (None, None, 1.0, "unsure")
    assert (told.rows, told.format, told.first_ns, told.last_ns) == (3, "parquet", NOW_NS - 3, NOW_NS - 1)
    assert told.bytes == (tmp_path / "s.parquet").stat().st_size


def test_samples_as_csv(filled, tmp_path):
    export(filled, "samples", tmp_path / "s.csv", now_ns=NOW_NS)
    rows = read_csv(tmp_path / "s.csv")
    assert list(rows[0]) == list(EXPORTABLES["samples"].columns)
    assert rows[0]["time"] == "2026-11-24T03:52:15.999999998Z"
    assert (rows[0]["temperature_c"], rows[0]["latencies_ms"], rows[1]["temperature_c"]) == ("61.25", "[1.5,2.5]", "")
    table = arrow_csv.read_csv(tmp_path / "s.csv")
    assert np.asarray(table["time"].cast("int64")).tolist() == [NOW_NS - 2, NOW_NS - 1, NOW_NS - 3]


def test_samples_as_line_protocol(filled, tmp_path):
    export(filled, "samples", tmp_path / "s.lp", now_ns=NOW_NS)
    first, *_ = parse((tmp_path / "s.lp").read_text())
    assert (first.measurement, first.time_ns) == ("ferryman_sample", NOW_NS - 2)
    assert first.tags == {"device": "a", "package_sha256": SHA["one"]}
    assert first.fields["my_own_v"] == 3.3
    assert first.fields["temperature_c"] == 61.25
    assert first.fields["sequence"] == 1


def test_logs_are_safe_in_a_spreadsheet_and_exact_elsewhere(filled, tmp_path):
    for end in ENDS:
        export(filled, "logs", tmp_path / f"l{end}", now_ns=NOW_NS)
    message = 'disk "full", =1+1\nat C:\\x'
    assert [row["message"] for row in read_csv(tmp_path / "l.csv")] == [message, "'=HYPERLINK()"]
    assert parquet.read_table(tmp_path / "l.parquet")["message"].to_pylist() == [message, "=HYPERLINK()"]
    points = parse((tmp_path / "l.lp").read_text())
    assert points[0].fields["message"] == message.replace("\n", "\\n")
    assert points[0].tags == {"device": "a", "level": "ERROR"}


def test_measurements_and_rollups(filled, tmp_path):
    for what in ("measurements", "rollups"):
        for end in ENDS:
            assert export(filled, what, tmp_path / f"{what}{end}", now_ns=NOW_NS).rows == 1
    (made,) = parquet.read_table(tmp_path / "measurements.parquet").to_pylist()
    assert (made["device"], made["package"], made["energy_mj"]) == ("b", "digits, v=2", None)
    assert made["latency_ms"] > 0
    assert "energy_mj" in json.loads(made["unavailable"])
    (point,) = parse((tmp_path / "measurements.lp").read_text())
    assert point.tags["package"] == "digits, v=2"
    assert point.fields["latency_ms"] == made["latency_ms"]
    (row,) = read_csv(tmp_path / "rollups.csv")
    assert (row["metric"], row["count"], row["p50"], row["most"], row["span_s"]) == (
        "latency_ms",
        "3",
        "2.0",
        "4.0",
        "3600",
    )
    assert row["package_sha256"] == SHA["one"]


def test_devices_and_times_narrow_it_down(filled, tmp_path):
    path = tmp_path / "s.csv"
    export(filled, "samples", path, now_ns=NOW_NS, query="site=lab")
    assert {row["device"] for row in read_csv(path)} == {"a"}
    export(filled, "samples", path, now_ns=NOW_NS, device="b")
    assert {row["device"] for row in read_csv(path)} == {"b"}
    first = export(filled, "samples", path, now_ns=NOW_NS, until=NOW_NS - 1)
    rest = export(filled, "samples", path, now_ns=NOW_NS, since=first.last_ns + 1)
    assert (first.rows, rest.rows) == (2, 1)


def test_an_empty_export_has_its_columns(store, tmp_path):
    for what, table in EXPORTABLES.items():
        assert export(store, what, tmp_path / "e.parquet", now_ns=NOW_NS).rows == 0
        assert parquet.read_table(tmp_path / "e.parquet").column_names == list(table.columns)
        export(store, what, tmp_path / "e.csv", now_ns=NOW_NS)
        assert (tmp_path / "e.csv").read_text() == ",".join(table.columns) + "\n"
        export(store, what, tmp_path / "e.lp", now_ns=NOW_NS)
        assert (tmp_path / "e.lp").read_bytes() == b""


def test_what_is_damaged_is_left_out_and_said(filled, tmp_path):
    put(filled, "a", "sample", {NOW_NS: b"{}"})
    told = export(filled, "samples", tmp_path / "s.csv", now_ns=NOW_NS)
    assert told.rows == 3
    assert told.left_out[0].startswith("1 damaged sample; the first: a, boot b.k, sequence ")


@pytest.mark.parametrize("end", ENDS)
def test_a_failure_leaves_what_was_there(filled, tmp_path, monkeypatch, end):
    path = tmp_path / f"s{end}"
    path.write_text("before")
    broken = StoreError("the database went away")
    table = EXPORTABLES["samples"]
    monkeypatch.setitem(EXPORTABLES, "samples", type(table)(table.columns, table.tags, _failing(table.rows, broken)))
    with pytest.raises(StoreError, match="went away"):
        export(filled, "samples", path, now_ns=NOW_NS)
    assert path.read_text() == "before"
    assert {one.name for one in tmp_path.iterdir() if not one.name.startswith("store")} == {path.name}


def _failing(rows, error):
    def read(*arguments):
        yield next(rows(*arguments))
        raise error

    return read


@pytest.mark.parametrize("end", ENDS)
def test_a_full_disk_is_said_and_leaves_nothing(filled, tmp_path, monkeypatch, end):
    path = tmp_path / f"full{end}"
    path.write_text("before")

    @contextmanager
    def full(path):
        with whole_file(path), Path("/dev/full").open("wb") as file:
            yield file

    for n in range(100):
        put(filled, "a", "sample", {NOW_NS + n: sample([float(n)] * 60)})
    monkeypatch.setattr("ferryman.devices.fleet.exports.export.whole_file", full)
    with pytest.raises(CallerError, match=f"cannot write {path}: No space left"):
        export(filled, "samples", path, now_ns=NOW_NS)
    assert path.read_text() == "before"


def test_only_regular_and_new_files_with_plain_names_are_written(filled, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "full.csv").symlink_to("/dev/full")
    (tmp_path / "round.csv").symlink_to("round.csv")
    for name, words in {
        "pipe.csv": "is no regular file",
        "full.csv": "is no regular file",
        "a\x1b[31m.csv": "has control characters",
        "a\u202e.csv": "has control characters",
        f"{'x' * 300}.csv": "File name too long; name another file",
        f"{'x/' * 3000}x.csv": "File name too long; name another file",
    }.items():
        with pytest.raises(CallerError, match=words) as caught:
            export(filled, "logs", tmp_path / name, now_ns=NOW_NS)
        assert str(caught.value).isprintable()
    with pytest.raises(CallerError, match=r"round.csv"):
        export(filled, "logs", tmp_path / "round.csv", now_ns=NOW_NS)


def test_no_file_of_the_database_is_overwritten(tmp_path):
    database = tmp_path / "store.sqlite"
    database.touch()
    (tmp_path / "other.sqlite").symlink_to(database)
    for end in ("", "-wal", "-shm", "-journal"):
        (tmp_path / f"link{end}.csv").symlink_to(f"store.sqlite{end}")
        for name in ("store.sqlite", "other.sqlite"):
            with pytest.raises(CallerError, match="would overwrite the database"):
                check_target(tmp_path / f"link{end}.csv", tmp_path / name)
    check_target(tmp_path / "new.csv", database)


def test_one_absurd_row_is_left_out_and_the_others_are_written(filled, tmp_path):
    line = {"level": "ERROR", "logger": "l", "message": "m"}
    put(filled, "a", "log", {NOW_NS: {**line, "times": 10**30}})
    put(filled, "a", "sample", {NOW_NS: sample([1.0], errors=1e308), NOW_NS + 1: sample([-1.0])})
    for end in ENDS:
        told = export(filled, "logs", tmp_path / f"l{end}", now_ns=NOW_NS)
        assert (told.rows, told.left_out[0][:18]) == (2, "1 damaged log line")
        told = export(filled, "samples", tmp_path / f"s{end}", now_ns=NOW_NS)
        assert (told.rows, told.left_out[0][:17]) == (3, "2 damaged samples")


def test_text_that_could_steer_a_terminal_is_made_visible(store, tmp_path):
    message = "a\x1b[31mb\x07c\u202ed\x85e\nf"
    put(store, "a", "log", {NOW_NS: {"level": "ERROR", "logger": "l", "message": message}})
    put(store, "a", "sample", {NOW_NS: {**sample(), "unavailable": {"power_w": "no\u202e\x7fmeter"}}})
    export(store, "logs", tmp_path / "l.csv", now_ns=NOW_NS)
    (row,) = read_csv(tmp_path / "l.csv")
    assert row["message"] == "a\ufffd[31mb\ufffdc\ufffdd\ufffde\nf"
    export(store, "logs", tmp_path / "l.parquet", now_ns=NOW_NS)
    assert parquet.read_table(tmp_path / "l.parquet")["message"].to_pylist() == [message]
    export(store, "samples", tmp_path / "s.csv", now_ns=NOW_NS)
    (row,) = read_csv(tmp_path / "s.csv")
    assert json.loads(row["unavailable"]) == {"power_w": "no\ufffd\ufffdmeter"}


def test_bad_questions_are_told_what_is_wrong(store, tmp_path, monkeypatch):
    with pytest.raises(CallerError, match="'dreams' cannot be exported; there are: samples, measurements"):
        export(store, "dreams", tmp_path / "x.csv", now_ns=NOW_NS)
    with pytest.raises(CallerError, match=r"ends in none of .parquet, .csv, .lp"):
        export(store, "logs", tmp_path / "x.xlsx", now_ns=NOW_NS)
    with pytest.raises(CallerError, match="name another place"):
        export(store, "logs", tmp_path / "no" / "x.csv", now_ns=NOW_NS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(CallerError, match=r"pip install 'ferryman\[parquet\]', or write .csv"):
        export(store, "logs", tmp_path / "x.parquet", now_ns=NOW_NS)
    assert not (tmp_path / "x.parquet").exists()


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, st.dictionaries(st.sampled_from(["temperature_c", "my_v"]), st.floats(-VALUE_MAX, VALUE_MAX)))
def test_any_values_come_back(tmp_path_factory, text, values):
    folder = tmp_path_factory.mktemp("export")
    store = open_store(folder / "store.sqlite")
    put(store, "a", "log", {NOW_NS: {"level": "ERROR", "logger": "l", "message": text}})
    put(store, "a", "sample", {NOW_NS: {"period_s": 1.0, "values": values}})
    for what in ("logs", "samples"):
        for end in ENDS:
            export(store, what, folder / f"{what}{end}", now_ns=NOW_NS)
    store.close()
    assert parquet.read_table(folder / "logs.parquet")["message"].to_pylist() == [text]
    (row,) = read_csv(folder / "logs.csv")
    shown = visible(text)
    assert row["message"].removeprefix("'" if shown[:1] in set("=+-@\t\r") and shown else "\0") == shown
    (point,) = parse((folder / "samples.lp").read_text())
    exact = parquet.read_table(folder / "samples.parquet").to_pylist()[0]
    found = {"temperature_c": exact["temperature_c"]} | (json.loads(exact["other"]) if exact["other"] else {})
    assert {name: value for name, value in found.items() if value is not None} == values
    assert {name: value for name, value in point.fields.items() if name in values} == values


def test_progress_is_told(store, tmp_path, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.exports.export._TOLD_ROWS", 2)
    for n in range(5):
        put(store, "a", "sample", {NOW_NS + n: sample()})
    heard = []
    export(store, "samples", tmp_path / "s.csv", now_ns=NOW_NS, progress=heard.append)
    assert heard == [2, 4]
    assert datetime.fromisoformat(read_csv(tmp_path / "s.csv")[0]["time"][:26] + "Z").tzinfo == UTC
