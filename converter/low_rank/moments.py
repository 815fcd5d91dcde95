"""Second moments of what layers read: which errors of weights their outputs show.

The error of a layer's output is tr((W - W') C (W - W')^T), where C is the second moment of the windows that it reads.
So what inputs never hold costs nothing, and what they always hold costs most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.low_rank.layers import Layer, with_batch
from ferryman.runtime.contracts.errors import CallerError

_WINDOWS = 8192
"""Of all calls, that are looked at."""
_WHOLE = 2304
"""Windows of more numbers are taken to be alike at all taps, and taps not to go together."""


@dataclass(frozen=True)
class Moments:
    """Of a layer's windows [inputs, taps], flat."""

    matrix: torch.Tensor
    """float32[n, n]: of whole windows, or of channels at any tap where n is inputs alone."""
    mean: torch.Tensor | None
    """float64[inputs * taps]: then the matrix is of what differs from it; None: that was not looked at."""
    inputs: int
    taps: int

    @property
    def whole(self) -> bool:
        """Whether the matrix tells how taps go together."""
        return len(self.matrix) == self.inputs * self.taps

    def times(self, weights: torch.Tensor) -> torch.Tensor:
        """float64[n, inputs * taps]: weights times the moments."""
        matrix = self.matrix.double()
        if self.whole:
            return weights @ matrix
        apart = weights.reshape(-1, self.inputs, self.taps)
        return torch.einsum("nit,ij->njt", apart, matrix).reshape(weights.shape)

    def energy(self, weights: torch.Tensor) -> float:
        """The square of what float64[n, inputs * taps] gives, on average."""
        return float((self.times(weights) * weights).sum())

    def channels(self) -> torch.Tensor:
        """float64[inputs, inputs]: at any tap."""
        if not self.whole:
            return self.matrix.double()
        return (
            self.matrix.double()
            .reshape(self.inputs, self.taps, self.inputs, self.taps)
            .diagonal(dim1=1, dim2=3)
            .mean(-1)
        )

    def columns(self, height: int) -> torch.Tensor:
        """float64[inputs * height, inputs * height]: of one column of the windows, whichever."""
        if not self.whole:
            return torch.kron(self.matrix.double(), torch.eye(height, dtype=torch.float64))
        side = self.inputs, height, self.taps // height
        found = self.matrix.double().reshape(*side, *side).diagonal(dim1=2, dim2=5).mean(-1)
        return found.reshape(self.inputs * height, self.inputs * height)


def plain(layer: Layer) -> Moments:
    """Of inputs that are all as likely: the error of weights itself."""
    return Moments(torch.eye(layer.inputs), None, layer.inputs, math.prod(layer.kernel))


@torch.no_grad()
def gather(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[tuple[Any, ...]], *, centred: bool
) -> dict[Layer, Moments]:
    """Run the model and look at what layers read.

    The fewer windows there are for a layer's numbers, the more its moments are drawn to those of `plain`.

    Args:
        model: in eval mode.
        layers: of it.
        batches: positional inputs of several calls.
        centred: take the mean off, which a bias can make good.

    Raises:
        CallerError: the model fails with a batch.
    """
    sums = {one.module: _Sum(one, -(-_WINDOWS // len(batches))) for one in layers}
    hooks = [one.module.register_forward_pre_hook(sums[one.module].see) for one in layers]
    try:
        for batch in batches:
            model(*batch)
    except Exception as error:
        raise CallerError(
            f"the model fails with a batch of the loader: {type(error).__name__}: {error}; inputs must suit the model"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return {one: sums[one.module].finish(centred=centred) for one in layers}


class _Sum:
    def __init__(self, layer: Layer, windows: int) -> None:
        self.inputs, self.taps = layer.inputs, math.prod(layer.kernel)
        self.windows = max(1, windows // max(1, len(layer.calls)))
        self.whole = self.inputs * self.taps <= _WHOLE
        self.square = torch.zeros(*[self.inputs * (self.taps if self.whole else 1)] * 2)
        self.sum = torch.zeros(self.inputs * self.taps, dtype=torch.float64)
        self.count = 0

    def see(self, part: Any, given: tuple[Any, ...]) -> None:  # noqa: ANN401  # a hook
        x = with_batch(part, given[0]).detach().float()
        rows = pick_windows(part, x, self.windows)
        rows = rows[rows.isfinite().all(1)]
        self.count += len(rows)
        self.sum += rows.double().sum(0)
        apart = rows if self.whole else rows.reshape(-1, self.inputs, self.taps).transpose(1, 2).flatten(0, 1)
        self.square += apart.T @ apart / (1 if self.whole else self.taps)

    def finish(self, *, centred: bool) -> Moments:
        count = max(self.count, 1)
        square, mean = self.square.double() / count, self.sum / count
        if centred and self.whole:
            square -= mean[:, None] * mean
        elif centred:
            apart = mean.reshape(self.inputs, self.taps)
            square -= apart @ apart.T / self.taps
        numbers = len(square)
        drawn = numbers / (numbers + self.count * (1 if self.whole else self.taps))
        level = square.diagonal().mean().clamp(min=1e-12)
        square = (1 - drawn) * square + (drawn + 1e-6) * level * torch.eye(numbers, dtype=torch.float64)
        return Moments(square.float(), mean if centred else None, self.inputs, self.taps)


def pick_windows(part: nn.Linear | nn.Conv1d | nn.Conv2d, x: torch.Tensor, most: int) -> torch.Tensor:
    """Windows [n, inputs * taps] that a layer reads of x, some of them, the same every time."""
    draw: Callable[[int], torch.Tensor] = _draw(most)
    if isinstance(part, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows if len(rows) <= most else rows[draw(len(rows))]
    mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
    x = functional.pad(x, part._reversed_padding_repeated_twice, mode=mode)  # noqa: SLF001  # as its forward does
    windows = x
    for dim, (size, stride, dilation) in enumerate(
        zip(part.kernel_size, part.stride, part.dilation, strict=True), start=2
    ):
        windows = windows.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
    places = (len(x), *windows.shape[2 : 2 + len(part.kernel_size)])
    total = math.prod(places)
    flat = torch.arange(total) if total <= most else draw(total)
    image, *at = torch.unravel_index(flat, places)
    return windows.movedim(1, len(places))[image, *at].reshape(len(flat), -1)


def _draw(most: int) -> Callable[[int], torch.Tensor]:
    return lambda total: torch.randint(total, (most,), generator=torch.Generator().manual_seed(total))


def bias_shift(moments: Moments, lost: torch.Tensor) -> torch.Tensor | None:
    """What a bias makes good of lost weights float64[outputs, inputs * taps]; None: nothing is known of means."""
    return None if moments.mean is None else lost @ moments.mean
