"""FedZip: the largest of an update by tensor, clustered, their places and clusters entropy-coded.

As in "FedZip: A Compression Framework for Communication-Efficient Federated Learning".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.updates.base import (
    Floats,
    Shapes,
    State,
    Update,
    flat,
    head,
    read_head,
    shaped,
    shapes_of,
    sizes_of,
)
from ferryman.runtime.updates.kept import Coded, read_coded, write_coded
from ferryman.runtime.updates.positions import Positions
from ferryman.runtime.updates.rans import ALPHABET_MAX

_ROUNDS = 30


@dataclass(frozen=True)
class FedZip:
    """Top-z sparsification and k-means, tensor by tensor; what is left out is lost.

    Wrapped in `ErrorFeedback` it is not: what was left out comes with a later update.
    """

    kept: float = 0.01
    """z: the share of each tensor that is sent."""
    clusters: int = 15
    """How many values a tensor's update may take beside zero."""

    def __post_init__(self) -> None:
        if not 0 < self.kept <= 1 or not 1 <= self.clusters <= ALPHABET_MAX:
            raise CallerError(
                f"FedZip keeps a share above 0 and up to 1 in 1 to {ALPHABET_MAX} clusters, found {self.kept} in "
                f"{self.clusters}"
            )

    @property
    def name(self) -> str:
        """See `Codec`."""
        return f"fedzip-z{100 * self.kept:g}-k{self.clusters}"

    def encode(self, update: Update, state: State) -> bytes:  # noqa: ARG002  # it keeps nothing
        """See `Codec.encode`."""
        tensors = flat(update)
        coded = [cluster(one, largest(one, self.kept), self.clusters) for one in tensors]
        return head("fedzip", shapes_of(update)) + write_coded(coded, [one.size for one in tensors])

    def decode(self, data: bytes, shapes: Shapes) -> dict[str, Floats]:
        """See `Codec.decode`."""
        reader = read_head(data, "fedzip", shapes)
        sizes = sizes_of(shapes)
        try:
            coded = read_coded(reader, sizes)
            reader.end()
        except ValueError as error:
            raise PackageError(f"an update by FedZip is damaged: {error}") from error
        return shaped([_dense(one, size) for one, size in zip(coded, sizes, strict=True)], shapes)


def largest(values: Floats, share: float) -> Positions:
    """Where the largest lie, at least one and no zeros, ascending."""
    count = min(math.ceil(share * values.size), values.size)
    if not count:
        return np.zeros(0, np.int64)
    sizes = np.abs(values)
    found = np.argpartition(sizes, values.size - count)[values.size - count :]
    return np.sort(found[sizes[found] > 0]).astype(np.int64)


def cluster(values: Floats, positions: Positions, clusters: int) -> Coded:
    """Put what lies at positions into clusters by Lloyd's rule, which on a line needs but the bounds between them."""
    if not len(positions):
        return Coded(positions, positions, np.zeros(0, np.float32))
    held = np.sort(values[positions].astype(np.float64))
    sums = np.concatenate(([0.0], np.cumsum(held)))
    # The best codes are as dense as the cube root of what they stand for (Panter and Dite); density is 1 / distance.
    dense = np.concatenate(([0.0], np.cumsum(np.diff(held) ** (2 / 3))))
    codes = np.unique(np.interp((np.arange(clusters) + 0.5) / clusters * dense[-1], dense, held))
    for _ in range(_ROUNDS):
        bounds = np.searchsorted(held, (codes[1:] + codes[:-1]) / 2)
        edges = np.unique(np.concatenate(([0], bounds, [len(held)])))
        moved = np.diff(sums[edges]) / np.diff(edges)
        if np.array_equal(moved, codes):
            break
        codes = moved
    short = np.unique(codes.astype(np.float32))
    ids = np.searchsorted((short[1:].astype(np.float64) + short[:-1]) / 2, values[positions])
    return Coded(positions, ids.astype(np.int64), short)


def _dense(coded: Coded, size: int) -> Floats:
    made = np.zeros(size, np.float32)
    made[coded.positions] = coded.values()
    return made
