"""What a model costs, and which units go so that it costs no more than a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ferryman.converter.compress.binary_policy import in_eval_mode
from ferryman.converter.prune.units import CONVS, Group, Removed, is_depthwise
from ferryman.converter.quiet import quiet
from ferryman.runtime.contracts.errors import CallerError

aten = torch.ops.aten
_WHOLE = 10.0
"""What a unit of a branch that can go as a whole costs at most, of what it costs first."""
Scores = Sequence[torch.Tensor]
"""Group by group, float[units]: what each is worth, 0 or more."""
Measure = Callable[[Removed], float]
"""What the model costs without some units."""


@dataclass(frozen=True)
class Cost:
    """Of one model."""

    macs: int
    """Multiplications of one call of the example: of convolutions, matrix products and attention."""
    nbytes: int
    """Of parameters and buffers, shared ones once."""
    seconds: float | None = None
    """Of one call, as it was measured; None: it was not."""


def count(model: nn.Module, example: tuple[Any, ...]) -> Cost:
    """Count what one call multiplies, operator by operator as they run, and what the model stores."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops},  # noqa: SLF001
    )
    with in_eval_mode(model), torch.no_grad(), quiet(), counter:
        model(*example)
    return Cost(counter.get_total_flops() // 2, stored_bytes(model))


def stored_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return sum(one.numel() * one.element_size() for one in tensors.values())


def _attention_flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: object, **__: object) -> int:
    """Twice the multiplications of an attention; arguments are shapes."""
    return 2 * math.prod(q) * k[-2] + 2 * math.prod(q[:-1]) * k[-2] * v[-1]


@dataclass(frozen=True)
class _Layer:
    """What a layer's sides cost."""

    cost: float
    """Of the dense layer."""
    out: int
    inputs: int
    one_side: bool
    """It costs as much as it has outputs, whatever it reads."""


def unit_savings(model: nn.Module, groups: Sequence[Group], example: tuple[Any, ...], unit: str) -> list[torch.Tensor]:
    """What the dense model saves by the loss of each unit alone, as a part of the whole.

    Args:
        model: dense.
        groups: of it.
        example: inputs of one call.
        unit: `flops` or `bytes`; latency is taken to go with flops.

    Returns:
        Of each group, float64[units].
    """
    layers = _layer_costs(model, example, unit)
    whole = sum(one.cost for one in layers.values()) or 1.0
    found = []
    for group in groups:
        saved = torch.zeros(group.count, dtype=torch.float64)
        for slot in group.slots:
            one = layers.get(slot.path)
            if one is None or (one.one_side and slot.side == "in"):
                continue
            width = one.out if slot.side == "out" else one.inputs
            saved += torch.tensor([len(rows) / width for rows in slot.rows], dtype=torch.float64) * one.cost / whole
        found.append(saved)
    return found


