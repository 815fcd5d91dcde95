"""Training towards low ranks: weights are put to the ranks they will have every few steps, and learn to do with them.

Xu et al. 2020, "TRP: Trained Rank Pruning for Efficient Deep Neural Networks": low-rank approximation and training take
turns, and a sub-gradient of the nuclear norm, which the approximation's singular vectors give at once, draws what is
left to still lower ranks. Nothing is lost when the trained weights are decomposed at last, and no fine-tuning follows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ferryman.converter.low_rank.layers import Layer
from ferryman.converter.low_rank.learned import Trainer
from ferryman.converter.low_rank.shapes import Ranks, Way

_PERIOD = 10
"""Steps between truncations."""
_NUCLEAR = 3e-4
"""Weight of the nuclear norm, as published."""
Targets = Mapping[Layer, tuple[Way, Ranks]]


def truncate_while_training(model: nn.Module, targets: Targets, trainer: Trainer) -> tuple[float, ...]:
    """Train a model, in place, so that layers end up at given ranks.

    Args:
        model: trained.
        targets: of svd and spatial chains; other layers are trained as they are.
        trainer: trains, and gathers statistics of batch norms in the end.

    Returns:
        Mean loss of each epoch.

    Raises:
        CallerError: as `train`.
    """
    drawn: dict[Layer, torch.Tensor] = {}
    steps = 0

    def truncate_all() -> None:
        drawn.update({layer: truncate(layer, way, ranks[0]) for layer, (way, ranks) in targets.items()})

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps % _PERIOD == 0:
            truncate_all()

    def nuclear(_: nn.Module) -> torch.Tensor:
        """Its gradient is that of the nuclear norm where weights were last truncated."""
        each = [(drawn[layer] * layer.module.weight).sum() for layer in drawn]
        return _NUCLEAR * torch.stack(each).sum() if each else torch.zeros(())

    truncate_all()
    tuned = trainer(model, penalty=nuclear, after_step=step)
    truncate_all()
    return tuned.losses


@torch.no_grad()
def truncate(layer: Layer, way: Way, rank: int) -> torch.Tensor:
    """Put a layer's weights to a rank, in place.

    Args:
        layer: to change.
        way: svd or spatial.
        rank: of the matrix that is truncated then.

    Returns:
        A sub-gradient of its nuclear norm, in the weights' shape.
    """
    weight = layer.module.weight
    across = weight.permute(1, 2, 0, 3) if way == "spatial" else weight
    matrix = across.reshape(across.shape[0] * across.shape[1], -1) if way == "spatial" else across.flatten(1)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)

    def back(found: torch.Tensor) -> torch.Tensor:
        found = found.reshape(across.shape)
        return (found.permute(2, 0, 1, 3) if way == "spatial" else found).to(weight.dtype)

    weight.copy_(back((u[:, :rank] * s[:rank]) @ vh[:rank]))
    return back(u[:, :rank] @ vh[:rank])
