"""`sparsify`: a dense model in, one with zeros among its weights out, and what was done to each layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.training import Batch, Loss, Progress, copy_model, first_inputs
from ferryman.converter.prune.unstructured.gradual import prune_gradually
from ferryman.converter.prune.unstructured.masks import (
    Layers,
    apply_masks,
    choose_masks,
    find_targets,
)
from ferryman.converter.prune.unstructured.recipe import Sparsity, check_sparsity, parse_sparsity
from ferryman.converter.prune.unstructured.soft_shrinkage import prune_by_shrinkage
from ferryman.runtime.contracts.errors import CallerError


@dataclass(frozen=True)
class Sparse:
    """A model with zeros, and how it came about."""

    model: nn.Module
    """Plain modules with exact zeros in their weights, in eval mode."""
    sparsity: Sparsity
    decisions: tuple[Decision, ...]
    """Layer by layer, what share of its weights is zero, or why it stays dense; in the order of calls."""
    zeros: dict[str, float]
    """Path of each pruned layer -> share of its weights that is zero."""
    losses: tuple[float, ...]
    """Mean loss of each epoch; none without training."""


def sparsify(
    model: nn.Module,
    sparsity: Sparsity | str,
    *,
    loader: Iterable[Batch] | None = None,
    epochs: int = 10,
    lr: float = 2e-3,
    loss: Loss = functional.cross_entropy,
    distil: bool | None = None,
    example: Example | None = None,
    progress: Progress | None = None,
) -> Sparse:
    """Set weights of a trained model to zero; it is not changed.

    Without training data the smallest weights go, all at once. 90 percent and more of zeros need training: then zeros
    become more while the model trains (see `gradual`; `soft_shrinkage` with the option `shrink`), and in the last 40
    percent of the steps the rest settles. Give about the learning rate that the model was trained with.

    Args:
        model: dense and trained.
        sparsity: recipe, or its name.
        loader: (inputs, targets) batches, every time it is iterated over; None: no training.
        epochs: of training.
        lr: learning rate of the first epoch; it falls to nothing along a cosine.
        loss: of (outputs, targets).
        distil: train against the dense model's class probabilities too, for which outputs must be logits [N, classes];
            None: where the loss is cross-entropy.
        example: positional inputs of one call, by which the first convolution, and layers that are never called, are
            found; None takes the loader's first inputs, or without a loader the order of registration.
        progress: told epoch (from 1), epochs and mean loss.

    Raises:
        CallerError: no such recipe, a pattern of its `layers` that matches nothing, a model that cannot be copied or
            has nothing to prune, distil with another loss than cross-entropy or without a loader, or as `train`.
    """
    recipe = parse_sparsity(sparsity) if isinstance(sparsity, str) else check_sparsity(sparsity)
    if distil and (loader is None or loss is not functional.cross_entropy):
        raise CallerError("distil compares class probabilities: it goes with a loader and the loss cross_entropy")
    made = copy_model(model)
    if example is None and loader is not None:
        example = first_inputs(loader)
    layers = find_targets(made, recipe, example)
    losses: tuple[float, ...] = ()
    if loader is not None:
        prune = prune_by_shrinkage if recipe.shrink else prune_gradually
        distils = loss is functional.cross_entropy if distil is None else distil
        teacher = model if distils else None
        losses = prune(
            made, layers.targets, recipe, loader,
            epochs=epochs, lr=lr, loss=loss, teacher=teacher, progress=progress,
        ).losses  # fmt: skip
    else:
        apply_masks(choose_masks(layers.targets, recipe))
    zeros = _shares(layers)
    return Sparse(made.eval(), recipe, _decisions(layers, recipe, zeros), zeros, losses)


def _shares(layers: Layers) -> dict[str, float]:
    counts: dict[str, list[torch.Tensor]] = {}
    for target in layers.targets:
        for path in target.paths:
            counts.setdefault(path, []).append((target.parameter.detach() == 0).flatten())
    return {path: float(torch.cat(counts[path]).double().mean()) for path in layers.kinds if path in counts}


def _decisions(layers: Layers, recipe: Sparsity, zeros: dict[str, float]) -> tuple[Decision, ...]:
    own = {path for target in layers.targets if target.share is not None for path in target.paths}
    if recipe.pattern:
        why = f"{recipe.pattern.name} along its inputs"
    else:
        why = "the layer's percent" if recipe.layer else f"its part of {recipe.percent:g}% of all"
    return tuple(
        Decision(
            path=path,
            kind=kind,
            decision="sparse" if path in zeros else "float",
            reason=f"{zeros[path]:.1%} zero: {'as the recipe says' if path in own else why}"
            if path in zeros
            else layers.dense[path],
        )
        for path, kind in layers.kinds.items()
    )
