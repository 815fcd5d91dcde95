"""First and second moments of channels behind an activation, in closed form, of Gaussians in front of it.

A function of a Gaussian is a series of Hermite polynomials, and the covariance of two such functions is the sum of the
products of their coefficients times powers of the correlation (Mehler). No data is needed: batch norms tell mean and
spread of each channel, and weights how channels go together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

_POINTS = 96
_TERMS = 12
Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Series:
    """Channels f(mean + spread u), u a standard Gaussian."""

    coefficients: torch.Tensor
    """float64[channels, terms]: of normalised Hermite polynomials; the first is the mean."""
    variance: torch.Tensor
    """float64[channels]."""

    @property
    def mean(self) -> torch.Tensor:
        """float64[channels]."""
        return self.coefficients[:, 0]


def expand(mean: torch.Tensor, spread: torch.Tensor, function: Function) -> Series:
    """Expand channels.

    Args:
        mean: float[channels]: of the Gaussians.
        spread: float[channels]: their standard deviations; negative ones turn a channel around.
        function: applied to each number by itself.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    weights /= math.sqrt(2 * math.pi)
    u = torch.from_numpy(points)
    values = function(mean.double()[:, None] + spread.double()[:, None] * u)
    basis = [torch.ones_like(u), u]
    for order in range(2, _TERMS):
        basis.append((u * basis[-1] - math.sqrt(order - 1) * basis[-2]) / math.sqrt(order))
    weighed = values * torch.from_numpy(weights)
    coefficients = weighed @ torch.stack(basis).T
    variance = (weighed * values).sum(1) - coefficients[:, 0].square()
    return Series(coefficients, variance.clamp(min=0))


def covariance(first: Series, second: Series, correlation: torch.Tensor) -> torch.Tensor:
    """float64[channels, others]: of two sets of channels.

    Args:
        first: some channels.
        second: others.
        correlation: float64[channels, others]: of the Gaussians in front.
    """
    total = torch.zeros_like(correlation)
    power = torch.ones_like(correlation)
    for order in range(1, _TERMS):
        power = power * correlation
        total += first.coefficients[:, order, None] * second.coefficients[None, :, order] * power
    return total
