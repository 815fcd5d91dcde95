"""Which channels of which layers go together, by torch-pruning's dependency graph.

Fang et al. 2023, "DepGraph: towards any structural pruning". The graph is asked channel by channel, so that what a
split or a concatenation joins is joined here too; what it says is taken as a proposal, which `graph` tries out.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ferryman.converter.prune.units import (
    CONVS,
    MIXING_NORMS,
    Group,
    Slot,
    is_depthwise,
    layer_width,
    part_count,
    width,
)
from ferryman.converter.quiet import quiet
from ferryman.converter.reason import reason
from ferryman.runtime.contracts.errors import CallerError, ModelError

_ROOTS = (*CONVS, nn.Linear, nn.Embedding)
_PLACES_MAX = 20_000
_CATS = (torch.cat, torch.concat, torch.concatenate)
_SPLITS = (
    *(torch.chunk, torch.split, torch.tensor_split),
    *(torch.Tensor.chunk, torch.Tensor.split, torch.Tensor.tensor_split),
)
_Key = tuple[str, str, int]
"""Path, side, dimension."""
_Place = tuple[_Key, int]


@dataclass
class _Unit:
    """What one channel takes with it."""

    places: list[_Place] = field(default_factory=list)
    reaches_output: bool = False
    unknown: str | None = None
    """A layer that channels cannot be taken from."""


@dataclass(frozen=True)
class Proposal:
    """Units that may go together."""

    group: Group
    reaches_output: bool
    refused: str | None
    """Why they must not be touched."""


def propose(model: nn.Module, example: tuple[Any, ...]) -> list[Proposal]:
    """Groups of channels of convolutions, linear layers and embeddings, in the order they are registered.

    Args:
        model: in eval mode; not changed.
        example: positional inputs of one call.

    Raises:
        CallerError: torch-pruning is not installed.
        ModelError: the dependency graph cannot be built.
    """
    graph, work = _build(model, example)
    paths: dict[Any, str] = {part: path for path, part in work.named_modules()}
    paths |= {value: path for path, value in work.named_parameters()}
    seen: dict[_Place, int] = {}
    units: list[_Unit] = []
    joined = _Sets()
    for layer in list(graph.module2node):
        if not isinstance(layer, _ROOTS) or layer not in paths or graph.get_pruner_of_module(layer) is None:
            continue
        pruner = graph.get_pruner_of_module(layer)
        for channel in range(pruner.get_out_channels(layer)):
            if ((paths[layer], "out", 0), channel) in seen:
                continue
            unit = _ask(graph, paths, layer, pruner.prune_out_channels, channel)
            units.append(unit)
            joined.add(len(units) - 1)
            for place in unit.places:
                joined.join(seen.setdefault(place, len(units) - 1), len(units) - 1)
    _join_parts(model, seen, joined)
    _join_halves(model, units, seen, joined)
    return _gather(model, units, joined)


def _build(model: nn.Module, example: tuple[Any, ...]) -> tuple[Any, nn.Module]:
    try:
        import torch_pruning
        from torch_pruning.dependency import index_mapping
    except ImportError as error:
        raise CallerError(
            "pruning needs torch-pruning, which is not installed; pip install 'ferryman[convert]'"
        ) from error
    work = copy.deepcopy(model).eval()
    for value in work.parameters():
        if value.is_floating_point():
            value.requires_grad_(True)
    try:
        parts = _Parts()
        with quiet(), torch.enable_grad(), parts:
            graph = torch_pruning.DependencyGraph().build_dependency(
                work,
                example,
                forward_fn=lambda module, inputs: module(*inputs),
                output_transform=lambda out: [
                    one for one in tree_leaves(out) if isinstance(one, torch.Tensor) and one.grad_fn is not None
                ],
                verbose=False,
            )
        for node in graph.module2node.values():
            if widths := parts.widths.get(node.grad_fn):
                node.module.concat_sizes = widths
                index_mapping.update_concat_index_mapping(graph, node)
    except Exception as error:
        raise ModelError(
            f"the model's layers cannot be followed: {reason(error)}; pruning needs a model that computes its outputs "
            "from its weights with autograd's operators"
        ) from error
    return graph, work


class _Parts(TorchFunctionMode):
    """Has what is split be sliced, and remembers how wide the parts of concatenations are.

    The library tells the parts of a split by the order in which they are read, and is lost where one has several
    readers, as in a YOLO's C2f; a slice says itself where it begins, but not to a concatenation that reads it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.widths: dict[Any, list[int]] = {}
        """What concatenated channels -> how many came from each."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401  # torch's own
        """Do as asked, but for splits."""
        given = kwargs or {}
        made = function(*args, **given)
        if function in _CATS and made.grad_fn is not None:
            parts = given.get("tensors", args[0] if args else ())
            self.widths[made.grad_fn] = [one.shape[1] for one in parts if one.dim() > 1]
        if function not in _SPLITS:
            return made
        whole = args[0] if args else given["input"]
        dim = given.get("dim", args[2] if len(args) > 2 else 0)  # noqa: PLR2004  # it is the third
        ends = list(itertools.accumulate(part.shape[dim] for part in made))
        return tuple(
            whole.narrow(dim, end - part.shape[dim], part.shape[dim]) for part, end in zip(made, ends, strict=True)
        )


class _Index(NamedTuple):
    """A channel, as the graph's index mappings take it."""

    idx: int
    root_idx: int = 0


