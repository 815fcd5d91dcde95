"""What is written is what an independent reader finds."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.exports.line_protocol import key, line, string
from ferryman.devices.fleet.exports.tables import EXPORTABLES, Exportable
from tests.support.line_protocol import parse

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
TABLE = Exportable({"time": "time", "tag": "text", "text": "text", "n": "integer", "x": "number"}, ("tag",), None)


def written(text: str) -> str:
    """As strings are: without line breaks and zeros."""
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\0", "\ufffd")


@given(TEXT, TEXT, st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.integers(0, (1 << 63) - 1))
def test_any_values_come_back(tag, text, integer, number, time_ns):
    made = line("sample", TABLE, {"time": time_ns, "tag": tag, "text": text, "n": integer, "x": number})
    assert made.count("\n") == 1
    (point,) = parse(made)
    assert (point.measurement, point.time_ns, point.fields["n"]) == ("ferryman_sample", time_ns, integer)
    assert point.tags == ({"tag": re.sub(r"[\\\x00-\x1f\x7f]", "_", tag)} if tag else {})
    assert point.fields["text"] == written(text)
    if math.isfinite(number):
        assert point.fields["x"] == number
    else:
        assert "x" not in point.fields


def test_the_words_of_the_reference():
    assert key("a b,c=d") == "a\\ b\\,c\\=d"
    assert string('say "\\"') == '"say \\"\\\\\\""'
    row = {"time": 5, "device": "pi-7", "sequence": 1, "clock": "sure", "other": {"my_c": 2.5}, "errors": 0.0}
    assert line("sample", EXPORTABLES["samples"], row) == (
        'ferryman_sample,device=pi-7 sequence=1i,clock="sure",errors=0.0,my_c=2.5 5\n'
    )


@pytest.mark.parametrize("called", EXPORTABLES["samples"].columns)
def test_a_metric_that_is_called_like_a_column_is_a_field_of_its_own(called):
    row = {"time": 5, "device": "pi-7", "sequence": 1, "period_s": 60.0, "other": {called: 2.5, "my_c": 3.5}}
    (point,) = parse(line("sample", EXPORTABLES["samples"], row))
    assert point.tags == {"device": "pi-7"}
    assert point.fields == {"sequence": 1, "period_s": 60.0, f"other.{called}": 2.5, "my_c": 3.5}


def test_a_row_without_fields_is_no_point():
    assert line("sample", TABLE, {"time": 5, "tag": "a"}) is None
