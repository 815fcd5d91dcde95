"""Students of a small CNN, as N2N makes them (Ashok et al. 2018): layers are taken away, then those left shrink."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn


class Layer(NamedTuple):
    """One of a student; `residual` is two convolutions and a shortcut."""

    kind: Literal["conv", "separable", "residual"]
    width: int
    stride: int = 1
    kernel: int = 3


Layers = tuple[Layer, ...]
TEACHER: Layers = (
    Layer("conv", 32),
    Layer("conv", 32),
    Layer("conv", 64, stride=2),
    Layer("conv", 64),
    Layer("conv", 64),
    Layer("conv", 128, stride=2),
    Layer("conv", 128),
)


def without(layers: Layers, index: int) -> Layers:
    """The layers but one; a stride it had goes to the next."""
    kept = [*layers[:index], *layers[index + 1 :]]
    if index < len(kept):
        kept[index] = kept[index]._replace(stride=kept[index].stride * layers[index].stride)
    return tuple(kept)


def shrunk(layers: Layers, index: int, share: float) -> Layers:
    """One layer with fewer channels."""
    return tuple(
        one._replace(width=max(4, round(one.width * share))) if at == index else one for at, one in enumerate(layers)
    )


class _Residual(nn.Module):
    def __init__(self, inside: int, layer: Layer) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_normed(inside, layer.width, layer.kernel, layer.stride),
            nn.ReLU(),
            *_normed(layer.width, layer.width, layer.kernel),
        )
        self.shortcut = nn.Sequential()
        if layer.stride > 1 or inside != layer.width:
            self.shortcut = nn.Sequential(*_normed(inside, layer.width, 1, layer.stride))

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def _normed(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outside)]


class Student(nn.Module):
    """Layers, a mean over space, one linear layer: float32[N, channels, H, W] -> [N, classes]."""

    def __init__(self, layers: Layers, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.layers = layers
        made: list[nn.Module] = []
        inside = channels
        for layer in layers:
            if layer.kind == "residual":
                made.append(_Residual(inside, layer))
            elif layer.kind == "separable":
                made += [*_normed(inside, inside, layer.kernel, layer.stride, inside), nn.ReLU()]
                made += [*_normed(inside, layer.width, 1), nn.ReLU()]
            else:
                made += [*_normed(inside, layer.width, layer.kernel, layer.stride), nn.ReLU()]
            inside = layer.width
        self.features = nn.Sequential(*made)
        self.head = nn.Linear(inside, classes)

    def forward(self, image):
        return self.head(self.features(image).mean((2, 3)))


def drawn(generator: torch.Generator) -> Layers:
    """A network from anywhere in the space, to learn a device from."""

    def one(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    width = one(8, 16, 24, 32)
    layers = [Layer("conv", width, stride=one(1, 2))]
    for _ in range(one(1, 2, 3)):
        width = int(width * one(1, 1.5, 2))
        kind = one("conv", "separable", "residual")
        layers += [Layer(kind, width, 2, one(3, 3, 5)), *[Layer(kind, width)] * one(0, 1, 2)]
    return tuple(layers)
