"""Residual networks of several widths in 32, 8, 4, 2 and 1 bits (seed 66), trained on digits: accuracy against cost.

python -m tests.zoo.pareto [FOLDER]      packages and pareto.html into FOLDER, the plot into docs/quantization.svg
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.api import compress, convert
from ferryman.profiler.pareto import draw, measure, table
from tests.e2e import digits
from tests.support.interpreters import ROOT

WIDTHS = (4, 8, 16)
_EPOCHS = 12
_TUNED = ("4bit", "2bit", "binary")


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.act1, self.act2 = nn.Hardtanh(), nn.Hardtanh()  # signs of what no ReLU has cut carry something

    def forward(self, x):
        return self.act2(x + self.norm2(self.two(self.act1(self.norm1(self.one(x))))))


class SmallResNet(nn.Module):
    """Two residual blocks between a stem and a mean over space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.Hardtanh())
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.Hardtanh()
        )
        self.blocks = nn.Sequential(_Block(width), self.down, _Block(2 * width))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image):
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def train(width: int) -> nn.Module:
    """From scratch, the same way every time."""
    torch.manual_seed(0)
    module = SmallResNet(width)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    for _ in range(_EPOCHS):
        for images, labels in digits.Batches():
            optimizer.zero_grad()
            functional.cross_entropy(module(images), labels).backward()
            optimizer.step()
        schedule.step()
    return module.eval()


def packages(folder: Path) -> list[Path]:
    """One package a width and form, on ExecuTorch and LiteRT."""
    example = digits.images()[1][:1]
    made = []
    for width in WIDTHS:
        dense = train(width)
        for form in ("fp32", "int8", *_TUNED):
            click.echo(f"width {width}, {form}", err=True)
            torch.manual_seed(0)
            model = compress(dense, form, loader=digits.Batches()).model if form in _TUNED else dense
            done = convert(
                model, (example,), form=form, calibration=digits.calibration(), output=folder, sqnr_min_db=5.0,
                name=f"width-{width}-{form}", interpreters=("executorch", "ai-edge-litert"),
            )  # fmt: skip
            made.append(done.path)
    return made


def test_set() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What `ferryman pareto --data tests.zoo.pareto:test_set` asks for: the test digits, one by one."""
    _, images, _, labels = digits.images()
    return list(zip(images.split(1), labels.split(1), strict=True))


def main(folder: Path) -> None:
    """Make all, print the table, draw."""
    folder.mkdir(parents=True, exist_ok=True)
    labelled = [((image.numpy(),), label.numpy()) for image, label in test_set()]
    points = measure(packages(folder), labelled)
    click.echo(table(points))
    draw(points, folder / "pareto.html")
    draw(points, Path(ROOT) / "docs" / "quantization.svg")


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
