"""Plots over time: a sustained run with the device's state below it, and power with its idle and active window."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ferryman.profiler.report_details import interval_state
from ferryman.profiler.report_plot import COLOURS, INK, WIDTH_IN, frame, legend_above, page_svg, plotting
from ferryman.profiler.report_words import number, printable
from ferryman.profiler.stats import summarize
from ferryman.profiler.trace import power_points
from ferryman.runtime.contracts.energy import Energy, EnergyWindow
from ferryman.runtime.contracts.measurement import Interval
from ferryman.runtime.contracts.record import Unavailable

_PANELS = (
    ("clock\nMHz", "clock, MHz", COLOURS[2]),
    ("hottest\n°C", "hottest, °C", COLOURS[1]),
    ("others\n%", "others, %", COLOURS[3]),
    ("own RSS\nMB", "own RSS, MB", COLOURS[4]),
)
_MINUTES_FROM_S = 300
_REASONS_SHOWN = 2


def sustained_svg(intervals: Sequence[Interval]) -> str:
    """See `sustained_figure`; an empty string where nothing ran."""
    known = [one for one in intervals if one.samples.count]
    if not known:
        return ""
    first, last = (summarize(known[at].samples).p50_ns / 1e6 for at in (0, -1))
    end_s = max(one.start_s + one.seconds for one in intervals)
    told = f"latency over {number(end_s)} s: the median goes from {number(first)} to {number(last)} ms"
    with plotting():
        return page_svg(sustained_figure(intervals), told)


def sustained_figure(intervals: Sequence[Interval]) -> Figure:
    """Latency over time and, below it on the same axis, what could be measured of the device; throttling shaded."""
    known = [one for one in intervals if one.samples.count]
    end_s = max(one.start_s + one.seconds for one in intervals)
    unit, name = (60.0, "min") if end_s >= _MINUTES_FROM_S else (1.0, "s")
    states = [(one, interval_state(one)) for one in intervals]
    panels = [panel for panel in _PANELS if any(state[panel[0]] is not None for _, state in states)]
    height_in = 2.5 + 0.85 * len(panels) + 0.5
    with plotting():
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        rows = figure.subplots(
            1 + len(panels), 1, sharex=True, squeeze=False, height_ratios=[2.5, *[0.85] * len(panels)]
        )
        axes: list[Axes] = list(rows[:, 0])
        _latency(axes[0], known, unit)
        for below, (key, label, colour) in zip(axes[1:], panels, strict=True):
            steps = [(one, state[key]) for one, state in states]
            edges, values = _edges(steps, unit)
            below.plot(edges, values, color=colour, linewidth=1.6)
            below.set_ylabel(label, color=INK, rotation=0, ha="right", va="center", fontsize=8.5)
            low, high = (0.0, 100.0) if label.endswith("%") else (float(np.nanmin(values)), float(np.nanmax(values)))
            room = max(0.15 * (high - low), 0.02 * abs(high), 0.5)
            below.set_ylim(low - room, high + room)
            below.locator_params(axis="y", nbins=3)
        for one in axes:
            frame(one)
            one.set_xlim(0, end_s / unit)
        _throttling(axes, intervals, unit)
        axes[-1].set_xlabel(f"time since the run began, {name}", color=INK, fontsize=9)
        figure.align_ylabels(axes)
        legend_above(axes[0], figure)
    return figure


def energy_svg(energy: Energy) -> str:
    """Power in the idle window, then in the window of runs, each shaded, with its mean."""
    unit = energy.source.unit
    windows: list[tuple[str, EnergyWindow, str]] = []
    if not isinstance(energy.idle, Unavailable):
        windows.append(("idle", energy.idle, COLOURS[2]))
    windows.append((f"{energy.active.runs:.0f} runs", energy.active, COLOURS[0]))
    windows = [one for one in windows if one[1].window_s > 0]
    if not windows:
        return ""
    with plotting():
        figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
        widths = [window.window_s for _, window, _ in windows]
        rows = figure.subplots(1, len(windows), sharey=True, squeeze=False, width_ratios=widths)
        for axes, (name, window, colour) in zip(rows[0], windows, strict=True):
            points = power_points(window, unit)
            style = "steps-post" if unit == "J" else "default"
            axes.axvspan(0, window.window_s, color=colour, alpha=0.08, linewidth=0)
            axes.plot(
                [at / 1e9 for at, _ in points], [w for _, w in points], color=colour, linewidth=1.2, drawstyle=style
            )
            axes.axhline(window.power_w, color=colour, linewidth=1, linestyle="--")
            words = f"{name}: {number(window.power_w)} W over {number(window.window_s)} s"
            axes.text(0.5, 1.02, words, transform=axes.transAxes, color=colour, ha="center", va="bottom")
            axes.set_xlim(0, window.window_s)
            axes.set_xlabel("s", color=INK)
            frame(axes)
        rows[0][0].set_ylim(bottom=min(0.0, *(w for _, window, _ in windows for _, w in power_points(window, unit))))
        rows[0][0].set_ylabel("power, W", color=INK)
        told = ", ".join(f"{name} {number(window.power_w)} W" for name, window, _ in windows)
        return page_svg(figure, f"power over time: {told}")


def _latency(axes: Axes, known: Sequence[Interval], unit: float) -> None:
    summaries = [summarize(one.samples) for one in known]
    edges = [edge / unit for one in known for edge in (one.start_s, one.start_s + one.seconds)]
    for low, high, alpha, label in ((5, 95, 0.13, "p5 to p95"), (25, 75, 0.28, "middle half")):
        below, above = ([s.percentile_ns(p) / 1e6 for s in summaries for _ in range(2)] for p in (low, high))
        axes.fill_between(edges, below, above, color=COLOURS[0], alpha=alpha, linewidth=0, label=label)
    axes.plot(
        edges, [s.p50_ns / 1e6 for s in summaries for _ in range(2)], color=COLOURS[0], linewidth=2, label="median"
    )
    axes.set_ylabel("latency, ms", color=INK, rotation=0, ha="right", va="center", fontsize=8.5)
    axes.set_ylim(bottom=0)


def _edges(steps: Sequence[tuple[Interval, float | None]], unit: float) -> tuple[list[float], list[float]]:
    """A value holds through its interval; where it could not be measured there is a gap."""
    edges = [edge / unit for one, _ in steps for edge in (one.start_s, one.start_s + one.seconds)]
    return edges, [float("nan") if value is None else value for _, value in steps for _ in range(2)]


def _throttling(axes: Sequence[Axes], intervals: Sequence[Interval], unit: float) -> None:
    """Stretches in which the clock was held down: shaded through all plots, the reasons above."""
    for reasons, group in groupby(intervals, key=lambda one: one.throttled):
        if isinstance(reasons, Unavailable) or not reasons:
            continue
        some = list(group)
        begin, end = some[0].start_s / unit, (some[-1].start_s + some[-1].seconds) / unit
        for one in axes:
            one.axvspan(begin, end, color=COLOURS[1], alpha=0.1, linewidth=0, zorder=0)
        more = f" and {len(reasons) - _REASONS_SHOWN} more" if len(reasons) > _REASONS_SHOWN else ""
        axes[0].text(
            (begin + end) / 2, 1.02, printable(f"{', '.join(reasons[:_REASONS_SHOWN])}{more}"), color=COLOURS[1],
            transform=axes[0].get_xaxis_transform(), ha="center", va="bottom", fontsize=8.5, clip_on=False,
        )  # fmt: skip
