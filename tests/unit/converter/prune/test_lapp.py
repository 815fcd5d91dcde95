"""Thresholds settle within the budget, and what is learned folds into plain layers that compute the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferryman.converter.prune.budget import count
from ferryman.converter.prune.lapp import BypassConv2d, LappConv2d, fold, make_lapp, train_lapp
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.prune.nets import ResNet, accuracy, digits, image


def shaken(lapp):
    """With thresholds in the middle, and bypasses that do something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in lapp.layers.values():
            layer.threshold.fill_(1.0)
            layer.bypass[2].weight.uniform_(0.5, 1.5)
            layer.bypass[2].bias.uniform_(-0.5, 0.5)
            layer.norm.weight.uniform_(0.2, 1.8)
    return lapp


def test_a_bypass_changes_nothing_at_first():
    torch.manual_seed(1)
    net = ResNet().eval()
    lapp = make_lapp(net, example=image())
    assert {*lapp.layers} == {f"blocks.{index}.conv1" for index in range(3)}
    torch.testing.assert_close(lapp.model(*image()), net(*image()))
    assert float(lapp.left().detach()) == pytest.approx(count(lapp.model, image()).macs / count(net, image()).macs)
    assert 1 < float(lapp.left().detach()) < 1.3


def test_what_is_left_is_counted_as_it_is_once_folded():
    torch.manual_seed(1)
    lapp = shaken(make_lapp(ResNet().eval(), example=image()))
    folded = fold(lapp)
    assert float(lapp.left().detach()) == pytest.approx(folded.after.macs / folded.before)
    assert all(1 <= left < whole for whole, left in folded.kept.values())


def test_folding_is_exact():
    torch.manual_seed(1)
    lapp = shaken(make_lapp(ResNet().eval(), example=image()))
    before = copy.deepcopy(lapp.model.state_dict())
    folded = fold(lapp)
    lapp.model.eval()
    torch.testing.assert_close(folded.model(*image()), lapp.model(*image()), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(part, LappConv2d) for part in folded.model.modules())
    assert type(folded.model.blocks[0].conv1) is BypassConv2d
    assert all(torch.equal(one, before[key]) for key, one in lapp.model.state_dict().items())
    torch.export.export(folded.model, image(), strict=False)


def test_training_meets_the_budget_and_the_task():
    torch.manual_seed(0)
    net = ResNet()
    lapp = make_lapp(net, example=image(1))
    losses = train_lapp(lapp, digits()[0], percent=60, epochs=6, lr=5e-3)
    folded = fold(lapp)
    assert len(losses) == 6
    assert folded.after.macs <= 0.6 * folded.before
    assert accuracy(folded.model) > 0.93
    widths = {left / whole for whole, left in folded.kept.values()}
    assert len(widths) > 1  # each layer has its own rate


def test_a_threshold_learns():
    layer = LappConv2d(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8))
    layer.mask().mean().backward()
    assert layer.threshold.grad < 0  # a lower threshold leaves more
    with torch.no_grad():
        layer.threshold.fill_(100.0)
    assert int(layer.mask().detach().sum()) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"percent": 0}, "percent is"),
        ({"percent": 50.0}, "percent is"),
        ({"epochs": 1}, "epochs is 2"),
        ({"percent": 5}, "cannot be reached"),
    ],
)
def test_what_cannot_be_is_refused(more, said):
    torch.manual_seed(0)
    lapp = make_lapp(ResNet(8), example=image(1))
    with pytest.raises(CallerError, match=said):
        train_lapp(lapp, digits()[0][:2], **{"percent": 60, "epochs": 2, "lr": 1e-3, **more})


def test_a_model_without_such_convolutions_is_refused():
    with pytest.raises(ModelError, match="no convolution of the model is alone"):
        make_lapp(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)), example=image())
