"""Gradients that stand in for the derivative of the sign function, which is zero almost everywhere.

Forward every estimator is the same exact sign; they differ in the slope that the backward pass takes for its
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ferryman.runtime.contracts.errors import CallerError


class Estimator(Protocol):
    """What the backward pass takes for the sign's derivative."""

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """The derivative to use at `x`: same shape, never negative."""
        ...

    def schedule(self, epoch: int, epochs: int) -> None:
        """Get ready for epoch `epoch` (from 0) of `epochs`."""
        ...


class Ste:
    """The clipped straight-through estimator: slope 1 where |x| <= 1, else 0.

    Source: Hubara et al., Binarized Neural Networks, 2016, equation 4.
    """

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """1 where |x| <= 1, else 0."""
        return (x.abs() <= 1).to(x.dtype)

    def schedule(self, epoch: int, epochs: int) -> None:
        """Nothing: the slope does not change during training."""


class ReSte:
    """The rectified straight-through estimator: the slope of f(x) = sign(x) |x|^(1/o), o raised during training.

    With o = 1 it is the identity, stable but a poor stand-in; the larger o, the closer f is to the sign and the less
    stable its gradient. f'(x) = |x|^((1 - o) / o) / o grows without bound towards 0, so that |x| < m takes the average
    slope f(m) / m, and |x| > t takes 0.

    Source: Wu et al., Estimator Meets Equilibrium Perspective, ICCV 2023, section 4. o rises linearly here, where the
    authors' own training script follows a quarter of a cosine.

    Args:
        o_end: what o rises to, at least 1.
        t: threshold beyond which the gradient is 0.
        m: half the interval around 0 that takes the average slope.

    Raises:
        CallerError: o_end < 1, or not 0 < m < t.
    """

    def __init__(self, o_end: float = 3.0, t: float = 1.5, m: float = 0.1) -> None:
        if o_end < 1 or not 0 < m < t:
            raise CallerError(f"ReSTE needs o_end >= 1 and 0 < m < t, found o_end={o_end}, t={t}, m={m}")
        self.o_end, self.t, self.m = o_end, t, m
        self.o = 1.0

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """f'(|x|) between m and t, f(m) / m below m, 0 above t."""
        size = x.abs()
        power = size.clamp(min=self.m).pow((1 - self.o) / self.o) / self.o
        average = self.m ** (1 / self.o) / self.m
        return torch.where(size < self.m, average, power) * (size <= self.t)

    def schedule(self, epoch: int, epochs: int) -> None:
        """Let o = 1 + (o_end - 1) * epoch / epochs."""
        self.o = 1 + (self.o_end - 1) * epoch / epochs


ESTIMATORS: dict[str, Callable[[], Estimator]] = {"ste": Ste, "reste": ReSte}


def make_estimator(estimator: str | Estimator) -> Estimator:
    """Make an estimator by its name; one that is made already passes through.

    Raises:
        CallerError: no such name.
    """
    if not isinstance(estimator, str):
        return estimator
    if estimator not in ESTIMATORS:
        raise CallerError(f"no estimator {estimator!r}; there are: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[estimator]()


def sign(x: torch.Tensor) -> torch.Tensor:
    """+1.0 where x >= 0, -1.0 elsewhere (NaN too); no gradient."""
    return torch.where(x >= 0, 1.0, -1.0)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, estimator: Estimator) -> torch.Tensor:  # noqa: ANN401  # torch's own type
        ctx.save_for_backward(x)
        ctx.estimator = estimator
        return sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        return gradient * ctx.estimator.slope(x), None


def estimated_sign(x: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """The sign of `x`, with the estimator's gradient."""
    signs: torch.Tensor = _Sign.apply(x, estimator)  # type: ignore[no-untyped-call]
    return signs
