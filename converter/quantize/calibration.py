"""Calibration inputs: given as iterables or by a factory, cut to the batch that the program takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ferryman.converter.capture import Captured
from ferryman.converter.reason import reason
from ferryman.converter.source import call_factory
from ferryman.runtime.contracts.errors import CallerError, ModelError
from ferryman.runtime.contracts.tensor import DTYPES, Array

BATCHES_MAX = 256
"""Of the program's own batch; more are left out."""
_READ_MOST = 1 << 14
"""Of what a loader gives, however little each holds: some never end."""
_LABELLED_MOST = 1 << 17


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
    return _split(captured, (_flat(captured, one) for one in _each(given, "calibration")), most)


def _each(given: Iterable[Any], what: str) -> Iterator[Any]:
    """What a loader gives, its errors named."""
    try:
        yield from given
    except Exception as error:  # someone else's code
        raise CallerError(f"the loader of {what} failed: {type(error).__name__}: {reason(error)}") from error


def _flat(captured: Captured, one: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401  # see read_calibration
    leaves = tree_leaves(one)
    wanted = len(captured.example)
    if isinstance(one, tuple | list) and len(leaves) == wanted + 1:  # (inputs, target)
        leaves = tree_leaves(one[:-1])
    if any(not isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise CallerError("calibration inputs must be tensors, or tuples or dicts of them")
    return tuple(leaf.detach().clone(memory_format=torch.contiguous_format) for leaf in leaves)  # loaders reuse buffers


def _split(
    captured: Captured, batches: Iterable[Sequence[torch.Tensor]], most: int | None
) -> list[tuple[torch.Tensor, ...]]:
    """Calibration inputs, cut to the batch that the program takes.

    Raises:
        ModelError: they are no inputs of this model.
    """
    sizes = [tuple(one.shape) for one in captured.example]
    made: list[tuple[torch.Tensor, ...]] = []
    left: list[Sequence[torch.Tensor]] = []  # rows that fill no batch yet
    if not all(one.numel() for one in captured.example):
        raise ModelError(f"{captured.source.name}: an example input is empty, and calibration has nothing to be cut to")
    for read, given in enumerate(batches):
        if most is not None and (len(made) >= most or read >= _READ_MOST):
            break
        _check_like(captured, given)
        if any(one.is_floating_point() and not one.isfinite().all() for one in given):
            raise ModelError(f"{captured.source.name}: calibration input {read} holds NaN or infinity; leave it out")
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
        if counts == {0}:
            continue
        left.append(given)
        rows = sum(len(one[0]) for one in left)
        step = sizes[0][0]
        if rows >= step:
            joined = [torch.cat(parts) for parts in zip(*left, strict=True)]
            made += [tuple(one[i : i + step] for one in joined) for i in range(0, rows - step + 1, step)]
            left = [[one[rows - rows % step :] for one in joined]]
    if not made:
        rows = sum(len(one[0]) for one in left)
        few = f"only {rows} rows, and the example has {sizes[0][0]}" if rows else "it gives none"
        raise ModelError(f"{captured.source.name}: calibration has too few inputs: {few}")
    return made


def _check_like(captured: Captured, given: Sequence[torch.Tensor]) -> None:
    if [one.dtype for one in given] != [one.dtype for one in captured.example]:
        expected, found = (
            ", ".join(f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in several)
            for several in (captured.example, given)
        )
        raise ModelError(f"{captured.source.name}: calibration inputs must be like {expected}, found {found}")


def read_labelled(text: str) -> list[tuple[tuple[Array, ...], Array]]:
    """Inputs of calls and their class numbers, from a factory's (inputs, class numbers); a number alone is one row's.

    Raises:
        CallerError: the factory fails, or gives something else.
    """
    given = call_factory(text, "an iterable of (inputs, class numbers)")
    found: list[tuple[tuple[Array, ...], Array]] = []
    for one in _each(given, text) if isinstance(given, Iterable) else [None]:
        if len(found) == _LABELLED_MOST:
            raise CallerError(f"{text} gives more than {_LABELLED_MOST:,} inputs; give fewer")
        if not isinstance(one, tuple | list) or len(one) != 2:  # noqa: PLR2004  # a pair
            raise CallerError(f"{text} must give an iterable of (inputs, class numbers)")
        inputs = tree_leaves(one[0])
        if not inputs or not all(isinstance(leaf, torch.Tensor) for leaf in inputs):
            raise CallerError(f"{text} must give inputs that are tensors, or tuples or dicts of them")
        try:
            numbers = torch.as_tensor(one[1])
        except (TypeError, ValueError, RuntimeError) as error:
            raise CallerError(
                f"{text} must give one tensor or list of class numbers to each inputs: {error}"
            ) from error
        if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise CallerError(f"{text} must give class numbers that are integers, found {numbers.dtype}")
        if any(str(leaf.dtype).removeprefix("torch.") not in DTYPES or leaf.is_meta for leaf in inputs):
            kinds = ", ".join(sorted({f"{leaf.dtype} on {leaf.device}" for leaf in inputs}))
            raise CallerError(f"{text} gives inputs of {kinds}; artifacts take {', '.join(DTYPES)}")
        found.append((tuple(leaf.detach().clone().numpy() for leaf in inputs), numbers.numpy()))
    return found
