"""How a form quantizes a model, as data and as a name.

    NAME     = BASE *( "-" OPTION )
    BASE     = "int8" | "4bit" | "2bit"                    bits of weights; activations have 8
             | "mixed-" BUDGET                             8, 4 or 2, layer by layer as loses least (see allocate)
    BUDGET   = NUMBER "b"                                  at most so many bits a weight on average, scales not counted
             | NUMBER "db"                                 the smallest that rounding weights leaves at so many dB
    OPTION   = "dynamic"                                   activations by what each input holds, not by calibration
             | "blocks"                                    every 32 of linear layers have a scale; attention, GELU and
                                                           layer norms are taken too (see blocks)
             | "g32" | "g64" | "g128" | "channel"          inputs that share a scale, of linear layers and embeddings
             | "asym"                                      with a zero point to each scale, of the same
             | "minmax" | "percentile" | "entropy" | "mse" how far activations are taken to range
             | "gptq"                                      weights rounded with error correction
             | "equalize"                                  ranges of neighbouring channels evened out first
             | "sparse"                                    weights that are zero stay zero, and are not stored where
                                                           that is smaller

Options stand in that order; those that are the base's defaults are left out.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from ferryman.converter.names import check_types, require_own_name
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

Observer = Literal["minmax", "percentile", "entropy", "mse"]
OBSERVERS: tuple[str, ...] = get_args(Observer)
_BASES = {"int8": 8, "4bit": 4, "2bit": 2}
_GROUPS = (32, 64, 128)
_GROUP_OF = {8: 0, 4: 32, 2: 32}
_BLOCK = 32
_MIXED = "mixed"
_MIXED_BITS = 2
_BUDGET = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)(b|db)", re.ASCII)
_BUDGET_ENDS = {"b": (2, 8), "db": (1, 100)}
_COMPRESSED = ("sparse-", "pruned-", "folded-", "merged", "lowrank-", "nested-")
PLAIN = ("fp32", "binary", "sparse")
"""Forms without a recipe."""
GRAMMAR = "int8, 4bit, 2bit or mixed-BUDGET with options, such as 4bit-g64-asym-gptq or mixed-3.5b-gptq"
_ORDER = "dynamic, blocks, g32, g64, g128 or channel, asym, minmax, percentile, entropy or mse, gptq, equalize, sparse"


class Budget(Record, kw_only=True):
    """What a choice of bits layer by layer must hold."""

    value: float
    unit: Literal["b", "db"]
    """b: bits of a weight at most, on average over the quantized layers, scales not counted. db: signal to the sum of
    what each layer's rounded weights alone make the outputs err by, at least; activations not counted."""

    @property
    def name(self) -> str:
        """As the grammar above writes it."""
        return f"{str(self.value).removesuffix('.0')}{self.unit}"


class Recipe(Record, kw_only=True):
    """What `quantize` does."""

    bits: Literal[8, 4, 2]
    """Of a weight; with a budget the fewest that a layer may get."""
    group: int
    """Inputs that share a scale, of linear layers and embeddings; 0: all of an output channel."""
    dynamic: bool = False
    """Convolutions scale their input by its largest magnitude, image by image; linear layers always do, row by row."""
    blocks: bool = False
    """Every 32 activations of a linear layer share a scale, as its weights do (`group` is 32), and the rest of a
    transformer is taken as well (Dong et al. 2023, "blockwise compression")."""
    asymmetric: bool = False
    observer: Observer = "mse"
    gptq: bool = False
    equalize: bool = False
    sparse: bool = False
    """Layers are held without their zeros, the model's own and those that rounding makes, where that is smaller and
    costs little time."""
    budget: Budget | None = None
    """Bits are chosen layer by layer within it."""
    layers: dict[str, Literal[32, 8, 4, 2]] = msgspec.field(default_factory=dict)
    """Module path -> bits of its weights where they differ, whatever the budget; 32: it stays in float."""

    @property
    def name(self) -> str:
        """As the grammar above writes it; `layers` have no part in it."""
        base = next(base for base, bits in _BASES.items() if bits == self.bits)
        base = f"{_MIXED}-{self.budget.name}" if self.budget else base
        options = [
            "dynamic" * self.dynamic,
            "blocks" * self.blocks,
            "" if self.group == self._default_group else f"g{self.group}" if self.group else "channel",
            "asym" * self.asymmetric,
            self.observer if self.observer != "mse" else "",
            "gptq" * self.gptq,
            "equalize" * self.equalize,
            "sparse" * self.sparse,
        ]
        return "-".join([base, *filter(None, options)])

    @property
    def _default_group(self) -> int:
        return _BLOCK if self.blocks else _GROUP_OF[self.bits]


