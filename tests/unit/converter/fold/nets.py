"""Networks of like blocks, written in the ways that people write them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WORDS, DIM = 12, 16


class Block(nn.Module):
    """Residual, with a norm, a matrix and its bias, and a scale of its own."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x + self.gain * self.down(functional.gelu(self.up(self.norm(x))))


class Pairs(Block):
    """Gives a cache beside what it works on, as larger libraries' blocks do."""

    def forward(self, hidden, cache=None):
        return (super().forward(hidden), cache)


class Decoder(nn.Module):
    """Words int64[N, length] -> logits of classes [N, WORDS]; a list of blocks that is called in `way`."""

    def __init__(self, count: int = 6, way: str = "loop") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(WORDS, DIM)
        self.way, self.count = way, count
        blocks = [Pairs() if way == "pairs" else Block() for _ in range(count)]
        self.blocks = nn.Sequential(*blocks) if way == "sequential" else nn.ModuleList(blocks)
        self.after = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(count)) if way == "zip" else None
        for norm in self.after or ():
            nn.init.normal_(norm.bias)
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, WORDS)

    def forward(self, ids):
        x = self.table(ids)
        if self.way == "sequential":
            x = self.blocks(x)
        elif self.way == "counted":
            for index in range(self.count):
                x = self.blocks[index](x)
        elif self.way == "pairs":
            for block in self.blocks:
                x = block(hidden=x, cache=None)[0]
        elif self.way == "zip":
            for block, norm in zip(self.blocks, self.after, strict=False):
                x = norm(block(x))
        else:
            for block in self.blocks:
                x = block(x)
        return self.head(self.norm(x).mean(1))


WAYS = ("loop", "sequential", "counted", "pairs", "zip")


def words(count: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches: which word is the largest."""
    torch.manual_seed(2)
    return [(ids := torch.randint(0, WORDS, (16, 4)), ids.amax(1)) for _ in range(count // 16)]
