"""Which weights of a program several of its layers share: tied embeddings, folded blocks, layers that are called again.

Every form keeps them shared: an artifact holds them once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import Node

from ferryman.converter.capture import Captured
from ferryman.converter.layer_calls import path_of

aten = torch.ops.aten
VIEWS = (
    *(aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int, aten.t.default),
    *(aten.numpy_T.default, aten.alias.default, aten.detach.default, aten.unsqueeze.default, aten.expand.default),
)
_NAMED = 3


@dataclass(frozen=True)
class SharedWeight:
    """One tensor that is read more than once in a call."""

    name: str
    """The first of those that the model knows it by."""
    nbytes: int
    """As the model holds it."""
    readers: tuple[str, ...]
    """Paths of the layers, once for each time they read it."""


def readers_of(node: Node) -> Iterator[Node]:
    """Nodes that use a tensor, or a view of it."""
    for user in node.users:
        if user.target in VIEWS:
            yield from readers_of(user)
        else:
            yield user


def shared_weights(captured: Captured) -> tuple[SharedWeight, ...]:
    """Those of a program, the largest first; vectors, as of norms and biases, are left out."""
    program = captured.program
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    held = {**program.state_dict, **program.constants}
    found: dict[tuple[int, int], tuple[str, int, list[str]]] = {}
    for node in program.graph.nodes:
        name = names.get(node.name)
        value = held.get(name) if name is not None else None
        if name is None or not isinstance(value, torch.Tensor) or value.dim() < 2:  # noqa: PLR2004  # matrices
            continue
        _, _, readers = found.setdefault((value.data_ptr(), value.numel()), (name, value.nbytes, []))
        readers += [path_of(reader) for reader in readers_of(node)]
    several = [SharedWeight(name, nbytes, tuple(readers)) for name, nbytes, readers in found.values()]
    return tuple(sorted((one for one in several if len(one.readers) > 1), key=lambda one: (-one.nbytes, one.name)))


def shared_table(several: tuple[SharedWeight, ...]) -> str:
    """A line for each kind: who reads it, and how large it is."""
    lines = []
    for one in several:
        times = Counter(one.readers)
        listed = [f"{path} x{count}" if count > 1 else path for path, count in times.items()]
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        lines.append(f"  {one.name}  {one.nbytes:,} bytes, read by {', '.join(listed[:_NAMED])}{more}")
    return "\n".join(lines)
