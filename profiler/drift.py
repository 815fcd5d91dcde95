"""Drift statistics: sketches of what a deployed model is given and answers.

Of each tensor of an inference all values are counted (least, most, mean, NaN, infinite), and SAMPLE of them, drawn by
chance with replacement, enter a KLL sketch of Apache DataSketches: so a sketch costs the same for a large tensor as
for a small one, and each inference has the same weight. `ferryman.profiler.drift_distance` merges and compares them.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.drift import TENSORS_MAX, Drift, DriftSketch, Role
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.tensor import Array

log = logging.getLogger(__name__)

LIBRARY = "datasketches"
K = 200
"""Of the sketches: 1.3 % rank error, some 2,500 bytes."""
SAMPLE = 256
TENSORS_OF_A_ROLE = TENSORS_MAX // 4
"""As many inputs and as many outputs are followed."""
PERIOD_S = 600.0
PERIOD_MIN_S, PERIOD_MAX_S = 1.0, 86_400.0
INFERENCES_MAX = 1_000_000
"""A stretch ends after so many as well."""
_FLOAT_MAX = float(np.finfo(np.float32).max)


class Served(NamedTuple):
    """One inference, with the names of its tensors in the model."""

    package_name: str
    package_sha256: str
    variant: str
    interpreter: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    inputs: Sequence[Array]
    outputs: Sequence[Array]


def load() -> Any:  # noqa: ANN401  # the library's module, which has no types
    """The sketch library.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(LIBRARY)
    except ImportError as error:
        raise DeviceError(f"{LIBRARY} cannot be loaded: {error}; pip install 'ferryman[drift]'") from error


class _Follower:
    """One tensor over the inferences of a stretch."""

    def __init__(self, name: str, role: Role) -> None:
        self.name, self.role = name, role
        self._dtype = ""
        self._values = self._nan = self._infinite = 0
        self._least, self._most, self._sum = np.inf, -np.inf, 0.0
        self._sketch = load().kll_floats_sketch(K)

    def take(self, array: Array, drawn: NDArray[np.int64] | None) -> None:
        """Count all values, and put those at `drawn` into the sketch; None: all."""
        flat = array.reshape(-1)
        self._dtype = array.dtype.name
        self._values += flat.size
        if not flat.size:
            return
        with np.errstate(all="ignore"):  # what comes in is what we are to tell of
            total = float(flat.sum(dtype=np.float64))
            if np.isfinite(total):
                self._add(flat, total)
            else:
                self._nan += int(np.isnan(flat).sum())
                self._infinite += int(np.isinf(flat).sum())
                finite = flat[np.isfinite(flat)]
                self._add(finite, float(finite.sum(dtype=np.float64)))
        sampled = (flat if drawn is None else flat[drawn]).astype(np.float64)
        sampled = sampled[np.abs(sampled) <= _FLOAT_MAX]  # neither NaN, infinite, nor so in float32
        if sampled.size:
            self._sketch.update(sampled.astype(np.float32))

    def _add(self, finite: Array, total: float) -> None:
        if finite.size:
            self._least = min(self._least, float(finite.min()))
            self._most = max(self._most, float(finite.max()))
            self._sum += total

    def record(self) -> DriftSketch:
        """As it stands."""
        finite = self._values - self._nan - self._infinite
        rough = self._sketch.is_estimation_mode()
        return DriftSketch(
            name=self.name,
            role=self.role,
            dtype=self._dtype,
            values=self._values,
            nan=self._nan,
            infinite=self._infinite,
            least=self._least if finite else None,
            most=self._most if finite else None,
            mean=min(max(self._sum / finite, self._least), self._most) if finite else None,  # a sum may overflow
            sketch=self._sketch.serialize(),
            rank_error=self._sketch.normalized_rank_error(False) if rough else 0.0,
            share_error=self._sketch.normalized_rank_error(True) if rough else 0.0,
        )


def sketch_of(arrays: Iterable[Array], name: str, role: Role = "input") -> DriftSketch:
    """A sketch of every value of `arrays`, such as the calibration inputs of one tensor: a reference.

    Raises:
        DeviceError: the sketch library is not installed.
    """
    follower = _Follower(name, role)
    for array in arrays:
        follower.take(np.asarray(array), None)
    return follower.record()


