"""The decompositions: weights of a chain from weights of a layer and the moments of what it reads.

Each finds the thin layers in front; the last one is then the least squares of what they give (PCA of outputs for svd:
Zhang et al. 2016), so that errors are of outputs, not of weights. TensorLy does Tucker-2 and CP.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass, replace

import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker
from torch import nn

from ferryman.converter.low_rank.layers import Layer
from ferryman.converter.low_rank.moments import Moments, bias_shift
from ferryman.converter.low_rank.shapes import Ranks, Way, chain

_CP_ROUNDS, _TUCKER_ROUNDS = 20, 10
_CP_WORK = 2e8
"""Multiplications of one round of CP that are still waited for."""


@dataclass(frozen=True)
class Factors:
    """A chain's weights, before its bias."""

    way: Way
    ranks: Ranks
    front: tuple[torch.Tensor, ...]
    """float64: of the thin layers before the last: [channels, inputs, *taps] each."""
    maps: torch.Tensor
    """float64[features, inputs * taps]: what the last layer reads, of a window; of spatial [rank * width, ...]."""
    last: torch.Tensor
    """float64[outputs, features]."""

    def dense(self) -> torch.Tensor:
        """float64[outputs, inputs * taps]: the one layer that the chain is."""
        return self.last @ self.maps


