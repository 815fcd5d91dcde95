"""Chains of one-way filters before training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.low_rank.one_way import one_way
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.low_rank.nets import CONVS, Convs


@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize("name", [name for name in CONVS if "linear" not in name and name != "1x1"])
def test_chains_give_shapes_as_before(name, ways):
    make, shape = CONVS[name]
    net = nn.Sequential(make())
    if name == "1x3" and ways == 2:
        shape = (*shape[:2], 11, 9)
    made = one_way(net, torch.randn(shape), ways=ways)
    assert [one.decision for one in made.decisions] == ["replaced"]
    assert all(sum(size > 1 for size in one.kernel_size) <= 1 for one in made.model[0])
    assert isinstance(net[0], nn.Conv1d | nn.Conv2d)


def test_three_ways_are_a_filter_along_each():
    made = one_way(nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1)), torch.randn(1, 8, 9, 9))
    shapes = [tuple(one.weight.shape) for one in made.model[0]]
    assert shapes == [(16, 8, 1, 1), (16, 1, 3, 1), (16, 1, 1, 3)]
    assert [one.stride for one in made.model[0]] == [(1, 1), (2, 1), (1, 2)]
    assert made.decisions[0].reason == "1x1, 3x1 depthwise, 1x3 depthwise: 21% of the weights"
    assert made.after.macs < 0.5 * made.before.macs
    # Each kernel is the product of three filters.
    first, second, third = (one.weight.detach() for one in made.model[0])
    kernel = torch.einsum("oi,oy,ox->oiyx", first[:, :, 0, 0], second[:, 0, :, 0], third[:, 0, 0])
    x = torch.randn(2, 8, 9, 9)
    expected = nn.functional.conv2d(x, kernel, made.model[0][2].bias, 2, 1)
    torch.testing.assert_close(made.model(x), expected, atol=1e-5, rtol=1e-4)


def test_two_ways_mix_channels_along_space():
    made = one_way(nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1)), torch.randn(1, 8, 9, 9), ways=2)
    assert [tuple(one.weight.shape) for one in made.model[0]] == [(16, 8, 3, 1), (16, 16, 1, 3)]


def test_volumes_have_filters_of_four_ways():
    made = one_way(nn.Sequential(nn.Conv3d(4, 6, 3)), torch.randn(1, 4, 7, 7, 7))
    assert [one.kernel_size for one in made.model[0]] == [(1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3)]


def test_outputs_are_as_large_as_without():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 20, 20)
    dense = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    thin = one_way(dense, x[:1]).model
    with torch.no_grad():
        assert 0.3 < float(thin(x).std() / dense(x).std()) < 3


def test_decisions_of_a_network():
    net = Convs(8)
    net.grouped = nn.Conv2d(16, 16, 3, groups=4, padding=1)
    made = one_way(net, torch.randn(1, 1, 12, 12))
    found = {one.path: one for one in made.decisions}
    assert [one.decision for one in found.values()] == ["replaced"] * 4 + ["float"]
    assert found["depthwise"].reason.startswith("3x1 depthwise, 1x3 depthwise:")
    assert found["grouped"].reason == "in 4 groups"
    assert made.model.body[-1].bias is None
    assert made.model.more[-1].bias is not None
    assert made.after.nbytes < 0.4 * made.before.nbytes


def test_a_convolution_of_two_names_stays_one():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
    net.append(net[0])
    made = one_way(net, torch.randn(1, 8, 9, 9))
    assert made.model[0] is made.model[2]
    assert [one.path for one in made.decisions] == ["0", "2"]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: nn.Linear(4, 4), ModelError, "it has no convolutions"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1)), ModelError, "0: its filters are one-way already"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1), ModelError, "the model itself"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), ModelError, "only Conv1d, Conv2d, Conv3d themselves"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), CallerError, "fails with the example"),
    ],
)
def test_what_cannot_be_says_so(make, error, said):
    with pytest.raises(error, match=said):
        one_way(make(), torch.randn(1, 4, 8, 4))


def test_ways_are_two_or_three():
    with pytest.raises(CallerError, match="of 3 ways or of 2, found 4"):
        one_way(Convs(), torch.randn(1, 1, 12, 12), ways=4)
