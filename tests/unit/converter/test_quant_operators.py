"""The quantized operators' definition in torch, against plain float arithmetic on the rounded numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from ferryman.converter import quant_bits
from ferryman.converter.quant_operators import dynamic_scale, quantize

OPS = torch.ops.ferryman


def packed(weight: torch.Tensor, groups: int, bits: int) -> torch.Tensor:
    return torch.from_numpy(quant_bits.pack_weights(weight.int().numpy(), groups, bits)).view(torch.int8)


@pytest.mark.parametrize("bits", quant_bits.BITS)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_is_one_of_rounded_numbers(bits, groups):
    torch.manual_seed(0)
    half = 1 << (bits - 1)
    x, weight = torch.randn(2, 8, 6, 5), torch.randint(-half, half, (16, 8 // groups, 3, 3)).float()
    scale, bias = torch.rand(16) + 0.1, torch.randn(16)
    y = OPS.quant_conv2d(
        x, packed(weight, groups, bits), scale, bias, None, 8, [3, 3], [2, 1], [1, 0, 1, 2], [1, 1], groups, False,
        bits, 0.05, 3, 0.0, 0, 0, 0, 0.0, 0,
    )  # fmt: skip
    rounded = 0.05 * (quantize(x, 0.05, 3, -128, 127) - 3)
    dense = functional.conv2d(
        functional.pad(rounded, (0, 2, 1, 1)), weight * scale[:, None, None, None], bias, (2, 1), groups=groups
    )
    torch.testing.assert_close(y, dense, rtol=1e-4, atol=1e-3)


def test_int8_goes_from_layer_to_layer_with_an_addend_and_ends():
    torch.manual_seed(0)
    x = torch.randint(-128, 128, (1, 5, 5, 4), dtype=torch.int8)
    add = torch.randint(-128, 128, (1, 5, 5, 6), dtype=torch.int8)
    weight, scale, bias = torch.randint(-8, 8, (6, 4, 1, 1)).float(), torch.rand(6) * 0.1, torch.randn(6)
    y = OPS.quant_conv2d(
        x, packed(weight, 1, 4), scale, bias, add, 4, [1, 1], [1, 1], [0] * 4, [1, 1], 1, False, 4,
        0.1, 2, 0.2, -5, -5, 100, 0.3, 7,
    )  # fmt: skip
    assert y.dtype == torch.int8
    assert y.shape == (1, 5, 5, 6)
    sums = functional.linear((x.float() - 2) * 0.1, weight[:, :, 0, 0] * scale[:, None], bias) + (add.float() - 7) * 0.3
    expected = (sums / 0.2).clamp(0, 105).round() - 5
    assert (y.float() - expected).abs().max() <= 1
    assert int(y.min()) >= -5
    assert int(y.max()) <= 100


@pytest.mark.parametrize(("group", "with_zero"), [(0, False), (32, False), (32, True)])
def test_a_linear_layer_scales_every_group(group, with_zero):
    torch.manual_seed(0)
    channels, out = 80, 20
    groups = -(-channels // group) if group else 1
    stored = torch.randint(0, 16, (out, channels))
    scale = (torch.rand(out, groups) + 0.1).half()
    zero = torch.randint(0, 16, (out, groups)) if with_zero else torch.full((out, groups), 8)
    x, bias = torch.randn(3, 2, channels), torch.randn(out)
    pack = lambda values, kind: torch.from_numpy(quant_bits.pack_groups(values.numpy().astype(kind)))  # noqa: E731
    given_zero = pack(zero, np.uint8).view(torch.int8) if with_zero else None
    weight = packed(stored - 8, 1, 4)
    y = OPS.quant_linear(x, weight, pack(scale, np.float16), given_zero, bias, 4, group or channels)
    spread = lambda values: values.repeat_interleave(group or channels, 1)[:, :channels]  # noqa: E731
    dense = (stored - spread(zero)).float() * spread(scale).float()
    by = dynamic_scale(x, (-1,))
    rounded = quantize(x, by, 0, -127, 127) * by
    torch.testing.assert_close(y, functional.linear(rounded, dense, bias), rtol=1e-4, atol=1e-3)


def test_rows_of_a_table():
    table = torch.randint(-8, 8, (7, 40))
    scale = (torch.rand(7, 2) + 0.1).half()
    ids = torch.tensor([[0, 6], [3, 3]])
    weight = torch.from_numpy(quant_bits.pack_rows(table.int().numpy(), 4)).view(torch.int8)
    y = OPS.quant_embedding(ids, weight, scale, None, 40, 4, 32)
    dense = table.float() * scale.float().repeat_interleave(32, 1)[:, :40]
    torch.testing.assert_close(y, dense[ids], rtol=0, atol=0)


def test_what_is_nothing_becomes_zero():
    zeros = torch.zeros(2, 3)
    assert not quantize(zeros, dynamic_scale(zeros, (-1,)), 0, -127, 127).any()
    assert quantize(torch.tensor([float("nan")]), 0.1, 5, -128, 127).item() == -128
