"""Ranks that are learned."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import train
from ferryman.converter.low_rank.layers import find_layers
from ferryman.converter.low_rank.learned import Ordered, learn_ranks
from tests.unit.converter.low_rank.nets import CONVS, layer_of, low_rank_linear, stand_in


@pytest.mark.parametrize("name", ["linear", "strided", "conv1d"])
def test_a_product_starts_as_the_layer_and_has_prefixes(name):
    torch.manual_seed(0)
    make, shape = CONVS[name]
    layer, x = layer_of(make(), *shape)
    ordered = Ordered(layer).eval()
    with torch.no_grad():
        torch.testing.assert_close(ordered(x), layer.module(x), atol=1e-5, rtol=1e-4)
        ordered.rank = 3
        short = ordered(x)
        factors = ordered.factors(3)
        layer.module.weight.copy_(factors.dense().reshape(layer.module.weight.shape))
        torch.testing.assert_close(short, layer.module(x), atol=1e-5, rtol=1e-4)


def test_only_drawn_channels_count_in_training():
    torch.manual_seed(0)
    layer, x = layer_of(nn.Linear(16, 16), 3, 16)
    ordered = Ordered(layer).train()
    ordered.drawn = 2
    ordered(x).square().sum().backward()
    assert ordered.front.weight.grad[2:].abs().max() == 0
    assert ordered.front.weight.grad[:2].abs().min() > 0
    whole = ordered.eval()(x)
    assert not torch.allclose(whole, ordered.train()(x))


def test_tails_are_lengths_of_all_that_follows_and_short_ones_go():
    torch.manual_seed(0)
    layer, _ = layer_of(low_rank_linear(16, 16, 4), 1, 16)
    ordered = Ordered(layer)
    with torch.no_grad():
        front, last = ordered.tails()
        assert float(front[2]) == pytest.approx(float(ordered.front.weight[2:].norm()), rel=1e-5)
        assert float(last[1]) == pytest.approx(float(ordered.last.weight[:, 1:].norm()), rel=1e-5)
    ordered.shrink()
    assert ordered.rank == 4


def test_learning_finds_the_rank_of_the_task():
    torch.manual_seed(0)
    task = low_rank_linear(16, 16, 3).eval()
    net = nn.Sequential(nn.Linear(16, 16)).eval()
    net[0].load_state_dict({"weight": task.weight + 0.02 * torch.randn(16, 16), "bias": task.bias})
    x = torch.randn(512, 16)
    batches = [(part, task(part).detach()) for part in x.split(32)]
    layers = find_layers(net, (x,), stand_in).layers
    trainer = functools.partial(train, loader=batches, epochs=12, lr=5e-3, loss=functional.mse_loss)
    made, losses = learn_ranks(net, layers, trainer)
    (ordered,) = made.values()
    assert len(losses) == 12
    assert 3 <= ordered.rank <= 5
    assert type(net[0]) is nn.Linear
    assert torch.linalg.matrix_rank(net[0].weight.detach(), rtol=1e-4) == ordered.rank
    with torch.no_grad():
        y = task(x)
        assert (net(x) - y).square().sum() < 0.01 * (y - y.mean(0)).square().sum()
