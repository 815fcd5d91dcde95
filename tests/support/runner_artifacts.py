"""Artifacts for the runner: one of each kind of operator that ferryman brings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ferryman import BinaryConv2d
from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import Captured, capture
from ferryman.converter.lower_binary import lower_binary
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import parse_recipe
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from tests.unit.converter.sparse.test_write import prune, rewritten

FORMS = ("fp32", "int8", "4bit", "sparse", "binary")
SHAPE = (1, 8, 12, 12)


def make_forms(folder: Path) -> None:
    """Write FORM.pte of a small network of convolutions for each of FORMS."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE)
    with quiet():
        for form in FORMS:
            lowered = BACKENDS["executorch"].lower(_captured(form, x))
            (folder / f"{form}.pte").write_bytes(lowered.data)


def _captured(form: str, x: torch.Tensor) -> Captured:
    if form == "sparse":
        return rewritten(prune(_net(nn.Conv2d)), x)
    captured = capture(make_source(_net(BinaryConv2d if form == "binary" else nn.Conv2d), (x,)))
    if form == "binary":
        return lower_binary(captured)[0]
    if form == "fp32":
        return captured
    return lower_quantized(captured, parse_recipe(form), [(torch.randn(SHAPE),) for _ in range(4)])[0]


def _net(conv: type[nn.Module]) -> nn.Module:
    """Of `conv`, the layer that the form changes."""
    layers = [nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 32, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 10)).eval()
