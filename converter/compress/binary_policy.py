"""Which layers become binary.

What stays in float by default is what the literature keeps (XNOR-Net, Bi-Real Net; measured across tasks by BiBench,
Qin et al., ICML 2023): first and last layers, down-sampling 1x1 convolutions and depthwise convolutions, where
binarization loses most and gains least.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from ferryman.converter.compress.binary_modules import BinaryLayer
from ferryman.runtime.contracts.errors import CallerError

NO_NEGATIVE_INPUTS = "no negative inputs: its signs carry nothing"
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)  # noqa: SLF001  # the base of all convolutions

Example = tuple[Any, ...] | torch.Tensor
"""Positional inputs of one call."""


@dataclass(frozen=True)
class Decision:
    """What became of one layer."""

    path: str
    kind: str
    """Its class in the dense model."""
    decision: Literal["binary", "int8", "4bit", "2bit", "float", "replaced", "sparse", "pruned", "erased", "low-rank"]
    reason: str


def decide(model: nn.Module, keep: tuple[str, ...], example: Example | None) -> dict[str, Decision]:
    """Decide on every layer with weights.

    Args:
        model: dense.
        keep: patterns of module paths that stay in float.
        example: inputs of one call, to see in which order layers are called; else the order of registration counts.

    Returns:
        Decisions by path, in that order.

    Raises:
        CallerError: a pattern matches no layer, or the model fails with the example.
    """
    layers: dict[str, nn.Module] = {path: part for path, part in model.named_modules() if isinstance(part, _WEIGHTED)}
    for pattern in keep:
        if not any(fnmatchcase(path, pattern) for path in layers):
            raise CallerError(f"no layer is named {pattern!r}; there are: {', '.join(layers) or 'none'}")
    called = list(layers) if example is None else call_order(model, layers, example)
    elsewhere = _read_elsewhere(model)
    decisions = {}
    for path in (*called, *(path for path in layers if path not in called)):
        layer = layers[path]
        reason = (
            next((f"kept by {pattern!r}" for pattern in keep if fnmatchcase(path, pattern)), None)
            or (None if path in called else "never called with the example")
            or elsewhere.get(layer)
            or ("the first layer" if path == called[0] else "the last layer" if path == called[-1] else None)
            or _unfit(layer)
            or _lost(layer)
        )
        decisions[path] = Decision(
            path=path,
            kind=type(layer).__name__,
            decision="float" if reason else "binary",
            reason=reason or "the default",
        )
    return decisions


def _read_elsewhere(model: nn.Module) -> dict[nn.Module, str]:
    """Layers whose weights something else reads, by-passing a layer put in their place."""
    found: dict[nn.Module, str] = {}
    for whole in model.modules():
        if isinstance(whole, nn.TransformerEncoderLayer):
            found |= dict.fromkeys(whole.modules(), "nn.TransformerEncoderLayer reads its weights without calling it")
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    uses = Counter(part for _, part in model.named_modules(remove_duplicate=False))
    for part, count in uses.items():
        if any(names[id(weight)] > count for weight in part.parameters(recurse=False)):
            found.setdefault(part, "its weights are another layer's too")
    return found


def _unfit(module: nn.Module) -> str | None:
    """Why this kind of layer stays in float; None if it need not."""
    if type(module) not in (nn.Conv2d, nn.Linear):
        return "only nn.Conv2d and nn.Linear themselves have a binary form"
    if not isinstance(module, nn.Conv2d):
        return None
    if module.padding_mode != "zeros":
        return f"binary convolutions pad with constants, this one with padding_mode={module.padding_mode!r}"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    if max(module.kernel_size) == 1 and max(module.stride) > 1:
        return "a down-sampling 1x1 convolution"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether a module put in this one's place would lose hooks."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, name) for name in hooks)


def _lost(layer: nn.Module) -> str | None:
    """What a binary layer in this one's place would lose; None if nothing."""
    if has_hooks(layer):
        return "it has hooks, which a binary layer would not have"
    if not all(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
        return "it is frozen (requires_grad=False), and binary weights need training"
    return None


def call_order(model: nn.Module, layers: dict[str, nn.Module], example: Example) -> list[str]:
    """Paths of layers in order of their first call."""
    called: dict[str, None] = {}
    _observe(model, layers, example, lambda path, _: called.setdefault(path))
    return list(called)


def without_negative_inputs(model: nn.Module, example: Example) -> list[str]:
    """Find the binary layers that get no negative input in one call; their paths."""
    least: dict[str, float] = {}
    layers: dict[str, nn.Module] = {path: part for path, part in model.named_modules() if isinstance(part, BinaryLayer)}
    _observe(
        model, layers, example, lambda path, x: least.update({path: min(float(x.min()), least.get(path, math.inf))})
    )
    return [path for path, value in least.items() if value >= 0]


def _observe(
    model: nn.Module, layers: dict[str, nn.Module], example: Example, see: Callable[[str, torch.Tensor], object]
) -> None:
    """Run the model once, in eval mode, and show the first input of each layer."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: see(path, inputs[0]) and None)
        for path, layer in layers.items()
    ]
    try:
        with in_eval_mode(model), torch.no_grad():
            model(*((example,) if isinstance(example, torch.Tensor) else example))
    except Exception as error:
        raise CallerError(
            f"the model fails with the example: {type(error).__name__}: {error}; "
            "give the positional inputs of one call, a tensor or a tuple"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and every module of it back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
