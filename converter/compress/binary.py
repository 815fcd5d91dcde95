"""Dense model -> binary model, and the training that follows. Which layers, is binary_policy's matter."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_modules import Activations, BinaryConv2d, BinaryLayer, BinaryLinear
from ferryman.converter.compress.binary_policy import (
    NO_NEGATIVE_INPUTS,
    Decision,
    Example,
    decide,
    has_hooks,
    in_eval_mode,
    without_negative_inputs,
)
from ferryman.converter.compress.estimators import Estimator, make_estimator
from ferryman.runtime.contracts.errors import CallerError, FerrymanError

_TRANSPARENT = (nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity, nn.MaxPool2d)
"""What gives no negative outputs for want of negative inputs."""
_NOT_FINITE = "look for NaN and infinite numbers in the loader's batches and the model, or take a smaller lr"
_TEMPERATURE = 4.0
"""Of distillation, softens both distributions (Hinton et al. 2015)."""


def binarize(
    model: nn.Module,
    *,
    keep: Iterable[str] | None = None,
    activations: Activations = "sign",
    rank: int = 0,
    estimator: str | Estimator = "reste",
    example: Example | None = None,
) -> tuple[nn.Module, tuple[Decision, ...]]:
    """Copy a dense model with its Conv2d and Linear layers made binary; the dense weights are the latent ones.

    A ReLU before a binary layer leaves it no negative input, and so no information in the signs. Where nn.Sequential
    shows the order of things, such a ReLU becomes Hardtanh, which keeps signs. Anywhere else only an example can tell:
    with `example`, layers whose inputs are never negative stay in float (to have them binary, move or replace the
    activation function yourself, as Bi-Real Net does).

    Nothing that has hooks is replaced, nor a frozen layer (requires_grad=False): they stay as they are.

    Args:
        model: dense; not changed.
        keep: patterns of module paths (fnmatch) that stay in float, in addition to what the default policy keeps.
        activations: as BinaryConv2d and BinaryLinear take it.
        rank: of BinaryLinear's low-rank path, or as much of it as a layer's size allows.
        estimator: name or instance; each layer gets its own copy.
        example: positional inputs of one call. Tells which layers come first and last (else the order of registration
            does), and where signs carry nothing.

    Returns:
        The binary model, in the mode that `model` is in, and the decisions: on every layer with weights, in order of
        first call with `example`, else of registration; then on every ReLU replaced.

    Raises:
        CallerError: a pattern that matches no layer, a rank below 0, no such estimator, a model that cannot be copied,
            or one that fails with the example.
    """
    if rank < 0:
        raise CallerError(f"rank is 0 or more, found {rank}")
    made = make_estimator(estimator)
    binary = _copy(model)
    decisions = decide(binary, tuple(keep or ()), example)
    chosen = [binary.get_submodule(path) for path, decision in decisions.items() if decision.decision == "binary"]
    _swap(binary, {dense: _binary_of(dense, activations, rank, copy.deepcopy(made)) for dense in chosen})
    if activations == "sign":
        decisions |= _swap_relus(binary)
        if example is not None:
            found = without_negative_inputs(binary, example)
            back = {}
            for path in decisions.keys() & found:  # layers that were binary before are not decided on
                back[binary.get_submodule(path)] = _copy(model.get_submodule(path))
                decisions[path] = replace(decisions[path], decision="float", reason=NO_NEGATIVE_INPUTS)
            _swap(binary, back)
    return binary, tuple(decisions.values())


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CallerError(
            f"the model cannot be copied: {type(error).__name__}: {error}; weights that are computed anew in each call "
            "must become plain ones first (torch.nn.utils.prune.remove, torch.nn.utils.remove_weight_norm)"
        ) from error


@dataclass(frozen=True)
class FineTuned:
    """A trained model, and how training went."""

    model: nn.Module
    """In eval mode."""
    losses: tuple[float, ...]
    """Mean loss of each epoch."""


def fine_tune(
    model: nn.Module,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    epochs: int,
    lr: float,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = functional.cross_entropy,
    progress: Callable[[int, int, float], None] | None = None,
    teacher: nn.Module | None = None,
    penalty: Callable[[nn.Module], torch.Tensor] | None = None,
) -> FineTuned:
    """Train a binary model, in place: Adam, a cosine schedule, estimators scheduled by epoch.

    After each step latent weights go back to +-1.5 and scales above 0. At the end the statistics of batch norms are
    gathered anew over the loader, without dropout: those gathered on the way are of weights whose signs have flipped
    since. The same seed (torch.manual_seed) and loader give the same model. It trains under torch.no_grad() too.

    Args:
        model: with binary layers; trained in place.
        loader: gives (inputs, targets) batches, every time it is iterated over.
        epochs: at least 1.
        lr: learning rate of the first epoch, above 0.
        loss: of (outputs, targets).
        progress: told epoch (from 1), epochs and mean loss.
        teacher: a dense model for the same task, if any: its softened class probabilities count as much as the targets
            (Hinton et al., Distilling the Knowledge in a Neural Network, 2015). Outputs must be logits [N, classes].
            In eval mode meanwhile.
        penalty: added to the loss, for instance a multiple of `mst.tree_distance_loss` over layers.

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
    layers = [module for module in model.modules() if isinstance(module, BinaryLayer)]

    def objective(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outputs = model(inputs)
        value = loss(outputs, targets)
        if teacher is not None:
            value = (value + _distillation(outputs, teacher, inputs)) / 2
        return value if penalty is None else value + penalty(model)

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history: list[float] = []
    with nullcontext() if teacher is None else in_eval_mode(teacher):
        for epoch in range(epochs):
            model.train()
            for layer in layers:
                layer.estimator.schedule(epoch, epochs)
            history.append(_epoch(loader, objective, optimizer, layers))
            _require_finite(model, f"epoch {epoch + 1}")
            schedule.step()
            if progress is not None:
                progress(epoch + 1, epochs, history[-1])
    recalibrate_batch_norm(model, loader)
    _require_finite(model, "gathering statistics")
    return FineTuned(model=model.eval(), losses=tuple(history))


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
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
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    layers: list[BinaryLayer],
) -> float:
    """Train for one epoch; the mean loss."""
    total, count = 0.0, 0
    for number, batch in enumerate(loader, 1):
        inputs, targets = _pair_of(batch, number)
        try:
            loss, size = _step(number, inputs, targets, objective, optimizer), len(inputs)
        except FerrymanError:
            raise
        except Exception as error:
            raise CallerError(
                f"batch {number} cannot be trained on: {type(error).__name__}: {error}; inputs and targets must "
                "suit the model and the loss (a DataLoader with drop_last=True leaves out a small last batch)"
            ) from error
        for layer in layers:
            layer.clamp_latent_()
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


