"""Least squares whose solution has no negative number in it (the active-set method of Lawson and Hanson, 1974)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TOLERANCE = 1e-10


def solve(matrix: Floats, wanted: Floats) -> Floats:
    """The x >= 0 for which |matrix @ x - wanted| is least.

    Args:
        matrix: [equations, unknowns].
        wanted: [equations].
    """
    count = matrix.shape[1]
    found, free = np.zeros(count), np.zeros(count, bool)
    for _ in range(3 * count):
        slope = matrix.T @ (wanted - matrix @ found)
        slope[free] = 0
        if slope.max(initial=0) <= _TOLERANCE * float(np.abs(matrix.T @ wanted).max(initial=1)):
            break
        free[np.argmax(slope)] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
            below = free & (trial <= 0)
            if not below.any():
                break
            # As far towards the trial as everything stays at 0 or above; what arrives at 0 stays there.
            step = float((found[below] / (found[below] - trial[below])).min())
            found = found + step * (trial - found)
            free &= found > _TOLERANCE * found.max(initial=0)
            found[~free] = 0
        found = trial
    return found
