"""Measurements for people: tables for a terminal, and a page that stands alone (host side; ferryman[collector]).

Names in a measurement come from devices and packages: they are escaped, and characters that could steer a terminal
or break the page's encoding are replaced.
"""

from __future__ import annotations

from dataclasses import replace

from ferryman.profiler.report_details import detail_grids
from ferryman.profiler.report_tables import Found, about, by_device, by_package, main_grid, missing_notes, small_grids
from ferryman.profiler.report_text import show_grid, show_lines
from ferryman.profiler.report_words import label, printable

WIDTH = 160
_ROWS_MAX = 16


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
