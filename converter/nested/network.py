"""`nest`: a trained network in, one whose hidden units stand in order out, and its sub-networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from ferryman.converter.capture import Captured, capture
from ferryman.converter.compress.binary_policy import Decision, Example, in_eval_mode
from ferryman.converter.compress.training import Batch, Loss, Progress, copy_model, train
from ferryman.converter.fold.merge import fold_norms
from ferryman.converter.functional import functional_module
from ferryman.converter.nested.axes import Axis, find_axes, name_of, parameters
from ferryman.converter.nested.parts import Held, take_parts
from ferryman.converter.nested.recipe import Nesting, check_nesting, parse_nesting
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError

_ALIGN = 8
_SAME = 1e-3
"""Of the largest output: sums in another order differ by less."""
Levels = int | Mapping[str, int]
"""Percent of every axis' units, or of each by its name."""


@dataclass(frozen=True)
class Nested:
    """A network, and those within it. Sub-networks hold the same weights: parts of its own."""

    model: nn.Module
    """The whole, in eval mode."""
    nesting: Nesting
    bounds: Mapping[str, tuple[int, ...]]
    """By axis, named after the layer that reads it: 0, then how many units each level has."""
    decisions: tuple[Decision, ...]
    """Layer by layer, what was done."""
    losses: tuple[float, ...]
    """Mean loss of each epoch of training, over all levels."""
    _captured: Captured
    _held: Held = field(default_factory=dict)

    def variant(self, levels: Levels) -> nn.Module:
        """A sub-network.

        Args:
            levels: of all axes, or axis by axis (Mix'n'Match); an axis that is not named is whole.

        Returns:
            A module for the example's shapes, in eval mode, that computes every axis in parts.

        Raises:
            CallerError: there is no such level or axis.
        """
        by_axis = levels if isinstance(levels, Mapping) else dict.fromkeys(self.bounds, levels)
        if unknown := sorted(set(by_axis) - set(self.bounds)):
            raise CallerError(f"there is no axis {unknown[0]!r}; there are: {', '.join(self.bounds)}")
        for level in by_axis.values():
            if level not in self.nesting.levels:
                raise CallerError(f"level {level!r} is none of {', '.join(map(str, self.nesting.levels))}")
        module = functional_module(self._captured.program)
        axes = [axis for axis in find_axes(module).values() if isinstance(axis, Axis) and axis.name in self.bounds]
        taken = {name: self.nesting.levels.index(by_axis.get(name, self.nesting.levels[-1])) for name in self.bounds}
        cut = {name: _distinct(self.bounds[name][: at + 2]) for name, at in taken.items()}
        take_parts(module, axes, cut, self._held)
        return GraphModule(module, module.graph, type(self.model).__name__).eval()  # exported modules refuse `eval`

    def axes(self) -> list[Axis]:
        """Of a module of the captured program made anew."""
        found = find_axes(functional_module(self._captured.program)).values()
        return [axis for axis in found if isinstance(axis, Axis) and axis.name in self.bounds]

    def variants(self) -> dict[str, nn.Module]:
        """The sub-network of each level, by its percent; the whole first, which a device takes unless it is told."""
        return {str(level): self.variant(level) for level in reversed(self.nesting.levels)}


