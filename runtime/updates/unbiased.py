"""Compressors that are right on average, however few bytes they take: the unbiased ones that SCALLION asks for."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field

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
from ferryman.runtime.updates.kept import read_floats
from ferryman.runtime.updates.positions import Positions
from ferryman.runtime.updates.rans import ALPHABET_MAX, read_symbols, write_symbols
from ferryman.runtime.updates.varint import write_varint

_SEED_BYTES = 8
_SEEDS = 1 << (8 * _SEED_BYTES)


def _new_seed() -> int:
    return secrets.randbits(8 * _SEED_BYTES)


def _draw(state: State, seed: int) -> int:
    """A seed that no update before had."""
    done = state.get("draws", np.zeros(1, np.float32))
    state["draws"] = done + 1
    return (seed + int(done[0])) % _SEEDS


@dataclass(frozen=True)
class RandomK:
    """A random share of an update, scaled up by what is left out; its places travel as a seed of eight bytes.

    The expected squared error is (1/kept - 1) |update|^2.
    """

    kept: float = 0.05
    seed: int = field(default_factory=_new_seed)

    def __post_init__(self) -> None:
        if not 0 < self.kept <= 1:
            raise CallerError(f"random-k keeps a share above 0 and up to 1, found {self.kept}")

    @property
    def name(self) -> str:
        """See `Codec`."""
        return f"randomk-z{100 * self.kept:g}"

    def encode(self, update: Update, state: State) -> bytes:
        """See `Codec.encode`; `state` counts updates."""
        whole = np.concatenate(flat(update))
        count = math.ceil(self.kept * whole.size)
        seed = _draw(state, self.seed)
        values = whole[_places(seed, count, whole.size)] * np.float32(whole.size / count) if count else whole
        start = head("randomk", shapes_of(update)) + seed.to_bytes(_SEED_BYTES, "little") + write_varint(count)
        return start + values.astype("<f4").tobytes()

    def decode(self, data: bytes, shapes: Shapes) -> dict[str, Floats]:
        """See `Codec.decode`."""
        reader = read_head(data, "randomk", shapes)
        sizes = sizes_of(shapes)
        whole = np.zeros(sum(sizes), np.float32)
        try:
            seed = int.from_bytes(reader.take(_SEED_BYTES), "little")
            count = reader.varint_to(whole.size)
            values = read_floats(reader, count)
            reader.end()
        except ValueError as error:
            raise PackageError(f"an update by random-k is damaged: {error}") from error
        if count:
            whole[_places(seed, count, whole.size)] = values
        return shaped(np.split(whole, np.cumsum(sizes)[:-1]), shapes)


@dataclass(frozen=True)
class StochasticQuantizer:
    """QSGD-like: each number becomes one of 2 levels + 1, up or down at random; the levels are entropy-coded.

    Where the largest of a tensor is s, the error of each number is below s / levels.
    """

    levels: int = 1
    seed: int = field(default_factory=_new_seed)

    def __post_init__(self) -> None:
        if not 1 <= self.levels < ALPHABET_MAX // 2:
            raise CallerError(f"a quantizer has 1 to {ALPHABET_MAX // 2 - 1} levels, found {self.levels}")

    @property
    def name(self) -> str:
        """See `Codec`."""
        return f"stochastic-l{self.levels}"

    def encode(self, update: Update, state: State) -> bytes:
        """See `Codec.encode`; `state` counts updates."""
        tensors = flat(update)
        random = np.random.Generator(np.random.Philox(key=_draw(state, self.seed)))
        scales = np.array([np.abs(one).max(initial=0) for one in tensors], "<f4")
        symbols = []
        for one, scale in zip(tensors, scales.astype(np.float64), strict=True):
            share = np.abs(one.astype(np.float64)) / scale if scale else np.zeros(one.size)
            level = np.floor(share * self.levels + random.random(one.size)).astype(np.int64)
            symbols.append(self.levels + np.where(one < 0, -level, level))
        start = head(self.name, shapes_of(update)) + scales.tobytes()
        return start + write_symbols(np.concatenate(symbols) if symbols else np.zeros(0, np.int64))

    def decode(self, data: bytes, shapes: Shapes) -> dict[str, Floats]:
        """See `Codec.decode`."""
        reader = read_head(data, self.name, shapes)
        sizes = sizes_of(shapes)
        try:
            scales = read_floats(reader, len(sizes))
            symbols = read_symbols(reader, sum(sizes), 2 * self.levels + 1)
            reader.end()
        except ValueError as error:
            raise PackageError(f"an update by stochastic quantization is damaged: {error}") from error
        levels = (symbols - self.levels).astype(np.float32) / np.float32(self.levels)
        scaled = levels * np.repeat(scales, sizes)
        return shaped(np.split(scaled, np.cumsum(sizes)[:-1]), shapes)


def _places(seed: int, count: int, size: int) -> Positions:
    """The same on both ends: raw words of Philox are fixed for good, what numpy makes of them is not."""
    keys = np.random.Philox(key=seed).random_raw(size)
    return np.sort(np.argsort(keys, kind="stable")[:count])
