"""Accuracy against bytes and latency (matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ferryman.profiler.pareto import Point, front
from ferryman.profiler.report_plot import STYLE

_COLOURS = ("#1f2933", "#2563a8", "#c2571a", "#2b7d5b", "#8a3ea0", "#a8324a", "#5f6b7a")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def pareto_figure(points: Sequence[Point]) -> Figure:
    """Two plots side by side: a colour to each form, a mark to each interpreter, a line along the front."""
    forms = list(dict.fromkeys(point.form for point in points))
    interpreters = list(dict.fromkeys(point.interpreter for point in points))
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        costs: tuple[tuple[str, Callable[[Point], float]], ...] = (
            ("bytes of the artifact", lambda point: point.size_bytes),
            ("us a call, one thread (median)", lambda point: point.latency_us),
        )
        for axes, (label, cost) in zip(figure.subplots(1, 2, sharey=True), costs, strict=True):
            _plot(axes, points, cost, forms, interpreters)
            axes.set_xlabel(label)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
            axes.xaxis.set_minor_formatter(FuncFormatter(_minor))
            axes.grid(visible=True, color="#d5dbe3", linewidth=0.6)
        figure.axes[0].set_ylabel("accuracy, %")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _minor(value: float, _: object) -> str:
    """Between powers of ten the twos and fives are named."""
    return f"{value:,.4g}" if f"{value:e}"[0] in "25" else ""


def _plot(
    axes: Axes, points: Sequence[Point], cost: Callable[[Point], float], forms: list[str], interpreters: list[str]
) -> None:
    best = front(points, cost)
    axes.step(
        [cost(p) for p in best], [100 * p.accuracy for p in best], where="post", color="#8a94a3", linewidth=1,
        label="front",
    )  # fmt: skip
    for index, form in enumerate(forms):
        for mark, interpreter in enumerate(interpreters):
            some = [p for p in points if p.form == form and p.interpreter == interpreter]
            if not some:
                continue
            axes.errorbar(
                [cost(p) for p in some], [100 * p.accuracy for p in some], yerr=np.transpose([_apart(p) for p in some]),
                fmt="none", ecolor=_COLOURS[index % len(_COLOURS)], elinewidth=0.8, alpha=0.5, zorder=2,
            )  # fmt: skip
            axes.scatter(
                [cost(p) for p in some], [100 * p.accuracy for p in some], s=26, marker=_MARKS[mark % len(_MARKS)],
                color=_COLOURS[index % len(_COLOURS)], label=f"{form}, {interpreter}", zorder=3, alpha=0.85,
            )  # fmt: skip


def _apart(point: Point) -> tuple[float, float]:
    """How far the ends of the accuracy's interval are from it, in percent."""
    low, high = point.accuracy_low, point.accuracy_high
    return (0.0, 0.0) if low is None or high is None else (100 * (point.accuracy - low), 100 * (high - point.accuracy))
