from __future__ import annotations

import html
import re
import sys
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.profiler import report_text
from ferryman.profiler.report import PLOTTED_MAX, table, write_html
from ferryman.profiler.report_details import detail_grids, layers_grid, of_roof, operators_grid, sustained_grid
from ferryman.profiler.report_plot import latency_svg
from ferryman.profiler.report_plot_parts import layers_svg, memory_svg, operators_svg
from ferryman.profiler.report_plot_time import energy_svg, sustained_svg
from ferryman.profiler.report_tables import main_grid
from ferryman.profiler.report_text import fold
from ferryman.profiler.report_words import display_width, number, short
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Gate, Measurement, Reading
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples
from tests.support.measurements import NO, bare_measurement, damaged, full_measurement, measurement, start

FULL = full_measurement()
HOSTILE = "\x1b[2J[red]x[/red] :smile: \u202e</text><script>alert(1)</script>$\\frac{"


def made(**changes) -> Measurement:
    return msgspec.structs.replace(measurement(), **changes)


def plainly(monkeypatch) -> None:
    monkeypatch.setattr(report_text.util, "find_spec", lambda _: None)


def cells_of(m: Measurement) -> dict[str, str]:
    grid = main_grid([m])
    return dict(zip((head.replace("\n", " ").strip() for head in grid.heads()), grid.rows()[0], strict=True))


