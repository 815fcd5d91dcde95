"""Quantization-aware training: weights that end on the very grid that a quantized form rounds to.

Steps of few bits are learned with the weights (LSQ: Esser et al., Learned Step Size Quantization, ICLR 2020); those of
8 bits, and grids with zero points, follow the largest weights. Activations stay floats meanwhile: 8 bits of them lose
little, and calibration finds their scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional
from torch.nn.utils import parametrize

from ferryman.converter.capture import capture
from ferryman.converter.compress.binary_policy import Decision, Example, in_eval_mode
from ferryman.converter.compress.training import Batch, FineTuned, Progress, copy_model, train
from ferryman.converter.functional import functional_module
from ferryman.converter.layer_calls import path_of
from ferryman.converter.quantize.layers import Layer
from ferryman.converter.quantize.lower import plan_layers
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quantize.rounding import grid_of
from ferryman.converter.quantize.sensitivity import FLOAT_BITS
from ferryman.converter.quantize.weights import Grid
from ferryman.converter.recognise import Constants
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError

aten = torch.ops.aten
_FORMS: dict[int, Literal["int8", "4bit", "2bit"]] = {8: "int8", 4: "4bit", 2: "2bit"}
_WHOLE_BITS = 8
_SETTLING = 8
_LEAST = 1e-4
"""Of a layer's largest weight: no step begins smaller, also where there are only zeros."""


def fine_tune_quantized(
    model: nn.Module,
    recipe: Recipe,
    loader: Iterable[Batch],
    *,
    example: Example,
    epochs: int,
    lr: float,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
) -> tuple[FineTuned, tuple[Decision, ...]]:
    """Copy a trained model and train the copy through the rounding of its weights.

    Which layers, and to how many bits, is what converting to the same form decides. A weight tensor that two layers
    read in different ways (once turned around, say) is left for converting to round.

    Args:
        model: trained; not changed.
        recipe: the form.
        loader: (inputs, targets) batches, every time it is iterated over.
        example: positional inputs of one call.
        epochs: at least 1.
        lr: of the first epoch; a step changes by this much of itself at most, and weights by this much.
        teacher: as `train` takes it.
        progress: told epoch (from 1), epochs and mean loss.

    Returns:
        The trained copy with its rounded weights, in eval mode, and what was decided on each convolution, linear layer
        and embedding, in the order of calls.

    Raises:
        CallerError: equalization or a budget is asked for, or as `train`.
        ModelError: the model cannot be captured, or nothing of it can be quantized.
    """
    if recipe.equalize:
        raise CallerError(
            f"form {recipe.name}: equalizing channels would move trained weights off their grid; leave out equalize"
        )
    if recipe.budget:
        raise CallerError(f"form {recipe.name}: bits are chosen when it is converted; train one of the bases instead")
    made = copy_model(model)
    decisions, readings = _plan(made, recipe, example)
    with _rounding(readings):
        tuned = train(made, loader, epochs=epochs, lr=lr, teacher=teacher, progress=progress)
    return tuned, decisions


@dataclass(frozen=True)
class _Reading:
    """A weight tensor, and how layers read it."""

    parameter: nn.Parameter
    places: tuple[tuple[nn.Module, str], ...]
    """Modules that hold it, and as what."""
    grid: Grid
    transposed: bool
    """It is [inputs, out]."""

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """[out, inputs], of the parameter's shape."""
        return (weight.T if self.transposed else weight).flatten(1)

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """The parameter's shape, of [out, inputs]."""
        shape = self.parameter.shape
        return rows.T.contiguous() if self.transposed else rows.reshape(shape)


# Deciding.


def _plan(model: nn.Module, recipe: Recipe, example: Example) -> tuple[tuple[Decision, ...], list[_Reading]]:
    args = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    with in_eval_mode(model):
        captured = capture(make_source(model, args))
    module = functional_module(captured.program)
    constants = Constants(module)
    found = plan_layers(captured, module, recipe)
    named = dict(model.named_parameters(remove_duplicate=False))
    read: dict[nn.Parameter, set[tuple[Grid, bool]]] = {}
    names: dict[Node, str] = {}
    for node, layer in found.items():
        source = _source_of(node, constants, named) if isinstance(layer, Layer) else None
        if isinstance(layer, Layer) and source is not None:
            names[node], transposed = source
            read.setdefault(named[names[node]], set()).add((grid_of(layer, layer.bits, recipe), transposed))
    decisions = []
    for node, layer in found.items():
        name = names.get(node)
        decisions.append(
            Decision(
                path=path_of(node),
                kind=_kind(model, node, name),
                decision="float" if isinstance(layer, str) or layer.bits == FLOAT_BITS else _FORMS[layer.bits],
                reason=_reason(layer, None if name is None else len(read[named[name]])),
            )
        )
    readings = [
        _Reading(parameter, _places(model, parameter), *next(iter(ways)))
        for parameter, ways in read.items()
        if len(ways) == 1 and next(iter(ways))[0].bits != FLOAT_BITS
    ]
    return tuple(decisions), readings


def _reason(layer: Layer | str, ways: int | None) -> str:
    """Why a layer is what it is.

    Args:
        layer: or why it stays in float.
        ways: in which its weight is read; None where it is no parameter.
    """
    if isinstance(layer, str):
        return layer
    if layer.bits == FLOAT_BITS:
        return "as the recipe says"
    if ways is None:
        return "not trained through rounding: its weights are computed from others"
    return "the form's" if ways == 1 else "not trained through rounding: its weights are read in different ways"


