"""Adapters: a change of a weight as a few thin factors, and the one way they are merged into it.

LoRA, Hydra and FLoRA all come to

    new = float32(weight + sum over r of up[:, r] down[r, :]),    weight as a matrix of output channels by the rest

Sums are of float64, one product after the other in the order of r, no library of matrix products in between: so the
host and every device give the same bits, wherever the merging is done.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import Tensor, pack, unpack

Doubles = npt.NDArray[np.float64]
Kind = Literal["lora", "hydra", "flora"]
SCHEMA = 1
RANK_MAX = 256
"""A change of more ranks than that is no thin one, and merging it would take a small device long."""
_FACTOR_DTYPES = ("float16", "float32")
_AT_ONCE = 1 << 20
"""Elements that are merged at once: a device holds that many float64, not the whole tensor."""
_NDIM_MAX = 5
_FILE_MAX_BYTES = 1 << 30
_HOW = "write it with ferryman.converter.adapters.save_adapters"


class Adapter(Record, kw_only=True):
    """The change of one tensor.

    lora: `down` [r, inputs...] and `up` [outputs, r] (further dimensions of 1 do not count); change = scale up @ down.
    hydra: the same in parallel, where there is one; and `then_down` [q, outputs], `then_up` [outputs, q], which work on
        what the layer gives: then_scale then_up @ then_down @ weight. A bias has the latter alone.
    flora: `core` [r0, r1, ...] and `side0` [d0, r0], `side1` [d1, r1], ...: a Tucker decomposition with one side a
        dimension of the tensor.
    """

    kind: Kind
    shape: tuple[int, ...]
    """Of the tensor, as the model has it: output channels first."""
    scale: float = 1.0
    then_scale: float = 1.0
    factors: dict[str, Tensor]


class TensorAdapter(Record):
    """An adapter, and which tensor it was trained on."""

    adapter: Adapter
    base_sha256: str
    """Of the tensor's float32, as the model has it."""


class Adapters(Record, kw_only=True):
    """A file of adapters."""

    schema: int = SCHEMA
    tensors: dict[str, TensorAdapter]
    """By the model's name of the tensor."""


def write_adapters(path: Path, tensors: Mapping[str, TensorAdapter]) -> None:
    """Write a file that `read_adapters` takes."""
    path.write_bytes(pack(Adapters(tensors=dict(tensors))))


def read_adapters(path: Path) -> dict[str, TensorAdapter]:
    """Read a file of adapters.

    Raises:
        CallerError: it cannot be read, is none, or an adapter's factors do not fit its tensor.
    """
    try:
        if path.stat().st_size > _FILE_MAX_BYTES:
            raise CallerError(f"{path} has more than {_FILE_MAX_BYTES} bytes: that is no file of thin factors")
        held = unpack(path.read_bytes(), Adapters)
        reason = next(_wrong(held), None)
    except OSError as error:
        raise CallerError(f"cannot read the adapters {path}: {error.strerror}") from error
    except ValueError as error:
        raise CallerError(f"{path} is no file of adapters: {error}; {_HOW}") from error
    if reason:
        raise CallerError(f"{path} is no file of adapters: {reason}; {_HOW}")
    return held.tensors


def _wrong(held: Adapters) -> Iterator[str]:
    if held.schema != SCHEMA:
        yield f"schema {held.schema}, expected {SCHEMA}"
    for name, one in held.tensors.items():
        yield from (f"{name}: {reason}" for reason in check(one.adapter))


def sha256_of(weight: npt.NDArray[np.float32]) -> str:
    """What `TensorAdapter.base_sha256` holds."""
    return hashlib.sha256(np.ascontiguousarray(weight, "<f4").tobytes()).hexdigest()


def check(adapter: Adapter) -> Iterator[str]:
    """What is wrong with an adapter; whoever merges one has asked.

    Nothing is held beyond a few times the tensor, and no loop is longer than RANK_MAX times it.
    """
    shape = adapter.shape
    if not 1 <= len(shape) <= _NDIM_MAX or min(shape) < 1:
        yield f"a tensor of shape {shape}"
        return
    if not (math.isfinite(adapter.scale) and math.isfinite(adapter.then_scale)):
        yield "a scale that is not finite"
    for name, factor in adapter.factors.items():
        if factor.dtype not in _FACTOR_DTYPES:
            yield f"factor {name[:40]} is {factor.dtype[:40]}, expected {' or '.join(_FACTOR_DTYPES)}"
            return
        factor.to_array()  # raises ValueError where its bytes do not fill it
    yield from _misfits(adapter)


