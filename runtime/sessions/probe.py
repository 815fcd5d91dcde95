"""Whether two sessions of one artifact answer alike, tried out before packed weights are kept of it."""

from __future__ import annotations

import numpy as np

from ferryman.runtime.contracts.tensor import Array, Signature
from ferryman.runtime.session import Session

_SEED = 0


def same_answers(a: Session, b: Session) -> bool:
    """Whether both answer the same, to the bit.

    Raises:
        RuntimeFault: one of them cannot be run on inputs that say nothing.
    """
    inputs = _inputs(a.signature)
    return all(
        one.shape == other.shape and one.tobytes() == other.tobytes()
        for one, other in zip(a.run(inputs), b.run(inputs), strict=True)
    )


def _inputs(signature: Signature) -> list[Array]:
    """Normal numbers; ones where there are only whole ones: an index that most tables have, and not a divisor of 0."""
    random = np.random.default_rng(_SEED)
    arrays = []
    for spec in signature.inputs:
        shape = [dim if isinstance(dim, int) else dim.max for dim in spec.shape]
        floating = np.dtype(spec.dtype).kind == "f"
        arrays.append((random.standard_normal(shape) if floating else np.ones(shape)).astype(spec.dtype))
    return arrays
