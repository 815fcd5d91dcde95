"""Means and covariances that are sent through a network are those of its channels."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import recalibrate_batch_norm
from ferryman.converter.prune.spread import Spread, white


class Mixed(nn.Module):
    """Every kind of layer that is followed; of 1x1 images, positions have nothing to do with each other."""

    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.d, self.m = nn.Conv2d(12, 12, 1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.b, self.c = nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(24, 8, 1)
        self.norm, self.e, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = functional.relu(self.n(self.a(x)))
        x = functional.relu6(self.m(self.d(x)))
        left, right = (0.5 * (x + self.b(x)) + 0.1).chunk(2, 1)
        x = self.c(torch.cat([x, right, left], 1)).flatten(1)
        return self.head(functional.gelu(self.e(self.norm(x))))


def followed(net, inputs, change):
    """Path of each layer -> what it reads."""
    found = {}

    def see(path, pair):
        found[path] = pair
        return change(path, pair)

    Spread(torch.export.export(net, inputs, strict=False), net, see).run()
    return found


def weights(net):
    layers = dict(net.named_modules())
    return lambda path, _: (
        layers[path].weight.detach(),
        None if layers[path].bias is None else layers[path].bias.detach(),
    )


def read(net, x):
    """Path of each layer -> its inputs in one call."""
    found = {}
    for path, part in net.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_pre_hook(lambda _, args, path=path: found.update({path: args[0].flatten(1)}))
    with torch.no_grad():
        net(x)
    return found


def calibrated():
    torch.manual_seed(0)
    net, x = Mixed(), torch.randn(20_000, 6, 1, 1)
    with torch.no_grad():
        for norm in (net.n, net.m):
            norm.weight.uniform_(-1, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    recalibrate_batch_norm(net, [(x, x)])
    return net.eval(), x


def test_channels_are_spread_as_samples_are():
    net, x = calibrated()
    found = followed(net, (x[:2],), weights(net))
    samples = read(copy.deepcopy(net), x)
    first = samples["d"].double()  # of Gaussians: exact but for the number of samples
    torch.testing.assert_close(found["d"].mean, first.mean(0), atol=0.02, rtol=0.02)
    torch.testing.assert_close(found["d"].own, torch.cov(first.T), atol=0.02, rtol=0.05)
    pair, given = found["b"], samples["b"].double()
    for one, wanted in ((pair.mean, given.mean(0)), (pair.own.flatten(), torch.cov(given.T).flatten())):
        assert float(torch.corrcoef(torch.stack([one, wanted]))[0, 1]) > 0.8
    # What is added and put side by side there depends on each other: only the means are near.
    means = torch.stack([found["c"].mean, samples["c"].double().mean(0)])
    assert float(torch.corrcoef(means)[0, 1]) > 0.9
    for pair in found.values():
        torch.testing.assert_close(pair.cross, pair.own)
        torch.testing.assert_close(pair.copy, pair.own)


def test_a_damaged_copy_goes_with_the_dense_network_as_samples_do():
    net, x = calibrated()
    broken = copy.deepcopy(net)
    with torch.no_grad():
        broken.a.weight += 0.1 * torch.randn_like(broken.a.weight)
    found = followed(net, (x[:2],), weights(broken))
    dense, copied = read(copy.deepcopy(net), x)["d"].double(), read(broken, x)["d"].double()
    wanted = (dense - dense.mean(0)).T @ (copied - copied.mean(0)) / (len(x) - 1)
    torch.testing.assert_close(found["d"].cross, wanted, atol=0.05, rtol=0.2)
    torch.testing.assert_close(found["d"].copy.diagonal(), copied.var(0), atol=0.05, rtol=0.2)
    assert not torch.allclose(found["d"].cross, found["d"].own, atol=1e-3)


def test_what_is_not_known_is_taken_to_be_white():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.b(torch.cumsum(self.a(x), 1))

    net = Cut().eval()
    pair = followed(net, (torch.randn(2, 4),), weights(net))["b"]
    assert torch.equal(pair.own, white(5).own)
    assert torch.equal(pair.mean, white(5).mean)
