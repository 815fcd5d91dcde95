"""Bits layer by layer leave more of a super-resolution network than the same for all layers does."""

from __future__ import annotations

import pytest

from ferryman.converter.quantize.recipe import parse_recipe
from tests.zoo.super_resolution import Bench, trained

pytestmark = pytest.mark.slow


def test_mixed_bits_beat_uniform_ones_in_size_operations_and_error():
    bench = Bench(trained(300))

    floats = bench.measure(None)
    uniform = bench.measure(bench.uniform("4bit"))
    mixed = bench.measure(parse_recipe("mixed-4b"))

    assert mixed.bits <= uniform.bits == 4
    assert mixed.nbytes <= uniform.nbytes < floats.nbytes / 6
    assert mixed.bit_operations <= uniform.bit_operations < floats.bit_operations / 30
    assert mixed.sqnr > uniform.sqnr + 1
    assert mixed.psnr > uniform.psnr
