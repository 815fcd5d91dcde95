"""What can be pruned of an arbitrary model, each group of units tried out on the example, and why the rest cannot."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ferryman.converter.compress.binary_policy import in_eval_mode
from ferryman.converter.prune.couple import Proposal, propose
from ferryman.converter.prune.heads import Attention, common_place, find_attention
from ferryman.converter.prune.units import Group, Removed, Slot, has_readers, remove, silence
from ferryman.converter.quiet import quiet
from ferryman.converter.reason import reason
from ferryman.runtime.contracts.errors import CallerError

OUTPUT = "the model's outputs are made of it"
_CLOSE = 1e-3
"""Of the largest output: how far a layer's removal may be from its silence."""


@dataclass(frozen=True)
class Graph:
    """What can go, and what not."""

    groups: tuple[Group, ...]
    refused: dict[str, str]
    """Module path -> why nothing of its outputs can be taken."""


def positional(example: tuple[Any, ...] | torch.Tensor) -> tuple[Any, ...]:
    """Inputs of one call as a tuple."""
    return (example,) if isinstance(example, torch.Tensor) else tuple(example)


def run(model: nn.Module, example: tuple[Any, ...]) -> list[torch.Tensor]:
    """Outputs of one call, flat, in eval mode.

    Raises:
        CallerError: the model fails with the example, or gives what is not made of tensors.
    """
    try:
        with in_eval_mode(model), torch.no_grad():
            leaves = tree_leaves(model(*example))
    except Exception as error:
        raise CallerError(
            f"the model fails with the example: {type(error).__name__}: {error}; give the positional inputs of one "
            "call, a tensor or a tuple"
        ) from error
    if not leaves or not all(isinstance(one, torch.Tensor) for one in leaves):
        raise CallerError(f"the model gives {', '.join(type(one).__name__ for one in leaves)}; pruning needs tensors")
    return leaves


def find_groups(model: nn.Module, example: tuple[Any, ...]) -> Graph:
    """Find what can go, and try all of it.

    Every second unit of each group is taken out of a copy: outputs must keep their shape, and be those of a copy in
    which nothing reads these units. Where a norm mixes units, only the shape can be compared.

    Args:
        model: in eval mode, its `nn.MultiheadAttention` opened (see `heads.open_attention`); not changed.
        example: positional inputs of one call.

    Raises:
        CallerError: the model fails with the example, or torch-pruning is missing.
        ModelError: the model's layers cannot be followed.
    """
    expected = run(model, example)
    attention, refused = _attention(model, example)
    inner = {one.path for each in attention for one in (each.q, each.k, each.v)}
    bound = dict.fromkeys(inner, "its heads are bound to the rest of the code")
    found: list[Group] = []
    closed: list[Attention] = []
    for each in attention:
        group = _try_heads(model, example, each)
        if group is None:
            closed.append(each)
        else:
            found.append(group)
            bound = {path: why for path, why in bound.items() if path not in group.layers}
    readers = {each.out.path for each in attention}
    for proposal in propose(model, example):
        group = proposal.group
        outputs = {slot.path for slot in group.slots if slot.side == "out"}
        inputs = {slot.path for slot in group.slots if slot.side == "in"}
        if outputs & inner or inputs & readers:
            continue  # the heads' matter
        why = _of_outputs(model, proposal)
        if why is None:
            made = _try_channels(model, example, group, expected, closed, len(found))
            if not isinstance(made, str):
                found += made
                bound = {path: one for path, one in bound.items() if path not in _all_layers(made)}
                continue
            why = made
        refused |= dict.fromkeys(_producers(model, group), why)
    taken = {path for group in found for path in _producers(model, group)}
    return Graph(tuple(found), {path: why for path, why in {**refused, **bound}.items() if path not in taken})


def _all_layers(groups: Sequence[Group]) -> set[str]:
    return {path for group in groups for path in group.layers}


def _producers(model: nn.Module, group: Group) -> list[str]:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)  # noqa: SLF001  # the base of all convolutions
    return [
        slot.path for slot in group.slots if slot.side == "out" and isinstance(model.get_submodule(slot.path), kinds)
    ]