def _layer_costs(model: nn.Module, example: tuple[Any, ...], unit: str) -> dict[str, _Layer]:
    calls: dict[str, int] = {}

    def watch(path: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def look(layer: nn.Module, _: Any, out: torch.Tensor) -> None:  # noqa: ANN401  # a hook
            weight = layer.weight
            places = out.numel() // out.shape[1 if isinstance(layer, CONVS) else -1]
            calls[path] = calls.get(path, 0) + places * weight.numel()  # type: ignore[operator]  # a parameter

        return look

    kinds = (*CONVS, nn.Linear)
    parts = {path: part for path, part in model.named_modules() if isinstance(part, (*kinds, nn.Embedding))}
    hooks = [part.register_forward_hook(watch(path)) for path, part in parts.items() if isinstance(part, kinds)]
    try:
        with in_eval_mode(model), torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for path, part in parts.items():
        stored = sum(one.numel() * one.element_size() for one in part.parameters(recurse=False))
        cost = float(stored if unit == "bytes" else calls.get(path, 0))
        if isinstance(part, nn.Embedding):
            found[path] = _Layer(cost, part.embedding_dim, 1, one_side=True)
        elif isinstance(part, nn.Linear):
            found[path] = _Layer(cost, part.out_features, part.in_features, one_side=False)
        elif isinstance(part, CONVS):
            found[path] = _Layer(cost, part.out_channels, part.in_channels, one_side=is_depthwise(part))
    return found


@dataclass
class Choice:
    """Units in the order in which they go."""

    groups: Sequence[Group]
    order: list[tuple[float, int]] = field(default_factory=list)
    """(damage for what it saves, number of the group): one row for each unit of the groups that go by themselves."""
    worst: dict[int, list[int]] = field(default_factory=dict)
    """Number of a group -> its units, the least worth first."""

    def removed(self, count: int) -> dict[int, frozenset[int]]:
        """The units that go when so many are meant to; widths stay multiples of the groups' steps."""
        meant: dict[int, int] = {}
        for _, number in self.order[:count]:
            meant[number] = meant.get(number, 0) + 1
        done = {}
        for number, group in enumerate(self.groups):
            if group.leader is None:
                done[number] = frozenset(self.worst[number][: _allowed(group, meant.get(number, 0))])
        for number, group in enumerate(self.groups):
            if group.leader is not None:
                lost = group.count * len(done[group.leader]) // self.groups[group.leader].count
                done[number] = frozenset(self.worst[number][:lost])
        return done


def _allowed(group: Group, meant: int) -> int:
    """How many units go, of those meant to."""
    left = max(group.count - meant, group.least)
    return group.count - min(group.count, -(-left // group.step) * group.step)


def rank(
    groups: Sequence[Group], scores: Scores, savings: Scores, *, comparable: bool, weights: Sequence[float] = ()
) -> Choice:
    """Put the units of all groups in one order.

    What a group loses is taken to be its whole score over what is left of it, so that the loss of one more unit hurts
    the more the fewer there are; a unit goes early if that is little for what it saves.

    Args:
        groups: what can go.
        scores: what units are worth.
        savings: what each unit saves.
        comparable: scores say how much the model loses, whatever the group.
        weights: how important each group is otherwise; none: one as another.

    Raises:
        CallerError: a score is not finite.
    """
    choice = Choice(groups)
    totals = [float(one.sum()) for one in scores]
    if not all(math.isfinite(one) for one in totals):
        raise CallerError("a score of the criterion is not finite; look for NaN in the model and the loader's batches")
    mean = sum(totals) / max(len(totals), 1)
    for number, (group, score, saved) in enumerate(zip(groups, scores, savings, strict=True)):
        order = torch.argsort(score, stable=True)
        choice.worst[number] = order.tolist()
        if group.leader is not None:
            continue
        least = max(totals[number], 1e-30) / group.count * 1e-6
        ordered = score[order].double() + least  # what is worth nothing goes first, and not for nothing
        left = ordered.flip(0).cumsum(0).flip(0)
        given = totals[number] / mean if comparable and mean else weights[number] if weights and not comparable else 1.0
        total = ordered.sum()
        damage = ordered * total / left.square()
        if not group.least:  # the model can do without: the last unit hurts no more than some of the first
            damage = damage.minimum(_WHOLE * ordered / total)
        damage = given * damage / saved[order].clamp(min=1e-12)
        choice.order += [(float(one), number) for one in damage.cummax(0).values]
    choice.order.sort(key=lambda one: one[0])
    return choice


class OverBudgetError(CallerError):
    """A model cannot be brought within its budget."""


def choose(choice: Choice, measure: Measure, most: float, what: str) -> dict[int, frozenset[int]]:
    """Find the fewest units whose loss brings a model within a budget, by halving; what is equal is measured once.

    Args:
        choice: units in their order.
        measure: what the model costs without some.
        most: what it may cost.
        what: the budget in words.

    Raises:
        OverBudgetError: it costs more even with all groups at their least; the message says how much.
    """
    tried: dict[frozenset[tuple[int, frozenset[int]]], float] = {}

    def cost(count: int) -> float:
        removed = choice.removed(count)
        key = frozenset(removed.items())
        if key not in tried:
            tried[key] = measure(removed)
        return tried[key]

    low, high = 0, len(choice.order)
    least = cost(high)
    if least > most:
        raise OverBudgetError(
            f"{what} cannot be reached: the least is {least / most:.2f} times as much, with every layer as "
            "narrow as it may be; ask for a larger budget"
        )
    while low < high:
        middle = (low + high) // 2
        if cost(middle) <= most:
            high = middle
        else:
            low = middle + 1
    return choice.removed(high)
