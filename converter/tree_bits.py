"""Weights as a tree, in the layout of native/kernels/kernels.h: each output channel as what differs from another's.

On hardware that takes 32 weights at a time, a channel costs as many operations as it has words with a difference in
them, not as many as it has differences: near duplicates gain, and channels that differ here and there do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferryman.converter.bits import LANES, WORD_BITS, pack_signs
from ferryman.converter.compress.mst import ROOT, spanning_tree
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.tensor import Array

MAGIC = 0x31455254
ANEW_ABOVE = 0.5
"""An entry costs an operation and three words, a word of a root an operation and one."""
_ENTRIES_MAX = 1 << 22
_HEADER = 5
_PER_CHANNEL = 4


@dataclass(frozen=True)
class TreeBits:
    """A layer's weights, packed along a tree."""

    words: NDArray[np.int32]
    """The layout; the bits of unsigned words."""
    roots: int
    """Channels that start anew: the tree's root, and those that differ too much from any other."""
    entries: int
    """Words in which channels differ from those they follow from."""
    operations: int
    """Words of 32 weights to take in, for one output pixel: those of the roots, and the entries."""
    operations_plain: int
    """The same for each channel on its own."""


def pack_tree(weight: Array, *, anew_above: float = ANEW_ABOVE) -> TreeBits:
    """Pack a convolution's weights by their signs.

    Args:
        weight: float[out, in, kh, kw] of a convolution of one group; what is >= 0 counts as +1.
        anew_above: a channel of which a larger share of words differs from its parent's starts anew.

    Raises:
        CallerError: they take more entries than the layout may have (2^22).
    """
    rows = np.where(weight >= 0, 1, -1).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    bits = pack_signs(rows > 0).view(np.uint32)
    out, words = bits.shape
    tree = spanning_tree(rows)
    steps = np.empty(out, np.int64)
    steps[tree.order] = np.arange(out)
    parents = tree.parents[tree.order]
    own = bits[tree.order]
    before = np.where((parents == ROOT)[:, None], own, bits[parents])
    masks = own ^ before
    anew = (parents == ROOT) | ((masks != 0).sum(1) > anew_above * words)
    masks[anew] = 0
    step, at = np.nonzero(masks)
    if len(at) > _ENTRIES_MAX:
        raise CallerError(f"a tree may have {_ENTRIES_MAX} entries, found {len(at)}")
    distances = np.where(anew, 0, tree.distances[tree.order])
    parts = (
        np.array([MAGIC, out, words, anew.sum(), len(at)]),
        tree.order,
        np.where(anew, ROOT, steps[parents]),
        distances,
        np.cumsum((masks != 0).sum(1)),
        own[anew].reshape(-1),
        at,
        masks[step, at],
        (before & masks)[step, at],
    )
    return TreeBits(
        words=np.concatenate([part.astype(np.int64) for part in parts]).astype(np.uint32).view(np.int32),
        roots=int(anew.sum()),
        entries=len(at),
        operations=int(anew.sum()) * words + len(at),
        operations_plain=out * words,
    )


def unpack_tree(words: NDArray[np.int32], depth: int) -> NDArray[np.bool_]:
    """Undo `pack_tree`: bool[out, depth], true for +1, in the order of kernels.h.

    Raises:
        CallerError: these words hold no tree.
    """
    if len(words) < _HEADER or words[0] != MAGIC:
        raise CallerError("these words hold no tree of weights")
    out, row_words, roots, entries = (int(number) for number in words[1:_HEADER])
    lengths = [out] * _PER_CHANNEL + [roots * row_words] + [entries] * 3
    if min(lengths) < 0 or row_words != -(-depth // WORD_BITS) or _HEADER + sum(lengths) != len(words):
        raise CallerError("a tree of weights has another length than it says")
    parts = np.split(words[_HEADER:], np.cumsum(lengths)[:-1])
    order, parents, _, ends, rows, at, masks, _ = parts
    bits = np.zeros((out, row_words), np.int32)
    fresh = iter(rows.reshape(roots, row_words))
    begin = 0
    for step, (channel, parent, end) in enumerate(zip(order, parents, ends, strict=True)):
        if not -1 <= parent < step:
            raise CallerError("a parent in a tree of weights is no earlier step")
        bits[channel] = next(fresh) if parent == ROOT else bits[order[parent]]
        bits[channel, at[begin:end]] ^= masks[begin:end]
        begin = int(end)
    unpacked = np.unpackbits(bits.view(np.uint8), axis=-1, count=depth, bitorder="little")
    return unpacked.astype(np.bool_)


def plain_words(out: int, depth: int) -> int:
    """How many words the plain layout takes."""
    return -(-out // LANES) * LANES * -(-depth // WORD_BITS)