def _attention(model: nn.Module, example: tuple[Any, ...]) -> tuple[list[Attention], dict[str, str]]:
    try:
        with quiet():
            program = torch.export.export(model, example, strict=False)
    except Exception as error:  # noqa: BLE001  # torch.export raises many kinds; heads then stay, and that is said
        return [], {"": f"torch.export cannot follow the model, so that heads are not known: {reason(error)}"}
    return find_attention(program)


def _of_outputs(model: nn.Module, proposal: Proposal) -> str | None:
    """Why a group must stay; tables are tried, as what multiplies with them last may make other outputs of it."""
    tables = [one for one in _producers(model, proposal.group) if isinstance(model.get_submodule(one), nn.Embedding)]
    if proposal.reaches_output and not tables:
        return OUTPUT
    if proposal.refused and proposal.group.count > 1:
        return proposal.refused
    return proposal.refused if has_readers(model, proposal.group) else OUTPUT


def _try_heads(model: nn.Module, example: tuple[Any, ...], each: Attention) -> Group | None:
    """The group of an attention's heads, with the numbers that shrink with them; None: the code does not allow it."""
    sets: list[set[int]] = []
    for head, (key, value) in enumerate(zip(each.k.channels, each.v.channels, strict=True)):
        same = [
            one for one in sets if any({*key} & {*each.k.channels[h]} or {*value} & {*each.v.channels[h]} for h in one)
        ]
        sets = [one for one in sets if one not in same] + [{head}.union(*same)]
    sides: dict[tuple[str, str], list[list[int]]] = {}
    for ends, side in ((each.q, "out"), (each.k, "out"), (each.v, "out"), (each.out, "in")):
        rows = [[channel for head in sorted(one) for channel in ends.channels[head]] for one in sets]
        held = sides.setdefault((ends.path, side), [[] for _ in sets])
        for row, more in zip(held, rows, strict=True):
            row.extend(more)
    slots = tuple(
        Slot(path, "in" if side == "in" else "out", tuple(tuple(sorted(set(row))) for row in rows))
        for (path, side), rows in sides.items()
    )
    group = Group(slots, len(sets), "heads")
    if group.count == 1:
        return None
    counts, width = len(each.q.channels), len(each.q.channels[0])
    fewer = len(set(each.k.channels))
    values = {counts, fewer}, {counts * width, fewer * width}
    for attributes in _numbers(model, each.layers, *values):
        made = replace(group, attributes=attributes)
        if _fails(model, example, [made], {0: _half(made)}, None) is None:
            return made
    return None


def _numbers(
    model: nn.Module, paths: Sequence[str], counts: set[int], widths: set[int]
) -> Iterator[tuple[tuple[str, str], ...]]:
    """Which numbers of the modules around some layers may have to shrink: likelier choices first."""
    place = common_place(paths)
    found: dict[str, list[tuple[str, str]]] = {"counts": [], "widths": []}
    for path, part in model.get_submodule(place).named_modules():
        if type(part).__module__.startswith("torch.nn"):
            continue
        where = ".".join(filter(None, (place, path)))
        for name, value in vars(part).items():
            if type(value) is int and value > 1:
                found["counts"] += [(where, name)] * (value in counts)
                found["widths"] += [(where, name)] * (value in widths and value not in counts)
    every = [*found["counts"], *found["widths"]]
    tried = []
    for one in (every, found["counts"], found["widths"], [], *(list(two) for two in combinations(every, 1))):
        if one not in tried:
            tried.append(one)
            yield tuple(one)


def _half(group: Group) -> frozenset[int]:
    """Every second unit, as many as the step allows."""
    left = max(group.least, math.ceil(group.count / 2 / group.step) * group.step)
    every = [*range(1, group.count, 2), *range(0, group.count, 2)]
    return frozenset(every[: group.count - left])


