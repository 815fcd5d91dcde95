"""Sparse Bayesian layers: a normal distribution over a few weights each, all others zero from the first step on.

How many weights have a distribution is fixed; which ones is learned along with them. Every few steps those that tell
least by signal over noise are removed, and as many are added where the loss asks most for a weight.

Source: Li et al., Training Bayesian Neural Networks with Sparse Subspace Variational Inference, ICLR 2024. What it
saves in training is not saved here: tensors are whole, with zeros in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, copy_model, train
from ferryman.converter.prune.unstructured.gradual import count_steps
from ferryman.runtime.contracts.errors import CallerError

_START_DEVIATION = 0.01
_PRIOR_DEVIATION = 1.0
_PACE = 10.0
"""Times the learning rate, that logarithms of variances move by: they have a longer way to go than means."""
_CHANGED = 0.1
"""Of the chosen weights, at the first change of the basis; fewer later, along a cosine."""
_EVERY = 10
"""Steps between two changes."""
_CHANGING_SHARE = 0.75
"""Of all steps, in which the basis changes."""
_LEAST_CHOSEN = 4
"""A layer keeps so many weights, or all it has: with none no gradient would pass it."""


class VariationalLayer(nn.Module):
    """What the two layers below share: means, deviations, and which weights are chosen."""

    chosen: torch.Tensor

    def __init__(self, shape: Sequence[int], bias: bool, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise CallerError(f"the share of zeros is 0 to below 1, found {share}")
        fan_in = math.prod(shape[1:])
        count = max(round((1 - share) * math.prod(shape)), min(_LEAST_CHOSEN, math.prod(shape)))
        chosen = torch.zeros(math.prod(shape), dtype=torch.bool)
        chosen[torch.randperm(chosen.numel())[:count]] = True
        self.register_buffer("chosen", chosen.view(*shape))
        # As large as the few that are left must be for the outputs to keep their size.
        deviation = math.sqrt(2 / max(1, fan_in * (1 - share)))
        self.mean = nn.Parameter(torch.randn(*shape) * deviation * self.chosen)
        self.spread = nn.Parameter(torch.zeros(*shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None

    @property
    def log_variance(self) -> torch.Tensor:
        """Of each weight, were it chosen."""
        return 2 * math.log(_START_DEVIATION) + _PACE * self.spread

    @property
    def variance(self) -> torch.Tensor:
        """Of each weight; 0 where it is not chosen."""
        return self.log_variance.exp() * self.chosen

    def divergence(self) -> torch.Tensor:
        """Kullback-Leibler, of the chosen weights from the prior, in nats."""
        by_prior = (self.mean.square() + self.log_variance.exp()) / _PRIOR_DEVIATION**2
        each = (by_prior - 1 - self.log_variance + 2 * math.log(_PRIOR_DEVIATION)) / 2
        return (each * self.chosen).sum()

    def sample(self) -> torch.Tensor:
        """Draw weights by torch's generator."""
        return self.mean.detach() + self.variance.detach().sqrt() * torch.randn_like(self.mean)

    def _noisy(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """Draw outputs instead of weights: another draw for each image (Kingma et al. 2015)."""
        return mean + variance.clamp(min=1e-12).sqrt() * torch.randn_like(mean)

    def plain(self, weight: torch.Tensor) -> nn.Module:
        """The ordinary layer with these weights."""
        raise NotImplementedError

    def _filled(self, layer: nn.Linear | nn.Conv2d, weight: torch.Tensor) -> nn.Module:
        with torch.no_grad():
            layer.weight.copy_(weight)
            if self.bias is not None and layer.bias is not None:
                layer.bias.copy_(self.bias)
        return layer.eval()


class VariationalLinear(VariationalLayer):
    """nn.Linear with a distribution; computes with the means in eval mode."""

    def __init__(self, inside: int, outside: int, *, share: float, bias: bool = True) -> None:
        super().__init__((outside, inside), bias, share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[..., inside] -> [..., outside]."""
        y = functional.linear(x, self.mean, self.bias)
        return self._noisy(y, functional.linear(x.square(), self.variance)) if self.training else y

    def plain(self, weight: torch.Tensor) -> nn.Module:
        """nn.Linear with these weights."""
        outside, inside = self.mean.shape
        return self._filled(nn.Linear(inside, outside, self.bias is not None), weight)


class VariationalConv2d(VariationalLayer):
    """nn.Conv2d with a distribution; computes with the means in eval mode."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        *,
        share: float,
        bias: bool = True,
    ) -> None:
        super().__init__((outside, inside, kernel, kernel), bias, share)
        self.stride, self.padding = stride, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, inside, H, W] -> [N, outside, H', W']."""
        y = functional.conv2d(x, self.mean, self.bias, self.stride, self.padding)
        if not self.training:
            return y
        return self._noisy(y, functional.conv2d(x.square(), self.variance, None, self.stride, self.padding))

    def plain(self, weight: torch.Tensor) -> nn.Module:
        """nn.Conv2d with these weights."""
        outside, inside, kernel, _ = self.mean.shape
        layer = nn.Conv2d(inside, outside, kernel, self.stride, self.padding, bias=self.bias is not None)
        return self._filled(layer, weight)


def signal_to_noise(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Mean over deviation of a weight's magnitude, the criterion by which weights are removed (SNR of |w|).

    It is that of a folded normal distribution: sqrt(2 / (pi - 2)) where the mean is zero, and more elsewhere.
    """
    deviation = variance.sqrt()
    by = mean / deviation
    magnitude = deviation * math.sqrt(2 / math.pi) * (-by.square() / 2).exp() + mean * (by / math.sqrt(2)).erf()
    noise = (mean.square() + variance - magnitude.square()).clamp(min=1e-20)
    return magnitude / noise.sqrt()


