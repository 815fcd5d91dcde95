"""Numbers that others wrote: how long and how large one may be before it is nonsense."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

_DIGITS = re.compile(r"[0-9]{1,15}")
"""More than bytes, seconds and process numbers take; `int` refuses thousands of them, and floats are exact below."""
_YEAR_2242_S = 1 << 33
_DAY_NS = 86_400 * 10**9

Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
"""Of memory or storage; nothing has an exbibyte."""
Took = Annotated[int, msgspec.Meta(ge=1, le=_DAY_NS)]
"""Nanoseconds that something took: never none, and nothing of ours may take a day."""
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
"""Of one dimension."""
Small = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
"""Cores, versions."""
Megahertz = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Version = Annotated[str, msgspec.Meta(max_length=64)]


def whole(text: str) -> int | None:
    """The whole number that a text is; None: it is none, or longer than any that means something."""
    return int(text) if _DIGITS.fullmatch(text) else None


def epoch_ns(text: str) -> int:
    """What `date +%s` says, in nanoseconds; 0 where it tells no time."""
    seconds = whole(text.strip())
    return 0 if seconds is None or seconds > _YEAR_2242_S else seconds * 10**9
