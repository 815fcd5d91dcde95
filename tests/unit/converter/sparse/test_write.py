"""Pruned layers become sparse operators that compute the same, with what follows them taken in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.capture import Captured, capture, recapture
from ferryman.converter.functional import functional_module
from ferryman.converter.source import make_source
from ferryman.converter.sparse.layers import PrunedLayer, bridges, find_pruned
from ferryman.converter.sparse.write import put_sparse
from ferryman.runtime.contracts.errors import ModelError


def prune(module: nn.Module, zeros: float = 0.8) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for one in module.modules():
            depthwise = isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1
            if isinstance(one, (nn.Conv2d, nn.Linear)) and not depthwise:
                one.weight *= torch.rand_like(one.weight) >= zeros
            if isinstance(one, nn.BatchNorm2d):
                one.running_mean.normal_()
                one.running_var.uniform_(0.5, 2)
    return module.eval()


def rewritten(module: nn.Module, x: torch.Tensor, *, more: bool = False) -> Captured:
    captured = capture(make_source(module, (x,)))
    graph = functional_module(captured.program)
    several = [one for one in find_pruned("net", graph).values() if isinstance(one, PrunedLayer)]
    chosen = [one for one in several if one.eligible]
    put_sparse(graph, [*chosen, *(bridges(chosen, several) if more else [])])
    return recapture(captured, graph, "sparse operators")


def operators(captured: Captured) -> list[str]:
    return [
        str(node.target).removesuffix(".default") for node in captured.program.graph.nodes if node.op == "call_function"
    ]


def test_scales_additions_and_clips_are_taken_in():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU6())
            self.two = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8))

        def forward(self, x):
            return torch.relu(x + self.two(self.one(x)))

    block, x = prune(Block()), torch.randn(2, 8, 7, 5)
    made = rewritten(block, x)
    assert operators(made) == ["ferryman.sparse_conv2d"] * 2
    torch.testing.assert_close(made.program.module()(x), block(x))


def test_of_two_layers_that_lead_to_one_addition_the_later_takes_it_in():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, (2, 3), stride=2, padding=1, dilation=(1, 2))
            self.left.stride = (2, 2)

        def forward(self, x):
            return (self.left(x)[:, :, :3, :2] + self.right(x)[:, :, :3, :2]).clamp(-1, 2) + self.left(x)[:, :, :3, :2]

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)

        def forward(self, x):
            return (self.left(x) + self.right(x)).clamp(-1, 2)

    for net, count in ((prune(Both()), None), (prune(Plain()), 2)):
        x = torch.randn(1, 4, 8, 8)
        made = rewritten(net, x)
        if count:
            assert operators(made) == ["ferryman.sparse_conv2d"] * count
        torch.testing.assert_close(made.program.module()(x), net(x))


def test_linear_layers_of_any_rank_take_their_activation_in():
    net = prune(nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 7, bias=False)))
    x = torch.randn(2, 3, 30)
    made = rewritten(net, x)
    assert operators(made) == ["ferryman.sparse_linear"] * 2
    torch.testing.assert_close(made.program.module()(x), net(x))


def test_depthwise_convolutions_between_sparse_ones_may_come_along():
    net = prune(
        nn.Sequential(
            nn.Conv2d(6, 12, 1), nn.ReLU6(), nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.ReLU6(), nn.Conv2d(12, 6, 1)
        )
    )
    x = torch.randn(1, 6, 9, 9)
    alone, along = rewritten(net, x), rewritten(net, x, more=True)
    assert operators(alone).count("ferryman.sparse_conv2d") == 2
    assert operators(along) == ["ferryman.sparse_conv2d"] * 3
    torch.testing.assert_close(along.program.module()(x), net(x))


def test_a_layer_called_twice_holds_its_weights_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    made = rewritten(prune(Twice()), torch.randn(1, 4, 3, 3))
    assert len(dict(made.program.module().named_buffers())) == 3


def test_a_channel_of_zeros_alone_gives_its_bias():
    net = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight.zero_()
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(rewritten(net, x).program.module()(x), net(x))


def test_a_model_without_zeros_is_told_how_to_get_some():
    net = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    with pytest.raises(
        ModelError, match=r"no layer of which 25% of the weights are zero \(0: 0% zeros\); prune it first"
    ):
        rewritten(net, torch.randn(1, 3, 2, 2))
