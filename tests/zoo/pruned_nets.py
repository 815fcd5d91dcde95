"""The networks that are pruned, small: shapes of published ones, sizes that train in seconds.

Attention takes the width of a head as given and finds how many heads there are from its tensors, so that whole heads
can go.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.models import _BasicBlock, _InvertedResidual

SIDE = 16
"""Of the digits that classifiers take: float32[N, 1, 16, 16]."""
CANVAS = 48
"""Of what the detector takes: float32[N, 1, 48, 48]."""
STRIDE = 8
"""Of its grid."""
CLASSES = 10
VOCABULARY = 96
LENGTH = 64
"""Characters that the decoder sees."""


class ResNet(nn.Module):
    """Three stages of two basic blocks (He et al. 2016)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            _BasicBlock(width, width, 1),
            _BasicBlock(width, width, 1),
            _BasicBlock(width, 2 * width, 2),
            _BasicBlock(2 * width, 2 * width, 1),
            _BasicBlock(2 * width, 4 * width, 2),
            _BasicBlock(4 * width, 4 * width, 1),
        )
        self.head = nn.Linear(4 * width, CLASSES)

    def forward(self, image):
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class MobileNet(nn.Module):
    """Inverted residuals (Sandler et al. 2018): six of them instead of seventeen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.blocks = nn.Sequential(
            _InvertedResidual(16, 16, 1, 1),
            _InvertedResidual(16, 24, 2, 6),
            _InvertedResidual(24, 24, 1, 6),
            _InvertedResidual(24, 32, 2, 6),
            _InvertedResidual(32, 32, 1, 6),
            _InvertedResidual(32, 48, 1, 6),
        )
        self.last = nn.Sequential(nn.Conv2d(48, 192, 1, bias=False), nn.BatchNorm2d(192), nn.ReLU6())
        self.head = nn.Linear(192, CLASSES)

    def forward(self, image):
        return self.head(self.last(self.blocks(self.stem(image))).mean((2, 3)))


class _DenseLayer(nn.Module):
    """Bottleneck and 3x3; gives what it takes with so many channels more."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x):
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """Two dense blocks of four layers, a transition between them (Huang et al. 2017)."""

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        layers: list[nn.Module] = []
        for block in range(2):
            layers += [_DenseLayer(width + index * growth, growth) for index in range(4)]
            width += 4 * growth
            if block == 0:
                layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False)]
                layers += [nn.AvgPool2d(2)]
                width //= 2
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image):
        return self.head(self.layers(self.stem(image)).mean((2, 3)))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.head_width, self.causal = dim // heads, causal

    def forward(self, x):
        batch, length, _ = x.shape
        query, key, value = (
            layer(x).view(batch, length, -1, self.head_width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Of a transformer, norms first."""

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), _Attention(dim, heads, causal=causal)
        self.norm2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): 16 patches and a class token."""

    def __init__(self, dim: int = 64, blocks: int = 3, heads: int = 4) -> None:
        super().__init__()
        patch = 4
        self.patches = nn.Conv2d(1, dim, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (SIDE // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(_Block(dim, heads, causal=False) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class CharacterDecoder(nn.Module):
    """Characters int64[N, length] -> logits of the next ones [N, length, VOCABULARY]; its head is tied."""

    def __init__(self, dim: int = 64, blocks: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, dim), nn.Embedding(LENGTH, dim)
        self.blocks = nn.Sequential(*(_Block(dim, heads, causal=True) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.norm(self.blocks(x)) @ self.tokens.weight.T / math.sqrt(self.tokens.weight.shape[1])


class _Conv(nn.Sequential):
    def __init__(self, inside: int, outside: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside), nn.SiLU()
        )


class _CrossStage(nn.Module):
    """Splits its channels, works on half of them with a shortcut, joins all (as YOLO's C2f does)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        half = outside // 2
        self.enter, self.leave = _Conv(inside, outside), _Conv(outside + half, outside)
        self.one, self.two = _Conv(half, half, 3), _Conv(half, half, 3)

    def forward(self, x):
        left, right = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([left, right, right + self.two(self.one(right))], 1))


class _Pyramid(nn.Module):
    """Largest values over ever wider windows, joined (SPPF)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = _Conv(width, width // 2), _Conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        x = self.enter(x)
        y = self.pool(x)
        z = self.pool(y)
        return self.leave(torch.cat([x, y, z, self.pool(z)], 1))


class Detector(nn.Module):
    """A YOLO without anchors: backbone, up and down again, one head.

    float32[N, 1, CANVAS, CANVAS] -> [N, 5 + CLASSES, CANVAS / STRIDE, CANVAS / STRIDE]: objectness, place of the centre
    in its cell, width, height and classes, before their sigmoids (see tests.zoo.detection).
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = _Conv(1, width, 3, 2)
        self.stage1 = nn.Sequential(_Conv(width, 2 * width, 3, 2), _CrossStage(2 * width, 2 * width))
        self.stage2 = nn.Sequential(_Conv(2 * width, 4 * width, 3, 2), _CrossStage(4 * width, 4 * width))
        self.pyramid = _Pyramid(4 * width)
        self.up = _CrossStage(6 * width, 2 * width)
        self.down = _Conv(2 * width, 2 * width, 3, 2)
        self.join = _CrossStage(6 * width, 4 * width)
        self.head = nn.Conv2d(4 * width, 5 + CLASSES, 1)

    def forward(self, image):
        fine = self.stage1(self.stem(image))
        coarse = self.pyramid(self.stage2(fine))
        up = self.up(torch.cat([functional.interpolate(coarse, scale_factor=2, mode="nearest"), fine], 1))
        return self.head(self.join(torch.cat([self.down(up), coarse], 1)))
