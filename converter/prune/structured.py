"""`prune`: a dense model in, a narrower one out, and what became of each layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.training import Batch, Loss, copy_model, recalibrate_batch_norm, train
from ferryman.converter.prune.budget import Choice, Cost, OverBudgetError, choose, count, rank, unit_savings
from ferryman.converter.prune.criteria import Context
from ferryman.converter.prune.erase import Branch, erase, find_branches, has, with_branches
from ferryman.converter.prune.graph import Graph, find_groups, positional, run
from ferryman.converter.prune.heads import open_attention
from ferryman.converter.prune.latency import Latency, checked
from ferryman.converter.prune.oto import can_be_zero, half_space_train
from ferryman.converter.prune.recipe import Pruning, check_pruning, parse_pruning
from ferryman.converter.prune.reconstruct import reconstruct
from ferryman.converter.prune.registry import find_criterion
from ferryman.converter.prune.units import CONVS, Group, Removed, align, remove, silence
from ferryman.runtime.contracts.errors import CallerError, FerrymanError, ModelError

_NAMED, _SAID = 4, 120
_LEAST = 10
"""A tenth of each width stays."""
_LAYERS = (*CONVS, nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_WIDTHS: tuple[tuple[type, str, str], ...] = (
    (nn.modules.conv._ConvNd, "in_channels", "out_channels"),  # noqa: SLF001  # the base of all convolutions
    (nn.Linear, "in_features", "out_features"),
    (nn.Embedding, "num_embeddings", "embedding_dim"),
    (nn.RNNBase, "input_size", "hidden_size"),
    (nn.MultiheadAttention, "embed_dim", "embed_dim"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cut(Decision):
    """What became of one layer, with its widths."""

    before: tuple[int, int]
    """Inputs and outputs of the dense layer."""
    after: tuple[int, int]
    """0 and 0: it is gone."""


@dataclass(frozen=True)
class Pruned:
    """A narrower model."""

    model: nn.Module
    """In eval mode."""
    pruning: Pruning
    decisions: tuple[Cut, ...]
    """Layer by layer, in the order they are registered."""
    before: Cost
    after: Cost
    losses: tuple[float, ...] = ()
    """Mean loss of each epoch of training."""


def prune(
    model: nn.Module,
    pruning: str | Pruning,
    *,
    example: Example,
    loader: Iterable[Batch] | None = None,
    epochs: int = 4,
    lr: float = 1e-3,
    latency: Latency | None = None,
    loss: Loss = functional.cross_entropy,
    distil: bool = True,
    bits: int | None = None,
    progress: Say = lambda _: None,
) -> Pruned:
    """Take channels, heads and branches out of a trained model; it is not changed.

    Which layers go together is told by the dependency graph (see `graph`), what units are worth by a criterion, and how
    many go by the budget (see `budget`). What is gone is made good in the weights of the layers that read what is left
    (see `reconstruct`), unless the recipe says plain. With a loader the narrower model is trained for a while, against
    the dense model's answers as well; with `oto` training itself brings the units to zero, so that nothing changes when
    they go (see `oto`).

    Args:
        model: dense and trained.
        pruning: the recipe or its name, such as `pruned-50flops`.
        example: positional inputs of one call.
        loader: (inputs, targets) batches, every time it is iterated over.
        epochs: of training; 0: none, and the loader is for the criterion and the statistics of batch norms alone.
        lr: learning rate of the first epoch.
        latency: seconds of a model, for budgets in latency (see `latency`).
        loss: of (outputs, targets).
        distil: train against the dense model's answers as well, where its outputs are logits [N, classes].
        bits: of weights to which `convert` will round the narrower model, without training: that is made good as well.
        progress: told what begins.

    Raises:
        CallerError: no such recipe, a budget that cannot be reached, no loader or latency where one is needed, or one
            of the arguments is not as said.
        ModelError: the model's layers cannot be followed, or nothing of it can be pruned.
    """
    recipe = check_pruning(parse_pruning(pruning) if isinstance(pruning, str) else pruning)
    inputs = positional(example)
    _check(recipe, loader, latency, bits)
    dense = copy_model(model).eval()
    opened = open_attention(dense)
    expected = [one.shape for one in run(dense, inputs)]
    progress("find what goes together")
    graph = find_groups(dense, inputs)
    work = _Work(dense, inputs, recipe, find_branches(dense, inputs) if recipe.erase else [], latency)
    limited = _limit(graph, dense, work.branches)
    if recipe.oto:
        limited = tuple(group for group in limited if can_be_zero(group))
    work.groups = _settle(work, limited, expected)
    if not work.groups:
        why = "; ".join(f"{path or 'the model'}: {one}" for path, one in graph.refused.items())
        raise ModelError(f"nothing of the model can be pruned: {why or 'it has no layers whose outputs others read'}")
    try:
        removed = work.decide(loader, loss, progress)
    except OverBudgetError as error:
        kept = "; ".join(f"{path or 'the model'}: {why[:_SAID]}" for path, why in list(graph.refused.items())[:_NAMED])
        raise CallerError(f"{error}" + (f"; kept whole are {kept}" if kept else "")) from error
    losses: tuple[float, ...] = ()
    if recipe.oto and loader is not None:
        tuned = half_space_train(
            work.dense, work.groups, removed, loader, epochs=epochs, lr=lr, loss=loss, progress=_epochs(progress)
        )
        work.dense, losses = tuned.model, tuned.losses
    elif not recipe.plain:
        progress("make good what is gone")
        reconstruct(work.dense, work.groups, removed, inputs, bits=bits)
    made = work.build(removed)
    if loader is not None and not recipe.oto and not epochs:
        recalibrate_batch_norm(made, loader)
    elif loader is not None and not recipe.oto:
        progress(f"train for {epochs} epochs")
        teacher = model if distil and len(expected) == 1 and len(expected[0]) == 2 else None  # noqa: PLR2004  # logits
        tuned = train(made, loader, epochs=epochs, lr=lr, loss=loss, progress=_epochs(progress), teacher=teacher)
        made, losses = tuned.model, tuned.losses
    decisions = _decisions(model, dense, made, graph, work, removed, opened)
    return Pruned(made.eval(), recipe, decisions, work.before, work.cost(made), losses)


def _check(recipe: Pruning, loader: Iterable[Batch] | None, latency: Latency | None, bits: int | None) -> None:
    if bits not in (None, 8, 4, 2) or (bits and (recipe.plain or recipe.oto)):
        raise CallerError(
            f"bits are 8, 4 or 2, and only where something is made good (not plain, not oto); found {bits}"
        )
    if recipe.needs_data and loader is None:
        raise CallerError(
            f"form {recipe.name} looks at data: give a loader, or leave out {'oto' if recipe.oto else recipe.criterion}"
        )
    if (recipe.unit == "latency") != (latency is not None):
        raise CallerError(
            f"form {recipe.name} needs latency, a function from a module to seconds such as measured_latency(...)"
            if latency is None
            else f"form {recipe.name} has a budget in {recipe.unit}: latency would not be looked at"
        )


def _epochs(progress: Say) -> Callable[[int, int, float], None]:
    return lambda epoch, epochs, loss: progress(f"epoch {epoch} of {epochs}: loss {loss:.4f}")


class _Work:
    """A dense model, and the models that come of it without some of its units."""

    def __init__(
        self,
        dense: nn.Module,
        inputs: tuple[Any, ...],
        recipe: Pruning,
        branches: list[Branch],
        latency: Latency | None,
    ) -> None:
        self.dense, self.inputs, self.recipe, self.branches = dense, inputs, recipe, branches
        self.latency = None if latency is None else checked(latency)
        self.groups: tuple[Group, ...] = ()

    def build(self, removed: Removed, groups: Sequence[Group] | None = None) -> nn.Module:
        """The model without some units; groups all of which go take their branches along."""
        groups = self.groups if groups is None else groups
        made = copy.deepcopy(self.dense)
        whole = {number for number, units in removed.items() if len(units) == groups[number].count}
        remove(made, groups, {number: units for number, units in removed.items() if number not in whole})
        gone = {path for number in whole for path in groups[number].branches}
        erase(made, [one for one in self.branches if one.last in gone])
        return made

    def cost(self, model: nn.Module) -> Cost:
        """What a model costs."""
        cost = count(model, self.inputs)
        return cost if self.latency is None else replace(cost, seconds=self.latency(model.eval()))

    @cached_property
    def before(self) -> Cost:
        """What the dense model costs; a latency is measured once."""
        return self.cost(self.dense)

    def decide(self, loader: Iterable[Batch] | None, loss: Loss, progress: Say) -> dict[int, frozenset[int]]:
        """The units that go."""
        recipe = self.recipe
        progress(
            f"score {sum(group.count for group in self.groups)} units of {len(self.groups)} groups: {recipe.criterion}"
        )
        criterion = find_criterion(recipe.criterion)
        context = Context(self.dense, self.groups, self.inputs, loader, loss)
        try:
            scores = criterion.score(context)
        except FerrymanError:
            raise
        except Exception as error:  # of the loader, the model or the loss
            raise CallerError(
                f"the loader's batches cannot be scored by {recipe.criterion}: {type(error).__name__}: {error}; "
                "inputs and targets must suit the model and the loss"
            ) from error
        savings = unit_savings(self.dense, self.groups, self.inputs, recipe.unit)
        weights = () if criterion.comparable else self._weights(scores)
        choice = rank(self.groups, scores, savings, comparable=criterion.comparable, weights=weights)
        progress(f"choose widths within {recipe.percent} % of the dense model's {recipe.unit}")
        return self._choose(choice, progress)

    def _weights(self, scores: Sequence[torch.Tensor]) -> list[float]:
        """How important groups are whose scores do not compare: how far outputs are without the worse half of each."""
        wanted = torch.cat([one.flatten().double() for one in run(self.dense, self.inputs)])
        found = []
        for number, (group, score) in enumerate(zip(self.groups, scores, strict=True)):
            silent = copy.deepcopy(self.dense)
            half = frozenset(score.argsort()[: max(1, group.count // 2)].tolist())
            silence(silent, self.groups, {number: half})
            outputs = torch.cat([one.flatten().double() for one in run(silent, self.inputs)])
            found.append(float((outputs - wanted).norm() / wanted.norm().clamp(min=1e-12)))
        return found

    def _choose(self, choice: Choice, progress: Say) -> dict[int, frozenset[int]]:
        unit = self.recipe.unit
        whole = _amount(self.before, unit)

        def of(removed: Removed) -> float:
            cost = _amount(self.cost(self.build(removed).eval()), unit)
            progress(f"tried {cost / whole:.1%} of the dense model's {unit}")
            return cost

        return choose(choice, of, whole * self.recipe.percent / 100, f"{self.recipe.name}'s budget")


def _amount(cost: Cost, unit: str) -> float:
    """Of a cost, what a budget in a unit is held against."""
    return float({"flops": cost.macs, "bytes": cost.nbytes, "latency": cost.seconds or 0.0}[unit])


def _limit(graph: Graph, dense: nn.Module, branches: Sequence[Branch]) -> tuple[Group, ...]:
    """Groups with the widths that must stay."""
    groups = tuple(replace(group, least=max(group.least, -(-group.count // _LEAST))) for group in graph.groups)
    return with_branches(dense, groups, branches) if branches else groups


def _settle(work: _Work, groups: tuple[Group, ...], expected: list[torch.Size]) -> tuple[Group, ...]:
    """Align the groups, and see that all can be at their least together; what breaks the model stays out."""
    aligned = tuple(align(group, work.recipe.align) for group in groups)
    every = _narrowest(aligned)
    if _works(work, every, aligned, expected):
        return aligned
    good: dict[int, frozenset[int]] = {}
    for number, group in enumerate(aligned):
        if group.leader is not None:
            continue
        led = [one for one, other in enumerate(aligned) if other.leader == number]
        more = {one: every[one] for one in (number, *led)}
        if _works(work, {**good, **more}, aligned, expected):
            good |= more
    numbers = {old: new for new, old in enumerate(sorted(good))}
    return tuple(
        group if group.leader is None else replace(group, leader=numbers[group.leader])
        for group in (aligned[old] for old in sorted(good))
    )


def _narrowest(groups: Sequence[Group]) -> dict[int, frozenset[int]]:
    """All that can go of each group."""
    done = {
        number: frozenset(range(-(-group.least // group.step) * group.step, group.count))
        for number, group in enumerate(groups)
        if group.leader is None
    }
    for number, group in enumerate(groups):
        if group.leader is not None:
            lost = group.count * len(done[group.leader]) // groups[group.leader].count
            done[number] = frozenset(range(group.count - lost, group.count))
    return done


def _works(work: _Work, removed: Removed, groups: Sequence[Group], expected: list[torch.Size]) -> bool:
    try:
        return [one.shape for one in run(work.build(removed, groups).eval(), work.inputs)] == expected
    except CallerError:
        return False


def _decisions(
    model: nn.Module,
    dense: nn.Module,
    made: nn.Module,
    graph: Graph,
    work: _Work,
    removed: Removed,
    opened: Mapping[str, str],
) -> tuple[Cut, ...]:
    """What became of every layer with weights."""
    where: dict[str, list[int]] = {}
    for number, group in enumerate(work.groups):
        for path in group.layers:
            where.setdefault(path, []).append(number)
    rows = []
    for path, layer in model.named_modules():
        if type(layer) is nn.MultiheadAttention and path in opened:
            inner = [name for name, part in dense.get_submodule(path).named_modules() if isinstance(part, nn.Linear)]
            names = [f"{path}.{name}" for name in inner] or [path]
            rows.append(_row(path, layer, dense, made, _why(names, work, removed, where) or opened[path], names))
        elif isinstance(layer, _LAYERS) and not any(path.startswith(f"{one}.") for one in opened):
            stays = graph.refused.get(path) or ("nothing of it needs to go" if path in where else "no units are known")
            rows.append(_row(path, layer, dense, made, _why([path], work, removed, where) or stays, [path]))
    return tuple(rows)


def _why(paths: Sequence[str], work: _Work, removed: Removed, where: Mapping[str, list[int]]) -> str:
    """What went of some layers; empty: nothing."""
    numbers = dict.fromkeys(one for path in paths for one in where.get(path, []) if removed.get(one))
    return "; ".join(dict.fromkeys(_said(work.groups[one], removed[one], work.recipe) for one in numbers))


def _said(group: Group, gone: frozenset[int], recipe: Pruning) -> str:
    what = {"channels": "channels", "heads": "heads", "head width": "numbers of a head"}[group.kind]
    return f"{len(gone)} of {group.count} {what} by {recipe.criterion}"


def _row(path: str, layer: nn.Module, dense: nn.Module, made: nn.Module, why: str, inner: list[str]) -> Cut:
    """One layer's row; `inner` are the layers that stand for it, the last but one with the width inside attention."""
    before, after = ([_sides(one, name) for name in inner] for one in (dense, made))
    wide = before[0][0], before[max(len(inner) - 2, 0)][1]
    left = after[0][0], after[max(len(inner) - 2, 0)][1]
    narrower = left[0] * left[1] < wide[0] * wide[1]
    gone = not any(outputs for _, outputs in after)
    decision = "erased" if gone else "pruned" if narrower else "replaced" if len(inner) > 1 else "float"
    said = f"its branch is gone: {why}" if gone else why
    return Cut(path, type(layer).__name__, decision, said, wide, left)  # type: ignore[arg-type]  # a Literal


def _sides(model: nn.Module, path: str) -> tuple[int, int]:
    """Inputs and outputs of a layer; 0 and 0 where it is gone."""
    layer = model.get_submodule(path) if has(model, path) else None
    for kind, inputs, outputs in _WIDTHS:
        if isinstance(layer, kind):
            return getattr(layer, inputs), getattr(layer, outputs)
    return 0, 0
