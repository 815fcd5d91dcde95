"""Where the operators of a `.tflite` come from.

litert-torch names tensors after the nodes that they come from, of several that became one operator after all of them.
It says of a node only what classes its module is of. So while it converts it is told to name the node itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ai_edge_litert import schema_py_generated as schema
from torch.fx import Graph, Node

from ferryman.converter.layer_calls import module_of

_MARK = "node."
_NAMED = re.compile(rf"{re.escape(_MARK)}(\w+)")
_HEAVY = re.compile(r"conv|linear|mm|attention|ferryman")
"""Of several nodes, the operator is named after the one that has such an operator."""


@contextmanager
def named_after_nodes() -> Iterator[None]:
    """Have litert-torch name what it makes after the nodes of the graph that it is given.

    There is no public way; the caller has the toolchain to itself.
    """
    from litert_torch.backend import debuginfo

    usual = debuginfo.build_mlir_debuginfo
    debuginfo.build_mlir_debuginfo = _name
    try:
        yield
    finally:
        debuginfo.build_mlir_debuginfo = usual


def _name(node: Node) -> str | None:
    """Of the earliest node that this one was made from."""
    history: list[Any] = node.meta.get("from_node", [])
    name = None
    while history:
        name = f"{_MARK}{history[-1].name};"
        history = history[-1].from_node
    return name


def find_origins(data: bytes, entry: str, graph: Graph) -> dict[str, str]:
    """Number of an operator -> path of its module, where it is known.

    Args:
        data: the artifact.
        entry: the signature.
        graph: that litert-torch was given, and named tensors after.
    """
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    at = next((one.subgraphIndex for one in model.signatureDefs or [] if one.signatureKey.decode() == entry), 0)
    subgraph = model.subgraphs[at]
    nodes = {node.name: node for node in graph.nodes if node.op == "call_function"}
    # Outputs of the whole have names of their own: they come from what the graph gives, in the same order.
    given = {f"output_{i}": one.name for i, one in enumerate(_flat(graph)) if isinstance(one, Node)}
    origins = {}
    for index, operator in enumerate(subgraph.operators):
        names = [subgraph.tensors[tensor].name.decode(errors="replace") for tensor in operator.outputs]
        found = [name for text in names for name in _NAMED.findall(text)]
        found += [node for text in names for output, node in given.items() if text.endswith(f"_{output}_output")]
        if path := _path([nodes[name] for name in found if name in nodes]):
            origins[str(index)] = path
    return origins


def _flat(graph: Graph) -> list[Any]:
    output = next(node for node in graph.nodes if node.op == "output")
    return list(torch.utils._pytree.tree_leaves(output.args))  # noqa: SLF001  # as everyone does


def _path(nodes: list[Node]) -> str:
    """Of the module that an operator of these nodes comes from; empty: none holds them all."""
    heavy = [node for node in nodes if _HEAVY.search(str(node.target))]
    paths = {module_of(node) for node in heavy or nodes} - {""}
    if len(paths) < 2:  # noqa: PLR2004
        return next(iter(paths), "")
    parts = [path.split(".") for path in paths]
    common = list(itertools.takewhile(lambda several: len(set(several)) == 1, zip(*parts, strict=False)))
    return ".".join(several[0] for several in common)
