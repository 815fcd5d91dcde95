"""ferryman's operators as torch knows them: schemas, what they compute (slowly, as a reference), and their shapes.

The kernels are in native/kernels; the layouts of bits are those of kernels.h. `x` of an image operator is float
[N, C, H, W], with `channels_last` [N, H, W, C], or packed signs int32 [N, H, W, ceil(C / 32)]; of a linear, channels or
words last. Operators that end in `_sign` answer packed signs, +1 where the dot product reaches the channel's threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from ferryman.converter.bits import LANES, WORD_BITS
from ferryman.converter.tree_bits import unpack_tree

NAMESPACE = "ferryman"
_WINDOW = (
    "int channels, int[2] kernel_size, int[2] stride, int[4] padding, int[2] dilation, int groups, int pad_value, "
    "bool channels_last"
)
_SCHEMAS = {
    "binary_conv2d": f"Tensor x, Tensor weight, Tensor scale, Tensor bias, {_WINDOW}, bool real",
    "binary_conv2d_sign": f"Tensor x, Tensor weight, Tensor threshold, {_WINDOW}",
    "binary_conv2d_tree": f"Tensor x, Tensor tree, Tensor scale, Tensor bias, {_WINDOW}",
    "binary_conv2d_tree_sign": f"Tensor x, Tensor tree, Tensor threshold, {_WINDOW}",
    "binary_linear": "Tensor x, Tensor weight, Tensor scale, Tensor bias, int channels, bool real",
    "binary_linear_sign": "Tensor x, Tensor weight, Tensor threshold, int channels",
}
Window = tuple[int, Sequence[int], Sequence[int], Sequence[int], Sequence[int], int, int, bool]
"""channels, kernel_size, stride, padding (top, left, bottom, right), dilation, groups, pad_value, channels_last."""
Operator = tuple[str, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]
"""Its arguments as a schema has them, what it computes, and an empty tensor of its output's shape."""


def unpack(words: torch.Tensor, count: int) -> torch.Tensor:
    """Packed signs int32[..., words] -> float32[..., count] of -1 and 1."""
    shifts = torch.arange(WORD_BITS, dtype=torch.int32)
    bits = (words.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :count].float() * 2 - 1


def pack(positive: torch.Tensor) -> torch.Tensor:
    """bool[..., n] -> packed signs int32[..., ceil(n / 32)]."""
    padded = functional.pad(positive.long(), (0, -positive.shape[-1] % WORD_BITS))
    weights = 1 << torch.arange(WORD_BITS)
    words = (padded.reshape(*padded.shape[:-1], -1, WORD_BITS) * weights).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def sign(x: torch.Tensor) -> torch.Tensor:
    """-1 and 1; what is >= 0 is 1, and NaN is -1."""
    return torch.where(x >= 0, 1.0, -1.0)


def _own_words(words: torch.Tensor) -> torch.Tensor:
    """Undo the running exclusive or along the last axis."""
    return words ^ functional.pad(words, (1, 0))[..., :-1]