def is_quantized(form: str) -> bool:
    """Whether a form's name is to be read by `parse_recipe`."""
    return form.partition("-")[0] in {*_BASES, _MIXED}


def check_form(name: str) -> None:
    """See that a name is one of a form, without loading torch.

    Raises:
        CallerError: it is none.
    """
    if name in PLAIN:
        return
    if name.startswith(_COMPRESSED):
        raise CallerError(
            f"form {name!r} is made before: ferryman.compress(model, {name!r}, ...) in Python; what it gives is "
            "converted as fp32 or any other form, as sparse or 4bit-sparse and the like if its weights hold zeros"
        )
    if not is_quantized(name):
        raise CallerError(f"form {name!r} is not known; there are: {', '.join(PLAIN)}, and {GRAMMAR}")
    parse_recipe(name)


def parse_recipe(name: str) -> Recipe:
    """Read a name.

    Raises:
        CallerError: it is none; the message says what there is.
    """
    base, *options = name.split("-")
    if not is_quantized(name):
        raise CallerError(f"form {name!r} is not known; quantized forms begin with {', '.join(_BASES)} or {_MIXED}")
    budget = _read_budget(name, options.pop(0) if options else "") if base == _MIXED else None
    bits = _BASES.get(base, _MIXED_BITS)
    found: dict[str, object] = {"bits": bits, "group": _GROUP_OF[bits], "budget": budget}
    for option in options:
        if option in ("dynamic", "blocks", "gptq", "equalize", "sparse"):
            found[option] = True
            found |= {"group": _BLOCK} if option == "blocks" else {}
        elif option == "asym":
            found["asymmetric"] = True
        elif option in OBSERVERS:
            found["observer"] = option
        elif option == "channel" or option in {f"g{group}" for group in _GROUPS}:
            found["group"] = 0 if option == "channel" else int(option[1:])
        else:
            raise CallerError(f"form {name!r}: option {option!r} is not known; there are, in this order: {_ORDER}")
    recipe = check_recipe(msgspec.convert(found, Recipe))
    require_own_name(name, recipe.name)
    return recipe


def check_recipe(recipe: Recipe) -> Recipe:
    """See that what a recipe says goes together.

    Raises:
        CallerError: it does not.
    """
    check_types(recipe, "recipe")
    if isinstance(recipe.group, bool) or recipe.group not in (0, *_GROUPS):
        raise CallerError(f"a recipe's group is 0, {', '.join(map(str, _GROUPS))}; found {recipe.group}")
    if recipe.budget:
        low, high = _BUDGET_ENDS[recipe.budget.unit]
        if not low <= recipe.budget.value <= high:
            raise CallerError(f"a budget in {recipe.budget.unit} is {low} to {high}, found {recipe.budget.value}")
    if recipe.dynamic and recipe.observer != "mse":
        raise CallerError(f"form {recipe.name!r}: with dynamic activations there is nothing for an observer to find")
    if recipe.sparse and recipe.asymmetric:
        raise CallerError(
            f"form {recipe.name!r}: with zero points a weight of zero is none in the artifact; leave out asym"
        )
    if recipe.blocks and recipe.group != _BLOCK:
        raise CallerError(f"form {recipe.name!r}: blocks of activations go with groups of {_BLOCK} weights")
    return recipe


def _read_budget(form: str, written: str) -> Budget:
    read = _BUDGET.fullmatch(written)
    value, unit = (float(read[1]), read[2]) if read else (0.0, "b")
    low, high = _BUDGET_ENDS[unit]
    if not low <= value <= high:
        raise CallerError(
            f"form {form!r} needs its budget next: 2b to 8b, bits of a weight on average, or 1db to 100db, what "
            "rounding weights leaves; for example mixed-3.5b or mixed-30db"
        )
    return msgspec.convert({"value": value, "unit": unit}, Budget)
