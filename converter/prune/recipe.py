"""How a form prunes a model, as data and as a name.

    NAME      = "pruned-" BUDGET *( "-" OPTION )
    BUDGET    = PERCENT ( "flops" | "bytes" | "latency" )  at most so much of the dense model's is kept, 1 to 99
    OPTION    = CRITERION                                  which units matter least; by default those of small weights
              | "erase"                                    whole residual branches may go as well
              | "a4" | "a8" | "a16"                        pruned widths are multiples of it
              | "plain"                                    what is gone is not made good in the next layer's weights
              | "oto"                                      training itself brings what is to go to zero
    CRITERION = "taylor" | "lasso" | "lrp" | "mfac" | "trajectory"

Options stand in that order. Without an "a" option widths are multiples of 8 where the dense width is one,
of 16 or more.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from ferryman.converter.names import check_types, require_own_name
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

Unit = Literal["flops", "bytes", "latency"]
CriterionName = Literal["magnitude", "taylor", "lasso", "lrp", "mfac", "trajectory"]
UNITS: tuple[str, ...] = get_args(Unit)
CRITERIA: tuple[str, ...] = get_args(CriterionName)
DATA_FREE = ("magnitude", "lasso")
"""Criteria that look at weights alone; the others need a loader."""
_ALIGNMENTS = (4, 8, 16)
_PREFIX = "pruned"
_BUDGET = re.compile(rf"(\d{{1,2}})({'|'.join(UNITS)})", re.ASCII)
PRUNED_GRAMMAR = "pruned-BUDGET with options, such as pruned-50flops or pruned-40bytes-taylor-erase"
_ORDER = "taylor, lasso, lrp, mfac or trajectory, erase, a4, a8 or a16, plain, oto"


class Pruning(Record, kw_only=True):
    """What `prune` does."""

    percent: int
    """Of the dense model's that is kept, at most."""
    unit: Unit
    """flops: multiplications of one call of the example. bytes: of weights and buffers as they are stored now. latency:
    seconds that a measurement gives."""
    criterion: CriterionName = "magnitude"
    erase: bool = False
    align: Literal[0, 4, 8, 16] = 0
    """0: 8 where the dense width is a multiple of it, of 16 or more."""
    plain: bool = False
    oto: bool = False

    @property
    def name(self) -> str:
        """As the grammar above writes it."""
        options = [
            self.criterion if self.criterion != "magnitude" else "",
            "erase" * self.erase,
            f"a{self.align}" if self.align else "",
            "plain" * self.plain,
            "oto" * self.oto,
        ]
        return "-".join([_PREFIX, f"{self.percent}{self.unit}", *filter(None, options)])

    @property
    def needs_data(self) -> bool:
        """Whether there must be a loader."""
        return self.oto or self.criterion not in DATA_FREE


def is_pruned(form: str) -> bool:
    """Whether a form's name is to be read by `parse_pruning`."""
    return form.partition("-")[0] == _PREFIX


def parse_pruning(name: str) -> Pruning:
    """Read a name.

    Raises:
        CallerError: it is none; the message says what there is.
    """
    if not is_pruned(name):
        raise CallerError(f"form {name!r} is not known; pruned forms begin with {_PREFIX}: {PRUNED_GRAMMAR}")
    _, *options = name.split("-")
    read = _BUDGET.fullmatch(options.pop(0) if options else "")
    if read is None or not int(read[1]) or read[1].startswith("0"):
        raise CallerError(
            f"form {name!r} needs its budget next: 1 to 99 percent of the dense model's {', '.join(UNITS)}, which is "
            "kept at most; for example pruned-50flops"
        )
    found: dict[str, object] = {"percent": int(read[1]), "unit": read[2]}
    for option in options:
        if option in CRITERIA and option != "magnitude":
            found["criterion"] = option
        elif option in ("erase", "plain", "oto"):
            found[option] = True
        elif option in {f"a{align}" for align in _ALIGNMENTS}:
            found["align"] = int(option[1:])
        else:
            raise CallerError(f"form {name!r}: option {option!r} is not known; there are, in this order: {_ORDER}")
    pruning = check_pruning(msgspec.convert(found, Pruning))
    require_own_name(name, pruning.name)
    return pruning


def check_pruning(pruning: Pruning) -> Pruning:
    """See that what a pruning says goes together.

    Raises:
        CallerError: it does not.
    """
    check_types(pruning, "pruning")
    if isinstance(pruning.percent, bool) or not 1 <= pruning.percent <= 99:  # noqa: PLR2004  # percent
        raise CallerError(f"a pruning keeps 1 to 99 percent, found {pruning.percent}")
    if pruning.oto and pruning.plain:
        raise CallerError(
            f"form {pruning.name!r}: with oto what goes is zero, and there is nothing to make good; leave out plain"
        )
    return pruning
