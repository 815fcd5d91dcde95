"""How much each block of a network matters.

Gates: FoldGPT (Liu et al. 2024) puts a gate in front of what each block adds to its input and trains all of them
together, with the weights frozen, under a budget of blocks: where two blocks stand in for one another, one gate closes
and the other stays open, which no block's score alone would show. A gate is t^2 / (t^2 + epsilon), which is near 0 or
near 1 for most t (polarized), the more so the smaller epsilon has become.

Similarity: without data to train on, a block matters by one less the cosine between its input and its output, taken
anew whenever one is out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Example, in_eval_mode
from ferryman.converter.compress.training import Batch, Loss, pair_of
from ferryman.converter.fold.blocks import Blocks, run
from ferryman.runtime.contracts.errors import CallerError

_STEPS = 120
_LR = 0.05
_EPSILONS = (0.1, 0.01)
"""At the beginning of training and at its end."""
_STRENGTH = 4.0
"""Of the penalty at its end, in losses of the model as it was."""
_RANKING = 0.5
"""Share of the blocks that gates may keep open where none is to be removed, and only their order is wanted."""


@dataclass(frozen=True)
class Asked:
    """What there is to go by."""

    model: nn.Module
    blocks: Blocks
    example: Example
    loader: Iterable[Batch] | None
    loss: Loss
    removed: int
    """How many blocks are to go."""


class Importance(Protocol):
    """One way to tell."""

    name: str

    def __call__(self, asked: Asked) -> list[float]:
        """Of each block, 0 (does nothing) to 1; the model is left as it came."""


class Gates:
    """Implements `Importance`: what FoldGPT's gates are at the end."""

    name = "gates"

    def __call__(self, asked: Asked) -> list[float]:
        """See `Importance`.

        Raises:
            CallerError: there is no loader, or it gives no batches of (inputs, targets) that the model takes.
        """
        if asked.loader is None:
            raise CallerError("gates are trained: give a loader, or take similar")
        count = len(asked.blocks)
        keep = (count - asked.removed) / count if asked.removed else _RANKING
        openings = nn.Parameter(torch.ones(count))
        optimizer = torch.optim.Adam([openings], lr=_LR)
        at_first = 0.0
        epsilon = _EPSILONS[0]

        def gate(index: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + _polarized(openings[index], epsilon) * (y - x)

        with in_eval_mode(asked.model), _frozen(asked.model), torch.enable_grad():
            for step, (inputs, targets) in enumerate(_batches(asked.loader, _STEPS)):
                done = step / _STEPS
                epsilon = _EPSILONS[0] * (_EPSILONS[1] / _EPSILONS[0]) ** done
                optimizer.zero_grad()
                with asked.blocks.seen(gate):
                    value = _loss(asked, inputs, targets, step + 1)
                at_first = at_first or float(value.detach())
                open_share = _polarized(openings, epsilon).mean()
                penalty = _STRENGTH * done * at_first * functional.relu(open_share - keep) / keep
                (value + penalty).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return [float(one) for one in _polarized(openings.detach(), epsilon)]


class Similarity:
    """Implements `Importance`: one less the cosine of input and output, on the example."""

    name = "similar"

    def __call__(self, asked: Asked) -> list[float]:
        """See `Importance`; what goes is measured beside all that is still there."""
        found = [0.0] * len(asked.blocks)
        out: list[int] = []

        def see(index: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
            if index in out:
                return x
            found[index] = float(1 - functional.cosine_similarity(x, y, dim=-1).mean())
            return None

        for left in range(asked.removed, -1, -1):
            with asked.blocks.seen(see):
                run(asked.model, asked.example)
            if left:
                out.append(least(found, out)[0])
        return [max(0.0, one) for one in found]


def least(importances: Sequence[float], besides: Sequence[int] = (), count: int = 1) -> list[int]:
    """Indexes of those that matter least; of equal ones the later first: what early blocks do, others build on."""
    order = sorted(set(range(len(importances))) - set(besides), key=lambda index: (importances[index], -index))
    return order[:count]


def _polarized(opening: torch.Tensor, epsilon: float) -> torch.Tensor:
    square = opening.square()
    return square / (square + epsilon)


def _batches(loader: Iterable[Batch], steps: int) -> Iterator[Batch]:
    given = 0
    while given < steps:
        before = given
        for batch in loader:
            given += 1
            yield pair_of(batch, given)
            if given == steps:
                return
        if given == before:
            raise CallerError("the loader gives no batches")


def _loss(asked: Asked, inputs: torch.Tensor, targets: torch.Tensor, number: int) -> torch.Tensor:
    try:
        value = asked.loss(asked.model(inputs), targets)
    except Exception as error:
        raise CallerError(
            f"batch {number} cannot be used: {type(error).__name__}: {error}; inputs and targets must suit the model "
            "and the loss"
        ) from error
    if not isinstance(value, torch.Tensor) or value.dim() or not value.requires_grad:
        raise CallerError("the loss gives no number that depends on the outputs; it is to be minimized by training")
    if not math.isfinite(float(value.detach())):
        raise CallerError(f"the loss of batch {number} is {float(value.detach())}; look at the loader and the model")
    return value


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        one.requires_grad = False
    try:
        yield
    finally:
        for one in trained:
            one.requires_grad = True
