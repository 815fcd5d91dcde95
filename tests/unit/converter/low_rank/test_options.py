"""What layers can become, and what outputs lose by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.low_rank.decompose import build
from ferryman.converter.low_rank.layers import find_layers, put
from ferryman.converter.low_rank.moments import gather, plain
from ferryman.converter.low_rank.options import find_choices, model_outputs, weigh
from tests.unit.converter.low_rank.nets import Convs, layer_of, stand_in


def test_options_cost_less_and_lose_less_the_more_ranks_they_have():
    torch.manual_seed(0)
    layer, _ = layer_of(nn.Conv2d(32, 32, 3, 1, 1), 1, 32, 8, 8)
    dense, *options = find_choices(layer, plain(layer)).options
    assert dense.way is None
    assert dense.error == 0
    assert {one.way for one in options} == {"svd", "spatial", "tucker", "cp"}
    assert all(one.price.macs < dense.price.macs and one.price.nbytes < dense.price.nbytes for one in options)
    assert all(rank % 8 == 0 for one in options for rank in one.ranks)
    for way in ("svd", "spatial", "tucker", "cp"):
        errors = [one.error for one in options if one.way == way]
        assert len(errors) > 1
        assert errors == sorted(errors, reverse=True)
        assert errors[0] < 1


def test_only_some_ways_are_looked_at():
    layer, _ = layer_of(nn.Conv2d(32, 32, 3, 1, 1), 1, 32, 8, 8)
    assert {one.way for one in find_choices(layer, plain(layer), ("svd",)).options} == {None, "svd"}


def scaled(by: float) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(16, 16, 3, 1, 1)
    with torch.no_grad():
        made.weight.mul_(by)
    return made


@pytest.mark.parametrize("by", [1e-20, 1e-30, 1e30])
def test_how_large_weights_are_changes_no_error(by):
    layer, x = layer_of(scaled(by), 1, 16, 8, 8)
    like, _ = layer_of(scaled(1.0), 1, 16, 8, 8)
    found, wanted = (
        {one.key: one.error for one in find_choices(each, plain(each)).options[1:] if one.way != "cp"}
        for each in (layer, like)
    )
    assert len(wanted) > 4
    assert found == pytest.approx(wanted, rel=1e-3)
    each = find_choices(layer, gather(layer.module, [layer], [(x,)], centred=True)[layer])
    factors = each.factors(each.options[-1])
    made = build(layer, factors, each.decomposer.shift(factors))
    with torch.no_grad():
        y, answer = layer.module(x).double() / by, made(x).double() / by
    assert float((y - answer).square().sum() / y.square().sum()) < each.options[-1].error + 0.1


def test_weights_that_are_all_zero_stay_whole():
    layer, _ = layer_of(scaled(0.0), 1, 16, 8, 8)
    found = find_choices(layer, plain(layer))
    assert ([one.way for one in found.options], found.unfit) == ([None], "its weights are all zero")


def test_what_reads_more_than_squares_can_hold_stays_whole():
    layer, x = layer_of(scaled(1.0), 1, 16, 8, 8)
    found = find_choices(layer, gather(layer.module, [layer], [(x * 1e30,)], centred=False)[layer])
    assert [one.way for one in found.options] == [None]
    assert "too large for float32" in found.unfit


@pytest.mark.parametrize("kind", ["one filter", "one column", "all alike", "one number"])
def test_weights_that_have_hardly_a_rank_are_decomposed_where_that_can_be(kind):
    made = scaled(1.0)
    with torch.no_grad():
        if kind == "one filter":
            made.weight[1:] = 0
        elif kind == "one column":
            made.weight[:, 1:] = 0
        elif kind == "all alike":
            made.weight[:] = 1
        else:
            made.weight.zero_()[0, 0, 0, 0] = 1
    layer, x = layer_of(made, 1, 16, 8, 8)
    options = find_choices(layer, gather(made, [layer], [(x,)], centred=False)[layer]).options
    for way in ("svd", "spatial"):
        assert min(one.error for one in options if one.way == way) < 1e-6


def test_a_layer_that_is_too_thin_has_no_options():
    layer, _ = layer_of(nn.Linear(2, 2), 1, 2)
    assert [one.way for one in find_choices(layer, plain(layer)).options] == [None]


def test_what_outputs_lose_is_measured():
    torch.manual_seed(0)
    net = Convs(8).eval()
    batches = [(torch.randn(16, 1, 12, 12),)]
    before = {name: one.clone() for name, one in net.state_dict().items()}
    layers = find_layers(net, batches[0], stand_in).layers
    found = gather(net, layers, batches, centred=True)
    several = [find_choices(one, found[one]) for one in layers]
    weigh(net, several, batches)
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    wanted = model_outputs(net, batches[0])
    each = several[2]
    option = min((one for one in each.options if one.error > 0), key=lambda one: abs(one.error - 0.02))
    factors = each.factors(option)
    kept = each.layer.module
    put(net, {each.layer: build(each.layer, factors, each.decomposer.shift(factors))})
    lost = (model_outputs(net, batches[0]) - wanted).square().sum() / wanted.square().sum()
    put(net, {each.layer: kept})
    assert option.loss == pytest.approx(float(lost), rel=0.05)
    gain = option.loss / option.error
    assert all(one.loss == pytest.approx(gain * one.error) for one in each.options)
