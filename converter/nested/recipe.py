"""How a form nests a network, as data and as a name.

NAME    = "nested-" LEVEL *( "-" LEVEL ) *( "-" OPTION )
LEVEL   = 1 to 100                          percent of every hidden axis' units, rising; the last is 100
OPTION  = "ordered"                         training cuts anywhere, not at the levels alone
        | "a1" | "a4" | "a8" | "a16"        widths are multiples of it; by default of 8, where the axis is one
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ferryman.converter.names import check_types, require_own_name
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

_PREFIX = "nested"
_ALIGNMENTS = (1, 4, 8, 16)
_LEVELS_LEAST, _LEVELS_MOST = 2, 16
_ALL = 100
NESTED_GRAMMAR = "nested-LEVEL-LEVEL-... with options, such as nested-25-50-100 or nested-50-100-ordered"


class Nesting(Record, kw_only=True):
    """What `nest` does."""

    levels: tuple[int, ...]
    """Percent of each hidden axis' units, rising to 100."""
    ordered: bool = False
    """Every unit comes before the next, so that any width can be cut; else those before a level before those after."""
    align: Literal[0, 1, 4, 8, 16] = 0
    """0: 8 where the axis is a multiple of it, else 1."""

    @property
    def name(self) -> str:
        """As the grammar above writes it."""
        options = ["ordered" * self.ordered, f"a{self.align}" if self.align else ""]
        return "-".join([_PREFIX, *map(str, self.levels), *filter(None, options)])


def is_nested(form: str) -> bool:
    """Whether a form's name is to be read by `parse_nesting`."""
    return form.partition("-")[0] == _PREFIX


def parse_nesting(name: str) -> Nesting:
    """Read a name.

    Raises:
        CallerError: it is none; the message says what there is.
    """
    if not is_nested(name):
        raise CallerError(f"form {name!r} is not known; nested forms begin with {_PREFIX}: {NESTED_GRAMMAR}")
    _, *words = name.split("-")
    levels = []
    while words and words[0].isascii() and words[0].isdigit():
        levels.append(int(words.pop(0)))
    found: dict[str, object] = {"levels": tuple(levels)}
    for word in words:
        if word == "ordered":
            found["ordered"] = True
        elif word in {f"a{align}" for align in _ALIGNMENTS}:
            found["align"] = int(word[1:])
        else:
            raise CallerError(f"form {name!r}: option {word!r} is not known; there are, in this order: ordered, a8")
    nesting = check_nesting(msgspec.convert(found, Nesting))
    require_own_name(name, nesting.name)
    return nesting


def check_nesting(nesting: Nesting) -> Nesting:
    """See that what a nesting says goes together.

    Raises:
        CallerError: it does not.
    """
    check_types(nesting, "nesting")
    levels = nesting.levels
    rising = all(0 < low < high for low, high in zip((0.5, *levels), levels, strict=False))
    if not _LEVELS_LEAST <= len(levels) <= _LEVELS_MOST or not rising or levels[-1] != _ALL:
        raise CallerError(
            f"a nested form has 2 to {_LEVELS_MOST} levels, rising percents of each hidden width of which the last is "
            f"100, such as nested-25-50-100; found {'-'.join(map(str, levels)) or 'none'}"
        )
    return nesting
