"""What a store answers to Python: frames of pandas and polars, and records where neither is."""

from __future__ import annotations

import inspect
import time

import pandas as pd
import polars as pl
import pytest

from ferryman import Fleet
from ferryman.devices.fleet.query.alerts import alerts
from ferryman.devices.fleet.query.compare import compare
from ferryman.devices.fleet.query.devices import device_rows
from ferryman.devices.fleet.query.logs import logs
from ferryman.devices.fleet.query.records import AlertRow, DeviceRow, LogRow, Point, SampleRow
from ferryman.devices.fleet.query.runs import runs
from ferryman.devices.fleet.query.series import samples
from ferryman.devices.fleet.store.store import open_store
from ferryman.frames import check_frame
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import encode
from tests.support.measurements import measurement
from tests.support.seeded import SHA, alert, join, put, sample, status

MINUTE = 60 * 10**9


@pytest.fixture(autouse=True)
def _no_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "no-devices.toml"))


@pytest.fixture
def now_ns():
    return time.time_ns()


@pytest.fixture
def fleet(tmp_path, now_ns):
    store = open_store(tmp_path / "store.sqlite")
    join(store, status("a", labels={"site": "lab"}, model="Pi 5"), status("b", package=None), now_ns=now_ns)
    body = sample([1.0, 2.0], SHA["one"], temperature_c=60.0, throttled=0, my_own_v=1.5)
    put(store, "a", "sample", {now_ns - MINUTE: body, now_ns - 1: sample()}, received_ns=now_ns)
    put(store, "a", "log", {now_ns - 7: {"level": "ERROR", "logger": "x", "message": "m"}}, received_ns=now_ns)
    put(store, "a", "measurement", {now_ns: encode(measurement())}, received_ns=now_ns)
    alert(store, "a", since_ns=now_ns - 5)
    store.close()
    return Fleet(database=tmp_path / "store.sqlite")


@pytest.fixture
def nothing(tmp_path):
    open_store(tmp_path / "empty.sqlite").close()
    return Fleet(database=str(tmp_path / "empty.sqlite"))


def test_pandas_has_utc_times_and_nullable_numbers(fleet, now_ns):
    found = fleet.devices()
    assert isinstance(found, pd.DataFrame)
    assert list(found["device"]) == ["a", "b"]
    dtypes = {name: str(found[name].dtype) for name in ("seen", "temperature_c", "throttled", "waiting", "model")}
    assert dtypes["seen"] == "datetime64[ns, UTC]"
    assert (dtypes["temperature_c"], dtypes["throttled"], dtypes["waiting"]) == ("Float64", "boolean", "Int64")
    assert found["temperature_c"].isna().tolist() == [False, True] or found["temperature_c"].isna().all()
    assert found["sample"].isna().tolist() == [False, True]
    assert found["sample"][0].value == now_ns - 1
    assert found["labels"][0] == '{"site":"lab"}'
    assert found["online"].sum() == 2


def test_polars_has_the_same(fleet, now_ns):
    found = fleet.samples(frame="polars")
    assert isinstance(found, pl.DataFrame)
    assert found["time"].dtype == pl.Datetime("ns", "UTC")
    assert found["time"].cast(pl.Int64).to_list() == [now_ns - MINUTE, now_ns - 1]
    assert found["temperature_c"].to_list() == [60.0, None]
    assert found["my_own_v"].to_list() == [1.5, None]
    assert found["latencies_ms"].to_list() == [[1.0, 2.0], []]
    assert found["clock"].dtype == pl.String
    assert fleet.devices("site=lab", frame="polars")["device"].to_list() == ["a"]


@pytest.mark.parametrize("frame", ["pandas", "polars"])
def test_a_metric_that_is_called_like_a_column_has_one_of_its_own(tmp_path, now_ns, frame):
    store = open_store(tmp_path / "odd.sqlite")
    put(store, "a", "sample", {now_ns - 1: sample(device=4.0, sequence=3.5, time=2.0)}, received_ns=now_ns)
    store.close()
    made = Fleet(database=tmp_path / "odd.sqlite").samples(frame=frame)
    assert [list(made[name]) for name in ("device", "sequence")] == [["a"], [1]]
    assert [list(made[f"other.{name}"]) for name in ("device", "sequence", "time")] == [[4.0], [3.5], [2.0]]


