"""A small CNN for the handwritten digits that scikit-learn ships (1797 images of 8x8, UCI Optical Recognition set)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

WEIGHTS = "FERRYMAN_DIGITS"
BINARY_WEIGHTS = "FERRYMAN_DIGITS_BINARY"
"""Environment variables that name the files of the trained weights."""
_EPOCHS = 12


class Digits(nn.Module):
    """Two convolutions, a mean over space, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(128, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


def images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train images, test images, train labels, test labels; images are float32[N, 1, 8, 8] in 0..1."""
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    train, test = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    return train, test, torch.tensor(split[2]), torch.tensor(split[3])


def train(on_epoch: Callable[[int, int, float], None] = lambda *_: None) -> Digits:
    """Train from scratch, the same way every time; tells epoch, epochs and test accuracy."""
    torch.manual_seed(0)
    train_images, test_images, train_labels, test_labels = images()
    module = Digits()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    for epoch in range(_EPOCHS):
        module.train()
        for batch in torch.randperm(len(train_images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()
        schedule.step()
        module.eval()
        with torch.no_grad():
            on_epoch(epoch + 1, _EPOCHS, float((module(test_images).argmax(1) == test_labels).float().mean()))
    return module


class Batches:
    """The training digits, shuffled anew by torch's generator for each epoch."""

    def __init__(self, size: int = 64) -> None:
        self.images, _, self.labels, _ = images()
        self.size = size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in torch.randperm(len(self.images)).split(self.size):
            yield self.images[batch], self.labels[batch]


def calibration() -> list[torch.Tensor]:
    """What `--calibrate tests.e2e.digits:calibration` asks for: some training images."""
    return list(images()[0][:64].split(1))


def accuracy(module: nn.Module) -> float:
    """On the test digits."""
    _, test_images, _, labels = images()
    with torch.no_grad():
        return float((module(test_images).argmax(1) == labels).float().mean())


def trained() -> tuple[Digits, tuple[torch.Tensor]]:
    """Give what `ferryman convert tests.e2e.digits:trained` asks for."""
    module = Digits()
    module.load_state_dict(torch.load(Path(os.environ[WEIGHTS]), weights_only=True))
    return module.eval(), (images()[1][:1],)


def trained_binary() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The same for its binary copy."""
    from ferryman.converter.compress.binary import binarize

    module, _ = binarize(Digits())
    module.load_state_dict(torch.load(Path(os.environ[BINARY_WEIGHTS]), weights_only=True))
    return module.eval(), (images()[1][:1],)
