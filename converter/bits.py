"""Signs as bits, in the layouts of native/kernels/kernels.h: +1 is bit 1, least significant bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.tensor import Array

LANES = 16
WORD_BITS = 32


def pack_signs(positive: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Pack the last axis into 32-bit words; what fills the last word is 0.

    Args:
        positive: bool[..., n], true for +1.

    Returns:
        int32[..., ceil(n / 32)], the bits of unsigned words.
    """
    padding = [(0, 0)] * (positive.ndim - 1) + [(0, -positive.shape[-1] % WORD_BITS)]
    packed = np.packbits(np.pad(positive, padding), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4")


def unpack_signs(words: NDArray[np.int32], count: int) -> NDArray[np.bool_]:
    """Undo `pack_signs`: bool[..., count]."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, count=count, bitorder="little")
    return bits.astype(np.bool_)


def is_depthwise(weight_shape: tuple[int, ...], groups: int) -> bool:
    """Whether these weights go by the depthwise layout."""
    return groups > 1 and weight_shape[1] == 1


def pack_weights(weight: Array, groups: int) -> NDArray[np.int32]:
    """Pack a convolution's weights by their signs.

    Args:
        weight: float[out, in / groups, kh, kw]; what is >= 0 counts as +1.
        groups: of the convolution.

    Returns:
        int32[groups, ceil(out / groups / 16), ceil(taps * in / groups / 32), 16], lanes last, each word the exclusive
        or of its own and all before it in its lane; for depthwise convolutions int32[taps, ceil(out / 32)].
    """
    positive = weight >= 0
    out, channels, kernel_h, kernel_w = weight.shape
    if is_depthwise(weight.shape, groups):
        return pack_signs(positive.reshape(out, kernel_h * kernel_w).T)
    rows = positive.transpose(0, 2, 3, 1).reshape(groups, out // groups, kernel_h * kernel_w * channels)
    rows = np.pad(rows, [(0, 0), (0, -rows.shape[1] % LANES), (0, 0)])
    words = pack_signs(rows)
    blocks = np.bitwise_xor.accumulate(words, axis=-1).reshape(groups, -1, LANES, words.shape[-1])
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 2))
