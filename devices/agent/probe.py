"""Golden vectors run beside what is served: how long a call takes, whether its answer holds, how far it moved.

The package before runs the same inputs once, in the same way, so that what differs is the package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.runtime.compare import compare, worst
from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.contracts.manifest import GoldenVector, Manifest, Variant
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import read_golden
from ferryman.runtime.session import fit
from ferryman.runtime.slots import Installed

log = logging.getLogger(__name__)

CALLS = 5
"""Of one input, one after the other: the first alone would tell of a processor that slept."""
VECTORS_MAX = 4
_TIMEOUT_S = 60.0
Choose = Callable[[Installed], tuple[Variant, str]]


@dataclass(frozen=True)
class Answers:
    """Of one package to some golden inputs."""

    outputs: tuple[list[Array], ...]
    latencies_ns: tuple[int, ...]


def vectors_of(directory: Path, manifest: Manifest, variant: Variant) -> list[GoldenVector]:
    """A variant's golden vectors, the first few.

    Raises:
        PackageError: one is malformed.
        OSError: one cannot be read.
    """
    paths = (variant.golden or manifest.golden)[:VECTORS_MAX]
    return [read_golden((directory / path).read_bytes(), path) for path in paths]


def holds(vector: GoldenVector, outputs: Sequence[Array], least_db: float) -> bool:
    """Whether outputs are what the golden vector promises."""
    try:
        return not worst(compare([one.to_array() for one in vector.outputs], outputs)).shortfall(least_db)
    except ValueError:
        return False


def run_before(
    open_previous: Callable[[], Installed], vectors: Sequence[GoldenVector], choose: Choose
) -> Answers | None:
    """What the package before answers, in a process of its own that ends here.

    None: it takes other inputs, is damaged, or does not run here any more; that is no fault of the package after it.

    Args:
        open_previous: verifies it.
        vectors: of the package after it.
        choose: what of it answers requests that name no variant.
    """
    try:
        previous = open_previous()
        manifest = previous.manifest
        variant, interpreter = choose(previous)
        inputs = [fit([one.to_array() for one in vector.inputs], manifest.signature) for vector in vectors]
        outputs, latencies = [], []
        artifact = previous.directory / variant.payload
        with IsolatedSession(
            artifact, variant.runtime, interpreter=interpreter, entry=variant.entry, timeout_s=_TIMEOUT_S
        ) as session:
            for given in inputs:
                for _ in range(CALLS):
                    found = session.run(given)
                    latencies.append(session.last_run_ns)
                specs = manifest.signature.outputs
                outputs.append([a.astype(spec.dtype, copy=False) for a, spec in zip(found, specs, strict=True)])
    except (FerrymanError, OSError) as error:
        log.info("the package before is not compared with: %s", error)
        return None
    return Answers(tuple(outputs), tuple(latencies))


def distance(before: Sequence[Array], after: Sequence[Array]) -> float | None:
    """How far outputs moved, 0 to 1, the worst of them: |after - before| / |before|, Euclidean, at most 1.

    Of integers and booleans, the share that differs. None: they are not of one kind, and cannot be compared.
    """
    shapes = [[(array.shape, array.dtype.kind) for array in arrays] for arrays in (before, after)]
    if shapes[0] != shapes[1] or not before:
        return None
    return max(_apart(old, new) for old, new in zip(before, after, strict=True))


def _apart(old: Array, new: Array) -> float:
    if not old.size:
        return 0.0
    if old.dtype.kind != "f":
        return float(np.mean(old != new))
    with np.errstate(all="ignore"):
        was, moved = np.linalg.norm(old.astype(np.float64)), np.linalg.norm((new - old).astype(np.float64))
    if np.array_equal(old, new, equal_nan=True):
        return 0.0
    return min(float(moved / was), 1.0) if np.isfinite(moved) and np.isfinite(was) and was > 0 else 1.0
