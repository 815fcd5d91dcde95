from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.profiler.report import number, table, write_html
from ferryman.profiler.report_plot import latency_svg
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Energy, Measurement, Memory, MemoryPhases
from ferryman.runtime.contracts.record import Unavailable
from tests.support.measurements import measurement

MEGABYTES = Memory(rss_bytes=70_000_000, pss_bytes=50_000_000, uss_bytes=40_000_000, peak_rss_bytes=80_000_000)
ENERGY = Energy(
    energy_j=6.0,
    window_s=2.0,
    runs=300,
    source="a meter",
    rails=("all",),
    unit="W",
    times_ns=(0, 2 * 10**9),
    values=(3.0, 3.0),
)


def made(**changes) -> Measurement:
    return msgspec.structs.replace(measurement(), **changes)


def rich() -> Measurement:
    return made(
        samples_ns=tuple(range(12_000_000, 13_000_001, 10_000)),
        memory=MemoryPhases(start=MEGABYTES, loaded=MEGABYTES, first_run=MEGABYTES, steady=MEGABYTES),
        energy=ENERGY,
        load_ns=7_654_321,
        artifact_bytes=12_345,
    )


def page_of(found, tmp_path) -> str:
    write_html(found, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text("utf-8")


def test_the_table_holds_every_number_under_its_unit():
    device, head, row = table([("pi", rich())]).splitlines()
    assert device == "pi"
    cells = dict(zip(re.split(r"\s{2,}", head), re.split(r"\s{2,}", row), strict=True))
    assert cells == {
        "package": "digits",
        "SHA-256": "00",
        "variant": "v",
        "interpreter": "i 1",
        "threads": "1",
        "runs": "101",
        "p50 ms": "12.5",
        "p90 ms": "12.9",
        "p99 ms": "13.0",
        "load ms": "7.65",
        "first run ms": "0.00000100",
        "PSS steady MB": "50.0",
        "peak RSS MB": "80.0",
        "energy mJ/inference": "20.0",
        "artifact kB": "12.3",
        "measured UTC": "1970-01-01 00:00:00",
    }


def test_what_was_not_measured_reads_unavailable_and_never_zero():
    row = table([("pi", made())]).splitlines()[2]
    assert row.count("unavailable") == 3


def test_devices_have_tables_of_their_own():
    text = table([("pi", made()), ("phone", made()), ("pi", made(variant="w"))])
    assert [block.splitlines()[0] for block in text.split("\n\n")] == ["phone", "pi"]
    assert len(text.split("\n\n")[1].splitlines()) == 4


def test_a_name_cannot_steer_the_terminal():
    text = table([("\x1b[2Jpi", made(variant="a\nb\x07"))])
    assert "\x1b" not in text
    assert "a\ufffdb\ufffd" in text


class Scan(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href"} and value]


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    scan = Scan()
    scan.feed(page_of([("pi", rich()), ("phone", made())], tmp_path))
    assert "script" not in scan.tags
    assert "link" not in scan.tags
    assert scan.tags.count("svg") == 2
    assert all(link.startswith("#") for link in scan.links)


def test_the_page_shows_labels_conditions_and_every_reason(tmp_path):
    energy = Unavailable(reason="RAPL powercap: energy_uj: Permission denied")
    page = page_of([("pi", msgspec.structs.replace(rich(), energy=energy))], tmp_path)
    assert "p50 12.5 ms" in page
    assert "RAPL powercap: energy_uj: Permission denied" in page
    assert page.count("not in this test") >= 6
    assert "temperatures, °C" in page
    assert "memory after" in page


def test_names_are_escaped_in_text_and_plot(tmp_path):
    hostile = "</text><script>alert(1)</script>$\\frac{"
    page = page_of([(hostile, made(variant=hostile, package_name=hostile, interpreter=hostile))], tmp_path)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_record_without_samples_is_listed_and_not_plotted(tmp_path):
    page = page_of([("pi", made(samples_ns=()))], tmp_path)
    assert "<svg" not in page
    assert "timed runs" in page


@settings(max_examples=5, deadline=None)
@given(
    name=st.text(max_size=20),
    samples=st.lists(st.integers(0, 2**63 - 1), max_size=5),
    when=st.integers(-(2**63), 2**63 - 1),
)
def test_any_record_makes_a_page(name, samples, when, tmp_path_factory):
    odd = made(package_name=name, variant=name, samples_ns=tuple(samples), started_at_ns=when)
    assert table([(name, odd)])
    assert page_of([(name, odd)], tmp_path_factory.mktemp("page")).endswith("</html>\n")


def test_runs_beyond_the_axis_are_counted_in_words():
    svg = latency_svg([("x", [1_000_000] * 199 + [90_000_000])])
    assert "(1 beyond, up to 90.0 ms)" in svg


def test_the_same_rows_draw_the_same_plot():
    rows = [("x", [1_000_000, 1_200_000, 1_300_000])]
    assert latency_svg(rows) == latency_svg(rows)


def test_numbers_have_three_digits_and_no_exponent():
    assert [number(v) for v in (0, 0.00752, 12.345, 999.6, 123456.0, -1.5)] == [
        *("0", "0.00752", "12.3", "1000", "123456", "-1.50"),
    ]


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(CallerError, match=r"ferryman\[collector\]"):
        write_html([("pi", made())], tmp_path / "report.html")
