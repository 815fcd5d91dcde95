"""Moments of what layers read."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.low_rank import moments
from ferryman.converter.low_rank.layers import find_layers
from ferryman.converter.low_rank.moments import bias_shift, gather, pick_windows, plain
from tests.unit.converter.low_rank.nets import CONVS, Twice, layer_of, stand_in


@pytest.mark.parametrize("name", CONVS)
def test_windows_are_what_the_layer_reads(name):
    make, shape = CONVS[name]
    layer, x = layer_of(make(), *shape)
    rows = pick_windows(layer.module, x, 10**6)
    outputs = rows @ layer.module.weight.detach().flatten(1).T
    expected = layer.module(x).detach() - (0 if layer.module.bias is None else bias_like(layer.module))
    channels = -1 if isinstance(layer.module, nn.Linear) else 1
    torch.testing.assert_close(outputs, expected.movedim(channels, -1).reshape(outputs.shape), atol=1e-5, rtol=1e-4)


def bias_like(module):
    bias = module.bias.detach()
    return bias if isinstance(module, nn.Linear) else bias.reshape(-1, *[1] * (module.weight.dim() - 2))


def test_energy_is_that_of_outputs():
    torch.manual_seed(0)
    layer, x = layer_of(nn.Conv2d(4, 6, 3, 1, 1), 8, 4, 16, 16)
    weight = layer.module.weight.detach().double()
    for centred in (False, True):
        found = gather(layer.module, [layer], [(x,)] * 3, centred=centred)[layer]
        y = functional.conv2d(x.double(), weight, padding=1).movedim(1, -1).flatten(0, -2)
        expected = (y - centred * y.mean(0)).square().sum(1).mean()
        assert found.energy(weight.flatten(1)) == pytest.approx(float(expected), rel=0.05)
        assert (bias_shift(found, weight.flatten(1)) is None) == (not centred)


def test_large_windows_are_of_channels(monkeypatch):
    torch.manual_seed(0)
    layer, x = layer_of(nn.Conv2d(4, 6, 3, 1, 1), 8, 4, 16, 16)
    whole = gather(layer.module, [layer], [(x,)], centred=False)[layer]
    monkeypatch.setattr(moments, "_WHOLE", 8)
    apart = gather(layer.module, [layer], [(x,)], centred=False)[layer]
    weight = layer.module.weight.detach().double().flatten(1)
    assert whole.whole
    assert not apart.whole
    assert apart.energy(weight) == pytest.approx(whole.energy(weight), rel=0.1)  # noise: taps do not go together
    torch.testing.assert_close(apart.channels(), whole.channels(), atol=0.05, rtol=0.1)
    torch.testing.assert_close(apart.columns(3), whole.columns(3), atol=0.1, rtol=0.1)


def test_few_inputs_leave_moments_near_to_plain():
    torch.manual_seed(0)
    layer, x = layer_of(nn.Linear(64, 8), 1, 64)
    found = gather(layer.module, [layer], [(x,)], centred=False)[layer].matrix
    eigenvalues = torch.linalg.eigvalsh(found)
    assert eigenvalues[-1] < 3 * eigenvalues[0]
    torch.testing.assert_close(plain(layer).matrix, torch.eye(64))


def test_all_calls_count():
    torch.manual_seed(0)
    net = Twice().eval()
    x = torch.randn(500, 32)
    layer, _ = find_layers(net, (x,), stand_in).layers
    found = gather(net, [layer], [(x,)], centred=False)[layer].matrix.diagonal().mean()
    with torch.no_grad():
        first = torch.relu(net.one(x))
        second = torch.relu(net.one(first))
    expected = sum(one.square().mean() for one in (x, first, second)) / 3
    assert float(found) == pytest.approx(float(expected), rel=0.02)
