"""Layers and small networks of many kinds, and a timer that goes by multiplications."""

from __future__ import annotations

import torch
from torch import nn

from ferryman.converter.low_rank.layers import find_layers
from ferryman.converter.low_rank.shapes import chain
from ferryman.converter.prune.budget import count


def clock(modules, x):
    """Seconds that go with multiplications, as on a perfect machine."""
    return [1e-9 * count(module, (x,)).macs + 1e-7 for module in modules]


def never(modules, _):
    """As if nothing were faster than the layer as it is."""
    return [1e-6, *[2e-6] * (len(modules) - 1)]


def stand_in(layer):
    return chain(layer, "svd", (1,), bias=True)


def layer_of(module, *shape):
    """A module as the one layer of a model, and an input."""
    x = torch.randn(shape)
    (layer,) = find_layers(module.eval(), (x,), stand_in).layers
    return layer, x


def low_rank_linear(inputs, outputs, rank):
    """A linear layer whose weights have a rank."""
    made = nn.Linear(inputs, outputs)
    with torch.no_grad():
        made.weight.copy_(torch.randn(outputs, rank) @ torch.randn(rank, inputs) / rank)
    return made


class Twice(nn.Module):
    """One layer under two names, called three times."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(32, 32)
        self.other = self.one
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.other(torch.relu(self.one(torch.relu(self.one(x))))))


class Tied(nn.Module):
    """Two layers of one weight, and one of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.own = (nn.Linear(32, 32) for _ in range(3))
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.own(self.other(torch.relu(self.one(x))))


class Peeking(nn.Module):
    """Reads the weight of a layer that it calls as well."""

    def __init__(self):
        super().__init__()
        self.seen, self.own = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.own(self.seen(x) + x @ self.seen.weight)


class Convs(nn.Module):
    """A small network of convolutions."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.body = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.more = nn.Conv2d(2 * width, 2 * width, 3, 1, 1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.more(torch.relu(self.body(self.depthwise(x)))))
        return self.head(x.mean((2, 3)))


def encoder(layers=2):
    """PyTorch's own, whose fused path reads weights without calling layers."""
    block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(block, layers, enable_nested_tensor=False).eval()


CONVS = {
    "strided": (lambda: nn.Conv2d(8, 12, 3, 2, 1), (2, 8, 11, 9)),
    "dilated": (lambda: nn.Conv2d(8, 12, 3, 1, 2, 2), (2, 8, 11, 9)),
    "uneven": (lambda: nn.Conv2d(8, 12, (5, 3), (1, 2), (0, 1), (2, 1)), (2, 8, 15, 9)),
    "same": (lambda: nn.Conv2d(8, 12, (5, 3), padding="same", dilation=2), (2, 8, 11, 9)),
    "valid": (lambda: nn.Conv2d(8, 12, 3, padding="valid", bias=False), (2, 8, 11, 9)),
    "reflect": (lambda: nn.Conv2d(8, 12, 3, 1, 1, padding_mode="reflect"), (2, 8, 11, 9)),
    "replicate": (lambda: nn.Conv2d(8, 12, (3, 5), 1, (1, 2), padding_mode="replicate"), (2, 8, 11, 9)),
    "circular": (lambda: nn.Conv2d(8, 12, 3, 2, 1, padding_mode="circular"), (2, 8, 12, 8)),
    "1x1": (lambda: nn.Conv2d(8, 12, 1, 2), (2, 8, 11, 9)),
    "1x3": (lambda: nn.Conv2d(8, 12, (1, 3), (2, 1), (0, 1)), (2, 8, 11, 9)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 5, 2, 2, bias=False), (2, 8, 30)),
    "conv1d reflect": (lambda: nn.Conv1d(8, 12, 3, 1, 2, 2, padding_mode="reflect"), (2, 8, 30)),
    "linear": (lambda: nn.Linear(8, 12), (2, 5, 8)),
    "linear without bias": (lambda: nn.Linear(12, 8, bias=False), (3, 12)),
}