def page_of(found, tmp_path) -> str:
    write_html(found, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return page_of([("pi", FULL), ("phone", made())], tmp_path_factory.mktemp("page"))


def test_the_main_table_holds_every_number_under_its_unit():
    assert cells_of(FULL) == {
        "variant": "fp32-tflite",
        "interpreter": "ai-edge-litert",
        "runs": "1200",
        "p50 ms": "12.7 ±1.3 %",
        "p90 ms": "13.3",
        "p99 ms": "14.7",
        "cold start ms": "345",
        "process ms": "185",
        "import ms": "95.0",
        "load ms": "41.0",
        "first run ms": "24.0",
        "artifact kB": "1235",
        "loaded PSS MB": "52.0",
        "peak RSS MB": "73.0",
        "retained MB": "2.30",
        "energy mJ, gross": "69.7 ±1.2",
        "energy mJ, net": "39.7 ±1.9",
        "by a model mJ, gross": "47.4",
        "by a model mJ, net": "13.6",
    }
    assert not [name for name in cells_of(made()) if "model" in name], "an estimate that was not asked for"


def test_what_was_not_measured_is_never_zero_and_says_why():
    cells = cells_of(bare_measurement())
    missing = {"loaded PSS MB", "peak RSS MB", "retained MB", "energy mJ, gross", "energy mJ, net"}
    assert {name for name, cell in cells.items() if cell == "n/a"} == missing
    text = " ".join(table([("pi", bare_measurement())]).split())
    assert "could not be measured" in text
    assert text.count("not in this test") == 1, "one reason, once"
    assert "energy; operators; layers; device model" in text


def test_what_was_not_asked_for_is_told_apart_from_what_failed():
    assert "energy mJ, net" not in cells_of(made(energy=None))
    assert [row.count("-") for row in main_grid([made(energy=None), made(energy=NO)]).rows()] == [2, 0]
    assert cells_of(made(energy=NO))["energy mJ, net"] == "n/a"


@pytest.mark.parametrize("runs", [3, 400])
def test_one_process_has_no_error_however_many_its_runs(runs, tmp_path):
    one = made(starts=(start([2_000_000, 2_010_000] * runs),))
    assert cells_of(one)["p50 ms"] == "2.00 ±n/a"
    assert any("how processes differ is not in it; ask for --starts 5" in note for note in main_grid([one]).notes)
    assert "how processes differ is not in it" in page_of([("pi", one)], tmp_path)


def test_the_error_of_two_processes_is_shown_with_a_doubt():
    two, five = (
        made(starts=tuple(start([2_000_000 + 10_000 * n] * 9) for n in range(processes))) for processes in (2, 5)
    )
    assert cells_of(two)["p50 ms"] == "2.00 ±3.2 %"
    assert any("± of p50 is of two processes" in note for note in main_grid([two]).notes)
    assert main_grid([five]).notes == ()


def test_a_process_without_runs_counts_for_no_error():
    assert cells_of(made(starts=(start([2_000_000]), start([]))))["p50 ms"] == "2.00 ±n/a"
    assert main_grid([made(starts=(start([]),))]).notes == ()


def test_a_gate_that_could_not_read_a_temperature_does_not_claim_heat(tmp_path):
    blind = Gate(below_c=60.0, waited_s=0.0, temperature_c=Unavailable(reason="no thermal zone"), opened=False)
    hot = Gate(below_c=60.0, waited_s=600.0, temperature_c=Reading(value=70.0, source="cpu"), opened=False)
    starts = (start([9] * 9, gate=blind), start([9] * 9, gate=hot), start([9] * 9, gate=blind))
    notes = main_grid([made(starts=starts)]).notes
    assert notes == (
        "began too hot in process 2 of 3: waiting did not cool the device enough",
        "began at an unknown temperature in process 1, 3 of 3, without waiting for the device to cool: no thermal zone",
    )


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("width", [60, 80, 110, 160])
def test_tables_fit_whatever_the_width_and_lose_no_column(width, plain, monkeypatch):
    if plain:
        plainly(monkeypatch)
    text = table([("pi5", FULL), ("pi5", full_measurement("int8-executorch", "executorch", 0.55, 1))], width=width)
    tables = [line for line in text.splitlines() if not line.startswith("  ") or re.search(r"\S\s{2,}\S", line)]
    assert all(display_width(line) <= width for line in tables)
    for number_in_it in ("12.7 ±1.3 %", "345", "69.7 ±1.2", "1235", "98.6", "+45.3", "26.0", "undelegated", "3.20"):
        assert number_in_it in text
    assert "\x1b" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_at_160_columns_the_main_table_is_one():
    text = table([("pi5", msgspec.structs.replace(FULL, energy_estimate=None))], details=False)
    heads = [line for line in text.split("runs at a fixed rate")[0].splitlines() if line.startswith("variant")]
    assert len(heads) == 1
    assert heads[0].endswith("mJ, net")


def test_colours_are_for_those_who_ask():
    assert "\x1b[" in table([("pi", made())], colour=True)
    assert "\x1b" not in table([("pi", made())])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_a_name_cannot_steer_the_terminal(colour, plain, monkeypatch):
    if plain:
        plainly(monkeypatch)
    hostile = full_measurement(variant=HOSTILE)
    hostile = msgspec.structs.replace(
        hostile,
        package_name=HOSTILE,
        operators=msgspec.structs.replace(
            hostile.operators,
            rows=(msgspec.structs.replace(hostile.operators.rows[0], name=HOSTILE, kind=HOSTILE, module=HOSTILE),),
        ),
    )
    text = table([(HOSTILE, hostile)], width=300, colour=colour)
    assert "\u202e" not in text
    assert "\x1b[2J" not in text
    assert "\ufffd[2J[red]x[/red] :smile: \ufffd" in re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert set(re.findall(r"\x1b\[([0-9;]*)m", text)) <= {"", "0", "1", "2", "33", "1;36"}


def test_wide_characters_keep_columns_straight(monkeypatch):
    plainly(monkeypatch)
    text = table([("pi", made(variant="模型")), ("pi", made(variant="ab"))])
    head, _, first, second = text.split("\n\n")[1].splitlines()[:4]
    assert len({display_width(line[: line.index(" i ")]) for line in (first, second)}) == 1
    assert head.startswith("variant")


def test_long_names_are_cut_in_the_middle_and_folded():
    assert short("a" * 40 + "b" * 40, 11) == "aaaaa…bbbbb"
    text = table([("pi", made(variant="x" * 500))], width=80)
    assert max(map(len, text.splitlines())) <= 80


def test_devices_and_packages_have_tables_of_their_own():
    found = [("pi", made()), ("phone", made()), ("pi", made(variant="w")), ("pi", made(package_sha256="11"))]
    titles = [line for line in table(found).splitlines() if " on " in line and line.startswith("digits")]
    assert titles == ["digits (00) on phone", "digits (00) on pi", "digits (11) on pi"]


def test_columns_that_tell_measurements_apart_come_only_where_there_is_something_to_tell():
    spec = made().spec
    two = msgspec.structs.replace(spec, threads=2)
    assert "threads\n" in main_grid([made(), made(spec=two)]).heads()
    assert "measured\nUTC" in main_grid([made(), made()]).heads()
    assert not {"threads\n", "measured\nUTC"} & set(main_grid([made(), made(variant="w")]).heads())
    rows = main_grid([made(), made(interpreter_version="2")]).rows()
    assert [row[1] for row in rows] == ["i 1", "i 2"]


def test_doubts_are_named_once():
    text = table([("pi5", FULL), ("pi5", full_measurement("b"))], details=False)
    assert text.count("runs had not settled after warm-up in process 2 of 3") == 1
    assert "began too hot in process 3 of 3" in text
    assert "others took up to 12.0 % of the processors" in text
    one = table([("pi5", FULL), ("pi5", msgspec.structs.replace(FULL, variant="b", starts=FULL.starts[:1]))])
    assert "fp32-tflite on ai-edge-litert 2.3.0, 1 thread: runs had not settled" in one


def test_an_operator_table_is_cut_with_a_count_of_what_is_left_out():
    grid = operators_grid(FULL.operators, 4)
    assert [row[0] for row in grid.rows()] == ["1", "4", "3", "2"], "the heaviest first, by their places"
    assert any("18 more operators, together" in note for note in grid.notes)
    assert any(note.startswith("1 layout copies: 10.") for note in grid.notes)
    assert "undelegated, layout copy" in grid.rows()[3]


def test_the_share_of_the_roof_is_the_least_time_over_the_time_taken():
    row = msgspec.structs.replace(
        FULL.operators.rows[0], samples=Samples.of([2_000_000]), macs=48_000_000, bytes_moved=1
    )
    assert of_roof(row, FULL.operators.peak) == pytest.approx(0.5)
    by_memory = msgspec.structs.replace(row, macs=0, bytes_moved=11_500_000)
    assert of_roof(by_memory, FULL.operators.peak) == pytest.approx(0.5)
    assert str(of_roof(row, NO)) == "nan"


def test_a_sustained_run_is_gathered_into_as_many_rows_as_there_is_room_for():
    grid = sustained_grid(FULL.sustained, 12)
    assert len(grid.rows()) == 12
    assert grid.notes[0] == "2 intervals to a row; medians of all their runs"
    assert "over that of the first 15.0 s" in grid.notes[1], "a tenth of 24, rounded up: 3"
    rows = [dict(zip((h.split("\n")[0] for h in grid.heads()), row, strict=True)) for row in grid.rows()]
    assert {row[2] for row in grid.rows()} == {"30.0"}, "300 runs in 10 s"
    assert float(rows[0]["over the"]) == pytest.approx(0, abs=1)
    assert float(rows[-1]["over the"]) == pytest.approx(45, abs=2)
    assert rows[3]["others"] == "60.0", "the worst of the two"
    assert rows[6]["clock"] == "1515"
    assert (rows[5]["throttled"], rows[6]["throttled"]) == ("-", "frequency capped, soft temperature limit")


def test_a_first_interval_apart_from_the_others_does_not_make_the_rest_look_slower():
    intervals = tuple(
        msgspec.structs.replace(
            FULL.sustained[0], start_s=n, seconds=1.0, samples=Samples.of([900 if n == 0 else 1000])
        )
        for n in range(30)
    )
    assert [row[4] for row in sustained_grid(intervals, 30).rows()][:2] == ["-10.0", "+0.0"]


def test_a_stall_that_no_percentile_shows_is_in_the_runs_a_second():
    calm = msgspec.structs.replace(FULL.sustained[0], seconds=1.0, samples=Samples.of([10**7] * 99))
    stalled = msgspec.structs.replace(calm, start_s=1.0, samples=Samples.of([10**7] * 9))
    none = msgspec.structs.replace(calm, start_s=2.0, samples=Samples.of([]))
    broken = msgspec.structs.replace(calm, start_s=3.0, seconds=0.0)
    grid = sustained_grid((calm, stalled, none, broken), 10)
    assert [row[2] for row in grid.rows()] == ["99.0", "9.00", "0", "n/a"]
    assert "nothing was throttled" in grid.notes


# Operators of no time, or of more than the roof.


def rated(**changes) -> dict[str, str]:
    one = msgspec.structs.replace(FULL.operators.rows[0], **changes)
    other = msgspec.structs.replace(FULL.operators.rows[1], samples=Samples.of([2_000_000]))
    grid = operators_grid(msgspec.structs.replace(FULL.operators, rows=(one, other)), 4)
    row = next(row for row in grid.rows() if row[0] == "1")
    return dict(zip((head.replace("\n", " ").strip() for head in grid.heads()), row, strict=True)) | {
        "notes": "; ".join(grid.notes)
    }


def test_what_takes_less_than_the_clocks_step_is_not_shown_as_nothing():
    cells = rated(samples=Samples.of([0] * 9), share=0.0)
    assert (cells["time %"], cells["ms"]) == ("<0.1", "<0.001")
    assert [cells[head] for head in ("GMAC/s", "GB/s", "of fp32 roof %")] == ["-", "-", "-"]
    assert "<0.001 ms" in html.unescape(
        operators_svg(
            msgspec.structs.replace(
                FULL.operators,
                rows=(msgspec.structs.replace(FULL.operators.rows[0], samples=Samples.of([0]), share=0.0),),
            )
        )
    )


def test_the_share_of_what_was_below_the_clocks_step_is_no_less_than_that_step():
    rows = tuple(
        msgspec.structs.replace(FULL.operators.rows[0], samples=Samples.of([took]), share=share)
        for took, share in ((30_000, 1.0), (0, 0.0))
    )
    of_none = (msgspec.structs.replace(rows[1]),)
    assert operators_grid(msgspec.structs.replace(FULL.operators, rows=rows), 4).rows()[1][3] == "<3.4"
    assert operators_grid(msgspec.structs.replace(FULL.operators, rows=of_none), 4).rows()[0][3] == "n/a"


def test_nothing_that_multiplies_has_no_rate_and_what_is_not_known_says_so():
    samples = Samples.of([2_000_000])
    assert rated(macs=0, samples=samples)["GMAC/s"] == "-"
    assert rated(macs=None, samples=samples)["GMAC/s"] == "n/a"
    assert rated(bytes_moved=None, samples=samples)["GB/s"] == "n/a"
    assert rated(samples=Samples.of([]))["GMAC/s"] == "-"
    assert rated(samples=Samples.of([]))["ms"] == "n/a"


def test_more_than_the_roof_is_marked_and_explained():
    beyond = rated(samples=Samples.of([1_000_000]), macs=96_000_000, bytes_moved=1)
    assert beyond["of fp32 roof %"] == "200.0*"
    assert "the clock's step of 1 us" in beyond["notes"]
    below = rated(samples=Samples.of([4_000_000]), macs=96_000_000, bytes_moved=1)
    assert below["of fp32 roof %"] == "50.0"
    assert "*" not in below["notes"]


def test_the_roof_is_told_before_all_else():
    assert operators_grid(FULL.operators, 4).notes[0].startswith("roof: 48.0 GMAC/s")


def test_beside_the_roof_it_is_told_what_else_ran_while_it_was_measured():
    def second(busy):
        peak = msgspec.structs.replace(FULL.operators.peak, busy=busy)
        return operators_grid(msgspec.structs.replace(FULL.operators, peak=peak), 4).notes[1]

    assert second(Unavailable(reason="x")).startswith("what else ran while the roof was measured is not known")
    assert second(0.37).startswith("others took 37.0 % of the processors while the roof was measured: it is too low")
    assert "processors" not in second(0.02)


# Columns that tell nothing.


def test_columns_of_details_that_tell_nothing_are_left_out():
    (sustained,) = detail_grids(bare_measurement(), 16)
    assert sustained.heads() == ("from\ns", "runs\n", "runs\na second", "p50\nms", "over the\nfirst %", "p99\nms")
    rows = tuple(
        msgspec.structs.replace(one, flags=(), delegate=None, module=None, macs=None) for one in FULL.operators.rows
    )
    bare = made(operators=msgspec.structs.replace(FULL.operators, rows=rows))
    (operators,) = detail_grids(bare, 16)
    assert operators.heads() == (
        *("#\n", "operator\n", "module\n"), *("time\n%", "\nms", "moved\nMB", "\nGB/s", "of fp32\nroof %"),
        "its own name\n",
    )  # fmt: skip
    assert {len(row) for row in operators.rows()} == {9}
    assert "flags" in "".join(operators_grid(FULL.operators, 16).filled().heads())


def test_layers_without_mutual_information_say_so():
    cells = [row[-1] for row in layers_grid(FULL.layers, 40).rows()]
    assert cells[-2:] == ["n/a", "n/a"]
    assert layers_grid(FULL.layers, 3).notes[2] == "7 more layers are not shown"


def test_how_much_layers_can_tell_of_the_input_is_said_in_words():
    def notes(**changes):
        return "; ".join(layers_grid(msgspec.structs.replace(FULL.layers, **changes), 40).notes)

    assert "over 64 inputs; a layer can tell at most 6 bit of which input it was" in notes(
        inputs=64, information_max_bits=6.0
    )
    assert "over 1 input; all inputs are alike, so what a layer tells of its input is not known" in notes(
        inputs=1, information_max_bits=0.0
    )


def test_a_group_wider_than_the_terminal_is_split():
    parts = fold(main_grid([FULL]), 40)
    assert sum(len(part.heads()) - 2 for part in parts) == len(main_grid([FULL]).heads()) - 2
    assert len(parts) > 5


class Scan(HTMLParser):
    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href"} and value]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_loads_nothing_runs_nothing_and_is_well_formed(page):
    scan = Scan()
    scan.feed(page)
    assert not {"script", "link", "img", "iframe"} & set(scan.tags)
    assert scan.open == []
    assert scan.tags.count("svg") >= 7, "latency twice; sustained, memory, energy, operators, layers"
    assert all(link.startswith("#") for link in scan.links)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_every_plot_tells_in_words_what_it_shows(page):
    told = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert len(told) == page.count("<svg")
    assert any("the median goes from 12.6 to 18.2 ms" in words for words in told)


def test_colours_of_plots_are_the_pages_own_in_light_and_dark(page):
    body = page[page.index("<body>") :]
    assert not re.findall(r"#[0-9a-f]{6}", body), "a colour that a dark page cannot change"
    used = set(re.findall(r"var\(--(\w+)\)", body))
    dark = page[page.index("prefers-color-scheme: dark") : page.index("* { box-sizing")]
    assert used <= set(re.findall(r"--(\w+):", dark))


def test_the_page_shows_labels_conditions_and_every_reason(tmp_path, page):
    energy = Unavailable(reason="RAPL powercap: energy_uj: Permission denied")
    bare = page_of([("pi", msgspec.structs.replace(bare_measurement(), energy=energy))], tmp_path)
    assert "RAPL powercap: energy_uj: Permission denied" in bare
    assert bare.count("not in this test") >= 6
    assert "temperatures, °C" in bare
    for words in (
        "Raspberry Pi 5 PMIC, rails VDD_CORE, DDR_VDD2",
        "Memory by phase",
        "61.2 (cpu-thermal)",
        "brcm,bcm2712",
    ):
        assert words.lower() in page.lower()


def test_names_are_escaped_in_text_and_plots(tmp_path):
    hostile = full_measurement(variant=HOSTILE, interpreter=HOSTILE)
    interval = msgspec.structs.replace(FULL.sustained[0], throttled=(HOSTILE,))
    operator = msgspec.structs.replace(FULL.operators.rows[0], kind=HOSTILE, module=HOSTILE, name=HOSTILE)
    layer = msgspec.structs.replace(FULL.layers.rows[0], name=HOSTILE, module=HOSTILE, dtype=HOSTILE)
    hostile = msgspec.structs.replace(
        hostile,
        package_name=HOSTILE,
        sustained=(interval,),
        operators=msgspec.structs.replace(FULL.operators, rows=(operator,), source=HOSTILE),
        layers=msgspec.structs.replace(FULL.layers, rows=(layer,), source=HOSTILE),
    )
    page = page_of([(HOSTILE, hostile)], tmp_path)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    scan = Scan()
    scan.feed(page)
    assert "script" not in scan.tags


def test_a_record_without_samples_is_listed_and_not_plotted(tmp_path):
    page = page_of([("pi", made(starts=(start(()),)))], tmp_path)
    assert "<svg" not in page
    assert "no timed runs" in page


def test_many_measurements_are_all_listed_and_the_newest_plotted(tmp_path, monkeypatch):
    monkeypatch.setattr("ferryman.profiler.report.PLOTTED_MAX", 2)
    found = [("pi", msgspec.structs.replace(FULL, started_at_ns=n, sustained=None, layers=None)) for n in range(4)]
    page = page_of(found, tmp_path)
    assert "plots of all but the newest 2 measurements" in page
    assert page.count("memory by phase:") == 2
    assert page.count("<details>") == 4
    assert PLOTTED_MAX > 10


@settings(max_examples=8, deadline=None)
@given(
    name=st.text(max_size=20),
    samples=st.lists(st.integers(0, 2**63 - 1), max_size=5),
    when=st.integers(0, 2**63 - 1),
)
def test_any_record_makes_a_page(name, samples, when, tmp_path_factory):
    odd = made(package_name=name, variant=name, starts=(start(samples),), started_at_ns=when)
    assert table([(name, odd)])
    assert page_of([(name, odd)], tmp_path_factory.mktemp("page")).endswith("</html>\n")


EXTREMES = st.sampled_from([0.0, -1.0, 1e-300, 1e300, -1e300, 2.0**62, 1e-9])


@settings(max_examples=15, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2000), EXTREMES), min_size=1, max_size=30))
def test_a_damaged_record_spoils_no_page(changes, tmp_path_factory):
    odd = damaged(FULL, changes)
    if odd is not None:
        assert "digits" in table([("pi", odd)])
        assert page_of([("pi", odd)], tmp_path_factory.mktemp("page")).endswith("</html>\n")


