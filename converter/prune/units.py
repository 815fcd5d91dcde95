"""Units of a model that go together, and how they are taken out of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

Rows = tuple[tuple[int, ...], ...]
"""Unit -> its indices."""
Removed = Mapping[int, frozenset[int]]
"""Number of a group -> its units that go."""
CONVS = (nn.modules.conv._ConvNd,)  # noqa: SLF001  # the base of all convolutions
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)  # noqa: SLF001  # their bases
_KINDS: tuple[tuple[tuple[type, ...], str, str], ...] = (
    (CONVS, "out_channels", "in_channels"),
    ((nn.Linear,), "out_features", "in_features"),
    ((nn.Embedding,), "embedding_dim", "embedding_dim"),
    (_BATCH_NORMS, "num_features", "num_features"),
    ((nn.LayerNorm,), "normalized_shape", "normalized_shape"),
    ((nn.GroupNorm,), "num_channels", "num_channels"),
    ((nn.PReLU,), "num_parameters", "num_parameters"),
)
"""Layers, and the numbers that tell how many outputs and inputs they have."""
MIXING_NORMS = (nn.LayerNorm, nn.GroupNorm)
"""Whose statistics change when a channel goes."""


@dataclass(frozen=True)
class Slot:
    """Where units sit in one layer, or in a parameter that is no layer's."""

    path: str
    side: Literal["out", "in", "parameter"]
    rows: Rows
    """Indices along the layer's outputs or inputs, or the parameter's dimension; none: the unit has no part in it."""
    dim: int = 0
    """Of a parameter."""


@dataclass(frozen=True)
class Group:
    """Units each of which is there as a whole or not at all, wherever they sit."""

    slots: tuple[Slot, ...]
    count: int
    """Units."""
    kind: Literal["channels", "heads", "head width"] = "channels"
    step: int = 1
    """What is kept is all, or a multiple of it."""
    least: int = 1
    """Units that stay."""
    mixes: bool = False
    """A norm takes its statistics over the units: without some of them the others change too."""
    attributes: tuple[tuple[str, str], ...] = ()
    """(module path, name) of numbers that the code computes shapes from: they shrink as the group does."""
    leader: int | None = None
    """Number of the group with which this one shrinks, in proportion, because the code says so."""
    sharpen: Slot | None = None
    """Rows of queries: they grow by the root of what is kept, because the code divides by the root of the width."""
    branches: tuple[str, ...] = ()
    """Layers that end residual branches which are gone where the whole group is."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of all that it sits in."""
        return tuple(dict.fromkeys(slot.path for slot in self.slots))

    def kept(self, removed: Iterable[int]) -> tuple[int, ...]:
        """The units that stay."""
        return tuple(sorted(set(range(self.count)) - set(removed)))


