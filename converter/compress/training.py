"""The training that follows when layers were replaced or their weights parametrized, whatever they became."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Example, in_eval_mode
from ferryman.runtime.contracts.errors import CallerError, FerrymanError

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of (outputs, targets)."""
Progress = Callable[[int, int, float], None]
"""Told epoch (from 1), epochs and mean loss."""
_NOT_FINITE = "look for NaN and infinite numbers in the loader's batches and the model, or take a smaller lr"
_TEMPERATURE = 4.0
"""Of distillation, softens both distributions (Hinton et al. 2015)."""


def copy_model(model: nn.Module) -> nn.Module:
    """A copy of its own.

    Raises:
        CallerError: it cannot be copied.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own, where the model is a graph
            return copy.deepcopy(model)
    except Exception as error:
        raise CallerError(
            f"the model cannot be copied: {type(error).__name__}: {error}; weights that are computed anew in each call "
            "must become plain ones first (torch.nn.utils.prune.remove, torch.nn.utils.remove_weight_norm)"
        ) from error


def first_batch(loader: Iterable[Batch]) -> Sequence[object]:
    """What it consists of, taken without a trace in the random state; nothing where that cannot be."""
    if isinstance(loader, Iterator):
        return ()
    with torch.random.fork_rng(devices=()):
        batch = next(iter(loader), None)
    return batch if isinstance(batch, tuple | list) else ()


def first_inputs(loader: Iterable[Batch]) -> Example | None:
    """Those of the first batch; what is wrong with them training will say."""
    batch = first_batch(loader)
    return (batch[0],) if batch and isinstance(batch[0], torch.Tensor) else None


@dataclass(frozen=True)
class FineTuned:
    """A trained model, and how training went."""

    model: nn.Module
    """In eval mode."""
    losses: tuple[float, ...]
    """Mean loss of each epoch."""


def train(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    loss: Loss = functional.cross_entropy,
    progress: Progress | None = None,
    teacher: nn.Module | None = None,
    penalty: Callable[[nn.Module], torch.Tensor] | None = None,
    before_epoch: Callable[[int, int], None] = lambda *_: None,
    after_step: Callable[[], None] = lambda: None,
) -> FineTuned:
    """Train a model, in place: Adam and a cosine schedule.

    At the end the statistics of batch norms are gathered anew over the loader, without dropout: those gathered on the
    way are of weights that have moved since, where they are rounded by whole steps. The same seed (torch.manual_seed)
    and loader give the same model. It trains under torch.no_grad() too.

    Args:
        model: trained in place.
        loader: gives (inputs, targets) batches, every time it is iterated over.
        epochs: at least 1.
        lr: learning rate of the first epoch, above 0.
        loss: of (outputs, targets).
        progress: told epoch (from 1), epochs and mean loss.
        teacher: a model for the same task, if any: its softened class probabilities count as much as the targets
            (Hinton et al., Distilling the Knowledge in a Neural Network, 2015). Outputs must be logits [N, classes].
            In eval mode meanwhile.
        penalty: added to the loss.
        before_epoch: called with epoch (from 0) and epochs.
        after_step: called when weights have moved.

    Raises:
        CallerError: epochs or lr out of range, a model without weights to train, a loader that gives nothing, only once
            or something else, a batch that the model or the loss fails with, or a loss or weights that are not finite.
            The model may be partly trained then.
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise CallerError(f"epochs is a whole number, 1 or more, found {epochs!r}")
    if not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise CallerError(f"lr is a finite number above 0, found {lr!r}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise CallerError("the model has no weights to train: it has none, or all are frozen (requires_grad=False)")
    if isinstance(loader, Iterator):
        raise CallerError("the loader can be iterated over only once; give a DataLoader or a list of batches")

    def objective(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outputs = model(inputs)
        value = loss(outputs, targets)
        if not isinstance(value, torch.Tensor) or value.dim() or not value.requires_grad:
            raise CallerError("the loss gives no number that depends on the outputs; it is to be minimized by training")
        if teacher is not None:
            value = (value + _distillation(outputs, teacher, inputs)) / 2
        return value if penalty is None else value + penalty(model)

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history: list[float] = []
    with nullcontext() if teacher is None else in_eval_mode(teacher):
        for epoch in range(epochs):
            model.train()
            before_epoch(epoch, epochs)
            history.append(_epoch(loader, objective, optimizer, after_step))
            _require_finite(model, f"epoch {epoch + 1}")
            schedule.step()
            if progress is not None:
                progress(epoch + 1, epochs, history[-1])
    recalibrate_batch_norm(model, loader)
    _require_finite(model, "gathering statistics")
    return FineTuned(model=model.eval(), losses=tuple(history))


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, loader: Iterable[Batch]) -> None:
    """Gather the running statistics of all batch norms anew: their mean over the loader's batches.

    Args:
        model: left in eval mode.
        loader: gives (inputs, targets) batches; targets are not used.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats  # noqa: SLF001
    ]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: every batch counts the same
        norm.train()
    for inputs, _ in loader if norms else ():
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _epoch(
    loader: Iterable[Batch],
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    after_step: Callable[[], None],
) -> float:
    """Train for one epoch; the mean loss."""
    total, count = 0.0, 0
    for number, batch in enumerate(loader, 1):
        inputs, targets = pair_of(batch, number)
        try:
            loss, size = _step(number, inputs, targets, objective, optimizer), len(inputs)
        except FerrymanError:
            raise
        except Exception as error:
            raise CallerError(
                f"batch {number} cannot be trained on: {type(error).__name__}: {error}; inputs and targets must "
                "suit the model and the loss (a DataLoader with drop_last=True leaves out a small last batch)"
            ) from error
        after_step()
        total, count = total + loss * size, count + size
    if not count:
        raise CallerError("the loader gives no batches")
    return total / count


@torch.enable_grad()
def _step(
    number: int,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> float:
    """Train on one batch; its loss."""
    optimizer.zero_grad()
    value = objective(inputs, targets)
    loss = float(value.detach())
    if not math.isfinite(loss):
        raise CallerError(f"the loss of batch {number} is {loss}; {_NOT_FINITE}")
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def pair_of(batch: object, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs and targets of a batch.

    Raises:
        CallerError: it is something else.
    """
    parts = tuple(batch) if isinstance(batch, tuple | list) else ()
    match parts:
        case (torch.Tensor() as inputs, torch.Tensor() as targets):
            return inputs, targets
    found = f"({', '.join(type(part).__name__ for part in parts)})" if parts else type(batch).__name__
    raise CallerError(f"the loader must give (inputs, targets), two tensors; batch {number} is {found}")


def _require_finite(model: nn.Module, stage: str) -> None:
    """Look at weights and batch norms: a sign makes -1 of NaN, so that the loss may be finite where they are not."""
    values = {name: value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    for name, value in (*model.named_parameters(), *values.items()):
        if not value.isfinite().all():
            raise CallerError(f"after {stage}, {name} is not finite; {_NOT_FINITE}")


def _distillation(outputs: torch.Tensor, teacher: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        wanted = functional.log_softmax(teacher(inputs) / _TEMPERATURE, 1)
    found = functional.log_softmax(outputs / _TEMPERATURE, 1)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * _TEMPERATURE**2