def test_runs_beyond_the_axis_are_counted_in_words():
    svg = latency_svg([("x", [Samples.of([1_000_000] * 199 + [90_000_000])])])
    assert "(1 beyond, up to 90.0 ms)" in svg


def test_thinned_samples_count_in_full_in_the_plot():
    svg = latency_svg([("x", [Samples.of([1_000_000] * 195 + [90_000_000] * 5, kept_max=10)])])
    assert "p50 1.00 ms" in svg
    assert "p99 90" in svg


@pytest.mark.parametrize(
    "draw",
    [
        lambda: latency_svg([("x", [Samples.of([1_000_000, 1_200_000, 1_300_000])])]),
        lambda: sustained_svg(FULL.sustained),
        lambda: memory_svg(FULL.memory),
        lambda: energy_svg(FULL.energy),
        lambda: operators_svg(FULL.operators),
        lambda: layers_svg(FULL.layers),
    ],
)
def test_the_same_record_draws_the_same_plot(draw):
    assert draw() == draw()


def test_no_plot_of_a_page_refers_to_parts_of_another(page):
    ids = re.findall(r'\bid="(id-[^"]*)"', page)
    assert len(set(ids)) == len(ids) > 10
    assert set(re.findall(r"#(id-[\w-]*)", page)) <= set(ids)


