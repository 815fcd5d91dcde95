"""ISS-P: what matters little shrinks by a percentage at each step, and may grow again while training goes on.

A weight cut off at once gets no say any more; one that shrinks keeps its gradient, and leaves the set that shrinks as
soon as it is larger than others. At the end what is still in the set becomes zero.

Source: Wang et al., Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution, ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, train
from ferryman.converter.prune.unstructured.gradual import PRUNING_SHARE, count_steps
from ferryman.converter.prune.unstructured.masks import Target, apply_masks, choose_masks
from ferryman.converter.prune.unstructured.recipe import Sparsity

_SHRINKAGE = 0.1
"""Of a weight, at each step."""
_CHOICES = 1000
"""How often the set is chosen at most: at each step of short trainings; long ones change little from step to step."""


def prune_by_shrinkage(
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
    shrinkage: float = _SHRINKAGE,
) -> FineTuned:
    """Train a model, in place, while its smallest weights shrink; then without them.

    Args:
        model: trained or not; left in eval mode.
        targets: of this model.
        sparsity: the recipe: how many shrink, from the first step on.
        loader: (inputs, targets) batches, every time it is iterated over.
        epochs: all of them together.
        lr: of the first epoch.
        loss: of (outputs, targets).
        teacher: as `train` takes it.
        progress: told epoch (from 1), epochs and mean loss.
        shrinkage: of a weight's magnitude at each step, above 0 and up to 1.

    Raises:
        CallerError: as `train`.
    """
    end = max(1, round(PRUNING_SHARE * count_steps(loader, epochs)))
    every = -(-end // _CHOICES)
    masks: dict[Target, torch.Tensor] = {}
    step = 0

    def shrink() -> None:
        nonlocal masks, step
        step += 1
        if step <= end and (step % every == 0 or not masks or step == end):
            masks = choose_masks(targets, sparsity)
        if step >= end:
            apply_masks(masks)
        else:
            _shrink(masks, shrinkage)

    return train(
        model, loader, epochs=epochs, lr=lr, loss=loss, teacher=teacher, progress=progress, after_step=shrink
    )  # fmt: skip


@torch.no_grad()
def _shrink(masks: dict[Target, torch.Tensor], shrinkage: float) -> None:
    for target, mask in masks.items():
        target.parameter.mul_(torch.where(mask, 1, 1 - shrinkage))
