"""What a model has to do, operator by operator, from its graph: a prediction needs no conversion."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from ferryman.converter.capture import capture
from ferryman.converter.functional import functional_module
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.work import Work

aten = torch.ops.aten
_CONVOLUTIONS = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv_transpose2d.input,
        aten.convolution.default,
    }
)
_NORMS = frozenset({aten.batch_norm.default})
_CLAMPS = frozenset({aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default})
_VIEWS = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default),
        *(aten.squeeze.dim, aten.squeeze.dims, aten.dropout.default, aten.arange.default, aten.arange.start),
    }
)
_DEPTHWISE = "depthwise_conv2d"
_KINDS = {
    **dict.fromkeys((aten.linear.default, aten.addmm.default), "linear"),
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default), "matmul"),
    aten.scaled_dot_product_attention.default: "attention",
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.numpy_T.default), "transpose"),
    **dict.fromkeys(_CLAMPS, "clamp"),
    **dict.fromkeys((aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default), "avg_pool"),
    aten.max_pool2d.default: "max_pool",
    aten.cat.default: "concatenation",
    aten.embedding.default: "gather",
    **dict.fromkeys((aten.slice.Tensor, aten.select.int), "slice"),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), "pad"),
}
"""Those whose kind is not their own name; the words are those of `ferryman.profiler.operators.kinds`."""


def work_of(model: torch.nn.Module, inputs: Any) -> tuple[Work, ...]:  # noqa: ANN401  # as `convert` takes them
    """The operators of a model in eval mode, in the order they run, as float artifacts have them.

    Norms and clamps that runtimes fold into the operator before them, and views, are left out.

    Args:
        model: the module.
        inputs: the example call, whose sizes count.

    Raises:
        CallerError, ModelError: it cannot be run or captured.
    """
    with quiet():
        captured = capture(make_source(model, inputs))
    counter = _Counter(functional_module(captured.program))
    with torch.no_grad():
        counter.run(*captured.example, enable_io_processing=False)
    return tuple(counter.found)


class _Counter(Interpreter):
    """Counts while it runs, since exported shapes may be symbols."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: list[Work] = []

    def run_node(self, n: Node) -> object:
        args: Any = self.fetch_args_kwargs_from_env(n)[0]
        value: Any = super().run_node(n)
        if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload) and not _is_free(n):  # noqa: SLF001  # torch's own name
            tensors = [leaf for leaf in tree_leaves((args, value)) if isinstance(leaf, torch.Tensor)]
            channels, loops = _shape(n.target, args, value)
            self.found.append(
                Work(
                    kind=_kind(n.target, args),
                    macs=_macs(n.target, args, value),
                    bytes_moved=sum(tensor.nbytes for tensor in tensors),
                    channels=channels,
                    loops=loops,
                )
            )
        return value


def _is_free(node: Node) -> bool:
    """Whether it costs no operator of its own in an artifact."""
    if node.target in _VIEWS:
        return True
    before = node.args[0] if node.args else None
    if not isinstance(before, Node) or len(before.users) > 1:
        return False
    if node.target in _NORMS:
        return before.target in _CONVOLUTIONS
    return node.target in _CLAMPS and (before.target in _NORMS | _CONVOLUTIONS | {aten.linear.default, aten.add.Tensor})


def _kind(target: torch._ops.OpOverload, args: Any) -> str:  # noqa: ANN401  # whatever an operator takes
    if target in _CONVOLUTIONS:
        x, weight = args[:2]
        return _DEPTHWISE if weight.shape[1] == 1 < x.shape[1] else "conv2d"
    return _KINDS.get(target) or str(target.overloadpacket).removeprefix("aten.")


def _macs(target: torch._ops.OpOverload, args: Any, value: Any) -> int:  # noqa: ANN401  # as above
    if target in _CONVOLUTIONS:
        x, weight = args[:2]
        transposed = "transpose" in str(target) or (target == aten.convolution.default and args[6])
        return int((x if transposed else value).numel() * weight[0].numel())
    if target == aten.scaled_dot_product_attention.default:
        query, key, of_value = args[:3]
        return int(query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + of_value.shape[-1]))
    if _KINDS.get(target) in {"linear", "matmul"}:
        x = args[1 if target == aten.addmm.default else 0]
        return int(value.numel() * x.shape[-1])
    return 0


def _shape(target: torch._ops.OpOverload, args: Any, value: Any) -> tuple[int, int]:  # noqa: ANN401  # as above
    """Channels and loops, see `Work`."""
    if target in _CONVOLUTIONS:
        channels = value.shape[1]
        positions = value.numel() // channels
        return channels, positions if _kind(target, args) == _DEPTHWISE else positions * args[1][0, 0].numel()
    if _KINDS.get(target) in {"linear", "matmul"}:
        return value.shape[-1], value.numel() // value.shape[-1]
    return 0, 0