def align(group: Group, channels: int) -> Group:
    """The group with widths of so many channels.

    Args:
        group: of channels.
        channels: what a width is a multiple of; 0: 8 where the dense width is one, of 16 or more.
    """
    if group.kind != "channels":
        return group
    each = max(len(rows) for rows in group.slots[0].rows)
    wide = group.count * each
    if not channels:
        channels = 8 if wide >= 16 and wide % 8 == 0 else 1  # noqa: PLR2004  # as the recipe says
    step = math.lcm(channels // math.gcd(channels, each), group.step)
    return replace(group, step=step, least=min(group.count, -(-group.least // step) * step))


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each output channel of a convolution reads the input channel of the same number, and no other."""
    return isinstance(layer, CONVS) and layer.groups == layer.in_channels == layer.out_channels > 1


def weight_of(layer: nn.Module) -> torch.Tensor:
    """A layer's weight."""
    weight = layer.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(type(layer).__name__)
    return weight


def width(model: nn.Module, path: str, side: str, dim: int = 0) -> int | None:
    """Channels of a layer's side; None: it is none that channels can be taken from."""
    if side == "parameter":
        return model.get_parameter(path).shape[dim]
    return layer_width(model.get_submodule(path), side)


def layer_width(layer: nn.Module, side: str) -> int | None:
    """The same of a layer itself."""
    names = _names(layer, side)
    if not names or parametrize.is_parametrized(layer):
        return None
    if isinstance(layer, CONVS) and layer.transposed and layer.groups > 1:
        return None
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[0] if len(layer.normalized_shape) == 1 else None
    found: int = getattr(layer, names[0])
    return found


def part_count(layer: nn.Module, side: str) -> int:
    """In how many parts of one size each the channels of a side are, of which all lose the same positions."""
    if isinstance(layer, CONVS) and not is_depthwise(layer):
        return layer.groups
    return layer.num_groups if isinstance(layer, nn.GroupNorm) and side == "out" else 1


@torch.no_grad()
def remove(model: nn.Module, groups: Sequence[Group], removed: Removed) -> None:
    """Take units out of a model, in place: its layers become narrower."""
    gone: dict[tuple[str, str, int], set[int]] = {}
    for number, units in removed.items():
        group = groups[number]
        if not units:
            continue
        _adjust(model, group, len(units))
        for slot in group.slots:
            found = gone.setdefault((slot.path, slot.side, slot.dim), set())
            found.update(index for unit in units for index in slot.rows[unit])
    seen: dict[tuple[int, int], nn.Parameter] = {}
    for (path, side, dim), indices in gone.items():
        if side == "parameter":
            parameter = model.get_parameter(path)
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, _select(parameter, dim, indices, seen))
        else:
            _narrow(model.get_submodule(path), side, indices, seen)


def _adjust(model: nn.Module, group: Group, gone: int) -> None:
    left = group.count - gone
    for path, name in group.attributes:
        owner = model.get_submodule(path)
        setattr(owner, name, getattr(owner, name) * left // group.count)
    if group.sharpen is not None:
        layer = model.get_submodule(group.sharpen.path)
        rows = [index for unit in group.sharpen.rows for index in unit]
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                getattr(layer, name)[rows] *= math.sqrt(left / group.count)


def _narrow(layer: nn.Module, side: str, indices: set[int], seen: dict[tuple[int, int], nn.Parameter]) -> None:
    """Take channels out of one side of a layer."""
    for name, dim in _tensors(layer, side):
        value = getattr(layer, name)
        if value is None:
            continue
        lost = indices
        if isinstance(layer, CONVS) and side == "in" and layer.groups > 1 and not is_depthwise(layer):
            lost = {index % (layer.in_channels // layer.groups) for index in indices}
        if isinstance(value, nn.Parameter):
            setattr(layer, name, _select(value, dim, lost, seen))
        else:
            setattr(layer, name, value.index_select(dim, _others(value.shape[dim], lost)))
    left = (layer_width(layer, side) or 0) - len(indices)
    for name in _names(layer, side):
        setattr(layer, name, (left,) if name == "normalized_shape" else left)


def _tensors(layer: nn.Module, side: str) -> list[tuple[str, int]]:
    """(name, dimension) of what one side of a layer is made of."""
    if isinstance(layer, CONVS) and not is_depthwise(layer):
        outputs = 1 if layer.transposed else 0
        return [("weight", outputs), ("bias", 0)] if side == "out" else [("weight", 1 - outputs)]
    if isinstance(layer, nn.Linear):
        return [("weight", 0), ("bias", 0)] if side == "out" else [("weight", 1)]
    if isinstance(layer, nn.Embedding):
        return [("weight", 1)]
    if isinstance(layer, _BATCH_NORMS):
        return [("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0)]
    return [("weight", 0)] if isinstance(layer, nn.PReLU) else [("weight", 0), ("bias", 0)]


def _names(layer: nn.Module, side: str) -> tuple[str, ...]:
    """Of the numbers that tell one side's width; none: it is no layer that channels can be taken from."""
    if is_depthwise(layer):
        return ("out_channels", "in_channels", "groups")
    return next(((out if side == "out" else inputs,) for kinds, out, inputs in _KINDS if isinstance(layer, kinds)), ())


def _select(value: nn.Parameter, dim: int, lost: set[int], seen: dict[tuple[int, int], nn.Parameter]) -> nn.Parameter:
    """The parameter without some indices; one that several layers share stays shared."""
    if (id(value), dim) not in seen:
        made = nn.Parameter(value.index_select(dim, _others(value.shape[dim], lost)), value.requires_grad)
        # The old one is held: another object must not get its id.
        seen[id(value), dim], seen[id(made), -1 - dim] = made, value
    return seen[id(value), dim]


def _others(count: int, lost: set[int]) -> torch.Tensor:
    return torch.tensor([index for index in range(count) if index not in lost])


@torch.no_grad()
def silence(model: nn.Module, groups: Sequence[Group], removed: Removed) -> None:
    """Have every layer that reads units read zeros of their weights instead: what is left computes as without them."""
    for number, units in removed.items():
        for slot in groups[number].slots:
            layer = model.get_submodule(slot.path) if slot.side == "in" else None
            if layer is None or is_depthwise(layer):
                continue
            indices = sorted({index for unit in units for index in slot.rows[unit]})
            ((name, dim),) = _tensors(layer, "in")
            if isinstance(layer, CONVS) and layer.groups > 1:
                indices = sorted({index % (layer.in_channels // layer.groups) for index in indices})
            getattr(layer, name).index_fill_(dim, torch.tensor(indices), 0)


@contextmanager
def silence_unit(model: nn.Module, group: Group, unit: int) -> Iterator[None]:
    """Have readers of one unit read zeros meanwhile."""
    held = [
        (layer, weight_of(layer).detach().clone())
        for slot in group.slots
        if slot.side == "in" and not is_depthwise(layer := model.get_submodule(slot.path))
    ]
    silence(model, [group], {0: frozenset({unit})})
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in held:
                weight_of(layer).copy_(weight)


def has_readers(model: nn.Module, group: Group) -> bool:
    """Whether some layer reads the group's units, so that its weights tell what they are worth."""
    return any(slot.side == "in" and not is_depthwise(model.get_submodule(slot.path)) for slot in group.slots)
