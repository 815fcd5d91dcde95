"""What every plot of a page shares, and the plot of latency distributions (SVG by matplotlib)."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import ScalarFormatter

from ferryman.profiler.report_words import number, printable
from ferryman.profiler.stats import Summary, summarize
from ferryman.runtime.contracts.samples import Samples

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, and in the page's own font
    "svg.hashsalt": "ferryman",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names may hold dollar signs
}
INK, SOFT, FAINT, PAPER = "#1f2933", "#5b6776", "#d5dbe3", "#fefefe"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5568f", "#a87900", "#3d8fc4")
"""Told apart by people who see few colours (after Okabe and Ito, darker, for thin lines on white)."""
_VARIABLES = {
    INK: "ink", SOFT: "soft", FAINT: "line", PAPER: "card",
    **{colour: f"c{index}" for index, colour in enumerate(COLOURS)},
}  # fmt: skip
"""Colour of a plot -> the page's own name for it: a page knows whether it is dark."""
WIDTH_IN = 10.6
_ID, _ID_USE = re.compile(r'\bid="([a-z][0-9a-f]{10})"'), re.compile(r"(?<=[\"#])[a-z][0-9a-f]{10}(?=[\")])")
_ROW_IN, _FOOT_IN = 0.72, 0.62
_PAPER = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
_DOTS_MAX = 600
_LABEL_MAX_CHARS = 58
_LOG_FROM_RATIO = 20
_BEYOND_P99 = 1.25
_GOLDEN_RATIO = 0.6180339887


@contextmanager
def plotting() -> Iterator[None]:
    """Matplotlib in the style of the pages."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has more fonts
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # numbers of a damaged record; so below
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def page_svg(figure: Figure, told: str) -> str:
    """An <svg> for inside a page, in the page's colours; `told` says in words what it shows."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = _own_ids(file.getvalue())
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return f'<svg role="img" aria-label="{escape(printable(told))}"' + svg[svg.index("<svg") + 4 :]


def _own_ids(svg: str) -> str:
    """With ids by their order and by what is drawn: some of matplotlib's differ from one drawing to the next."""
    places = {name: index for index, name in enumerate(dict.fromkeys(_ID.findall(svg)))}
    drawn = hashlib.sha256(_ID_USE.sub(lambda use: str(places.get(use[0], use[0])), svg).encode()).hexdigest()[:8]
    return _ID_USE.sub(lambda use: f"id-{places[use[0]]}-{drawn}" if use[0] in places else use[0], svg)


def frame(axes: Axes, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Only what is needed of lines: a faint grid, and the axis below."""
    axes.tick_params(which="both", colors=SOFT, labelcolor=INK, labelsize=8.5, length=0)
    axes.grid(axis=grid, color=FAINT, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(FAINT)


def legend_above(axes: Axes, figure: Figure) -> Legend | None:
    """What the colours are, above everything, where no line runs through it."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return None
    return figure.legend(
        handles, labels, loc="outside upper right", ncols=min(len(labels), 6), frameon=False, fontsize=8.5,
        labelcolor=INK,
    )  # fmt: skip


def latency_svg(rows: Sequence[tuple[str, Sequence[Samples]]]) -> str:
    """Strip and box for each (label, samples of each process); an empty string where there are no rows.

    The dots of each process are a band of their own. The box spans the quartiles, the line across it is the median, the
    whisker ends at p99. The axis ends a little beyond the largest p99; slower runs stand at its end as arrows, and each
    row's text says how slow the slowest was.
    """
    if not rows:
        return ""
    summaries = [summarize(samples) for _, samples in rows]
    low_ms = min(s.min_ns for s in summaries) / 1e6
    high_ms = max(s.percentile_ns(99) for s in summaries) * _BEYOND_P99 / 1e6
    medians = [s.p50_ns for s in summaries]
    height_in = _ROW_IN * len(rows) + _FOOT_IN
    with plotting():
        figure = Figure(figsize=(WIDTH_IN, height_in))
        axes = figure.add_axes((0.02, _FOOT_IN / height_in, 0.96, 1 - _FOOT_IN / height_in))
        logarithmic = low_ms > 0 and max(medians) > _LOG_FROM_RATIO * min(medians)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlim(low_ms * 0.9 if logarithmic else max(0.0, low_ms - 0.05 * (high_ms - low_ms)), high_ms or 1.0)
        for index, ((label, samples), summary) in enumerate(zip(rows, summaries, strict=True)):
            _row(axes, -index, label, samples, summary, COLOURS[index % len(COLOURS)], high_ms)
        frame(axes, grid="x")
        axes.set_ylim(-len(rows) + 0.62, 0.58)
        axes.set_yticks([])
        axes.set_xlabel("latency of one inference, ms", color=INK, fontsize=9)
        medians_told = "; ".join(
            f"{label}: median {number(s.p50_ns / 1e6)} ms" for (label, _), s in zip(rows, summaries, strict=True)
        )
        return page_svg(figure, f"latency distributions. {medians_told}")


def _row(
    axes: Axes, y: float, label: str, samples: Sequence[Samples], summary: Summary, colour: str, high_ms: float
) -> None:
    p25, p50, p75, p90, p99 = (summary.percentile_ns(p) / 1e6 for p in (25, 50, 75, 90, 99))
    band = 0.44 / len(samples)
    for process, some in enumerate(samples):
        values = some.values_ns() / 1e6
        thinned = values[:: max(1, -(-len(values) * len(samples) // _DOTS_MAX))]
        middle = y + 0.22 - (process + 0.5) * band
        jitter = (np.arange(len(thinned)) * _GOLDEN_RATIO % 1 - 0.5) * band * 0.75
        axes.scatter(thinned, middle + jitter, s=5, color=colour, alpha=0.4, linewidths=0, zorder=2)
    axes.plot([summary.min_ns / 1e6, p99], [y, y], color=colour, linewidth=1, zorder=3)
    axes.fill_between([p25, p75], y - 0.15, y + 0.15, color=colour, alpha=0.3, linewidth=0, zorder=3)
    axes.plot([p50, p50], [y - 0.22, y + 0.22], color=colour, linewidth=2.2, zorder=4)
    axes.plot([p99, p99], [y - 0.08, y + 0.08], color=colour, linewidth=1.2, zorder=4)
    beyond = int(summary.counts[summary.values_ns / 1e6 > high_ms].sum())
    if beyond:
        axes.plot([high_ms], [y], marker=">", color=colour, markersize=6, clip_on=False, zorder=5)
    numbers = f"p50 {number(p50)} ms,  p90 {number(p90)} ms,  p99 {number(p99)} ms"
    if beyond:
        numbers += f"  ({beyond} beyond, up to {number(summary.max_ns / 1e6)} ms)"
    short = label if len(label) <= _LABEL_MAX_CHARS else f"{label[: _LABEL_MAX_CHARS - 1]}…"
    place = axes.get_yaxis_transform()
    axes.text(0, y + 0.37, short, transform=place, color=INK, fontsize=9, va="center", bbox=_PAPER)
    axes.text(1, y + 0.37, numbers, transform=place, color=colour, fontsize=9, va="center", ha="right", bbox=_PAPER)
