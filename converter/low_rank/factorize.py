"""`factorize`: a dense model in, one of thinner layers out, and what became of each layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.training import Batch, Loss, recalibrate_batch_norm, train
from ferryman.converter.low_rank.attention import OPENED
from ferryman.converter.low_rank.layers import require_finite
from ferryman.converter.low_rank.learned import Trainer, learn_ranks
from ferryman.converter.low_rank.options import Choices, Option
from ferryman.converter.low_rank.recipe import LowRank, check_low_rank, parse_low_rank
from ferryman.converter.low_rank.shapes import Price, Way
from ferryman.converter.low_rank.solve import Picks, Times
from ferryman.converter.low_rank.timing import Timer
from ferryman.converter.low_rank.trp import truncate_while_training
from ferryman.converter.low_rank.work import Say, Work
from ferryman.converter.prune.budget import Cost, OverBudgetError, count
from ferryman.converter.prune.graph import positional, run
from ferryman.converter.prune.latency import Latency, checked
from ferryman.runtime.contracts.errors import CallerError

_NAMED, _SAID = 4, 120
_NO_ERROR = 1e-10
_NOTHING = Price(0, 0)


@dataclass(frozen=True)
class Rank(Decision):
    """What became of one layer."""

    way: Way | None = None
    """Kind of its chain (see `shapes`); None: it stays as it is."""
    ranks: tuple[int, ...] = ()
    before: Price = _NOTHING
    """0 and 0: it was not looked at."""
    after: Price = _NOTHING
    error: float = 0.0
    """What its output lost in the square by decomposition, relative to its own, on the data."""
    seconds: Times | None = None
    """Of its calls, alone: as it was, and as its chain. None: not measured."""


@dataclass(frozen=True)
class Factorized:
    """A model of thinner layers."""

    model: nn.Module
    """In eval mode."""
    recipe: LowRank
    decisions: tuple[Rank, ...]
    """Layer by layer, in the order they are registered."""
    before: Cost
    after: Cost
    losses: tuple[float, ...] = ()
    """Mean loss of each epoch of training."""


def factorize(
    model: nn.Module,
    recipe: str | LowRank,
    *,
    example: Example,
    loader: Iterable[Batch] | None = None,
    epochs: int = 4,
    lr: float = 1e-3,
    latency: Latency | None = None,
    loss: Loss = functional.cross_entropy,
    distil: bool = True,
    timer: Timer | None = None,
    progress: Say = lambda _: None,
) -> Factorized:
    """Put chains of thinner layers in the places of linear layers and convolutions of a trained model.

    Several kinds of chains compete for each layer (see `shapes`), at several ranks. What each costs is counted, what
    the outputs lose by it is measured on the loader's first batches, or on the example; a dynamic program picks. Unless
    it is bytes that are asked for, a layer becomes only what is measured to be faster on an interpreter of this
    machine. With a loader the model is then trained for a while, against the dense model's answers as well. The given
    model is not changed.

    With `learned` half of the epochs go into learning ranks (see `learned`), before they are chosen; with `trp` all
    (see `trp`).

    Args:
        model: dense and trained.
        recipe: the recipe or its name, such as `lowrank-50flops`.
        example: positional inputs of one call.
        loader: (inputs, targets) batches, every time it is iterated over.
        epochs: of training; 0: none, and the loader is for moments and the statistics of batch norms alone.
        lr: learning rate of the first epoch.
        latency: seconds of a model, for budgets in latency (see `ferryman.converter.prune.latency`).
        loss: of (outputs, targets).
        distil: train against the dense model's answers as well, where its outputs are logits [N, classes].
        timer: of layers beside their chains; None: on ExecuTorch, here (see `timing`).
        progress: told what begins.

    Raises:
        CallerError: no such recipe, a budget that cannot be reached, no loader or latency where one is needed, weights
            that are not finite, or one of the arguments is not as said.
        ModelError: nothing of the model can be low-rank.
    """
    recipe = check_low_rank(parse_low_rank(recipe) if isinstance(recipe, str) else recipe)
    inputs = positional(example)
    _check(recipe, loader, latency, epochs)
    require_finite(model)
    work = Work(model, inputs, recipe, loader, None if latency is None else checked(latency), timer, progress)
    teacher = model if distil and [one.dim() for one in run(work.dense, inputs)] == [2] else None
    trainer: Trainer = functools.partial(
        train, loader=[] if loader is None else loader, lr=lr, loss=loss, teacher=teacher,
        progress=lambda epoch, of, value: progress(f"epoch {epoch} of {of}: loss {value:.4f}"),
    )  # fmt: skip
    losses: tuple[float, ...] = ()
    try:
        if recipe.how == "trp":
            targets = work.targets()
            progress(f"train towards the ranks of {len(targets)} layers")
            losses = truncate_while_training(work.dense, targets, functools.partial(trainer, epochs=epochs))
            epochs = 0
        elif recipe.how == "learned":
            progress(f"learn the ranks of {len(work.found.layers)} layers")
            learning = functools.partial(trainer, epochs=-(-epochs // 2))
            work.learned, losses = learn_ranks(work.dense, work.found.layers, learning)
            epochs //= 2
        several = work.choices()
        picks = work.pick(several)
    except OverBudgetError as error:
        kept = "; ".join(f"{path or 'the model'}: {why[:_SAID]}" for path, why in [*work.found.whole.items()][:_NAMED])
        raise CallerError(f"{error}" + (f"; kept whole are {kept}" if kept else "")) from error
    made = work.build(several, picks)
    if loader is not None and epochs:
        progress(f"train for {epochs} epochs")
        tuned = trainer(made, epochs=epochs)
        made, losses = tuned.model, (*losses, *tuned.losses)
    elif loader is not None:
        recalibrate_batch_norm(made, loader)
    before, after = work.before, count(made, inputs)
    if work.latency is not None:
        before = replace(before, seconds=work.latency(work.dense))
        after = replace(after, seconds=work.latency(made.eval()))
    return Factorized(made.eval(), recipe, _decisions(work, several, picks, made), before, after, losses)


def _check(recipe: LowRank, loader: Iterable[Batch] | None, latency: Latency | None, epochs: int) -> None:
    if recipe.needs_data and (loader is None or epochs < 2):  # noqa: PLR2004  # ranks, then weights
        raise CallerError(
            f"form {recipe.name} trains: give a loader and 2 epochs or more, or leave out {recipe.how}; found "
            + ("no loader" if loader is None else f"{epochs} epochs")
        )
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise CallerError(f"epochs is a whole number, 0 or more, found {epochs!r}")
    if (recipe.unit == "latency") != (latency is not None):
        raise CallerError(
            f"form {recipe.name} needs latency, a function from a module to seconds such as measured_latency(...)"
            if latency is None
            else f"form {recipe.name} has a budget in {recipe.unit}: latency would not be looked at"
        )


def _decisions(work: Work, several: Sequence[Choices], picks: Picks, made: nn.Module) -> tuple[Rank, ...]:
    """What became of every layer with weights."""
    rows: dict[str, Rank] = {}
    for each, option in zip(several, picks, strict=True):
        for path in each.layer.paths:
            rows[path] = _row(path, work, each, option)
    for path, why in work.found.whole.items():
        rows[path] = Rank(path, type(work.dense.get_submodule(path)).__name__, "float", why)
    for path, before in work.opened.before.items():
        back = type(made.get_submodule(path)) is nn.MultiheadAttention
        why = "none of its layers changed" if back else OPENED
        rows[path] = Rank(path, type(before).__name__, "float" if back else "replaced", why)
    for path, why in work.opened.whole.items():
        rows[path] = Rank(path, nn.MultiheadAttention.__name__, "float", why)
    order = [path for path, _ in work.dense.named_modules(remove_duplicate=False)]
    return tuple(rows[path] for path in order if path in rows)


def _row(path: str, work: Work, each: Choices, option: Option) -> Rank:
    kind, before = type(each.layer.module).__name__, each.options[0].price
    if option.way is None:
        return Rank(path, kind, "float", _why_whole(work, each), before=before, after=before)
    times = work.solver.times.get((each.layer.path, *option.key))
    said = (
        f"{said_ranks(option)}: {option.price.macs / before.macs:.0%} of the multiplications, "
        f"{option.price.nbytes / before.nbytes:.0%} of the bytes, its output holds {_decibels(option.error)}, "
    )
    said += "not timed: bytes are asked for" if times is None else f"{times[0] / times[1]:.2f} times as fast"
    return Rank(
        path, kind, "low-rank", said, option.way, option.ranks, before, option.price, option.error, times
    )  # fmt: skip


def _why_whole(work: Work, each: Choices) -> str:
    """Why a layer that could change does not."""
    if each.unfit is not None:
        return each.unfit
    if len(each.options) == 1:
        return "no rank costs less than the layer"
    times = {one.key: work.solver.times.get((each.layer.path, *one.key)) for one in each.options[1:]}
    known = {key: one[0] / one[1] for key, one in times.items() if one is not None}
    if not known:
        return "the budget does not ask for it"
    best = max(known, key=lambda key: known[key])
    chosen = next(one for one in each.options if one.way is not None and one.key == best)
    ideal = each.options[0].price.macs / chosen.price.macs
    said = f"{said_ranks(chosen)}, is {known[best]:.2f} times as fast, of {ideal:.2f} by its multiplications"
    if known[best] > 1:
        return f"the budget does not ask for it; the best that was timed, {said}"
    return f"nothing is faster: the best that was timed, {said}"


def said_ranks(option: Option) -> str:
    """An option in words."""
    ranks = " and ".join(map(str, option.ranks))
    return f"{option.way} of rank{'s' if len(option.ranks) > 1 else ''} {ranks}"


def _decibels(error: float) -> str:
    return "all" if error < _NO_ERROR else f"{-10 * math.log10(error):.0f} dB"
