"""The forms a model can take: what each does to a captured program, and the bar its artifacts must hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ferryman.converter.backends.base import Lowered
from ferryman.converter.capture import Captured
from ferryman.converter.lower_binary import lower_binary
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import PLAIN, Recipe, check_form, check_recipe, parse_recipe
from ferryman.converter.sparse.lower import Fitted, lower_sparse
from ferryman.converter.verify import Interpreter
from ferryman.runtime.contracts.manifest import LayerForm, RuntimeName

Batches = Sequence[Sequence[torch.Tensor]]
Rewrite = Callable[[Captured, Batches], tuple[Captured, tuple[LayerForm, ...]]]
Fit = Callable[[Captured, RuntimeName, Sequence[Interpreter], Lowered, Callable[[str], None]], Fitted]


@dataclass(frozen=True)
class Form:
    """One way for a model to be."""

    name: str
    sqnr_min_db: float
    """Bar against eager. Where a float layer's last bit decides a sign, a binary network answers a little differently;
    each of its operators is exact. Quantized forms lose what their bits cannot hold."""
    rewrite: Rewrite
    asked_db: float = 0.0
    """What its recipe's budget asks of rounding weights; 0: nothing."""
    rounds: bool = False
    """The rewritten program, not eager, is what its artifacts compute."""
    fit: Fit | None = None
    """What else it does for each runtime, by measuring there beside the program as it is."""


def find_form(wanted: str | Recipe) -> Form:
    """A form by its name, or the one that a recipe makes.

    Raises:
        CallerError: the name is none.
    """
    if isinstance(wanted, str) and wanted in _PLAIN:
        return _PLAIN[wanted]
    if isinstance(wanted, str):
        check_form(wanted)
        wanted = parse_recipe(wanted)
    check_recipe(wanted)
    asked_db = wanted.budget.value if wanted.budget and wanted.budget.unit == "db" else 0.0
    rewrite = partial(_quantized, recipe=wanted)
    return Form(wanted.name, _QUANTIZED_MIN_DB[wanted.bits], rewrite, asked_db=asked_db, rounds=True)


def _quantized(captured: Captured, batches: Batches, *, recipe: Recipe) -> tuple[Captured, tuple[LayerForm, ...]]:
    return lower_quantized(captured, recipe, batches)


_PLAIN = {
    form.name: form
    for form in (
        Form("fp32", 60.0, lambda captured, _: (captured, ())),
        Form("binary", 30.0, lambda captured, _: lower_binary(captured)),
        Form("sparse", 60.0, lambda captured, _: (captured, ()), fit=lower_sparse),
    )
}
assert tuple(_PLAIN) == PLAIN  # noqa: S101  # the names that the command line knows without torch
_QUANTIZED_MIN_DB = {8: 20.0, 4: 10.0, 2: 5.0}
