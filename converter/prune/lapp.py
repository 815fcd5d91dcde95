"""Networks that learn which channels they can do without: a threshold and a light bypass for each convolution.

Zhai et al. 2023, "LAPP: Layer Adaptive Progressive Pruning for Compressing CNNs from Scratch": each convolution to be
pruned has a learnable threshold, under which a filter's importance masks it, and a lightweight bypass beside it that
keeps the layer expressive as it narrows. The multiplications that are left are part of the loss, so that thresholds
settle, layer by layer, where task and budget agree. What is trained folds into plain, narrower convolutions and their
bypasses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Example, in_eval_mode
from ferryman.converter.compress.training import Batch, Loss, Progress, copy_model, train
from ferryman.converter.prune.budget import Cost, count
from ferryman.converter.prune.criteria import norms_behind, producers, readers
from ferryman.converter.prune.graph import find_groups, positional
from ferryman.converter.prune.units import remove
from ferryman.runtime.contracts.errors import CallerError, ModelError

_LEAST = 10
"""A tenth of a layer's filters stays."""
_SOFT = 0.1
"""How far from its threshold a filter still pulls at it."""
_STRENGTH = 4.0
"""Of the budget in the loss."""
_RANK = 8
"""A bypass has an eighth of the layer's channels in its middle."""


class BypassConv2d(nn.Module):
    """A convolution with its batch norm, and a light way around it: 1x1 to few channels, and 1x1 out again."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, bypass: nn.Sequential) -> None:
        super().__init__()
        self.conv, self.norm, self.bypass = conv, norm, bypass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in, h, w] -> [N, out, h', w']."""
        y: torch.Tensor = self.norm(self.conv(x)) + self.bypass(x)
        return y


