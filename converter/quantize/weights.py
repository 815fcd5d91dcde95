"""Weights rounded to a few bits: scales that lose least in the square, and rounding with error correction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_SHRINK = torch.linspace(1.0, 0.4, 61)
"""What the largest magnitude is multiplied by, to see which range loses least."""
_FEW = 8
_EXACT = 1e-10
"""Of the squared weights: what rounding of floats alone loses."""
_DAMPING = 0.01
_LEAST_HALF = 2.0**-24
"""A subnormal float16, as small as there is."""
_BLOCK = 128
_CACHED = 1 << 17
"""Weights at a time."""


@dataclass(frozen=True)
class Rounded:
    """w = scale * (integers - zero), with zero 0 where there is none."""

    integers: torch.Tensor
    """int32[out, inputs]: -2^(bits - 1) to 2^(bits - 1) - 1."""
    scale: torch.Tensor
    """float32[out, groups]; below zero for weights on a grid that reaches farther above zero than below."""
    zero: torch.Tensor | None
    """int32[out, groups], in the integers' range."""
    group: int
    """Inputs of a scale."""

    def values(self) -> torch.Tensor:
        """float32[out, inputs]."""
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero.float()
        inputs = self.integers.shape[1]
        return (self.integers - spread(zero, self.group, inputs)) * spread(self.scale, self.group, inputs)


@dataclass(frozen=True)
class Grid:
    """How the weights of a layer are rounded, as `round_weights` takes it."""

    bits: int
    group: int
    asymmetric: bool
    half: bool
    keep_zeros: bool = False
    """A weight of zero stays one, also where rounding corrects for others' errors."""

    @property
    def ends(self) -> tuple[int, int]:
        """Of the integers."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def round(self, rows: torch.Tensor, hessian: torch.Tensor | None = None) -> Rounded:
        """Round float32[out, inputs]."""
        return round_weights(
            rows,
            self.bits,
            group=self.group,
            asymmetric=self.asymmetric,
            half=self.half,
            hessian=hessian,
            keep_zeros=self.keep_zeros,
        )


def spread(values: torch.Tensor, group: int, inputs: int) -> torch.Tensor:
    """[out, groups] -> [out, inputs]."""
    return values.repeat_interleave(group, 1)[:, :inputs]


def round_weights(
    weight: torch.Tensor,
    bits: int,
    *,
    group: int = 0,
    asymmetric: bool = False,
    half: bool = False,
    hessian: torch.Tensor | None = None,
    keep_zeros: bool = False,
) -> Rounded:
    """Round weights, group by group.

    Args:
        weight: float32[out, inputs].
        bits: of a weight.
        group: inputs that share a scale; 0, or more than there are: all.
        asymmetric: with zero points.
        half: scales are held in float16.
        hessian: float64[inputs, inputs], the sum of x x^T over calibration: round in turn, and let later inputs make
            good what earlier ones lost (GPTQ, Frantar et al. 2023). None: to nearest.
        keep_zeros: with a hessian, have weights of zero stay zeros.
    """
    out, inputs = weight.shape
    group = min(group or inputs, inputs)
    padded = torch.nn.functional.pad(weight, (0, -inputs % group))
    grouped = padded.reshape(out, -1, group)
    if asymmetric:
        scale, zero = _asymmetric(grouped, bits, half=half)
    else:  # some rows at a time, which fit the cache
        some = torch.split(grouped, max(1, _CACHED // padded.shape[1]))
        with _one_thread():
            scale, zero = torch.cat([_symmetric(rows, bits, half=half) for rows in some]), None
    rounded = Rounded(torch.zeros(out, inputs, dtype=torch.int32), scale, zero, group)
    if hessian is None:
        integers = _nearest(weight, rounded, bits)
    else:
        integers = _corrected(weight, rounded, bits, hessian, keep_zeros=keep_zeros)
    return Rounded(integers.int(), scale, zero, group)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small steps: on a busy machine threads would wait for each other at the end of each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _held(scale: torch.Tensor, *, half: bool) -> torch.Tensor:
    """A scale as the artifact holds it, which is never 0."""
    least = _LEAST_HALF if half else torch.finfo(torch.float32).tiny
    size = scale.abs().clamp(min=least)
    return torch.where(scale < 0, -1.0, 1.0) * (size.half().float() if half else size)


def _symmetric(grouped: torch.Tensor, bits: int, *, half: bool) -> torch.Tensor:
    """float32[out, groups]: of some shrunken ranges, the one that loses least."""
    top = 2 ** (bits - 1)
    largest = grouped.abs().amax(2)
    # The integers reach one step farther below zero than above.
    candidates = [largest * shrink / step for step in (top, top - 1) for shrink in _SHRINK]
    # Weights that lie on a grid already keep it, whichever of its steps they reach.
    on_grid = [largest / step for step in range(1, top + 1)] if top <= _FEW else []
    found, loss = _least(grouped, candidates + on_grid, top, half=half)
    if on_grid:
        # A batch norm that is folded in may have turned over weights that lie on a grid. Others keep their side: the
        # one that loses least of the weights lost more of the outputs (0.9 dB at 2 bits, the mean of nine CNNs).
        turned, loss_turned = _least(grouped, [-scale for scale in on_grid], top, half=half)
        exact = (loss_turned < loss) & (loss_turned <= _EXACT * grouped.square().sum(2))
        found = torch.where(exact, turned, found)
    return found


def _least(
    grouped: torch.Tensor, candidates: list[torch.Tensor], top: int, *, half: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of some scales the one that loses least, and what it loses: float32[out, groups]."""
    best = torch.full(grouped.shape[:2], float("inf"))
    found = torch.ones_like(best)
    for candidate in candidates:
        scale = _held(candidate, half=half)
        by = scale[..., None]
        loss = (grouped - (grouped / by).round().clamp(-top, top - 1) * by).square().sum(2)
        found = torch.where(loss < best, scale, found)
        best = torch.minimum(loss, best)
    return found, best


