"""Pruning from a name: budgets held, models whole, rows that say what was done."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferryman.converter.prune.budget import count
from ferryman.converter.prune.graph import OUTPUT
from ferryman.converter.prune.structured import prune
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.prune.nets import (
    DenseNet,
    Encoder,
    Grouped,
    ResNet,
    Split,
    SuperResolution,
    Vit,
    accuracy,
    digits,
    image,
    trained,
)
from tests.zoo.models import decoder

NETS = [ResNet, DenseNet, Split, Grouped, SuperResolution, Vit, Encoder]


@pytest.mark.parametrize("name", ["pruned-60flops", "pruned-60bytes-lasso"])
@pytest.mark.parametrize("make", NETS)
def test_budgets_are_held_and_the_model_runs(make, name):
    torch.manual_seed(1)
    net = make().eval()
    before = copy.deepcopy(net.state_dict())
    done = prune(net, name, example=image())
    percent, unit = int(name[7:9]), name[9:14]
    spent = (done.after.macs, done.before.macs) if unit == "flops" else (done.after.nbytes, done.before.nbytes)
    assert spent[0] <= spent[1] * percent / 100
    assert spent[0] >= spent[1] * percent / 100 * 0.5
    assert done.before.macs == count(net, image()).macs or make is Encoder  # its own attention is not counted
    assert done.model(*image()).shape == net(*image()).shape
    assert not any(part.training for part in done.model.modules())
    assert all(torch.equal(one, before[key]) for key, one in net.state_dict().items())
    for row in done.decisions:
        assert row.reason
        narrower = row.after[0] * row.after[1] < row.before[0] * row.before[1]
        assert (row.decision in ("pruned", "erased")) == narrower


def test_a_decoder_with_a_tied_head_becomes_narrower():
    net, example = decoder()
    done = prune(net, "pruned-50flops", example=example)
    assert done.after.macs <= 0.5 * done.before.macs
    assert done.model(*example).shape == (2, 32, 512)
    assert done.model.tokens.weight.shape[1] % 8 == 0


def test_rows_say_what_became_of_each_layer():
    torch.manual_seed(1)
    done = prune(ResNet().eval(), "pruned-40flops", example=image())
    rows = {row.path: row for row in done.decisions}
    assert rows["head"].reason != OUTPUT or rows["head"].after == rows["head"].before
    conv = rows["blocks.0.conv1"]
    assert conv.decision == "pruned"
    assert conv.after == (done.model.blocks[0].conv1.in_channels, done.model.blocks[0].conv1.out_channels)
    assert "of 16 channels by magnitude" in conv.reason
    assert done.model.head.out_features == 10


def test_widths_are_multiples_of_what_is_asked_for():
    done = prune(ResNet(24).eval(), "pruned-50flops-a4", example=image())
    assert all(row.after[1] % 4 == 0 or row.after[1] == row.before[1] for row in done.decisions)
    done = prune(ResNet().eval(), "pruned-50flops", example=image())
    assert all(row.after[1] % 8 == 0 for row in done.decisions if row.path != "head")


def test_a_short_training_wins_accuracy_back():
    net = trained(ResNet(), epochs=4)
    dense = accuracy(net)
    plain = accuracy(prune(net, "pruned-40flops-plain", example=image(1)).model)
    said = []
    done = prune(net, "pruned-40flops", example=image(1), loader=digits()[0], epochs=3, progress=said.append)
    assert plain < dense - 0.2
    assert accuracy(done.model) > dense - 0.05
    assert len(done.losses) == 3
    assert [one for one in said if one.startswith("epoch 3 of 3: loss ")]
    assert [one for one in said if "of the dense model's flops" in one]


def test_criteria_with_data_prune_better_than_chance():
    net = trained(ResNet(), epochs=4)
    done = prune(net, "pruned-60flops-taylor", example=image(1), loader=digits()[0], epochs=1, lr=1e-6)
    assert accuracy(done.model) > 0.8


def test_a_budget_in_latency_is_measured():
    seen = []

    def latency(model):
        seen.append(sum(p.numel() for p in model.parameters()))
        return seen[-1] * 1e-6

    net = ResNet().eval()
    done = prune(net, "pruned-50latency", example=image(), latency=latency)
    assert done.after.seconds <= 0.5 * done.before.seconds
    assert done.after.seconds == pytest.approx(1e-6 * sum(p.numel() for p in done.model.parameters()))
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("pruned-50latency", {}, "needs latency"),
        ("pruned-50flops", {"latency": lambda _: 1.0}, "would not be looked at"),
        ("pruned-50latency", {"latency": lambda _: float("nan")}, "latency must give seconds"),
        ("pruned-50flops-taylor", {}, "give a loader, or leave out taylor"),
        ("pruned-50flops", {"bits": 3}, "bits are 8, 4 or 2"),
        ("pruned-50flops-plain", {"bits": 4}, "only where something is made good"),
        ("pruned-50flops-oto", {}, "give a loader, or leave out oto"),
        ("pruned-1flops", {}, r"pruned-1flops's budget cannot be reached: the least is \d"),
        ("pruned-50flops", {"example": (torch.zeros(1, 2, 8, 8),)}, "the model fails with the example"),
        ("4bit", {}, "pruned forms begin with pruned"),
    ],
)
def test_what_cannot_be_done_is_said(name, more, said):
    with pytest.raises(CallerError, match=said):
        prune(ResNet().eval(), name, **{"example": image(), **more})


def test_a_model_of_which_nothing_can_go_is_refused():
    with pytest.raises(ModelError, match="nothing of the model can be pruned: 0: the model's outputs are made of it"):
        prune(nn.Sequential(nn.Linear(4, 4)).eval(), "pruned-50flops", example=torch.randn(2, 4))
