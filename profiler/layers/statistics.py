"""What one tensor held over many inputs, and how much it tells of which input it was.

Information: a deployed network is deterministic, so what its binned activations T tell of the input X is their entropy,
I(X; T) = H(T), over the inputs that were given; N different ones are log2 N bits at most. Bins adapt to what a layer
holds: their edges are quantiles of its distinct values, so that each bin has as many of those (the entropy-based
adaptive binning of "Adaptive Estimators Show Information Compression in Deep Neural Networks", Chelombiev et al. 2019).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ferryman.profiler.layers.exposed import Value
from ferryman.runtime.contracts.layers import Layer
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import Array

BINS = 30
UNITS_MAX = 1024
"""Of a larger layer, so many are drawn by chance, the same for every input: a lower bound of what all tell."""
_KEPT_MAX = 1 << 18
"""Of all inputs together, so that a layer takes a megabyte."""
_UNITS_MIN = 16
_SEED = 0
_TELLS_NOTHING = "one input tells nothing apart; give more with --inputs"
_VARIES = "the layer's size varies with the input"
_NAN = "a value is not finite"


class Running:
    """One tensor, input by input."""

    def __init__(self, value: Value, inputs: int) -> None:
        self._value = value
        self._units_max = min(UNITS_MAX, max(_UNITS_MIN, _KEPT_MAX // inputs))
        self._shape: tuple[int, ...] | None = None
        self._dtype = ""
        self._count = self._finite = self._zeros = self._saturated = 0
        self._mean = self._squares = 0.0
        self._least, self._most = _End(np.inf), _End(-np.inf)
        self._alive: NDArray[np.bool_] | None = None
        self._units: NDArray[np.int64] | None = None
        self._kept: list[NDArray[np.float32]] = []
        self._varies = False

    def take(self, array: Array) -> None:
        """Take in what the tensor held for one input."""
        self._varies = self._varies or self._shape not in (None, array.shape)
        self._shape, self._dtype = array.shape, array.dtype.name
        real = self._real(array)
        flat = real.reshape(-1)
        finite = flat if np.isfinite(flat).all() else flat[np.isfinite(flat)]
        self._count += flat.size
        if finite.size:
            self._moments(finite)
        self._channels(real)
        if self._units is None:
            drawn = np.random.default_rng(_SEED).permutation(flat.size)[: self._units_max]
            self._units = np.sort(drawn)
        if not self._varies:
            self._kept.append(flat[self._units].astype(np.float32))

    def _real(self, array: Array) -> NDArray[np.float64]:
        """The numbers themselves; counts what stands at the ends of those that are stored."""
        stored = self._value.stored
        if stored is None:
            return array.astype(np.float64)
        for end in {stored.least, stored.most} - {stored.zero_point}:
            self._saturated += int((array == end).sum())
        return (array.astype(np.float64) - stored.zero_point) * stored.scale

    def _moments(self, finite: NDArray[np.float64]) -> None:
        """Means and squares of parts are joined as Chan et al. do, which does not cancel."""
        mean = float(finite.mean())
        squares = float(np.square(finite - mean).sum())
        total = self._finite + finite.size
        apart = mean - self._mean
        self._squares += squares + apart * apart * self._finite * finite.size / total
        self._mean += apart * finite.size / total
        self._finite = total
        self._zeros += int(np.count_nonzero(finite == 0))
        self._least.take(finite, float(finite.min()), lower=True)
        self._most.take(finite, float(finite.max()), lower=False)

    def _channels(self, real: NDArray[np.float64]) -> None:
        axis = self._value.channels
        if axis is None or axis >= real.ndim:
            return
        alive = (real != 0).any(axis=tuple(other for other in range(real.ndim) if other != axis))
        self._alive = alive if self._alive is None or self._alive.shape != alive.shape else self._alive | alive

    def record(self) -> Layer:
        """Over all inputs."""
        some = max(self._finite, 1)
        saturated = self._saturated
        if self._value.stored is None and self._least.value != self._most.value:
            saturated = self._least.beyond_one() + self._most.beyond_one()
        whole, unit = self._information()
        return Layer(
            name=self._value.name,
            module=self._value.module,
            shape=self._shape or (),
            dtype=self._dtype,
            least=self._least.value if self._finite else 0.0,
            most=self._most.value if self._finite else 0.0,
            mean=self._mean,
            std=math.sqrt(self._squares / some),
            zeros=self._zeros / some,
            saturated=saturated / some,
            information_bits=whole,
            unit_bits=unit,
            dead=None if self._alive is None else float(np.mean(~self._alive)),
            not_finite=(self._count - self._finite) / max(self._count, 1),
        )

    def _information(self) -> tuple[float | Unavailable, float | Unavailable]:
        if self._varies or len(self._kept) < 2:  # noqa: PLR2004  # one has nothing to be told from
            why = Unavailable(reason=_VARIES if self._varies else _TELLS_NOTHING)
            return why, why
        kept = np.stack(self._kept)
        if not np.isfinite(kept).all():
            return Unavailable(reason=_NAN), Unavailable(reason=_NAN)
        return information_bits(kept)


class _End:
    """The least or the most value, and how often it was there."""

    def __init__(self, value: float) -> None:
        self.value, self._times = value, 0

    def take(self, values: NDArray[np.float64], end: float, *, lower: bool) -> None:
        if end < self.value if lower else end > self.value:
            self.value, self._times = end, 0
        if end == self.value:
            self._times += int(np.count_nonzero(values == end))

    def beyond_one(self) -> int:
        """How often more than once; of zero, not at all."""
        return max(self._times - 1, 0) if self.value else 0


def information_bits(activations: NDArray[np.float32]) -> tuple[float, float]:
    """What a layer tells of the input, and what one of its units does, in bits.

    Args:
        activations: [inputs, units], all finite.
    """
    binned = bin_adaptively(activations)
    _, counts = np.unique(binned, axis=0, return_counts=True)
    units = np.stack([np.count_nonzero(binned == number, axis=0) for number in range(int(binned.max()) + 1)])
    return entropy_bits(counts), float(np.mean([entropy_bits(column) for column in units.T]))


def bin_adaptively(activations: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The number of each value's bin: BINS bins of as many distinct values each."""
    distinct = np.unique(activations)
    bins = min(BINS, len(distinct))
    edges = distinct[len(distinct) * np.arange(1, bins) // bins]
    return np.searchsorted(edges, activations, side="right").astype(np.uint8)


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Of a distribution, from how often each outcome was there."""
    shares = counts[counts > 0] / counts.sum()
    return abs(float((shares * np.log2(shares)).sum()))