class Decomposer:
    """Of one layer: what all its ranks share is computed once."""

    def __init__(self, layer: Layer, moments: Moments) -> None:
        """Take the layer's weights as they are now, and both them and moments at a length that squares are numbers of.

        Args:
            layer: with finite weights.
            moments: of what it reads.
        """
        level = moments.matrix.double().diagonal().mean()
        self.layer, self.moments = layer, replace(moments, matrix=moments.matrix.double() / level)
        weight = layer.module.weight.detach().double()
        self.taps = math.prod(layer.kernel)
        self.shape = tuple(weight.shape)
        self.scale = float(weight.abs().max()) or 1.0
        """What the largest weight is, in whose stead there is a 1."""
        self.weight = weight.flatten(1) / self.scale
        self.energy = max(self.moments.energy(self.weight), 1e-300)

    def unfit(self) -> str | None:
        """Why there is nothing to decompose; None: there is."""
        if not bool(self.weight.any()):
            return "its weights are all zero"
        if not math.isfinite(self.energy):
            return "what it reads is too large for float32: the squares of it are not finite"
        return None

    def factors(self, way: Way, ranks: Ranks) -> Factors:
        """The chain's weights.

        Raises:
            torch.linalg.LinAlgError: none were found, such as by CP of weights that have less than the rank.
        """
        if way == "svd":
            basis = self._outputs[:, : ranks[0]]
            maps = basis.T @ self.weight
            return _balanced(way, ranks, (maps.reshape(-1, *self.shape[1:]),), maps, basis * self.scale)
        front, maps = {"spatial": self._spatial, "tucker": self._tucker, "cp": self._cp}[way](ranks)
        return _balanced(way, ranks, front, maps, self._refit(maps) * self.scale)

    def error(self, factors: Factors) -> float:
        """What the layer's output loses in the square, relative to its own."""
        return max(0.0, self.moments.energy(self._lost(factors))) / self.energy

    def shift(self, factors: Factors) -> torch.Tensor | None:
        """What a bias makes good; None: nothing is known of means."""
        return bias_shift(self.moments, self._lost(factors) * self.scale)

    def _lost(self, factors: Factors) -> torch.Tensor:
        return self.weight - factors.dense() / self.scale

    def tucker_ranks(self, outputs: int, step: int) -> Ranks:
        """The rank of inputs that loses no more than some of outputs."""
        lost_outputs = 1 - self._spectra[0][:outputs].sum() / self._spectra[0].sum()
        lost = 1 - self._spectra[1].cumsum(0) / self._spectra[1].sum()
        rank = 1 + int((lost > lost_outputs + 1e-12).sum())
        return min(len(lost), -(-rank // step) * step), outputs

    def can_cp(self, rank: int) -> bool:
        """Whether CP of so many terms is found in reasonable time."""
        return rank * self.weight.numel() * len(self.shape) <= _CP_WORK

    def _refit(self, maps: torch.Tensor) -> torch.Tensor:
        """The last layer: the least squares of the outputs, of the features."""
        read = self.moments.times(maps)
        square = read @ maps.T
        square += 1e-9 * square.diagonal().mean().clamp(min=1e-30) * torch.eye(len(square), dtype=square.dtype)
        found: torch.Tensor = torch.linalg.lstsq(square, read @ self.weight.T).solution
        return found.T

    @functools.cached_property
    def _outputs(self) -> torch.Tensor:
        """Directions of outputs, the strongest first."""
        square = self.moments.times(self.weight) @ self.weight.T
        found: torch.Tensor = torch.linalg.eigh((square + square.T) / 2).eigenvectors
        return found.flip(1)

    @functools.cached_property
    def _whitened(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights [outputs, inputs, *kernel] for inputs of unit moments, and what brings inputs there."""
        root, back = _roots(self.moments.channels())
        tensor = torch.einsum("oit,ij->ojt", self.weight.reshape(*self.shape[:2], self.taps), root)
        return tensor.reshape(self.shape), back

    @functools.cached_property
    def _spectra(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy of each direction of outputs and of inputs, the strongest first."""
        tensor, _ = self._whitened
        found = [torch.linalg.svdvals(tensor.movedim(dim, 0).flatten(1)).square() for dim in (0, 1)]
        return found[0], found[1]

    @functools.cached_property
    def _columns(self) -> torch.Tensor:
        """Filters along the height [number, inputs * height], the strongest first."""
        height = self.shape[2]
        root, back = _roots(self.moments.columns(height))
        across = self.weight.reshape(self.shape).permute(1, 2, 0, 3).reshape(self.shape[1] * height, -1)
        left: torch.Tensor = torch.linalg.svd(root @ across, full_matrices=False).U
        return (back @ left).T

    def _spatial(self, ranks: Ranks) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        _, inputs, height, width = self.shape
        filters = self._columns[: ranks[0]].reshape(-1, inputs, height)
        maps = torch.einsum("riy,xz->rxiyz", filters, torch.eye(width, dtype=filters.dtype))
        return (filters[..., None],), maps.reshape(len(filters) * width, -1)

    def _tucker(self, ranks: Ranks) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        tensor, back = self._whitened
        flat = tensor.reshape(*self.shape[:2], self.taps)
        with tensorly.backend_context("pytorch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (core, (_, inside)), _ = partial_tucker(flat, [ranks[1], ranks[0]], [0, 1], n_iter_max=_TUCKER_ROUNDS)
        first = inside.T @ back
        maps = torch.einsum("srt,ri->sit", core, first).flatten(1)
        ones = [1] * len(self.layer.kernel)
        return (first.reshape(*first.shape, *ones), core.reshape(*core.shape[:2], *self.layer.kernel)), maps

    def _cp(self, ranks: Ranks) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        tensor, back = self._whitened
        with tensorly.backend_context("pytorch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ranks beyond a side, whose start is random
            found = parafac(tensor.float(), ranks[0], n_iter_max=_CP_ROUNDS, random_state=0, normalize_factors=True)
        _, inside, *along = (one.double() for one in found.factors)
        first = inside.T @ back
        maps = first
        front = [first.reshape(*first.shape, *[1] * len(along))]
        for dim, taps in enumerate(along):
            sides = [1] * len(along)
            sides[dim] = len(taps)
            front.append(taps.T.reshape(ranks[0], 1, *sides))
            maps = (maps[..., None] * taps.T.reshape(ranks[0], *[1] * (maps.dim() - 1), -1)).contiguous()
        return tuple(front), maps.flatten(1)


def _balanced(
    way: Way, ranks: Ranks, front: tuple[torch.Tensor, ...], maps: torch.Tensor, last: torch.Tensor
) -> Factors:
    """The same chain, as much of each channel's length before the last layer as in it."""
    each = len(maps) // ranks[-1]  # features of a channel: as wide as the last kernel
    before = maps.reshape(ranks[-1], -1).norm(dim=1)
    after = last.reshape(len(last), ranks[-1], each).norm(dim=(0, 2))
    scale = torch.where((before > 0) & (after > 0), (after / before.clamp(min=1e-300)).sqrt(), torch.ones(()))
    features = scale.repeat_interleave(each)
    front = (*front[:-1], front[-1] * scale.reshape(-1, *[1] * (front[-1].dim() - 1)))
    return Factors(way, ranks, front, maps * features[:, None], last / features)


def _roots(square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The root of moments and its inverse."""
    values, vectors = torch.linalg.eigh((square + square.T) / 2)
    values = values.clamp(min=max(float(values[-1]), 1e-30) * 1e-8).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


@torch.no_grad()
def build(layer: Layer, factors: Factors, shift: torch.Tensor | None) -> nn.Sequential:
    """The chain itself, in the layer's dtype and mode.

    Args:
        layer: what it stands for.
        factors: its weights.
        shift: added to the layer's bias; the chain then has one.
    """
    module = layer.module
    made = chain(layer, factors.way, factors.ranks, bias=module.bias is not None or shift is not None)
    parts = [one for one in made if isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d)]
    for part, weight in zip(parts, (*factors.front, factors.last), strict=True):
        part.weight.copy_(weight.reshape(part.weight.shape))
        part.weight.requires_grad_(module.weight.requires_grad)
    bias = parts[-1].bias
    if bias is not None:
        old = torch.zeros_like(bias) if module.bias is None else module.bias
        bias.copy_(old if shift is None else old.double() + shift)
        bias.requires_grad_(module.weight.requires_grad if module.bias is None else module.bias.requires_grad)
    return made.train(module.training)
