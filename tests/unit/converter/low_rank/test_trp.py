"""Training towards low ranks."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import train
from ferryman.converter.low_rank.decompose import Decomposer
from ferryman.converter.low_rank.layers import find_layers
from ferryman.converter.low_rank.moments import plain
from ferryman.converter.low_rank.trp import truncate, truncate_while_training
from tests.unit.converter.low_rank.nets import layer_of, low_rank_linear, stand_in


@pytest.mark.parametrize("way", ["svd", "spatial"])
def test_truncated_weights_decompose_without_loss(way):
    torch.manual_seed(0)
    layer, _ = layer_of(nn.Conv2d(8, 12, 3), 1, 8, 9, 9)
    before = layer.module.weight.detach().clone()
    drawn = truncate(layer, way, 4)
    work = Decomposer(layer, plain(layer))
    assert work.error(work.factors(way, (4,))) < 1e-9
    assert work.error(work.factors(way, (3,))) > 1e-3
    assert (before - layer.module.weight).norm() < before.norm()
    # Of the nuclear norm at W: <G, W> is the norm itself, and no singular value of G is above 1.
    across = (lambda one: one.permute(1, 2, 0, 3).reshape(24, 36)) if way == "spatial" else (lambda one: one.flatten(1))
    values = torch.linalg.svdvals(across(layer.module.weight.detach()))
    assert float((drawn * layer.module.weight.detach()).sum()) == pytest.approx(float(values.sum()), rel=1e-4)
    assert torch.linalg.svdvals(across(drawn)).max() == pytest.approx(1, rel=1e-4)


def test_a_layer_learns_to_do_with_a_rank():
    torch.manual_seed(0)
    task = nn.Sequential(low_rank_linear(16, 16, 8), nn.ReLU(), nn.Linear(16, 4)).eval()
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    net.load_state_dict(task.state_dict())
    x = torch.randn(512, 16)
    batches = [(part, task(part).detach()) for part in x.split(32)]
    layer, other = find_layers(net, (x,), stand_in).layers
    whole = other.module.weight.detach().clone()
    trainer = functools.partial(train, loader=batches, epochs=6, lr=5e-3, loss=functional.mse_loss)
    with torch.no_grad():
        truncate(layer, "svd", 6)
        at_once = functional.mse_loss(net(x), task(x))
        net.load_state_dict(task.state_dict())
    losses = truncate_while_training(net, {layer: ("svd", (6,))}, trainer)
    assert len(losses) == 6
    assert torch.linalg.matrix_rank(layer.module.weight.detach(), rtol=1e-4) == 6
    assert not torch.equal(other.module.weight, whole)
    with torch.no_grad():
        assert functional.mse_loss(net(x), task(x)) < 0.7 * at_once


def test_without_targets_it_is_training():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4))
    batches = [(torch.randn(8, 4), torch.randn(8, 4))]
    trainer = functools.partial(train, loader=batches, epochs=2, lr=1e-3, loss=functional.mse_loss)
    assert len(truncate_while_training(net, {}, trainer)) == 2
