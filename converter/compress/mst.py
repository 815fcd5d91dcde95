"""MST-compression: output channels of a binary layer computed from one another.

Where weights of +-1 of two output channels differ in d places, the dot product of one follows from the other's by d
operations instead of k. A minimum spanning tree over the channels, with the number of differing weights for distance,
is the cheapest order to compute them all: k operations for the root, the distance to its parent for each other channel.

Source: Vo et al., MST-compression: Compressing and Accelerating Binary Neural Networks with Minimum Spanning Tree,
ICCV 2023. Channels of a convolution with groups share inputs only within a group: treat each group on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ferryman.converter.compress.estimators import Ste, estimated_sign
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.tensor import Array

ROOT = -1
"""The root's parent."""


@dataclass(frozen=True)
class Tree:
    """Which channel each one is computed from."""

    order: NDArray[np.int64]
    """int64[out]: all channels, each after its parent; the root first."""
    parents: NDArray[np.int64]
    """int64[out]: the parent of each channel; ROOT for the root."""
    distances: NDArray[np.int64]
    """int64[out]: in how many weights a channel differs from its parent; 0 for the root."""
    depth: int
    """Edges from the root to the farthest channel: how many steps must follow one another."""


@dataclass(frozen=True)
class Operations:
    """XNOR operations to compute one output pixel, all channels."""

    plain: int
    """Each channel on its own: out * k."""
    tree: int
    """Along the tree: k + the sum of its distances."""


def spanning_tree(weights: Array) -> Tree:
    """Find a minimum spanning tree of small depth, rooted at its centre or near it.

    Trees of the same total differ in depth where distances tie: a channel goes to the shallowest of its nearest. That
    this gives the smallest depth of all is not promised; to find that one is hard, and where no distances tie there is
    only one tree.

    Args:
        weights: float or int[out, k] of +1 and -1.

    Raises:
        CallerError: another shape, or other values.
    """
    if weights.ndim != 2 or not weights.size or not np.isin(weights, (-1, 1)).all():  # noqa: PLR2004  # a matrix
        raise CallerError(f"a tree needs weights [out, k] of +1 and -1, found {weights.dtype}{list(weights.shape)}")
    distances = _distances(weights)
    tree, centre = _grown(distances, int(distances.sum(1).argmin()))
    while True:
        other, centre = _grown(distances, centre)
        if other.depth >= tree.depth:
            return tree
        tree = other


def operations(weights: Array, tree: Tree | None = None) -> Operations:
    """Count the operations of a layer.

    Args:
        weights: [out, k] of +1 and -1.
        tree: of these weights, if it is made already.

    Raises:
        CallerError: as `spanning_tree`.
    """
    tree = tree or spanning_tree(weights)
    return Operations(plain=weights.size, tree=weights.shape[1] + int(tree.distances.sum()))


def dots_along(tree: Tree, weights: Array, x: Array) -> Array:
    """Compute dot products along the tree: the reference for kernels.

    dot(child) = dot(parent) + 2 * sum of weight * x over the places where the two differ.

    Args:
        tree: of these weights.
        weights: [out, k] of +1 and -1.
        x: [n, k] of +1 and -1.

    Returns:
        int64[n, out], equal to x @ weights.T.
    """
    integer_weights, signs = weights.astype(np.int64), x.astype(np.int64)
    dots = np.empty((len(x), len(weights)), np.int64)
    for channel in tree.order:
        parent, weight = tree.parents[channel], integer_weights[channel]
        if parent == ROOT:
            dots[:, channel] = signs @ weight
            continue
        differ = weight != integer_weights[parent]
        dots[:, channel] = dots[:, parent] + 2 * (signs[:, differ] @ weight[differ])
    return dots


def tree_distance_loss(weight: torch.Tensor, tree: Tree | None = None) -> torch.Tensor:
    """Give a penalty that draws channels to their parents: the tree's total distance over out * k.

    Signs pass gradients straight through (clipped, as `Ste`); places where child and parent agree have none, so that
    only what costs an operation is moved. The distance along fixed edges is an upper bound of the distance along the
    best tree for the weights as they become: make the tree anew now and then, once an epoch say.

    Args:
        weight: latent float[out, ...] of one layer (of one group).
        tree: whose edges to keep fixed; None makes it from the signs as they are.

    Returns:
        Scalar in 0..1, with gradient for `weight`. Add a multiple of it to the task's loss.

    Raises:
        CallerError: the weights are not finite.
    """
    rows = estimated_sign(weight.flatten(1), Ste())
    tree = tree or spanning_tree(rows.detach().numpy())
    children = torch.from_numpy(tree.order[1:])
    parents = torch.from_numpy(tree.parents[tree.order[1:]])
    return (rows[children] - rows[parents]).abs().sum() / 2 / rows.numel()


def _distances(weights: Array) -> NDArray[np.int64]:
    """int64[out, out]: in how many places two rows differ, from their dot product, which float32 holds exactly."""
    rows = weights.astype(np.float32)
    differing: NDArray[np.int64] = ((weights.shape[1] - rows @ rows.T) / 2).astype(np.int64)
    return differing


def _grown(distances: NDArray[np.int64], root: int) -> tuple[Tree, int]:
    """Grow a minimum spanning tree from `root` (Prim's algorithm); returns it and its centre."""
    count = len(distances)
    order, parents = np.full(count, root), np.full(count, root)
    outside = np.arange(count) != root
    keys = distances[root] * count  # orders by distance, then by the parent's depth, which is below count
    hops = np.zeros((count, count), np.int64)
    for step in range(1, count):
        channel = int(np.where(outside, keys, np.iinfo(np.int64).max).argmin())
        hops[channel, ~outside] = hops[~outside, channel] = hops[parents[channel], ~outside] + 1
        order[step] = channel
        outside[channel] = False
        offered = distances[channel] * count + hops[root, channel]
        better = outside & (offered < keys)
        keys[better], parents[better] = offered[better], channel
    steps = distances[np.arange(count), parents]
    parents[root] = ROOT
    tree = Tree(order=order, parents=parents, distances=steps, depth=int(hops[root].max()))
    return tree, int(hops.max(1).argmin())
