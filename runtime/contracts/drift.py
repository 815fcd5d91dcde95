"""What served inferences were given and what they answered, as sketches: how values drift away from a reference.

A sketch is the serialised KLL sketch of Apache DataSketches (floats), which any of its libraries can read. It is read
here without them, and checked to the last byte: their C++ trusts it, and runs wild or for ever on damaged ones.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.telemetry import PRINTABLE, Sha256

SKETCH_MAX_BYTES = 1 << 16
TENSORS_MAX = 64
_COUNT_MAX = (1 << 62) - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=_COUNT_MAX)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Word = Annotated[str, msgspec.Meta(max_length=256, pattern=PRINTABLE)]
Role = Literal["input", "output"]

_FAMILY = 15
_EMPTY, _SINGLE = 1, 4
"""Flags."""
_HEAD = struct.Struct("<BBBBHBx")
"""Preamble in words of 4 bytes, version, family, flags, k, narrowest level."""
_FULL = struct.Struct("<QHBx")
"""Values taken, least k of those merged, levels."""
_SHORT_INTS, _FULL_INTS = 2, 5
_K_MIN, _NARROWEST_MIN = 8, 2
_LEVELS_MAX = 60


class DriftSketch(Record):
    """The values of one tensor over a stretch of inferences."""

    name: str
    role: Role
    dtype: str
    values: Count
    """All that there were; those below are over all of them, but for the sketch."""
    nan: Count
    infinite: Count
    least: float | None
    """Of the finite ones; None: there were none, and so of those below."""
    most: float | None
    mean: float | None
    sketch: Annotated[bytes, msgspec.Meta(max_length=SKETCH_MAX_BYTES)]
    """Of finite values as float32, drawn by chance; see `ferryman.profiler.drift`."""
    rank_error: Share
    """By how much the share of values below any point may be off, as the library tells (99 %); 0: none was left out."""
    share_error: Share
    """By how much the share of values between any two points may."""

    def __post_init__(self) -> None:
        """Raise ValueError where the sketch is damaged, or the counts do not fit together."""
        sampled = int(self.weighted()[1].sum())
        if self.nan + self.infinite > self.values:
            raise ValueError(f"{self.nan} NaN and {self.infinite} infinite ones among {self.values} values")
        finite = self.values - self.nan - self.infinite
        if any((one is None) != (finite == 0) for one in (self.least, self.most, self.mean)):
            raise ValueError(f"least, most and mean are of the finite values, of which there are {finite}")
        if sampled and not finite:
            raise ValueError(f"the sketch is of {sampled} values, and none was finite")

    def weighted(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Ascending values, and how many of those drawn each stands for."""
        return read_sketch(self.sketch)


class Drift(Record, kw_only=True):
    """Body of a record of kind `drift`: one variant on one interpreter over a stretch of time."""

    schema: Literal[1] = 1
    package_name: Word
    package_sha256: Sha256
    variant: Word
    interpreter: Word
    from_ns: Count
    """Device wall clock, Unix epoch, at the first inference."""
    to_ns: Count
    """And at the last."""
    inferences: Count
    library: str
    """Name and version of what made the sketches."""
    tensors: Annotated[tuple[DriftSketch, ...], msgspec.Meta(max_length=TENSORS_MAX)]
    left_out: Count = 0
    """How many more tensors the model has."""


def read_sketch(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ascending values of a serialised KLL sketch, and how many values each stands for.

    Raises:
        ValueError: it is damaged, or no such sketch.
    """
    try:
        return _read(data)
    except (struct.error, ValueError) as error:
        raise ValueError(f"the sketch is damaged: {error}") from error


def _read(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    preamble, version, family, flags, k, narrowest = _HEAD.unpack_from(data)
    if family != _FAMILY or k < _K_MIN or narrowest < _NARROWEST_MIN:
        raise ValueError(f"no KLL sketch: family {family}, expected {_FAMILY}, and k {k}")
    kind = (preamble, version, flags & (_EMPTY | _SINGLE))
    if kind in ((_SHORT_INTS, 1, _EMPTY), (_SHORT_INTS, 2, _SINGLE)):
        return _checked(data[_HEAD.size :], [0], int(kind[2] == _SINGLE))
    if kind != (_FULL_INTS, 1, 0):
        raise ValueError(f"no sketch has preamble {preamble}, version {version} and flags {flags}")
    return _read_full(data)


def _read_full(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    taken, _, levels = _FULL.unpack_from(data, _HEAD.size)
    if not 1 <= levels <= _LEVELS_MAX or not 1 < taken <= _COUNT_MAX:
        raise ValueError(f"{levels} levels of {taken} values are out of range")
    starts = struct.unpack_from(f"<{levels}I", data, _HEAD.size + _FULL.size)
    after = _HEAD.size + _FULL.size + 4 * levels
    least, most = struct.unpack_from("<2f", data, after)
    values, weights = _checked(data[after + 8 :], [start - starts[0] for start in starts], taken)
    if not least <= values[0] <= values[-1] <= most < np.inf:
        raise ValueError(f"values {values[0]:g} to {values[-1]:g} lie outside {least:g} to {most:g}")
    return values, weights


def _checked(items: bytes, starts: list[int], taken: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Values level by level, those of each standing for twice as many as those of the one before."""
    if len(items) % 4:
        raise ValueError(f"{len(items)} bytes are no floats")
    counts = np.diff([*starts, len(items) // 4])
    if (counts < 0).any() or sum(int(count) << level for level, count in enumerate(counts)) != taken:
        raise ValueError(f"its levels of {counts.tolist()} do not hold {taken} values")
    values = np.frombuffer(items, "<f4")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    order = np.argsort(values, kind="stable")
    weights = np.repeat(np.int64(1) << np.arange(len(counts), dtype=np.int64), counts)
    return values[order].astype(np.float32, copy=False), weights[order]
