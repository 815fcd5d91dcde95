"""Input sets from a file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.tensor import Array, Signature, TensorSpec
from ferryman.runtime.session import fit

SETS_MAX = 100_000


def read_inputs(path: Path, signature: Signature) -> list[list[Array]]:
    """Input sets of a model, from an `.npy` file (one input) or `.npz` file (each under its name, or all in order).

    An array holds one set, or several along a first axis of its own, or along the input's own first axis where that is
    of size 1.

    Raises:
        CallerError: there is no such file, it is no such file, or the arrays in it do not fit the signature.
    """
    arrays = _in_order(path, _read(path), signature)
    stacks = [_sets(path, array, spec) for array, spec in zip(arrays, signature.inputs, strict=True)]
    counts = {len(stack) for stack in stacks}
    if len(counts) != 1 or not 0 < max(counts) <= SETS_MAX:
        found = ", ".join(f"{spec.name} {len(stack)}" for stack, spec in zip(stacks, signature.inputs, strict=True))
        raise CallerError(f"{path}: expected as many sets of each input, 1 to {SETS_MAX:,}; found {found}")
    try:
        return [fit([stack[number] for stack in stacks], signature) for number in range(max(counts))]
    except CallerError as error:
        raise CallerError(f"{path}: {error}") from error


def _read(path: Path) -> Mapping[str, Array]:
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise CallerError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError, RuntimeError) as error:
        raise CallerError(f"{path}: expected arrays as numpy saves them (.npy or .npz): {error}") from error


def _in_order(path: Path, arrays: Mapping[str, Array], signature: Signature) -> list[Array]:
    names = [spec.name for spec in signature.inputs]
    if set(arrays) == set(names):
        return [arrays[name] for name in names]
    if len(arrays) != len(names):
        raise CallerError(
            f"{path}: expected {len(names)} arrays ({', '.join(names)}), found {', '.join(arrays) or 'one'}"
        )
    positional = [f"arr_{number}" for number in range(len(names))]  # as savez calls those that have no names
    return [arrays[name] for name in (positional if set(arrays) == set(positional) else arrays)]


def _sets(path: Path, array: Array, spec: TensorSpec) -> list[Array]:
    rank = len(spec.shape)
    if array.ndim == rank + 1:
        return list(array)
    if array.ndim == rank and rank and spec.shape[0] == 1:
        return [array[number : number + 1] for number in range(len(array))]
    if array.ndim == rank:
        return [array]
    raise CallerError(
        f"{path}: expected {spec.describe()}, or several of them along a first axis; found shape {list(array.shape)}"
    )
