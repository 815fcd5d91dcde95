"""Which operators of a `.tflite` the delegates took, by the table that an interpreter's `_get_ops_details` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DELEGATE = "DELEGATE"


def delegated_nodes(nodes: Sequence[dict[str, Any]]) -> set[int]:
    """Numbers of the operators that a delegate runs."""
    calls = [node for node in nodes if node["op_name"] == DELEGATE]
    return {index for call in calls for index in _covered(call, nodes)}


def _covered(call: dict[str, Any], nodes: Sequence[dict[str, Any]]) -> set[int]:
    """The nodes a delegate call replaces: those between its outputs and its inputs."""
    producer = {out: node for node in nodes if node["op_name"] != DELEGATE for out in node["outputs"]}
    stop = {int(tensor) for tensor in call["inputs"]}
    found: set[int] = set()
    open_tensors = [int(tensor) for tensor in call["outputs"]]
    while open_tensors:
        tensor = open_tensors.pop()
        node = producer.get(tensor)
        if tensor in stop or node is None or node["index"] in found:
            continue
        found.add(node["index"])
        open_tensors += [int(source) for source in node["inputs"]]
    return found
