"""`compress`: a dense model in, a compressed one out, and what was done to each layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.quantized import fine_tune_quantized
from ferryman.converter.compress.training import Batch, Progress, first_inputs
from ferryman.converter.quantize.recipe import GRAMMAR, Recipe, is_quantized, parse_recipe
from ferryman.runtime.contracts.errors import CallerError

_ESTIMATOR = "reste"
_LR = {"binary": 1e-2, "quantized": 2e-3}


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
    form: str | Recipe,
    *,
    loader: Iterable[Batch] | None = None,
    epochs: int = 8,
    lr: float | None = None,
    keep: Iterable[str] | None = None,
    estimator: str = _ESTIMATOR,
    rank: int = 0,
    example: Example | None = None,
    distil: bool = True,
    progress: Progress | None = None,
) -> Compressed:
    """Make a trained dense classifier smaller; it is not changed.

    `binary`: convolutions and linear layers get weights and activations of -1 and 1, and a scale per output channel,
    but for the first and the last layer, down-sampling 1x1 and depthwise convolutions (see `binarize`). Signs alone
    lose most of what was learned, so a short fine-tune (see `fine_tune`) wins it back: it needs training data. For
    other losses than cross-entropy call these two yourself.

    Quantized forms (`int8`, `4bit`, `2bit` and their options, as `convert` takes them): the weights of the layers that
    `convert` would round are trained through that rounding, and are rounded in what is returned (see
    `fine_tune_quantized`): converting to the same form finds the same numbers again. Without training data there is
    nothing to do here: `convert` rounds a trained model by itself.

    Args:
        model: dense and trained.
        form: `binary`, a quantized form's name, or the recipe of one.
        loader: (inputs, class numbers) batches, every time it is iterated over.
        epochs: of fine-tuning.
        lr: learning rate of the first epoch; None: 0.01 for `binary`, 0.002 for others.
        keep: patterns of module paths (fnmatch) that stay in float besides the default ones, of `binary`.
        estimator: of the sign's gradient, `reste` or `ste`, of `binary`.
        rank: of BiPFT's low-rank path beside each binary linear layer; 0: none.
        example: positional inputs of one call, by which layers are found whose signs would carry nothing, or that can
            be quantized; None takes the loader's first inputs.
        distil: train against the dense model's answers as well as the classes.
        progress: told epoch (from 1), epochs and mean loss.

    Raises:
        CallerError: unknown form or estimator, no loader, an argument out of range or of another form, or as
            `binarize`, `fine_tune` and `fine_tune_quantized`.
        ModelError: a quantized form is asked for, and the model cannot be captured or has nothing to quantize.
    """
    if isinstance(form, Recipe) or is_quantized(form):
        if keep is not None or rank or estimator != _ESTIMATOR:
            raise CallerError("keep, rank and estimator are for form binary; a Recipe's `layers` keeps layers in float")
        recipe = parse_recipe(form) if isinstance(form, str) else form
        return _quantized(
            model, recipe, loader, epochs, _LR["quantized"] if lr is None else lr, example, progress, distil=distil
        )
    if form != "binary":
        raise CallerError(f"form {form!r} is not known; there are: binary, and {GRAMMAR}")
    if loader is None:
        raise CallerError(f"form {form} needs a loader to fine-tune with: binarizing a trained model alone ruins it")
    lr = _LR["binary"] if lr is None else lr
    example = first_inputs(loader) if example is None else example
    made, decisions = binarize(model, keep=keep, rank=rank, estimator=estimator, example=example)
    teacher = model if distil else None
    tuned = fine_tune(made, loader, epochs=epochs, lr=lr, teacher=teacher, progress=progress)
    return Compressed(model=tuned.model, form=form, decisions=decisions, losses=tuned.losses)


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
    example = first_inputs(loader) if example is None else example
    if example is None:
        raise CallerError(
            "the loader gives no (inputs, targets), or can be iterated over only once; give a list or an example"
        )
    tuned, decisions = fine_tune_quantized(
        model,
        recipe,
        loader,
        example=example,
        epochs=epochs,
        lr=lr,
        teacher=model if distil else None,
        progress=progress,
    )
    return Compressed(model=tuned.model, form=recipe.name, decisions=decisions, losses=tuned.losses)
