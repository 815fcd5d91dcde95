"""What fine-tuning through rounding wins: accuracy on the test digits, of a CNN that has little to spare."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.api import compress
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, main, progress
from tests.e2e import digits
from tests.support.lowered import lowered

_SEEDS = 3
_FORMS = ("2bit", "4bit")
_CALIBRATION = 256
_GOALS = {
    "2bit": (
        Goal("2bit: accuracy, fine-tuned over post-training", ">", 0),
        Goal("2bit: accuracy lost to fp32, fine-tuned", "<=", 0.02),
    ),
    "4bit": (
        Goal("4bit: accuracy, fine-tuned over post-training", ">=", -0.005),
        Goal("4bit: accuracy lost to fp32, fine-tuned", "<=", 0.01),
    ),
}


def small() -> nn.Module:
    """Three narrow convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def _train(model: nn.Module, epochs: int = 24) -> nn.Module:
    batches = digits.Batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def compare() -> Iterator[Bar | Figure]:
    """fp32, rounded after training, and fine-tuned, each from _SEEDS seeds; all but fp32 with int8 activations."""
    torch.set_num_threads(1)
    train_images, test_images, _, labels = digits.images()
    found: dict[str, list[float]] = {}
    for seed in range(_SEEDS):
        progress(f"seed {seed}")
        torch.manual_seed(seed)
        dense = _train(small())
        found.setdefault("fp32", []).append(digits.accuracy(dense))
        for form in _FORMS:
            tuned = compress(dense, form, loader=digits.Batches()).model
            for name, model in (("post-training", dense), ("fine-tuned", tuned)):
                answers = lowered(model, form, [train_images[:_CALIBRATION]], test_images)(test_images)
                right = float((answers.argmax(1) == labels).float().mean())
                found.setdefault(f"{form}, {name}", []).append(right)
    for form, (won, lost) in _GOALS.items():
        after, tuned = found[f"{form}, post-training"], found[f"{form}, fine-tuned"]
        yield won.measured([one - other for one, other in zip(tuned, after, strict=True)])
        yield lost.measured([one - other for one, other in zip(found["fp32"], tuned, strict=True)])
    for name, values in found.items():
        yield figure(f"accuracy, {name}", values)


PARTS = (Part(tuple(goal for goals in _GOALS.values() for goal in goals), compare),)

if __name__ == "__main__":
    main("quant_training", PARTS)
