"""Networks to be folded: VanillaNet, one of branches, a decoder of many blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.fold.deep_training import Fading

CLASSES = 10


class _SeriesActivation(nn.Module):
    """A relu, and then what its neighbours make of it (VanillaNet's series of activations)."""

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, 2 * reach + 1, padding=reach, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.norm(self.near(functional.relu(x)))


def _conv(inside: int, outside: int, kernel: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, kernel, kernel), nn.BatchNorm2d(outside)]


class VanillaNet(nn.Module):
    """VanillaNet (Chen et al. 2023): two 1x1 convolutions a stage, between them an activation that fades in training.

    Args:
        inside: channels of the image.
        widths: of the stages.
        strides: of the stages, one fewer.
        patch: side of what the first convolution takes.
        reach: of the activations that stay.
        classes: answers.
    """

    def __init__(
        self,
        inside: int = 1,
        widths: Sequence[int] = (32, 64, 64),
        strides: Sequence[int] = (2, 1),
        patch: int = 2,
        reach: int = 1,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        self.stem = nn.Sequential(*_conv(inside, first, patch), Fading(), *_conv(first, first))
        stages: list[nn.Module] = [_SeriesActivation(first, reach)]
        for width, wider, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            stages += [*_conv(width, width), Fading(), *_conv(width, wider)]
            stages += [nn.MaxPool2d(stride)] if stride > 1 else []
            stages += [_SeriesActivation(wider, reach)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(*_conv(last, classes), Fading(), nn.Conv2d(classes, classes, 1))

    def forward(self, image):
        x = self.stages(self.stem(image))
        return self.head(functional.adaptive_avg_pool2d(x, 1)).flatten(1)


class _Branches(nn.Module):
    """A 3x3 convolution, a 1x1 one and the input itself, each with its batch norm (RepVGG, Ding et al. 2021)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.three, self.three_norm = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.one, self.one_norm = nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
        self.itself = nn.BatchNorm2d(inside) if inside == outside and stride == 1 else None

    def forward(self, x):
        y = self.three_norm(self.three(x)) + self.one_norm(self.one(x))
        return functional.relu(y if self.itself is None else y + self.itself(x))


class BranchNet(nn.Module):
    """Blocks of branches as RepVGG has them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        plan = ((1, width, 2), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1))
        self.body = nn.Sequential(*(_Branches(*one) for one in plan))
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, image):
        return self.head(self.body(image).mean((2, 3)))


def settled(module: nn.Module, image: torch.Tensor) -> nn.Module:
    """Without its fading activations, as after deep training, and with batch norms that have seen something."""
    torch.manual_seed(3)
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, Fading):
                setattr(part, name, nn.Identity())
            if isinstance(child, nn.BatchNorm2d):
                child.momentum = None
                nn.init.uniform_(child.weight, 0.7, 1.3)
                nn.init.normal_(child.bias, 0, 0.1)
    module.train()
    with torch.no_grad():
        module(image)
    return module.eval()


def vanillanet11(reach: int = 1):
    """VanillaNet-11, a quarter as wide as published; random weights, its activations faded."""
    torch.manual_seed(3)
    widths = (128, 128, 256, *(512,) * 6, 1024)
    strides = (1, 2, 2, 1, 1, 1, 1, 1, 2)
    image = torch.rand(2, 3, 224, 224)
    return settled(VanillaNet(3, widths, strides, 4, reach, 1000), image), (image[:1],)
