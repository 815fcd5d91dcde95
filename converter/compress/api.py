"""`compress`: a dense model in, a compressed one out, and what was done to each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.quantized import fine_tune_quantized
from ferryman.converter.compress.training import Batch, Loss, Progress, first_batch, first_inputs
from ferryman.converter.fold.fold import fold
from ferryman.converter.fold.merge import merge
from ferryman.converter.fold.recipe import FOLDED_GRAMMAR, MERGED, Folding, is_folded, parse_folding
from ferryman.converter.prune.latency import Latency
from ferryman.converter.prune.recipe import PRUNED_GRAMMAR, Pruning, is_pruned, parse_pruning
from ferryman.converter.prune.structured import prune
from ferryman.converter.prune.unstructured.recipe import GRAMMAR as SPARSE_GRAMMAR
from ferryman.converter.prune.unstructured.recipe import Sparsity, is_sparse, parse_sparsity
from ferryman.converter.prune.unstructured.sparsify import sparsify
from ferryman.converter.quantize.recipe import GRAMMAR, Recipe, is_quantized, parse_recipe
from ferryman.runtime.contracts.errors import CallerError

_ESTIMATOR = "reste"
_OWN_LOSS = Sparsity | Pruning | Folding
_LR = {"binary": 1e-2, "quantized": 2e-3, "sparse": 2e-3, "pruned": 1e-3, "folded": 1e-3}


@dataclass(frozen=True)
class Compressed:
    """A compressed model, ready for `convert`."""

    model: nn.Module
    """In eval mode."""
    form: str
    """What to convert it as: `sparse` of zeros among weights, `fp32` (or any other) of fewer channels or blocks."""
    decisions: tuple[Decision, ...]
    """Layer by layer, what was done and why."""
    losses: tuple[float, ...]
    """Mean loss of each epoch of fine-tuning."""


def compress(
    model: nn.Module,
    form: str | Recipe | Sparsity | Pruning | Folding,
    *,
    loader: Iterable[Batch] | None = None,
    epochs: int = 8,
    lr: float | None = None,
    keep: Iterable[str] | None = None,
    estimator: str = _ESTIMATOR,
    rank: int = 0,
    example: Example | None = None,
    distil: bool = True,
    loss: Loss = functional.cross_entropy,
    latency: Latency | None = None,
    blocks: str | None = None,
    progress: Progress | None = None,
    stage: Callable[[str], None] = lambda _: None,
) -> Compressed:
    """Make a trained dense model smaller; it is not changed.

    `binary`: convolutions and linear layers get weights and activations of -1 and 1, and a scale per output channel,
    but for the first and the last layer, down-sampling 1x1 and depthwise convolutions (see `binarize`). Signs alone
    lose most of what was learned, so a short fine-tune (see `fine_tune`) wins it back: it needs training data. For
    other losses than cross-entropy call these two yourself.

    Quantized forms (`int8`, `4bit`, `2bit` and their options, as `convert` takes them): the weights of the layers that
    `convert` would round are trained through that rounding, and are rounded in what is returned (see
    `fine_tune_quantized`): converting to the same form finds the same numbers again. Without training data there is
    nothing to do here: `convert` rounds a trained model by itself.

    Sparse forms (`sparse-90`, `sparse-2:4` and their options): weights become zero, gradually while training, or at
    once where there is no data (see `sparsify`). Converting to `sparse` leaves the zeros out; so do `4bit-sparse` and
    others.

    Pruned forms (`pruned-50flops`, `pruned-40bytes`, `pruned-60latency` and their options): channels, heads and
    branches go (see `prune`). What is left is a dense model, to be converted as any other.

    Folded forms (`folded-3`, `folded-2-drop25` and their options): of a transformer's blocks those that matter least
    go, and groups of those that stay share their weights (see `fold`), which every form keeps shared.

    `merged`: layers between which nothing happens become one, and the outputs stay what they were (see `merge`); it
    takes an example and no data.

    Args:
        model: dense and trained.
        form: `binary`, the name of a quantized, sparse, pruned or folded form, or the recipe of one.
        loader: (inputs, targets) batches, every time it is iterated over; targets are class numbers, but with a `loss`
            of your own.
        epochs: of fine-tuning.
        lr: learning rate of the first epoch; None: 0.01 for `binary`, 0.001 for pruned and folded forms, 0.002 for
            others.
        keep: patterns of module paths (fnmatch) that stay in float besides the default ones, of `binary`.
        estimator: of the sign's gradient, `reste` or `ste`, of `binary`.
        rank: of BiPFT's low-rank path beside each binary linear layer; 0: none.
        example: positional inputs of one call, by which layers are found whose signs would carry nothing, or that can
            be quantized; None takes the loader's first inputs.
        distil: train against the dense model's answers as well as the classes.
        loss: of (outputs, targets), of sparse, pruned and folded forms.
        latency: seconds of a model, for a pruned form with a budget in latency: see `latency_on` for a device by name,
            and `measured_latency` for an interpreter of this machine.
        blocks: path of the list of blocks to fold, where a model has several.
        progress: told epoch (from 1), epochs and mean loss.
        stage: told what begins, of pruned and folded forms.

    Raises:
        CallerError: unknown form or estimator, no loader, an argument out of range or of another form, or as
            `binarize`, `fine_tune`, `fine_tune_quantized`, `sparsify`, `prune` and `fold`.
        ModelError: a quantized form is asked for, and the model cannot be captured or has nothing to quantize; or as
            `prune` and `fold`.
    """
    recipe = _recipe(form)
    if form != "binary" and (keep is not None or rank or estimator != _ESTIMATOR):
        raise CallerError("keep, rank and estimator are for form binary; a recipe's `layers` keeps layers as they are")
    _check(recipe, loader, loss, latency, blocks)
    if recipe == MERGED:
        merged = merge(model, _example(MERGED, example, loader))
        return Compressed(model=merged.model, form="fp32", decisions=merged.decisions, losses=())
    if isinstance(recipe, Sparsity):
        lr = _LR["sparse"] if lr is None else lr
        distil = distil and loader is not None and loss is functional.cross_entropy
        sparse = sparsify(
            model, recipe,
            loader=loader, epochs=epochs, lr=lr, loss=loss, distil=distil, example=example, progress=progress,
        )  # fmt: skip
        return Compressed(model=sparse.model, form="sparse", decisions=sparse.decisions, losses=sparse.losses)
    if isinstance(recipe, Pruning):
        lr = _LR["pruned"] if lr is None else lr
        pruned = prune(
            model, recipe, example=_example(recipe.name, example, loader),
            loader=loader, epochs=epochs, lr=lr, loss=loss, distil=distil, latency=latency, progress=stage,
        )  # fmt: skip
        return Compressed(model=pruned.model, form="fp32", decisions=pruned.decisions, losses=pruned.losses)
    if isinstance(recipe, Folding):
        lr = _LR["folded"] if lr is None else lr
        folded = fold(
            model, recipe, example=_example(recipe.name, example, loader), loader=loader, blocks=blocks,
            epochs=epochs, lr=lr, loss=loss, distil=distil, progress=stage,
        )  # fmt: skip
        return Compressed(model=folded.model, form="fp32", decisions=folded.decisions, losses=folded.losses)
    if isinstance(recipe, Recipe):
        return _quantized(
            model, recipe, loader, epochs, _LR["quantized"] if lr is None else lr, example, progress, distil=distil
        )
    if loader is None:
        raise CallerError("form binary needs a loader to fine-tune with: binarizing a trained model alone ruins it")
    lr = _LR["binary"] if lr is None else lr
    example = first_inputs(loader) if example is None else example
    made, decisions = binarize(model, keep=keep, rank=rank, estimator=estimator, example=example)
    teacher = model if distil else None
    tuned = fine_tune(made, loader, epochs=epochs, lr=lr, teacher=teacher, progress=progress)
    return Compressed(model=tuned.model, form="binary", decisions=decisions, losses=tuned.losses)


def _check(
    recipe: Recipe | Sparsity | Pruning | Folding | str | None,
    loader: Iterable[Batch] | None,
    loss: Loss,
    latency: Latency | None,
    blocks: str | None,
) -> None:
    """See that the arguments are the form's.

    Raises:
        CallerError: one is not.
    """
    if not isinstance(recipe, _OWN_LOSS) and loss is not functional.cross_entropy:
        raise CallerError("loss is for sparse, pruned and folded forms")
    if latency is not None and not isinstance(recipe, Pruning):
        raise CallerError("latency is for pruned forms")
    if blocks is not None and not isinstance(recipe, Folding):
        raise CallerError("blocks is for folded forms")
    if loader is not None and not isinstance(loader, Iterable):
        raise CallerError(f"loader gives batches when it is iterated over, found {type(loader).__name__}")
    if isinstance(recipe, _OWN_LOSS) and loader is not None and loss is functional.cross_entropy:
        _check_classes(loader)


def _recipe(
    form: str | Recipe | Sparsity | Pruning | Folding,
) -> Recipe | Sparsity | Pruning | Folding | Literal["merged"] | None:
    """None: binary.

    Raises:
        CallerError: there is no such form.
    """
    if not isinstance(form, str):
        return form
    if form == "binary":
        return None
    if form == MERGED:
        return MERGED
    for is_one, parse in (
        (is_quantized, parse_recipe),
        (is_sparse, parse_sparsity),
        (is_pruned, parse_pruning),
        (is_folded, parse_folding),
    ):
        if is_one(form):
            return parse(form)
    raise CallerError(
        f"form {form!r} is not known; there are: binary; {GRAMMAR}; {SPARSE_GRAMMAR}; {PRUNED_GRAMMAR}; "
        f"{FOLDED_GRAMMAR}"
    )


def _check_classes(loader: Iterable[Batch]) -> None:
    """See that cross-entropy, which nobody asked for, is what the targets are for.

    Raises:
        CallerError: they are numbers to be met.
    """
    batch = first_batch(loader)
    targets = batch[1] if len(batch) > 1 else None
    if isinstance(targets, torch.Tensor) and targets.is_floating_point() and targets.shape[1:].numel() == 1:
        raise CallerError(
            f"targets are {str(targets.dtype).removeprefix('torch.')}{list(targets.shape)}, no class numbers: give the "
            "loss that the model is trained with (loss=)"
        )


def _quantized(
    model: nn.Module,
    recipe: Recipe,
    loader: Iterable[Batch] | None,
    epochs: int,
    lr: float,
    example: Example | None,
    progress: Progress | None,
    *,
    distil: bool,
) -> Compressed:
    if loader is None:
        raise CallerError(
            f"form {recipe.name} needs a loader to fine-tune with; without training data convert the model as it is: "
            "converting rounds it"
        )
    tuned, decisions = fine_tune_quantized(
        model,
        recipe,
        loader,
        example=_example(recipe.name, example, loader),
        epochs=epochs,
        lr=lr,
        teacher=model if distil else None,
        progress=progress,
    )
    return Compressed(model=tuned.model, form=recipe.name, decisions=decisions, losses=tuned.losses)


def _example(form: str, given: Example | None, loader: Iterable[Batch] | None) -> Example:
    """Inputs of one call.

    Raises:
        CallerError: there are none.
    """
    if given is None and loader is None:
        raise CallerError(f"form {form} needs an example, positional inputs of one call, or a loader")
    found = first_inputs(loader) if given is None and loader is not None else given
    if found is None:
        raise CallerError(
            "the loader gives no (inputs, targets), or can be iterated over only once; give a list or an example"
        )
    return found
