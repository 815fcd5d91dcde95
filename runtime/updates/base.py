"""What every codec of weight updates shares: the update, its check, and what it lost."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.updates.varint import Reader

Floats = npt.NDArray[np.float32]
Update = Mapping[str, Floats]
"""Name of a tensor -> how much is added to it."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of a model's tensors, which both ends know: no name travels, and no bytes can ask for more memory than that."""
State = dict[str, npt.NDArray[np.float32]]
"""What a sender keeps from one update to the next; a codec that keeps nothing leaves it alone."""


class Codec(Protocol):
    """A way to write an update in few bytes."""

    @property
    def name(self) -> str:
        """As `parse_codec` takes it."""

    def encode(self, update: Update, state: State) -> bytes:
        """Write an update, and note in `state` what the next one needs.

        Raises:
            CallerError: it holds something else than finite float32.
        """

    def decode(self, data: bytes, shapes: Shapes) -> dict[str, Floats]:
        """What the other end adds; the same on every machine.

        Raises:
            PackageError: `data` is no update of such tensors.
        """


class Loss(Record):
    """What a codec made of an update."""

    bytes: int
    ratio: float
    """Bytes of the update as float32, over those on the wire."""
    relative_error: float
    """|decoded - update| / |update|, Euclidean, over all tensors."""


def loss_of(data: bytes, update: Update, decoded: Update) -> Loss:
    """State what was won and lost."""
    plain = sum(4 * tensor.size for tensor in update.values())
    wrong = math.sqrt(
        sum(float(np.square(decoded[name] - one, dtype=np.float64).sum()) for name, one in update.items())
    )
    norm = math.sqrt(sum(float(np.square(one, dtype=np.float64).sum()) for one in update.values()))
    return Loss(bytes=len(data), ratio=plain / len(data), relative_error=wrong / norm if norm else 0.0)


def shapes_of(update: Update) -> dict[str, tuple[int, ...]]:
    """Of each tensor."""
    return {name: tensor.shape for name, tensor in update.items()}


def flat(update: Update) -> list[Floats]:
    """Tensors in the order of their names, each in one dimension.

    Raises:
        CallerError: one holds something else than finite float32.
    """
    found = []
    for name in sorted(update):
        tensor = np.asarray(update[name])
        if tensor.dtype != np.float32:
            raise CallerError(f"{name}: expected float32, found {tensor.dtype}")
        if not np.isfinite(tensor).all():
            raise CallerError(f"{name}: some of it is not finite; look for the training that diverged")
        found.append(np.ascontiguousarray(tensor).reshape(-1))
    return found


def sizes_of(shapes: Shapes) -> list[int]:
    """How many numbers each tensor has, in the order of their names."""
    return [math.prod(shapes[name]) for name in sorted(shapes)]


def shaped(tensors: list[Floats], shapes: Shapes) -> dict[str, Floats]:
    """What `flat` undid."""
    return {name: one.reshape(shapes[name]) for name, one in zip(sorted(shapes), tensors, strict=True)}


def head(codec: str, shapes: Shapes) -> bytes:
    """Four bytes that differ where the codec or the model does."""
    said = ";".join([codec, *(f"{name}{list(shapes[name])}" for name in sorted(shapes))])
    return zlib.crc32(said.encode()).to_bytes(4, "little")


def read_head(data: bytes, codec: str, shapes: Shapes) -> Reader:
    """Check what `head` wrote.

    Raises:
        PackageError: `data` is of another codec, or an update of another model.
    """
    if data[:4] != head(codec, shapes):
        raise PackageError(f"expected an update by {codec} of {len(shapes)} tensors of these shapes, found another")
    return Reader(memoryview(data)[4:])
