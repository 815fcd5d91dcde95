"""The quantized operators' definition in torch, against plain float arithmetic on the rounded numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from ferryman.converter import quant_bits
from ferryman.converter.quant_operators import (
    GELU,
    LAYER_NORM,
    SILU,
    SOFTMAX,
    block_bytes,
    block_channels,
    dynamic_scale,
    from_blocks,
    quantize,
    to_blocks,
)

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
    y = OPS.quant_linear(x, weight, pack(scale, np.float16), given_zero, bias, 4, group or channels, False)
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
    y = OPS.quant_embedding(ids, weight, scale, None, 7, 40, 4, 32, False)
    dense = table.float() * scale.float().repeat_interleave(32, 1)[:, :40]
    torch.testing.assert_close(y, dense[ids], rtol=0, atol=0)


def test_what_is_nothing_becomes_zero():
    zeros = torch.zeros(2, 3)
    assert not quantize(zeros, dynamic_scale(zeros, (-1,)), 0, -127, 127).any()
    assert quantize(torch.tensor([float("nan")]), 0.1, 5, -128, 127).item() == -128


@pytest.mark.parametrize("channels", [1, 5, 31, 32, 33, 64, 100])
def test_blocks_lie_behind_each_other_and_lose_a_half_step(channels):
    torch.manual_seed(0)
    x = torch.randn(3, 2, channels) * 10.0 ** torch.randint(-3, 3, (3, 2, channels))
    rows = to_blocks(x)
    assert rows.shape == (3, 2, block_bytes(channels))
    assert block_channels(rows.shape[-1]) == channels
    steps = torch.nn.functional.pad(x, (0, -channels % 32)).unflatten(-1, (-1, 32)).abs().amax(-1) / 127
    lost = (from_blocks(rows) - x).abs()
    assert bool((lost <= steps.repeat_interleave(32, -1)[..., :channels] * 0.501).all())


def test_blocks_are_the_same_whether_they_are_made_before_or_within():
    torch.manual_seed(0)
    x, weight, scale = torch.randn(2, 70), torch.randint(-128, 128, (20, 70)), (torch.rand(20, 3) * 0.1).half()
    packs = packed(weight, 1, 8), torch.from_numpy(quant_bits.pack_groups(scale.numpy())), None, torch.randn(20)
    within = OPS.quant_linear(x, *packs, 8, 32, True)
    torch.testing.assert_close(OPS.quant_linear(to_blocks(x), *packs, 8, 32, True), within, rtol=0, atol=0)
    dense = weight.float() * scale.float().repeat_interleave(32, 1)[:, :70]
    torch.testing.assert_close(within, functional.linear(from_blocks(to_blocks(x)), dense, packs[3]))


@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_one_of_rounded_tensors(turned):
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5, 70), torch.randn(2, 3, 70, 9)
    rounded = from_blocks(to_blocks(a)) @ from_blocks(to_blocks(b.transpose(-1, -2))).transpose(-1, -2)
    given = b.transpose(-1, -2).contiguous() if turned else b
    torch.testing.assert_close(OPS.quant_matmul(a, given, turned), rounded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(OPS.quant_matmul(to_blocks(a), given, turned), OPS.quant_matmul(a, given, turned))


def test_functions_are_torchs_and_a_masked_row_is_nothing():
    x = torch.randn(4, 40)
    torch.testing.assert_close(OPS.quant_function(x, None, None, GELU, 0.0, False), functional.gelu(x))
    torch.testing.assert_close(OPS.quant_function(x, None, None, SILU, 0.0, False), functional.silu(x))
    weight, bias = torch.randn(40), torch.randn(40)
    normal = OPS.quant_function(x, weight, bias, LAYER_NORM, 1e-5, False)
    torch.testing.assert_close(normal, functional.layer_norm(x, (40,), weight, bias, 1e-5))
    x[1] = float("-inf")
    made = OPS.quant_function(x, None, None, SOFTMAX, 0.0, True)
    assert made.dtype == torch.int8
    assert not from_blocks(made)[1].any()
    assert (from_blocks(made)[2] - x[2].softmax(0)).abs().max() < 1e-3
