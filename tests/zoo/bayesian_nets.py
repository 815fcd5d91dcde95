"""A sparse Bayesian classifier of digits (seed 63), and what is converted of it."""

from __future__ import annotations

import functools

import torch
from torch import nn

from ferryman.converter.prune.unstructured.bayesian import (
    VariationalConv2d,
    VariationalLinear,
    ensemble,
    posterior_mean,
    train_variational,
)
from tests.zoo.pruned import NETWORKS

SHARE = 0.95
"""Of zeros."""
EPOCHS = 12
MEMBERS = 8
TEMPERATURE = 0.1


class BayesianNet(nn.Module):
    """Three convolutions and a linear layer; all but the first have few weights."""

    def __init__(self, share: float = SHARE) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            VariationalConv2d(1, 32, 3, 2, 1, share=0.0),
            nn.ReLU(),
            VariationalConv2d(32, 64, 3, 1, 1, share=share),
            nn.ReLU(),
            VariationalConv2d(64, 64, 3, 2, 1, share=share),
            nn.ReLU(),
            nn.Flatten(),
            VariationalLinear(64 * 16, 10, share=share),
        )

    def forward(self, image):
        return self.layers(image)


@functools.cache
def trained(epochs: int = EPOCHS) -> nn.Module:
    """Train from scratch, the same way every time."""
    torch.manual_seed(7)
    model = BayesianNet()
    batches = NETWORKS["resnet"].batches()
    return train_variational(
        model, batches, samples=len(batches.inputs), epochs=epochs, lr=1e-2, temperature=TEMPERATURE
    ).model


def bayesian_mean():
    return posterior_mean(trained()), NETWORKS["resnet"].example


def bayesian_ensemble():
    torch.manual_seed(8)
    return ensemble(trained(), MEMBERS), NETWORKS["resnet"].example