def test_every_question_has_an_answer(fleet):
    assert fleet.status().devices == 2
    assert fleet.status("site=lab").inferences == 2
    assert fleet.runs()["latency_ms"][0] > 0
    assert pd.isna(fleet.runs()["energy_mj"][0])
    assert fleet.logs(level="ERROR")["message"].tolist() == ["m"]
    assert fleet.alerts()["rule"].tolist() == ["offline"]
    assert fleet.series("a", "temperature_c")["mean"].tolist() == [60.0]
    assert fleet.series("a", "latency_ms", span="1h")["count"].sum() == 2
    assert set(fleet.compare(metrics=("latency_ms",))["group"]) == {SHA["one"]}
    assert fleet.samples(device="a")["temperature_c"].max() == 60.0


@pytest.mark.parametrize("frame", ["pandas", "polars"])
def test_without_rows_the_columns_are_there_and_have_their_types(nothing, fleet, frame):
    for name in ("devices", "runs", "samples", "logs", "alerts"):
        empty, filled = getattr(nothing, name)(frame=frame), getattr(fleet, name)(frame=frame)
        assert len(empty) == 0
        types = dict(zip(filled.columns, map(str, filled.dtypes), strict=True))
        types.pop("my_own_v", None)
        assert dict(zip(empty.columns, map(str, empty.dtypes), strict=True)) == types
    assert {"time", "mean"} <= set(fleet.series("a", "power_w", frame=frame).columns)


def test_records_where_neither_is_installed(fleet, monkeypatch):
    monkeypatch.setattr("ferryman.frames.util.find_spec", lambda _: None)
    kinds = {"devices": DeviceRow, "samples": SampleRow, "logs": LogRow, "alerts": AlertRow}
    for name, kind in kinds.items():
        found = getattr(fleet, name)()
        assert isinstance(found, list)
        assert isinstance(found[0], kind)
    assert isinstance(fleet.series("a", "temperature_c")[0], Point)
    with pytest.raises(CallerError, match="pandas is not installed here; pip install pandas"):
        fleet.devices(frame="pandas")


def test_the_frame_is_pandas_else_polars(monkeypatch):
    assert check_frame(None) == "pandas"
    monkeypatch.setattr("ferryman.frames.util.find_spec", lambda name: name == "polars" or None)
    assert check_frame(None) == "polars"
    with pytest.raises(CallerError, match="no frame 'dask'; there are: pandas, polars, records"):
        check_frame("dask")


def test_what_is_left_out_is_a_warning(fleet, caplog):
    fleet.devices(limit=1)
    assert "left out: 1 of 2 devices" in caplog.text


def test_a_database_that_is_none_is_told(tmp_path, monkeypatch):
    with pytest.raises(CallerError, match="no such file; run `ferryman collect` first"):
        Fleet(database=tmp_path / "none.sqlite").devices()
    monkeypatch.setenv("FERRYMAN_DATABASE", str(tmp_path / "named.sqlite"))
    with pytest.raises(CallerError, match=r"named\.sqlite"):
        Fleet().status()


def test_one_absurd_row_breaks_no_frame(fleet, tmp_path, now_ns, caplog):
    store = open_store(tmp_path / "store.sqlite")
    put(store, "a", "log", {now_ns: {"level": "ERROR", "logger": "x", "message": "n", "times": 10**30}})
    store.close()
    for frame in ("pandas", "polars"):
        assert list(fleet.logs(frame=frame)["message"]) == ["m"]
    assert "left out: 1 damaged log line; the first: a, " in caplog.text


def test_a_wrong_argument_is_named(fleet):
    for name in ("devices_file", "cache", "database"):
        with pytest.raises(CallerError, match=f"{name} is a path, found 5"):
            Fleet(**{name: 5})
    with pytest.raises(CallerError, match="metrics are texts in a list"):
        fleet.compare(metrics="latency_ms")
    with pytest.raises(CallerError, match="device is a text"):
        fleet.series(["a"], "latency_ms")
    with pytest.raises(CallerError, match="limit is a whole number of 0 or more"):
        fleet.devices(limit=-1)
    with pytest.raises(CallerError, match="no frame 5"):
        fleet.devices(frame=5)
    with pytest.raises(CallerError, match=r"no frame \[\]"):
        fleet.devices(frame=[])


def test_every_argument_of_a_question_is_one_of_its_method():
    questions = {
        "devices": device_rows, "runs": runs, "samples": samples, "logs": logs, "alerts": alerts, "compare": compare,
    }  # fmt: skip
    for name, question in questions.items():
        method = set(inspect.signature(getattr(Fleet, name)).parameters)
        assert method - {"self", "frame"} == set(inspect.signature(question).parameters) - {"store", "now_ns"}