def _kind(model: nn.Module, node: Node, name: str | None) -> str:
    try:
        return type(model.get_submodule(path_of(node) if name is None else name.rpartition(".")[0])).__name__
    except AttributeError:
        return node.name


def _source_of(node: Node, constants: Constants, named: dict[str, nn.Parameter]) -> tuple[str, bool] | None:
    """The parameter that is a layer's weights, and whether it holds them as [inputs, out]; None: computed from some."""
    weight = node.args[0] if node.target == aten.embedding.default else node.args[1]
    assert isinstance(weight, Node)  # noqa: S101  # find_layers looked
    leaf = weight
    while leaf.op != "get_attr":
        if len(leaf.all_input_nodes) != 1:
            return None
        (leaf,) = leaf.all_input_nodes
    name, turned = str(leaf.target), node.target == aten.matmul.default
    if name not in named:
        return None
    given, held = constants[weight], constants[leaf]
    if given.shape == held.shape and torch.equal(given, held):
        return name, turned
    if held.dim() == 2 and given.shape == held.T.shape and torch.equal(given, held.T):  # noqa: PLR2004  # a matrix
        return name, not turned
    return None


def _places(model: nn.Module, parameter: nn.Parameter) -> tuple[tuple[nn.Module, str], ...]:
    return tuple(
        (owner, name)
        for owner in model.modules()
        for name, one in owner.named_parameters(recurse=False, remove_duplicate=False)
        if one is parameter
    )


# Rounding while training.


@contextmanager
def _rounding(readings: list[_Reading]) -> Iterator[None]:
    """Have modules read rounded weights; afterwards these are their weights."""
    for reading in readings:
        rounding = _Rounding(reading)  # one for all places: they read the same numbers
        for owner, name in reading.places:
            parametrize.register_parametrization(owner, name, rounding)
    try:
        yield
    finally:
        for reading in readings:
            with torch.no_grad():
                owner, name = reading.places[0]
                settled = reading.whole(settle(reading.rows(getattr(owner, name)), reading.grid))
            for owner, name in reading.places:
                parametrize.remove_parametrizations(owner, name, leave_parametrized=False)
            with torch.no_grad():
                reading.parameter.copy_(settled)


def settle(rows: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Round float32[out, inputs] until rounding changes no bit: a scale found again may differ in its last one."""
    for _ in range(_SETTLING):
        again = grid.round(rows).values()
        if torch.equal(again, rows):
            break
        rows = again
    return rows


class _Rounding(nn.Module):
    """Weights -> rounded weights, for `torch.nn.utils.parametrize`."""

    start: torch.Tensor

    def __init__(self, reading: _Reading) -> None:
        super().__init__()
        self._reading = reading
        grid, parameter = reading.grid, reading.parameter
        self.learned = grid.bits < _WHOLE_BITS and not grid.asymmetric
        if self.learned:
            rows = reading.rows(parameter.detach())
            rounded = grid.round(rows)
            least = _LEAST * rows.abs().max().clamp(min=torch.finfo(torch.float16).tiny / _LEAST)
            self.group = rounded.group
            self.register_buffer("start", torch.where(rounded.scale.abs() < least, least, rounded.scale))
            self.growth = nn.Parameter(torch.zeros_like(rounded.scale), requires_grad=parameter.requires_grad)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        reading = self._reading
        rows = reading.rows(weight)
        rounded = self._by_steps(rows) if self.learned else self._by_largest(rows)
        return reading.whole(rounded)

    def _by_steps(self, rows: torch.Tensor) -> torch.Tensor:
        # Adam pays no heed to how large gradients are, so that LSQ's factor for those of steps would do nothing. What
        # counts is how far one update goes: lr of the step itself, as the logarithm is learned.
        scale = self.start * self.growth.exp()
        out, inputs = rows.shape
        grouped = functional.pad(rows, (0, -inputs % self.group)).reshape(out, -1, self.group)
        grid = self._reading.grid
        rounded: torch.Tensor = _Steps.apply(grouped, scale[..., None], *grid.ends, grid.half)  # type: ignore[no-untyped-call]
        return rounded.flatten(1)[:, :inputs]

    def _by_largest(self, rows: torch.Tensor) -> torch.Tensor:
        grid = self._reading.grid
        with torch.no_grad():
            if grid.asymmetric:
                rounded = grid.round(rows).values()
            else:
                scale = rows.abs().amax(1, keepdim=True) / grid.ends[1]
                scale = (scale.half().float() if grid.half else scale).clamp(min=torch.finfo(torch.float16).tiny)
                rounded = (rows / scale).round().clamp(-grid.ends[1], grid.ends[1]) * scale
        return rows + (rounded - rows).detach()


class _Steps(torch.autograd.Function):
    """LSQ, equations 1 to 3: scale * clamp(round(x / scale), low, high), straight through the rounding."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own type
        x: torch.Tensor,
        scale: torch.Tensor,
        low: int,
        high: int,
        half: bool,
    ) -> torch.Tensor:
        scale = scale.half().float() if half else scale
        by = x / scale
        integers = by.round().clamp(low, high)
        inside = (by >= low) & (by <= high)
        ctx.save_for_backward(inside, integers - torch.where(inside, by, 0.0))
        return integers * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:  # noqa: ANN401
        inside, of_scale = ctx.saved_tensors
        return gradient * inside, (gradient * of_scale).sum(2, keepdim=True), None, None, None
