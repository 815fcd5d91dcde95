"""Deep training (VanillaNet, Chen et al. 2023): activations that fade while a network trains, and are gone at the end.

Two layers with an activation between them learn more than one. `Fading` mixes the activation with its input, more and
more of the latter; when nothing of the activation is left the layers can be merged (see `merge`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, copy_model, train
from ferryman.runtime.contracts.errors import CallerError

_FADED = 2 / 3
"""Of the epochs, after which nothing of the activations is left, and training goes on without."""


class Fading(nn.Module):
    """(1 - share) * activation(x) + share * x, with a share that `train_deep` raises from 0 to 1."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = nn.ReLU() if activation is None else activation
        self.share = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of any shape."""
        if self.share == 1:
            return x
        mixed: torch.Tensor = torch.lerp(self.activation(x), x, self.share)
        return mixed

    def extra_repr(self) -> str:
        """The share."""
        return f"share={self.share:g}"


def train_deep(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    loss: Loss = functional.cross_entropy,
    progress: Progress | None = None,
) -> FineTuned:
    """Copy a network with `Fading` activations and train the copy until they are gone.

    The share rises evenly over the first two thirds of the epochs.

    Args:
        model: not changed.
        loader: (inputs, targets) batches, every time it is iterated over.
        epochs: at least 2.
        lr: learning rate of the first epoch.
        loss: of (outputs, targets).
        progress: told epoch (from 1), epochs and mean loss.

    Returns:
        The trained network, with nn.Identity in the places of its fading activations, in eval mode.

    Raises:
        CallerError: nothing of the model fades, fewer than 2 epochs, or as `train`.
    """
    made = copy_model(model)
    fading = [one for one in made.modules() if isinstance(one, Fading)]
    if not fading:
        raise CallerError("nothing of the model fades: put Fading where activations are to go, between two layers")
    if not isinstance(epochs, int) or epochs < 2:  # noqa: PLR2004  # one with, one without
        raise CallerError(f"activations fade over 2 epochs or more, found {epochs!r}")

    def fade(epoch: int, epochs: int) -> None:
        last = max(1, min(epochs - 1, round(epochs * _FADED)))
        for one in fading:
            one.share = min(1.0, epoch / last)

    tuned = train(made, loader, epochs=epochs, lr=lr, loss=loss, progress=progress, before_epoch=fade)
    for part in list(made.modules()):
        for name, child in part.named_children():
            if isinstance(child, Fading):
                setattr(part, name, nn.Identity())
    return tuned
