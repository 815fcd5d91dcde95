"""Measurements for people: tables for a terminal, and a page that stands alone (host side; ferryman[collector]).

Names in a measurement come from devices and packages: they are escaped, and characters that could steer a terminal
or break the page's encoding are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ferryman.profiler.files import write_whole
from ferryman.profiler.report_details import detail_grids
from ferryman.profiler.report_tables import (
    Found,
    Grid,
    Group,
    about,
    by_device,
    by_package,
    energy_words,
    main_grid,
    missing_notes,
    small_grids,
)
from ferryman.profiler.report_text import show_grid, show_lines
from ferryman.profiler.report_words import items, label, mb, missing, ms, named, printable, sound, when, words
from ferryman.profiler.stats import summarize
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.layers import LayerStatistics
from ferryman.runtime.contracts.measurement import Conditions, Measurement, Memory
from ferryman.runtime.contracts.operators import Operators

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH = 160
"""Of tables that go to a file or a pipe."""
_ROWS_MAX = 16
_PAGE_ROWS_MAX = 200
PLOTTED_MAX = 20
"""Measurements of a page with plots of their own, a second each; the others have tables alone."""
_OPEN_MAX = 3
_TEMPLATE = "report.html"


def table(measurements: Found, *, width: int = WIDTH, colour: bool = False, details: bool = True) -> str:
    """Tables for each device and package; every number's unit is in its column's head.

    Args:
        measurements: of any devices.
        width: columns there are; wider tables are folded.
        colour: with escape sequences for a terminal that has colours.
        details: also operators, layers and sustained runs.
    """
    blocks = []
    for device, of_device in by_device(measurements):
        for package, group in by_package(of_device):
            title = f"{package} on {printable(device)}"
            blocks.append(show_lines(title, [about(group)], width, colour=colour, strong=True))
            blocks += [show_grid(grid, width, colour=colour) for grid in (main_grid(group), *small_grids(group))]
            for m in group if details else ():
                grids = detail_grids(m, _ROWS_MAX)
                named = [replace(grid, title=f"{label(m)}: {grid.title}") for grid in grids]
                blocks += [show_grid(grid, width, colour=colour) for grid in named]
            if notes := missing_notes(group):
                blocks.append(show_lines("could not be measured", notes, width, colour=colour))
    return "\n\n".join(blocks)


def write_html(measurements: Found, path: Path, *, left_out: Sequence[str] = ()) -> None:
    """Write one page with every plot, condition and missing sensor in it; it loads nothing and runs no script.

    `left_out` tells, in words, what is not among `measurements`.

    Raises:
        CallerError: jinja2 or matplotlib is not installed.
        CallerError: the disk refused; see `write_whole`.
    """
    try:
        import jinja2
        import matplotlib as mpl  # noqa: F401  # so that it is missed here, where the message says what to install
    except ImportError as error:
        raise CallerError(f"{error}; install what pages need: pip install 'ferryman[collector]'") from error

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(resources.files("ferryman.profiler").joinpath(_TEMPLATE).read_text("utf-8"))
    said = list(left_out)
    if len(measurements) > PLOTTED_MAX:
        said.append(f"plots of all but the newest {PLOTTED_MAX} measurements; their tables are here")
    newest = sorted(range(len(measurements)), key=lambda at: -measurements[at][1].started_at_ns)[:PLOTTED_MAX]
    plotted = {id(measurements[at][1]) for at in newest}
    devices = [
        {
            "name": device,
            "packages": [_package(title, group, plotted) for title, group in by_package(of_device)],
            "missing": missing(of_device),
        }
        for device, of_device in by_device(measurements)
    ]
    opened = len(measurements) <= _OPEN_MAX
    page = template.render(devices=devices, count=len(measurements), left_out=said, opened=opened)
    write_whole(path, page)


def _package(title: str, group: list[Measurement], plotted: set[int]) -> dict[str, Any]:
    return {
        "title": title,
        "about": about(group),
        "grids": [main_grid(group), *small_grids(group)],
        "latency": _latency(group),
        "details": [_details(m, plots=id(m) in plotted) for m in group],
    }


def _latency(group: list[Measurement]) -> Markup:
    """The plot; the time of day goes in front of a label only where it tells two apart."""
    from markupsafe import Markup

    from ferryman.profiler.report_plot import latency_svg

    labels = [label(m) for m in group]
    rows = [
        (text if labels.count(text) == 1 else f"{when(m)} {text}", [s.samples for s in m.starts if s.samples.count])
        for text, m in zip(labels, group, strict=True)
    ]
    return Markup(latency_svg([row for row in rows if row[1]]))  # noqa: S704  # matplotlib escapes


def _details(m: Measurement, *, plots: bool) -> dict[str, Any]:
    return {
        "title": f"{label(m)}, {when(m)} UTC",
        "facts": _facts(m),
        "plots": list(_plots(m)) if plots else [],
        "grids": [grid for grid in (_memory_grid(m), *detail_grids(m, _PAGE_ROWS_MAX)) if grid.keys.rows],
        "conditions": [
            (named(name), words(name, getattr(m.before, name)), words(name, getattr(m.after, name)))
            for name in (field.name for field in msgspec.structs.fields(Conditions))
        ],
    }


def _plots(m: Measurement) -> Iterator[tuple[str, Markup]]:
    """Heading and drawing of each that there is something for."""
    from markupsafe import Markup, escape

    from ferryman.profiler.operators_plot import roofline_svg
    from ferryman.profiler.report_plot_parts import layers_svg, memory_svg, operators_svg
    from ferryman.profiler.report_plot_time import energy_svg, sustained_svg

    plots: list[tuple[str, Callable[[], str]]] = [
        ("Without a pause", lambda: sustained_svg(m.sustained or ())),
        ("Memory", lambda: memory_svg(m.memory)),
    ]
    if (energy := sound(m.energy)) is not None:
        plots.append(("Energy", lambda: energy_svg(energy)))
    if isinstance(operators := m.operators, Operators):
        plots.append(("Time by operator", lambda: operators_svg(operators)))
        plots.append(("Operators under the device's roof", lambda: roofline_svg(operators)))
    if isinstance(layers := m.layers, LayerStatistics):
        plots.append(("Activations by layer", lambda: layers_svg(layers)))
    for title, draw in plots:
        try:
            svg = draw()
        except Exception as error:  # noqa: BLE001  # whatever the numbers of a damaged record make matplotlib raise
            svg = f'<p class="missing">cannot be drawn: {escape(printable(str(error)))}</p>'
        if svg:
            yield title, Markup(svg)  # noqa: S704  # matplotlib escapes


def _facts(m: Measurement) -> list[tuple[str, str]]:
    summary = summarize([s.samples for s in m.starts]) if any(s.samples.count for s in m.starts) else None
    spread = summary and (
        f"mean {ms(summary.mean_ns)} ms, min {ms(summary.min_ns)} ms, max {ms(summary.max_ns)} ms, "
        f"median absolute deviation {ms(summary.mad_ns)} ms"
    )
    return [
        ("processes", ", ".join(f"{s.samples.count} runs after {s.warmup.count} of warm-up" for s in m.starts)),
        ("spread", spread or "no timed runs"),
        ("energy", energy_words(m.energy)),
        *([] if m.energy_estimate is None else [("energy by a model", f"from {m.energy_estimate.model.source}")]),
        ("arena, MB", words("arena_bytes", m.memory.arena_bytes)),
        ("input shapes", " ".join(str(list(shape)) for shape in m.input_shapes)),
        ("form, runtime", f"{m.form}, {m.runtime}"),
        ("package SHA-256", m.package_sha256),
    ]


def _memory_grid(m: Measurement) -> Grid:
    phases = [(named(name), phase) for name, phase in items(m.memory) if isinstance(phase, Memory)]
    fields = ("anonymous_bytes", "file_bytes", "pss_bytes", "uss_bytes", "rss_bytes", "peak_rss_bytes")
    return Grid(
        "memory by phase",
        Group(("at the end of\n",), tuple((name,) for name, _ in phases), text=True),
        (
            Group(
                ("private\nMB", "mapped\nMB", "PSS\nMB", "USS\nMB", "RSS\nMB", "peak RSS\nMB"),
                tuple(tuple(mb(getattr(phase, field)) for field in fields) for _, phase in phases),
            ),
        ),
    )


def _clean(value: Any) -> Any:  # noqa: ANN401  # jinja's finalize takes whatever a template prints
    return printable(value) if type(value) is str else value
