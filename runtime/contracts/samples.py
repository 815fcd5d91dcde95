"""A distribution of durations, whole and small: what was measured, in order, packed for the wire.

Up to some thousands, every duration is kept, exact. Of more, every so manieth is kept exact and in order, and all of
them together as counts of values rounded to a part in 1,024 (log-linear buckets, as HdrHistogram has them).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, overload

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferryman.runtime.contracts.record import Record

Int64s = NDArray[np.int64]
_COUNT_MAX = 1 << 24
_PRECISION_BITS = 10


class Samples(Record, tag="samples"):
    """Durations in nanoseconds; to a reader, the sequence of those that were kept.

    `packed` and `buckets` are zlib streams of little-endian 64-bit integers stored by byte (all lowest bytes first), so
    `np.frombuffer(zlib.decompress(packed), np.uint8).reshape(8, -1).T.copy().view("<i8")[:, 0]` are the numbers.
    """

    count: Annotated[int, msgspec.Meta(ge=0, le=_COUNT_MAX)]
    """How many were taken."""
    every: Annotated[int, msgspec.Meta(ge=1, le=_COUNT_MAX)] = 1
    """1: all are kept; n: the first of every n."""
    packed: bytes = b""
    """Those that were kept, in order."""
    buckets: bytes = b""
    """Where not all are kept: rounded values, ascending, then as many counts, of all that were taken."""

    def __post_init__(self) -> None:
        """Raise ValueError where the parts do not fit together."""
        kept = self.values_ns()
        if self.every > 1:
            values, counts = self.weighted()
            if len(values) == 0 or int(counts.sum()) != self.count or (counts < 1).any() or (values < 0).any():
                raise ValueError(f"buckets hold other than {self.count} samples")
        if (kept < 0).any():
            raise ValueError("a duration is negative")

    @classmethod
    def of(cls, values_ns: ArrayLike, kept_max: int = _COUNT_MAX) -> Samples:
        """Pack durations, and keep at most `kept_max` of them exact."""
        values = np.asarray(values_ns, np.int64).reshape(-1)
        return cls(count=len(values), packed=_pack(values)).thinned(kept_max)

    def thinned(self, kept_max: int) -> Samples:
        """The same distribution with at most `kept_max` kept exact."""
        if len(self) <= kept_max:
            return self
        step = -(-len(self) // max(kept_max, 1))
        values, counts = self.weighted()
        if self.every == 1:
            values, where = np.unique(_rounded(values), return_inverse=True)
            counts = np.bincount(where, weights=counts).astype(np.int64)
        return Samples(
            count=self.count,
            every=self.every * step,
            packed=_pack(self.values_ns()[::step]),
            buckets=_pack(np.concatenate([values, counts])),
        )

    def values_ns(self) -> Int64s:
        """Those that were kept, in order."""
        return _unpack(self.packed, len(self))

    def weighted(self) -> tuple[Int64s, Int64s]:
        """Ascending values, and how often each was taken: the whole distribution."""
        if self.every == 1:
            values, counts = np.unique(self.values_ns(), return_counts=True)
            return values, counts.astype(np.int64)
        both = _unpack(self.buckets, None)
        if len(both) % 2:
            raise ValueError("buckets are values and as many counts")
        return both[: len(both) // 2], both[len(both) // 2 :]

    def __len__(self) -> int:
        return (self.count + self.every - 1) // self.every

    def __iter__(self) -> Iterator[int]:
        return iter(self.values_ns().tolist())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        found: int | list[int] = self.values_ns()[index].tolist()
        return found


def _rounded(values: Int64s) -> Int64s:
    """To the middle of the bucket: exact below 2,048, above within a part in 2,048."""
    shift = np.maximum(np.frexp(values.astype(np.float64))[1] - 1 - _PRECISION_BITS, 0)
    middles: Int64s = (values >> shift << shift) + ((1 << shift) >> 1)
    return middles


def _pack(values: Int64s) -> bytes:
    planes = np.ascontiguousarray(values.astype("<i8").view(np.uint8).reshape(-1, 8).T)
    return zlib.compress(planes.tobytes(), 9)


def _unpack(packed: bytes, count: int | None) -> Int64s:
    """The numbers; of unknown count, at most as many as a distribution has buckets."""
    if not packed and not count:
        return np.empty(0, np.int64)
    size = 8 * (1 << 17 if count is None else count)
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, size + 1)
    except zlib.error as error:
        raise ValueError(f"packed samples are damaged: {error}") from error
    if not stream.eof or stream.unused_data or len(data) % 8 or (count is not None and len(data) != size):
        raise ValueError(f"packed samples are damaged: expected {count} of them, found {len(data) / 8:g}")
    planes = np.frombuffer(data, np.uint8).reshape(8, -1)
    values: Int64s = np.ascontiguousarray(planes.T).view("<i8").reshape(-1).astype(np.int64)
    return values
