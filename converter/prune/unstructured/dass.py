"""DASS: search for cells among operators that are sparse already, so that what is found suits zeros.

A sparse operator has, beside its weights, a score for each of them that is learned; weights with the best scores stay.
Cells are searched as DARTS does (Liu et al., 2019, first order): each edge computes a mixture of all operators, whose
shares are learned on other data than the weights and scores are; at the end each edge has the operator of the largest
share. As the shares are learned through the masks, it is sparse networks that compete.

Source: Mousavi et al., DASS: Differentiable Architecture Search for Sparse neural networks, 2023. Small: two kinds of
cells, of few nodes, for images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, Progress, copy_model, pair_of, train
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

_NODES = 2
"""Of a cell, besides its input."""


class _KeepBest(torch.autograd.Function):
    """Scores -> 1 for the best, 0 for others; gradients pass to all scores (Ramanujan et al. 2020)."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, zeros: int) -> torch.Tensor:  # noqa: ANN401, ARG004  # torch's own type
        mask = torch.ones(scores.numel())
        mask[scores.flatten().argsort(stable=True)[:zeros]] = 0
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401, ARG004
        return gradient, None


def _check_share(share: float) -> float:
    if not 0 <= share < 1:
        raise CallerError(f"the share of zeros is 0 to below 1, found {share}")
    return share


class SparseConv2d(nn.Conv2d):
    """A convolution without bias with learned zeros."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, *, share: float) -> None:
        super().__init__(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.share = _check_share(share)
        # Scores begin as magnitudes, so that the first mask is that of magnitude pruning (HYDRA, Sehwag et al. 2020).
        self.scores = nn.Parameter(self.weight.detach().abs() / self.weight.detach().abs().max())

    def sparse_weight(self) -> torch.Tensor:
        """What it computes with."""
        return self.weight * _keep(self.scores, self.share)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # as nn.Conv2d names it
        """float32[N, inside, H, W] -> [N, outside, H', W']."""
        return functional.conv2d(input, self.sparse_weight(), None, self.stride, self.padding)

    def plain(self) -> nn.Conv2d:
        """The same as an ordinary convolution with zeros."""
        inside, outside, kernel = self.in_channels, self.out_channels, self.kernel_size[0]
        made = nn.Conv2d(inside, outside, kernel, self.stride[0], kernel // 2, bias=False)
        with torch.no_grad():
            made.weight.copy_(self.sparse_weight())
        return made


class SparseLinear(nn.Linear):
    """A linear layer with learned zeros."""

    def __init__(self, inside: int, outside: int, *, share: float) -> None:
        super().__init__(inside, outside)
        self.share = _check_share(share)
        self.scores = nn.Parameter(self.weight.detach().abs() / self.weight.detach().abs().max())

    def sparse_weight(self) -> torch.Tensor:
        """What it computes with."""
        return self.weight * _keep(self.scores, self.share)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """float32[..., inside] -> [..., outside]."""
        return functional.linear(input, self.sparse_weight(), self.bias)

    def plain(self) -> nn.Linear:
        """The same as an ordinary layer with zeros."""
        made = nn.Linear(self.in_features, self.out_features)
        with torch.no_grad():
            made.weight.copy_(self.sparse_weight())
            made.bias.copy_(self.bias)
        return made


def _keep(scores: torch.Tensor, share: float) -> torch.Tensor:
    mask: torch.Tensor = _KeepBest.apply(scores, round(share * scores.numel()))  # type: ignore[no-untyped-call]
    return mask


# Operators of an edge. Each keeps the size of images and the number of channels.


def _sparse(width: int, kernel: int, share: float) -> nn.Module:
    return nn.Sequential(nn.ReLU(), SparseConv2d(width, width, kernel, share=share), nn.BatchNorm2d(width))


def _depthwise(width: int, share: float) -> nn.Module:
    """3x3 in each channel, then 1x1 with zeros."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
        SparseConv2d(width, width, 1, share=share),
        nn.BatchNorm2d(width),
    )


OPERATORS: dict[str, Callable[[int, float], nn.Module]] = {
    "sparse-3x3": lambda width, share: _sparse(width, 3, share),
    "sparse-1x1": lambda width, share: _sparse(width, 1, share),
    "depthwise-3x3": _depthwise,
    "average-3x3": lambda width, _: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(width)),
    "skip": lambda *_: nn.Identity(),
}
"""Name -> made for so many channels and such a share of zeros."""


class Cells(Record, kw_only=True):
    """What was found: for each cell of a network its edges' operators, edges in the order of nodes, then of sources."""

    operators: list[list[str]]


def edges_of_a_cell() -> list[tuple[int, int]]:
    """(source, node): 0 is the cell's input, and each node takes from all before it."""
    return [(source, node) for node in range(1, _NODES + 1) for source in range(node)]


class _Mixture(nn.Module):
    """All operators of an edge, each with its share."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.operators = nn.ModuleList([make(width, share) for make in OPERATORS.values()])
        self.shares = nn.Parameter(1e-3 * torch.randn(len(OPERATORS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, width, H, W], kept in shape."""
        parts = [share * one(x) for share, one in zip(self.shares.softmax(0), self.operators, strict=True)]
        return torch.stack(parts).sum(0)


