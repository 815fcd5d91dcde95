from __future__ import annotations

import csv
import io
import json
import re

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.export import SAMPLE_COLUMNS, SUMMARY, plain, samples_csv, schema, to_csv, write_csv
from ferryman.profiler.stats import median_error, summarize
from ferryman.runtime.contracts.record import encode
from tests.support.interpreters import ROOT
from tests.support.measurements import bare_measurement, full_measurement, measurement, start

FULL = full_measurement()
DOCS = ROOT / "docs" / "profiler"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_holds_what_the_record_says():
    (row,) = rows_of(to_csv([("pi5", FULL)]))
    samples = [one.samples for one in FULL.starts]
    assert row["device"] == "pi5"
    assert float(row["p50_ns"]) == summarize(samples).p50_ns
    assert float(row["p50_error"]) == pytest.approx(median_error(FULL.starts))
    assert int(row["closed_pss_bytes"]) == 47_300_000
    assert float(row["energy_gross_j"]) == FULL.energy.gross_j
    assert float(row["energy_net_j"]) == FULL.energy.net_j
    assert float(row["hottest_after_c"]) == 61.2
    assert float(row["sustained_last_p50_ns"]) > 1.4 * float(row["sustained_first_p50_ns"])


def test_what_could_not_be_measured_is_an_empty_cell_with_its_reason():
    (row,) = rows_of(to_csv([("pi", bare_measurement())]))
    assert {row[name] for name in ("energy_gross_j", "loaded_pss_bytes", "peak_rss_bytes", "p50_error", "soc")} == {""}
    assert "energy; operators" in row["unavailable"]
    assert "not in this test" in row["unavailable"]


def test_the_long_form_holds_every_duration_that_was_kept():
    rows = rows_of(samples_csv([("pi5", FULL)]))
    of_process = [row for row in rows if (row["kind"], row["part"]) == ("run", "0")]
    assert [int(row["ns"]) for row in of_process] == list(FULL.starts[0].samples)
    thinned = [row for row in rows if (row["kind"], row["part"]) == ("run", "2")]
    assert [row["index"] for row in thinned[:3]] == ["0", "4", "8"]
    assert {row["every"] for row in thinned} == {"4"}
    kinds = {"warmup", "run", "pipeline", "model", "arrival", "service", "sustained"}
    assert {row["kind"] for row in rows} == kinds
    assert tuple(rows[0]) == SAMPLE_COLUMNS


def test_both_files_are_written_side_by_side(tmp_path):
    paths = write_csv([("pi", FULL)], tmp_path / "found.csv")
    assert [path.name for path in paths] == ["found.csv", "found.samples.csv"]
    assert [path.read_text().splitlines()[0].split(",")[0] for path in paths] == ["device", "device"]


@given(name=st.text(max_size=30))
def test_names_stay_in_their_cell_and_are_no_formula(name):
    odd = msgspec.structs.replace(measurement(), package_name=name, variant=name)
    (row,) = rows_of(to_csv([(name, odd)]))
    assert None not in row
    assert len(row) == len(SUMMARY) + 1
    assert row["p50_ns"] == "2.0"
    assert not row["package"].startswith(("=", "+", "-", "@", "\t"))
    assert row["variant"].isprintable()


def test_every_column_is_documented():
    text = (DOCS / "output.md").read_text()
    listed = set(re.findall(r"`(\w+)`", text[text.index("## CSV") : text.index("## Trace")]))
    assert {"device", *SUMMARY, *SAMPLE_COLUMNS} <= listed


def test_the_documented_schema_is_that_of_the_record():
    written = (DOCS / "measurement.schema.json").read_bytes()
    assert written == schema(), "python -m ferryman.profiler.export docs/profiler/measurement.schema.json"


def test_the_schema_tells_what_each_field_is():
    found = json.loads(schema())
    energy = found["$defs"]["Energy"]["properties"]["error_j"]["description"]
    assert energy.startswith("The true `gross_j` is within so much, at 95 %")
    assert "log-linear buckets" not in json.dumps(found["$defs"]["Start"])
    assert found["$defs"]["Start"]["properties"]["load_ns"]["description"].startswith("open_session until it can run")


def errors(record: dict) -> list[str]:
    whole = json.loads(schema())
    jsonschema.Draft202012Validator.check_schema(whole)
    return [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(record)]


@pytest.mark.parametrize("made", [measurement, full_measurement, bare_measurement])
def test_records_are_as_the_schema_says(made):
    assert errors(json.loads(encode(made()))) == []


@pytest.mark.parametrize("field", ["starts", "memory", "artifact_bytes", "energy"])
def test_the_schema_refuses_what_is_no_record(field):
    assert errors(json.loads(encode(FULL)) | {field: "wrong"})


def test_plain_json_has_numbers_where_the_record_has_packed_bytes():
    found = json.loads(json.dumps(plain(FULL), allow_nan=False))
    assert found["plain"] == 1
    assert found["schema"] == 2
    assert found["starts"][0]["samples"]["ns"] == list(FULL.starts[0].samples)
    assert found["starts"][0]["samples"]["p50_ns"] == summarize(FULL.starts[0].samples).p50_ns
    values, counts = found["starts"][2]["samples"]["distribution"]
    assert (len(values), sum(counts)) == (len(counts), 400)
    assert found["energy"]["active"]["values"][0] == FULL.energy.active.values[0]


def test_plain_json_keeps_reasons_and_the_fields_of_the_record():
    found = plain(bare_measurement())
    assert found["energy"] == {"type": "unavailable", "reason": "not in this test"}
    assert set(found) - {"plain"} == set(json.loads(encode(bare_measurement())))
    assert plain(msgspec.structs.replace(FULL, starts=(start(()),)))["starts"][0]["samples"]["ns"] == []
