from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import nn

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.binary_modules import BinaryConv2d
from ferryman.converter.compress.mst import ROOT, dots_along, operations, spanning_tree, tree_distance_loss
from ferryman.runtime.contracts.errors import CallerError
from tests.e2e.digits import Batches


def random_signs(seed, *shape):
    return np.where(np.random.default_rng(seed).standard_normal(shape) >= 0, 1, -1)


@st.composite
def weights(draw, most=24):
    out, k = draw(st.integers(1, most)), draw(st.integers(1, 40))
    values = random_signs(draw(st.integers(0, 10_000)), out, k)
    return (
        values[np.random.default_rng(out).integers(0, out, out)] if draw(st.booleans()) else values
    )  # with equal rows


def hamming(rows):
    return (rows[:, None] != rows[None]).sum(2)


@given(weights())
@settings(deadline=None)
def test_the_tree_spans_all_channels_each_after_its_parent(rows):
    tree = spanning_tree(rows)
    place = {int(channel): index for index, channel in enumerate(tree.order)}
    depths = {}
    for channel in map(int, tree.order):
        parent = int(tree.parents[channel])
        depths[channel] = 0 if parent == ROOT else depths[parent] + 1

    assert sorted(place) == list(range(len(rows)))
    assert (tree.parents == ROOT).sum() == 1
    assert tree.parents[tree.order[0]] == ROOT
    assert tree.depth == max(depths.values())
    assert tree.distances[tree.order[0]] == 0
    for channel in map(int, tree.order[1:]):
        assert tree.distances[channel] == (rows[channel] != rows[tree.parents[channel]]).sum()


@given(weights())
@settings(deadline=None)
def test_the_total_distance_is_what_scipy_finds(rows):
    kept = minimum_spanning_tree(np.triu(hamming(rows) + 1, 1))  # to scipy 0 is no edge

    assert spanning_tree(rows).distances.sum() == kept.sum() - (len(rows) - 1)


@given(weights(most=5))
@settings(deadline=None)
def test_no_other_tree_is_shorter(rows):
    count, distances = len(rows), hamming(rows)
    totals = []
    for parents in itertools.product(range(count), repeat=count - 1):  # of channels 1.., towards channel 0
        seen = {0}
        for _ in range(count):
            seen |= {child for child, parent in enumerate(parents, 1) if parent in seen}
        if len(seen) == count:
            totals.append(sum(distances[child, parent] for child, parent in enumerate(parents, 1)))

    assert spanning_tree(rows).distances.sum() == min(totals)


@given(weights(), st.integers(0, 1000))
@settings(deadline=None)
def test_dot_products_along_the_tree_are_the_direct_ones(rows, seed):
    x = random_signs(seed, 6, rows.shape[1])
    tree = spanning_tree(rows)

    assert np.array_equal(dots_along(tree, rows, x), x @ rows.T)
    assert np.array_equal(
        dots_along(tree, rows.astype(np.float32), x).astype(np.float32), (x @ rows.T).astype(np.float32)
    )


def test_the_root_of_a_path_is_its_middle():
    path = np.where(np.tri(9, 8, -1, dtype=bool), 1, -1)  # each row differs from the next in one place
    shuffled = path[np.random.default_rng(0).permutation(9)]
    tree = spanning_tree(shuffled)

    assert tree.depth == 4
    assert tree.distances.sum() == 8


def test_where_distances_tie_the_tree_is_flat():
    star = np.ones((17, 16), int) - 2 * np.eye(17, 16, dtype=int)  # the last row is 1 away from each other one

    assert spanning_tree(star).depth == 1
    assert spanning_tree(np.ones((10, 4))).depth == 1


def test_operations_count_the_root_and_the_distances():
    rows = np.ones((3, 10), int)
    rows[1, :2] = -1
    rows[2, :3] = -1
    found = operations(rows)

    assert (found.plain, found.tree) == (30, 10 + 2 + 1)


def test_equal_channels_cost_nothing():
    assert operations(np.ones((64, 288))).tree == 288


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.ones(3), np.ones((0, 3)), np.full((2, 2), np.nan)])
def test_what_is_not_signs_is_refused(bad):
    with pytest.raises(CallerError, match=r"weights \[out, k\] of \+1 and -1"):
        spanning_tree(bad)


def test_the_loss_is_the_distance_over_all_operations():
    weight = torch.randn(8, 3, 3, 3)
    rows = np.where(weight.flatten(1).numpy() >= 0, 1, -1)

    assert float(tree_distance_loss(weight)) == pytest.approx(spanning_tree(rows).distances.sum() / rows.size)


def test_only_what_differs_along_an_edge_gets_a_gradient():
    weight = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, -0.5]], requires_grad=True)
    tree_distance_loss(weight).backward()

    assert weight.grad[:, :2].tolist() == [[0, 0], [0, 0]]
    assert weight.grad[0, 2] > 0  # down, towards the other
    assert weight.grad[1, 2] < 0


def test_a_few_steps_lower_the_operations():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(0.1 * torch.randn(32, 16, 3, 3))

    def found():
        return operations(np.where(weight.detach().flatten(1).numpy() >= 0, 1, -1)).tree

    before, optimizer = found(), torch.optim.Adam([weight], lr=0.01)
    tree = spanning_tree(np.where(weight.detach().flatten(1).numpy() >= 0, 1, -1))
    for _ in range(10):
        optimizer.zero_grad()
        tree_distance_loss(weight, tree).backward()
        optimizer.step()

    assert found() < 0.8 * before


def test_training_with_the_penalty_makes_cheaper_layers():
    found = []
    for strength in (0.0, 5.0):
        torch.manual_seed(0)
        model, _ = binarize(
            nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 32, 3, 2, 1), nn.Flatten(), nn.Linear(128, 10))
        )
        layers = [part for part in model.modules() if isinstance(part, BinaryConv2d)]
        fine_tune(
            model,
            list(Batches(64))[:8],
            epochs=2,
            lr=1e-2,
            penalty=lambda _, layers=layers, by=strength: by * sum(tree_distance_loss(part.weight) for part in layers),
        )
        found.append(
            sum(
                operations(part.binary_weight().numpy(force=True).reshape(len(part.weight), -1)).tree for part in layers
            )
        )

    assert found[1] < 0.95 * found[0]
