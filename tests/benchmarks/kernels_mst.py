"""Binary convolutions along a tree of their channels, beside plain ones: `python -m tests.benchmarks.kernels_mst`.

Figures without bars: what is gained depends on how much alike the channels are. The tree's operations count differing
weights; the kernels take 32 weights at a time, so that what they have to do is counted in words. Channels that differ
too much from any other start anew in what the converter packs; beside it stands the tree as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ferryman.converter import channel_order
from ferryman.converter.compress.mst import operations
from ferryman.converter.kernel_calls import BITS, CHANNELS_LAST, Conv
from ferryman.converter.tree_bits import pack_tree, plain_words
from ferryman.runtime import kernels
from tests.benchmarks.frame import CannotRun, Figure, Part, figure, main, progress
from tests.support.kernels import near_duplicates

LAYERS = ((64, 56), (256, 14))
"""Channels in and out, and the image's side: the first and third stage of ResNet-18."""
_STEPS = 60
_TREE_AGE = 5
_PENALTY = 4.0


def random_weights(channels: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)


def trained(channels: int, penalty: float) -> tuple[np.ndarray, float]:
    """Weights that learned a float convolution's outputs on random signs, and the share of its variance they miss."""
    import torch
    from torch.nn import functional

    from ferryman.converter.compress.estimators import Ste, estimated_sign
    from ferryman.converter.compress.mst import spanning_tree, tree_distance_loss

    torch.manual_seed(0)
    target = torch.from_numpy(random_weights(channels))
    weight = (target * 0.1).requires_grad_()
    scale = torch.full((channels, 1, 1), 0.8, requires_grad=True)
    optimizer = torch.optim.Adam([weight, scale], lr=1e-2)
    tree = None
    for step in range(_STEPS + 1):
        x = torch.randn(2, channels, 8, 8).sign()
        expected = functional.conv2d(x, target)
        found = functional.conv2d(x, estimated_sign(weight, Ste())) * scale
        error = (found - expected).square().mean() / expected.square().mean()
        if step == _STEPS:
            return weight.detach().numpy(), error.item()
        if step % _TREE_AGE == 0:
            rows = torch.where(weight.detach().flatten(1) >= 0, 1.0, -1.0)
            tree = spanning_tree(rows.numpy())
        loss = error + penalty * tree_distance_loss(weight, tree)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own lack
        optimizer.step()
    raise AssertionError


def measure() -> Iterator[Figure]:
    """Each layer with each kind of weights, packed signs in, floats out, on one thread."""
    if kernels.version() is None:
        raise CannotRun("ferryman's kernel library is not installed: install ferryman with pip")
    for channels, size in LAYERS:
        layer = f"{channels}->{channels} 3x3"
        progress(f"{layer} along a tree")
        yield from _figures(f"{layer}, random", random_weights(channels), size)
        without, error = trained(channels, 0)
        yield from _figures(f"{layer}, trained", without, size)
        yield figure("  share of the variance missed", [error])
        with_penalty, error = trained(channels, _PENALTY)
        yield from _figures(f"{layer}, trained with the penalty", with_penalty, size)
        yield figure("  share of the variance missed", [error])
        for flips in (2, 16):
            alike = near_duplicates((channels, channels, 3, 3), prototypes=8, flips=flips)
            yield from _figures(f"{layer}, 8 kinds of channels, {flips} weights turned", alike, size)


def _figures(name: str, weight: np.ndarray, size: int) -> Iterator[Figure]:
    out, channels, kernel_h, kernel_w = weight.shape
    counted = operations(np.where(weight >= 0, 1, -1).reshape(out, -1))
    window = (kernel_h, kernel_w, 1, 1, 1, 1, 1, 1, 1, 1)
    conv = Conv(1, size, size, channels, out, *window, 1, 0, BITS, 0, CHANNELS_LAST)
    yield figure(f"{name}: operations, tree over plain", [counted.tree / counted.plain])
    yield figure("  operations plain", [counted.plain])
    yield figure("  operations along the tree", [counted.tree])
    for how, tree in (("the tree", pack_tree(weight, anew_above=1)), ("what is packed", pack_tree(weight))):
        ours, plain = np.array(channel_order.rounds(weight, conv, tree)).T
        yield figure(f"  latency on {kernels.isa()}, {how} over plain", ours / plain)
        yield figure(f"    words plain, of 32 weights, beside {how}", [tree.operations_plain])
        yield figure(f"    words along {how}", [tree.operations])
        yield figure("      of these, entries", [tree.entries])
        yield figure(f"    stored, {how} over plain", [tree.words.size / plain_words(out, weight[0].size)])


PARTS = (Part((), measure),)

if __name__ == "__main__":
    main("kernels_mst", PARTS)
