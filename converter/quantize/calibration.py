"""Calibration inputs: given as iterables or by a factory, cut to the batch that the program takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ferryman.converter.capture import Captured
from ferryman.converter.source import call_factory
from ferryman.runtime.contracts.errors import CallerError, ModelError
from ferryman.runtime.contracts.tensor import Array

BATCHES_MAX = 256
"""Of the program's own batch; more are left out."""


def read_calibration(
    captured: Captured,
    given: Any,  # noqa: ANN401  # see convert
    *,
    most: int | None = BATCHES_MAX,
) -> list[tuple[torch.Tensor, ...]]:
    """Flat calibration inputs, in the signature's order.

    Args:
        captured: the program.
        given: an iterable of inputs as `convert` takes them (of pairs with targets, as loaders give, the inputs), or
            text that names a factory of one; None: the example alone.
        most: inputs to read about, of the program's own batch; None: all.

    Raises:
        CallerError: it is none of these.
        ModelError: they are no inputs of this model.
    """
    if given is None:
        return [captured.example]
    if isinstance(given, str | os.PathLike):
        given = call_factory(os.fspath(given), "calibration")
    if isinstance(given, torch.Tensor) or not isinstance(given, Iterable):
        raise CallerError(f"calibration must be an iterable of inputs, found {type(given).__name__}")
    return _split(captured, (_flat(captured, one) for one in given), most)


def _flat(captured: Captured, one: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401  # see read_calibration
    leaves = tree_leaves(one)
    wanted = len(captured.example)
    if isinstance(one, tuple | list) and len(leaves) == wanted + 1:  # (inputs, target)
        leaves = tree_leaves(one[:-1])
    if any(not isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise CallerError("calibration inputs must be tensors, or tuples or dicts of them")
    return tuple(leaf.detach().contiguous() for leaf in leaves)


def _split(
    captured: Captured, batches: Iterable[Sequence[torch.Tensor]], most: int | None
) -> list[tuple[torch.Tensor, ...]]:
    """Calibration inputs, cut to the batch that the program takes.

    Raises:
        ModelError: they are no inputs of this model.
    """
    sizes = [tuple(one.shape) for one in captured.example]
    made: list[tuple[torch.Tensor, ...]] = []
    for given in batches:
        if most is not None and len(made) >= most:
            break
        if len(given) != len(sizes) or any(
            one.dtype != e.dtype for one, e in zip(given, captured.example, strict=True)
        ):
            expected = ", ".join(
                f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in captured.example
            )
            found = ", ".join(f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in given)
            raise ModelError(f"{captured.source.name}: calibration inputs must be like {expected}, found {found}")
        if all(tuple(one.shape) == size for one, size in zip(given, sizes, strict=True)):
            made.append(tuple(given))
            continue
        counts = {len(one) for one in given if one.dim()}
        if len(counts) != 1 or any(
            one.dim() != len(size) or tuple(one.shape[1:]) != size[1:] or size[0] != sizes[0][0]
            for one, size in zip(given, sizes, strict=True)
        ):
            raise ModelError(
                f"{captured.source.name}: calibration inputs of shape {[list(one.shape) for one in given]} cannot be "
                f"cut to the model's {[list(size) for size in sizes]}"
            )
        step = sizes[0][0]
        made += [tuple(one[i : i + step] for one in given) for i in range(0, counts.pop() - step + 1, step)]
    if not made:
        raise ModelError(f"{captured.source.name}: there are no calibration inputs")
    return made


def read_labelled(text: str) -> list[tuple[tuple[Array, ...], Array]]:
    """Inputs of calls and their class numbers, from a factory's (inputs, class numbers).

    Raises:
        CallerError: the factory fails, or gives something else.
    """
    given = call_factory(text, "an iterable of (inputs, class numbers)")
    found = []
    for one in given if isinstance(given, Iterable) else [None]:
        if not isinstance(one, tuple | list) or len(one) != 2:  # noqa: PLR2004  # a pair
            raise CallerError(f"{text} must give an iterable of (inputs, class numbers)")
        inputs, labels = (tree_leaves(part) for part in one)
        if not all(isinstance(leaf, torch.Tensor) for leaf in (*inputs, *labels)) or len(labels) != 1:
            raise CallerError(f"{text} must give tensors")
        found.append((tuple(leaf.detach().numpy() for leaf in inputs), labels[0].numpy()))
    return found
