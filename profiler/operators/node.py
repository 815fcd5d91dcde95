"""Operators as an artifact has them, and rows of them as they ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np

from ferryman.profiler.operators.kinds import MOVERS, counts, kind_of, layer_of
from ferryman.runtime.contracts.operators import Flag, Operator
from ferryman.runtime.contracts.samples import Samples

_KEPT_MAX = 1000
"""Samples of an operator that are kept exact: there are many operators."""
_BLOCK, _BLOCK_BYTES = 32, 36
"""Channels that share a scale in ferryman's operators, and the bytes they take with it."""


@dataclass(frozen=True)
class Node:
    """One operator of the artifact."""

    name: str
    kind: str
    delegate: str | None
    module: str | None = None
    bytes_moved: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Tensor:
    """What the artifact says of a tensor."""

    shape: tuple[int, ...]
    bytes: int | None
    """None: not known, or a dimension varies."""

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def bytes_of(tensors: Sequence[Tensor | None]) -> int | None:
    """All of them together; None where that of one is not known."""
    sizes = [None if tensor is None else tensor.bytes for tensor in tensors]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def counted(kind: str, macs: int | None) -> int | None:
    """What was counted, or 0 for an operator of a kind that does not multiply and add."""
    return macs if macs is not None or counts(kind) else 0


def uncounted(node: Node) -> Node:
    """The same where the artifact's shapes are not those that ran."""
    return replace(node, bytes_moved=None, macs=0 if node.macs == 0 else None)


def own_macs(
    kind: str, x: Tensor, output: Tensor, channels: int, out: int, window: tuple[int, int, int] | None
) -> int | None:
    """Of one of ferryman's operators.

    Args:
        kind: see `kind_of`.
        x: its first input.
        output: its output, which may be packed: signs into words, numbers into blocks.
        channels: of its input; of a linear layer or product, how long a dot product is.
        out: output channels.
        window: of a convolution: height and width of its kernel, and groups.
    """
    if window is not None:
        words = -(-out // _BLOCK)
        packed = output.shape[-1:] == (words,) and output.shape[-1] != out
        positions = output.size // (words if packed else max(out, 1))
        return positions * out * window[0] * window[1] * channels // max(window[2], 1)
    if "linear" in kind:
        return math.prod(x.shape[:-1]) * out * channels
    if "matmul" in kind:
        return output.size * channels
    return counted(kind, None)


def unblocked(channels: int) -> int:
    """Channels of a row in blocks of so many bytes."""
    return channels - -(-channels // _BLOCK_BYTES) * (_BLOCK_BYTES - _BLOCK)


def match(events: Sequence[str], nodes: Sequence[Node]) -> Iterator[Node]:
    """The node of each of XNNPACK's events, which are in the nodes' order: it leaves some out and puts others in.

    An event without a node has no module; a clamp belongs to the node before it, whose outputs it clips.
    """
    kinds = [kind_of(event) for event in events]
    same = SequenceMatcher(None, list(map(layer_of, kinds)), [layer_of(node.kind) for node in nodes], autojunk=False)
    found = {a + i: nodes[b + i] for a, b, size in same.get_matching_blocks() for i in range(size)}
    last: str | None = None
    for at, (event, kind) in enumerate(zip(events, kinds, strict=True)):
        node = found.get(at)
        if node is None:
            yield Node(event, kind, "xnnpack", last if kind == "clamp" else None, macs=counted(kind, None))
        else:
            last = node.module
            yield replace(node, name=event)


def make_rows(timed: Sequence[tuple[Node, Sequence[int]]]) -> tuple[Operator, ...]:
    """Rows of a table, of nodes and their times in ns, in the order they run."""
    typical = [_middle(times) for _, times in timed]
    whole = sum(typical) or 1.0
    return tuple(
        Operator(
            name=node.name,
            kind=node.kind,
            module=node.module or None,
            delegate=node.delegate,
            samples=Samples.of(times, _KEPT_MAX),
            share=time / whole,
            bytes_moved=node.bytes_moved,
            macs=node.macs,
            flags=_flags(node),
        )
        for (node, times), time in zip(timed, typical, strict=True)
    )


def _middle(times: Sequence[int]) -> float:
    """Mean of the middle half: as robust as a median, and finer than a clock of whole microseconds."""
    ordered = np.sort(np.asarray(times, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean()) if len(ordered) else 0.0


def _flags(node: Node) -> tuple[Flag, ...]:
    flags: list[Flag] = []
    if node.delegate is None:
        flags.append("undelegated")
    if node.kind in MOVERS:
        flags.append("layout copy")
    return tuple(flags)