def _asymmetric(grouped: torch.Tensor, bits: int, *, half: bool) -> tuple[torch.Tensor, torch.Tensor]:
    top = 2 ** (bits - 1)
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    scale = _held((high - low) / (2 * top - 1), half=half)
    return scale, (-top - low / scale).round().clamp(-top, top - 1).int()


def _nearest(weight: torch.Tensor, to: Rounded, bits: int) -> torch.Tensor:
    inputs = weight.shape[1]
    zero = torch.zeros_like(to.scale) if to.zero is None else to.zero.float()
    top = 2 ** (bits - 1)
    by = weight / spread(to.scale, to.group, inputs) + spread(zero, to.group, inputs)
    return by.round().clamp(-top, top - 1)


def _corrected(
    weight: torch.Tensor, to: Rounded, bits: int, hessian: torch.Tensor, *, keep_zeros: bool
) -> torch.Tensor:
    inputs = weight.shape[1]
    left = weight.double().clone()
    h = hessian.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    left[:, dead] = 0
    h += torch.eye(inputs, dtype=h.dtype) * _DAMPING * h.diagonal().mean()
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    zero = torch.zeros_like(to.scale) if to.zero is None else to.zero.float()
    scales, zeros = spread(to.scale, to.group, inputs).double(), spread(zero, to.group, inputs).double()
    top = 2 ** (bits - 1)
    integers = torch.zeros_like(left)
    for begin in range(0, inputs, _BLOCK):
        end = min(begin + _BLOCK, inputs)
        errors = torch.zeros(len(left), end - begin, dtype=left.dtype)
        for column in range(begin, end):
            scale, offset = scales[:, column], zeros[:, column]
            q = (left[:, column] / scale + offset).round().clamp(-top, top - 1)
            if keep_zeros:
                q = torch.where(weight[:, column] == 0, offset, q)
            integers[:, column] = q
            error = (left[:, column] - (q - offset) * scale) / inverse[column, column]
            left[:, column:end] -= error[:, None] * inverse[column, column:end]
            errors[:, column - begin] = error
        left[:, end:] -= errors @ inverse[begin:end, end:]
    return integers
