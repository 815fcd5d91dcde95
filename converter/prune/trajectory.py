"""What units are worth by what becomes of later features without them, for transformers that are not trained again.

Khaki and Plataniotis 2024, "The Need for Speed: Pruning Transformers with One Recipe" (OPTIN): a unit's trajectory is
how far all later intermediate features, and the outputs, are from the dense model's when the unit is masked, over a
batch of calibration. Heads are masked one by one. Of neurons, of which there are many and each changes little, the same
distance is taken to first order: the squared length of the features' derivative by a unit's gate, for all units at once
from a few random projections of the features (Hutchinson).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ferryman.converter.compress.binary_policy import in_eval_mode
from ferryman.converter.prune.criteria import Context, gates_of, readers
from ferryman.converter.prune.units import MIXING_NORMS, Group, silence_unit, weight_of

_PROBES = 24
_BATCHES = 2
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001  # the base of all batch norms


class Trajectory:
    """How far later features are from the dense model's without a unit, squared, of their own length."""

    name, needs_data, comparable = "trajectory", True, True

    def score(self, context: Context) -> list[torch.Tensor]:
        """As the protocol says; targets are not looked at."""
        inputs = [batch for batch, _ in islice(context.batches(), _BATCHES)]
        with _features(context.model) as features, in_eval_mode(context.model):
            found: list[torch.Tensor] = []
            probed = self._probe(context, inputs, features)
            for group, estimate in zip(context.groups, probed, strict=True):
                masked = group.kind == "heads"
                found.append(self._mask(context.model, group, inputs, features) if masked else estimate)
        return found

    @staticmethod
    @torch.no_grad()
    def _mask(model: nn.Module, group: Group, inputs: list[torch.Tensor], features: list[torch.Tensor]) -> torch.Tensor:
        """Mask each unit in turn."""
        total = torch.zeros(group.count)
        for batch in inputs:
            dense = _run(model, batch, features)
            for unit in range(group.count):
                with silence_unit(model, group, unit):
                    total[unit] += sum(
                        float((one - other).square().sum() / other.square().sum().clamp(min=1e-12))
                        for one, other in zip(_run(model, batch, features), dense, strict=True)
                    )
        return total / len(inputs)

    @staticmethod
    def _probe(context: Context, inputs: list[torch.Tensor], features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The squared length of the features' derivative by each gate, from random projections."""
        model, generator = context.model, torch.Generator().manual_seed(0)
        totals = [torch.zeros(group.count) for group in context.groups]
        weights = list(
            {id(weight_of(layer)): weight_of(layer) for g in context.groups for _, layer in readers(model, g)}.values()
        )
        flags = [weight.requires_grad for weight in weights]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            for batch in inputs:
                with torch.enable_grad():
                    found = _run(model, batch, features)
                    lengths = [one.detach().norm().clamp(min=1e-6) for one in found]
                    for probe in range(_PROBES):
                        projected = sum(
                            (one * torch.randn(one.shape, generator=generator)).sum() / length
                            for one, length in zip(found, lengths, strict=True)
                        )
                        gradients = torch.autograd.grad(
                            projected,
                            weights,
                            allow_unused=True,
                            retain_graph=probe < _PROBES - 1,
                        )
                        by = {id(w): g for w, g in zip(weights, gradients, strict=True) if g is not None}
                        for number, group in enumerate(context.groups):
                            totals[number] += gates_of(model, group, by).square()
        finally:
            for weight, flag in zip(weights, flags, strict=True):
                weight.requires_grad_(flag)
        return [total / (_PROBES * len(inputs)) for total in totals]


def _run(model: nn.Module, batch: torch.Tensor, features: list[torch.Tensor]) -> list[torch.Tensor]:
    """Intermediate features and outputs of one batch."""
    features.clear()
    outputs = tree_leaves(model(batch))
    return [*features, *(one for one in outputs if isinstance(one, torch.Tensor) and one.is_floating_point())]


@contextmanager
def _features(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What layer norms give, each of which reads the stream; of a model without any, what batch norms give."""
    held: list[torch.Tensor] = []
    kinds: Any = MIXING_NORMS if any(isinstance(part, MIXING_NORMS) for part in model.modules()) else _BATCH_NORMS
    hooks = [
        part.register_forward_hook(lambda _, __, out: held.append(out))
        for part in model.modules()
        if isinstance(part, kinds)
    ]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()
