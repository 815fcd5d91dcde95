"""Networks for low ranks beside those of `pruned_nets` and `models`: a plain stack of convolutions, and an encoder."""

from __future__ import annotations

import torch
from torch import nn


class VGG(nn.Module):
    """Convolutions of 3x3 and little else (Simonyan and Zisserman 2015): three stages of two, for 32x32 images."""

    def __init__(self, widths=(32, 64, 128), inside: int = 3, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(inside, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                inside = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)

    def forward(self, image):
        return self.head(self.features(image).mean((2, 3)))


def vgg(widths=(32, 64, 128)):
    torch.manual_seed(4)
    module = VGG(widths).train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 32, 32))
    return module.eval(), (torch.randn(1, 3, 32, 32),)


def encoder(blocks=2):
    """Blocks of a transformer as PyTorch ships them, of 64 tokens."""
    torch.manual_seed(4)
    block = nn.TransformerEncoderLayer(192, 4, 768, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    module = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
    return module.eval(), (torch.randn(1, 64, 192),)