def _ask(graph: Any, paths: dict[Any, str], layer: nn.Module, handler: Any, channel: int) -> _Unit:  # noqa: ANN401  # untyped
    """Follow a channel through the graph's dependencies.

    The library's own walk compares whole lists of channels, and has no end where mappings do not agree; this one takes
    each channel of each side once, and gives up on what reaches too far.
    """
    unit = _Unit()
    seen: dict[tuple[int, Any], set[int]] = {}
    queue: list[tuple[Any, Any, list[Any]]] = [(graph.module2node[layer], handler, [_Index(channel)])]
    while queue and unit.unknown is None and len(unit.places) < _PLACES_MAX:
        node, side, indices = queue.pop()
        held = seen.setdefault((id(node), side), set())
        fresh = [one for one in indices if one.idx not in held]
        held.update(one.idx for one in fresh)
        if not fresh:
            continue
        _note(unit, graph, paths, node, side, [int(one.idx) for one in fresh])
        for dependency in node.dependencies:
            if dependency.is_triggered_by(side):
                mapped: list[Any] = fresh
                for mapping in dependency.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                queue.append((dependency.target, dependency.handler, mapped))
    if queue and unit.unknown is None:
        unit.unknown = "too much hangs on each of its channels"
    unit.places = list(dict.fromkeys(unit.places))
    return unit


def _note(unit: _Unit, graph: Any, paths: dict[Any, str], node: Any, side: Any, indices: list[int]) -> None:  # noqa: ANN401  # untyped
    """Write down where a channel was met."""
    target, found = node.module, node.type.name
    if found == "OUTPUT":
        unit.reaches_output = True
    if target not in paths or found == "ELEMENTWISE":
        return  # an operator or an activation
    if found == "PARAMETER":
        key: _Key = (paths[target], "parameter", node.pruning_dim % target.dim())
    else:
        key = (paths[target], "out" if graph.is_out_channel_pruning_fn(side) else "in", 0)
    if isinstance(target, nn.PReLU) and target.num_parameters == 1:
        return
    if isinstance(target, nn.Module):
        wide = layer_width(target, key[1])
        if wide is None:
            unit.unknown = f"{paths[target]} ({type(target).__name__}) cannot become narrower"
        elif not all(0 <= index < wide for index in indices):
            unit.unknown = f"{paths[target]} is read in another shape than it has"
            return
    unit.places += [(key, index) for index in indices]


class _Sets:
    """Numbers that belong together."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def add(self, one: int) -> None:
        self._above.setdefault(one, one)

    def find(self, one: int) -> int:
        while self._above[one] != one:
            self._above[one] = self._above[self._above[one]]
            one = self._above[one]
        return one

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._above[second] = first


def _join_parts(model: nn.Module, seen: dict[_Place, int], joined: _Sets) -> None:
    """Grouped convolutions and norms keep parts of one size: the same positions go in each."""
    for ((path, side, dim), index), number in seen.items():
        if side == "parameter":
            continue
        parts = part_count(model.get_submodule(path), side)
        whole = width(model, path, side)
        if parts > 1 and whole is not None and index >= whole // parts:
            other = seen.get(((path, side, dim), index % (whole // parts)))
            if other is not None:
                joined.join(number, other)


def _join_halves(model: nn.Module, units: list[_Unit], seen: dict[_Place, int], joined: _Sets) -> None:
    """A layer whose outputs are split among others, into parts of one size: the same positions go in each part."""
    rows: dict[_Key, dict[int, int]] = defaultdict(dict)
    for (key, index), number in seen.items():
        if key[1] == "out":
            rows[key][index] = number
    for (path, *_), numbers in rows.items():
        layer = model.get_submodule(path)
        if not isinstance(layer, _ROOTS) or is_depthwise(layer):
            continue
        readers = [
            frozenset(key for key, _ in units[number].places if key[1] == "in") for _, number in sorted(numbers.items())
        ]
        runs = [(found, len(list(several))) for found, several in itertools.groupby(readers)]
        sizes = {size for _, size in runs}
        if 1 < len(runs) == len({found for found, _ in runs}) and len(sizes) == 1:
            (size,) = sizes
            for index, number in numbers.items():
                joined.join(number, numbers[index % size])


def _gather(model: nn.Module, units: list[_Unit], joined: _Sets) -> list[Proposal]:
    """Units of the same layers, in the order of their first channels, make one group."""
    whole: dict[int, list[_Unit]] = defaultdict(list)
    for number, unit in enumerate(units):
        whole[joined.find(number)].append(unit)
    groups: dict[tuple[_Key, ...], list[tuple[dict[_Key, list[int]], list[_Unit]]]] = defaultdict(list)
    for members in whole.values():
        places: dict[_Key, list[int]] = defaultdict(list)
        for key, index in dict.fromkeys(place for unit in members for place in unit.places):
            places[key].append(index)
        groups[tuple(places)].append((places, members))
    made = []
    for keys, rows in groups.items():
        slots = tuple(
            Slot(path, side, tuple(tuple(sorted(places[path, side, dim])) for places, _ in rows), dim)  # type: ignore[arg-type]  # a Literal
            for path, side, dim in keys
        )
        several = [unit for _, members in rows for unit in members]
        group = Group(slots, len(rows), mixes=_mixes(model, slots))
        refused = next((unit.unknown for unit in several if unit.unknown), None) or _unfit(model, group)
        made.append(Proposal(group, any(unit.reaches_output for unit in several), refused))
    return made


def _mixes(model: nn.Module, slots: tuple[Slot, ...]) -> bool:
    return any(slot.side != "parameter" and isinstance(model.get_submodule(slot.path), MIXING_NORMS) for slot in slots)


def _unfit(model: nn.Module, group: Group) -> str | None:
    if group.count == 1:
        return "its channels are all bound to each other"
    for slot in group.slots:
        whole = width(model, slot.path, slot.side, slot.dim)
        if whole is None or any(index >= whole for rows in slot.rows for index in rows):
            return f"{slot.path} is read in another shape than it has"
    return None