def train_variational(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    samples: int,
    epochs: int,
    lr: float,
    temperature: float = 1.0,
    loss: Loss = functional.cross_entropy,
    progress: Progress | None = None,
) -> FineTuned:
    """Train a model with variational layers, in place, by the evidence lower bound; its basis changes meanwhile.

    Args:
        model: trained in place, and left in eval mode.
        loader: (inputs, targets) batches, every time it is iterated over.
        samples: how many the loader gives an epoch; the divergence from the prior counts once for all of them.
        epochs: at least 1.
        lr: of the first epoch.
        temperature: weight of the divergence, above 0; 1 is the bound itself. Less is a cold posterior, which suits
            few samples and many weights better (Wenzel et al., How Good is the Bayes Posterior, 2020).
        loss: negative log-likelihood of (outputs, targets), mean over samples.
        progress: told epoch (from 1), epochs and the mean of the bound's negative, a sample.

    Raises:
        CallerError: a model without variational layers, samples below 1, no temperature, or as `train`.
    """
    layers = _layers(model)
    if not isinstance(samples, int) or samples < 1:
        raise CallerError(f"samples is a whole number, 1 or more, found {samples!r}")
    if not 0 < temperature < math.inf:
        raise CallerError(f"temperature is a finite number above 0, found {temperature!r}")
    last = _CHANGING_SHARE * count_steps(loader, epochs)
    step = 0

    def change() -> None:
        nonlocal step
        step += 1
        if step % _EVERY == 0 and step <= last:
            change_basis(layers, _CHANGED * (1 + math.cos(math.pi * step / last)) / 2)
        with torch.no_grad():
            for layer in layers:
                layer.mean.mul_(layer.chosen)

    def penalty(_: nn.Module) -> torch.Tensor:
        return torch.stack([layer.divergence() for layer in layers]).sum() * (temperature / samples)

    return train(
        model, loader, epochs=epochs, lr=lr, loss=loss, progress=progress, penalty=penalty, after_step=change
    )  # fmt: skip


