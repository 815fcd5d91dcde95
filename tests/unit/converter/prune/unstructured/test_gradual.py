"""Gradual magnitude pruning: its schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.prune.unstructured.gradual import Schedule, count_steps, make_schedule, prune_gradually
from ferryman.converter.prune.unstructured.masks import find_targets
from ferryman.converter.prune.unstructured.recipe import parse_sparsity
from ferryman.runtime.contracts.errors import CallerError


def test_the_share_of_zeros_follows_the_cube_of_what_is_left():
    schedule = Schedule(0.9, count=10, initial=0.1, begin=20, every=5)
    assert schedule.end == 70
    assert [schedule.at(step) for step in (0, 20, 45, 70, 500)] == pytest.approx(
        [0.1, 0.1, 0.9 - 0.8 * 0.5**3, 0.9, 0.9]
    )
    assert [step for step in range(90) if schedule.due(step)] == list(range(20, 71, 5))


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 99, 100, 1000, 12345])
def test_a_schedule_ends_before_training_does(steps):
    schedule = make_schedule(0.9, steps)
    assert schedule.end <= max(1, round(0.6 * steps))
    assert schedule.at(schedule.end) == 0.9
    assert schedule.due(schedule.end)
    assert schedule.count <= 50


def batches(count):
    torch.manual_seed(0)
    return [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(count)]


def test_zeros_become_more_at_each_step_and_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    sparsity = parse_sparsity("sparse-80")
    targets = find_targets(model, sparsity).targets
    seen = []

    def zeros():
        return sum(int((target.parameter == 0).sum()) for target in targets) / 640

    model.register_forward_pre_hook(lambda *_: seen.append(zeros()) if model.training else None)
    prune_gradually(model, targets, sparsity, batches(10), epochs=2, lr=1e-2)

    # Twelve of twenty steps, each time the cube; before the first step nothing is pruned.
    wanted = [0.8 - 0.8 * (1 - step / 12) ** 3 for step in range(12)] + [0.8] * 8
    assert seen == pytest.approx(wanted, abs=1e-3)
    assert zeros() == 0.8


@pytest.mark.parametrize("epochs", [1, 3])
def test_one_batch_is_enough_to_reach_the_share(epochs):
    torch.manual_seed(0)
    model = nn.Linear(16, 4)
    sparsity = parse_sparsity("sparse-75")
    prune_gradually(model, find_targets(model, sparsity).targets, sparsity, batches(1), epochs=epochs, lr=1e-2)
    assert int((model.weight == 0).sum()) == 48


def test_batches_are_counted_without_a_trace():
    class Shuffled:
        def __iter__(self):
            for at in torch.randperm(3):
                yield torch.full((1, 1), float(at)), at

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    assert count_steps(Shuffled(), 4) == 12
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(CallerError, match="gives no batches"):
        count_steps([], 1)
    with pytest.raises(CallerError, match="only once"):
        count_steps(iter([]), 1)
