"""Convolutions, linear layers and paddings of a captured graph, whichever operator they were captured as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ferryman.converter import operators

aten = torch.ops.aten
_IMAGE_RANK = 4
_LAYERS = (
    *(aten.linear, aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d),
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
)


@dataclass(frozen=True)
class LayerCall:
    """A convolution's or linear's arguments, whichever operator it is."""

    x: Node
    weight: Node
    bias: Node | None
    window: operators.Window | None = None


def is_layer(node: Node) -> bool:
    """Whether a node is a convolution of any kind, or a linear layer."""
    return node.op == "call_function" and getattr(node.target, "overloadpacket", None) in _LAYERS


def module_of(node: Node) -> str:
    """Path of the module that the node came from; empty: it is the outermost, or not known."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].") if stack else ""


def path_of(node: Node) -> str:
    """Of the module that the node came from; its own name where it came from none."""
    return module_of(node) or node.name


def read_call(node: Node) -> LayerCall | None:
    """A 2-D convolution or a linear layer; None where the node is neither."""
    if node.op != "call_function":
        return None
    args: list[Any] = list(node.args)
    if node.target == aten.linear.default:
        return LayerCall(*args[:2], *args[2:] or [None])
    if node.target == aten.convolution.default:
        *args, transposed, _, groups = args
        if transposed:
            return None
        args.append(groups)
    elif node.target not in (aten.conv2d.default, aten.conv2d.padding):
        return None
    defaults = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    x, weight, bias, stride, padding, dilation, groups = args + defaults[len(args) :]
    shape = weight.meta["val"].shape
    if len(shape) != _IMAGE_RANK or x.meta["val"].dim() != _IMAGE_RANK:
        return None
    kernel = [int(size) for size in shape[2:]]
    stride, dilation = _pair(stride), _pair(dilation)
    window = (int(shape[1]) * groups, kernel, stride, _padding(padding, kernel, dilation), dilation, groups, 0, False)
    return LayerCall(x, weight, bias, window)


def _pair(value: Sequence[int]) -> list[int]:
    return [int(v) for v in value] * (1 if len(value) > 1 else 2)


def _padding(padding: Sequence[int] | str, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Top, left, bottom, right."""
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    return _pair(padding) * 2  # type: ignore[arg-type]  # a sequence by now


def read_pad(node: Node) -> tuple[Node, list[int], float] | None:
    """What a constant pad pads, by left, right, top and bottom, with which value."""
    if node.op != "call_function" or node.target not in (aten.constant_pad_nd.default, aten.pad.default):
        return None
    source, pads, *rest = node.args
    if node.target == aten.pad.default:
        if rest and rest[0] != "constant":
            return None
        rest = rest[1:]
    value = rest[0] if rest else None
    if not isinstance(source, Node) or not isinstance(pads, Sequence) or len(pads) != _IMAGE_RANK:
        return None
    sizes = [int(size) for size in pads if isinstance(size, int) and size >= 0]
    return (source, sizes, float(value or 0)) if len(sizes) == _IMAGE_RANK else None  # type: ignore[arg-type]  # a number


def merge_padding(window: operators.Window, pads: Sequence[int], value: float) -> operators.Window | None:
    """A window whose input is padded before it; None where the two do not go together."""
    channels, kernel, stride, padding, dilation, groups, _, last = window
    if value not in (-1.0, 0.0, 1.0) or (value and any(padding)):
        return None
    left, right, top, bottom = pads
    both = [at + more for at, more in zip(padding, (top, left, bottom, right), strict=True)]
    return (channels, kernel, stride, both, dilation, groups, int(value), last)


def padded_beyond(window: operators.Window) -> bool:
    """Whether a window may lie wholly in the padding."""
    _, kernel, _, padding, dilation, *_ = window
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return any(pad > most for pad, most in zip(padding, [*reach, *reach], strict=True))
