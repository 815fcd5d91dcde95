"""Attention as plain linear layers, which can become thinner; and back, where none of them did."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from ferryman.converter.prune.heads import HeadAttention

OPENED = "replaced by plain linear layers"


@dataclass
class Opened:
    """What was put in the place of attention."""

    before: dict[str, nn.MultiheadAttention] = field(default_factory=dict)
    """Path -> what was there."""
    whole: dict[str, str] = field(default_factory=dict)
    """Path -> why another stays."""


def open_attention(model: nn.Module) -> Opened:
    """Put a module of plain layers in the place of every `nn.MultiheadAttention` that can be told so, in place."""
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    paths: dict[nn.MultiheadAttention, list[str]] = {}
    for path, part in model.named_modules(remove_duplicate=False):
        if type(part) is nn.MultiheadAttention:
            paths.setdefault(part, []).append(path)
    opened = Opened()
    for part, where in paths.items():
        why = None
        if part.bias_k is not None or part.add_zero_attn:
            why = "it has a bias of keys, or adds a key of zeros"
        elif any(names[id(weight)] > len(where) for weight in part.parameters()):
            why = "its weights are another layer's too, and stay shared"
        elif "" in where:
            why = "it is the model itself, and has to stay nn.MultiheadAttention"
        if why:
            opened.whole |= dict.fromkeys(where, why)
            continue
        instead = HeadAttention(part)
        for path in where:
            _put(model, path, instead)
        opened.before |= dict.fromkeys(where, part)
    return opened


def close_attention(model: nn.Module, opened: Opened, changed: set[str]) -> set[str]:
    """Put attention back where neither it nor the layer around it changed, in place.

    An `nn.TransformerEncoderLayer` reads the weights of its linear layers without calling them where its attention is
    `nn.MultiheadAttention`.

    Args:
        model: of what was opened.
        opened: what was there.
        changed: paths of layers that are no longer what they were.

    Returns:
        Paths of what was put back.
    """
    closed = set()
    made: dict[nn.MultiheadAttention, nn.Module] = {}
    for path, before in opened.before.items():
        around = path.rpartition(".")[0]
        inside = path if not isinstance(_at(model, around), nn.TransformerEncoderLayer) else around
        same = [one for one, other in opened.before.items() if other is before]
        if any(one.startswith(f"{place}.") for one in changed for place in (inside, *same)):
            continue
        _put(model, path, made.setdefault(before, copy.deepcopy(before)))
        closed.add(path)
    return closed


def _at(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)
