"""torch's definitions of the quantized operators: the converter's, or while it has none, their schemas and shapes."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch

from ferryman.converter.operators import NAMESPACE, output_size

CONV = (
    "Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? add, int channels, int[2] kernel_size, int[2] stride, "
    "int[4] padding, int[2] dilation, int groups, bool channels_last, int bits, float x_scale, int x_zero, "
    "float out_scale, int out_zero, int out_low, int out_high, float add_scale, int add_zero"
)
LINEAR = "Tensor x, Tensor weight, Tensor scale, Tensor? zero, Tensor bias, int bits, int group"
EMBEDDING = "Tensor ids, Tensor weight, Tensor scale, Tensor? zero, int channels, int bits, int group"


def _conv2d(x, weight, scale, bias, add, *numbers):
    _, kernel, stride, (top, left, bottom, right), dilation, _, last, _, _, _, out_scale, *_ = numbers
    height, width = x.shape[1:3] if last or x.dtype == torch.int8 else x.shape[2:4]
    height = output_size(height, top, bottom, kernel[0], dilation[0], stride[0])
    width = output_size(width, left, right, kernel[1], dilation[1], stride[1])
    images = (height, width, scale.numel()) if last or out_scale else (scale.numel(), height, width)
    return x.new_empty((x.shape[0], *images), dtype=torch.int8 if out_scale else torch.float32)


def _linear(x, weight, scale, zero, bias, *numbers):
    return x.new_empty((*x.shape[:-1], bias.numel()), dtype=torch.float32)


def _embedding(ids, weight, scale, zero, channels, *numbers):
    return ids.new_empty((*ids.shape, channels), dtype=torch.float32)


def _register():
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name, arguments, fake in (
        ("quant_conv2d", CONV, _conv2d),
        ("quant_linear", LINEAR, _linear),
        ("quant_embedding", EMBEDDING, _embedding),
    ):
        library.define(f"{name}({arguments}) -> Tensor")
        library.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> Tensor(a!)")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    return library


if find_spec("ferryman.converter.quant_operators"):
    import_module("ferryman.converter.quant_operators")
else:
    _LIBRARY = _register()
