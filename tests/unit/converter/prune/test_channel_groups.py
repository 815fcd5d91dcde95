"""A detector is pruned by groups of layers, and learns where the dense one looks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.prune.channel_groups import (
    attention_map,
    distil_train,
    divide,
    group_prune,
    sparse_rate,
    sparse_train,
)
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.prune.nets import digits


class Conv(nn.Module):
    def __init__(self, inside, outside, kernel=3, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x):
        return functional.silu(self.norm(self.conv(x)))


class Stage(nn.Module):
    """Half of the channels go through residual layers, and are put beside the others: as YOLO's CSP stages."""

    def __init__(self, channels):
        super().__init__()
        self.left, self.right = Conv(channels, channels // 2, 1), Conv(channels, channels // 2, 1)
        self.inner, self.outer = Conv(channels // 2, channels // 2, 1), Conv(channels // 2, channels // 2)
        self.join = Conv(channels, channels, 1)

    def forward(self, x):
        y = self.right(x)
        return self.join(torch.cat([self.left(x), y + self.outer(self.inner(y))], 1))


class Yolo(nn.Module):
    """Two scales, a neck that brings the coarse to the fine, and a head at each: x, y, w, h, there or not."""

    def __init__(self):
        super().__init__()
        self.stem = Conv(1, 16)
        self.down1, self.stage1 = Conv(16, 32, stride=2), Stage(32)
        self.down2, self.stage2 = Conv(32, 32, stride=2), Stage(32)
        self.neck = Conv(64, 32)
        self.fine, self.coarse = nn.Conv2d(32, 5, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x):
        fine = self.stage1(self.down1(self.stem(x)))
        coarse = self.stage2(self.down2(fine))
        both = self.neck(torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0)], 1))
        return torch.cat([self.fine(both).flatten(2), self.coarse(coarse).flatten(2)], 2)


def scenes():
    """Digits on an empty field of 16x16: where they are, to be found at both scales."""
    torch.manual_seed(0)
    batches = []
    for images, _ in digits()[0][:8]:
        fields, targets = 0.1 * torch.randn(len(images), 1, 16, 16), torch.zeros(len(images), 5, 80)
        for row, one in enumerate(images):
            top, left = (int(v) for v in torch.randint(0, 9, (2,)))
            fields[row, :, top : top + 8, left : left + 8] += one + 1
            box = torch.tensor([(left + 4) / 16, (top + 4) / 16, 0.5, 0.5, 1.0])
            targets[row, :, (top + 4) // 2 * 8 + (left + 4) // 2] = box
            targets[row, :, 64 + (top + 4) // 4 * 4 + (left + 4) // 4] = box
        batches.append((fields, targets))
    return batches


def detection_loss(outputs, targets):
    there = targets[:, 4]
    found = functional.binary_cross_entropy_with_logits(outputs[:, 4], there, pos_weight=torch.tensor(10.0))
    boxes = ((outputs[:, :4] - targets[:, :4]).square().sum(1) * there).sum() / there.sum()
    return found + 5 * boxes


@torch.no_grad()
def loss_of(model):
    return float(sum(detection_loss(model.eval()(x), y) for x, y in scenes()) / 8)


@torch.no_grad()
def looks(model, other):
    """How far apart two models look, at the end of the first stage."""
    x, _ = scenes()[0]
    a, b = (attention_map(one.stage1(one.down1(one.stem(x)))) for one in (model.eval(), other.eval()))
    return float((a - b).square().sum(1).mean())


FIELD = torch.zeros(1, 1, 16, 16)


@pytest.fixture(scope="module")
def sparse():
    torch.manual_seed(0)
    net = sparse_train(Yolo(), scenes(), epochs=8, lr=5e-3, loss=detection_loss, rate=0.1).model
    net.zero_grad(set_to_none=True)
    return net


def test_the_rate_is_full_at_first_and_fades():
    rates = [sparse_rate(epoch, 10, 1.0) for epoch in range(10)]
    assert rates[:6] == [1.0] * 6
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 <= rates[-1] < 0.2


def test_training_makes_scales_sparse(sparse):
    torch.manual_seed(0)
    plain = sparse_train(Yolo(), scenes(), epochs=8, lr=5e-3, loss=detection_loss, rate=0.0).model
    small = [
        float(torch.cat([p.weight.detach().abs() for p in net.modules() if isinstance(p, nn.BatchNorm2d)]).sum())
        for net in (sparse, plain)
    ]
    assert small[0] < 0.9 * small[1]


def test_layers_are_divided_by_scale_and_kind(sparse):
    divided = divide(sparse, example=FIELD)
    assert {*divided.members} >= {(1, "Conv"), (2, "Conv"), (4, "Conv")}
    assert sorted(n for numbers in divided.members.values() for n in numbers) == list(range(len(divided.groups)))


def test_each_group_loses_what_is_under_its_threshold(sparse):
    before = copy.deepcopy(sparse.state_dict())
    rates = {(2, "Conv"): 0.5, (4, "Conv"): 0.25}
    done = group_prune(sparse, rates, example=FIELD, channels=4)
    assert done.kept[1, "Conv"][0] == done.kept[1, "Conv"][1]
    for kind, rate in rates.items():
        whole, left = done.kept[kind]
        assert whole * (1 - rate) <= left <= whole * (1 - rate) + 4 * len(divide(sparse, example=FIELD).members[kind])
        assert left < whole
    assert len({done.thresholds[kind] for kind in rates}) == 2
    assert done.after.macs < done.before.macs
    assert done.model(FIELD).shape == sparse(FIELD).shape
    assert all(torch.equal(one, before[key]) for key, one in sparse.state_dict().items())


def test_the_narrower_detector_learns_where_the_dense_one_looks(sparse):
    dense, narrow = loss_of(sparse), group_prune(sparse, 0.4, example=FIELD, channels=4)
    assert narrow.after.macs < 0.65 * narrow.before.macs
    cut, apart = loss_of(narrow.model), {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        tuned = distil_train(
            copy.deepcopy(narrow.model), sparse, scenes(), paths=["stage1.join", "stage2.join"], epochs=8, lr=5e-3,
            loss=detection_loss, weight=weight,
        )  # fmt: skip
        apart[weight] = looks(tuned.model, sparse)
    assert loss_of(tuned.model) < 0.5 * cut
    assert loss_of(tuned.model) < 1.5 * dense
    assert apart[10.0] < 0.8 * apart[0.0]
    assert not tuned.model.stage1.join._forward_hooks


def test_attention_is_of_places_not_of_channels():
    features = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(attention_map(features), attention_map(features.repeat(1, 5, 1, 1)))
    torch.testing.assert_close(attention_map(features).norm(dim=1), torch.ones(2))


def test_what_cannot_be_is_refused(sparse):
    with pytest.raises(CallerError, match=r"there is no group \(3, 'Conv'\); there are: \(1, 'Conv'\)"):
        group_prune(sparse, {(3, "Conv"): 0.5}, example=FIELD)
    with pytest.raises(CallerError, match="a rate is 0 to below 1, found 1"):
        group_prune(sparse, 1.0, example=FIELD)
    with pytest.raises(ModelError, match="no channels of the model have a batch norm"):
        divide(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)).eval(), example=FIELD)
    with pytest.raises(CallerError, match="no batch norms with scales"):
        sparse_train(nn.Linear(2, 2), [], epochs=1, lr=1e-3, loss=detection_loss)
    with pytest.raises(CallerError, match="there is no module 'tail'"):
        distil_train(sparse, sparse, scenes(), paths=["tail"], epochs=1, lr=1e-3, loss=detection_loss)
