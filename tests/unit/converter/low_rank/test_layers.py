"""Which layers can change, and why others cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from ferryman.converter.low_rank.layers import find_layers, put, require_finite
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.low_rank.nets import Convs, Peeking, Tied, Twice, layer_of, stand_in


def found_in(module, *shape):
    return find_layers(module.eval(), (torch.randn(shape),), stand_in)


def test_layers_know_how_they_are_called():
    found = found_in(Convs(), 2, 1, 12, 12)
    assert [one.path for one in found.layers] == ["stem", "body", "more", "head"]
    assert [one.calls for one in found.layers][1:] == [((2, 16, 12, 12),), ((2, 32, 6, 6),), ((2, 32),)]
    assert found.whole == {"depthwise": "depthwise: a filter a channel has no rank to lose"}


def test_a_layer_of_two_names_is_one():
    net = Twice()
    found = found_in(net, 3, 32)
    assert [one.paths for one in found.layers] == [("one", "other"), ("head",)]
    assert len(found.layers[0].calls) == 3
    made = put(net, {found.layers[0]: nn.Identity()})
    assert made.one is made.other
    assert isinstance(made.one, nn.Identity)


def test_tied_weights_stay_tied():
    found = found_in(Tied(), 3, 32)
    assert [one.path for one in found.layers] == ["own"]
    assert set(found.whole) == {"one", "other"}
    assert "stay shared" in found.whole["one"]


def test_a_layer_whose_weight_is_read_elsewhere_stays():
    found = found_in(Peeking(), 3, 32)
    assert [one.path for one in found.layers] == ["own"]
    assert "looks into it" in found.whole["seen"]


class Own(nn.Linear):
    pass


def hooked():
    made = nn.Linear(8, 8)
    made.register_forward_hook(lambda *_: None)
    return made


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Own(8, 8), "nn.Linear, nn.Conv1d and nn.Conv2d themselves"),
        (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), "themselves have a low-rank form"),
        (hooked, "hooks"),
    ],
)
def test_other_layers_stay_with_a_reason(make, said):
    found = found_in(nn.Sequential(make(), nn.Linear(8, 8)), 3, 8)
    assert [one.path for one in found.layers] == ["1"]
    assert said in found.whole["0"]


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped, self.own, self.spare = nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3), nn.Linear(8, 8)

    def forward(self, x):
        return self.own(self.grouped(x))


def test_groups_and_layers_that_are_not_called_stay():
    found = found_in(Spare(), 1, 8, 9, 9)
    assert found.whole == {"grouped": "in 2 groups", "spare": "never called with the example"}


def test_a_model_that_is_one_layer_is_one_too():
    layer, _ = layer_of(nn.Linear(8, 4), 2, 8)
    assert layer.paths == ("",)
    assert isinstance(put(layer.module, {layer: nn.Identity()}), nn.Identity)


def test_a_picture_without_a_batch_is_given_one():
    layer, _ = layer_of(nn.Conv2d(3, 8, 3), 3, 9, 9)
    assert layer.calls == ((1, 3, 9, 9),)


def test_numbers_must_be_finite():
    net = Convs()
    require_finite(net)
    net.body.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(CallerError, match=r"body.weight of the model holds numbers that are not finite"):
        require_finite(net)


class Listed(nn.Module):
    """Calls layers through a plain list, and one only if it is what it was."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.own = (nn.Linear(32, 32) for _ in range(4))
        self.several = [self.a, self.b]

    def forward(self, x):
        for one in self.several:
            x = one(x)
        x = self.c(x) if isinstance(self.c, nn.Linear) else 2 * self.c(x)
        return self.own(x)


def test_layers_that_are_called_elsewhere_or_told_by_their_class_stay():
    found = found_in(Listed(), 3, 32)
    assert [one.path for one in found.layers] == ["own"]
    assert set(found.whole) == {"a", "b", "c"}
