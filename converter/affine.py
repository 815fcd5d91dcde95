"""Scales and offsets per channel that follow a layer, batch norms too."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ferryman.converter.recognise import Constants

aten = torch.ops.aten


def read_affine(
    user: Node, value: Node, out: int, axis: int, constants: Constants
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a node multiplies each channel of a value by, and then adds; None where it does anything else.

    Args:
        user: the node.
        value: a float tensor it takes.
        out: channels of the value.
        axis: where they are.
        constants: what the constant nodes hold.
    """
    if user.op != "call_function" or set(user.kwargs) - {"alpha"} or user.kwargs.get("alpha", 1) != 1:
        return None
    if user.target == aten.batch_norm.default:
        return _read_batch_norm(user, value, out, axis, constants)
    kind = getattr(user.target, "overloadpacket", None)
    if kind not in _AFFINE or len(user.args) != 2:  # noqa: PLR2004  # two operands
        return None
    ours = user.args.index(value)
    other = _per_channel(user.args[1 - ours], value, out, axis, constants)
    if other is None or (kind == aten.div and ours == 1):
        return None
    one, none = torch.ones(out), torch.zeros(out)
    first_less = (one, -other) if ours == 0 else (-one, other)
    return {
        aten.mul: (other, none),
        aten.div: (1 / other, none),
        aten.add: (one, other),
        aten.sub: first_less,
        aten.rsub: (-one, other) if ours == 0 else (one, -other),
    }[kind]


_AFFINE = (aten.mul, aten.div, aten.add, aten.sub, aten.rsub)


def _read_batch_norm(
    user: Node, value: Node, out: int, axis: int, constants: Constants
) -> tuple[torch.Tensor, torch.Tensor] | None:
    x, *parameters, training, _, epsilon, _ = user.args
    if x is not value or training or axis != 1:
        return None
    values = [None if p is None else _per_channel(p, value, out, axis, constants, axis_only=True) for p in parameters]
    weight, bias, mean, variance = values
    if mean is None or variance is None:
        return None
    factor = 1 / torch.sqrt(variance + float(epsilon))  # type: ignore[arg-type]  # a number
    factor = factor if weight is None else factor * weight
    return factor, (torch.zeros(out) if bias is None else bias) - mean * factor


def _per_channel(
    operand: Any,  # noqa: ANN401  # an fx argument
    value: Node,
    out: int,
    axis: int,
    constants: Constants,
    *,
    axis_only: bool = False,
) -> torch.Tensor | None:
    """float32[out] of a constant that is the same for all but the channels."""
    if isinstance(operand, (int, float)):
        return torch.full((out,), float(operand))
    if not isinstance(operand, Node) or operand not in constants:
        return None
    tensor = constants[operand].float()
    rank = value.meta["val"].dim()
    if axis_only or tensor.dim() == 0:
        return tensor.expand(out) if tensor.numel() in (1, out) else None
    sizes = [1] * (rank - tensor.dim()) + list(tensor.shape)
    if (
        len(sizes) > rank
        or any(size != 1 for at, size in enumerate(sizes) if at != axis)
        or sizes[axis] not in (1, out)
    ):
        return None
    return tensor.reshape(-1).expand(out)
