"""NASNet-A (Zoph et al. 2018, figure 4): the normal and the reduction cell that a search found, in a small network."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.models import _calibrated


class _Separable(nn.Module):
    """ReLU, depthwise, pointwise, norm: all of it twice, the stride in the first (appendix A.4)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                nn.Conv2d(inside, inside, kernel, step, kernel // 2, groups=inside, bias=False),
                nn.Conv2d(inside, outside, 1, bias=False),
                nn.BatchNorm2d(outside, eps=1e-3),
            ]
            inside = outside
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class _Fit(nn.Module):
    """A hidden state with the cell's width: 1x1; with half the size too, by two paths that see all pixels."""

    def __init__(self, inside: int, outside: int, *, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        widths = (outside // 2, outside - outside // 2) if halve else (outside,)
        self.paths = nn.ModuleList(nn.Conv2d(inside, width, 1, bias=False) for width in widths)
        self.norm = nn.BatchNorm2d(outside, eps=1e-3)

    def forward(self, x):
        x = functional.relu(x)
        if self.halve:
            shifted = functional.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
            seen = (functional.avg_pool2d(x, 1, 2), functional.avg_pool2d(shifted, 1, 2))
            x = torch.cat([path(part) for path, part in zip(self.paths, seen, strict=True)], 1)
        else:
            x = self.paths[0](x)
        return self.norm(x)


def _average(x):
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _halved_average(x):
    """The same with stride 2, which LiteRT lowers to operators that tflite-runtime has not: so the share is divided."""
    seen = functional.avg_pool2d(torch.ones(1, 1, *x.shape[2:]), 3, 2, 1)
    return functional.avg_pool2d(x, 3, 2, 1) / seen


def _greatest(x):
    return functional.max_pool2d(x, 3, 2, 1)


class NormalCell(nn.Module):
    """Size kept: (this hidden state, the one before) -> six of `width` side by side."""

    def __init__(self, inside: int, before: int, width: int, *, halve_before: bool) -> None:
        super().__init__()
        self.fit = _Fit(inside, width, halve=False)
        self.fit_before = _Fit(before, width, halve=halve_before)
        self.wide, self.wide_before = _Separable(width, width, 5), _Separable(width, width, 5)
        self.fine, self.fine_before = _Separable(width, width, 3), _Separable(width, width, 3)
        self.finer_before = _Separable(width, width, 3)

    def forward(self, x, before):
        x, before = self.fit(x), self.fit_before(before)
        made = (
            self.wide(x) + self.fine_before(before),
            self.wide_before(before) + self.finer_before(before),
            _average(x) + before,
            _average(before) + _average(before),
            self.fine(x) + x,
        )
        return torch.cat([before, *made], 1)


class ReductionCell(nn.Module):
    """Half the size: -> four of `width` side by side."""

    def __init__(self, inside: int, before: int, width: int) -> None:
        super().__init__()
        self.fit, self.fit_before = _Fit(inside, width, halve=False), _Fit(before, width, halve=False)
        self.wide, self.wide_before = _Separable(width, width, 5, 2), _Separable(width, width, 5, 2)
        self.widest, self.wider = _Separable(width, width, 7, 2), _Separable(width, width, 7, 2)
        self.fine = _Separable(width, width, 3)

    def forward(self, x, before):
        x, before = self.fit(x), self.fit_before(before)
        first = self.wide(x) + self.widest(before)
        second = _greatest(x) + self.wider(before)
        third = _halved_average(x) + self.wide_before(before)
        return torch.cat([second, third, _average(first) + second, self.fine(first) + _greatest(x)], 1)


class NasNet(nn.Module):
    """A stem, then a normal, a reduction and a normal cell, as CIFAR's networks are stacked (figure 2), one of each."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * width))
        self.normal = NormalCell(3 * width, 3 * width, width, halve_before=False)
        self.reduction = ReductionCell(6 * width, 3 * width, 2 * width)
        self.last = NormalCell(8 * width, 6 * width, 2 * width, halve_before=True)
        self.head = nn.Linear(12 * width, classes)

    def forward(self, image):
        stem = self.stem(image)
        normal = self.normal(stem, stem)
        reduced = self.reduction(normal, stem)
        return self.head(functional.relu(self.last(reduced, normal)).mean((2, 3)))


def nasnet():
    torch.manual_seed(58)
    return _calibrated(NasNet(), torch.randn(16, 3, 32, 32)), (torch.randn(1, 3, 32, 32),)
