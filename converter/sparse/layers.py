"""Layers of a captured graph whose weights are zeros in part, and what each takes in: scales, an addend, a clip."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import GraphModule, Node

from ferryman.converter.layer_calls import path_of
from ferryman.converter.quant_bits import by_depth
from ferryman.converter.quantize.layers import Layer, alike, find_layers, only_user, read_ends
from ferryman.converter.recognise import Constants
from ferryman.converter.sparse_bits import DEPTH_MAX, Places, find_places
from ferryman.converter.sparse_operators import NO_CLIP
from ferryman.runtime.contracts.errors import ModelError

aten = torch.ops.aten
_LEAST_ZEROS = 0.25
"""Below that share the places of weights cost more than their zeros save."""
_FLOAT_BITS = 32
_NAMED = 5


@dataclass(eq=False)
class PrunedLayer:
    """A convolution or linear layer that may become a sparse operator."""

    layer: Layer
    places: Places
    values: torch.Tensor
    """float32[count]: those that are held, by output channel, then by depth."""
    zeros: float
    """Share of its weights."""
    end: Node
    """Whose value the operator gives."""
    add: Node | None
    """What is added to its output."""
    low: float
    high: float

    @property
    def path(self) -> str:
        """Of the module."""
        return self.layer.path

    @property
    def eligible(self) -> bool:
        """Whether it has zeros enough; others may come along where they stand between such."""
        return self.zeros >= _LEAST_ZEROS

    @property
    def nbytes(self) -> int:
        """Of its weights in the artifact."""
        return self.places.index.nbytes + self.values.nbytes


def find_pruned(name: str, module: GraphModule) -> dict[Node, PrunedLayer | str]:
    """Every convolution and linear layer, with zeros or without, or why it must stay as it is.

    Args:
        name: of the model.
        module: its program's.

    Raises:
        ModelError: none has zeros enough.
    """
    order = {node: at for at, node in enumerate(module.graph.nodes)}
    found: dict[Node, PrunedLayer | str] = {
        node: one if isinstance(one, str) else _read(one, order)
        for node, one in find_layers(module, Constants(module)).items()
        if not (isinstance(one, Layer) and one.embedding)
    }
    if not any(isinstance(one, PrunedLayer) and one.eligible for one in found.values()):
        zeros = [
            f"{path_of(node)}: {one if isinstance(one, str) else f'{one.zeros:.0%} zeros'}"
            for node, one in found.items()
        ]
        raise ModelError(
            f"{name} has no layer of which {_LEAST_ZEROS:.0%} of the weights are zero "
            f"({'; '.join(zeros[:_NAMED]) or 'no convolution, no linear'}); prune it first, as by "
            'ferryman.compress(model, "sparse-90", loader=...), or convert it as fp32'
        )
    return found


def bridges(chosen: Collection[PrunedLayer], several: Sequence[PrunedLayer]) -> list[PrunedLayer]:
    """Depthwise convolutions between chosen layers: with these, images need not be turned to channels last and back."""
    ends = {one.end for one in chosen}
    begins = {one.layer.takes[0] for one in chosen}
    return [
        one
        for one in several
        if one not in chosen
        and one.layer.depthwise
        and one.layer.x in ends
        and one.end.users
        and set(one.end.users) <= begins
    ]


def _read(layer: Layer, order: dict[Node, int]) -> PrunedLayer | str:
    rows = by_depth(layer.weight.numpy())
    if rows.shape[1] > DEPTH_MAX:
        return f"each of its outputs has more than {DEPTH_MAX} weights"
    places = find_places(rows, _FLOAT_BITS, may_hold_all=True)
    end, add = layer.end, None
    user = only_user(end)
    if layer.window and user is not None and user.target == aten.add.Tensor and not user.kwargs:
        others = [one for one in user.args if one is not end]
        # Of two layers that lead to one addition, the later takes it in: then the other's output is there.
        if len(others) == 1 and isinstance(others[0], Node) and alike(others[0], end) and order[others[0]] < order[end]:
            end, add = user, others[0]
    user = only_user(end)
    clip = read_ends(user) if user is not None else None
    if user is not None and clip is not None:
        end = user
    low, high = (float(np.clip(one, -NO_CLIP, NO_CLIP)) for one in clip or (-np.inf, np.inf))
    values = torch.from_numpy(rows[places.held])
    return PrunedLayer(layer, places, values, 1 - np.count_nonzero(rows) / rows.size, end, add, low, high)
