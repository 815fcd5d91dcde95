"""Pruning a detector by groups of layers of one scale and one kind, each with a threshold of its own.

Chu et al. 2022, "Group channel pruning and spatial attention distilling for object detection": batch norms are first
trained to be sparse, at a rate that changes as training goes on; layers are divided into groups by the scale of their
features and the kind of module they are in, and in each group channels whose scale is under the group's threshold go;
then the narrower detector is trained again, and learns where the dense one looks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Example, in_eval_mode
from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, copy_model, train
from ferryman.converter.prune.budget import Cost, count
from ferryman.converter.prune.criteria import norms_behind, per_unit, producers
from ferryman.converter.prune.graph import find_groups, positional
from ferryman.converter.prune.units import Group, align, remove, weight_of
from ferryman.runtime.contracts.errors import CallerError, ModelError

Kind = tuple[int, str]
"""How many times smaller than the input a side of the features is, and the class of the module around."""
_RATE = 1e-3
_ATTENTION = 10.0
_LEAST = 10


def sparse_rate(epoch: int, epochs: int, rate: float = _RATE) -> float:
    """How hard scales are pulled to zero in an epoch: fully while the network can still move, then less and less.

    Args:
        epoch: from 0.
        epochs: all.
        rate: the highest.
    """
    done = epoch / max(epochs, 1)
    return rate if done < 0.5 else rate * 0.5 * (1 + math.cos(2 * math.pi * (done - 0.5)))  # noqa: PLR2004  # half


def sparse_train(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    loss: Loss,
    rate: float = _RATE,
    progress: Progress | None = None,
) -> FineTuned:
    """Train a model, in place, with the scales of its batch norms pulled to zero at a variable rate.

    Args:
        model: trained in place.
        loader: (inputs, targets) batches.
        epochs: of training.
        lr: learning rate of the first epoch.
        loss: of (outputs, targets).
        rate: the highest (see `sparse_rate`).
        progress: told epoch, epochs and mean loss.

    Raises:
        CallerError: as `train`, or the model has no batch norms.
    """
    scales = [part.weight for part in model.modules() if isinstance(part, nn.BatchNorm2d) and part.affine]
    if not scales:
        raise CallerError("the model has no batch norms with scales, which sparse training pulls to zero")
    now = 0.0

    def begin(epoch: int, every: int) -> None:
        nonlocal now
        now = sparse_rate(epoch, every, rate)

    return train(
        model, loader, epochs=epochs, lr=lr, loss=loss, progress=progress, before_epoch=begin,
        penalty=lambda _: now * torch.stack([scale.abs().sum() for scale in scales]).sum(),
    )  # fmt: skip


@dataclass(frozen=True)
class Divided:
    """A model's units, in groups of layers."""

    groups: tuple[Group, ...]
    members: dict[Kind, tuple[int, ...]]
    """Numbers of `groups`."""


def divide(model: nn.Module, *, example: Example) -> Divided:
    """Divide the layers of a model by the scale of their features and the module they are in.

    Args:
        model: in eval mode; not changed.
        example: positional inputs of one call; the first is an image.

    Raises:
        CallerError: the model fails with the example.
        ModelError: nothing of it can be pruned by batch norms.
    """
    inputs = positional(example)
    norms = norms_behind(model, inputs)
    groups = tuple(
        group
        for group in find_groups(model, inputs).groups
        if any(slot.path in norms for slot, _ in producers(model, group))
    )
    if not groups:
        raise ModelError("no channels of the model have a batch norm behind their convolution")
    sizes = _sizes(model, inputs)
    members: dict[Kind, list[int]] = {}
    for number, group in enumerate(groups):
        path = next(slot.path for slot, _ in producers(model, group) if slot.path in norms)
        around = model.get_submodule(path.rpartition(".")[0])
        kind = round(inputs[0].shape[-1] / sizes[path]), type(around).__name__
        members.setdefault(kind, []).append(number)
    return Divided(groups, {kind: tuple(numbers) for kind, numbers in sorted(members.items())})


