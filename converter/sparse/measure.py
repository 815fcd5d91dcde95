"""How fast a layer is without its zeros beside the same one dense, on a runtime of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.capture import capture
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.sparse.layers import PrunedLayer
from ferryman.converter.sparse.write import arguments
from ferryman.converter.sparse_operators import NO_CLIP
from ferryman.converter.verify import Interpreter
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.tensor import Array

if TYPE_CHECKING:  # the toolchains are slow to load
    from ferryman.converter.backends.base import Backend

_ROUNDS = 21
_KIND = 0.05
"""Layers of the same shape whose shares of zeros differ by no more are measured once."""
Key = tuple[object, ...]
Say = Callable[[str], None]


@dataclass(frozen=True)
class LayerTime:
    """One layer, alone, on one interpreter of this machine, one thread.

    Of the fastest rounds, which other work on the machine disturbs least.
    """

    path: str
    interpreter: str
    zeros: float
    """Share of its weights."""
    dense_us: float
    sparse_us: float
    taken: bool = False
    """Whether the artifact has it sparse."""

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense_us / self.sparse_us


def time_layers(
    several: Sequence[PrunedLayer], backend: Backend, place: Interpreter, progress: Say = lambda _: None
) -> dict[PrunedLayer, LayerTime]:
    """Lower each layer alone, dense and sparse, and time both in turn.

    Dense layers are given images as the runtime itself keeps them, sparse ones by channel.

    Args:
        several: layers; of those alike one is measured.
        backend: of the runtime.
        place: the interpreter.
        progress: told what begins.

    Raises:
        ModelError: a layer cannot be lowered.
        RuntimeCrash: the interpreter fell.
    """
    found = {}
    for one, times in time_rounds(several, backend, place, progress).items():
        dense, sparse = (float(each.min()) * 1e6 for each in times)
        found[one] = LayerTime(one.path, place.name, float(one.zeros), dense, sparse)
    return found


def time_rounds(
    several: Sequence[PrunedLayer], backend: Backend, place: Interpreter, progress: Say = lambda _: None
) -> dict[PrunedLayer, tuple[Array, Array]]:
    """Seconds a call of each layer in each round, dense and sparse; see `time_layers`."""
    kinds = {_key(one): one for one in several}
    with tempfile.TemporaryDirectory() as folder:
        lowered: list[tuple[Path, list[Array]]] = []
        for number, one in enumerate(kinds.values()):
            progress(f"lower layer {number + 1} of {len(kinds)} alone, dense and sparse: {one.path}")
            with quiet():
                lowered += _lower_pair(one, backend, Path(folder) / str(number))
        paths, inputs = zip(*lowered, strict=True)
        progress(f"time {len(kinds)} layers on {place.name}")
        times = np.array(time_beside(paths, place.name, inputs, rounds=_ROUNDS, bare=True, python=place.python))
    pairs = dict(zip(kinds, zip(times[::2], times[1::2], strict=True), strict=True))
    return {one: pairs[_key(one)] for one in several}


def _key(one: PrunedLayer) -> Key:
    window = one.layer.window
    return (
        tuple(_shape(one)),
        tuple(one.layer.weight.shape),
        None if window is None else str(window),
        one.places.index_bits,
        round(one.zeros / _KIND),
        one.low > -NO_CLIP or one.high < NO_CLIP,
    )


def _shape(one: PrunedLayer) -> list[int]:
    """Of its input; a dynamic size as in the example."""
    sizes = one.layer.x.meta["val"].shape
    return [size if isinstance(size, int) else int(size.node.hint) for size in sizes]


def _lower_pair(one: PrunedLayer, backend: Backend, path: Path) -> Iterator[tuple[Path, list[Array]]]:
    x = torch.randn(_shape(one), generator=torch.Generator().manual_seed(0))
    last = one.layer.window is not None and backend.runtime == "tflite"
    ways: tuple[tuple[str, nn.Module, torch.Tensor], ...] = (
        ("dense", _Dense(one, last=last), x.permute(0, 2, 3, 1).contiguous() if last else x),
        ("sparse", _Sparse(one), x),
    )
    for name, module, given in ways:
        to = path.with_name(f"{path.name}-{name}{backend.suffix}")
        to.write_bytes(backend.lower(capture(make_source(module.eval(), (given,)))).data)
        yield to, [given.numpy()]


class _Dense(nn.Module):
    """The layer as it is; with `last`, of images with channels last."""

    def __init__(self, one: PrunedLayer, *, last: bool) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(each, requires_grad=False) for each in (one.layer.weight, one.layer.bias)
        )
        self._clip = _clip(one)
        self._window = one.layer.window
        self._last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._window is None:
            return self._clip(functional.linear(x, self.weight, self.bias))
        _, _, stride, (top, left, bottom, right), dilation, groups, *_ = self._window
        x = x.permute(0, 3, 1, 2) if self._last else x
        even = top == bottom and left == right  # what runtimes have no operator of its own for
        x = x if even else functional.pad(x, (left, right, top, bottom))
        padding = (top, left) if even else 0
        y = self._clip(functional.conv2d(x, self.weight, self.bias, tuple(stride), padding, tuple(dilation), groups))
        return y.permute(0, 2, 3, 1) if self._last else y


class _Sparse(nn.Module):
    def __init__(self, one: PrunedLayer) -> None:
        super().__init__()
        *tensors, self._numbers = arguments(one)
        self.values, self.index, self.bias = (nn.Parameter(each, requires_grad=False) for each in tensors)
        self._image = one.layer.window is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = (x, self.values, self.index, self.bias)
        if self._image:
            y: torch.Tensor = torch.ops.ferryman.sparse_conv2d(*held, None, *self._numbers)
        else:
            y = torch.ops.ferryman.sparse_linear(*held, *self._numbers)
        return y


def _clip(one: PrunedLayer) -> Callable[[torch.Tensor], torch.Tensor]:
    low = None if one.low <= -NO_CLIP else one.low
    high = None if one.high >= NO_CLIP else one.high
    return (lambda y: y) if low is None and high is None else (lambda y: y.clamp(low, high))


def layer_table(found: Sequence[LayerTime]) -> str:
    """Rows for people."""
    rows = [("layer", "interpreter", "zeros", "dense us", "sparse us", "times as fast", "in the artifact")]
    rows += [
        (
            *(one.path, one.interpreter, f"{one.zeros:.1%}", f"{one.dense_us:,.1f}", f"{one.sparse_us:,.1f}"),
            *(f"{one.speedup:.2f}", "sparse" if one.taken else "dense"),
        )
        for one in found
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
