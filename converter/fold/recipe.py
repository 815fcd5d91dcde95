"""How a form folds a model, as data and as a name.

    NAME   = "folded-" GROUP *( "-" OPTION )  |  "merged"
    GROUP  = 1 to 99                       so many consecutive blocks share their weights; 1: none does
    OPTION = "drop" PERCENT                so many of the blocks are removed first, 1 to 90 percent
           | "similar"                     blocks matter by how unlike their outputs are to their inputs; by default
                                           by gates that are trained
           | "plain"                       no training afterwards

Options stand in that order. `merged`: layers between which nothing happens become one (see `merge`).
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from ferryman.converter.names import check_types, require_own_name
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

ImportanceName = Literal["gates", "similar"]
IMPORTANCES: tuple[str, ...] = get_args(ImportanceName)
MERGED = "merged"
FOLDED_GRAMMAR = "folded-GROUP with options, such as folded-3-drop25"
_PREFIX = "folded"
_GROUP = re.compile(r"[1-9]\d?", re.ASCII)
_DROP = re.compile(r"drop([1-9]\d?)", re.ASCII)
_GROUP_MAX = 99
_DROP_MAX = 90
_ORDER = "drop25 or another percent, similar, plain"


class Folding(Record, kw_only=True):
    """What `fold` does."""

    group: int
    """Consecutive blocks that share their weights."""
    drop: int = 0
    """Percent of the blocks that are removed first."""
    importance: ImportanceName = "gates"
    """gates: a gate in front of what each block adds, trained with the loader (without one: similar). similar: one less
    the cosine between a block's input and its output."""
    plain: bool = False

    @property
    def name(self) -> str:
        """As the grammar above writes it."""
        options = [
            f"drop{self.drop}" if self.drop else "",
            self.importance if self.importance != "gates" else "",
            "plain" * self.plain,
        ]
        return "-".join([_PREFIX, str(self.group), *filter(None, options)])


class Merging(Record):
    """What `merge` does: there is nothing to choose."""


def is_folded(form: str) -> bool:
    """Whether a form's name is to be read by `parse_folding`."""
    return form.partition("-")[0] == _PREFIX


def parse_folding(name: str) -> Folding:
    """Read a name.

    Raises:
        CallerError: it is none; the message says what there is.
    """
    if not is_folded(name):
        raise CallerError(f"form {name!r} is not known; folded forms begin with {_PREFIX}: {FOLDED_GRAMMAR}")
    _, *options = name.split("-")
    group = options.pop(0) if options else ""
    if _GROUP.fullmatch(group) is None:
        raise CallerError(
            f"form {name!r} needs its group next: how many consecutive blocks share their weights, 1 to {_GROUP_MAX}; "
            "for example folded-3"
        )
    found: dict[str, object] = {"group": int(group)}
    for option in options:
        if read := _DROP.fullmatch(option):
            found["drop"] = int(read[1])
        elif option in IMPORTANCES and option != "gates":
            found["importance"] = option
        elif option == "plain":
            found["plain"] = True
        else:
            raise CallerError(f"form {name!r}: option {option!r} is not known; there are, in this order: {_ORDER}")
    folding = check_folding(msgspec.convert(found, Folding))
    require_own_name(name, folding.name)
    return folding


def check_folding(folding: Folding) -> Folding:
    """See that what a folding says goes together.

    Raises:
        CallerError: it does not.
    """
    check_types(folding, "folding")
    if isinstance(folding.group, bool) or not 1 <= folding.group <= _GROUP_MAX:
        raise CallerError(f"a folding's group is 1 to {_GROUP_MAX} blocks, found {folding.group}")
    if isinstance(folding.drop, bool) or not 0 <= folding.drop <= _DROP_MAX:
        raise CallerError(f"a folding drops 0 to {_DROP_MAX} percent of the blocks, found {folding.drop}")
    if folding.group == 1 and not folding.drop:
        raise CallerError(f"form {folding.name!r} does nothing: have 2 or more blocks share weights, or drop some")
    return folding
