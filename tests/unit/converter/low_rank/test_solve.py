"""The choice of ranks: budgets hold, and what is not faster is not taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ferryman.converter.low_rank.layers import find_layers
from ferryman.converter.low_rank.moments import plain
from ferryman.converter.low_rank.options import find_choices, weigh
from ferryman.converter.low_rank.recipe import parse_low_rank
from ferryman.converter.low_rank.solve import Solver
from ferryman.converter.low_rank.timing import Stopwatch
from ferryman.converter.prune.budget import OverBudgetError, count
from tests.unit.converter.low_rank.nets import clock, low_rank_linear, never, stand_in


def given(form, timer=clock):
    """Three layers, of which the middle one is nearly of rank 8."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(48, 48), low_rank_linear(48, 48, 8), nn.Linear(48, 48)).eval()
    with torch.no_grad():
        net[1].weight += 1e-3 * torch.randn(48, 48)
    x = torch.randn(32, 48)
    several = [find_choices(one, plain(one)) for one in find_layers(net, (x,), stand_in).layers]
    weigh(net, several, [(x,)])
    return several, Solver(parse_low_rank(form), count(net, (x,)), Stopwatch(timer))


@pytest.mark.parametrize("percent", [70, 80, 99])
@pytest.mark.parametrize("unit", ["flops", "bytes"])
def test_the_layer_of_low_rank_goes_first_and_the_budget_holds(percent, unit):
    several, solver = given(f"lowrank-{percent}{unit}")
    picks = solver.pick(several)
    assert picks[1].way == "svd"
    spent = sum(one.price.macs if unit == "flops" else one.price.nbytes for one in picks)
    whole = solver.whole.macs if unit == "flops" else solver.whole.nbytes
    assert spent <= percent / 100 * whole
    assert max(picks, key=lambda one: one.error) is not picks[1] or percent >= 80
    assert bool(solver.times) == (unit == "flops")


def test_energy_takes_the_cheapest_that_holds_it_layer_by_layer():
    several, solver = given("lowrank-95energy")
    for each, one in zip(several, solver.pick(several), strict=True):
        assert one.error <= 0.05
        assert not any(other.error <= 0.05 and other.price.macs < one.price.macs for other in each.options)


def test_decibels_hold_of_what_layers_lose_together():
    several, solver = given("lowrank-20db")
    picks = solver.pick(several)
    assert sum(one.loss for one in picks) <= 0.01
    assert picks[1].way == "svd"
    assert sum(one.loss for one in solver.pick(several, scale=0.01)) <= 0.0001


def test_what_is_not_faster_stays_as_it_is():
    several, solver = given("lowrank-95energy", never)
    assert [one.way for one in solver.pick(several)] == [None] * 3
    assert all(thin > dense for dense, thin in solver.times.values())


def test_what_saves_but_does_not_show_is_passed_over():
    slow = {16}

    def timer(modules, x):
        dense, *thin = clock(modules, x)
        return [
            dense,
            *(
                0.8 * dense if one[0].out_features in slow else time
                for one, time in zip(modules[1:], thin, strict=True)
            ),
        ]

    several, solver = given("lowrank-60flops", timer)
    assert all(one.ranks != (16,) for one in solver.pick(several))
    slow |= {8, 24}  # then nothing shows as it should, and it is enough to be faster
    several, solver = given("lowrank-60flops", timer)
    picks = solver.pick(several)
    assert any(one.way for one in picks)
    assert sum(one.price.macs for one in picks) <= 0.6 * solver.whole.macs


@pytest.mark.parametrize(
    ("form", "timer", "said"),
    [
        ("lowrank-10flops", clock, r"budget cannot be reached: the least is 33\.4 % of the dense model's flops"),
        ("lowrank-10bytes", never, r"budget cannot be reached: the least is 34\.7 %"),
        ("lowrank-50flops", never, "forms of layers are out, as they are not measured faster; ask for a larger budget"),
    ],
)
def test_budgets_that_cannot_be_met_say_so(form, timer, said):
    several, solver = given(form, timer)
    with pytest.raises(OverBudgetError, match=said):
        solver.pick(several)


def test_times_decide_within_what_fits():
    several, solver = given("lowrank-60latency")

    def seconds(picks):
        return sum(1e-9 * one.price.macs + 1e-7 for one in picks)

    dense = seconds([each.options[0] for each in several])
    asked = []

    def fits(picks):
        asked.append(seconds(picks))
        return asked[-1] <= 0.6 * dense

    picks = solver.pick_by_time(several, fits)
    assert 0.45 * dense < seconds(picks) <= 0.6 * dense
    assert len(asked) < 9
    with pytest.raises(OverBudgetError, match="takes longer even with every layer"):
        solver.pick_by_time(several, lambda _: False)


def test_equal_choices_are_the_same_every_time():
    first, second = (solver.pick(several) for several, solver in (given("lowrank-50flops"), given("lowrank-50flops")))
    assert [replace(one, factors=None) for one in first] == [replace(one, factors=None) for one in second]
