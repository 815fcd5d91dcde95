"""What units are worth: the protocol of a criterion, and those that take weights and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import in_eval_mode
from ferryman.converter.compress.training import Batch, Loss
from ferryman.converter.prune.units import CONVS, Group, Slot, is_depthwise, weight_of
from ferryman.runtime.contracts.errors import CallerError

BATCHES_MAX = 32
"""Of a loader, that a criterion looks at."""
_WEIGHTED = (*CONVS, nn.Linear, nn.Embedding)


@dataclass(frozen=True)
class Context:
    """What criteria look at."""

    model: nn.Module
    """Dense, in eval mode; left as it is."""
    groups: Sequence[Group]
    example: tuple[Any, ...]
    loader: Iterable[Batch] | None = None
    loss: Loss = functional.cross_entropy
    batches_max: int = BATCHES_MAX

    def batches(self) -> Iterator[Batch]:
        """Some of the loader's.

        Raises:
            CallerError: there is no loader, or it gives nothing.
        """
        if self.loader is None:
            raise CallerError("this criterion looks at data: give a loader of (inputs, targets)")
        count = 0
        for batch in islice(self.loader, self.batches_max):
            if not isinstance(batch, tuple | list) or len(batch) != 2:  # noqa: PLR2004  # inputs, targets
                raise CallerError(f"the loader must give (inputs, targets), found {type(batch).__name__}")
            count += 1
            yield batch[0], batch[1]
        if not count:
            raise CallerError("the loader gives no batches, or can be iterated over only once; give a list")


class Criterion(Protocol):
    """Says what each unit of each group is worth."""

    @property
    def name(self) -> str:
        """As a form's name has it."""
        ...

    @property
    def needs_data(self) -> bool:
        """Whether it looks at the loader."""
        ...

    @property
    def comparable(self) -> bool:
        """Whether scores of different groups are of one scale: what the model loses."""
        ...

    def score(self, context: Context) -> list[torch.Tensor]:
        """Of each group, float[units], 0 or more; least is worth least.

        Raises:
            CallerError: the model, the loader or the loss do not go together.
        """
        ...


def per_unit(slot: Slot, values: torch.Tensor) -> torch.Tensor:
    """Sum values, one for each index of a slot's side, unit by unit; with more dimensions in front kept."""
    columns = [values[..., list(rows)].sum(-1) if rows else torch.zeros(values.shape[:-1]) for rows in slot.rows]
    return torch.stack(columns, -1)


def per_index(layer: nn.Module, side: str, values: torch.Tensor) -> torch.Tensor:
    """Sum what a weighted layer's weights are given, over all but its outputs or its inputs.

    Args:
        layer: a convolution, linear layer or embedding.
        side: `out` or `in`.
        values: of the weight's shape; dimensions in front of that are kept.
    """
    dims = weight_of(layer).dim()
    transposed = isinstance(layer, CONVS) and layer.transposed
    outputs = (1 if transposed else 0) if not isinstance(layer, nn.Embedding) else 1
    kept = outputs if side == "out" or is_depthwise(layer) else 1 - outputs
    first = values.dim() - dims
    summed = values.sum([first + dim for dim in range(dims) if dim != kept])
    groups = layer.groups if isinstance(layer, CONVS) and side == "in" and not is_depthwise(layer) else 1
    return summed.repeat(*[1] * first, groups) if groups > 1 else summed


def producers(model: nn.Module, group: Group) -> list[tuple[Slot, nn.Module]]:
    """Weighted layers whose outputs the units are."""
    found = [(slot, model.get_submodule(slot.path)) for slot in group.slots if slot.side == "out"]
    return [(slot, layer) for slot, layer in found if isinstance(layer, _WEIGHTED)]


def readers(model: nn.Module, group: Group) -> list[tuple[Slot, nn.Module]]:
    """Layers that read units and weigh them."""
    found = [(slot, model.get_submodule(slot.path)) for slot in group.slots if slot.side == "in"]
    return [(slot, layer) for slot, layer in found if not is_depthwise(layer)]


