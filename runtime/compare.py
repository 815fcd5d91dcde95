"""How far one set of outputs is from another; pure numpy, the same on host and device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import Array

SQNR_CAP_DB = 200.0
"""Stands for equal to the bit; its negative for not comparable at all (JSON has no infinity)."""
_LOGIT_RANKS = (2, 3)
_ERROR_MAX = float(np.finfo(np.float64).max)
"""Stands for infinity."""


class Difference(Record):
    """One output against its reference."""

    output: int
    sqnr_db: float
    """20 log10(|reference| / |reference - output|) over all elements, within +-SQNR_CAP_DB; where `unequal` counts,
    one end or the other."""
    max_abs_error: float
    top1_agreement: float | None
    """Share of rows with the same largest element, for floating outputs of rank 2 or 3."""
    unequal: int | None = None
    """How many elements differ, of integers and booleans, which must not; None for floating outputs."""
    elements: int = 0

    def shortfall(self, least_db: float) -> str:
        """How the output misses a bar, in words; empty where it holds it."""
        if self.unequal:
            return (
                f"output {self.output}: {self.unequal} of {self.elements} elements differ, "
                "and integers and booleans must be equal"
            )
        if self.sqnr_db >= least_db:
            return ""
        return f"output {self.output} reaches {self.sqnr_db:.1f} dB of {least_db:g} dB"


def compare(reference: Sequence[Array], outputs: Sequence[Array]) -> list[Difference]:
    """Compare output by output.

    Raises:
        ValueError: another number of outputs, another shape, or another kind of dtype (another size will do).
    """
    if len(reference) != len(outputs):
        raise ValueError(f"expected {len(reference)} outputs, found {len(outputs)}")
    return [_compare_one(i, r, o) for i, (r, o) in enumerate(zip(reference, outputs, strict=True))]


def worst(differences: Sequence[Difference]) -> Difference:
    """The one with the lowest SQNR."""
    return min(differences, key=lambda d: d.sqnr_db)


def _compare_one(index: int, reference: Array, output: Array) -> Difference:
    if reference.shape != output.shape:
        raise ValueError(f"output {index}: expected shape {reference.shape}, found {output.shape}")
    if _kind(reference) != _kind(output):
        raise ValueError(f"output {index}: expected dtype {reference.dtype}, found {output.dtype}")
    expected, found = reference.astype(np.float64), output.astype(np.float64)
    if _kind(reference) != "f":
        unequal = int(np.count_nonzero(reference != output))  # as integers: float64 cannot tell large ones apart
        return Difference(
            output=index,
            sqnr_db=-SQNR_CAP_DB if unequal else SQNR_CAP_DB,
            max_abs_error=float(np.abs(expected - found).max(initial=0.0)),
            top1_agreement=None,
            unequal=unequal,
            elements=reference.size,
        )
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return Difference(output=index, sqnr_db=-SQNR_CAP_DB, max_abs_error=_ERROR_MAX, top1_agreement=0.0)
    expected, found = expected[finite], found[finite]
    largest = max(np.abs(expected).max(initial=0.0), np.abs(found).max(initial=0.0))
    scale = math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -1000))  # so that squares neither overflow nor vanish
    signal, noise = expected / scale, expected / scale - found / scale
    return Difference(
        output=index,
        sqnr_db=_sqnr_db(float(np.linalg.norm(signal)), float(np.linalg.norm(noise))),
        max_abs_error=min(float(np.abs(noise).max(initial=0.0)) * scale, _ERROR_MAX),
        top1_agreement=_top1(reference, output),
    )


def _kind(array: Array) -> str:
    """`b`, `i` or `f`."""
    return array.dtype.kind.replace("u", "i")


def _sqnr_db(signal: float, noise: float) -> float:
    if noise == 0:
        return SQNR_CAP_DB
    if signal == 0:
        return -SQNR_CAP_DB
    return float(np.clip(20 * np.log10(signal / noise), -SQNR_CAP_DB, SQNR_CAP_DB))


def _top1(reference: Array, output: Array) -> float | None:
    if reference.ndim not in _LOGIT_RANKS or not reference.size:
        return None
    return float(np.mean(reference.argmax(-1) == output.argmax(-1)))
