"""A network of cells that were searched among sparse operators (seed 74), trained on digits."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import train
from ferryman.converter.prune.unstructured.dass import CellNetwork, Cells, plain, search
from tests.zoo.pruned import NETWORKS, Shuffled

SHARE = 0.9
"""Of zeros in sparse operators."""
WIDTH = 24


def searched(epochs: int = 8, width: int = 8) -> Cells:
    """Search on halves of the training digits, at half their size: cells suit any."""
    torch.manual_seed(9)
    data = NETWORKS["resnet"].batches()
    smaller = functional.avg_pool2d(data.inputs, 2)
    halves = [Shuffled(smaller[at], data.targets[at]) for at in torch.randperm(len(smaller)).chunk(2)]
    network = CellNetwork(1, 10, width, SHARE)
    return search(network, *halves, epochs=epochs, lr=3e-3)


def train_cells(cells: Cells, epochs: int = 10, width: int = WIDTH) -> nn.Module:
    """Train what was found from scratch; plain, in eval mode."""
    torch.manual_seed(10)
    network = CellNetwork(1, 10, width, SHARE, cells)
    return plain(train(network, NETWORKS["resnet"].batches(), epochs=epochs, lr=5e-3).model)


@functools.cache
def trained() -> nn.Module:
    """Of the cells that the search finds."""
    return train_cells(searched())


def dass_cells():
    return trained(), NETWORKS["resnet"].example