def norms_behind(model: nn.Module, example: tuple[Any, ...]) -> dict[str, str]:
    """Path of a convolution or linear layer -> that of the batch norm that takes its output in one call."""
    given: dict[int, str] = {}
    held: list[torch.Tensor] = []  # ids stay theirs
    found: dict[str, str] = {}

    def made(path: str) -> Callable[..., None]:
        def look(_: nn.Module, __: object, out: torch.Tensor) -> None:
            held.append(out)
            given[id(out)] = path

        return look

    def taken(path: str) -> Callable[..., None]:
        return lambda _, inputs: found.update({given[id(inputs[0])]: path} if id(inputs[0]) in given else {})

    hooks = []
    for path, part in model.named_modules():
        if isinstance(part, (*CONVS, nn.Linear)):
            hooks.append(part.register_forward_hook(made(path)))
        elif isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:  # noqa: SLF001  # their base
            hooks.append(part.register_forward_pre_hook(taken(path)))
    try:
        with in_eval_mode(model), torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def norm_factor(norm: nn.Module) -> torch.Tensor:
    """What a batch norm multiplies its channels by."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_var is None:  # noqa: SLF001  # their base
        raise TypeError(type(norm).__name__)
    factor = (norm.running_var + norm.eps).rsqrt()
    return factor * norm.weight.detach() if norm.affine else factor


class Magnitude:
    """The norm of the weights that make a unit, batch norms behind them folded in."""

    name, needs_data, comparable = "magnitude", False, False

    def score(self, context: Context) -> list[torch.Tensor]:
        """As the protocol says."""
        norms = norms_behind(context.model, context.example)
        found = []
        for group in context.groups:
            total = torch.zeros(group.count)
            for slot, layer in producers(context.model, group):
                squares = per_index(layer, "out", weight_of(layer).detach().square())
                if slot.path in norms:
                    squares = squares * norm_factor(context.model.get_submodule(norms[slot.path])).square()
                total += per_unit(slot, squares)
            found.append(total.sqrt())
        return found


class Lasso:
    """The norm over all that goes with a unit: weights that make it, batch norms, weights that read it."""

    name, needs_data, comparable = "lasso", False, False

    def score(self, context: Context) -> list[torch.Tensor]:
        """As the protocol says."""
        return [unit_norms(context.model, group) for group in context.groups]


def unit_norms(model: nn.Module, group: Group) -> torch.Tensor:
    """float[units]: of all parameters that go with each unit."""
    total = torch.zeros(group.count)
    for slot in group.slots:
        if slot.side == "parameter":
            value = model.get_parameter(slot.path).detach().square()
            total += per_unit(slot, value.movedim(slot.dim, -1).reshape(-1, value.shape[slot.dim]).sum(0))
            continue
        layer = model.get_submodule(slot.path)
        if isinstance(layer, _WEIGHTED):
            total += per_unit(slot, per_index(layer, slot.side, weight_of(layer).detach().square()))
        elif getattr(layer, "weight", None) is not None:
            total += per_unit(slot, weight_of(layer).detach().square())
        if slot.side == "out" and isinstance(bias := getattr(layer, "bias", None), torch.Tensor):
            total += per_unit(slot, bias.detach().square())
    return total.sqrt()


class Taylor:
    """How much the loss changes to first order when nothing reads a unit (Molchanov et al. 2019), squared, a batch."""

    name, needs_data, comparable = "taylor", True, True

    def score(self, context: Context) -> list[torch.Tensor]:
        """As the protocol says."""
        totals = [torch.zeros(group.count) for group in context.groups]
        for gates in gate_gradients(context):
            totals = [total + gate.square() for total, gate in zip(totals, gates, strict=True)]
        return [total.sqrt() for total in totals]


def gate_gradients(context: Context) -> Iterator[list[torch.Tensor]]:
    """The gradient of each batch's loss by a factor of 1 on what is read of each unit: float[units], group by group."""
    model = context.model
    needed = {id(weight_of(layer)): weight_of(layer) for group in context.groups for _, layer in readers(model, group)}
    weights = list(needed.values())
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for inputs, targets in context.batches():
            with in_eval_mode(model), torch.enable_grad():
                loss = loss_of(context, inputs, targets)
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            by = {id(weight): one for weight, one in zip(weights, gradients, strict=True) if one is not None}
            yield [gates_of(model, group, by) for group in context.groups]
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


def loss_of(context: Context, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of a batch.

    Raises:
        CallerError: the model or the loss fails.
    """
    try:
        return context.loss(context.model(inputs), targets)
    except Exception as error:
        raise CallerError(
            f"a batch of the loader cannot be scored: {type(error).__name__}: {error}; inputs and targets must suit "
            "the model and the loss"
        ) from error


def gates_of(model: nn.Module, group: Group, gradients: dict[int, torch.Tensor]) -> torch.Tensor:
    """float[units]: the derivative by each unit's gate, of derivatives by the weights (by id) that read it."""
    total = torch.zeros(group.count)
    for slot, layer in readers(model, group):
        if id(weight_of(layer)) in gradients:
            product = weight_of(layer).detach() * gradients[id(weight_of(layer))]
            total += per_unit(slot, per_index(layer, "in", product))
    return total