class LappConv2d(BypassConv2d):
    """The same in training: filters less important than a learnable threshold are masked."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Put a bypass, of no effect yet, beside a convolution.

        Args:
            conv: not grouped, its kernel's middle on each output's own place (padding of half the kernel).
            norm: what follows it.
        """
        middle = max(1, conv.out_channels // _RANK)
        ends = nn.BatchNorm2d(conv.out_channels)
        nn.init.zeros_(ends.weight)
        bypass = nn.Sequential(
            nn.Conv2d(conv.in_channels, middle, 1, (conv.stride[0], conv.stride[1]), bias=False),
            nn.Conv2d(middle, conv.out_channels, 1, bias=False),
            ends,
        )
        super().__init__(conv, norm, bypass)
        self.threshold = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `BypassConv2d`, masked."""
        return super().forward(x) * self.mask().reshape(1, -1, 1, 1)

    def importance(self) -> torch.Tensor:
        """float[out]: the length of each filter with its batch norm's factor, of the layer's mean."""
        lengths = self.conv.weight.flatten(1).norm(dim=1) * self.norm.weight.abs()
        found: torch.Tensor = lengths / lengths.mean().clamp(min=1e-12)
        return found

    def mask(self) -> torch.Tensor:
        """float[out]: 0 or 1; its gradient is that of a steep sigmoid. Some filters always stay."""
        above = self.importance() - self.threshold
        soft = torch.sigmoid(above / _SOFT)
        least = -(-len(above) // _LEAST)
        hard = (above > 0).to(soft.dtype)
        hard[above.topk(least).indices] = 1.0
        return hard + soft - soft.detach()


@dataclass(frozen=True)
class Lapp:
    """A model with thresholds, and what its layers cost."""

    model: nn.Module
    layers: dict[str, LappConv2d]
    """By path."""
    macs: dict[str, tuple[float, str | None, str | None]]
    """Path of a convolution or linear layer -> its multiplications, and whose masks its outputs and inputs have."""
    other: float
    """Multiplications of the rest."""
    dense: int
    """Those of the model before bypasses."""
    example: tuple[Any, ...]

    def left(self) -> torch.Tensor:
        """What the masked model multiplies, of the dense one's; thresholds have a gradient by it."""
        parts = {path: layer.mask().mean() for path, layer in self.layers.items()}
        total = torch.tensor(self.other)
        for macs, out, read in self.macs.values():
            total = total + macs * (parts[out] if out else 1.0) * (parts[read] if read else 1.0)
        return total / self.dense


def make_lapp(model: nn.Module, *, example: Example) -> Lapp:
    """Give every convolution that can be pruned by itself a threshold and a bypass; the given model is not changed.

    These are convolutions with a batch norm behind them whose channels no other layer makes too: inside residual
    blocks, not their ends.

    Args:
        model: to be trained, or trained.
        example: positional inputs of one call.

    Raises:
        CallerError: the model fails with the example.
        ModelError: no convolution of it can be pruned by itself.
    """
    inputs = positional(example)
    work = copy_model(model).eval()
    dense = count(work, inputs).macs
    norms = norms_behind(work, inputs)
    layers: dict[str, LappConv2d] = {}
    reads: dict[str, str] = {}
    for group in find_groups(work, inputs).groups:
        made = producers(work, group)
        if len(made) != 1 or group.kind != "channels" or not _fits(made[0][1]) or made[0][0].path not in norms:
            continue
        path = made[0][0].path
        if any(slot.path not in (path, norms[path]) for slot in group.slots if slot.side != "in"):
            continue
        reads |= {slot.path: path for slot, _ in readers(work, group)}
        layers[path] = LappConv2d(work.get_submodule(path), work.get_submodule(norms[path]))  # type: ignore[arg-type]  # as just seen
    if not layers:
        raise ModelError("no convolution of the model is alone in making its channels, with a batch norm behind it")
    for path, layer in layers.items():
        _put(work, path, layer)
        _put(work, norms[path], nn.Identity())
    macs = {
        path: (value, _owner(path, layers), reads.get(_whole(path, layers)))
        for path, value in _macs(work, inputs).items()
    }
    other = count(work, inputs).macs - sum(value for value, _, _ in macs.values())
    return Lapp(work, layers, macs, float(other), dense, inputs)


def _fits(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or layer.groups != 1 or isinstance(layer.padding, str):
        return False
    half = tuple((size - 1) // 2 for size in layer.kernel_size)
    return layer.padding == half and layer.dilation == (1, 1) and all(size % 2 for size in layer.kernel_size)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)


def _whole(path: str, layers: dict[str, LappConv2d]) -> str:
    """Path of the layer with a threshold that a convolution is part of, if it reads that layer's input; or its own."""
    return next((one for one in layers if path in (f"{one}.conv", f"{one}.bypass.0")), path)


def _owner(path: str, layers: dict[str, LappConv2d]) -> str | None:
    """Whose mask a convolution's outputs have."""
    return next((one for one in layers if path in (f"{one}.conv", f"{one}.bypass.1")), None)


def _macs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, float]:
    found: dict[str, float] = {}

    def watch(path: str, layer: nn.Conv2d | nn.Linear) -> Any:  # noqa: ANN401  # a handle
        def look(_: nn.Module, __: Any, out: torch.Tensor) -> None:  # noqa: ANN401  # a hook
            channels = out.shape[1] if isinstance(layer, nn.Conv2d) else out.shape[-1]
            found[path] = found.get(path, 0.0) + out.numel() / channels * layer.weight.numel()

        return layer.register_forward_hook(look)

    hooks = [watch(path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    with in_eval_mode(model), torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def train_lapp(
    lapp: Lapp,
    loader: Iterable[Batch],
    *,
    percent: int,
    epochs: int,
    lr: float,
    loss: Loss = functional.cross_entropy,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train weights and thresholds, in place, so that what is left multiplies at most so much.

    The budget narrows from all to `percent` over the first half of the epochs. In the last, thresholds that leave too
    much are moved together as far as it takes.

    Args:
        lapp: what `make_lapp` gives.
        loader: (inputs, targets) batches.
        percent: of the dense model's multiplications, 1 to 99.
        epochs: 2 or more.
        lr: learning rate of the first epoch.
        loss: of (outputs, targets).
        progress: told epoch, epochs and mean loss.

    Returns:
        Mean loss of each epoch.

    Raises:
        CallerError: an argument is out of range, the budget cannot be reached, or as `train`.
    """
    if isinstance(percent, bool) or not isinstance(percent, int) or not 1 <= percent <= 99:  # noqa: PLR2004  # percent
        raise CallerError(f"percent is a whole number, 1 to 99, found {percent!r}")
    if epochs < 2:  # noqa: PLR2004  # thresholds settle, then weights
        raise CallerError(f"epochs is 2 or more, so that weights are trained once thresholds stand; found {epochs}")
    goal = 1.0

    def begin(epoch: int, all_epochs: int) -> None:
        nonlocal goal
        done = min(1.0, 2 * (epoch + 1) / all_epochs)
        goal = 1 - done * (1 - percent / 100)
        if epoch == all_epochs - 1:
            _meet(lapp, percent / 100)

    def step() -> None:
        for layer in lapp.layers.values():
            layer.threshold.data.clamp_(min=0)

    tuned = train(
        lapp.model, loader, epochs=epochs, lr=lr, loss=loss, progress=progress, before_epoch=begin, after_step=step,
        penalty=lambda _: _STRENGTH * functional.relu(lapp.left() / goal - 1),
    )  # fmt: skip
    _meet(lapp, percent / 100)
    return tuned.losses


@torch.no_grad()
def _meet(lapp: Lapp, most: float) -> None:
    """Raise all thresholds by as much as the budget takes, found by halving."""
    start = {path: layer.threshold.clone() for path, layer in lapp.layers.items()}

    def move(by: float) -> float:
        for path, layer in lapp.layers.items():
            layer.threshold.copy_(start[path] + by)
        return float(lapp.left())

    if move(0.0) <= most:
        return
    low, high = 0.0, max(float(layer.importance().max()) for layer in lapp.layers.values()) + 1
    if move(high) > most:
        raise CallerError(
            f"the budget cannot be reached: {move(high):.0%} is left with every layer as narrow as it may be"
        )
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if move(middle) <= most else (middle, high)
    move(high)


@dataclass(frozen=True)
class Folded:
    """Plain, narrower layers."""

    model: nn.Module
    """In eval mode."""
    kept: dict[str, tuple[int, int]]
    """Path of a layer -> its filters, and how many are left."""
    before: int
    """Multiplications of the dense model."""
    after: Cost


@torch.no_grad()
def fold(lapp: Lapp) -> Folded:
    """Take masked filters out, and thresholds with them: what is left computes the same, of plain layers.

    The given model is not changed.
    """
    model = copy.deepcopy(lapp.model).eval()
    gone: dict[str, list[int]] = {}
    for path, layer in lapp.layers.items():
        trained: Any = model.get_submodule(path)
        lost = (layer.mask() < 0.5).nonzero().flatten()  # noqa: PLR2004  # 0 or 1
        for norm in (trained.norm, trained.bypass[2]):  # zeros, so that nothing changes when they go
            norm.weight[lost], norm.bias[lost] = 0.0, 0.0
        _put(model, path, BypassConv2d(trained.conv, trained.norm, trained.bypass).eval())
        gone[path] = lost.tolist()
    groups = find_groups(model, lapp.example).groups
    removed = {}
    for number, group in enumerate(groups):
        slot = next(
            (slot for slot in group.slots if slot.side == "out" and slot.path.removesuffix(".conv") in gone), None
        )
        if slot is not None and slot.path.endswith(".conv"):
            filters = {*gone[slot.path.removesuffix(".conv")]}
            removed[number] = frozenset(unit for unit, rows in enumerate(slot.rows) if {*rows} <= filters)
    remove(model, groups, removed)
    kept = {
        path: (len(lapp.layers[path].importance()), model.get_submodule(f"{path}.conv").out_channels) for path in gone
    }
    return Folded(model, kept, lapp.dense, count(model, lapp.example))  # type: ignore[arg-type]  # numbers of channels
