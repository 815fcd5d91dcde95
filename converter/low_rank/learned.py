"""Ranks that are learned: each layer a product of two, whose inner channels training puts in an order of importance.

Horvath et al. 2024, "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition": W = U V^T; in each step
one layer keeps only the first b of its inner channels, b drawn anew (ordered dropout), so that first ones come to
matter most; a hierarchical group lasso, the lengths of all tails of U and of V, draws the last ones to nothing, and a
tail that is as good as nothing is gone from the next epoch on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ferryman.converter.compress.training import FineTuned
from ferryman.converter.low_rank.decompose import Decomposer, Factors, build
from ferryman.converter.low_rank.layers import Factorable, Layer, put
from ferryman.converter.low_rank.moments import plain
from ferryman.converter.low_rank.shapes import price, rank_max

Trainer = Callable[..., FineTuned]
"""`train` with all but the model and what it is told between steps."""
_LASSO = 0.1
"""Of the loss, at the start, of all layers together."""
_TAIL = 0.02
"""Of the length of a whole product, under which a tail is gone."""


class Ordered(nn.Module):
    """A product of two layers, of which the first few inner channels can stand for all."""

    def __init__(self, layer: Layer) -> None:
        """Decompose a layer at full rank.

        Args:
            layer: with the weights to start from.
        """
        super().__init__()
        ranks = rank_max(layer, "svd")
        front, last = build(layer, Decomposer(layer, plain(layer)).factors("svd", ranks), None)
        self.front: Factorable = front  # type: ignore[assignment]  # of the layer's kind
        self.last: Factorable = last  # type: ignore[assignment]  # ditto
        self.rank = ranks[0]
        """Inner channels that are left."""
        self.drawn = ranks[0]
        """Those of the step at hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer; in training, of the channels that are drawn."""
        inner: torch.Tensor = self.front(x)
        dim = -1 if isinstance(self.last, nn.Linear) else 1
        keep = torch.arange(inner.shape[dim]) < (self.drawn if self.training else self.rank)
        shape = [1] * inner.dim()
        shape[dim] = -1
        found: torch.Tensor = self.last(inner * keep.reshape(shape))
        return found

    def tails(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float[rank] each: lengths of all that comes from each inner channel on, in front and behind."""
        front = self.front.weight[: self.rank].flatten(1).square().sum(1)
        last = self.last.weight[:, : self.rank].transpose(0, 1).flatten(1).square().sum(1)
        first, second = ((one.flip(0).cumsum(0).flip(0) + 1e-12).sqrt() for one in (front, last))
        return first, second

    @torch.no_grad()
    def shrink(self) -> None:
        """Let go of a tail that is as good as nothing."""
        front, last = self.tails()
        left = int((front * last > _TAIL**2 * front[0] * last[0]).sum())
        self.rank = self.drawn = max(1, left)

    def factors(self, rank: int) -> Factors:
        """The first few channels, as weights of a chain."""
        front = self.front.weight.detach().double()[:rank]
        last = self.last.weight.detach().double()[:, :rank].flatten(1)
        return Factors("svd", (rank,), (front,), front.flatten(1), last)


def learn_ranks(
    model: nn.Module, layers: Sequence[Layer], trainer: Trainer
) -> tuple[dict[Layer, Ordered], tuple[float, ...]]:
    """Train a model's layers as products, in place; then they are layers again, of the products' weights.

    Args:
        model: trained.
        layers: of it.
        trainer: trains.

    Returns:
        The products, and the mean loss of each epoch.

    Raises:
        CallerError: as `train`.
    """
    made = {layer: Ordered(layer) for layer in layers}
    macs = {layer: price(layer).macs for layer in layers}
    share = {layer: one / max(sum(macs.values()), 1) for layer, one in macs.items()}
    with torch.no_grad():
        start = {layer: float(sum(one.sum() for one in ordered.tails())) for layer, ordered in made.items()}
    order = list(made.values())
    last = order[0]

    def draw() -> None:
        nonlocal last
        last.drawn = last.rank
        last = order[int(torch.randint(len(order), ()))]
        last.drawn = int(torch.randint(1, last.rank + 1, ()))

    def begin(epoch: int, _: int) -> None:
        for one in order if epoch else ():
            one.shrink()
        draw()

    def lasso(_: nn.Module) -> torch.Tensor:
        return _LASSO * sum(  # type: ignore[return-value]  # a tensor, as there are layers
            share[layer] / start[layer] * sum(one.sum() for one in ordered.tails()) for layer, ordered in made.items()
        )

    whole = put(model, dict(made))
    tuned = trainer(whole, penalty=lasso, before_epoch=begin, after_step=draw)
    with torch.no_grad():
        for layer, ordered in made.items():
            ordered.shrink()
            layer.module.weight.copy_(ordered.factors(ordered.rank).dense().reshape(layer.module.weight.shape))
            if layer.module.bias is not None and ordered.last.bias is not None:
                layer.module.bias.copy_(ordered.last.bias)
    put(model, {layer: layer.module for layer in layers})
    model.eval()
    return made, tuned.losses
