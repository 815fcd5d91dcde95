"""Super-resolution by two, trained on the spot: residual blocks and a pixel shuffle, with layers of unlike sensitivity.

The photographs are the two that scikit-learn ships: it learns from one, and is measured on the other.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional

_SIDE = 48
"""Of a crop, in the finer image's pixels."""
_STEPS = 400
_BATCH = 16


class _Block(nn.Module):
    """EDSR's (Lim et al. 2017): no batch norm, no activation after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(functional.relu(self.conv1(x)))


class SuperResolution(nn.Module):
    """Brightness float32[N, 1, H, W] in 0..1 -> [N, 1, 2H, 2W]."""

    def __init__(self, width: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, image):
        x = self.head(image)
        x = x + self.body(self.blocks(x))
        # What is learned is the difference to the image itself, each pixel four times (ABPN, Du et al. 2021).
        return functional.pixel_shuffle(self.tail(x) + image.repeat(1, 4, 1, 1), 2)


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness of the one to learn from, and of the other: float32[1, 1, 426, 640] in 0..1."""
    greys = [np.dot(image[:426] / 255, (0.299, 0.587, 0.114)) for image in load_sample_images().images]
    first, second = (torch.tensor(grey, dtype=torch.float32)[None, None] for grey in greys)
    return first, second


def coarser(image: torch.Tensor) -> torch.Tensor:
    """Half as fine: bicubic, as is usual in super-resolution."""
    return functional.interpolate(image, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)


def crops(image: torch.Tensor, count: int, side: int = _SIDE) -> torch.Tensor:
    """Squares of an image, from anywhere: [count, 1, side, side]."""
    height, width = image.shape[2:]
    tops, lefts = torch.randint(0, height - side + 1, (count,)), torch.randint(0, width - side + 1, (count,))
    return torch.cat([image[:, :, top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)])


@functools.cache
def trained(steps: int = _STEPS) -> SuperResolution:
    """Train from scratch, the same way every time."""
    torch.manual_seed(5)
    image, _ = photographs()
    module = SuperResolution()
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        fine = crops(image, _BATCH)
        optimizer.zero_grad()
        functional.l1_loss(module(coarser(fine)), fine).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def psnr(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """In dB, of brightness in 0..1 (both clamped to it)."""
    return -10 * math.log10(float((wanted - found.clamp(0, 1)).square().mean()))