def nest(
    model: nn.Module,
    nesting: str | Nesting,
    *,
    example: Example,
    loader: Iterable[Batch] | None = None,
    epochs: int = 8,
    lr: float = 1e-3,
    loss: Loss = functional.cross_entropy,
    distil: bool = True,
    progress: Progress | None = None,
) -> Nested:
    """Put hidden units in order, the ones that carry most first, and train so that the first alone do; a copy is made.

    Every step trains one level of all axes, drawn at random (MatFormer), or with `ordered` any share of them (nested
    dropout, Rippel et al. 2014); levels between axes can then be mixed without training. Batch norms keep the
    statistics that they have: levels would want different ones, and the weights that they are folded into are shared.
    Without a loader the order alone is made: the whole network answers as before, and small ones lose more.

    Args:
        model: trained, or to be trained here from where it stands.
        nesting: its name, or the recipe.
        example: positional inputs of one call; sub-networks take its shapes.
        loader: (inputs, targets) batches, every time it is iterated over.
        epochs: of training.
        lr: learning rate of the first epoch.
        loss: of (outputs, targets).
        distil: train against the whole network's answers as well, as it was given.
        progress: told epoch (from 1), epochs and mean loss.

    Raises:
        CallerError: no such form, or as `train`.
        ModelError: the model cannot be captured, has no hidden axis, or one whose layer training cannot reach.
    """
    nesting = check_nesting(parse_nesting(nesting) if isinstance(nesting, str) else nesting)
    own = copy_model(model).eval()
    args = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    found = _axes(own, args)
    axes = {axis.name: axis for axis in found.values() if isinstance(axis, Axis)}
    bounds = {name: _bounds(axis.width, nesting) for name, axis in axes.items()}
    if not any(len(_distinct(one)) > 2 for one in bounds.values()):  # noqa: PLR2004  # from 0 to all
        raise ModelError(f"{type(model).__name__} has no hidden units to nest: {_reasons(found)}")
    _order(own, axes.values(), args)
    _check_same(model, own, args, "in order")
    losses: tuple[float, ...] = ()
    if loader is not None:
        with _drawn(own, bounds, nesting), _fixed_statistics(own) as fix:
            losses = train(
                own, loader,
                epochs=epochs, lr=lr, loss=loss, progress=progress, teacher=copy_model(model) if distil else None,
                before_epoch=fix,
            ).losses  # fmt: skip
    captured = _without_norms(own, args, set(bounds))
    made = Nested(own, nesting, bounds, tuple(_decisions(own, found, bounds)), losses, captured)
    _check_same(own, made.variant(nesting.levels[-1]), args, "in parts")
    return made


def _without_norms(model: nn.Module, args: tuple[Any, ...], names: set[str]) -> Captured:
    """The program with batch norms within the layers before them: a sum of parts stands between the two later.

    Where an axis would be lost by that, the program as it is.
    """
    captured = capture(make_source(model, args))
    plain = capture(make_source(fold_norms(captured.program), args))
    found = find_axes(functional_module(plain.program)).values()
    return plain if names <= {one.name for one in found if isinstance(one, Axis)} else captured


