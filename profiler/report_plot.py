"""Latency distributions as SVG (matplotlib)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from ferryman.profiler.report import number
from ferryman.profiler.stats import summarize

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, and in the page's own font
    "svg.hashsalt": "ferryman",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # names may hold dollar signs
}
_COLOURS = ("#2563a8", "#c2571a", "#2b7d5b", "#8a3ea0", "#a8324a", "#5f6b7a")
_INK, _FAINT = "#1f2933", "#d5dbe3"
_WIDTH_IN, _ROW_IN, _FOOT_IN = 10.6, 0.72, 0.62
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_DOTS_MAX = 600
_LABEL_MAX_CHARS = 58
_LOG_FROM_RATIO = 20
_BEYOND_P99 = 1.25
_GOLDEN_RATIO = 0.6180339887


def latency_svg(rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Strip and box for each (label, samples in ns); an empty string where there are no rows.

    The box spans the quartiles, the line across it is the median, the whisker ends at p99. The axis ends a little
    beyond the largest p99; slower runs stand at its end as arrows, and each row's text says how slow the slowest was.
    """
    if not rows:
        return ""
    summaries = [summarize(samples) for _, samples in rows]
    low_ms = min(s.min_ns for s in summaries) / 1e6
    high_ms = max(s.percentile_ns(99) for s in summaries) * _BEYOND_P99 / 1e6
    medians = [s.p50_ns for s in summaries]
    height_in = _ROW_IN * len(rows) + _FOOT_IN
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has more fonts
        figure = Figure(figsize=(_WIDTH_IN, height_in))
        axes = figure.add_axes((0.02, _FOOT_IN / height_in, 0.96, 1 - _FOOT_IN / height_in))
        logarithmic = low_ms > 0 and max(medians) > _LOG_FROM_RATIO * min(medians)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlim(low_ms * 0.9 if logarithmic else max(0.0, low_ms - 0.05 * (high_ms - low_ms)), high_ms or 1.0)
        for index, (label, samples) in enumerate(rows):
            _row(axes, -index, label, np.asarray(samples, np.float64) / 1e6, _COLOURS[index % len(_COLOURS)], high_ms)
        _frame(axes, len(rows))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _row(axes: Axes, y: float, label: str, samples_ms: np.ndarray, colour: str, high_ms: float) -> None:
    p25, p50, p75, p90, p99 = (float(p) for p in np.percentile(samples_ms, (25, 50, 75, 90, 99)))
    thinned = samples_ms[:: -(-len(samples_ms) // _DOTS_MAX)]
    jitter = (np.arange(len(thinned)) * _GOLDEN_RATIO % 1 - 0.5) * 0.34
    axes.scatter(thinned, y + jitter, s=6, color=colour, alpha=0.35, linewidths=0, zorder=2)
    axes.plot([float(samples_ms.min()), p99], [y, y], color=colour, linewidth=1, zorder=3)
    axes.fill_between([p25, p75], y - 0.15, y + 0.15, color=colour, alpha=0.3, linewidth=0, zorder=3)
    axes.plot([p50, p50], [y - 0.2, y + 0.2], color=colour, linewidth=2.2, zorder=4)
    axes.plot([p99, p99], [y - 0.08, y + 0.08], color=colour, linewidth=1.2, zorder=4)
    if (beyond := int((samples_ms > high_ms).sum())) > 0:
        axes.plot([high_ms], [y], marker=">", color=colour, markersize=6, clip_on=False, zorder=5)
    numbers = f"p50 {number(p50)} ms,  p90 {number(p90)} ms,  p99 {number(p99)} ms"
    if beyond:
        numbers += f"  ({beyond} beyond, up to {number(float(samples_ms.max()))} ms)"
    short = label if len(label) <= _LABEL_MAX_CHARS else f"{label[: _LABEL_MAX_CHARS - 1]}…"
    place = axes.get_yaxis_transform()
    axes.text(0, y + 0.36, short, transform=place, color=_INK, fontsize=9, va="center", bbox=_PAPER)
    axes.text(1, y + 0.36, numbers, transform=place, color=colour, fontsize=9, va="center", ha="right", bbox=_PAPER)


def _frame(axes: Axes, rows: int) -> None:
    axes.set_ylim(-rows + 0.62, 0.58)
    axes.set_yticks([])
    axes.set_xlabel("latency of one inference, ms", color=_INK, fontsize=9)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    axes.grid(axis="x", color=_FAINT, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_FAINT)