class _Cell(nn.Module):
    """Nodes that sum what their edges give; all nodes are joined and brought back to the cell's width."""

    def __init__(self, width: int, share: float, operators: list[str] | None) -> None:
        super().__init__()
        names = [None] * len(edges_of_a_cell()) if operators is None else operators
        self.edges = nn.ModuleList(
            [_Mixture(width, share) if name is None else OPERATORS[name](width, share) for name in names]
        )
        self.leave = nn.Sequential(SparseConv2d(_NODES * width, width, 1, share=share), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, width, H, W], kept in shape; a shortcut leads around."""
        states: list[torch.Tensor] = [x]
        for (source, node), edge in zip(edges_of_a_cell(), self.edges, strict=True):
            given = edge(states[source])
            if node == len(states):
                states.append(given)
            else:
                states[node] = states[node] + given
        return functional.relu(x + self.leave(torch.cat(states[1:], 1)))


class CellNetwork(nn.Module):
    """Stem, cells with a halving of the image between them, mean over space, classifier.

    Args:
        channels: of the images.
        classes: how many.
        width: channels of the first cell; of each further one twice as many.
        share: of zeros in each sparse operator.
        cells: what each is made of; None: mixtures, to be searched.
        count: of cells that are searched.

    Raises:
        CallerError: operators that there are not, or as many as a cell does not have, or a share out of range.
    """

    def __init__(
        self, channels: int, classes: int, width: int, share: float, cells: Cells | None = None, count: int = 2
    ) -> None:
        super().__init__()
        plans = _check_cells(cells) if cells is not None else [None] * count
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        parts: list[nn.Module] = []
        for index, plan in enumerate(plans):
            if index:
                parts += [SparseConv2d(width, 2 * width, 3, 2, share=share), nn.BatchNorm2d(2 * width), nn.ReLU()]
                width *= 2
            parts.append(_Cell(width, share, plan))
        self.cells = nn.Sequential(*parts)
        self.head = SparseLinear(width, classes, share=share / 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """float32[N, channels, H, W] -> logits [N, classes]."""
        logits: torch.Tensor = self.head(self.cells(self.stem(image)).mean((2, 3)))
        return logits

    def found(self) -> Cells:
        """The operators of the largest shares."""
        names = list(OPERATORS)
        cells = [part for part in self.cells if isinstance(part, _Cell)]
        return Cells(
            operators=[
                [names[int(edge.shares.argmax())] for edge in cell.edges if isinstance(edge, _Mixture)]
                for cell in cells
            ]
        )


def _check_cells(cells: Cells) -> list[list[str]]:
    wanted = len(edges_of_a_cell())
    for number, operators in enumerate(cells.operators, 1):
        if len(operators) != wanted:
            raise CallerError(f"cell {number} has {len(operators)} operators; its edges are {wanted}")
        if unknown := sorted(set(operators) - OPERATORS.keys()):
            raise CallerError(f"operators {', '.join(unknown)} are not known; there are: {', '.join(OPERATORS)}")
    if not cells.operators:
        raise CallerError("a network has one cell or more, found none")
    return cells.operators


def search(
    network: CellNetwork,
    loader: Iterable[Batch],
    validation: Iterable[Batch],
    *,
    epochs: int,
    lr: float,
    share_lr: float = 2e-2,
    progress: Progress | None = None,
) -> Cells:
    """Learn weights and scores on one half of the data, and in turn the operators' shares on the other.

    Args:
        network: of mixtures; trained in place.
        loader: what weights and scores are learned on, every time it is iterated over.
        validation: what the shares are learned on; begun anew when it ends.
        epochs: over the loader, at least 1.
        lr: of weights and scores.
        share_lr: of shares.
        progress: told epoch (from 1), epochs and mean loss.

    Raises:
        CallerError: a network without mixtures, a validation loader that gives nothing, or as `train`.
    """
    shares = [part.shares for part in network.modules() if isinstance(part, _Mixture)]
    if not shares:
        raise CallerError("there is nothing to search: the network's cells are given; make it with cells=None")
    optimizer = torch.optim.Adam(shares, lr=share_lr, betas=(0.5, 0.999))
    batches = iter(validation)

    def learn_shares() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(validation)
            batch = next(batches, None)
        if batch is None:
            raise CallerError("the validation loader gives no batches, or can be iterated over only once")
        inputs, targets = pair_of(batch, 1)
        _let_learn(shares, learns=True)
        with torch.enable_grad():
            loss = functional.cross_entropy(network(inputs), targets)
            gradients = torch.autograd.grad(loss, shares)
        for share, gradient in zip(shares, gradients, strict=True):
            share.grad = gradient
        optimizer.step()
        _let_learn(shares, learns=False)

    _let_learn(shares, learns=False)
    try:
        train(network, loader, epochs=epochs, lr=lr, progress=progress, after_step=learn_shares)
    finally:
        _let_learn(shares, learns=True)
    return network.found()


def _let_learn(shares: list[nn.Parameter], *, learns: bool) -> None:
    """Shares learn from validation data only: meanwhile training neither sees nor moves them."""
    for share in shares:
        share.grad = None
        share.requires_grad_(learns)


def plain(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers in place of sparse ones: exact zeros, no scores; in eval mode.

    Raises:
        CallerError: it cannot be copied.
    """
    made = copy_model(model)
    if isinstance(made, SparseConv2d | SparseLinear):
        return made.plain().eval()
    for owner in list(made.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, SparseConv2d | SparseLinear):
                setattr(owner, name, child.plain())
    return made.eval()