def test_plots_of_what_could_not_be_measured_are_left_out():
    bare = bare_measurement()
    assert memory_svg(bare.memory) == ""
    assert latency_svg([]) == ""
    svg = sustained_svg(bare.sustained)
    assert "clock" not in svg
    assert "hottest" not in svg


def test_memory_that_is_mapped_from_files_stands_apart():
    svg = memory_svg(FULL.memory)
    assert "mapped from files" in svg
    assert "steady 58.1 MB" in svg


def test_throttling_is_marked_with_its_reasons(page):
    assert page.count("frequency capped, soft temperature limit</text>") == 1
    assert "frequency capped" not in sustained_svg(FULL.sustained[:12])


def test_counters_of_joules_are_drawn_as_power():
    counter = msgspec.structs.replace(
        FULL.energy,
        idle=NO,
        source=msgspec.structs.replace(FULL.energy.source, unit="J"),
        active=msgspec.structs.replace(
            FULL.energy.active, times_ns=(0, 10**9, 2 * 10**9), values=(5.0, 8.0, 11.0), energy_j=6.0, window_s=2.0
        ),
    )
    assert "3.00 W over 2.00 s" in energy_svg(counter)
    assert "idle" not in energy_svg(counter)


def test_numbers_have_three_digits_and_no_exponent():
    assert [number(v) for v in (0, 0.00752, 12.345, 999.6, 123456.0, -1.5, float("nan"))] == [
        *("0", "0.00752", "12.3", "1000", "123456", "-1.50", "n/a"),
    ]
    assert number(0.0667, 2) == "0.067"


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_without_the_extra_the_message_says_what_to_install(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CallerError, match=r"ferryman\[collector\]"):
        write_html([("pi", made())], tmp_path / "report.html")
