"""Chains: what they read and cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.low_rank.shapes import chain, price, rank_grid, rank_max, step_of, ways
from ferryman.converter.prune.budget import count, stored_bytes
from tests.unit.converter.low_rank.nets import CONVS, layer_of


@pytest.mark.parametrize("name", CONVS)
def test_chains_give_what_the_layer_gives_and_cost_what_is_counted(name):
    make, shape = CONVS[name]
    layer, x = layer_of(make(), *shape)
    dense = price(layer)
    assert (dense.macs, dense.nbytes) == (count(layer.module, (x,)).macs, stored_bytes(layer.module))
    for way in ways(layer):
        ranks = (3, 5) if way == "tucker" else (4,)
        made = chain(layer, way, ranks, bias=True)
        assert made(x).shape == layer.module(x).shape
        cost = price(layer, way, ranks, bias=True)
        assert (cost.macs, cost.nbytes) == (count(made, (x,)).macs, stored_bytes(made))


def test_there_are_as_many_ways_as_dimensions_have_taps():
    there = {name: ways(layer_of(make(), *shape)[0]) for name, (make, shape) in CONVS.items()}
    assert there["linear"] == there["1x1"] == ("svd",)
    assert there["conv1d"] == ("svd", "tucker", "cp")
    assert there["1x3"] == ("svd", "tucker")
    assert there["strided"] == ("svd", "tucker", "cp", "spatial")


def test_ranks_to_try_are_multiples_and_worth_it():
    layer, _ = layer_of(nn.Linear(96, 128), 1, 96)
    assert step_of(layer) == 16
    assert rank_max(layer, "svd") == (96,)
    dense = price(layer)
    ranks = list(rank_grid(layer, "svd", 4, lambda one: price(layer, "svd", one, bias=True).macs < dense.macs))
    assert ranks == [16, 32, 48]  # 54.9 would cost as much
    assert list(rank_grid(layer, "svd", 99, lambda one: one[0] < 40)) == [16, 32]
    assert list(rank_grid(layer, "svd", 4, lambda _: False)) == []
    assert step_of(layer_of(nn.Linear(40, 64), 1, 40)[0]) == 8
    assert step_of(layer_of(nn.Linear(16, 64), 1, 16)[0]) == 4
    assert step_of(layer_of(nn.Linear(6, 64), 1, 6)[0]) == 1


def test_chains_can_be_of_no_weights():
    layer, _ = layer_of(nn.Conv2d(8, 12, 3), 1, 8, 9, 9)
    made = chain(layer, "cp", (4,), bias=False, device="meta")
    assert all(one.is_meta for one in made.parameters())
    assert torch.get_default_device().type == "cpu"
