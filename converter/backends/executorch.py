"""ExecuTorch: edge dialect, XNNPACK delegate, `.pte`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.node_configs import PreluConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.lowered_backend_module import get_lowered_submodules
from executorch.exir.pass_base import ExportPass, NodeMetadata, ProxyValue
from executorch.exir.passes import MemoryPlanningPass

from ferryman.converter import operators
from ferryman.converter.backends.base import Lowered
from ferryman.converter.backends.executorch_shared import share_constants
from ferryman.converter.capture import Captured
from ferryman.converter.layer_calls import module_of
from ferryman.converter.reason import reason
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.manifest import Lowering, RuntimeName

_METHOD = "forward"
_IMAGE_RANK = 4
_ALIGNMENT = 64
"""Of tensors in an artifact and in planned memory: a cache line, where the stock 16 makes vectors cross two."""
_CONFIG = ExecutorchBackendConfig(
    memory_planning_pass=MemoryPlanningPass(alignment=_ALIGNMENT), constant_tensor_alignment=_ALIGNMENT
)


class KeepMeanDims(ExportPass):  # type: ignore[misc]  # executorch is not typed
    """Rewrite a spatial mean to one that keeps its dimensions, then drops them: XNNPACK takes only that kind."""

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: NodeMetadata) -> ProxyValue:  # noqa: ANN401
        """Replace `mean.dim(x[N, C, H, W], (2, 3), keepdim=False)`; leave all else."""
        if op == exir_ops.edge.aten.mean.dim and not (len(args) > 2 and args[2]):  # noqa: PLR2004  # keepdim is third
            value, dims = args[0], args[1]
            rank = value.data.dim()
            if rank == _IMAGE_RANK and sorted(d % rank for d in dims) == [2, 3]:
                kept = super().call_operator(op, (value, dims, True), kwargs, meta)
                shape = [-1, value.data.shape[1]]  # N may be dynamic; XNNPACK takes a view and not a squeeze
                return super().call_operator(exir_ops.edge.aten.view_copy.default, (kept, shape), {}, meta)
        return super().call_operator(op, args, kwargs, meta)


class ImagePrelu(PreluConfig):  # type: ignore[misc]  # executorch is not typed
    """Gives XNNPACK a PReLU of images only: it cannot be lowered after anything else, and falls back there."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes it."""
        return node.meta["val"].dim() == _IMAGE_RANK and bool(super().check_constraints(node, ep))


_PARTITIONERS = [ImagePrelu if one is PreluConfig else one for one in ALL_PARTITIONER_CONFIGS]


class ExecutorchBackend:
    """Implements `Backend`."""

    runtime: RuntimeName = "executorch"
    suffix = ".pte"

    def lower(self, captured: Captured) -> Lowered:
        """See `Backend.lower`."""
        return self.lower_entries({_METHOD: captured})[_METHOD]

    def lower_entries(self, entries: Mapping[str, Captured]) -> dict[str, Lowered]:
        """See `Backend.lower_entries`."""
        try:
            edge = to_edge_transform_and_lower(
                {name: captured.program for name, captured in entries.items()},
                transform_passes=[KeepMeanDims()],
                partitioner=[XnnpackPartitioner(configs=_PARTITIONERS)],
            )
            paths = {name: _paths(edge.exported_program(name).graph_module) for name in entries}
            made = edge.to_executorch(_CONFIG)  # which numbers nodes anew
            data = share_constants(bytes(made.buffer))
        except Exception as error:  # the toolchain raises many kinds
            names = ", ".join(dict.fromkeys(captured.source.name for captured in entries.values()))
            raise ModelError(f"ExecuTorch cannot lower {names}: {reason(error)}") from error
        lowered = {}
        for name in entries:
            graph_module = edge.exported_program(name).graph_module
            origins = _origins(paths[name], made.debug_handle_map.get(name, {}))
            lowered[name] = Lowered(data, _describe(graph_module), origins)
        return lowered


def _describe(graph_module: torch.fx.GraphModule) -> Lowering:
    parts = get_lowered_submodules(graph_module)
    delegated: Counter[str] = Counter()
    for _, part, _ in parts:
        delegated.update(_operators(part.original_module.graph.nodes))
    left = Counter(_operators(graph_module.graph.nodes))
    own = {name: count for name, count in sorted(left.items()) if name.startswith(f"{operators.NAMESPACE}::")}
    return Lowering(
        delegated=dict(sorted(delegated.items())),
        fallback={name: count for name, count in sorted(left.items()) if name not in own},
        delegates=len(parts),
        kernels=own,
    )


def _paths(graph_module: torch.fx.GraphModule) -> dict[int, str]:
    """Debug handle -> path of the module it stands for, where that is known."""
    graphs = [graph_module.graph, *(part.original_module.graph for _, part, _ in get_lowered_submodules(graph_module))]
    return {
        node.meta["debug_handle"]: path
        for graph in graphs
        for node in graph.nodes
        if node.op == "call_function" and "debug_handle" in node.meta and (path := module_of(node))
    }


def _origins(paths: Mapping[int, str], handles: Mapping[int, Any]) -> dict[str, str]:
    """See `Variant.origins`; `handles` are of instructions, several where one calls a delegate."""
    calls = {f"@{at}": paths[handle] for at, handle in handles.items() if isinstance(handle, int) and handle in paths}
    return {str(handle): path for handle, path in paths.items()} | calls


def _operators(nodes: Iterable[torch.fx.Node]) -> list[str]:
    """Names of the operators that compute; not tuple access, not the delegate calls themselves."""
    return [
        node.target.name()
        for node in nodes
        if node.op == "call_function" and hasattr(node.target, "name") and "delegate" not in str(node.target)
    ]
