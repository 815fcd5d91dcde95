"""`compress`: a dense model in, a compressed one out, and what was done to each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.binary_modules import BinaryLayer
from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.quantized import fine_tune_quantized
from ferryman.converter.compress.training import Batch, Loss, Progress, first_batch, first_inputs
from ferryman.converter.fold.fold import fold
from ferryman.converter.fold.merge import merge
from ferryman.converter.fold.recipe import FOLDED_GRAMMAR, MERGED, Folding, Merging, is_folded, parse_folding
from ferryman.converter.low_rank.factorize import factorize
from ferryman.converter.low_rank.recipe import LOW_RANK_GRAMMAR, LowRank, is_low_rank, parse_low_rank
from ferryman.converter.nested.network import nest
from ferryman.converter.nested.recipe import NESTED_GRAMMAR, Nesting, is_nested, parse_nesting
from ferryman.converter.prune.latency import Latency
from ferryman.converter.prune.recipe import PRUNED_GRAMMAR, Pruning, is_pruned, parse_pruning
from ferryman.converter.prune.structured import prune
from ferryman.converter.prune.unstructured.recipe import GRAMMAR as SPARSE_GRAMMAR
from ferryman.converter.prune.unstructured.recipe import Sparsity, is_sparse, parse_sparsity
from ferryman.converter.prune.unstructured.sparsify import sparsify
from ferryman.converter.quantize.recipe import GRAMMAR, Recipe, is_quantized, parse_recipe
from ferryman.runtime.contracts.errors import CallerError, ModelError

_ESTIMATOR = "reste"
_BINARY_LR = 1e-2
Asked = Recipe | Sparsity | Pruning | Folding | Merging | LowRank | Nesting
"""What a form's name says, as data."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model, ready for `convert`."""

    model: nn.Module
    """In eval mode."""
    form: str
    """What to convert it as: `sparse` of zeros among weights, `fp32` (or any other) of fewer channels."""
    decisions: tuple[Decision, ...]
    """Layer by layer, what was done and why."""
    losses: tuple[float, ...]
    """Mean loss of each epoch of fine-tuning."""
    variants: Mapping[str, nn.Module] = field(default_factory=dict)
    """Of a nested form: the sub-networks by name, the whole first, which `convert` takes as it takes a model."""


@dataclass(frozen=True)
class _Job:
    """What `compress` was told, whatever the form."""

    model: nn.Module
    loader: Iterable[Batch] | None
    epochs: int
    lr: float
    example: Example | None
    distil: bool
    loss: Loss
    latency: Latency | None
    blocks: str | None
    progress: Progress | None
    stage: Callable[[str], None]

    def training(self) -> dict[str, Any]:
        """What every way of training takes."""
        return {"loader": self.loader, "epochs": self.epochs, "lr": self.lr, "loss": self.loss, "distil": self.distil}


@dataclass(frozen=True)
class _Way:
    """How one family of forms is made."""

    called: str
    is_one: Callable[[str], bool]
    parse: Callable[[str], Asked]
    grammar: str
    work: Callable[[_Job, Any], Compressed]
    lr: float
    takes: frozenset[str] = frozenset()
    """Of `compress`'s arguments, those that are for some forms."""


