"""TFLite: litert-torch, `.tflite`; the XNNPACK delegate of the interpreter takes what it can at load time."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import torch
from ai_edge_litert import schema_py_generated as schema
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from ferryman.converter.backends.base import Lowered
from ferryman.converter.backends.tflite_origins import find_origins, named_after_nodes
from ferryman.converter.backends.tflite_shared import keep_shared
from ferryman.converter.capture import Captured
from ferryman.converter.reason import reason
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.manifest import Lowering, RuntimeName
from ferryman.runtime.contracts.tensor import DynamicDim
from ferryman.runtime.delegated import DELEGATE, delegated_nodes
from ferryman.runtime.sessions.tflite import TfliteSession

_OWN = "ferryman."
_SAID_CHARS = 200
_SIGNATURE = "serving_default"
"""What litert-torch calls one alone."""
_IDENTIFIER = b"TFL3"
_ADVICE = "fix the shapes, or use --to executorch"
_GATHERS = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.gather.default,
    torch.ops.aten.index_select.default,
)


class FlatCall(torch.nn.Module):
    """The same program with flat inputs and outputs, so that `args_0, args_1, ...` is the signature's order."""

    def __init__(self, module: torch.nn.Module, in_spec: TreeSpec) -> None:
        super().__init__()
        self.module = module
        self._in_spec = in_spec
        self.training = False  # eval() would walk into the exported module, which refuses it

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Nest the inputs, call, flatten the outputs."""
        args, kwargs = tree_unflatten(list(inputs), self._in_spec)
        return tuple(tree_leaves(self.module(*args, **kwargs)))


class TfliteBackend:
    """Implements `Backend`."""

    runtime: RuntimeName = "tflite"
    suffix = ".tflite"

    def lower(self, captured: Captured) -> Lowered:
        """See `Backend.lower`."""
        data, origins = _convert({_SIGNATURE: captured})
        return Lowered(data, _describe(data), origins[_SIGNATURE])

    def lower_entries(self, entries: Mapping[str, Captured]) -> dict[str, Lowered]:
        """See `Backend.lower_entries`."""
        data, origins = _convert(entries)
        return {name: Lowered(data, _describe(_put_first(data, name)), origins[name]) for name in entries}


def _convert(entries: Mapping[str, Captured]) -> tuple[bytes, dict[str, dict[str, str]]]:
    """One flatbuffer of all of them, each a signature; and of each, where its operators come from.

    Raises:
        ModelError: litert-torch refuses.
    """
    import litert_torch

    from ferryman.converter.backends.tflite_operators import put_channels_last

    converter = litert_torch.Converter()
    graphs = {}
    for entry, captured in entries.items():
        program = put_channels_last(keep_shared(_gather_no_bools(captured.program.module())))
        graphs[entry] = program.graph
        module = FlatCall(program, captured.in_spec)
        converter.add_signature(entry, module, captured.example, dynamic_shapes=_dynamic_shapes(captured))
    try:
        with named_after_nodes():
            edge_model = converter.convert()
    except Exception as error:  # the toolchain raises many kinds
        name = ", ".join(dict.fromkeys(captured.source.name for captured in entries.values()))
        said = reason(error)
        if any(map(_dynamic_shapes, entries.values())):
            raise ModelError(
                f"litert-torch lowers only some graphs with dynamic dimensions, and not {name}: {_ADVICE} "
                f"({said.splitlines()[0][:_SAID_CHARS]})"
            ) from error
        raise ModelError(f"litert-torch cannot lower {name}: {said}") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        edge_model.export(str(path))
        data = path.read_bytes()
    return data, {entry: find_origins(data, entry, graph) for entry, graph in graphs.items()}


def _put_first(data: bytes, entry: str) -> bytes:
    """The same with one signature alone, whose graph comes first: the one that an interpreter tells about."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (own,) = (one for one in model.signatureDefs if one.signatureKey.decode() == entry)
    graphs, at = model.subgraphs, own.subgraphIndex
    graphs[0], graphs[at] = graphs[at], graphs[0]
    own.subgraphIndex, model.signatureDefs = 0, [own]
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _gather_no_bools(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Gather booleans as integers: GATHER of booleans is newer than the operators of tflite-runtime 2.14."""
    for node in list(module.graph.nodes):
        if node.target in _GATHERS and node.meta["val"].dtype == torch.bool:
            with module.graph.inserting_before(node):
                widened = module.graph.call_function(torch.ops.aten.to.dtype, (node.args[0], torch.int32))
            with module.graph.inserting_after(node):
                narrowed = module.graph.call_function(torch.ops.aten.to.dtype, (node, torch.bool))
            node.replace_all_uses_with(narrowed, delete_user_cb=lambda user, keep=narrowed: user is not keep)
            node.replace_input_with(node.args[0], widened)
    module.recompile()
    return module


def _dynamic_shapes(captured: Captured) -> tuple[Any, ...] | None:
    """The program's dynamic dimensions in the form `torch.export` takes for `*inputs`."""
    made: dict[str, Any] = {}

    def dim(size: DynamicDim) -> Any:  # noqa: ANN401  # torch's own type is private
        if not size.symbol.isidentifier():
            raise ModelError(
                f"{captured.source.name}: dimension {size.symbol} is computed from another, and litert-torch "
                f"takes none such: {_ADVICE}"
            )
        return made.setdefault(size.symbol, torch.export.Dim(size.symbol, min=max(size.min, 1), max=size.max))

    shapes = tuple(
        {axis: dim(size) for axis, size in enumerate(spec.shape) if isinstance(size, DynamicDim)}
        for spec in captured.signature.inputs
    )
    return (shapes,) if made else None


def _describe(data: bytes) -> Lowering:
    """Ask the interpreter which nodes its delegates took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(data)
        with TfliteSession(path, "ai-edge-litert", threads=1) as session:
            nodes: Sequence[dict[str, Any]] = session._tflite._get_ops_details()  # noqa: SLF001  # no public way
    calls = [node for node in nodes if node["op_name"] == DELEGATE]
    taken = delegated_nodes(nodes)
    # A node of our own stands there twice: as it was, and as the delegate's kernel with the same outputs.
    own = {tuple(node["outputs"]): node for node in nodes if node["op_name"].startswith(_OWN)}
    stock = [node for node in nodes if node["op_name"] != DELEGATE and not node["op_name"].startswith(_OWN)]
    return Lowering(
        delegated=_count(node for node in stock if node["index"] in taken),
        fallback=_count(node for node in stock if node["index"] not in taken),
        delegates=len(calls),
        kernels=_count(own.values()),
    )


def _count(nodes: Any) -> dict[str, int]:  # noqa: ANN401  # rows of an untyped table
    return dict(sorted(Counter(node["op_name"] for node in nodes).items()))
