"""Make good what pruning and rounding take, in the weights of the layer that reads what is left; without data.

Bai et al. 2023, "Unified Data-Free Compression": a damaged channel is taken to be a linear combination of others, and
what is lost of it has a closed form. Here the combination is the least squares of what channels are where they are read
(see `spread`), and what no combination gives is kept at its mean. Layers are taken in the order of their calls, so that
later ones make good what earlier ones could not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ferryman.converter.prune.criteria import norms_behind
from ferryman.converter.prune.spread import Pair, Spread, Weights
from ferryman.converter.prune.units import CONVS, Group, Removed, is_depthwise
from ferryman.converter.quantize.weights import Grid
from ferryman.converter.quiet import quiet

_RIDGE = 0.1
"""Of a channel's variance: how little weights and norms alone are trusted to tell how channels go together."""
_LINEAR_GROUP = 32


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Removed,
    example: tuple[Any, ...],
    *,
    bits: int | None = None,
) -> int:
    """Have readers make good what goes, in place, before it is taken out.

    Args:
        model: in eval mode, with all its units.
        groups: of it.
        removed: units that will go.
        example: positional inputs of one call.
        bits: of weights to which what is left will be rounded, as `convert` does: that is made good too, also by layers
            that lose nothing. None: it is not rounded.

    Returns:
        How many layers were changed; 0 too where torch.export cannot follow the model.
    """
    try:
        with quiet():
            program = torch.export.export(model, example, strict=False)
    except Exception:  # noqa: BLE001  # torch.export raises many kinds; then nothing is known of what layers read
        return 0
    work = _Work(model, _lost(groups, removed), norms_behind(model, example), bits)
    Spread(program, model, work.change).run()
    work.write()
    return len(work.made)


def _lost(groups: Sequence[Group], removed: Removed) -> dict[str, set[int]]:
    """Path of a layer -> its inputs that go; of branches that go as a whole nothing can be made good."""
    found: dict[str, set[int]] = {}
    for number, units in removed.items():
        if len(units) == groups[number].count:
            continue
        for slot in groups[number].slots:
            if slot.side == "in":
                found.setdefault(slot.path, set()).update(index for unit in units for index in slot.rows[unit])
    return found


class _Work:
    """What becomes of each layer's weights; they are written when all is known, as the dense ones are still read."""

    def __init__(self, model: nn.Module, lost: dict[str, set[int]], norms: dict[str, str], bits: int | None) -> None:
        self._model, self._lost, self._norms, self._bits = model, lost, norms, bits
        self.made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        """Path -> weights, and what is added to the bias."""
        self._calls: dict[str, int] = {}

    def change(self, path: str, pair: Pair) -> Weights:
        """The copy's weights of one layer, told what it reads."""
        layer: Any = self._model.get_submodule(path)
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        self._calls[path] = self._calls.get(path, 0) + 1
        lost = self._lost.get(path, set())
        if (lost or self._bits) and self._fits(layer) and self._calls[path] == 1:
            found = _combine(pair, weight, lost)
            if found is not None:
                weight, offset = found
                bias = offset if bias is None else bias + offset
                self.made[path] = weight, offset
        return (weight if self._bits is None else rounded(layer, weight, self._bits)), bias

    @staticmethod
    def _fits(layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear) or (isinstance(layer, CONVS) and layer.groups == 1 and not layer.transposed)

    def write(self) -> None:
        """Put the new weights in, and what is added to biases into them or the batch norm behind."""
        self.made = {path: one for path, one in self.made.items() if self._calls[path] == 1}
        for path, (weight, offset) in self.made.items():
            layer: Any = self._model.get_submodule(path)
            layer.weight.copy_(weight)
            norm: Any = self._model.get_submodule(self._norms[path]) if path in self._norms else None
            if layer.bias is not None:
                layer.bias += offset
            elif norm is not None and norm.running_mean is not None:
                norm.running_mean -= offset
            else:
                layer.bias = nn.Parameter(offset)


def _combine(pair: Pair, weight: torch.Tensor, lost: set[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weights that read what is left as the given ones read all: least squares, drawn to each channel being itself."""
    each = weight.shape[1] // pair.channels
    gone = {channel for channel in range(pair.channels) if all(channel * each + one in lost for one in range(each))}
    if len(gone) * each != len(lost) or len(gone) == pair.channels:
        return None
    kept = torch.tensor([channel for channel in range(pair.channels) if channel not in gone])
    prior = torch.zeros(pair.channels, len(kept), dtype=torch.float64)
    prior[kept, torch.arange(len(kept))] = 1
    copy = pair.copy[kept][:, kept]
    ridge = _RIDGE * copy.diagonal() + 1e-9 * copy.diagonal().mean() + 1e-30
    mix = prior + torch.linalg.solve(copy + torch.diag(ridge), (pair.cross[:, kept] - prior @ copy).T).T
    rest = pair.mean - mix @ pair.mean_copy[kept]
    taps = weight.double().reshape(len(weight), pair.channels, each, -1)
    made = torch.zeros_like(taps)
    made[:, kept] = torch.einsum("ocet,ck->oket", taps, mix)
    offset = torch.einsum("ocet,c->o", taps, rest)
    return made.reshape(weight.shape).to(weight.dtype), offset.to(weight.dtype)


def rounded(layer: nn.Module, weight: torch.Tensor, bits: int) -> torch.Tensor:
    """What a layer's weights become at so many bits, as `convert` rounds them; depthwise ones have 4 or more."""
    image = isinstance(layer, CONVS)
    bits = max(bits, 4) if is_depthwise(layer) else bits
    grid = Grid(bits=bits, group=0 if image else _LINEAR_GROUP, asymmetric=False, half=not image)
    return grid.round(weight.flatten(1)).values().reshape(weight.shape)
