"""Iterative soft shrinkage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.prune.unstructured.masks import find_targets
from ferryman.converter.prune.unstructured.recipe import parse_sparsity
from ferryman.converter.prune.unstructured.soft_shrinkage import prune_by_shrinkage


def test_small_weights_shrink_first_and_are_zero_at_the_end():
    torch.manual_seed(0)
    model = nn.Linear(16, 4)
    start = model.weight.detach().clone()
    sparsity = parse_sparsity("sparse-75")
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(model.weight.detach().clone()) if model.training else None)
    batches = [(torch.randn(8, 16), torch.randint(0, 4, (8,))) for _ in range(10)]

    # So small a rate that all movement is shrinkage.
    prune_by_shrinkage(
        model, find_targets(model, sparsity).targets, sparsity, batches, epochs=1, lr=1e-9, shrinkage=0.25
    )

    smallest = torch.zeros(64, dtype=torch.bool)
    smallest[start.abs().flatten().argsort()[:48]] = True
    smallest = smallest.view(4, 16)
    for step in range(6):
        torch.testing.assert_close(seen[step], torch.where(smallest, start * 0.75**step, start), atol=1e-6, rtol=1e-4)
    for later in (*seen[6:], model.weight.detach()):
        assert torch.equal(later == 0, smallest)


def test_a_weight_that_grows_leaves_the_set():
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(1.0, 0.3, 8))  # the last are smallest, and the ones that matter
    x = torch.randn(64, 8)
    batches = [(x, x[:, 6:].sum(1, keepdim=True) * 2)] * 60
    sparsity = parse_sparsity("sparse-75")

    prune_by_shrinkage(
        model, find_targets(model, sparsity).targets, sparsity, batches,
        epochs=3, lr=0.05, loss=nn.functional.mse_loss,
    )  # fmt: skip

    assert (model.weight != 0).flatten().nonzero().flatten().tolist() == [6, 7]
    assert model.weight[0, 6:].tolist() == pytest.approx([2, 2], abs=0.05)