def _pair_of(batch: object, number: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def _binary_of(dense: nn.Module, activations: Activations, rank: int, estimator: Estimator) -> BinaryLayer:
    made: BinaryLayer
    if isinstance(dense, nn.Conv2d):
        made = BinaryConv2d(
            dense.in_channels,
            dense.out_channels,
            dense.kernel_size,  # type: ignore[arg-type]  # torch says tuple[int, ...]
            dense.stride,  # type: ignore[arg-type]
            0 if dense.padding == "valid" else dense.padding,  # type: ignore[arg-type]
            dense.dilation,  # type: ignore[arg-type]
            dense.groups,
            dense.bias is not None,
            activations=activations,
            estimator=estimator,
        )
    elif isinstance(dense, nn.Linear):
        made = BinaryLinear(
            dense.in_features,
            dense.out_features,
            dense.bias is not None,
            activations=activations,
            estimator=estimator,
            rank=min(rank, dense.in_features, dense.out_features),
        )
    else:
        raise TypeError(f"{type(dense).__name__} has no binary form")  # binary_policy lets none through
    made.to(dense.weight).load_dense_(dense.weight, dense.bias)
    return made.train(dense.training)


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every (owner, name, child), a child with two names twice."""
    for owner in model.modules():
        for name, child in owner._modules.items():  # noqa: SLF001  # named_children leaves out second names
            if child is not None:
                yield owner, name, child


def _swap(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    for owner, name, child in list(_slots(model)):
        if child in replacements:
            setattr(owner, name, replacements[child])


def _is_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it calls its children one after the other; subclasses may do something else."""
    return type(module).forward is nn.Sequential.forward


def _swap_relus(model: nn.Module) -> dict[str, Decision]:
    """Put Hardtanh for each ReLU that a Sequential calls before a binary layer."""
    inner = {child for owner, _, child in _slots(model) if _is_sequence(owner)}
    decisions = {}
    for path, module in model.named_modules():
        if not _is_sequence(module) or module in inner:
            continue
        relu: tuple[nn.Module, str, str] | None = None
        for owner, name, child_path in list(_called_in_turn(module, path)):
            child = owner.get_submodule(name)
            if type(child) in (nn.ReLU, nn.ReLU6) and not has_hooks(child):
                relu = owner, name, child_path
            elif isinstance(child, BinaryLayer) and relu is not None:
                kind = type(relu[0].get_submodule(relu[1])).__name__
                setattr(relu[0], relu[1], nn.Hardtanh())
                decisions[relu[2]] = Decision(
                    path=relu[2], kind=kind, decision="replaced", reason=f"by Hardtanh, so that {child_path} sees signs"
                )
                relu = None
            elif type(child) not in _TRANSPARENT:
                relu = None
    return decisions


def _called_in_turn(sequence: nn.Sequential, path: str) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, name, path) of what a Sequential calls, those within it included."""
    for name, child in sequence._modules.items():  # noqa: SLF001
        child_path = f"{path}.{name}" if path else name
        if _is_sequence(child):
            yield from _called_in_turn(child, child_path)
        else:
            yield sequence, name, child_path
