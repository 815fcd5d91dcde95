"""Binary models as factories, like tests.zoo.models: each returns (module in eval mode, example inputs)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.binary_modules import BinaryConv2d, BinaryLinear
from ferryman.converter.compress.training import recalibrate_batch_norm
from tests.e2e import digits


@dataclass(frozen=True)
class TrainedDigits:
    dense: nn.Module
    binary: nn.Module
    dense_accuracy: float
    binary_accuracy: float


def train_digits_binary(*, epochs: int = 8, lr: float = 1e-2, estimator: str = "reste") -> TrainedDigits:
    """Train the demo's float CNN, then its binary copy: first and last layers float, the two convolutions binary."""
    dense = digits.train()
    torch.manual_seed(0)
    model, _ = binarize(dense, estimator=estimator)
    binary = fine_tune(model, digits.Batches(), epochs=epochs, lr=lr).model
    return TrainedDigits(
        dense=dense,
        binary=binary,
        dense_accuracy=digits.accuracy(dense),
        binary_accuracy=digits.accuracy(binary),
    )


def digits_binary():
    return train_digits_binary().binary, (digits.images()[1][:1],)


class _BinaryStep(nn.Module):
    """One binary 3x3 convolution with a shortcut of its own around it (Bi-Real Net, Liu et al. 2018)."""

    def __init__(self, inside: int, outside: int, stride: int, pad_value: int, *, dense: bool) -> None:
        super().__init__()
        self.conv: nn.Module = BinaryConv2d(inside, outside, 3, stride, 1, pad_value=pad_value)
        if dense:
            self.conv = nn.Sequential(nn.Hardtanh(), nn.Conv2d(inside, outside, 3, stride, 1, bias=False))
        self.norm = nn.BatchNorm2d(outside)
        self.down = nn.Sequential()
        if stride != 1 or inside != outside:
            self.down = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x):
        return self.norm(self.conv(x)) + self.down(x)


class BinaryResNet18(nn.Module):
    """ResNet-18 with 16 binary convolutions; the stem, the 1x1 shortcuts and the head are float.

    No activation function but the sign: a ReLU before it would leave no negative numbers. `dense` makes its float twin,
    with Hardtanh in the place of the sign.
    """

    def __init__(
        self, width: int = 64, classes: int = 10, stem_stride: int = 1, pad_value: int = 0, *, dense: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width))
        steps: list[nn.Module] = []
        inside = width
        for stage in range(4):
            for index in range(4):
                outside = width << stage
                stride = 2 if stage and index == 0 else 1
                steps.append(_BinaryStep(inside, outside, stride, pad_value, dense=dense))
                inside = outside
        self.steps = nn.Sequential(*steps)
        self.head = nn.Linear(inside, classes)

    def forward(self, image):
        return self.head(self.steps(self.stem(image)).mean((2, 3)))


def digits_as_images(size: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The digits, enlarged and in three channels: train images, test images, train labels, test labels."""
    train, test, *labels = digits.images()
    made = [functional.interpolate(part, size=size, mode="bilinear").repeat(1, 3, 1, 1) for part in (train, test)]
    return made[0], made[1], *labels


def train_resnet18(width: int = 16, *, epochs: int = 3) -> TrainedDigits:
    """A float ResNet of this shape and its binary twin, both trained on the enlarged digits."""
    train, test, train_labels, test_labels = digits_as_images()
    batches = [(train[at], train_labels[at]) for at in torch.arange(len(train)).split(64)]

    def accuracy(module: nn.Module) -> float:
        with torch.no_grad():
            return float((module(test).argmax(1) == test_labels).float().mean())

    trained = []
    for dense in (True, False):
        torch.manual_seed(0)
        trained.append(fine_tune(BinaryResNet18(width, dense=dense), batches, epochs=epochs, lr=5e-3).model)
    return TrainedDigits(*trained, *map(accuracy, trained))


def resnet18_binary(width: int = 64, *, size: int = 32, classes: int = 10, pad_value: int = 0):
    """Random weights, real statistics in its batch norms; `size` is 32 or 64."""
    torch.manual_seed(5)
    module = BinaryResNet18(width, classes, size // 32, pad_value)
    recalibrate_batch_norm(module, [(torch.randn(8, 3, size, size), torch.empty(0))])
    return module.eval(), (torch.randn(1, 3, size, size),)


class _BinaryEncoderBlock(nn.Module):
    """A transformer encoder block (post-norm, as BERT); attention scores stay float."""

    def __init__(self, dim: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (BinaryLinear(dim, dim, bias=True, rank=rank) for _ in range(4))
        self.up = BinaryLinear(dim, 4 * dim, bias=True, rank=rank)
        self.down = BinaryLinear(4 * dim, dim, bias=True, rank=rank)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x):
        batch, length, dim = x.shape
        query, key, value = (
            layer(x).view(batch, length, self.heads, dim // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(query, key, value)
        x = self.norm1(x + self.out(y.transpose(1, 2).reshape(batch, length, dim)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class BipftEncoder(nn.Module):
    """Binary linear layers with low-rank estimators in all blocks; embeddings and head float."""

    def __init__(
        self, vocabulary: int, length: int, dim: int, blocks: int, heads: int, rank: int, classes: int
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.Sequential(*(_BinaryEncoderBlock(dim, heads, rank) for _ in range(blocks)))
        self.head = nn.Linear(dim, classes)

    def forward(self, ids):
        x = self.norm(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
        return self.head(self.blocks(x).mean(1))


def bipft_encoder(*, length: int = 32, dim: int = 128, blocks: int = 2, rank: int = 8):
    """Random weights: 2 blocks of width 128 over 32 tokens."""
    torch.manual_seed(6)
    module = BipftEncoder(vocabulary=512, length=length, dim=dim, blocks=blocks, heads=4, rank=rank, classes=4)
    return module.eval(), (torch.randint(0, 512, (1, length)),)
