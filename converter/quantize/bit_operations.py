"""BitOps: what a quantized model computes, weighed by the bits it computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ferryman.converter.capture import Captured
from ferryman.converter.functional import functional_module
from ferryman.converter.layer_calls import path_of
from ferryman.converter.quantize.layers import find_layers
from ferryman.converter.recognise import Constants
from ferryman.runtime.contracts.manifest import LayerForm

aten = torch.ops.aten
_BITS = {"fp32": 32 * 32, "int8": 8 * 8, "4bit": 4 * 8, "2bit": 2 * 8}
"""Of a weight times of an activation."""


def bit_operations(captured: Captured, forms: Sequence[LayerForm] = ()) -> int:
    """Multiplications times bits of the weight times bits of the activation, summed over layers, of the example's call.

    As papers on mixed precision count them; what has no weights, as attention's products, is not counted.

    Args:
        captured: the program before `lower_quantized`.
        forms: what that made of its layers; empty: all in float.

    Raises:
        ValueError: the forms are another program's, or not of quantized layers.
    """
    module = functional_module(captured.program)
    nodes = list(find_layers(module, Constants(module)))
    names = [form.form for form in forms[: len(nodes)]] or ["fp32"] * len(nodes)  # then come those without weights
    paths = [form.path for form in forms[: len(nodes)]]
    if (forms and paths != [path_of(node) for node in nodes]) or not set(names) <= set(_BITS):
        raise ValueError(f"{len(nodes)} layers have other forms: {', '.join(sorted(set(names)))} of {', '.join(paths)}")
    counter = _Counter(module, set(nodes))
    with torch.no_grad():
        counter.run(*captured.example, enable_io_processing=False)
    return sum(counter.counts[node] * _BITS[name] for node, name in zip(nodes, names, strict=True))


class _Counter(Interpreter):
    """Counts multiplications of layers; it runs them, since exported shapes may be symbols."""

    def __init__(self, module: GraphModule, layers: set[Node]) -> None:
        super().__init__(module)
        self._layers = layers
        self.counts: dict[Node, int] = {}

    def run_node(self, n: Node) -> object:
        args: Any = self.fetch_args_kwargs_from_env(n)[0]
        value: Any = super().run_node(n)
        if n in self._layers:
            self.counts[n] = _multiplications(n, args, value)
        return value


def _multiplications(node: Node, args: Sequence[Any], value: torch.Tensor) -> int:
    if node.target == aten.embedding.default:
        return 0
    x, weight = args[:2]
    if node.target == aten.matmul.default:
        return int(value.numel() * x.shape[-1])
    transposed = "transpose" in str(node.target) or (node.target == aten.convolution.default and args[6])
    return int((x if transposed else value).numel() * weight[0].numel())
