"""Numbers and long texts in lines for people."""

from __future__ import annotations

import re

SHOWN_CHARS = 100


def counted(number: int, what: str) -> str:
    """`1 device`, `1,000 devices`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def shorten(text: str, most: int = SHOWN_CHARS) -> str:
    """Its beginning, where it is too long for a line."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def by_number(name: str) -> list[tuple[int, str]]:
    """Sorts `digits/2` before `digits/10`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]
