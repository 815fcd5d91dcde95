"""Costs are counted as they are, and budgets are held."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.prune.budget import choose, count, rank, stored_bytes, unit_savings
from ferryman.converter.prune.graph import find_groups
from ferryman.converter.prune.units import Group, Slot, align
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.prune.nets import ResNet, Vit, image


def test_multiplications_and_bytes_are_those_by_hand():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5)
    ).eval()
    cost = count(net, (torch.randn(3, 2, 6, 6),))
    assert cost.macs == 3 * (16 * 6 * 1 * 9 + 96 * 5)
    assert cost.nbytes == 4 * (6 * 9 + 4 * 6 + 96 * 5 + 5) + 8  # and how many batches the norm has seen
    assert cost.seconds is None


def test_attention_is_counted():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count(Attention(), (torch.randn(2, 4, 5, 8),)).macs == 2 * 2 * 4 * 5 * 5 * 8


def test_shared_weights_are_stored_once():
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    net[1].weight = net[0].weight
    assert stored_bytes(net) == 4 * 64


def test_a_units_saving_is_what_the_thinner_model_does_not_multiply():
    import copy

    from ferryman.converter.prune.units import remove

    net, inputs = ResNet().eval(), image(1)
    groups = find_groups(net, inputs).groups
    whole = count(net, inputs).macs
    for number, saved in enumerate(unit_savings(net, groups, inputs, "flops")):
        thin = copy.deepcopy(net)
        remove(thin, groups, {number: frozenset({0})})
        lost = (whole - count(thin, inputs).macs) / whole
        assert float(saved[0]) == pytest.approx(lost, rel=0.15)  # what is lost on both sides counts twice here


def group(count, **more):
    return Group((Slot("layer", "out", tuple((i,) for i in range(count))),), count, **more)


@pytest.mark.parametrize(
    ("width", "channels", "step", "least"),
    [(64, 0, 8, 8), (16, 0, 8, 8), (20, 0, 1, 2), (8, 0, 1, 2), (64, 16, 16, 16), (20, 4, 4, 4), (6, 8, 8, 6)],
)
def test_widths_are_aligned(width, channels, step, least):
    made = align(group(width, least=2), channels)
    assert (made.step, made.least) == (step, least)


def test_kept_widths_are_multiples_or_whole():
    groups = [align(group(20, least=2), 8), group(6, least=1)]
    choice = rank(groups, [torch.arange(20.0), torch.ones(6)], [torch.ones(20), torch.ones(6)], comparable=True)
    for units in range(27):
        removed = choice.removed(units)
        assert 20 - len(removed[0]) in (8, 16, 20)
        assert 1 <= 6 - len(removed[1]) <= 6
    assert len(choice.removed(26)[0]) == 12


def test_what_is_worth_least_for_what_it_saves_goes_first():
    scores = [torch.tensor([1.0, 9, 9, 9]), torch.tensor([9.0, 9, 9, 1])]
    choice = rank([group(4), group(4)], scores, [torch.ones(4), 3 * torch.ones(4)], comparable=True)
    assert choice.removed(1) == {0: frozenset(), 1: frozenset({3})}
    assert choice.removed(2) == {0: frozenset({0}), 1: frozenset({3})}
    assert {number: len(gone) for number, gone in choice.removed(8).items()} == {0: 3, 1: 3}


def test_a_group_that_follows_loses_in_proportion():
    groups = [group(8, step=4, least=4), group(2, kind="head width", leader=0)]
    choice = rank(groups, [torch.ones(8), torch.tensor([2.0, 1])], [torch.ones(8), torch.ones(2)], comparable=False)
    assert choice.removed(3) == {0: frozenset(), 1: frozenset()}
    assert choice.removed(4) == {0: frozenset(range(4)), 1: frozenset({1})}


def test_the_fewest_units_go_that_a_budget_asks_for():
    groups = [group(10), group(10)]
    ones = [torch.ones(10), torch.ones(10)]
    choice = rank(groups, ones, ones, comparable=False)
    removed = choose(choice, lambda gone: 20.0 - sum(map(len, gone.values())), 13, "the budget")
    assert sum(map(len, removed.values())) == 7
    with pytest.raises(CallerError, match=r"the budget cannot be reached: the least is 2\.00 times as much"):
        choose(choice, lambda gone: 20.0 - sum(map(len, gone.values())), 1, "the budget")


def test_what_is_equal_is_measured_once():
    tried = []

    def measure(gone):
        tried.append(gone[0])
        return 64.0 - len(gone[0])

    choice = rank([align(group(64), 16)], [torch.arange(64.0)], [torch.ones(64)], comparable=False)
    assert len(choose(choice, measure, 40, "the budget")[0]) == 32
    assert len(tried) == len(set(tried)) > 1


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(CallerError, match="not finite"):
        rank([group(2)], [torch.tensor([1.0, float("nan")])], [torch.ones(2)], comparable=True)


def test_attention_heads_save_something():
    net, inputs = Vit().eval(), image(1)
    groups = find_groups(net, inputs).groups
    savings = unit_savings(net, groups, inputs, "flops")
    assert all(bool((one > 0).all()) for one in savings)