@dataclass
class _Stretch:
    """One variant on one interpreter since the last record."""

    served: Served
    from_ns: int
    to_ns: int
    followers: list[_Follower]
    inferences: int = 0


@dataclass
class DriftMonitor:
    """Follows what is served, and gives a record for every stretch of time; safe to use from several threads.

    Without the sketch library it says so once, and gives none.
    """

    period_s: float = PERIOD_S
    """0: follows nothing."""
    inferences_max: int = INFERENCES_MAX
    _stretches: dict[tuple[str, str, str], _Stretch] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _random: np.random.Generator = field(default_factory=np.random.default_rng)

    def __post_init__(self) -> None:
        """Raise CallerError where a period is out of range."""
        if self.period_s and not PERIOD_MIN_S <= self.period_s <= PERIOD_MAX_S:
            raise CallerError(
                f"drift is told every {PERIOD_MIN_S:g} to {PERIOD_MAX_S:,.0f} s, or 0 for never; "
                f"found {self.period_s:g}"
            )

    def observe(self, served: Served, now_ns: int) -> list[Drift]:
        """Take in one inference; returns the records that are due."""
        if not self.period_s:
            return []
        with self._lock:
            key = (served.package_sha256, served.variant, served.interpreter)
            ended = self._end(lambda stretch: stretch.served.package_sha256 != served.package_sha256)
            try:
                stretch = self._stretches.get(key) or self._begin(served, now_ns)
            except DeviceError as error:
                log.warning("drift statistics are off: %s", error)
                self.period_s = 0
                return ended
            self._stretches[key] = stretch
            stretch.to_ns = max(now_ns, stretch.from_ns)
            stretch.inferences += 1
            arrays = (*served.inputs[:TENSORS_OF_A_ROLE], *served.outputs[:TENSORS_OF_A_ROLE])
            for follower, array in zip(stretch.followers, arrays, strict=True):
                drawn = self._random.integers(0, array.size, SAMPLE) if array.size > SAMPLE else None
                follower.take(array, drawn)
            return ended + self._end(lambda one: self._is_over(one, now_ns))

    def due(self, now_ns: int, active_sha256: str | None) -> list[Drift]:
        """Records of stretches that are over: their time is, or their package is no longer the active one."""
        with self._lock:
            return self._end(
                lambda one: one.served.package_sha256 != active_sha256 or self._is_over(one, now_ns),
            )

    def flush(self) -> list[Drift]:
        """Records of everything that was not told yet."""
        with self._lock:
            return self._end(lambda _: True)

    def _begin(self, served: Served, now_ns: int) -> _Stretch:
        followers = [_Follower(name, "input") for name in served.input_names[:TENSORS_OF_A_ROLE]]
        followers += [_Follower(name, "output") for name in served.output_names[:TENSORS_OF_A_ROLE]]
        return _Stretch(served._replace(inputs=(), outputs=()), now_ns, now_ns, followers)

    def _is_over(self, stretch: _Stretch, now_ns: int) -> bool:
        passed_s = (now_ns - stretch.from_ns) / 1e9  # below 0: the clock was set back
        return stretch.inferences >= self.inferences_max or not 0 <= passed_s < self.period_s

    def _end(self, over: Callable[[_Stretch], bool]) -> list[Drift]:
        ended = {key: stretch for key, stretch in self._stretches.items() if over(stretch)}
        for key in ended:
            del self._stretches[key]
        return [_as_record(stretch) for stretch in ended.values()]


def _as_record(stretch: _Stretch) -> Drift:
    served = stretch.served
    return Drift(
        package_name=served.package_name,
        package_sha256=served.package_sha256,
        variant=served.variant,
        interpreter=served.interpreter,
        from_ns=stretch.from_ns,
        to_ns=stretch.to_ns,
        inferences=stretch.inferences,
        library=f"{LIBRARY} {metadata.version(LIBRARY)}",
        tensors=tuple(follower.record() for follower in stretch.followers),
        left_out=len(served.input_names) + len(served.output_names) - len(stretch.followers),
    )
