"""Gradual magnitude pruning: zeros become more as training goes on, many at first, few at last.

Source: Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, train
from ferryman.converter.prune.unstructured.masks import Target, apply_masks, choose_masks
from ferryman.converter.prune.unstructured.recipe import Sparsity
from ferryman.runtime.contracts.errors import CallerError

PRUNING_SHARE = 0.6
"""Of all steps, in which zeros become more; in the rest weights settle around them."""
_CHOICES = 50
"""How often masks are chosen anew at most: often enough to be gradual, seldom enough to cost little."""


@dataclass(frozen=True)
class Schedule:
    """Equation 1 of the paper: the share of zeros after each step of training."""

    final: float
    count: int
    """n: how often masks are chosen after the first time."""
    initial: float = 0.0
    begin: int = 0
    """t0: the step of the first time."""
    every: int = 1
    """Steps between two times."""

    @property
    def end(self) -> int:
        """The step after which the share is final."""
        return self.begin + self.count * self.every

    def due(self, step: int) -> bool:
        """Whether masks are chosen anew after this step."""
        return self.begin <= step <= self.end and (step - self.begin) % self.every == 0

    def at(self, step: int) -> float:
        """The share of zeros after a step."""
        gone = min(max((step - self.begin) / (self.count * self.every), 0), 1)
        return self.final + (self.initial - self.final) * (1 - gone) ** 3


def make_schedule(final: float, steps: int) -> Schedule:
    """The schedule for so many steps of training, of which the last part leaves the zeros where they are."""
    end = max(1, round(PRUNING_SHARE * steps))
    every = -(-end // _CHOICES)
    return Schedule(final, count=max(1, end // every), every=every)


def prune_gradually(
    model: nn.Module,
    targets: Sequence[Target],
    sparsity: Sparsity,
    loader: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    loss: Loss = functional.cross_entropy,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
) -> FineTuned:
    """Train a model, in place, with ever more zeros among its weights, then with as many as asked for.

    What is zero gets no update that lasts. It is chosen anew every few steps by today's magnitudes.

    Args:
        model: dense and trained, best with a learning rate it was trained with; left in eval mode.
        targets: of this model.
        sparsity: the recipe.
        loader: (inputs, targets) batches, every time it is iterated over.
        epochs: all of them together.
        lr: of the first epoch.
        loss: of (outputs, targets).
        teacher: as `train` takes it.
        progress: told epoch (from 1), epochs and mean loss.

    Raises:
        CallerError: as `train`.
    """
    schedule = make_schedule(1, count_steps(loader, epochs))
    masks: dict[Target, torch.Tensor] = {}
    step = 0

    def prune() -> None:
        nonlocal masks, step
        step += 1
        if schedule.due(step):
            masks = choose_masks(targets, sparsity, schedule.at(step))
        apply_masks(masks)

    return train(
        model, loader, epochs=epochs, lr=lr, loss=loss, teacher=teacher, progress=progress, after_step=prune
    )  # fmt: skip


def count_steps(loader: Iterable[Batch], epochs: int) -> int:
    """How many steps training takes, counted without a trace in the random state.

    Raises:
        CallerError: epochs is no number of them, or the loader can be iterated over only once, or gives nothing.
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise CallerError(f"epochs is a whole number, 1 or more, found {epochs!r}")
    if isinstance(loader, Iterator):
        raise CallerError("the loader can be iterated over only once; give a DataLoader or a list of batches")
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:  # it has no length, or like a DataLoader of a stream does not know it
        with torch.random.fork_rng(devices=()):
            count = sum(1 for _ in loader)
    if not count:
        raise CallerError("the loader gives no batches")
    return epochs * count