@torch.no_grad()
def change_basis(layers: Sequence[VariationalLayer], share: float) -> int:
    """Remove the chosen weights of least signal to noise, and add as many others where the gradient is largest.

    Layers compete: one may get what another loses. Gradients are those of the last step, also of what is not chosen:
    they say what a weight there would do for the loss.

    Args:
        layers: after a step of training.
        share: of all chosen weights, that changes.

    Returns:
        How many were removed; as many were added.
    """
    count = sum(int(layer.chosen.sum()) for layer in layers)
    telling = torch.cat([_protected(signal_to_noise(layer.mean, layer.variance), layer.chosen) for layer in layers])
    removable = int(telling.isfinite().sum())
    wanted = torch.cat(
        [
            torch.where(layer.chosen, -1, 0 if layer.mean.grad is None else layer.mean.grad.abs()).flatten()
            for layer in layers
        ]
    )
    changed = min(round(share * count), removable, int((wanted >= 0).sum()))
    removed = telling.argsort(stable=True)[:changed]
    added = wanted.argsort(descending=True, stable=True)[:changed]
    sizes = [layer.chosen.numel() for layer in layers]
    chosen = torch.cat([layer.chosen.flatten() for layer in layers])
    chosen[removed] = False
    chosen[added] = True
    new = torch.zeros_like(chosen)
    new[added] = True
    for layer, now, fresh in zip(layers, torch.split(chosen, sizes), torch.split(new, sizes), strict=True):
        layer.chosen.copy_(now.view_as(layer.chosen))
        layer.mean.mul_(layer.chosen & ~fresh.view_as(layer.chosen))
        layer.spread.mul_(~fresh.view_as(layer.chosen))
    return changed


def _protected(telling: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Infinite where nothing may be removed: what is not chosen, and the last few of a layer."""
    telling = torch.where(chosen, telling, math.inf).flatten()
    most = telling.masked_fill(~chosen.flatten(), -math.inf).topk(min(_LEAST_CHOSEN, telling.numel())).indices
    telling[most] = math.inf
    return telling


def _layers(model: nn.Module) -> list[VariationalLayer]:
    layers = [part for part in model.modules() if isinstance(part, VariationalLayer)]
    if not layers:
        raise CallerError("the model has no variational layers: build it of VariationalLinear and VariationalConv2d")
    return layers


# What is converted.


def posterior_mean(model: nn.Module) -> nn.Module:
    """The plain model of mean weights, with exact zeros, in eval mode.

    Raises:
        CallerError: no variational layers, or it cannot be copied.
    """
    return _with_weights(model, [layer.mean.detach() * layer.chosen for layer in _layers(model)])


def ensemble(model: nn.Module, members: int) -> Ensemble:
    """Draw models from the posterior, by torch's generator: plain ones, with zeros in the same places.

    Raises:
        CallerError: members below 2, no variational layers, or it cannot be copied.
    """
    if members < 2:  # noqa: PLR2004  # one has nothing to differ from
        raise CallerError(f"an ensemble has 2 members or more, found {members}")
    return Ensemble([_with_weights(model, [layer.sample() for layer in _layers(model)]) for _ in range(members)])


def _with_weights(model: nn.Module, weights: list[torch.Tensor]) -> nn.Module:
    made = copy_model(model)
    plain = {layer: layer.plain(weight) for layer, weight in zip(_layers(made), weights, strict=True)}
    if made in plain:
        return plain[made]
    for owner in list(made.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, VariationalLayer):
                setattr(owner, name, plain[child])
    return made.eval()


@dataclass(frozen=True)
class Beliefs:
    """What an ensemble of classifiers says, in the order of its outputs."""

    probabilities: torch.Tensor
    """float32[N, classes]: mean over the members."""
    entropy: torch.Tensor
    """float32[N]: of these, in nats; all the uncertainty there is."""
    disagreement: torch.Tensor
    """float32[N]: the part of it that comes from members differing (their mutual information with the answer), in nats;
    the rest all members see alike."""


class Ensemble(nn.Module):
    """Classifiers with fixed weights side by side; what they agree on, and how far they do not."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of the members -> probabilities [N, classes], entropy [N] and disagreement [N], see Beliefs."""
        logs = torch.stack([functional.log_softmax(member(x), 1) for member in self.members])
        each = logs.exp()
        mean = each.mean(0)
        entropy = -(mean * mean.clamp(min=1e-12).log()).sum(1)
        return mean, entropy, entropy + (each * logs).sum(2).mean(0)

    @torch.no_grad()
    def believe(self, x: torch.Tensor) -> Beliefs:
        """The same with names."""
        return Beliefs(*self(x))
