"""A 4-bit linear layer, 1x4096x4096 in groups of 32, beside llama.cpp's Q4_0: one process, one thread, in turn.

Both read the same weights and scales, in as many bytes (16 and a float16 to 32 inputs), from ordinary pages of memory,
and quantize the row in each call. llama.cpp may lay weights out anew as it loads them; the bar is over its faster way.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ferryman.converter.quiet import quiet
from ferryman.runtime import kernels
from tests.benchmarks import quantized_ggml as ggml
from tests.benchmarks.frame import Bar, Figure, Goal, Part, Values, figure, interleave, progress, seconds_of
from tests.benchmarks.quantized_linear import SIZE
from tests.support.quantized import Linear, LinearCall, request, run
from tests.support.quantized_reference import by_lanes, pack_lanes

GOAL = Goal(f"linear 1x{SIZE}x{SIZE}, 4-bit, times as fast as llama.cpp's Q4_0", ">=", 1.0)
_ROUNDS = 200
_ALONE_ROUNDS = 40
_COLD_ROUNDS = 60
_CACHES_BYTES = 1 << 27  # more than they hold
_ERROR_MAX = 0.02  # of rounding the row to 8 bits; a wrong product is off by 1


@dataclass(frozen=True)
class Contender:
    """One way to compute the row."""

    name: str
    work: Callable[[], None]
    error: float
    """That rounding the row adds, over the size of the exact product."""

    def figures(self, seconds: Values) -> Iterator[Figure]:
        yield figure(f"  linear by {self.name}", seconds * 1e6, "us")
        yield figure(f"  linear by {self.name}: error of rounding the row", [self.error * 100], "%")


def measure() -> Iterator[Bar | Figure]:
    """Hold all against numpy, find llama.cpp's fastest way, and time it beside ours."""
    library = ggml.load()
    progress(f"linear 1x{SIZE}x{SIZE} by llama.cpp")
    random = np.random.default_rng(0)
    x = random.standard_normal((1, SIZE), np.float32)
    blocks = ggml.quantized(library, random.standard_normal((SIZE, SIZE), np.float32))
    wanted = x @ _weights(blocks).T
    ours, theirs = _ours(x, blocks, wanted), _theirs(library, x, blocks, wanted)
    alone = _timed(_ALONE_ROUNDS, theirs)
    at = int(np.argmin(np.median(alone, axis=1)))
    pair = (ours, theirs[at])
    own, other = _timed(_ROUNDS, pair)
    own_cold, other_cold = _timed(_COLD_ROUNDS, pair, before=_fill_caches())
    yield GOAL.measured(other / own)
    yield figure("  the same with cold caches", other_cold / own_cold)
    yield from ours.figures(own)
    for index, contender in enumerate(theirs):
        yield from contender.figures(other if index == at else alone[index])
    for contender, seconds in zip(pair, (own_cold, other_cold), strict=True):
        yield figure(f"  linear by {contender.name}, cold caches", seconds * 1e6, "us")


def _weights(blocks: np.ndarray) -> np.ndarray:
    """float32[out, in] that they stand for."""
    return (ggml.stored(blocks) - np.float32(8)) * blocks["scale"].astype(np.float32).repeat(ggml.BLOCK, axis=1)


def _error(y: np.ndarray, wanted: np.ndarray) -> float:
    error = float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))
    assert error < _ERROR_MAX, f"a wrong product: {error}"
    return error


def _ours(x: np.ndarray, blocks: np.ndarray, wanted: np.ndarray) -> Contender:
    """The kernel library's call."""
    weights = _placed(pack_lanes(ggml.stored(blocks)[None].astype(np.int16) - 8, 4))
    scale = _placed(by_lanes(blocks["scale"]))
    bias, y = np.zeros(SIZE, np.float32), np.full((1, SIZE), np.nan, np.float32)
    linear = Linear(rows=1, channels=SIZE, out_channels=SIZE, bits=4, group=ggml.BLOCK)
    arrays = [x, weights, scale, None, bias, y]
    call = request(LinearCall, arrays)
    run(linear, call)
    function, records = kernels.load().ferryman_quant_linear_run, (ctypes.byref(linear), ctypes.byref(call))

    def work(arrays: list[np.ndarray | None] = arrays) -> None:  # which keeps them
        function(*records)

    return Contender("ferryman", work, _error(y, wanted))


def _theirs(library: ctypes.CDLL, x: np.ndarray, blocks: np.ndarray, wanted: np.ndarray) -> list[Contender]:
    with quiet():
        products = ggml.products(library, blocks)
    made = []
    for name, product in products.items():
        product.put(x)
        product.run()
        made.append(Contender(f"llama.cpp, {name}", product.run, _error(product.get(), wanted)))
    return made


def _placed(array: np.ndarray) -> np.ndarray:
    """The same in ordinary pages, like a mapped file's: numpy asks for huge ones where it can, and ggml does not."""
    placed = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


def _timed(rounds: int, contenders: Sequence[Contender], before: Callable[[], None] = lambda: None) -> Values:
    """Seconds of each, one call a round, with `before` ahead of it: [contender, round]."""

    def timing(work: Callable[[], None]) -> Callable[[], float]:
        def measure() -> float:
            before()
            return seconds_of(work)

        return measure

    measures = [timing(contender.work) for contender in contenders]
    interleave(10, *measures)
    return interleave(rounds, *measures)


def _fill_caches() -> Callable[[], None]:
    """What leaves nothing of the weights in them."""
    other = np.zeros(_CACHES_BYTES, np.uint8)
    return lambda: np.add(other, 1, out=other)


PARTS = (Part((GOAL,), measure),)
