"""Units are trained to zero, and nothing changes when they go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferryman.converter.compress.training import train
from ferryman.converter.prune.graph import find_groups, run
from ferryman.converter.prune.oto import HalfSpace, can_be_zero, half_space_train
from ferryman.converter.prune.structured import prune
from ferryman.converter.prune.units import Group, Slot, remove
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.prune.nets import DenseNet, ResNet, Vit, accuracy, digits, image, trained


def halves(groups):
    return {number: frozenset(range(group.count // 2)) for number, group in enumerate(groups) if can_be_zero(group)}


@pytest.mark.parametrize("make", [ResNet, DenseNet])
def test_removal_is_exact(make):
    torch.manual_seed(0)
    net = make().eval()
    groups = find_groups(net, image(1)).groups
    # A norm in front of a convolution gives its offset where channels are zero: only its own zeros are taken along.
    removed = halves(groups)
    done = half_space_train(net, groups, removed, digits()[0][:6], epochs=3, lr=1e-3)
    thin = copy.deepcopy(done.model)
    remove(thin, groups, removed)
    images = (digits()[1],)
    assert sum(p.numel() for p in thin.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(run(thin, images)[0], run(done.model, images)[0], rtol=1e-5, atol=1e-5)
    assert len(done.losses) == 3


def test_pruning_with_it_needs_no_training_after():
    net = trained(ResNet(), epochs=4)
    torch.manual_seed(0)
    done = prune(net, "pruned-40flops-oto", example=image(1), loader=digits()[0], epochs=5)
    assert done.after.macs <= 0.4 * done.before.macs
    assert accuracy(done.model) > accuracy(net) - 0.03
    assert accuracy(prune(net, "pruned-40flops-plain", example=image(1)).model) < accuracy(net) - 0.2


def test_a_step_out_of_the_half_space_puts_a_unit_to_zero():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = find_groups(net.eval(), (torch.randn(1, 3),)).groups
    space = HalfSpace(net, groups, {0: frozenset({1, 2})})
    space.begin(0, 4)
    kept = net[0].weight[[0, 3]].clone()
    with torch.no_grad():
        net[0].weight[1] *= -1
        net[0].bias[1] *= -1
    space.step()
    assert space.left == 1
    assert not net[0].weight[1].any()
    assert not net[0].bias[1].any()
    assert net[0].weight[2].any()
    assert torch.equal(net[0].weight[[0, 3]], kept)
    for _ in range(100):
        space.step()
    assert space.left == 0
    with torch.no_grad():
        net[0].weight[1] += 1  # as an optimizer's momentum does
    space.step()
    assert not net[0].weight[1].any()


def test_units_that_a_norm_mixes_are_not_taken():
    group = Group((Slot("0", "out", ((0,), (1,))),), 2, mixes=True)
    with pytest.raises(CallerError, match="cannot be trained to zero"):
        HalfSpace(nn.Sequential(nn.Linear(2, 2)), [group], {0: frozenset({0})})
    torch.manual_seed(0)
    done = prune(Vit().eval(), "pruned-60flops-oto", example=image(1), loader=digits()[0][:4], epochs=2)
    assert done.model.blocks[0].norm1.normalized_shape == (32,)
    assert done.after.macs <= 0.6 * done.before.macs

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 10)

        def forward(self, x):
            return self.b(self.norm(self.a(x.flatten(1))))

    with pytest.raises(ModelError, match="nothing of the model can be pruned"):
        prune(Mixed().eval(), "pruned-60flops-oto", example=image(1), loader=digits()[0][:4])


def test_training_alone_leaves_no_zeros():
    torch.manual_seed(0)
    net = train(ResNet(), digits()[0][:4], epochs=1, lr=1e-3).model
    assert bool((net.stem[0].weight.flatten(1).norm(dim=1) > 0).all())
