"""Digits to be found on a canvas: pictures of them, a loss, and mean average precision at an IoU of 0.5."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from tests.e2e import digits
from tests.zoo.pruned_nets import CANVAS, CLASSES, STRIDE

CELLS = CANVAS // STRIDE
_DIGITS_MAX = 4
_SIDES = (10, 20)
_LARGEST = 24
"""Pixels: no box is wider or taller."""
_SURE = 0.05
"""Less objectness is not looked at."""


def _placed(pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One canvas and its targets, of digits chosen by torch's generator.

    Returns:
        float32[1, CANVAS, CANVAS] and float32[6, CELLS, CELLS]: 1 where there is a centre, its x and y, width and
        height in pixels, and the class.
    """
    canvas, target = torch.zeros(1, CANVAS, CANVAS), torch.zeros(6, CELLS, CELLS)
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(int(torch.randint(1, _DIGITS_MAX + 1, ()))):
        height, width = torch.randint(*_SIDES, (2,)).tolist()
        top, left = (int(torch.randint(0, CANVAS - side + 1, ())) for side in (height, width))
        if any(top < y + h and y < top + height and left < x + w and x < left + width for y, x, h, w in boxes):
            continue
        boxes.append((top, left, height, width))
        at = int(torch.randint(len(pixels), ()))
        drawn = functional.interpolate(pixels[at][None], size=(height, width), mode="bilinear")[0]
        canvas[:, top : top + height, left : left + width] = drawn
        x, y = left + width / 2, top + height / 2
        cell = target[:, int(y) // STRIDE, int(x) // STRIDE]
        cell.copy_(torch.tensor([1, x, y, width, height, float(labels[at])]))
    return canvas + 0.05 * torch.randn_like(canvas), target


def canvases(count: int, *, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """So many, of training or of test digits, by torch's generator."""
    train_images, test_images, train_labels, test_labels = digits.images()
    source = (test_images, test_labels) if test else (train_images, train_labels)
    made = [_placed(*source) for _ in range(count)]
    return torch.stack([canvas for canvas, _ in made]), torch.stack([target for _, target in made])


class Canvases:
    """Batches of training canvases, shuffled anew for each epoch."""

    def __init__(self, count: int = 1536, size: int = 32) -> None:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(11)
            self.images, self.targets = canvases(count, test=False)
        self.size = size

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in torch.randperm(len(self.images)).split(self.size):
            yield self.images[batch], self.targets[batch]


def boxes_of(outputs: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom in pixels of the box of each cell: [N, 4, CELLS, CELLS]."""
    at = torch.arange(CELLS, dtype=torch.float32)
    x = (at + outputs[:, 1].sigmoid()) * STRIDE
    y = (at[:, None] + outputs[:, 2].sigmoid()) * STRIDE
    width, height = (outputs[:, index].sigmoid() * _LARGEST for index in (3, 4))
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes [4, ...]."""
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    both = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (areas[0] + areas[1] - both).clamp(min=1e-6)


def detection_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Objectness everywhere; boxes (by their IoU) and classes where there is a digit."""
    there = targets[:, 0] > 0
    objectness = functional.binary_cross_entropy_with_logits(outputs[:, 0], targets[:, 0])
    if not there.any():
        return objectness
    wanted = targets.movedim(1, 0)[:, there]
    centre, half = wanted[1:3], wanted[3:5] / 2
    found = boxes_of(outputs).movedim(1, 0)[:, there]
    overlap = _overlap(found, torch.cat([centre - half, centre + half]))
    classes = outputs.movedim(1, 0)[5:, there].T
    return 5 * objectness + 2 * (1 - overlap).mean() + functional.cross_entropy(classes, wanted[5].long())


def _detections(output: torch.Tensor) -> list[tuple[float, int, torch.Tensor]]:
    """Confidence, class and box of what one picture's output says, without boxes that a surer one covers."""
    boxes = boxes_of(output[None])[0].flatten(1).T
    chances = output[0].sigmoid().flatten()
    shares, classes = output[5:].flatten(1).softmax(0).max(0)
    surest = (chances * shares).sort(descending=True)
    kept: list[tuple[float, int, torch.Tensor]] = []
    for chance, at in zip(surest.values.tolist(), surest.indices.tolist(), strict=True):
        one = int(classes[at])
        if chance < _SURE:
            break
        if all(other != one or float(_overlap(box, boxes[at])) < 0.5 for _, other, box in kept):
            kept.append((chance, one, boxes[at]))
    return kept


def mean_average_precision(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The area under precision over recall at an IoU of 0.5, mean over classes (Everingham et al. 2010, all points)."""
    hits: list[list[tuple[float, bool]]] = [[] for _ in range(CLASSES)]
    wanted = np.zeros(CLASSES)
    for output, target in zip(outputs, targets, strict=True):
        truth = [
            (int(one[5]), torch.cat([one[1:3] - one[3:5] / 2, one[1:3] + one[3:5] / 2]))
            for one in target.flatten(1).T
            if one[0] > 0
        ]
        for number, _ in truth:
            wanted[number] += 1
        for chance, number, box in _detections(output):
            matches = [
                index for index, (other, there) in enumerate(truth) if other == number and _overlap(box, there) >= 0.5
            ]
            hits[number].append((chance, bool(matches)))
            for index in matches[:1]:
                truth.pop(index)
    precisions = [_average_precision(hits[number], wanted[number]) for number in range(CLASSES) if wanted[number]]
    return float(np.mean(precisions))


def _average_precision(hits: list[tuple[float, bool]], wanted: float) -> float:
    right = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], float)
    if not right.size:
        return 0.0
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best_from_here * right).sum() / wanted)
