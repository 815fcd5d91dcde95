"""Dense model -> binary model, and the training that follows. Which layers, is binary_policy's matter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
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
    without_negative_inputs,
)
from ferryman.converter.compress.estimators import Estimator, make_estimator
from ferryman.converter.compress.training import Batch, FineTuned, Loss, Progress, copy_model, train
from ferryman.runtime.contracts.errors import CallerError

_TRANSPARENT = (nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity, nn.MaxPool2d)
"""What gives no negative outputs for want of negative inputs."""


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
    binary = copy_model(model)
    decisions = decide(binary, tuple(keep or ()), example)
    chosen = [binary.get_submodule(path) for path, decision in decisions.items() if decision.decision == "binary"]
    _swap(binary, {dense: _binary_of(dense, activations, rank, copy.deepcopy(made)) for dense in chosen})
    if activations == "sign":
        decisions |= _swap_relus(binary)
        if example is not None:
            found = without_negative_inputs(binary, example)
            back = {}
            for path in decisions.keys() & found:  # layers that were binary before are not decided on
                back[binary.get_submodule(path)] = copy_model(model.get_submodule(path))
                decisions[path] = replace(decisions[path], decision="float", reason=NO_NEGATIVE_INPUTS)
            _swap(binary, back)
    return binary, tuple(decisions.values())


def fine_tune(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    loss: Loss = functional.cross_entropy,
    progress: Progress | None = None,
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
    layers = [module for module in model.modules() if isinstance(module, BinaryLayer)]

    def schedule(epoch: int, of: int) -> None:
        for layer in layers:
            layer.estimator.schedule(epoch, of)

    def clamp() -> None:
        for layer in layers:
            layer.clamp_latent_()

    return train(
        model,
        loader,
        epochs=epochs,
        lr=lr,
        loss=loss,
        progress=progress,
        teacher=teacher,
        penalty=penalty,
        before_epoch=schedule,
        after_step=clamp,
    )


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
