"""Super-resolution by four, trained on the spot: residual blocks and a pixel shuffle, layers of unlike sensitivity.

The photographs are the two that scikit-learn ships: it learns from one, and is measured on the other.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from msgspec.structs import replace
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional

from ferryman.converter.capture import Captured, capture
from ferryman.converter.quantize.bit_operations import bit_operations
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import Recipe, parse_recipe
from ferryman.converter.source import make_source

_TIMES = 4
_SIDE = 96
"""Of a crop, in the finer image's pixels."""
_STEPS = 600
_BATCH = 16
_TILE = 208
"""Side of the squares that are measured, and of those that calibrate."""
_BITS = {"fp32": 32, "int8": 8, "4bit": 4, "2bit": 2}
RECIPES = ("int8", "4bit", "mixed-4b", "4bit-gptq", "mixed-4b-gptq", "mixed-3b-gptq", "2bit-gptq")


class _Block(nn.Module):
    """EDSR's (Lim et al. 2017): no batch norm, no activation after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(functional.relu(self.conv1(x)))


class SuperResolution(nn.Module):
    """Brightness float32[N, 1, H, W] in 0..1 -> [N, 1, 4H, 4W]."""

    def __init__(self, width: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, _TIMES**2, 3, padding=1)

    def forward(self, image):
        x = self.head(image)
        x = x + self.body(self.blocks(x))
        # What is learned is the difference to the image itself, each pixel sixteen times (ABPN, Du et al. 2021).
        return functional.pixel_shuffle(self.tail(x) + image, _TIMES)


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness of the one to learn from, and of the other: float32[1, 1, 426, 640] in 0..1."""
    greys = [np.dot(image[:426] / 255, (0.299, 0.587, 0.114)) for image in load_sample_images().images]
    first, second = (torch.tensor(grey, dtype=torch.float32)[None, None] for grey in greys)
    return first, second


def coarser(image: torch.Tensor) -> torch.Tensor:
    """A quarter as fine: bicubic, as is usual in super-resolution."""
    return functional.interpolate(image, scale_factor=1 / _TIMES, mode="bicubic", antialias=True).clamp(0, 1)


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


@dataclass(frozen=True)
class Measured:
    """One form of the model."""

    name: str
    bits: float
    """Of a weight, on average."""
    nbytes: int
    """Of weights, scales and biases."""
    psnr: float
    sqnr: float
    """Against the model in float, dB."""
    bit_operations: int
    """Of a tile."""


class Bench:
    """A trained model, what calibrates it, and tiles of the other photograph to measure it on."""

    def __init__(self, module: SuperResolution) -> None:
        torch.manual_seed(6)
        learned, other = photographs()
        self.module = module
        self._batches = [(crop,) for crop in coarser(crops(learned, 8, _TILE)).split(1)]
        self.fine = other.unfold(2, _TILE, _TILE).unfold(3, _TILE, _TILE).reshape(-1, 1, _TILE, _TILE)
        self._coarse = coarser(self.fine)
        self.captured: Captured = capture(make_source(module, self._batches[0], name="super_resolution"))
        self._outputs = self._run(module)
        self._sizes = {name: part.weight.numel() for name, part in module.named_modules() if hasattr(part, "weight")}

    def _run(self, module: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([module(tile) for tile in self._coarse.split(1)])

    def bicubic(self) -> float:
        """PSNR without any network."""
        return psnr(self.fine, functional.interpolate(self._coarse, scale_factor=_TIMES, mode="bicubic"))

    def uniform(self, name: str) -> Recipe:
        """A recipe without its exceptions: every layer has the same bits."""
        recipe = parse_recipe(name)
        return replace(recipe, layers=dict.fromkeys(self._sizes, recipe.bits))

    def measure(self, recipe: Recipe | None) -> Measured:
        """Quantize, and run on the tiles; None: in float."""
        if recipe is None:
            floats = sum(parameter.nbytes for parameter in self.module.parameters())
            return Measured("fp32", 32, floats, psnr(self.fine, self._outputs), 200, bit_operations(self.captured))
        lowered, forms = lower_quantized(self.captured, recipe, self._batches)
        outputs = self._run(lowered.program.module())
        lost = float((outputs - self._outputs).square().sum() / self._outputs.square().sum())
        return Measured(
            name=recipe.name + " everywhere" * bool(recipe.layers),
            bits=sum(_BITS[form.form] * self._sizes[form.path] for form in forms) / sum(self._sizes.values()),
            nbytes=sum(buffer.nbytes for buffer in lowered.program.state_dict.values()),
            psnr=psnr(self.fine, outputs),
            sqnr=-10 * math.log10(lost),
            bit_operations=bit_operations(self.captured, forms),
        )


def main() -> None:
    """Print a table."""
    bench = Bench(trained())
    print(f"bicubic {bench.bicubic():.2f} dB")
    print("form                    bits/w   bytes   PSNR   SQNR  GBitOps")
    recipes = [parse_recipe(name) for name in RECIPES]
    for recipe in (None, *recipes, *(bench.uniform(name) for name in ("4bit", "4bit-gptq", "2bit-gptq"))):
        one = bench.measure(recipe)
        gigas = one.bit_operations / 1e9
        print(f"{one.name:22} {one.bits:7.3f} {one.nbytes:7} {one.psnr:6.2f} {one.sqnr:6.2f} {gigas:8.2f}")


if __name__ == "__main__":
    main()
