"""Which layers of a model can become products of thinner ones, how they are called, and why others stay."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ferryman.converter.compress.binary_policy import has_hooks, in_eval_mode
from ferryman.converter.prune.graph import run
from ferryman.runtime.contracts.errors import CallerError

_LOOKED_INTO = "the model looks into it without calling it, or calls what it holds elsewhere: others do not fit"
Factorable = nn.Linear | nn.Conv1d | nn.Conv2d
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention)  # noqa: SLF001  # the base of all convolutions


@dataclass(frozen=True)
class Layer:
    """One layer that may change; the same module under several paths is one."""

    paths: tuple[str, ...]
    module: Factorable
    calls: tuple[torch.Size, ...]
    """Shape of the input in each call of one run of the example, with its batch."""

    @property
    def path(self) -> str:
        """The first."""
        return self.paths[0]

    @property
    def outputs(self) -> int:
        """Channels."""
        return len(self.module.weight)

    @property
    def inputs(self) -> int:
        """Channels."""
        return self.module.weight.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Empty: a linear layer."""
        return tuple(self.module.weight.shape[2:])

    @property
    def key(self) -> tuple[object, ...]:
        """The same for layers whose time is the same."""
        one = self.module
        if isinstance(one, nn.Linear):
            how: tuple[object, ...] = ()
        else:
            how = (one.stride, one.padding, one.dilation, one.padding_mode)
        return (type(one).__name__, tuple(one.weight.shape), one.bias is None, str(one.weight.dtype), self.calls, how)


@dataclass
class Found:
    """Layers in the order they are registered, and path -> why another stays whole."""

    layers: list[Layer] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)


def find_layers(model: nn.Module, example: tuple[Any, ...], stand_in: Callable[[Layer], nn.Module]) -> Found:
    """Find what can change, and try it: with stand-ins in their places the model must still run.

    Args:
        model: in eval mode; not changed.
        example: positional inputs of one call.
        stand_in: what to try in a layer's place.

    Raises:
        CallerError: the model fails with the example.
    """
    paths: dict[nn.Module, list[str]] = {}
    for path, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, _WEIGHTED):
            paths.setdefault(part, []).append(path)
    calls = _watch(model, list(paths), example)
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    inside = {inner for part in paths if isinstance(part, nn.MultiheadAttention) for inner in part.modules()}
    found = Found()
    for part, where in paths.items():
        tied = any(names[id(weight)] > len(where) for weight in part.parameters(recurse=False))
        why = _unfit(part) or ("its weights are another layer's too, and stay shared" if tied else None)
        if part in inside and not isinstance(part, nn.MultiheadAttention):
            why = "its attention reads its weights without calling it"
        if why is None and not calls[part]:
            why = "never called with the example"
        if why is None:
            found.layers.append(Layer(tuple(where), part, tuple(calls[part])))  # type: ignore[arg-type]  # as just seen
        else:
            found.whole |= dict.fromkeys(where, why)
    return _tried(model, example, found, stand_in)


def _unfit(part: nn.Module) -> str | None:
    """Why a layer stays whole; None: it need not."""
    if type(part) not in _KINDS:
        return "only nn.Linear, nn.Conv1d and nn.Conv2d themselves have a low-rank form"
    weight: torch.Tensor = part.weight  # type: ignore[assignment]  # of these kinds it is one
    if isinstance(part, nn.Conv1d | nn.Conv2d) and part.groups > 1:
        depthwise = part.groups == part.in_channels
        return "depthwise: a filter a channel has no rank to lose" if depthwise else f"in {part.groups} groups"
    if nn.utils.parametrize.is_parametrized(part) or "weight" not in dict(part.named_parameters(recurse=False)):
        return "its weights are computed in each call; make them plain ones first"
    if not weight.is_floating_point():
        return f"its weights are {str(weight.dtype).removeprefix('torch.')}"
    if has_hooks(part):
        return "it has hooks, which layers in its place would not have"
    return None


def _watch(model: nn.Module, parts: Sequence[nn.Module], example: tuple[Any, ...]) -> dict[nn.Module, list[torch.Size]]:
    calls: dict[nn.Module, list[torch.Size]] = {part: [] for part in parts}

    def see(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor):
            calls[part].append(with_batch(part, inputs[0]).shape)

    hooks = [part.register_forward_pre_hook(see) for part in parts]
    try:
        run(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def with_batch(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A layer's input with its batch, which convolutions can do without."""
    lacks = isinstance(part, nn.modules.conv._ConvNd) and x.dim() == part.weight.dim() - 1  # noqa: SLF001  # ditto
    return x[None] if lacks else x


def _tried(model: nn.Module, example: tuple[Any, ...], found: Found, stand_in: Callable[[Layer], nn.Module]) -> Found:
    if _runs(model, example, found.layers, stand_in):
        return found
    good = Found(whole=dict(found.whole))
    for one in found.layers:
        if _runs(model, example, [one], stand_in):
            good.layers.append(one)
        else:
            good.whole |= dict.fromkeys(one.paths, _LOOKED_INTO)
    return good


def _wrapped_alike(model: nn.Module, example: tuple[Any, ...], layers: Sequence[Layer]) -> bool:
    """Whether the model calls what stands in layers' places, and gives the same where that computes the same."""
    calls: Counter[int] = Counter()
    own = copy.deepcopy(model)
    wrapped = {one: nn.Sequential(own.get_submodule(one.path)) for one in layers}
    for number, wrapper in enumerate(wrapped.values()):
        wrapper.register_forward_hook(lambda *_, number=number: calls.update([number]))
    expected = tree_leaves(run(own, copy.deepcopy(example)))
    found = tree_leaves(run(put(own, dict(wrapped)), copy.deepcopy(example)))
    return all(calls[number] == len(one.calls) for number, one in enumerate(layers)) and all(
        torch.equal(a, b) or torch.allclose(a, b, equal_nan=True)
        for a, b in zip(expected, found, strict=True)
        if isinstance(a, torch.Tensor)
    )


def _runs(
    model: nn.Module, example: tuple[Any, ...], layers: Sequence[Layer], stand_in: Callable[[Layer], nn.Module]
) -> bool:
    try:
        made = put(copy.deepcopy(model), {one: stand_in(one) for one in layers})
        with in_eval_mode(made), torch.no_grad():
            made(*copy.deepcopy(example))
        return _wrapped_alike(model, example, layers)
    except Exception:  # noqa: BLE001  # someone else's code
        return False


def put(model: nn.Module, instead: dict[Layer, nn.Module]) -> nn.Module:
    """Put modules in layers' places, at all their paths, in place; what is given back is the model."""
    for layer, made in instead.items():
        for path in layer.paths:
            owner, _, name = path.rpartition(".")
            if not path:
                return made
            setattr(model.get_submodule(owner), name, made)
    return model


def require_finite(model: nn.Module) -> None:
    """See that weights are numbers.

    Raises:
        CallerError: some are not.
    """
    for name, value in model.named_parameters():
        if not bool(value.isfinite().all()):
            raise CallerError(f"{name} of the model holds numbers that are not finite; there is nothing to decompose")
