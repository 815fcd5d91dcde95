"""Decompositions: exact at full rank, best for outputs below it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferryman.converter.low_rank.decompose import Decomposer, build
from ferryman.converter.low_rank.layers import find_layers
from ferryman.converter.low_rank.moments import gather, plain
from ferryman.converter.low_rank.shapes import rank_max, ways
from tests.unit.converter.low_rank.nets import CONVS, layer_of, low_rank_linear, stand_in


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CONVS)
def test_at_full_rank_a_chain_is_the_layer(name):
    torch.manual_seed(0)
    make, shape = CONVS[name]
    layer, x = layer_of(make(), *shape)
    work = Decomposer(layer, plain(layer))
    for way in ways(layer):
        factors = work.factors(way, rank_max(layer, way))
        made = build(layer, factors, None)
        wanted, found = layer.module(x), made(x)
        lost = float((wanted - found).square().sum() / wanted.square().sum())
        exact = 1e-10 if way != "cp" else 0.02  # CP is found by rounds of least squares, as many as are waited for
        assert lost < exact
        assert work.error(factors) < exact
        assert (made[-1].bias is None) == (layer.module.bias is None)
        assert not made.training


@pytest.mark.parametrize("name", CONVS)
def test_a_chain_computes_its_factors_and_its_error_is_of_outputs(name):
    torch.manual_seed(0)
    make, shape = CONVS[name]
    layer, x = layer_of(make(), *shape)
    work = Decomposer(layer, gather(layer.module, [layer], [(x,)], centred=False)[layer])
    for way in ways(layer):
        factors = work.factors(way, (3, 4) if way == "tucker" else (4,))
        changed = build(layer, factors, None)(x)
        dense = copy.deepcopy(layer.module)
        dense.weight.copy_(factors.dense().reshape(dense.weight.shape))
        torch.testing.assert_close(changed, dense(x), atol=1e-4, rtol=1e-3)
        assert 0 < work.error(factors) < 1


def test_svd_is_the_best_of_its_rank():
    torch.manual_seed(0)
    layer, _ = layer_of(nn.Linear(20, 30), 1, 20)
    weight = layer.module.weight.detach().double()
    work = Decomposer(layer, plain(layer))
    values = torch.linalg.svdvals(weight).square()
    for rank in (1, 7, 20):
        lost = float(values[rank:].sum() / values.sum())
        assert work.error(work.factors("svd", (rank,))) == pytest.approx(lost, abs=1e-9)


def test_data_takes_the_error_where_inputs_are_not():
    torch.manual_seed(0)
    scale = torch.logspace(0, -2, 48)
    x = torch.randn(4000, 48) * scale
    layer, _ = layer_of(nn.Linear(48, 40), 1, 48)
    found = gather(layer.module, [layer], [(x,)], centred=False)[layer]

    def lost(moments):
        made = build(layer, Decomposer(layer, moments).factors("svd", (12,)), None)
        y = layer.module(x)
        return float((made(x) - y).square().sum() / (y - layer.module.bias).square().sum())

    aware, blind = lost(found), lost(plain(layer))
    assert aware < 0.25 * blind
    work = Decomposer(layer, found)
    assert work.error(work.factors("svd", (12,))) == pytest.approx(aware, rel=0.1)


@pytest.mark.parametrize("way", ["svd", "spatial", "tucker", "cp"])
def test_data_never_makes_a_convolution_worse(way):
    torch.manual_seed(0)
    mixed = nn.Conv2d(6, 6, 5, padding=2)
    with torch.no_grad():
        x = torch.relu(mixed(torch.randn(16, 6, 20, 20)) * torch.logspace(0, -1.5, 6)[:, None, None])
    layer, _ = layer_of(nn.Conv2d(6, 16, 3, padding=1), 1, 6, 20, 20)
    found = gather(layer.module, [layer], [(x,)], centred=True)[layer]
    y = layer.module(x)

    def lost(moments):
        work = Decomposer(layer, moments)
        factors = work.factors(way, (3, 8) if way == "tucker" else (8,))
        return float((build(layer, factors, work.shift(factors))(x) - y).square().sum())

    assert lost(found) < 0.8 * lost(plain(layer))


def test_a_bias_makes_good_the_mean():
    torch.manual_seed(0)
    layer, _ = layer_of(nn.Linear(32, 24, bias=False), 1, 32)
    x = torch.randn(2000, 32) + 3
    found = gather(layer.module, [layer], [(x,)], centred=True)[layer]
    work = Decomposer(layer, found)
    factors = work.factors("svd", (4,))
    made = build(layer, factors, work.shift(factors))
    assert made[-1].bias is not None
    torch.testing.assert_close(made(x).mean(0), layer.module(x).mean(0), atol=1e-4, rtol=1e-3)


def test_weights_of_low_rank_lose_nothing():
    torch.manual_seed(0)
    layer, x = layer_of(low_rank_linear(32, 48, 5), 7, 32)
    made = build(layer, Decomposer(layer, plain(layer)).factors("svd", (5,)), None)
    torch.testing.assert_close(made(x), layer.module(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_chains_keep_the_dtype_and_what_is_frozen(kind):
    module = nn.Conv2d(8, 12, 3, dtype=kind)
    module.weight.requires_grad_(False)
    x = torch.randn(1, 8, 9, 9, dtype=kind)
    (layer,) = find_layers(module.eval(), (x,), stand_in).layers
    made = build(layer, Decomposer(layer, plain(layer)).factors("svd", rank_max(layer, "svd")), None)
    assert {one.dtype for one in made.parameters()} == {kind}
    assert [one.requires_grad for one in made.parameters()] == [False, False, True]
    tolerance = 1e-9 if kind == torch.float64 else 0.05
    torch.testing.assert_close(made(x), module(x), atol=tolerance, rtol=tolerance)


def test_factors_are_balanced():
    torch.manual_seed(0)
    layer, _ = layer_of(nn.Conv2d(8, 12, 3), 1, 8, 9, 9)
    work = Decomposer(layer, plain(layer))
    for way in ways(layer):
        factors = work.factors(way, (3, 4) if way == "tucker" else (4,))
        each = len(factors.maps) // 4
        before = factors.maps.reshape(4, -1).norm(dim=1)
        after = factors.last.reshape(12, 4, each).norm(dim=(0, 2))
        torch.testing.assert_close(before, after)


def test_weights_of_zeros_are_no_trouble():
    module = nn.Conv2d(8, 12, 3)
    nn.init.zeros_(module.weight)
    layer, x = layer_of(module, 1, 8, 9, 9)
    work = Decomposer(layer, plain(layer))
    for way in ("svd", "spatial"):
        factors = work.factors(way, (4,))
        assert work.error(factors) == 0
        assert bool(build(layer, factors, None)(x).isfinite().all())
