"""Deep Gradient Compression: one in a thousand of a gradient is sent, the rest is kept for later.

As in "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training".
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
from ferryman.runtime.updates.fedzip import largest
from ferryman.runtime.updates.kept import read_plain, write_plain

_FIRST = 0.25
"""Of a gradient, what is sent at the beginning of the warm-up."""


@dataclass(frozen=True)
class Dgc:
    """Top-k of what was accumulated, with the paper's four measures against staleness.

    Momentum is the sender's, so the receiver takes a plain step: accumulating velocities, not gradients, is what makes
    a late entry move the model as far as it would have in time (momentum correction). Entries that are sent leave both
    the velocity and the residual (factor masking); each gradient is clipped before it is added (local clipping); and
    the share that is sent falls from a quarter to `kept` over the first updates (warm-up).
    For differences of weights, in which an optimizer's momentum is already, set `momentum` to 0.
    """

    kept: float = 0.001
    momentum: float = 0.9
    warm_up: int = 0
    """Updates until only `kept` is sent."""
    clip: float | None = None
    """Of a gradient's Euclidean norm, over all tensors; the caller divides a global one by sqrt(senders)."""

    def __post_init__(self) -> None:
        if not 0 < self.kept <= 1 or not 0 <= self.momentum < 1 or self.warm_up < 0:
            raise CallerError(f"no such DGC: {self}; kept is above 0 and up to 1, momentum from 0 and below 1")

    @property
    def name(self) -> str:
        """See `Codec`."""
        return f"dgc-z{100 * self.kept:g}"

    def share(self, update: int) -> float:
        """What is sent of an update, counted from 0."""
        if update >= self.warm_up or self.kept >= _FIRST:
            return self.kept
        return float(_FIRST * (self.kept / _FIRST) ** (update / self.warm_up))

    def encode(self, update: Update, state: State) -> bytes:
        """See `Codec.encode`; `state` holds velocity and residual of each tensor."""
        tensors = flat(update)
        scale = self._clipped(tensors)
        done = state.get("updates", np.zeros(1, np.float32))
        share = self.share(int(done[0]))
        sent = []
        for name, one in zip(sorted(update), tensors, strict=True):
            nothing = np.zeros_like(one)
            velocity = np.float32(self.momentum) * state.get(f"velocity {name}", nothing) + scale * one
            residual = state.get(f"residual {name}", nothing) + velocity
            places = largest(residual, share)
            now = nothing
            now[places] = residual[places]
            residual[places] = velocity[places] = 0
            state[f"velocity {name}"], state[f"residual {name}"] = velocity, residual
            sent.append(now)
        state["updates"] = done + 1
        return head("dgc", shapes_of(update)) + write_plain(sent)

    def decode(self, data: bytes, shapes: Shapes) -> dict[str, Floats]:
        """See `Codec.decode`."""
        reader = read_head(data, "dgc", shapes)
        try:
            tensors = read_plain(reader, sizes_of(shapes))
            reader.end()
        except ValueError as error:
            raise PackageError(f"an update by DGC is damaged: {error}") from error
        return shaped(tensors, shapes)

    def _clipped(self, tensors: list[Floats]) -> np.float32:
        if self.clip is None:
            return np.float32(1)
        norm = math.sqrt(sum(float(np.square(one, dtype=np.float64).sum()) for one in tensors))
        return np.float32(min(1.0, self.clip / norm) if norm else 1.0)
