"""Tables for a terminal: through `rich` where it is installed, plain where not; too wide ones are folded."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import util
from typing import TYPE_CHECKING

from ferryman.profiler.report_tables import Grid, Group, Row
from ferryman.profiler.report_words import MISSING, NOT_ASKED, display_width, short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_GAP = 2
_INDENT = " " * _GAP
_KEY_MIN = 8


def show_grid(grid: Grid, width: int, *, colour: bool) -> str:
    """A title, the table in as many parts as the width asks for, its notes."""
    if util.find_spec("rich") is None:
        parts = [_plain(part, width) for part in fold(grid, width)]
        return "\n".join([*_wrapped(_titled(grid), width), *parts, *_wrapped(grid.notes, width, _INDENT)])
    return _rich(grid, width, colour=colour)


def show_lines(title: str, lines: Sequence[str], width: int, *, colour: bool, strong: bool = False) -> str:
    """A heading and lines below it, wrapped and indented."""
    if util.find_spec("rich") is None:
        return "\n".join([*_wrapped([title], width), *_wrapped(lines, width, _INDENT)])
    from rich.text import Text

    return _printed([Text(title, style="bold cyan" if strong else "bold"), *_notes(lines)], width, colour=colour)


def fold(grid: Grid, width: int) -> list[Grid]:
    """Parts of at most `width` columns, each with the keys in front; a group that alone is too wide is split."""
    whole = max(width + _GAP - sum(w + _GAP for w in _key_widths(grid.keys, width)), 1)
    parts: list[list[Group]] = [[]]
    room = whole
    for group in _narrow(grid.groups, whole):
        if parts[-1] and _width(group) > room:
            parts.append([])
            room = whole
        parts[-1].append(group)
        room -= _width(group)
    return [Grid("", grid.keys, tuple(part)) for part in parts]


def _narrow(groups: Sequence[Group], width: int) -> Iterator[Group]:
    """Groups that fit, or single columns of those that do not."""
    for group in groups:
        if _width(group) <= width:
            yield group
            continue
        for column, head in enumerate(group.heads):
            yield replace(group, heads=(head,), rows=tuple((row[column],) for row in group.rows))


def _widths(group: Group) -> list[int]:
    lines = [*zip(*(head.split("\n") for head in group.heads), strict=True), *group.rows]
    return [max(map(display_width, column)) for column in zip(*lines, strict=True)]


def _width(group: Group) -> int:
    return sum(width + _GAP for width in _widths(group))


def _key_widths(keys: Group, width: int) -> list[int]:
    """Longer names go on in the next line, so that they take half of the width at most."""
    widths = _widths(keys)
    if sum(w + _GAP for w in widths) <= width // 2:
        return widths
    return [min(w, max(width // 2 // len(widths) - _GAP, _KEY_MIN)) for w in widths]


def _titled(grid: Grid) -> list[str]:
    return [grid.title] if grid.title else []


def _wrapped(lines: Sequence[str], width: int, indent: str = "") -> list[str]:
    return [
        part for line in lines for part in textwrap.wrap(line, width, initial_indent=indent, subsequent_indent=indent)
    ]


def _plain(grid: Grid, width: int) -> str:
    groups = (grid.keys, *grid.groups)
    keys = _key_widths(grid.keys, width)
    widths = [*keys, *(width for group in grid.groups for width in _widths(group))]
    texts = [group.text for group in groups for _ in group.heads]
    heads: list[Row] = [*zip(*(head.split("\n") for head in grid.heads()), strict=True)]
    lines = []
    for row in [*(head for head in heads if any(head)), *grid.rows()]:
        cells = []
        for whole, column, text in zip(row, widths, texts, strict=True):
            cell = whole if display_width(whole) <= column else short(whole, column)
            pad = " " * (column - display_width(cell))
            cells.append(cell + pad if text else pad + cell)
        lines.append((" " * _GAP).join(cells).rstrip())
    return "\n".join(lines)


def _rich(grid: Grid, width: int, *, colour: bool) -> str:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = [Text(title, style="bold") for title in _titled(grid)]
    for part in fold(grid, width):
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold"
        )  # fmt: skip
        keys: list[int | None] = [*_key_widths(part.keys, width)]
        for group in (part.keys, *part.groups):
            for head in group.heads:
                table.add_column(
                    Text(head.strip("\n")),
                    justify="left" if group.text else "right",
                    vertical="top",
                    no_wrap=not group.text,
                    overflow="fold",
                    max_width=keys.pop(0) if keys else None,
                )
        texts = [group.text for group in (part.keys, *part.groups) for _ in group.heads]
        for row in part.rows():
            table.add_row(*(_cell(cell, text=text) for cell, text in zip(row, texts, strict=True)))
        shown += [table, Text()]
    return _printed([*shown[:-1], *_notes(grid.notes)], width, colour=colour)


def _cell(cell: str, *, text: bool) -> Text:
    from rich.text import Text

    loud = text and any(flag in cell for flag in ("undelegated", "layout copy"))
    return Text(cell, style="dim" if cell in {MISSING, NOT_ASKED} else "yellow" if loud else "")


def _notes(lines: Sequence[str]) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    return [Padding(Text(line, style="dim"), (0, 0, 0, _GAP)) for line in lines]


def _printed(parts: Sequence[RenderableType], width: int, *, colour: bool) -> str:
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="standard" if colour else None, highlight=False,
        markup=False, emoji=False, legacy_windows=False, _environ={},
    )  # fmt: skip
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