def _sizes(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    found: dict[str, int] = {}

    def watch(path: str) -> Callable[..., None]:
        return lambda _, __, out: found.update({path: out.shape[-1]})

    hooks = [
        part.register_forward_hook(watch(path)) for path, part in model.named_modules() if isinstance(part, nn.Conv2d)
    ]
    with in_eval_mode(model), torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return found


@dataclass(frozen=True)
class GroupPruned:
    """A narrower detector."""

    model: nn.Module
    """In eval mode."""
    thresholds: dict[Kind, float]
    """Under which scales went."""
    kept: dict[Kind, tuple[int, int]]
    """Channels of each group of layers, and how many are left."""
    before: Cost
    after: Cost


def group_prune(
    model: nn.Module, rates: float | Mapping[Kind, float], *, example: Example, channels: int = 0
) -> GroupPruned:
    """Take out, in each group of layers, the channels of the smallest scales; the given model is not changed.

    Args:
        model: trained to be sparse.
        rates: how much of each group goes, 0 to below 1; one for all, or by group (see `divide`), else 0.
        example: positional inputs of one call.
        channels: widths are multiples of it; 0: of 8, where the dense ones are, of 16 or more.

    Raises:
        CallerError: a rate is out of range or of a group there is not, or as `divide`.
        ModelError: as `divide`.
    """
    inputs = positional(example)
    work = copy_model(model).eval()
    divided = divide(work, example=inputs)
    by = dict.fromkeys(divided.members, float(rates)) if isinstance(rates, int | float) else dict(rates)
    if unknown := by.keys() - divided.members.keys():
        raise CallerError(
            f"there is no group {', '.join(map(str, unknown))}; there are: {', '.join(map(str, divided.members))}"
        )
    if bad := [rate for rate in by.values() if not 0 <= rate < 1]:
        raise CallerError(f"a rate is 0 to below 1, found {bad[0]}")
    norms = norms_behind(work, inputs)
    groups = [align(group, channels) for group in divided.groups]
    scales = [_scales(work, group, norms) for group in groups]
    removed, thresholds, kept = {}, {}, {}
    for kind, numbers in divided.members.items():
        every = torch.cat([scales[number] for number in numbers])
        threshold = float(every.quantile(by.get(kind, 0.0)))
        thresholds[kind], left = threshold, 0
        for number in numbers:
            group, order = groups[number], scales[number].argsort()
            over = max(int((scales[number] >= threshold).sum()), -(-group.count // _LEAST), group.least)
            stays = min(group.count, -(-over // group.step) * group.step)
            removed[number] = frozenset(order[: group.count - stays].tolist())
            left += stays
        kept[kind] = len(every), left
    made = copy.deepcopy(work)
    remove(made, groups, removed)
    return GroupPruned(made.eval(), thresholds, kept, count(work, inputs), count(made, inputs))


def _scales(model: nn.Module, group: Group, norms: Mapping[str, str]) -> torch.Tensor:
    """float[units]: the largest scale that a batch norm gives each unit."""
    found = [
        per_unit(slot, weight_of(model.get_submodule(norms[slot.path])).detach().abs()) / len(slot.rows[0])
        for slot, _ in producers(model, group)
        if slot.path in norms
    ]
    return torch.stack(found).amax(0)


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """Where features [N, channels, h, w] are strong: [N, h * w] of length 1, whatever the number of channels."""
    return functional.normalize(features.square().mean(1).flatten(1), dim=1)


class AttentionDistiller:
    """Compares where a model and its dense teacher look, at given modules of both, while the model is trained."""

    def __init__(self, student: nn.Module, teacher: nn.Module, paths: Iterable[str]) -> None:
        """Watch modules.

        Args:
            student: in training.
            teacher: in eval mode meanwhile.
            paths: of modules of both that give features [N, channels, h, w], such as the last of each scale.

        Raises:
            CallerError: there is no such module.
        """
        self._teacher = teacher.eval()
        self._found: dict[nn.Module, list[torch.Tensor]] = {student: [], teacher: []}
        self._hooks = []
        for model in (student, teacher):
            there = dict(model.named_modules())
            for path in paths:
                if path not in there:
                    raise CallerError(f"there is no module {path!r} to look at in both models")
                self._hooks.append(there[path].register_forward_hook(self._keep(model)))
        self._student = student

    def _keep(self, model: nn.Module) -> Callable[..., None]:
        return lambda _, __, out: self._found[model].append(out)

    def loss(self, loss: Loss, weight: float = _ATTENTION) -> Callable[[torch.Tensor, Any, Any], torch.Tensor]:
        """A loss of (inputs, outputs, targets): the task's, and how far apart the attention maps are.

        Args:
            loss: of (outputs, targets).
            weight: of the attention.
        """

        def both(inputs: torch.Tensor, outputs: Any, targets: Any) -> torch.Tensor:  # noqa: ANN401  # the task's
            mine = self._found[self._student]
            with torch.no_grad():
                self._teacher(inputs)
            theirs = self._found[self._teacher]
            apart = [
                (attention_map(a) - attention_map(b)).square().sum(1).mean() for a, b in zip(mine, theirs, strict=True)
            ]
            self._clear()
            return loss(outputs, targets) + weight * torch.stack(apart).mean()

        return both

    def _clear(self) -> None:
        for found in self._found.values():
            found.clear()

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()
        self._clear()


class _WithInputs(nn.Module):
    """Gives its inputs beside the outputs, for a loss that needs both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return x, self.model(x)


def distil_train(
    student: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Batch],
    *,
    paths: Iterable[str],
    epochs: int,
    lr: float,
    loss: Loss,
    weight: float = _ATTENTION,
    progress: Progress | None = None,
) -> FineTuned:
    """Train a pruned model, in place, on its task and to look where the dense one does.

    Args:
        student: trained in place.
        teacher: dense.
        loader: (inputs, targets) batches.
        paths: of modules of both whose features are compared.
        epochs: of training.
        lr: learning rate of the first epoch.
        loss: of (outputs, targets).
        weight: of the attention.
        progress: told epoch, epochs and mean loss.

    Raises:
        CallerError: there is no such module, or as `train`.
    """
    distiller = AttentionDistiller(student, teacher, list(paths))
    both = distiller.loss(loss, weight)
    try:
        tuned = train(
            _WithInputs(student), loader, epochs=epochs, lr=lr, progress=progress,
            loss=lambda outputs, targets: both(outputs[0], outputs[1], targets),
        )  # fmt: skip
    finally:
        distiller.close()
    return FineTuned(model=student.eval(), losses=tuned.losses)
