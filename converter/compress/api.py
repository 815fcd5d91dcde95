"""`compress`: a dense model in, a compressed one out, and what was done to each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.runtime.contracts.errors import CallerError

FORMS = ("binary",)
"""What `compress` can make; `convert` takes these and fp32."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model, ready for `convert` with the same form."""

    model: nn.Module
    """In eval mode."""
    form: str
    decisions: tuple[Decision, ...]
    """Layer by layer, what was done and why."""
    losses: tuple[float, ...]
    """Mean loss of each epoch of fine-tuning."""


def compress(
    model: nn.Module,
    form: str,
    *,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]] | None = None,
    epochs: int = 8,
    lr: float = 1e-2,
    keep: Iterable[str] | None = None,
    estimator: str = "reste",
    rank: int = 0,
    example: Example | None = None,
    distil: bool = True,
    progress: Callable[[int, int, float], None] | None = None,
) -> Compressed:
    """Make a trained dense classifier smaller; it is not changed.

    `binary`: convolutions and linear layers get weights and activations of -1 and 1, and a scale per output channel,
    but for the first and the last layer, down-sampling 1x1 and depthwise convolutions (see `binarize`). Signs alone
    lose most of what was learned, so a short fine-tune (see `fine_tune`) wins it back: it needs training data. For
    other losses than cross-entropy call these two yourself.

    Args:
        model: dense and trained.
        form: one of FORMS.
        loader: (inputs, class numbers) batches, every time it is iterated over.
        epochs: of fine-tuning.
        lr: learning rate of the first epoch.
        keep: patterns of module paths (fnmatch) that stay in float besides the default ones.
        estimator: of the sign's gradient, `reste` or `ste`.
        rank: of BiPFT's low-rank path beside each binary linear layer; 0: none.
        example: positional inputs of one call, by which layers are found whose signs would carry nothing; None takes
            the loader's first inputs.
        distil: train against the dense model's answers as well as the classes.
        progress: told epoch (from 1), epochs and mean loss.

    Raises:
        CallerError: unknown form or estimator, no loader, an argument out of range, or as `binarize` and `fine_tune`.
    """
    if form not in FORMS:
        raise CallerError(f"form {form!r} is not known; there are: {', '.join(FORMS)}")
    if loader is None:
        raise CallerError(f"form {form} needs a loader to fine-tune with: binarizing a trained model alone ruins it")
    example = example or _first_inputs(loader)
    made, decisions = binarize(model, keep=keep, rank=rank, estimator=estimator, example=example)
    teacher = model if distil else None
    tuned = fine_tune(made, loader, epochs=epochs, lr=lr, teacher=teacher, progress=progress)
    return Compressed(model=tuned.model, form=form, decisions=decisions, losses=tuned.losses)


def _first_inputs(loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Example | None:
    """Those of the first batch, without a trace in the random state; what is wrong with them training will say."""
    if isinstance(loader, Iterator):
        return None
    with torch.random.fork_rng(devices=()):
        batch = next(iter(loader), None)
    is_pair = isinstance(batch, tuple | list) and len(batch) > 0 and isinstance(batch[0], torch.Tensor)
    return (batch[0],) if batch is not None and is_pair else None
