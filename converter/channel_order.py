"""Whether a layer's output channels are computed each on its own or along a spanning tree: what measures better.

Both give the same bits. The tree is taken only where it saves time on this machine, or bytes without costing time; near
ties fall to each on its own, so that the same model gives the same artifact again.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferryman.converter import kernel_calls
from ferryman.converter.bits import WORD_BITS, pack_signs, pack_weights
from ferryman.converter.kernel_calls import BITS, REALS, Conv
from ferryman.converter.tree_bits import TreeBits, pack_tree, plain_words
from ferryman.runtime import kernels
from ferryman.runtime.contracts.tensor import Array

FASTER = 1.05
"""How many times as fast the tree must be measured to be worth it for its speed alone."""
_CHANNELS_MAX = 4096
"""To find a tree takes memory with the square of the channels."""
_ROUNDS = 31
_SAMPLE_NS = 200_000
_BUDGET_NS = 1_500_000_000
"""What measuring one layer may take, about."""


@dataclass(frozen=True)
class Measured:
    """A tree beside the plain layout, on one layer."""

    tree: TreeBits
    speedup: float
    """Time of the plain layout over the tree's: the median over interleaved rounds."""
    plain_words: int
    """Of the plain layout; the tree's are `tree.words.size`."""

    @property
    def better(self) -> bool:
        """Whether to take the tree."""
        return self.speedup >= FASTER or (self.speedup >= 1 and self.tree.words.size < self.plain_words)

    def describe(self) -> str:
        """The tree's gain; nothing measured, so that the same model makes the same package."""
        fewer = self.tree.operations_plain / self.tree.operations
        return f"channels along a spanning tree: {fewer:.1f}x fewer operations, measured faster"


def choose_order(weight: Array, conv: Conv) -> Measured | None:
    """Measure both orders of a layer, unless it is plain before that the tree cannot gain.

    Args:
        weight: float[out, in / groups, kh, kw]; what is >= 0 counts as +1.
        conv: the layer, with the sizes it is used at.

    Returns:
        What was measured where the tree is better; None: take the plain layout.

    Raises:
        DeviceError: the kernel library is there but cannot be used.
    """
    if conv.groups != 1 or conv.input == REALS or kernels.version() is None or len(weight) > _CHANNELS_MAX:
        return None
    tree = pack_tree(weight)
    # An entry takes no less than a word of the plain layout.
    if tree.operations * FASTER >= tree.operations_plain:
        return None
    measured = measure(weight, conv, tree)
    return measured if measured.better else None


def measure(weight: Array, conv: Conv, tree: TreeBits) -> Measured:
    """Run both orders with the kernel library, on one thread, in turn.

    Raises:
        Refused: these are no numbers of a layer.
        DeviceError: as `kernels.load`.
    """
    speedup = statistics.median(plain / ours for ours, plain in rounds(weight, conv, tree))
    words = plain_words(weight.shape[0], weight[0].size)
    return Measured(tree=tree, speedup=speedup, plain_words=words)


def rounds(weight: Array, conv: Conv, tree: TreeBits) -> list[tuple[float, float]]:
    """Nanoseconds of a call along the tree and of a plain one, of each round; every other round goes backwards.

    Raises:
        Refused: these are no numbers of a layer.
        DeviceError: as `kernels.load`.
    """
    sizes = kernel_calls.check(conv)
    random = np.random.default_rng(0)
    x: NDArray[np.float32] | NDArray[np.int32]
    if conv.input == BITS:
        x = pack_signs(random.random((sizes.input // -(-conv.channels // WORD_BITS), conv.channels)) < 0.5)  # noqa: PLR2004  # half of them
    else:
        x = random.standard_normal(sizes.input, np.float32)
    channels = np.ones(sizes.per_channel, np.float32)
    output = np.empty(sizes.output, np.int32)
    plain = pack_weights(weight, 1)
    ways = []
    for words, length in ((tree.words, tree.words.size), (plain, None)):
        arrays = (x, words, channels, channels, channels, output)
        ways.append((kernel_calls.request([array.ctypes.data for array in arrays]), length))

    def call_ns(way: int, calls: int) -> float:
        request, length = ways[way]
        start = time.perf_counter_ns()
        for _ in range(calls):
            kernel_calls.run(conv, request, length)
        return (time.perf_counter_ns() - start) / calls

    once = [call_ns(way, 2) for way in (0, 1)]
    calls = max(1, int(_SAMPLE_NS / max(once)))
    done: list[tuple[float, float]] = []
    end = time.perf_counter_ns() + _BUDGET_NS
    while len(done) < _ROUNDS and (not done or time.perf_counter_ns() < end):
        found = {way: call_ns(way, calls) for way in ((0, 1) if len(done) % 2 == 0 else (1, 0))}
        done.append((found[0], found[1]))
    return done
