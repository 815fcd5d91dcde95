"""Sparse operators, and cells searched among them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import train
from ferryman.converter.prune.unstructured.dass import (
    OPERATORS,
    CellNetwork,
    Cells,
    SparseConv2d,
    SparseLinear,
    edges_of_a_cell,
    plain,
    search,
)
from ferryman.runtime.contracts.errors import CallerError

CELLS = Cells(operators=[["sparse-3x3", "skip", "sparse-1x1"], ["depthwise-3x3", "average-3x3", "skip"]])


def batches(count=8):
    """Whether stripes run down or across: a 3x3 kernel tells, a pixel alone does not."""
    torch.manual_seed(1)
    made = []
    for _ in range(count):
        labels = torch.randint(0, 2, (32,))
        stripes = torch.arange(8).remainder(2).float().expand(32, 1, 8, 8)
        images = torch.where(labels.view(-1, 1, 1, 1) == 0, stripes, stripes.mT) + 0.3 * torch.randn(32, 1, 8, 8)
        made.append((images, labels))
    return made


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: SparseConv2d(8, 16, 3, 2, share=0.75), torch.randn(2, 8, 6, 6)),
        (lambda: SparseLinear(32, 8, share=0.75), torch.randn(2, 32)),
    ],
)
def test_a_sparse_layer_has_learned_zeros(layer, x):
    torch.manual_seed(0)
    made = layer()
    smallest = made.weight.abs().flatten().argsort()[: made.weight.numel() * 3 // 4]
    at_first = made.sparse_weight() == 0
    optimizer = torch.optim.Adam([made.scores], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        functional.mse_loss(made(x), torch.ones_like(made(x))).backward()
        optimizer.step()

    assert set(at_first.flatten().nonzero().flatten().tolist()) == set(smallest.tolist())
    zeros = made.sparse_weight() == 0
    assert int(zeros.sum()) == int(at_first.sum())
    assert not torch.equal(zeros, at_first)
    done = plain(made)
    assert type(done) in (nn.Conv2d, nn.Linear)
    assert torch.equal(done.weight == 0, zeros)
    torch.testing.assert_close(done(x), made(x))


def test_a_network_becomes_plain():
    torch.manual_seed(0)
    network = CellNetwork(1, 2, 8, 0.75, CELLS)
    trained = train(network, batches(), epochs=2, lr=1e-2).model
    x = batches(1)[0][0]

    done = plain(trained)

    assert not any(isinstance(part, SparseConv2d | SparseLinear) for part in done.modules())
    assert all("scores" not in name for name, _ in done.named_parameters())
    torch.testing.assert_close(done(x), trained(x))
    layers = [part for part in done.modules() if isinstance(part, nn.Conv2d) and part.groups == 1][1:]
    assert [round(float((part.weight == 0).float().mean()), 2) for part in layers] == [0.75] * len(layers)
    assert any(isinstance(part, SparseConv2d) for part in trained.modules())


def test_each_operator_keeps_shapes():
    x = torch.randn(2, 8, 6, 6)
    for make in OPERATORS.values():
        assert make(8, 0.5)(x).shape == x.shape


def test_a_search_learns_shares_on_validation_data_alone():
    torch.manual_seed(0)
    network = CellNetwork(1, 2, 8, 0.75, count=1)
    used = []

    class Recorded(list):
        def __iter__(self):
            used.append(1)
            return super().__iter__()

    before = [edge.shares.detach().clone() for edge in network.cells[0].edges]
    told = []
    found = search(
        network, batches(8), Recorded(batches(3)), epochs=2, lr=1e-2, share_lr=0.1,
        progress=lambda *said: told.append(said),
    )  # fmt: skip

    assert len(used) == 6  # sixteen steps, three batches
    assert [said[:2] for said in told] == [(1, 2), (2, 2)]
    assert len(found.operators) == 1
    assert len(found.operators[0]) == len(edges_of_a_cell()) == 3
    assert found == network.found()
    for edge, old, name in zip(network.cells[0].edges, before, found.operators[0], strict=True):
        assert (edge.shares - old).abs().max() > 0.1
        assert name == list(OPERATORS)[int(edge.shares.argmax())]
        assert edge.shares.requires_grad

    # Shares follow only what validation says: with a rate of next to nothing they stay, whatever the weights learn.
    still = CellNetwork(1, 2, 8, 0.75, count=1)
    old = still.cells[0].edges[0].shares.detach().clone()
    search(still, batches(4), batches(1), epochs=1, lr=1e-2, share_lr=1e-9)
    torch.testing.assert_close(still.cells[0].edges[0].shares, old, atol=1e-6, rtol=0)


def test_what_cannot_be_is_refused():
    with pytest.raises(CallerError, match="0 to below 1, found 1"):
        SparseLinear(4, 4, share=1)
    with pytest.raises(CallerError, match="operators conv are not known; there are: sparse-3x3"):
        CellNetwork(1, 2, 8, 0.5, Cells(operators=[["conv", "skip", "skip"]]))
    with pytest.raises(CallerError, match="cell 1 has 1 operators; its edges are 3"):
        CellNetwork(1, 2, 8, 0.5, Cells(operators=[["skip"]]))
    with pytest.raises(CallerError, match="one cell or more"):
        CellNetwork(1, 2, 8, 0.5, Cells(operators=[]))
    with pytest.raises(CallerError, match="nothing to search"):
        search(CellNetwork(1, 2, 8, 0.5, CELLS), batches(1), batches(1), epochs=1, lr=1e-3)
    with pytest.raises(CallerError, match="validation loader gives no batches"):
        search(CellNetwork(1, 2, 8, 0.5), batches(1), [], epochs=1, lr=1e-3)
