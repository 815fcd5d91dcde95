"""Operators under the roof of what the device does at most, as SVG (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ferryman.profiler.report_plot import COLOURS, INK, SOFT, WIDTH_IN, frame, legend_above, page_svg, plotting
from ferryman.profiler.report_words import number, printable
from ferryman.runtime.contracts.operators import Operator, Operators, Peak
from ferryman.runtime.contracts.record import Unavailable

_SIZE_IN = (WIDTH_IN, 4.6)
_AREA_LEAST, _AREA_MOST = 12.0, 900.0
_NAMED_MOST = 6
_NAMED_SHARE = 0.03
_NEAR = 1.6
_LABEL_MAX_CHARS = 28


def roofline_svg(operators: Operators) -> str:
    """Every operator that multiplies, a dot: multiply-adds a second over multiply-adds a byte moved.

    A dot's area is the operator's share of the time, its colour its kind. Above it is the roof: as fast as this device
    multiplies, or as fast as it reads what is multiplied. An empty string where no operator has a place.
    """
    dots = [(row, *place) for row in operators.rows if (place := _place(row)) is not None]
    if not dots:
        return ""
    with plotting():
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        xs, ys = [x for _, x, _ in dots], [y for _, _, y in dots]
        axes.set_xlim(min(xs) / 2, max(xs) * 2)
        if not isinstance(operators.peak, Unavailable):
            _draw_roof(axes, operators.peak, np.geomspace(min(xs) / 2, max(xs) * 2, 200))
            ys += _tops(operators.peak)
        axes.set_ylim(min(ys) / 2, max(ys) * 2)
        _draw_dots(axes, dots)
        _frame(figure, axes, operators.rows, [row for row, _, _ in dots])
        return page_svg(figure, f"{len(dots)} operators that multiply, up to {number(max(y for *_, y in dots))} GMAC/s")


def _place(row: Operator) -> tuple[float, float] | None:
    """Multiply-adds a byte, and 1e9 of them a second."""
    time_ns = _typical_ns(row)
    if not row.macs or not row.bytes_moved or time_ns <= 0:
        return None
    return row.macs / row.bytes_moved, row.macs / time_ns


def _typical_ns(row: Operator) -> float:
    return float(np.median(row.samples.values_ns())) if row.samples.count else 0.0


def _tops(peak: Peak) -> list[float]:
    return [peak.gmacs_per_s, *([] if isinstance(peak.int8_gmacs_per_s, Unavailable) else [peak.int8_gmacs_per_s])]


def _draw_roof(axes: Axes, peak: Peak, x: np.ndarray) -> None:
    tops = _tops(peak)
    slopes = [("memory", peak.gbytes_per_s)]
    if peak.cache_gbytes_per_s is not None:
        slopes.append(("first cache", peak.cache_gbytes_per_s))
    for style, (name, rate) in zip(("-", "--"), slopes, strict=False):
        axes.plot(x, np.minimum(rate * x, tops[0]), color=SOFT, linewidth=1.6, linestyle=style, zorder=1)
        at = max(x[0] * 1.05, min(tops[0] / rate / 3, x[-1] / 3))
        under = 0.95 * min(rate * at, tops[0])
        axes.text(at * 1.1, under, f"{name} {rate:.3g} GB/s", color=SOFT, fontsize=8, va="top")
    for name, top in zip(("fp32", "int8"), tops, strict=False):
        axes.axhline(top, color=SOFT, linewidth=1.6 if name == "fp32" else 1, linestyle="-" if name == "fp32" else ":")
        axes.text(x[-1] / 1.05, top * 1.06, f"{name} {top:.3g} GMAC/s", color=SOFT, fontsize=8, ha="right", va="bottom")


def _draw_dots(axes: Axes, dots: Sequence[tuple[Operator, float, float]]) -> None:
    kinds = list(dict.fromkeys(row.kind for row, _, _ in sorted(dots, key=lambda dot: -dot[0].share)))
    for index, kind in enumerate(kinds):
        some = [dot for dot in dots if dot[0].kind == kind]
        axes.scatter(
            [x for _, x, _ in some],
            [y for _, _, y in some],
            s=[_AREA_LEAST + _AREA_MOST * row.share for row, _, _ in some],
            color=COLOURS[index % len(COLOURS)],
            alpha=0.6,
            linewidths=0,
            label=printable(kind),
            zorder=3,
        )
    for row, x, y in _named(dots):
        label = printable(row.module or row.kind)
        short = label if len(label) <= _LABEL_MAX_CHARS else f"…{label[1 - _LABEL_MAX_CHARS :]}"
        axes.annotate(
            f"{short} {100 * row.share:.0f} %",
            (x, y),
            xytext=(0, -14),
            textcoords="offset points",
            color=INK,
            fontsize=8,
            ha="center",
            zorder=4,
        )


def _named(dots: Sequence[tuple[Operator, float, float]]) -> list[tuple[Operator, float, float]]:
    """The largest dots, none so near to another that their names would cover each other."""
    named: list[tuple[Operator, float, float]] = []
    for row, x, y in sorted(dots, key=lambda dot: -dot[0].share):
        near = any(max(x / a, a / x) < _NEAR and max(y / b, b / y) < _NEAR for _, a, b in named)
        if row.share >= _NAMED_SHARE and len(named) < _NAMED_MOST and not near:
            named.append((row, x, y))
    return named


def _frame(figure: Figure, axes: Axes, rows: Sequence[Operator], shown: Sequence[Operator]) -> None:
    rest = 1 - sum(row.share for row in shown)
    copies = sum(row.share for row in rows if "layout copy" in row.flags)
    axes.set_xlabel(
        f"multiply-adds a byte moved (not shown: {100 * rest:.1f} % of the time, in operators that multiply nothing or "
        f"end within the clock's resolution; layout copies {100 * copies:.1f} %)",
        color=INK,
        fontsize=9,
    )
    axes.set_ylabel("GMAC/s", color=INK, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if f"{value:e}"[0] in "25" else ""))
    frame(axes)
    legend = legend_above(axes, figure)
    for handle in legend.legend_handles if legend else ():
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([40.0])
