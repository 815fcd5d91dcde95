"""How a form makes layers low-rank, as data and as a name.

    NAME   = "lowrank-" BUDGET [ "-" HOW ]
    BUDGET = NUMBER UNIT                            a whole number, 1 to 99
    UNIT   = "energy"                               percent of what each layer gives that is kept, at least
           | "flops" | "bytes" | "latency"          percent of the dense model's that is kept, at most
           | "db"                                   what the model's outputs hold against the dense model's, at least
    HOW    = "learned"                              ranks are learned: in order of importance, by ordered dropout
           | "trp"                                  the dense model is trained towards low ranks first

Without HOW the trained weights are decomposed as they are.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from ferryman.converter.names import check_types, require_own_name
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

Unit = Literal["energy", "flops", "bytes", "latency", "db"]
How = Literal["decomposed", "learned", "trp"]
UNITS: tuple[str, ...] = get_args(Unit)
HOWS: tuple[str, ...] = get_args(How)
_PREFIX = "lowrank"
_MOST = 99
_BUDGET = re.compile(rf"(\d{{1,2}})({'|'.join(UNITS)})", re.ASCII)
LOW_RANK_GRAMMAR = "lowrank-BUDGET with an option, such as lowrank-50flops, lowrank-95energy or lowrank-60bytes-trp"


class LowRank(Record, kw_only=True):
    """What `factorize` does."""

    amount: int
    """Percent, or dB."""
    unit: Unit
    """energy: the square of what a layer gives, summed over the data. flops: multiplications of one call of the
    example. bytes: of weights and buffers as they are stored now. latency: seconds that a measurement gives. db: of
    all outputs together."""
    how: How = "decomposed"

    @property
    def name(self) -> str:
        """As the grammar above writes it."""
        how = "" if self.how == "decomposed" else self.how
        return "-".join([_PREFIX, f"{self.amount}{self.unit}", *filter(None, [how])])

    @property
    def needs_data(self) -> bool:
        """Whether there must be a loader."""
        return self.how != "decomposed"


def is_low_rank(form: str) -> bool:
    """Whether a form's name is to be read by `parse_low_rank`."""
    return form.partition("-")[0] == _PREFIX


def parse_low_rank(name: str) -> LowRank:
    """Read a name.

    Raises:
        CallerError: it is none; the message says what there is.
    """
    if not is_low_rank(name):
        raise CallerError(f"form {name!r} is not known; low-rank forms begin with {_PREFIX}: {LOW_RANK_GRAMMAR}")
    _, *options = name.split("-")
    read = _BUDGET.fullmatch(options.pop(0) if options else "")
    if read is None or not int(read[1]) or read[1].startswith("0"):
        raise CallerError(
            f"form {name!r} needs its budget next: a number, 1 to 99, and one of {', '.join(UNITS)}; for example "
            "lowrank-50flops, which keeps half of the multiplications at most"
        )
    found: dict[str, object] = {"amount": int(read[1]), "unit": read[2]}
    for option in options:
        if option not in HOWS or option == "decomposed":
            raise CallerError(f"form {name!r}: option {option!r} is not known; there are learned or trp")
        if found.setdefault("how", option) != option:
            raise CallerError(f"form {name!r}: ranks are learned or trained for by trp, not both")
    recipe = check_low_rank(msgspec.convert(found, LowRank))
    require_own_name(name, recipe.name)
    return recipe


def check_low_rank(recipe: LowRank) -> LowRank:
    """See that what a recipe says is possible.

    Raises:
        CallerError: it is not.
    """
    check_types(recipe, "low-rank recipe")
    if isinstance(recipe.amount, bool) or not 1 <= recipe.amount <= _MOST:
        raise CallerError(f"a low-rank recipe's number is 1 to 99, found {recipe.amount}")
    return recipe
