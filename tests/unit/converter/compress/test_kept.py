"""Of a fine-tune, the largest changes alone are kept and trained on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferryman.converter.compress.kept import largest_changes
from ferryman.runtime.contracts.errors import CallerError


@pytest.fixture
def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


@pytest.fixture
def tuned(base):
    model = copy.deepcopy(base)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn_like(one), alpha=0.1)
    return model


def moved(model, base):
    return [now != then for now, then in zip(model.parameters(), base.parameters(), strict=True)]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_what_is_kept_is_trained_on_and_nothing_else_moves(base, tuned, optimizer):
    x, y = torch.randn(64, 20), torch.randint(5, (64,))
    with largest_changes(tuned, base, 10):
        kept = moved(tuned, base)
        loss_before = nn.functional.cross_entropy(tuned(x), y)
        steps = optimizer(tuned.parameters(), lr=0.01)
        for _ in range(30):
            steps.zero_grad()
            nn.functional.cross_entropy(tuned(x), y).backward()
            steps.step()
    assert [int(one.sum()) for one in kept] == [60, 3, 15, 1]
    assert all(not (now & ~then).any() for now, then in zip(moved(tuned, base), kept, strict=True))
    assert nn.functional.cross_entropy(tuned(x), y) < loss_before
    assert not any(one._backward_hooks for one in tuned.parameters())


def test_those_that_moved_most_are_kept(base, tuned):
    change = (tuned[0].weight - base[0].weight).abs()
    with largest_changes(tuned, base, 10):
        pass
    (kept, *_) = moved(tuned, base)
    assert change[kept].min() >= change[~kept].max()


@pytest.mark.parametrize("percent", [0, -1, 101, float("nan")])
def test_a_share_that_is_none_is_refused(base, tuned, percent):
    with pytest.raises(CallerError, match="percent must be"), largest_changes(tuned, base, percent):
        pass


def test_another_model_is_refused(base):
    with (
        pytest.raises(CallerError, match="give the base"),
        largest_changes(nn.Sequential(nn.Linear(20, 31)), base, 6),
    ):
        pass
