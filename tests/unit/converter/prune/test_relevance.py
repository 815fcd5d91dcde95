"""Relevance is handed back whole, and to what gave the answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.prune.criteria import Context
from ferryman.converter.prune.graph import find_groups
from ferryman.converter.prune.relevance import Relevance, propagate
from ferryman.converter.prune.structured import prune
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.prune.nets import DenseNet, ResNet, accuracy, digits, image, trained


def relevance(net, inputs, targets):
    return propagate(torch.export.export(net, (inputs,), strict=False), net, inputs, targets)


class Both(nn.Module):
    """An addition, a concatenation, both poolings; no offsets, so that relevance is kept whole."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.c, self.head = nn.Conv2d(8, 6, 1, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.a(x)), 2)
        y = functional.relu(x + self.b(x))
        return self.head(functional.avg_pool2d(functional.relu(self.c(torch.cat([x, y], 1))), 4).flatten(1))


def test_relevance_is_conserved_from_layer_to_layer():
    torch.manual_seed(0)
    net = Both().eval()
    with torch.no_grad():  # positive all through: nothing cancels
        for parameter in net.parameters():
            parameter.abs_()
    x = torch.rand(4, 1, 8, 8)
    targets = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        wanted = float(net(x)[range(4), targets].sum())
    found = relevance(net, x, targets)
    assert {*found} >= {"b", "c", "head"}
    assert float(found["head"].sum()) == pytest.approx(wanted, rel=1e-3)
    assert float(found["c"].sum()) == pytest.approx(wanted, rel=1e-3)
    assert float(found["b"].sum()) < wanted


def test_what_only_another_class_reads_gets_none():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
        net[2].weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]))
    found = relevance(net, torch.ones(3, 4), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found["2"], torch.tensor([3.0, 3, 0, 0]))


@pytest.mark.parametrize("make", [ResNet, DenseNet])
def test_it_goes_through_batch_norms_additions_and_concatenations(make):
    torch.manual_seed(0)
    net = make().eval()
    groups = find_groups(net, image(1)).groups
    scores = Relevance().score(Context(net, groups, image(1), digits()[0][:2]))
    assert all(bool(score.isfinite().all() and (score > 0).any()) for score in scores)


def test_pruning_by_it_keeps_what_matters():
    net = trained(ResNet(), epochs=4)
    done = prune(net, "pruned-60flops-lrp", example=image(1), loader=digits()[0], epochs=0)
    assert accuracy(done.model) > 0.8


def test_it_needs_classes():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)).eval()
    groups = find_groups(net, image(1)).groups
    with pytest.raises(CallerError, match="criterion lrp needs outputs that are logits"):
        Relevance().score(Context(net, groups, image(1), [(torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4))]))
