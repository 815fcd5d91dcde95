"""The short training that follows when blocks are out or share weights: FoldGPT's "cure".

The folded network learns from the targets, from the answers of the network that it was, and from the hidden states of
that one's last blocks, the last ones most: what early blocks do may become something else, as long as the tail agrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from ferryman.converter.compress.binary_policy import in_eval_mode
from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, train
from ferryman.converter.fold.blocks import Blocks

_TEMPERATURE = 2.0
"""Of the answers' distributions."""
_TAIL = 3
"""One of so many blocks belongs to the tail."""
_LEAST = 1e-6


class _Pupil(nn.Module):
    """A folded network, and what the network it was says of the same inputs."""

    def __init__(
        self, model: nn.Module, blocks: Blocks, teacher: nn.Module, old: Blocks, tail: Mapping[int, int]
    ) -> None:
        super().__init__()
        self.model = model
        self._taught = (teacher, old, blocks)  # in a tuple: the teacher is not trained
        self._tail = tail
        self._answer: list[torch.Tensor] = []
        self.apart: torch.Tensor = torch.zeros(())
        """How far the tail's hidden states are from the teacher's, in the square."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            found: torch.Tensor = self.model(inputs)
            return found
        teacher, old, blocks = self._taught
        wanted: dict[int, torch.Tensor] = {}
        parts: list[torch.Tensor] = []

        def keep(index: int, _: torch.Tensor, y: torch.Tensor) -> None:
            wanted[index] = y

        def hold(index: int, _: torch.Tensor, y: torch.Tensor) -> None:
            if index in self._tail:
                parts.append((index + 1) * _relative(y, wanted[self._tail[index]]))

        with torch.no_grad(), old.seen(keep):
            self._answer = _tensors(teacher(inputs))
        with blocks.seen(hold):
            outputs: torch.Tensor = self.model(inputs)
        self.apart = torch.stack(parts).sum() / sum(index + 1 for index in self._tail)
        return outputs

    def told_apart(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """How far the answers are from the teacher's."""
        found, wanted = _tensors(outputs)[0], self._answer[0]
        if targets.is_floating_point() or found.dim() != targets.dim() + 1:
            return _relative(found, wanted)
        # As cross-entropy has the classes, or last, as language models do.
        axis = 1 if found.shape[2:] == targets.shape[1:] and found.shape[0] == targets.shape[0] else -1
        here, there = (functional.log_softmax(one / _TEMPERATURE, axis) for one in (found, wanted))
        rows = found.numel() // found.shape[axis]
        return functional.kl_div(here, there, reduction="sum", log_target=True) * _TEMPERATURE**2 / rows


def cure(
    model: nn.Module,
    blocks: Blocks,
    teacher: nn.Module,
    old: Blocks,
    stays: Mapping[int, int],
    loader: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    loss: Loss,
    distil: bool,
    progress: Progress | None = None,
) -> FineTuned:
    """Train a folded model, in place.

    Args:
        model: folded.
        blocks: its own.
        teacher: the model it was.
        old: that one's blocks.
        stays: index of a block now -> index of it in the teacher.
        loader: (inputs, targets) batches, every time it is iterated over.
        epochs: at least 1.
        lr: of the first epoch.
        loss: of (outputs, targets).
        distil: learn from the teacher at all.
        progress: told epoch (from 1), epochs and mean loss.

    Raises:
        CallerError: as `train`.
    """
    if not distil:
        return train(model, loader, epochs=epochs, lr=lr, loss=loss, progress=progress)
    tail = max(1, len(stays) // _TAIL)
    pupil = _Pupil(model, blocks, teacher, old, dict(sorted(stays.items())[-tail:]))

    def whole(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        told = loss(outputs, targets)
        return (told + pupil.told_apart(outputs, targets)) / 2 + pupil.apart

    with in_eval_mode(teacher):
        tuned = train(pupil, loader, epochs=epochs, lr=lr, loss=whole, progress=progress)
    return FineTuned(model.eval(), tuned.losses)


def _tensors(outputs: object) -> list[torch.Tensor]:
    return [one for one in tree_leaves(outputs) if isinstance(one, torch.Tensor) and one.is_floating_point()]


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=_LEAST)
