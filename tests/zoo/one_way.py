"""Wave simulators: what a membrane does next, by networks of 3x3 kernels and of one-way filters from the start.

python -m tests.zoo.one_way     trains them and prints weights, multiplications and errors

The waves are solved by finite differences: two frames in, the one several steps later out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, train
from ferryman.converter.low_rank.one_way import OneWay, one_way

SIDE, AHEAD = 24, 4
_COURANT = 0.5
"""Cells that a wave passes in a step."""
EPOCHS, LR = 6, 4e-3


class WaveNet(nn.Module):
    """float32[N, 2, SIDE, SIDE], two frames -> float32[N, 1, SIDE, SIDE], what differs from the last AHEAD later."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sides = [2, width, width, width, width]
        layers: list[nn.Module] = []
        for inside, outside in itertools.pairwise(sides):
            layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, frames):
        return frames[:, 1:] + self.layers(frames)


def waves(count: int, steps: int) -> torch.Tensor:
    """float32[count, steps, SIDE, SIDE]: membranes held at their edges, from one to three bumps at rest."""
    place = torch.arange(SIDE, dtype=torch.float32)
    now = torch.zeros(count, SIDE, SIDE)
    for _ in range(3):
        x, y = (SIDE * (0.2 + 0.6 * torch.rand(count, 1, 1)) for _ in range(2))
        high = torch.randn(count, 1, 1) * (torch.rand(count, 1, 1) < 0.7)
        wide = 1.5 + 1.5 * torch.rand(count, 1, 1)
        now = now + high * torch.exp(-((place[None, :, None] - y) ** 2 + (place - x) ** 2) / (2 * wide**2))
    frames, before = [now], now
    for _ in range(steps - 1):
        padded = functional.pad(now, (1, 1, 1, 1))
        around = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]
        now, before = 2 * now - before + _COURANT**2 * (around - 4 * now), now
        frames.append(now)
    return torch.stack(frames, 1)


def pairs(count: int, steps: int = 40) -> Batch:
    """Two frames, and the one AHEAD after them; times drawn for each membrane."""
    frames = waves(count, steps)
    at = torch.randint(1, steps - AHEAD, (count,))
    one = torch.arange(count)
    return torch.stack([frames[one, at - 1], frames[one, at]], 1), frames[one, at + AHEAD][:, None]


class Waves:
    """Batches of new membranes."""

    def __init__(self, steps: int = 40, size: int = 16) -> None:
        self.steps, self.size = steps, size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield pairs(self.size)


@functools.cache
def held_out() -> Batch:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(77)
        return pairs(200)


def score(model: nn.Module) -> float:
    """Error of what a network predicts, relative to what changes, in the square."""
    frames, wanted = held_out()
    with torch.no_grad():
        found = model.eval()(frames)
    return float((found - wanted).square().sum() / (frames[:, 1:] - wanted).square().sum())


def designed(ways: int | None, width: int = 32) -> tuple[nn.Module, OneWay | None]:
    """An untrained network; None: of whole kernels."""
    torch.manual_seed(3)
    dense = WaveNet(width)
    if ways is None:
        return dense, None
    made = one_way(dense, (held_out()[0][:1],), ways=ways)
    return made.model, made


def trained(ways: int | None, epochs: int = EPOCHS, batches: Waves | None = None) -> nn.Module:
    model, _ = designed(ways)
    torch.manual_seed(3)
    return train(model, batches or Waves(), epochs=epochs, lr=LR, loss=functional.mse_loss).model


def wave_simulator():
    """Factory of one-way filters, trained."""
    return trained(3), (held_out()[0][:1],)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'kernels':14} {'weights':>8} {'multiplications':>16} {'error':>8}")
    for name, ways in (("3x3", None), ("one-way, of 3", 3), ("one-way, of 2", 2)):
        model = trained(ways)
        _, made = designed(ways or 3)
        cost = made.before if ways is None else made.after
        weights = sum(one.numel() for one in model.parameters())
        print(f"{name:14} {weights:8} {cost.macs:16} {score(model):8.4f}", flush=True)


if __name__ == "__main__":
    main()
