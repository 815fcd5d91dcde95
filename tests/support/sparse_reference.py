"""What sparse convolutions answer, in numpy, and how their weights are held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INDEX_BITS = (0, 1, 4, 8)
FLT_MAX = float(np.finfo(np.float32).max)


def held(rows: np.ndarray, index_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """[out, depth] -> the index uint8[n], and whether each weight has a value: bool[out, depth]."""
    if index_bits == 0:
        return np.zeros(1, np.uint8), np.ones(rows.shape, bool)
    there = rows != 0
    if index_bits == 1:
        return np.packbits(there, axis=1, bitorder="little").reshape(-1), there
    most, there = (1 << index_bits) - 1, there.copy()
    counts, gaps = [], []
    for row in there:
        own, last = [], -1
        for position in np.flatnonzero(row):
            while position - last - 1 > most:  # a zero bridges the gap
                last += most + 1
                row[last] = True
                own.append(most)
            own.append(position - last - 1)
            last = position
        counts.append(len(own))
        gaps.append(fields(np.array(own, int), index_bits))
    return np.concatenate([np.array(counts, "<u2").view(np.uint8), *gaps]), there


def fields(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned numbers of `bits`, low bits first -> uint8[ceil(n * bits / 8)]."""
    per = 8 // bits
    padded = np.pad(numbers, (0, -len(numbers) % per)).reshape(-1, per)
    return (padded << (bits * np.arange(per))).sum(1).astype(np.uint8)


def by_position(weight: np.ndarray) -> np.ndarray:
    """[out, in, kh, kw] -> [out, kh * kw * in]."""
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)


def sparse_blob(weight: np.ndarray, bits: int, index_bits: int) -> np.ndarray:
    """Quantized weights int[out, in, kh, kw] -> the index, then the values."""
    rows = by_position(weight)
    index, there = held(rows, index_bits)
    values = [fields(row[of] + (1 << (bits - 1)), bits) for row, of in zip(rows, there, strict=True)]
    return np.concatenate([index, *values])


@dataclass(frozen=True)
class SparseConv:
    """A convolution and its data, channels first."""

    x: np.ndarray
    """float32[batch, channels, height, width]."""
    weight: np.ndarray
    """float32[out, channels / groups, kh, kw]; zeros have no value."""
    bias: np.ndarray
    index_bits: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right."""
    groups: int = 1
    add: np.ndarray | None = None
    low: float = -FLT_MAX
    high: float = FLT_MAX

    @np.errstate(all="ignore")
    def expected(self) -> np.ndarray:
        """float64[batch, out, out height, out width]."""
        top, left, bottom, right = self.padding
        x = np.pad(self.x.astype("f8"), [(0, 0), (0, 0), (top, bottom), (left, right)])
        (sh, sw), (dh, dw) = self.stride, self.dilation
        out, _, kh, kw = self.weight.shape
        windows = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
        windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]
        windows = windows.reshape(windows.shape[0], self.groups, -1, *windows.shape[2:])
        weight = self.weight.astype("f8").reshape(self.groups, out // self.groups, *self.weight.shape[1:])
        y = np.einsum("bgchwij,gocij->bgohw", windows, weight)
        y = y.reshape(y.shape[0], out, *y.shape[3:]) + self.bias[:, None, None]
        y = y if self.add is None else y + self.add
        return np.clip(y, -np.inf if self.low == -FLT_MAX else self.low, np.inf if self.high == FLT_MAX else self.high)

    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and index."""
        rows = by_position(self.weight)
        index, there = held(rows, self.index_bits)
        return np.ascontiguousarray(rows[there], np.float32), index
