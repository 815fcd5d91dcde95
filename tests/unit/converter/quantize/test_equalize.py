from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import Interpreter

from ferryman.converter.capture import capture
from ferryman.converter.compress.training import recalibrate_batch_norm
from ferryman.converter.layer_calls import path_of
from ferryman.converter.quantize.equalize import equalize
from ferryman.converter.quantize.layers import Layer, find_layers
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import parse_recipe
from ferryman.converter.recognise import Constants
from ferryman.converter.source import make_source
from tests.zoo.models import MobileNetV2


def norm(channels, smallest=1e-2):
    """A batch norm whose channels differ in range."""
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        made.weight.copy_(torch.logspace(0, torch.tensor(smallest).log10(), channels))
        made.bias.copy_(0.1 * made.weight * torch.randn(channels))
    return made


def pair_of(activation, *, groups=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), activation, nn.Conv2d(8, 16, 3, padding=1, groups=groups), nn.Flatten(2)
    ).eval()


def equalized(net, x, batches=None):
    """The number of pairs, the rewritten program, its layers by path."""
    module = capture(make_source(net, (x,))).program.module(check_guards=False)
    count = equalize(module, [(x,)] if batches is None else batches)
    layers = [layer for layer in find_layers(module, Constants(module)).values() if isinstance(layer, Layer)]
    return count, module, {path_of(layer.node): layer for layer in layers}


def answer(module, *inputs):
    with torch.no_grad():
        return Interpreter(module).run(*inputs, enable_io_processing=False)[0]


def ranges(first, second):
    out, inputs = second.weight.shape[:2]
    groups = second.window[5] if second.window else 1
    read = second.weight.reshape(groups, out // groups, inputs, -1).abs().amax((1, 3)).flatten()
    return first.weight.flatten(1).abs().amax(1), read


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity(), nn.ReLU(inplace=True)])
def test_both_get_the_same_ranges_and_the_network_computes_what_it_did(activation, groups):
    net, x = pair_of(activation, groups=groups), torch.randn(2, 3, 10, 10)
    count, module, layers = equalized(net, x)
    assert (count, list(layers)) == (1, ["0", "3"])
    torch.testing.assert_close(*ranges(layers["0"], layers["3"]), rtol=1e-3, atol=0)
    for given in (x, 10 * torch.randn(2, 3, 10, 10)):
        torch.testing.assert_close(answer(module, given), net(given), rtol=1e-4, atol=1e-5)


def test_chains_are_evened_out_all_along():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        net[0].weight *= torch.logspace(0, -2, 8)[:, None]
        net[4].weight *= torch.logspace(0, -1, 8)
    x = torch.randn(3, 5, 6)
    count, module, layers = equalized(net, x)
    assert count == 2
    torch.testing.assert_close(answer(module, x), net(x), rtol=1e-4, atol=1e-5)
    for first, second in (("0", "2"), ("2", "4")):
        torch.testing.assert_close(*ranges(layers[first], layers[second]), rtol=0.01, atol=0)


def test_channels_near_a_clip_stay_and_others_are_not_brought_there():
    net, x = pair_of(nn.ReLU6()), 20 * torch.randn(4, 3, 10, 10)
    near = 3  # so that inputs unlike those of calibration have room
    with torch.no_grad():
        before = net[1](net[0](x)).amax((0, 2, 3))
    assert 0 < (before >= near).sum() < 8  # or the test sees nothing
    count, module, layers = equalized(net, x)
    assert count == 1
    torch.testing.assert_close(answer(module, x), net(x), rtol=1e-4, atol=1e-4)
    factor = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    divided = (net[0].weight * factor[:, None, None, None] / layers["0"].weight)[:, 0, 0, 0]
    torch.testing.assert_close(divided[before >= near], torch.ones_like(divided[before >= near]))
    assert divided.min() < 0.5
    assert ((before / divided)[before < near] <= 1.001 * near).all()


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Hardtanh(), nn.LeakyReLU(), nn.GELU(), nn.Hardswish()])
def test_nothing_is_moved_through_other_activations(activation):
    assert equalized(pair_of(activation), torch.randn(1, 3, 10, 10))[0] == 0


class Net(nn.Module):
    """Where the first's value is also something else's."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), how

    def forward(self, x):
        y = self.first(x)
        return {
            "shortcut": lambda: self.second(y) + y,
            "output": lambda: (self.second(y), y),
            "shared": lambda: self.second(self.second(y)),
            "same": lambda: self.first(y),
        }[self.how]()


@pytest.mark.parametrize("how", ["shortcut", "output", "shared", "same"])
def test_values_and_weights_that_others_read_stay(how):
    net, x = Net(how).eval(), torch.randn(1, 3, 4, 4)
    count, module, _ = equalized(net, x)
    assert count == 0
    wanted = net(x)
    torch.testing.assert_close(answer(module, x), wanted[0] if how == "output" else wanted)


def test_channels_of_zeros_stay_zero():
    net, x = pair_of(nn.ReLU()), torch.randn(1, 3, 10, 10)
    with torch.no_grad():
        net[0].weight[1] = 0
        net[3].weight[:, 2] = 0
    count, module, _ = equalized(net, x)
    assert count == 1
    torch.testing.assert_close(answer(module, x), net(x), rtol=1e-4, atol=1e-5)


def spread_channels(net, decades):
    """Give hidden channels ranges that differ by this much, computing the same."""
    torch.manual_seed(0)
    with torch.no_grad():
        for block in net:
            parts = list(getattr(block, "body", ()))
            for before, activation, after in zip(parts, parts[1:], parts[2:], strict=False):
                if isinstance(activation, nn.ReLU6):
                    by = 10 ** (-decades * torch.rand(before.num_features))
                    before.weight *= by
                    before.bias *= by
                    after.weight /= by.reshape(-1, 1, 1, 1) if after.groups > 1 else by.reshape(1, -1, 1, 1)


def sqnr_db(net, form, x):
    torch.manual_seed(1)
    program, _ = lower_quantized(capture(make_source(net, (x,))), parse_recipe(form), [(torch.randn_like(x),)])
    with torch.no_grad():
        wanted, found = net(x), program.program.module()(x)
    return float(10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()))


@pytest.mark.parametrize("form", ["int8", "4bit"])
def test_a_depthwise_network_of_badly_spread_channels_loses_less(form):
    torch.manual_seed(0)
    net = MobileNetV2().features[:4]  # deeper, random layers make noise of whatever they are given
    recalibrate_batch_norm(net, [(torch.randn(16, 3, 64, 64), torch.zeros(0))])
    spread_channels(net, 2)
    x = torch.randn(4, 3, 64, 64)
    plain, even = (sqnr_db(net, name, x) for name in (form, f"{form}-equalize"))
    assert even > plain + 2