def _check_same(model: nn.Module, made: nn.Module, args: tuple[Any, ...], what: str) -> None:
    """See that a network still answers what it did.

    Raises:
        ModelError: it does not, so what was found of it is wrong.
    """
    with torch.no_grad(), in_eval_mode(model):
        expected, found = (tree_leaves(one(*copy.deepcopy(args))) for one in (model, made))
    for one, other in zip(expected, found, strict=True):
        finite = one.double()[one.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        if not torch.allclose(one, other, rtol=0.0, atol=_SAME * max(scale, 1e-6), equal_nan=True):
            raise ModelError(
                f"{type(model).__name__} with its hidden units {what} answers something else than before: some of them "
                "are used in a way that was not seen, or the model keeps state; leave it whole"
            )


def _axes(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Axis | str]:
    return find_axes(functional_module(capture(make_source(model, args)).program))


def _reasons(found: Mapping[str, Axis | str]) -> str:
    said = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    return "; ".join(said[:4]) or "no convolution or linear layer"


def _bounds(width: int, nesting: Nesting) -> tuple[int, ...]:
    step = nesting.align or (_ALIGN if width % _ALIGN == 0 else 1)
    ends = [min(width, max(1, round(width * level / 100 / step)) * step) for level in nesting.levels[:-1]]
    return (0, *ends, width)


def _distinct(bounds: Iterable[int]) -> tuple[int, ...]:
    """Levels that are one width are one."""
    return tuple(dict.fromkeys(bounds))


# The order.


class _Watch(Interpreter):
    """Runs a program and keeps what some nodes are given."""

    def __init__(self, module: GraphModule, nodes: Iterable[Node]) -> None:
        super().__init__(module)
        self._nodes = set(nodes)
        self.seen: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:  # noqa: ANN401  # torch's own
        result = super().run_node(n)
        if n in self._nodes:
            self.seen[n] = result
        return result


@torch.no_grad()
def _order(model: nn.Module, axes: Iterable[Axis], args: tuple[Any, ...]) -> None:
    """Permute units, those first that add most to what the reading layer gives: E[h^2] |w|^2."""
    several = list(axes)
    if not several:
        return
    module = several[0].reader.graph.owning_module
    assert module is not None  # noqa: S101  # a captured program's
    watch = _Watch(module, [_input(axis) for axis in several])
    watch.run(*args, enable_io_processing=True)
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for axis in several:
        given = watch.seen[_input(axis)]
        image = axis.reader.args[1].meta["val"].dim() > 2  # type: ignore[union-attr]  # noqa: PLR2004
        energy = given.float().square().movedim(1 if image else -1, 0).flatten(1).mean(1)
        weight = tensors[str(axis.reader.args[1].target)]  # type: ignore[union-attr]
        score = energy * weight.float().square().transpose(0, 1).flatten(1).sum(1)
        order = score.argsort(descending=True, stable=True)
        for owned in parameters(axis).values():
            for node, dim in owned:
                tensor = tensors[str(node.target)]
                tensor.copy_(tensor.index_select(dim, order))


def _input(axis: Axis) -> Node:
    node = axis.reader.args[0]
    assert isinstance(node, Node)  # noqa: S101  # `find_axes` looked
    return node


# Training.


Ends = Callable[[str], int]
"""Axis -> how many of its units are computed."""


@contextmanager
def masked(model: nn.Module, ends: Mapping[str, int] | Ends, names: Iterable[str] = ()) -> Iterator[None]:
    """Within it the model computes with the first units of its axes alone; the others are zero where they are read.

    Args:
        model: whose modules the axes are named after.
        ends: how many, by axis; or a function that says so at each call.
        names: of the axes, where it is a function.

    Raises:
        ModelError: an axis is read by something else than a layer that is a module.
    """
    modules = dict(model.named_modules())
    of = ends.__getitem__ if isinstance(ends, Mapping) else ends

    def mask(name: str, spatial: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
        def before(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            width = given[0].shape[-1 - spatial]
            keep = (torch.arange(width, device=given[0].device) < of(name)).reshape(-1, *[1] * spatial)
            return (given[0] * keep, *given[1:])

        return before

    handles = []
    try:
        for name in ends if isinstance(ends, Mapping) else names:
            layer = modules.get(name)
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                raise ModelError(
                    f"{type(model).__name__}: {name} reads hidden units and is no nn.Linear or nn.Conv2d of its own, "
                    "so it cannot be tried at several widths; make it one"
                )
            handles.append(layer.register_forward_pre_hook(mask(name, 0 if isinstance(layer, nn.Linear) else 2)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _drawn(model: nn.Module, bounds: Mapping[str, tuple[int, ...]], nesting: Nesting) -> Iterator[None]:
    """Every call of the model computes a level, or a share, of all axes, drawn anew.

    Raises:
        ModelError: as `masked`.
    """
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    share, level = [1.0], [len(nesting.levels)]

    def draw(*_: object) -> None:
        share[0] = 1.0 - float(torch.rand((), generator=generator))
        level[0] = 1 + int(torch.randint(len(nesting.levels), (), generator=generator))

    def end(name: str) -> int:
        return max(1, round(share[0] * bounds[name][-1])) if nesting.ordered else bounds[name][level[0]]

    handle = model.register_forward_pre_hook(draw)
    try:
        with masked(model, end, bounds):
            yield
    finally:
        handle.remove()


@contextmanager
def _fixed_statistics(model: nn.Module) -> Iterator[Callable[[int, int], None]]:
    """Batch norms keep their statistics while the model trains; gives what to call when it is put in training mode."""
    norms = [
        part
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats  # noqa: SLF001
    ]

    def fix(*_: int) -> None:
        for norm in norms:
            norm.eval()

    try:
        for norm in norms:
            norm.track_running_stats = False  # nothing gathers them anew
        yield fix
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _decisions(
    model: nn.Module, found: Mapping[str, Axis | str], bounds: Mapping[str, tuple[int, ...]]
) -> Iterator[Decision]:
    """Layer by layer, in the program's order."""
    said: dict[str, str] = {}
    for name, axis in found.items():
        if isinstance(axis, Axis):
            widths = "/".join(map(str, _distinct(bounds[name])[1:]))
            for layer in axis.layers:
                role = "reads" if layer is axis.reader else "writes"
                said[name_of(layer)] = f"{role} {widths} hidden units" + ("" if role == "reads" else f" of {name}")
    modules = dict(model.named_modules())
    for name, axis in found.items():
        kind = type(modules[name]).__name__ if name in modules else "call"
        if name in said:
            yield Decision(name, kind, "nested", said[name])
        else:
            yield Decision(name, kind, "float", f"whole: {axis}")