def compress(
    model: nn.Module,
    form: str | Asked,
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

    Low-rank forms (`lowrank-50flops`, `lowrank-95energy`, `lowrank-30db` and their options): linear layers and
    convolutions become chains of thinner ones where that is measured to be faster (see `factorize`).

    Nested forms (`nested-25-50-100`): hidden units are put in order and trained so that the first of them alone are
    networks as well (see `nest`), one for each level: `convert(compressed.variants, ...)` makes one package of all.

    Args:
        model: dense and trained.
        form: `binary`, the name of another form, or the recipe of one.
        loader: (inputs, targets) batches, every time it is iterated over; targets are class numbers, but with a `loss`
            of your own.
        epochs: of fine-tuning.
        lr: learning rate of the first epoch; None: 0.01 for `binary`, 0.002 for quantized and sparse forms, else 0.001.
        keep: patterns of module paths (fnmatch) that stay in float besides the default ones, of `binary`.
        estimator: of the sign's gradient, `reste` or `ste`, of `binary`.
        rank: of BiPFT's low-rank path beside each binary linear layer; 0: none.
        example: positional inputs of one call, by which layers are found whose signs would carry nothing, or that can
            be quantized; None takes the loader's first inputs.
        distil: train against the dense model's answers as well as the classes.
        loss: of (outputs, targets); binary and quantized forms take cross-entropy alone.
        latency: seconds of a model, for a pruned or low-rank form with a budget in latency: see `latency_on` for a
            device by name, and `measured_latency` for an interpreter of this machine.
        blocks: path of the list of blocks to fold, where a model has several, or of the first block, where a list holds
            several kinds.
        progress: told epoch (from 1), epochs and mean loss.
        stage: told what begins, of pruned, folded and low-rank forms.

    Raises:
        CallerError: unknown form or estimator, no loader, an argument out of range or of another form, or as
            `binarize`, `fine_tune`, `fine_tune_quantized`, `sparsify`, `prune`, `fold`, `merge`, `factorize`,
            and `nest`.
        ModelError: the model cannot be captured, or has nothing of what the form is about; or as those.
    """
    if form != "binary" and (keep is not None or rank or estimator != _ESTIMATOR):
        raise CallerError("keep, rank and estimator are for form binary; a recipe's `layers` keeps layers as they are")
    if loader is not None and not isinstance(loader, Iterable):
        raise CallerError(f"loader gives batches when it is iterated over, found {type(loader).__name__}")
    given = {"loss": loss is not functional.cross_entropy, "latency": latency is not None, "blocks": blocks is not None}
    if form == "binary":
        _check_given(given, frozenset())
        if loader is None:
            raise CallerError("form binary needs a loader to fine-tune with: binarizing a trained model alone ruins it")
        example = first_inputs(loader) if example is None else example
        made, decisions = binarize(model, keep=keep, rank=rank, estimator=estimator, example=example)
        if not any(isinstance(module, BinaryLayer) for module in made.modules()):
            why = "; ".join(sorted({one.reason for one in decisions if one.reason})) or "it has no such layer"
            raise ModelError(
                f"no convolution or linear layer of the model can become binary: {why}; one behind a functional ReLU "
                "can once that is a module, nn.ReLU"
            )
        tuned = fine_tune(
            made, loader,
            epochs=epochs, lr=_BINARY_LR if lr is None else lr, teacher=model if distil else None, progress=progress,
        )  # fmt: skip
        return Compressed(model=tuned.model, form="binary", decisions=decisions, losses=tuned.losses)
    recipe = _recipe(form)
    way = _WAYS[type(recipe)]
    _check_given(given, way.takes)
    if "loss" in way.takes and loader is not None and loss is functional.cross_entropy:
        _check_classes(loader)
    lr = way.lr if lr is None else lr
    return way.work(_Job(model, loader, epochs, lr, example, distil, loss, latency, blocks, progress, stage), recipe)


def _check_given(given: Mapping[str, bool], takes: frozenset[str]) -> None:
    """See that nothing was given that the form has no use for.

    Raises:
        CallerError: something was.
    """
    for argument, is_given in given.items():
        if is_given and argument not in takes:
            names = [way.called for way in _WAYS.values() if argument in way.takes]
            said = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
            raise CallerError(f"{argument} is for {said} forms")


def _recipe(form: str | Asked) -> Asked:
    """What a form's name says.

    Raises:
        CallerError: there is no such form.
    """
    if not isinstance(form, str):
        if type(form) in _WAYS:
            return form
        raise CallerError(f"form is a name or a recipe, found {type(form).__name__}")
    for way in _WAYS.values():
        if way.is_one(form):
            return way.parse(form)
    there = "; ".join(way.grammar for way in _WAYS.values())
    raise CallerError(f"form {form!r} is not known; there are: binary; {there}")


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


def _sparse(job: _Job, recipe: Sparsity) -> Compressed:
    distil = job.distil and job.loader is not None and job.loss is functional.cross_entropy
    training = {**job.training(), "distil": distil}
    made = sparsify(job.model, recipe, **training, example=job.example, progress=job.progress)
    return Compressed(model=made.model, form="sparse", decisions=made.decisions, losses=made.losses)


def _pruned(job: _Job, recipe: Pruning) -> Compressed:
    example = _example(recipe.name, job)
    made = prune(job.model, recipe, example=example, **job.training(), latency=job.latency, progress=job.stage)
    return Compressed(model=made.model, form="fp32", decisions=made.decisions, losses=made.losses)


def _folded(job: _Job, recipe: Folding) -> Compressed:
    example = _example(recipe.name, job)
    made = fold(job.model, recipe, example=example, **job.training(), blocks=job.blocks, progress=job.stage)
    return Compressed(model=made.model, form="fp32", decisions=made.decisions, losses=made.losses)


def _merged(job: _Job, _: Merging) -> Compressed:
    made = merge(job.model, _example(MERGED, job))
    return Compressed(model=made.model, form="fp32", decisions=made.decisions, losses=())


def _low_rank(job: _Job, recipe: LowRank) -> Compressed:
    example = _example(recipe.name, job)
    made = factorize(job.model, recipe, example=example, **job.training(), latency=job.latency, progress=job.stage)
    return Compressed(model=made.model, form="fp32", decisions=made.decisions, losses=made.losses)


def _nested(job: _Job, recipe: Nesting) -> Compressed:
    example = _example(recipe.name, job)
    training = {**job.training(), "distil": job.distil and job.loss is functional.cross_entropy}
    made = nest(job.model, recipe, example=example, **training, progress=job.progress)
    return Compressed(made.model, "fp32", made.decisions, made.losses, made.variants())


def _quantized(job: _Job, recipe: Recipe) -> Compressed:
    if job.loader is None:
        raise CallerError(
            f"form {recipe.name} needs a loader to fine-tune with; without training data convert the model as it is: "
            "converting rounds it"
        )
    tuned, decisions = fine_tune_quantized(
        job.model, recipe, job.loader,
        example=_example(recipe.name, job), epochs=job.epochs, lr=job.lr, teacher=job.model if job.distil else None,
        progress=job.progress,
    )  # fmt: skip
    return Compressed(model=tuned.model, form=recipe.name, decisions=decisions, losses=tuned.losses)


def _example(form: str, job: _Job) -> Example:
    """Inputs of one call.

    Raises:
        CallerError: there are none.
    """
    if job.example is not None:
        return job.example
    if job.loader is None:
        raise CallerError(f"form {form} needs an example, positional inputs of one call, or a loader")
    found = first_inputs(job.loader)
    if found is None:
        raise CallerError(
            "the loader gives no (inputs, targets), or can be iterated over only once; give a list or an example"
        )
    return found


_LOSS = frozenset({"loss"})
_WAYS: dict[type, _Way] = {
    Recipe: _Way("quantized", is_quantized, parse_recipe, GRAMMAR, _quantized, 2e-3),
    Sparsity: _Way("sparse", is_sparse, parse_sparsity, SPARSE_GRAMMAR, _sparse, 2e-3, _LOSS),
    Pruning: _Way("pruned", is_pruned, parse_pruning, PRUNED_GRAMMAR, _pruned, 1e-3, _LOSS | {"latency"}),
    Folding: _Way("folded", is_folded, parse_folding, FOLDED_GRAMMAR, _folded, 1e-3, _LOSS | {"blocks"}),
    Merging: _Way("merged", MERGED.__eq__, lambda _: Merging(), MERGED, _merged, 0.0),
    LowRank: _Way("low-rank", is_low_rank, parse_low_rank, LOW_RANK_GRAMMAR, _low_rank, 1e-3, _LOSS | {"latency"}),
    Nesting: _Way("nested", is_nested, parse_nesting, NESTED_GRAMMAR, _nested, 1e-3, _LOSS),
}
