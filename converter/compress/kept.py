"""A fine-tune that a lossy update carries: the largest changes of each tensor alone, trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ferryman.runtime.contracts.errors import CallerError


@contextmanager
def largest_changes(model: nn.Module, base: nn.Module, percent: float) -> Iterator[None]:
    """Take back all but the largest changes of a fine-tune, in place; while it lasts, training moves these alone.

    What a lossy codec leaves out of a dense fine-tune costs accuracy; training on what it sends wins that back
    ("FedZip: A Compression Framework for Communication-Efficient Federated Learning", of which this is the top-z part).

    Args:
        model: the fine-tuned model. Its parameters, not its buffers, are looked at.
        base: the same model as devices have it.
        percent: of each tensor's numbers, to keep: the P of `fedzip-zP-kK`; one number of each tensor at least.

    Raises:
        CallerError: the models' parameters are not alike, or `percent` is none.
    """
    before = dict(base.named_parameters())
    shapes = {name: one.shape for name, one in model.named_parameters()}
    if shapes != {name: one.shape for name, one in before.items()}:
        raise CallerError("the fine-tuned model and its base have other parameters; give the base it was tuned from")
    if not 0 < percent / 100 <= 1:
        raise CallerError(f"percent must be more than 0 and at most 100, got {percent}")
    kept = {name: _largest(one.detach() - before[name].detach(), percent) for name, one in model.named_parameters()}

    def put_back() -> None:
        with torch.no_grad():
            for name, one in model.named_parameters():
                one.copy_(torch.where(kept[name], one, before[name].to(one.device)))

    put_back()
    hooks = [
        one.register_hook(lambda gradient, mask=kept[name]: gradient * mask)  # type: ignore[no-untyped-call]
        for name, one in model.named_parameters()
        if one.requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        put_back()  # weight decay moves what has no gradient


def _largest(change: torch.Tensor, percent: float) -> torch.Tensor:
    moved = change.abs()
    count = max(1, int(percent / 100 * moved.numel()))
    return moved >= moved.flatten().topk(count).values[-1]
