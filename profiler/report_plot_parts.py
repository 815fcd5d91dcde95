"""Plots of parts: memory by phase, time by operator, activations by layer."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ferryman.profiler.report_details import operator_seconds
from ferryman.profiler.report_plot import COLOURS, FAINT, INK, SOFT, WIDTH_IN, frame, legend_above, page_svg, plotting
from ferryman.profiler.report_words import number, percent, short, took
from ferryman.runtime.contracts.layers import Layer, LayerStatistics
from ferryman.runtime.contracts.measurement import Memory, MemoryPhases
from ferryman.runtime.contracts.operators import Operator, Operators

_PHASES = ("process", "start", "loaded", "first_run", "steady", "closed")
_ROW_IN = 0.27
_OPERATORS_MAX = 20
_LAYERS_MAX = 48
_NAME_MAX = 44
_SYMLOG_FROM_RATIO = 50
"""From here on the narrower ranges would be dots."""


def memory_svg(memory: MemoryPhases) -> str:
    """A bar for each phase: what is private, what is mapped from files, and the peak; empty if none is known."""
    phases = [(name.replace("_", " "), getattr(memory, name)) for name in _PHASES]
    known = [(name, phase) for name, phase in phases if isinstance(phase, Memory)]
    if not known:
        return ""
    with plotting():
        figure = Figure(figsize=(WIDTH_IN, 0.34 * len(known) + 0.95), layout="constrained")
        axes = figure.subplots()
        widest = max(max(phase.pss_bytes, phase.peak_rss_bytes) for _, phase in known) / 1e6 or 1.0
        for row, (_, phase) in enumerate(known):
            _memory_row(axes, row, phase, widest)
        axes.set_yticks(range(len(known)), [name for name, _ in known])
        axes.set_ylim(len(known) - 0.45, -0.55)
        axes.set_xlim(0, widest * 1.18)
        axes.set_xlabel(
            "MB of the measuring process at the end of each phase (PSS; the mark is the phase's peak of RSS)", color=INK
        )
        frame(axes, grid="x")
        legend_above(axes, figure)
        told = ", ".join(f"{name} {number(phase.pss_bytes / 1e6)} MB" for name, phase in known)
        return page_svg(figure, f"memory by phase: {told}")


def operators_svg(operators: Operators) -> str:
    """Bars of time, the heaviest operators first; those without a delegate and layout copies in their own colours."""
    timed = [one for one in operators.rows if math.isfinite(operator_seconds(one))]
    if not timed:
        return ""
    ranked = sorted(timed, key=lambda one: -one.share)
    shown, rest = ranked[:_OPERATORS_MAX], ranked[_OPERATORS_MAX:]
    bars = [(_operator_name(one), operator_seconds(one) * 1e3, one.share, _operator_kind(one)) for one in shown]
    if rest:
        spent = sum(map(operator_seconds, rest)) * 1e3
        bars.append((f"{len(rest)} more operators", spent, sum(one.share for one in rest), 3))
    with plotting():
        figure = Figure(figsize=(WIDTH_IN, _ROW_IN * len(bars) + 0.95), layout="constrained")
        axes = figure.subplots()
        kinds = (
            ("delegated or own kernel", COLOURS[0], ""),
            ("portable kernel", COLOURS[1], "//"),
            ("layout copy", COLOURS[3], "xx"),
            ("", SOFT, ""),
        )
        longest = max(spent for _, spent, _, _ in bars) or 1.0
        for kind, (label, colour, hatch) in enumerate(kinds):
            places = [place for place, bar in enumerate(bars) if bar[3] == kind]
            if places:
                axes.barh(
                    places,
                    [bars[place][1] for place in places],
                    color=colour,
                    height=0.66,
                    label=label,
                    hatch=hatch,
                    edgecolor=FAINT,
                    linewidth=0,
                )
        for place, (_, spent, share, _) in enumerate(bars):
            axes.text(
                spent + 0.008 * longest,
                place,
                f"{took(spent)} ms" + (f", {percent(share)} %" if spent else ""),
                color=INK,
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, longest * 1.16)
        axes.set_xlabel("one run, ms", color=INK)
        frame(axes, grid="x")
        legend_above(axes, figure)
        return page_svg(
            figure, "time by operator: " + "; ".join(f"{name} {percent(share)} %" for name, _, share, _ in bars[:5])
        )


def layers_svg(layers: LayerStatistics) -> str:
    """By layer: from least to most with mean and spread; beside it the shares of zeros and of saturated values."""
    shown = layers.rows[:_LAYERS_MAX]
    if not shown:
        return ""
    with plotting():
        figure = Figure(figsize=(WIDTH_IN, _ROW_IN * len(shown) + 0.95), layout="constrained")
        ranges, shares = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        for row, layer in enumerate(shown):
            _layer_row(ranges, row, layer)
        largest = max(max(abs(layer.least), abs(layer.most)) for layer in shown)
        smallest = min((value for o in shown if (value := max(abs(o.least), abs(o.most))) > 0), default=1.0)
        if largest > _SYMLOG_FROM_RATIO * smallest:
            ranges.set_xscale("symlog", linthresh=smallest)
        places = range(len(shown))
        shares.barh(
            [p - 0.17 for p in places], [100 * o.zeros for o in shown], height=0.32, color=COLOURS[0], label="zeros"
        )
        shares.barh(
            [p + 0.17 for p in places], [100 * o.saturated for o in shown], height=0.32, color=COLOURS[1],
            label="saturated", hatch="//", edgecolor=FAINT, linewidth=0,
        )  # fmt: skip
        shares.set_xlim(0, 100)
        shares.set_xlabel("% of values", color=INK)
        ranges.set_xlabel("activations: least to most, mean ± standard deviation", color=INK)
        ranges.set_yticks(places, [short(o.module or o.name, _NAME_MAX) for o in shown])
        ranges.set_ylim(len(shown) - 0.4, -0.6)
        for axes in (ranges, shares):
            frame(axes, grid="x")
        legend_above(shares, figure)
        left_out = (
            f"; {len(layers.rows) - len(shown)} more layers are not shown" if len(layers.rows) > len(shown) else ""
        )
        return page_svg(figure, f"activations of {len(shown)} layers over {layers.inputs} inputs{left_out}")


def _memory_row(axes: Axes, row: int, phase: Memory, widest: float) -> None:
    private, file = phase.anonymous_bytes / 1e6, phase.file_bytes / 1e6
    rest = max(0.0, phase.pss_bytes / 1e6 - private - file)
    left = 0.0
    for value, colour, label, hatch in (
        (private, COLOURS[0], "private", ""),
        (file, COLOURS[4], "mapped from files", "//"),
        (rest, SOFT, "shared or not told apart", ""),
    ):
        if value > 0.005 * widest:
            told = label if label not in axes.get_legend_handles_labels()[1] else None
            axes.barh(
                row, value, left=left, height=0.62, color=colour, label=told, hatch=hatch, edgecolor=FAINT, linewidth=0
            )
        left += value
    peak = phase.peak_rss_bytes / 1e6
    axes.plot([peak, peak], [row - 0.36, row + 0.36], color=INK, linewidth=1.8)
    end = max(left, peak)
    axes.text(end + 0.01 * widest, row, f"{number(left)}, peak {number(peak)}", color=INK, va="center", fontsize=8.5)


def _layer_row(axes: Axes, row: int, layer: Layer) -> None:
    axes.plot([layer.least, layer.most], [row, row], color=COLOURS[0], linewidth=1.2)
    for end in (layer.least, layer.most):
        axes.plot([end, end], [row - 0.22, row + 0.22], color=COLOURS[0], linewidth=1.2)
    axes.fill_between(
        [layer.mean - layer.std, layer.mean + layer.std],
        row - 0.22,
        row + 0.22,
        color=COLOURS[0],
        alpha=0.3,
        linewidth=0,
    )
    axes.plot([layer.mean, layer.mean], [row - 0.3, row + 0.3], color=COLOURS[0], linewidth=2.2)


def _operator_name(one: Operator) -> str:
    return short(f"{one.kind}  {one.module}" if one.module else one.kind, _NAME_MAX)


def _operator_kind(one: Operator) -> int:
    return 2 if "layout copy" in one.flags else 1 if "undelegated" in one.flags else 0
