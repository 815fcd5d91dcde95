"""A captured program -> the same with sparse operators where they are measured to gain, layer by layer why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch.fx import GraphModule, Node

from ferryman.converter.capture import Captured, recapture
from ferryman.converter.functional import functional_module
from ferryman.converter.layer_calls import path_of
from ferryman.converter.quiet import quiet
from ferryman.converter.sparse.layers import PrunedLayer, bridges, find_pruned
from ferryman.converter.sparse.measure import LayerTime, time_layers
from ferryman.converter.sparse.write import put_sparse
from ferryman.converter.sparse_bits import ALL, BITMAP
from ferryman.converter.verify import Interpreter
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.manifest import LayerForm, RuntimeName

if TYPE_CHECKING:  # the toolchains are slow to load
    from ferryman.converter.backends.base import Backend, Lowered

_NEAR = 1.03
"""Of two ways whose times are not farther apart, the smaller one is taken."""
_SLOWER = 1.01
"""A way that takes so many times what the dense program takes is slower; less is what two measurements differ by."""
_ROUNDS = 21
_HELPS = (
    "more zeros would help, or --form 4bit-sparse; where only this runtime or interpreter gains nothing, leave it out "
    "with --to or --interpreter"
)


@dataclass(frozen=True)
class Fitted:
    """A program for one runtime, by what was measured there."""

    program: Captured
    lowered: Lowered
    layers: tuple[LayerForm, ...]
    """What became of each convolution and linear layer."""
    times: tuple[LayerTime, ...]
    """Of those with zeros."""


@dataclass(frozen=True)
class _Way:
    """Layers that become sparse together."""

    chosen: frozenset[PrunedLayer]
    program: Captured
    lowered: Lowered


def lower_sparse(
    captured: Captured,
    runtime: RuntimeName,
    places: Sequence[Interpreter],
    dense: Lowered,
    progress: Callable[[str], None] = lambda _: None,
) -> Fitted:
    """Rewrite a program for one runtime; `eager` stays the original module.

    Each layer with zeros is timed alone, dense and sparse, on the first interpreter. Then the whole program is, on all
    of them, in up to four ways: those layers sparse that are faster alone, or no slower, each with and without the
    depthwise convolutions between them; the fastest is taken, and of those nearly as fast the smallest, as long as it
    is no slower than the dense program on any interpreter.

    Args:
        captured: the program.
        runtime: where it is to run.
        places: the interpreters of that runtime to measure on.
        dense: the program for that runtime as it is.
        progress: told what begins.

    Raises:
        ModelError: no layer has zeros enough, or gains by them, or the whole program is slower without them, or the
            result cannot be captured or lowered.
        RuntimeCrash: the interpreter fell while it was timed.
    """
    from ferryman.converter.backends import BACKENDS  # the toolchains, which are slow to load

    backend = BACKENDS[runtime]
    module = functional_module(captured.program)
    found = find_pruned(captured.source.name, module)
    several = [one for one in found.values() if isinstance(one, PrunedLayer)]
    eligible = [one for one in several if one.eligible]
    times = time_layers(eligible, backend, places[0], progress)
    winners = [one for one in eligible if times[one].speedup > 1]
    near = [one for one in eligible if times[one].speedup * _NEAR > 1]
    if not near:
        best = max(times.values(), key=lambda one: one.speedup)
        raise ModelError(
            f"{captured.source.name} gains nothing without its zeros on {best.interpreter}: of {len(eligible)} layers "
            f"with zeros layer {best.path} does best, {best.speedup:.2f} times as fast as dense "
            f"({best.dense_us:,.0f} us); {_HELPS}"
        )
    sets = {frozenset([*some, *more]) for some in (winners, near) for more in ([], bridges(some, several)) if some}
    ways = []
    for number, chosen in enumerate(sorted(sets, key=len), 1):
        progress(f"lower the program with {len(chosen)} sparse layers, way {number} of {len(sets)}")
        with quiet():
            ways.append(_way(captured, backend, several, chosen))
    way = _best(ways, dense, captured, places, progress)
    taken = {one for one in several if one in way.chosen}
    forms = tuple(
        LayerForm(path=path_of(node), form="fp32", note=one)
        if isinstance(one, str)
        else _describe(one, taken=one in taken, won=one in winners)
        for node, one in found.items()
    )
    measured = tuple(replace(times[one], taken=one in taken) for one in eligible)
    return Fitted(way.program, way.lowered, forms, measured)


def _way(captured: Captured, backend: Backend, several: Sequence[PrunedLayer], chosen: frozenset[PrunedLayer]) -> _Way:
    """The program with these layers sparse, found anew in a module of its own."""
    module: GraphModule = functional_module(captured.program)
    own: dict[Node, PrunedLayer | str] = find_pruned(captured.source.name, module)
    again = [one for one in own.values() if isinstance(one, PrunedLayer)]
    put_sparse(module, [other for one, other in zip(several, again, strict=True) if one in chosen])
    program = recapture(captured, module, "sparse operators")
    return _Way(chosen, program, backend.lower(program))


def _best(
    ways: Sequence[_Way],
    dense: Lowered,
    captured: Captured,
    places: Sequence[Interpreter],
    progress: Callable[[str], None],
) -> _Way:
    """The smallest way of the fastest, each taken where it gains least.

    Raises:
        ModelError: all of them are slower than the dense program on an interpreter.
    """
    found: list[list[tuple[float, str]]] = [[] for _ in ways]
    for place in places:
        progress(f"time the whole program, dense and sparse, on {place.name}")
        dense_s, *times = _seconds([dense, *(way.lowered for way in ways)], captured, place)
        for several, seconds in zip(found, times, strict=True):
            said = f"{seconds * 1e6:,.0f} us a call, and {dense_s * 1e6:,.0f} us with them"
            several.append((seconds / dense_s, f"on {place.name}, though some of its layers are faster: {said}"))
    worst = [max(several) for several in found]
    ratio, said = min(worst)
    if ratio > _SLOWER:
        raise ModelError(f"{captured.source.name} is slower without its zeros {said}; {_HELPS}")
    bound = min(_NEAR * ratio, _SLOWER)
    return min(
        (way for way, (one, _) in zip(ways, worst, strict=True) if one <= bound), key=lambda way: len(way.lowered.data)
    )


def _seconds(several: Sequence[Lowered], captured: Captured, place: Interpreter) -> list[float]:
    """What a call of each takes in its fastest round, which other work on the machine disturbs least."""
    inputs = [tensor.numpy() for tensor in captured.example]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(len(several))]
        for path, lowered in zip(paths, several, strict=True):
            path.write_bytes(lowered.data)
        rounds = time_beside(paths, place.name, [inputs] * len(several), rounds=_ROUNDS, bare=True, python=place.python)
    return [min(seconds) for seconds in rounds]


def _describe(one: PrunedLayer, *, taken: bool, won: bool) -> LayerForm:
    zeros = f"{one.zeros:.1%} zeros"
    if not taken:
        why = "the program is faster with it dense" if won else "measured no faster without its zeros"
        return LayerForm(path=one.path, form="fp32", note=f"{zeros}, {why if one.eligible else 'too few to gain by'}")
    bits = one.places.index_bits
    held = {ALL: "all weights held", BITMAP: "a bitmap"}.get(bits, f"gaps of {bits} bits")
    if not one.eligible:
        return LayerForm(path=one.path, form="sparse", note=f"{held}; stands between sparse layers")
    gain = "measured faster alone" if won else "smaller, and no slower alone"
    adds = ", adds" if one.add is not None else ""
    size = f"{one.nbytes:,} bytes of {one.layer.weight.nbytes:,}"
    return LayerForm(path=one.path, form="sparse", note=f"{zeros}, {held}, {size}{adds}; {gain}")