def _try_channels(
    model: nn.Module,
    example: tuple[Any, ...],
    group: Group,
    expected: list[torch.Tensor],
    closed: Sequence[Attention],
    number: int,
) -> list[Group] | str:
    """The group as it can go, with the head widths that shrink with it; or why it cannot."""
    why = _fails(model, example, [group], {0: _half(group)}, expected)
    if why is None:
        return [group]
    for attributes in _numbers(model, group.layers, set(), {group.count}):
        made = replace(group, attributes=attributes)
        if attributes and _fails(model, example, [made], {0: _half(made)}, expected) is None:
            return [made]
    around = [one for one in closed if {*one.layers} <= {*group.layers}]
    if not around:
        return why
    led = replace(group, step=math.lcm(*(len(one.q.channels) for one in around)))
    led = replace(led, least=led.step)
    followers = [one for each in around for one in _widths(each, number)]
    if led.count % led.step or any(group.count % len(one.q.channels) for one in around):
        return why
    heads = {len(one.q.channels[0]) for one in around}
    for attributes in _numbers(model, group.layers, heads, {group.count}):
        every = [replace(led, attributes=attributes), *followers]
        if _fails(model, example, every, _follow(every, {0: _half(led)}, number), expected) is None:
            return every
    return why


def _widths(each: Attention, leader: int) -> Iterator[Group]:
    """The numbers inside each head, which shrink with the width of the stream where the code divides that by heads."""
    for q, k, v, out in zip(each.q.channels, each.k.channels, each.v.channels, each.out.channels, strict=True):
        sides = [(each.q.path, "out", q), (each.k.path, "out", k)]
        rows = [Slot(path, "out", tuple((one,) for one in channels)) for path, _, channels in sides]
        yield Group(_merged(rows), len(q), "head width", leader=leader, sharpen=rows[0])
        given = [
            Slot(each.v.path, "out", tuple((one,) for one in v)),
            Slot(each.out.path, "in", tuple((one,) for one in out)),
        ]
        yield Group(tuple(given), len(v), "head width", leader=leader)


def _merged(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """Slots of one layer's side as one."""
    found: dict[str, Slot] = {}
    for slot in slots:
        held = found.get(slot.path)
        rows = slot.rows if held is None else tuple((*a, *b) for a, b in zip(held.rows, slot.rows, strict=True))
        found[slot.path] = replace(slot, rows=rows)
    return tuple(found.values())


def _follow(groups: Sequence[Group], removed: Removed, leader: int) -> Removed:
    """The removal with that of the head widths that follow, here the last of each."""
    done = dict(removed)
    for number, group in enumerate(groups):
        if group.leader == leader:
            lost = group.count * len(removed[0]) // groups[0].count
            done[number] = frozenset(range(group.count - lost, group.count))
    return done


def _fails(
    model: nn.Module,
    example: tuple[Any, ...],
    groups: Sequence[Group],
    removed: Removed,
    expected: list[torch.Tensor] | None,
) -> str | None:
    """Why some units cannot be taken out; None: they can.

    Args:
        model: not changed.
        example: inputs of one call.
        groups: to be tried together.
        removed: what of them goes.
        expected: outputs of the dense model; None: they need not be looked at, as silence tells more.
    """
    if not any(removed.values()):
        return "it has too few units"
    pruned = copy.deepcopy(model).eval()
    try:
        remove(pruned, groups, removed)
        with torch.no_grad():
            found = tree_leaves(pruned(*example))
    except Exception as error:  # noqa: BLE001  # any: the code around was not written for other widths
        return f"the code around it cannot do with less: {reason(error)}"
    if expected is not None and [one.shape for one in found] != [one.shape for one in expected]:
        return OUTPUT
    if any(group.mixes or group.sharpen for group in groups):
        return None if all(bool(one.isfinite().all()) for one in found) else "outputs are not finite without it"
    silent = copy.deepcopy(model)
    silence(silent, groups, removed)
    return _apart(found, run(silent, example))


def _apart(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> str | None:
    """Why outputs are not those of a model that reads nothing of some units; None: they are."""
    if [one.shape for one in found] != [one.shape for one in wanted]:
        return OUTPUT
    for a, b in zip(found, wanted, strict=True):
        if a.is_floating_point() and float((a - b).abs().max()) > _CLOSE * max(float(b.abs().max()), 1e-6):
            return "the model computes something else than without its units: they are read in another order"
    return None