def unpack_weights(words: torch.Tensor, out: int, window: Window) -> torch.Tensor:
    """Undo `bits.pack_weights`: float32[out, channels / groups, kh, kw]."""
    channels, (kernel_h, kernel_w), *_, groups, _, _ = window
    depth = kernel_h * kernel_w * channels // groups
    if groups > 1 and channels == groups:
        return unpack(words, out).T.reshape(out, 1, kernel_h, kernel_w)
    lanes = unpack(_own_words(words.transpose(2, 3)), depth).reshape(groups, -1, depth)[:, : out // groups]
    return lanes.reshape(out, kernel_h, kernel_w, channels // groups).permute(0, 3, 1, 2)


def unpack_tree_weights(words: torch.Tensor, window: Window) -> torch.Tensor:
    """Undo `tree_bits.pack_tree`: float32[out, channels, kh, kw]."""
    channels, (kernel_h, kernel_w), *_ = window
    rows = torch.from_numpy(unpack_tree(words.numpy(), kernel_h * kernel_w * channels))
    signs = torch.where(rows, 1.0, -1.0).reshape(len(rows), kernel_h, kernel_w, channels)
    return signs.permute(0, 3, 1, 2)


def _images(x: torch.Tensor, window: Window, *, real: bool) -> torch.Tensor:
    channels, _, _, (top, left, bottom, right), _, _, pad_value, channels_last = window
    if x.dtype == torch.int32:
        x = unpack(x, channels).permute(0, 3, 1, 2)
    else:
        x = x.permute(0, 3, 1, 2) if channels_last else x
        x = x if real else sign(x)
    return functional.pad(x, (left, right, top, bottom), value=float(pad_value))


def _dots(x: torch.Tensor, kernel: torch.Tensor, window: Window, *, real: bool) -> torch.Tensor:
    _, _, stride, _, dilation, groups, _, _ = window
    images = _images(x, window, real=real)
    return functional.conv2d(images, kernel, stride=tuple(stride), dilation=tuple(dilation), groups=groups)


def _binary_conv2d(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *numbers: object
) -> torch.Tensor:
    *window, real = numbers
    kernel = unpack_weights(weight, scale.numel(), window)  # type: ignore[arg-type]  # as the schema says
    return _scaled(_dots(x, kernel, window, real=bool(real)), scale, bias, window)  # type: ignore[arg-type]  # the same


def _binary_conv2d_sign(
    x: torch.Tensor, weight: torch.Tensor, threshold: torch.Tensor, *window: object
) -> torch.Tensor:
    kernel = unpack_weights(weight, threshold.numel(), window)  # type: ignore[arg-type]  # as the schema says
    return _compared(_dots(x, kernel, window, real=False), threshold)  # type: ignore[arg-type]  # the same


def _binary_conv2d_tree(
    x: torch.Tensor, tree: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *window: object
) -> torch.Tensor:
    kernel = unpack_tree_weights(tree, window)  # type: ignore[arg-type]  # as the schema says
    return _scaled(_dots(x, kernel, window, real=False), scale, bias, window)  # type: ignore[arg-type]  # the same


def _binary_conv2d_tree_sign(
    x: torch.Tensor, tree: torch.Tensor, threshold: torch.Tensor, *window: object
) -> torch.Tensor:
    kernel = unpack_tree_weights(tree, window)  # type: ignore[arg-type]  # as the schema says
    return _compared(_dots(x, kernel, window, real=False), threshold)  # type: ignore[arg-type]  # the same


def _scaled(dots: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, window: Window) -> torch.Tensor:
    outputs = dots * scale[:, None, None] + bias[:, None, None]
    return outputs.permute(0, 2, 3, 1) if window[-1] else outputs


def _compared(dots: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return pack((dots >= threshold[:, None, None]).permute(0, 2, 3, 1))


def _rows(x: torch.Tensor, weight: torch.Tensor, out: int, channels: int, *, real: bool) -> torch.Tensor:
    kernel = unpack(_own_words(weight.transpose(2, 3)), channels).reshape(-1, channels)[:out]
    if x.dtype == torch.int32:
        return functional.linear(unpack(x, channels), kernel)
    return functional.linear(x if real else sign(x), kernel)


def _binary_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, channels: int, real: bool
) -> torch.Tensor:
    return _rows(x, weight, scale.numel(), channels, real=real) * scale + bias


def _binary_linear_sign(x: torch.Tensor, weight: torch.Tensor, threshold: torch.Tensor, channels: int) -> torch.Tensor:
    return pack(_rows(x, weight, threshold.numel(), channels, real=False) >= threshold)


def output_size(size: int, before: int, after: int, kernel: int, dilation: int, stride: int) -> int:
    """Positions that a window takes."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _spatial(x: torch.Tensor, window: Window) -> tuple[int, int]:
    _, kernel, stride, (top, left, bottom, right), dilation, _, _, channels_last = window
    height, width = x.shape[1:3] if channels_last or x.dtype == torch.int32 else x.shape[2:4]
    return (
        output_size(height, top, bottom, kernel[0], dilation[0], stride[0]),
        output_size(width, left, right, kernel[1], dilation[1], stride[1]),
    )


def _fake_conv2d(
    x: torch.Tensor, _weight: torch.Tensor, scale: torch.Tensor, _bias: torch.Tensor, *numbers: object
) -> torch.Tensor:
    *window, _ = numbers
    height, width = _spatial(x, window)  # type: ignore[arg-type]  # as the schema says
    shape = (height, width, scale.numel()) if window[-1] else (scale.numel(), height, width)
    return x.new_empty((x.shape[0], *shape), dtype=torch.float32)


def _fake_conv2d_sign(x: torch.Tensor, _weight: torch.Tensor, threshold: torch.Tensor, *window: object) -> torch.Tensor:
    height, width = _spatial(x, window)  # type: ignore[arg-type]  # as the schema says
    return x.new_empty((x.shape[0], height, width, -(-threshold.numel() // WORD_BITS)), dtype=torch.int32)


def _fake_conv2d_tree(
    x: torch.Tensor, tree: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *window: object
) -> torch.Tensor:
    return _fake_conv2d(x, tree, scale, bias, *window, False)


def _fake_linear(
    x: torch.Tensor, _weight: torch.Tensor, scale: torch.Tensor, _bias: torch.Tensor, _channels: int, _real: bool
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], scale.numel()), dtype=torch.float32)


def _fake_linear_sign(x: torch.Tensor, _weight: torch.Tensor, threshold: torch.Tensor, _channels: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], -(-threshold.numel() // WORD_BITS)), dtype=torch.int32)


_IMPLEMENTATIONS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "binary_conv2d": (_binary_conv2d, _fake_conv2d),
    "binary_conv2d_sign": (_binary_conv2d_sign, _fake_conv2d_sign),
    "binary_conv2d_tree": (_binary_conv2d_tree, _fake_conv2d_tree),
    "binary_conv2d_tree_sign": (_binary_conv2d_tree_sign, _fake_conv2d_sign),
    "binary_linear": (_binary_linear, _fake_linear),
    "binary_linear_sign": (_binary_linear_sign, _fake_linear_sign),
}


def register(several: dict[str, Operator]) -> Any:  # noqa: ANN401  # untyped in torch
    """Have torch know some operators for as long as what is returned is kept."""
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's own lack
    for name, (arguments, compute, fake) in several.items():
        library.define(f"{name}({arguments}) -> Tensor")
        library.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> Tensor(a!)")  # what ExecuTorch calls
        library.impl(name, compute, "CPU")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    return library


_LIBRARY = register({name: (arguments, *_IMPLEMENTATIONS[name]) for name, arguments in _SCHEMAS.items()})
"""Kept alive: the registrations go with it."""
assert LANES == 16  # noqa: S101, PLR2004  # what unpack_weights undoes
