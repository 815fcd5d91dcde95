"""Criteria put what is planted as worth nothing last."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferryman.converter.names import by_name
from ferryman.converter.prune.criteria import Context, Magnitude, Taylor, gate_gradients, norms_behind
from ferryman.converter.prune.graph import find_groups
from ferryman.converter.prune.recipe import CRITERIA as NAMES
from ferryman.converter.prune.recipe import DATA_FREE
from ferryman.converter.prune.registry import CRITERIA, find_criterion
from ferryman.converter.prune.units import silence
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.prune.nets import ResNet, digits, image, norm, trained


def planted():
    """A net whose fifth hidden channel is made and read by weights next to nothing, and its group."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3), norm(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    net = trained(net, epochs=1)
    with torch.no_grad():
        for value in (net[0].weight, net[1].weight, net[1].bias):
            value[4] *= 1e-3
        net[3].weight[:, 4] *= 1e-2
    net.zero_grad(set_to_none=True)
    return net, next(group for group in find_groups(net, image(1)).groups if "0" in group.layers)


@pytest.fixture(scope="module")
def context():
    net, group = planted()
    return Context(net, [group], image(1), digits()[0][:4])


@pytest.mark.parametrize("name", list(CRITERIA))
def test_what_is_worth_nothing_comes_last(name, context):
    before = copy.deepcopy(context.model.state_dict())
    (score,) = find_criterion(name).score(context)
    assert score.shape == (12,)
    assert bool((score >= 0).all())
    assert int(score.argmin()) == 4
    assert score[4] < 0.2 * score.median()
    assert all(torch.equal(one, before[key]) for key, one in context.model.state_dict().items())
    assert all(parameter.grad is None for parameter in context.model.parameters())


def test_the_recipe_names_what_there_is():
    assert {*NAMES} == {*CRITERIA}
    assert {*DATA_FREE} == {name for name, one in CRITERIA.items() if not one.needs_data}
    with pytest.raises(CallerError, match="criterion 'loud' is not known; there are: magnitude, taylor, lasso"):
        find_criterion("loud")
    with pytest.raises(ValueError, match="two criteria named 'magnitude'"):
        by_name((Magnitude(), Magnitude()), "criteria")


def test_a_gates_gradient_is_what_the_loss_changes_by():
    net, group = planted()
    batch = digits()[0][0]
    context = Context(net, [group], image(1), [batch])
    ((gate,),) = gate_gradients(context)
    with torch.no_grad():
        for unit in (0, 7):
            thin = copy.deepcopy(net)
            thin[3].weight[:, unit] *= 1.001
            found = context.loss(thin(batch[0]), batch[1]) - context.loss(net(batch[0]), batch[1])
            assert float(found) / 1e-3 == pytest.approx(float(gate[unit]), abs=2e-3, rel=0.05)


def test_taylor_ranks_as_the_loss_without_each_unit_does():
    net = trained(ResNet(16), epochs=3)
    batches = digits()[0][:4]
    group = next(group for group in find_groups(net, image(1)).groups if group.layers[0] == "blocks.0.conv1")
    (score,) = Taylor().score(Context(net, [group], image(1), batches))
    losses = []
    with torch.no_grad():
        for unit in range(group.count):
            thin = copy.deepcopy(net)
            silence(thin, [group], {0: frozenset({unit})})
            losses.append(sum(float(nn.functional.cross_entropy(thin(x), y)) for x, y in batches))
    order = torch.tensor(losses).argsort().argsort().float()
    assert float(torch.corrcoef(torch.stack([order, score.argsort().argsort().float()]))[0, 1]) > 0.6


def test_magnitude_sees_through_batch_norms():
    net, group = planted()
    (score,) = Magnitude().score(Context(net, [group], image(1)))
    with torch.no_grad():
        net[0].weight[2] *= 100
        net[1].running_var[2] *= 10_000
    (again,) = Magnitude().score(Context(net, [group], image(1)))
    torch.testing.assert_close(again, score, rtol=1e-2, atol=1e-3)
    assert norms_behind(net, image(1)) == {"0": "1"}


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (None, "give a loader"),
        ([], "gives no batches"),
        ([torch.zeros(1)], "must give"),
        ([(torch.zeros(1, 3, 8, 8), torch.zeros(1))], "cannot be scored"),
    ],
)
def test_loaders_that_are_none_are_refused(loader, said):
    net, group = planted()
    with pytest.raises(CallerError, match=said):
        Taylor().score(Context(net, [group], image(1), loader))
