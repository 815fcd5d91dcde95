"""A few calibration inputs out of many, chosen so that the few show quantization what the many would.

Calibration takes two things from its inputs: how far the values of each layer's input range, and the mean of each
channel. Both are known for every input after one run over all of them. Inputs are then taken one by one, each time the
one with which the set's ranges and means come nearest to those of all (herding, Welling 2009, with the ranges added: a
mean alone is matched best by inputs without anything extreme, and those leave ranges too narrow).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ferryman.converter.capture import Captured, capture
from ferryman.converter.functional import functional_module
from ferryman.converter.quantize.calibration import read_calibration
from ferryman.converter.quantize.layers import Layer, find_layers
from ferryman.converter.quantize.observe import watch
from ferryman.converter.recognise import Constants
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError

_LEAST = 1e-12


def choose_calibration(
    model: nn.Module | Captured, inputs: Iterable[Any], count: int
) -> list[tuple[torch.Tensor, ...]]:
    """Choose calibration inputs for `convert`; the same ones every time.

    Args:
        model: in eval mode; or captured already.
        inputs: many, as `convert` takes them for calibration: each the inputs of one call, or several in a batch, which
            are cut to the batch that the program takes. Of a module that is its first item's, which must not come with
            a target then.
        count: how many to choose, of the program's batch.

    Returns:
        Flat inputs, the first chosen first: the beginning of what is chosen is what fewer would have been. All, if
        there are no more than `count`.

    Raises:
        CallerError: no inputs, a count below 1, or none of a model and its inputs.
        ModelError: the model cannot be captured, reads inputs of another kind, or has no layer to quantize.
    """
    if count < 1:
        raise CallerError(f"count is 1 or more, found {count}")
    if isinstance(model, Captured):
        captured, given = model, inputs
    else:
        rest = iter(inputs)
        first = next(rest, None)
        if first is None:
            raise CallerError("there are no calibration inputs to choose from")
        captured, given = capture(make_source(model, first)), chain([first], rest)
    batches = read_calibration(captured, given, most=None)
    return [batches[index] for index in _herd(_look(captured, batches), min(count, len(batches)))]


@dataclass(frozen=True)
class _Looks:
    """What each input makes of the values that will be quantized."""

    low: torch.Tensor
    """float32[inputs, values]."""
    high: torch.Tensor
    mean: torch.Tensor
    """float32[inputs, channels of all values]: less the mean over inputs, in units of `_alike`."""


def _look(captured: Captured, batches: list[tuple[torch.Tensor, ...]]) -> _Looks:
    module = functional_module(captured.program)
    layers = [one for one in find_layers(module, Constants(module)).values() if isinstance(one, Layer)]
    axes = {layer.x: 1 if layer.window else -1 for layer in layers if not layer.embedding}
    if not axes:
        raise ModelError(f"{captured.source.name} has no layer whose input is quantized")
    ends: dict[Node, list[torch.Tensor]] = {node: [] for node in axes}
    means: dict[Node, list[torch.Tensor]] = {node: [] for node in axes}

    def look(node: Node, value: torch.Tensor) -> None:
        ends[node].append(torch.stack(value.aminmax()))
        means[node].append(value.movedim(axes[node], 0).flatten(1).mean(1))

    watch(module, batches, axes, look)
    low, high = torch.stack([torch.stack(one) for one in ends.values()], 1).unbind(2)
    return _Looks(low, high, torch.cat([_alike(torch.stack(one)) for one in means.values()], 1))


def _alike(means: torch.Tensor) -> torch.Tensor:
    """Have every value count the same, however large or wide it is: [inputs, channels].

    The unit is how much means differ, from input to input and from channel to channel: what matters little to the
    whole, because channels are far apart anyway, is not worth a range that is missed.
    """
    spread = means.std(correction=0).clamp(min=_LEAST)
    return (means - means.mean(0)) / (spread * math.sqrt(means.shape[1]))


def _herd(looks: _Looks, count: int) -> list[int]:
    lowest, highest = looks.low.amin(0).clamp(max=0), looks.high.amax(0).clamp(min=0)
    span = (highest - lowest).clamp(min=_LEAST)
    low, high = torch.zeros_like(lowest), torch.zeros_like(highest)  # ranges of the set; int8 holds 0 anyway
    total = torch.zeros(looks.mean.shape[1])
    chosen: list[int] = []
    for size in range(1, count + 1):
        short = torch.minimum(low, looks.low) - lowest, highest - torch.maximum(high, looks.high)
        off = sum((one / span).square().sum(1) for one in short) + ((total + looks.mean) / size).square().sum(1)
        off[chosen] = torch.inf
        best = int(off.argmin())
        chosen.append(best)
        low, high = torch.minimum(low, looks.low[best]), torch.maximum(high, looks.high[best])
        total += looks.mean[best]
    return chosen