def _misfits(adapter: Adapter) -> Iterator[str]:
    shape, has = adapter.shape, {name: one.shape for name, one in adapter.factors.items()}
    out, rest = shape[0], math.prod(shape[1:])
    pairs = {"lora": ("",), "hydra": ("", "then_"), "flora": ()}[adapter.kind]
    wanted = {f"{pair}{end}" for pair in pairs for end in ("down", "up")}
    if adapter.kind == "hydra" and not {"down", "up"} & has.keys():
        wanted -= {"down", "up"}
    if adapter.kind == "flora":
        wanted = {"core", *(f"side{at}" for at in range(len(shape)))}
    if wanted != has.keys():
        yield f"expected the factors {', '.join(sorted(wanted))}, found {', '.join(sorted(has))}"
        return
    if adapter.kind == "flora":
        core = has["core"]
        sides = tuple((size, rank) for size, rank in zip(shape, core, strict=False))
        if len(core) != len(shape) or any(has[f"side{at}"] != side for at, side in enumerate(sides)):
            yield f"a core of {core} and its sides do not make {shape}"
        elif any(not 1 <= rank <= min(size, RANK_MAX) for size, rank in sides):
            yield f"a core of {core} is none of {shape}, or has more than {RANK_MAX} ranks"
        return
    for pair in ("", "then_"):
        if f"{pair}down" not in has:
            continue
        down, up = has[f"{pair}down"], has[f"{pair}up"]
        rank = down[0] if down else 0
        columns = rest if not pair else out
        if not 1 <= rank <= RANK_MAX or math.prod(down) != rank * columns or math.prod(up) != out * rank:
            yield f"factors of {down} and {up} do not make {shape}, or have more than {RANK_MAX} ranks"


def merge_weight(weight: npt.NDArray[np.float32], adapter: Adapter) -> npt.NDArray[np.float32]:
    """The tensor with its change; `weight` has the adapter's shape, in any layout of memory.

    Raises:
        ValueError: the adapter does not fit.
    """
    for reason in check(adapter):
        raise ValueError(reason)
    if weight.shape != adapter.shape:
        raise ValueError(f"an adapter of {adapter.shape} for a tensor of {weight.shape}")
    matrix = weight.reshape(weight.shape[0], -1)
    made = np.empty(matrix.shape, np.float32)
    with np.errstate(all="ignore"):
        terms = list(_terms(adapter, matrix))
        rows = max(1, _AT_ONCE // matrix.shape[1])
        for start in range(0, len(matrix), rows):
            some = slice(start, start + rows)
            sums = matrix[some].astype(np.float64)
            for up, down in terms:
                for rank in range(len(down)):
                    sums += up[some, rank, None] * down[rank]
            made[some] = sums.astype(np.float32)
    return made.reshape(weight.shape)


def _terms(adapter: Adapter, matrix: npt.NDArray[np.float32]) -> Iterator[tuple[Doubles, Doubles]]:
    """(up [outputs, r], down [r, rest]) of each summand."""
    out = len(matrix)
    factors = {name: one.to_array().astype(np.float64) for name, one in adapter.factors.items()}
    if adapter.kind == "flora":
        core = factors["core"]
        for axis in range(core.ndim - 1, 0, -1):
            core = _along(core, factors[f"side{axis}"], axis)
        yield adapter.scale * factors["side0"], core.reshape(len(core), -1)
        return
    if "down" in factors:
        rank = len(factors["down"])
        yield adapter.scale * factors["up"].reshape(out, rank), factors["down"].reshape(rank, -1)
    if "then_down" in factors:
        rank = len(factors["then_down"])
        seen = factors["then_down"].reshape(rank, out)
        given = np.zeros((rank, matrix.shape[1]))
        for row in range(out):
            given += seen[:, row, None] * matrix[row].astype(np.float64)
        yield adapter.then_scale * factors["then_up"].reshape(out, rank), given


def _along(core: Doubles, side: Doubles, axis: int) -> Doubles:
    """A core's product with a side, along one of its axes."""
    first = np.moveaxis(core, axis, 0)
    made = np.zeros((len(side), *first.shape[1:]))
    for rank in range(len(first)):
        made += side[:, rank].reshape(-1, *[1] * (core.ndim - 1)) * first[rank]
    return np.moveaxis(made, 0, axis)


def factor(array: npt.NDArray[np.floating]) -> Tensor:
    """A factor as records hold it: float16 stays, all else becomes float32."""
    dtype = "<f2" if array.dtype == np.float16 else "<f4"
    dense = np.ascontiguousarray(array, dtype)
    return Tensor(dtype=dense.dtype.name, shape=array.shape, data=dense.tobytes())
