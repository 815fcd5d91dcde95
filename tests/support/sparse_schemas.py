"""The sparse operators as torch exports them, for artifacts made by hand."""

from __future__ import annotations

from typing import Any

import torch

from ferryman.converter.operators import NAMESPACE, output_size

OPS = torch.ops.ferryman
_SCHEMAS = {
    "sparse_conv2d": (
        "Tensor x, Tensor values, Tensor index, Tensor bias, Tensor? add, int channels, int[2] kernel_size, "
        "int[2] stride, int[4] padding, int[2] dilation, int groups, bool last_in, bool last_out, int index_bits, "
        "float low, float high"
    ),
    "sparse_linear": "Tensor x, Tensor values, Tensor index, Tensor bias, int index_bits, float low, float high",
}


def _conv2d(x, _values, _index, bias, _add, _channels, kernel, stride, padding, dilation, _groups, *rest):
    last_in, last_out = rest[:2]
    height, width = x.shape[1:3] if last_in else x.shape[2:4]
    top, left, bottom, right = padding
    size = (
        output_size(height, top, bottom, kernel[0], dilation[0], stride[0]),
        output_size(width, left, right, kernel[1], dilation[1], stride[1]),
    )
    return x.new_empty((x.shape[0], *size, bias.numel()) if last_out else (x.shape[0], bias.numel(), *size))


def _linear(x, _values, _index, bias, *_):
    return x.new_empty((*x.shape[:-1], bias.numel()))


def _register() -> Any:
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")
    for (name, arguments), fake in zip(_SCHEMAS.items(), (_conv2d, _linear), strict=True):
        if not hasattr(OPS, name):
            library.define(f"{name}({arguments}) -> Tensor")
            library.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> Tensor(a!)")
            torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    return library


_LIBRARY = _register()
