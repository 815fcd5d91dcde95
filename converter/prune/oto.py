"""Training that brings chosen units to zero, so that nothing changes when they go.

Chen et al. 2023, "OTOv2", and 2024, "OTOv3": the weights that make a unit, with its bias and batch norm, are a
zero-invariant group: where all are zero the unit gives zero, whatever it reads. The dual half-space projected gradient
(DHSPG) trains all weights, pulls the chosen groups towards zero the more the longer it takes, and puts a group to zero
once a step would take it out of the half-space of its present direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, train
from ferryman.converter.prune.units import CONVS, Group, Removed, is_depthwise
from ferryman.runtime.contracts.errors import CallerError

_PULL = 0.05
"""Of a group's first length, that a step takes at the end of the first epoch at most."""
_HALF = 0.0
"""How far into the half-space a step must stay."""


@dataclass
class _Part:
    """Rows of one tensor that belong to the units that go."""

    value: torch.Tensor
    index: list[torch.Tensor]
    """Of each unit."""


def can_be_zero(group: Group) -> bool:
    """Whether units of a group give zero where what makes them is zero."""
    return not group.mixes and group.leader is None and all(slot.side != "parameter" for slot in group.slots)


def zero_parts(model: nn.Module, group: Group, units: Sequence[int]) -> list[tuple[torch.Tensor, list[list[int]]]]:
    """What must be zero for units to give zero: (tensor with its channels in front, unit -> channels).

    Raises:
        CallerError: a norm mixes the units, or a tensor that is no layer's adds to them: zeros would not stay zeros.
    """
    if not can_be_zero(group):
        raise CallerError("units that a norm mixes, or a parameter adds to, cannot be trained to zero")
    found = []
    for slot in group.slots:
        layer = model.get_submodule(slot.path)
        if slot.side != "out" or isinstance(layer, nn.PReLU):
            continue
        rows = [list(slot.rows[unit]) for unit in units]
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if value is None:
                continue
            turned = name == "weight" and (isinstance(layer, nn.Embedding) or _transposed(layer))
            found.append((value.transpose(0, 1) if turned else value, rows))
    return found


def _transposed(layer: nn.Module) -> bool:
    return isinstance(layer, CONVS) and layer.transposed and not is_depthwise(layer)


class HalfSpace:
    """Brings units to zero while a model is trained: `step` after each step of an optimizer."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], removed: Removed) -> None:
        """Choose what goes.

        Args:
            model: in training; its parameters stay the same objects.
            groups: of it.
            removed: units that are to become zero.
        """
        self._units: list[list[tuple[torch.Tensor, list[int]]]] = []
        for number, units in removed.items():
            if not units:
                continue
            order = sorted(units)
            parts = zero_parts(model, groups[number], order)
            self._units += [[(value, rows[at]) for value, rows in parts] for at in range(len(order))]
        self._first = [self._length(unit) for unit in self._units]
        self._last = [self._read(unit) for unit in self._units]
        self._zero = [not length for length in self._first]
        self._pull = 0.0

    @property
    def left(self) -> int:
        """Units that are not zero yet."""
        return self._zero.count(False)

    def begin(self, epoch: int, epochs: int) -> None:
        """Pull harder as training goes on; in the last epoch what is left goes to zero."""
        self._pull = _PULL * (epoch + 1) / epochs
        if epoch == epochs - 1:
            self.finish()

    @torch.no_grad()
    def step(self) -> None:
        """Pull units towards zero, and put those to zero that have turned; what is zero stays so."""
        for number, unit in enumerate(self._units):
            if self._zero[number]:
                self._scale(unit, 0.0)
                continue
            before = self._last[number]
            length = self._length(unit)
            left = length - self._pull * self._first[number]
            self._scale(unit, max(left, 0.0) / length if length else 0.0)
            now = self._read(unit)
            if float(now @ before) <= _HALF * float(before @ before):
                self._zero[number] = True
                self._scale(unit, 0.0)
            self._last[number] = now

    @torch.no_grad()
    def finish(self) -> None:
        """Put all that is left to zero."""
        for number, unit in enumerate(self._units):
            self._zero[number] = True
            self._scale(unit, 0.0)

    @staticmethod
    def _read(unit: list[tuple[torch.Tensor, list[int]]]) -> torch.Tensor:
        return torch.cat([value.detach()[rows].flatten() for value, rows in unit])

    def _length(self, unit: list[tuple[torch.Tensor, list[int]]]) -> float:
        return float(self._read(unit).norm())

    @staticmethod
    def _scale(unit: list[tuple[torch.Tensor, list[int]]], factor: float) -> None:
        for value, rows in unit:
            value.data[rows] *= factor


def half_space_train(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Removed,
    loader: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    loss: Loss = functional.cross_entropy,
    progress: Progress | None = None,
) -> FineTuned:
    """Train a model, in place, so that units give zero; they can be taken out then, and nothing changes.

    Args:
        model: trained in place.
        groups: of it; none that a norm mixes may lose units.
        removed: units that are to become zero.
        loader: (inputs, targets) batches.
        epochs: of training; in the last all of them are zero.
        lr: learning rate of the first epoch.
        loss: of (outputs, targets).
        progress: told epoch, epochs and mean loss.

    Raises:
        CallerError: as `train`, or units that cannot be trained to zero are to go.
    """
    space = HalfSpace(model, groups, removed)
    return train(
        model,
        loader,
        epochs=epochs,
        lr=lr,
        loss=loss,
        progress=progress,
        before_epoch=space.begin,
        after_step=space.step,
    )
