"""How many weights of a model are zero, and how they become so, as data and as a name.

    NAME     = "sparse-" AMOUNT *( "-" OPTION )
    AMOUNT   = PERCENT             of the pruned layers' weights are zero, all layers taken together
             | N ":" M             at most N of every M neighbours along the inputs are not zero; M is 4 or 8
    OPTION   = "layer"             each layer has that percent of zeros by itself
             | "shrink"            weights shrink step by step to zero (soft_shrinkage), instead of being cut off by
                                   magnitude as the share of zeros grows (gradual)

Options stand in that order. Neighbours are in the depth order of the operator: position = tap * inputs + input.
"""

from __future__ import annotations

import re

import msgspec

from ferryman.converter.names import check_types, require_own_name
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

_BASE = "sparse"
_PERCENT = re.compile(r"\d{1,2}(?:\.\d{1,3})?", re.ASCII)
_PATTERN = re.compile(r"(\d):(\d)", re.ASCII)
_WIDTHS = (4, 8)
_WHOLE = 100
_DIGITS = 3
GRAMMAR = "sparse-PERCENT or sparse-N:M with options, such as sparse-90, sparse-2:4 or sparse-95-layer-shrink"
_AMOUNTS = "1 to 99.999 (percent that is zero), or N:M (at most N of every M are not zero, M is 4 or 8)"
_ORDER = "layer, shrink"


class Pattern(Record, kw_only=True):
    """What holds among neighbours along the inputs."""

    kept: int
    """At most so many are not zero ..."""
    of: int
    """... of every so many; of the last ones of a row there may be fewer."""

    @property
    def name(self) -> str:
        """As the grammar above writes it."""
        return f"{self.kept}:{self.of}"


class Sparsity(Record, kw_only=True):
    """What `sparsify` does; either `percent` or `pattern`."""

    percent: float | None = None
    """Of the weights of the pruned layers, that is zero."""
    pattern: Pattern | None = None
    layer: bool = False
    """The percent holds in each layer; else layers that bear more have more of the zeros."""
    shrink: bool = False
    layers: dict[str, float] = msgspec.field(default_factory=dict)
    """Pattern of module paths (fnmatch) -> percent of zeros in each layer that it matches, where it differs; 0: it
    stays dense. Takes in what is left dense by default. The first pattern that matches counts."""

    @property
    def name(self) -> str:
        """As the grammar above writes it; `layers` have no part in it."""
        amount = self.pattern.name if self.pattern else f"{self.percent:.{_DIGITS}f}".rstrip("0").rstrip(".")
        return "-".join([_BASE, amount, *filter(None, ["layer" * self.layer, "shrink" * self.shrink])])

    @property
    def share(self) -> float:
        """Of zeros, 0..1."""
        if self.pattern:
            return 1 - self.pattern.kept / self.pattern.of
        return (self.percent or 0) / _WHOLE


def is_sparse(form: str) -> bool:
    """Whether a name is to be read by `parse_sparsity`."""
    return form.partition("-")[0] == _BASE


def parse_sparsity(name: str) -> Sparsity:
    """Read a name.

    Raises:
        CallerError: it is none; the message says what there is.
    """
    if not is_sparse(name):
        raise CallerError(f"form {name!r} is not known; there are: {GRAMMAR}")
    _, _, rest = name.partition("-")
    amount, *options = rest.split("-")
    found: dict[str, object] = {}
    if read := _PATTERN.fullmatch(amount):
        found["pattern"] = {"kept": int(read[1]), "of": int(read[2])}
    elif _PERCENT.fullmatch(amount):
        found["percent"] = float(amount)
    else:
        raise CallerError(f"form {name!r} needs its amount next: {_AMOUNTS}; {GRAMMAR}")
    for option in options:
        if option not in ("layer", "shrink"):
            raise CallerError(f"form {name!r}: option {option!r} is not known; there are, in this order: {_ORDER}")
        found[option] = True
    sparsity = check_sparsity(msgspec.convert(found, Sparsity))
    require_own_name(name, sparsity.name)
    return sparsity


def check_sparsity(sparsity: Sparsity) -> Sparsity:
    """See that what a recipe says goes together.

    Raises:
        CallerError: it does not.
    """
    check_types(sparsity, "sparsity")
    if (sparsity.percent is None) == (sparsity.pattern is None):
        raise CallerError("a sparsity has either percent or pattern, found both or neither")
    if sparsity.percent is not None and not (
        1 <= sparsity.percent < _WHOLE and round(sparsity.percent, _DIGITS) == sparsity.percent
    ):
        raise CallerError(
            f"a percent of zeros is 1 to below 100, with at most {_DIGITS} digits after the point, found "
            f"{sparsity.percent}"
        )
    if sparsity.pattern is not None:
        kept, of = sparsity.pattern.kept, sparsity.pattern.of
        if of not in _WIDTHS or not 1 <= kept < of:
            raise CallerError(f"a pattern is N:4 or N:8 with N above 0 and below the other, found {kept}:{of}")
        if sparsity.layer:
            better = sparsity.name.replace("-layer", "")
            raise CallerError(f"form {sparsity.name!r}: a pattern holds in each layer anyway; write {better!r}")
    for pattern, percent in sparsity.layers.items():
        if not 0 <= percent < _WHOLE:
            raise CallerError(f"layers[{pattern!r}] is 0 to below 100 percent of zeros, found {percent:g}")
    return sparsity
