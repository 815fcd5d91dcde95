"""ferryman's operators in `.tflite`: custom operators that the external delegate of native/tflite takes.

The numbers of an operator are its custom options: little-endian int32, or float32 in their place, version first (see
native/tflite/binary.cpp and quantized.cpp).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from litert_converter.mlir import ir
from litert_converter.mlir.dialects import stablehlo
from litert_torch.backend.lowerings import registry
from litert_torch.backend.lowerings.utils import node_meta_to_ir_types

from ferryman.converter import operators, quant_operators
from ferryman.converter import sparse_operators as _sparse_operators  # noqa: F401  # registers them

VERSION = 2
_QUANT_VERSION = 3
_SPARSE_VERSION = 1
_SIGNS, _BITS, _REALS = range(3)
_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)
ferryman = torch.ops.ferryman
_CONVS = {
    ferryman.binary_conv2d.default: 11,
    ferryman.binary_conv2d_tree.default: 11,
    ferryman.binary_conv2d_sign.default: 10,
    ferryman.binary_conv2d_tree_sign.default: 10,
    ferryman.quant_conv2d.default: 11,
}
"""Operator of images -> where channels_last stands among its arguments."""
_SPARSE = ferryman.sparse_conv2d.default
_ADD, _LAST_IN, _LAST_OUT = 4, 11, 12
"""Where a sparse convolution has these among its arguments."""


def put_channels_last(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Give image operators their floats with channels last; neighbours' permutations cancel out in the toolchain.

    Not where all floats of one come from the program's caller or go there, who has the channels first.
    """
    convs = [node for node in module.graph.nodes if node.target in _CONVS]
    floats_in = {node for node in convs if node.args[0].meta["val"].dtype == torch.float32}
    for node in convs:
        floats_out = node.meta["val"].dtype == torch.float32
        x, *_ = args = list(node.args)
        if (node not in floats_in or x.op == "placeholder") and (
            not floats_out or all(user.op == "output" for user in node.users)
        ):
            continue
        args[_CONVS[node.target]] = True
        if node in floats_in:
            with module.graph.inserting_before(node):
                args[0] = module.graph.call_function(torch.ops.aten.permute.default, (x, list(_TO_LAST)))
        node.args = tuple(args)
        if floats_out:
            with module.graph.inserting_after(node):
                back = module.graph.call_function(torch.ops.aten.permute.default, (node, list(_TO_FIRST)))
            node.replace_all_uses_with(back, delete_user_cb=lambda user, keep=back: user is not keep)
    _turn_sparse(module)
    for node in module.graph.nodes:
        if node.target == torch.ops.aten.view.default:  # of what lies in another order now
            node.target = torch.ops.aten.reshape.default
    module.recompile()
    return module


def _turn_sparse(module: torch.fx.GraphModule) -> None:
    """Sparse convolutions keep the channels first among themselves, and turn images where others have them last."""
    graph = module.graph
    convs = [node for node in graph.nodes if node.target == _SPARSE]
    for node in convs:
        args = list(node.args)
        if args[0].target != _SPARSE and args[0].op != "placeholder":
            args[_LAST_IN] = True
            with graph.inserting_before(node):
                args[0] = graph.call_function(torch.ops.aten.permute.default, (args[0], list(_TO_LAST)))
        if not any(user.target == _SPARSE or user.op == "output" for user in node.users):
            args[_LAST_OUT] = True
            if args[_ADD] is not None:
                with graph.inserting_before(node):
                    args[_ADD] = graph.call_function(torch.ops.aten.permute.default, (args[_ADD], list(_TO_LAST)))
            with graph.inserting_after(node):
                back = graph.call_function(torch.ops.aten.permute.default, (node, list(_TO_FIRST)))
            node.replace_all_uses_with(back, delete_user_cb=lambda user, keep=back: user is not keep)
        node.args = tuple(args)


def _custom(context: Any, name: str, operands: list[Any], numbers: Sequence[float], version: int = VERSION) -> Any:  # noqa: ANN401  # untyped toolchain
    kinds = "".join("f" if isinstance(number, float) else "i" for number in numbers)
    options = struct.pack(f"<i{kinds}", version, *numbers).hex().upper()
    # What the converter reads a TFLite operator from.
    attributes = f'{{custom_code = "ferryman.{name}", custom_option = #tfl<const_bytes : "0x{options}">}}'
    return stablehlo.custom_call(
        result=node_meta_to_ir_types(context.node),
        inputs=[one for one in operands if one is not None],  # what is left out stands last
        call_target_name=ir.StringAttr.get("tfl.custom"),
        has_side_effect=ir.BoolAttr.get(False),
        backend_config=ir.StringAttr.get(attributes),
    )


def _kind(context: Any, *, real: bool) -> int:  # noqa: ANN401  # untyped toolchain
    if context.node.args[0].meta["val"].dtype == torch.int32:
        return _BITS
    return _REALS if real else _SIGNS


def _window_numbers(window: operators.Window, out: int, kind: int, *, bits_out: bool) -> list[int]:
    channels, kernel, stride, padding, dilation, groups, pad_value, channels_last = window
    numbers = [channels, out, *kernel, *stride, *dilation, *padding, groups, pad_value, kind]
    return [*numbers, int(bits_out), int(channels_last)]


def _out(context: Any) -> int:  # noqa: ANN401  # untyped toolchain
    """Output channels: as many as the third operand has."""
    return int(context.node.args[2].meta["val"].numel())


@registry.lower(ferryman.binary_conv2d.default)  # type: ignore[untyped-decorator]
def _conv2d(context: Any, x: Any, weight: Any, scale: Any, bias: Any, *numbers: Any) -> Any:  # noqa: ANN401
    *window, real = numbers
    options = _window_numbers(tuple(window), _out(context), _kind(context, real=real), bits_out=False)
    return _custom(context, "binary_conv2d", [x, weight, scale, bias], options)


@registry.lower(ferryman.binary_conv2d_sign.default)  # type: ignore[untyped-decorator]
def _conv2d_sign(context: Any, x: Any, weight: Any, threshold: Any, *window: Any) -> Any:  # noqa: ANN401
    options = _window_numbers(window, _out(context), _kind(context, real=False), bits_out=True)
    return _custom(context, "binary_conv2d", [x, weight, threshold], options)


@registry.lower(ferryman.binary_conv2d_tree.default)  # type: ignore[untyped-decorator]
def _conv2d_tree(context: Any, x: Any, tree: Any, scale: Any, bias: Any, *window: Any) -> Any:  # noqa: ANN401
    options = _window_numbers(window, _out(context), _kind(context, real=False), bits_out=False)
    return _custom(context, "binary_conv2d_tree", [x, tree, scale, bias], options)


@registry.lower(ferryman.binary_conv2d_tree_sign.default)  # type: ignore[untyped-decorator]
def _conv2d_tree_sign(context: Any, x: Any, tree: Any, threshold: Any, *window: Any) -> Any:  # noqa: ANN401
    options = _window_numbers(window, _out(context), _kind(context, real=False), bits_out=True)
    return _custom(context, "binary_conv2d_tree", [x, tree, threshold], options)


@registry.lower(ferryman.binary_linear.default)  # type: ignore[untyped-decorator]
def _linear(context: Any, x: Any, weight: Any, scale: Any, bias: Any, channels: int, real: bool) -> Any:  # noqa: ANN401
    options = [channels, _out(context), _kind(context, real=real), 0]
    return _custom(context, "binary_linear", [x, weight, scale, bias], options)


@registry.lower(ferryman.binary_linear_sign.default)  # type: ignore[untyped-decorator]
def _linear_sign(context: Any, x: Any, weight: Any, threshold: Any, channels: int) -> Any:  # noqa: ANN401
    options = [channels, _out(context), _kind(context, real=False), 1]
    return _custom(context, "binary_linear", [x, weight, threshold], options)


@registry.lower(ferryman.quant_conv2d.default)  # type: ignore[untyped-decorator]
def _quant_conv2d(context: Any, x: Any, weight: Any, scale: Any, bias: Any, add: Any, *numbers: Any) -> Any:  # noqa: ANN401
    channels, kernel, stride, padding, dilation, groups, channels_last, bits, *scales = numbers
    x_scale, x_zero, out_scale, out_zero, low, high, add_scale, add_zero, *sparse = scales
    window = [channels, _out(context), *kernel, *stride, *dilation, *padding, groups, int(channels_last), bits]
    options = [*window, float(x_scale), x_zero, float(out_scale), out_zero, low, high, float(add_scale), add_zero]
    options += [*map(int, sparse), 0, 0][:2]
    return _custom(context, "quant_conv2d", [x, weight, scale, bias, add], options, _QUANT_VERSION)


@registry.lower(ferryman.quant_linear.default)  # type: ignore[untyped-decorator]
def _quant_linear(  # as the schema says
    context: Any,  # noqa: ANN401
    x: Any,  # noqa: ANN401
    weight: Any,  # noqa: ANN401
    scale: Any,  # noqa: ANN401
    zero: Any,  # noqa: ANN401
    bias: Any,  # noqa: ANN401
    bits: int,
    group: int,
    blocks: bool,
    index_bits: int = 0,
) -> Any:  # noqa: ANN401
    options = [_channels(context), context.node.args[4].meta["val"].numel(), bits, group, int(blocks), index_bits]
    return _custom(context, "quant_linear", [x, weight, scale, bias, zero], options, _QUANT_VERSION)


def _channels(context: Any) -> int:  # noqa: ANN401  # untyped toolchain
    """Of the first operand's rows, which may be in blocks."""
    x = context.node.args[0].meta["val"]
    return quant_operators.block_channels(x.shape[-1]) if x.dtype == torch.int8 else int(x.shape[-1])


@registry.lower(ferryman.quant_matmul.default)  # type: ignore[untyped-decorator]
def _quant_matmul(context: Any, a: Any, b: Any, turned: bool) -> Any:  # noqa: ANN401
    return _custom(context, "quant_matmul", [a, b], [_channels(context), int(turned)], _QUANT_VERSION)


@registry.lower(ferryman.quant_function.default)  # type: ignore[untyped-decorator]
def _quant_function(context: Any, x: Any, weight: Any, bias: Any, kind: int, epsilon: float, blocks: bool) -> Any:  # noqa: ANN401
    options = [_channels(context), kind, float(epsilon), int(blocks)]
    return _custom(context, "quant_function", [x, weight, bias], options, _QUANT_VERSION)


@registry.lower(ferryman.quant_embedding.default)  # type: ignore[untyped-decorator]
def _quant_embedding(  # as the schema says
    context: Any,  # noqa: ANN401
    ids: Any,  # noqa: ANN401
    weight: Any,  # noqa: ANN401
    scale: Any,  # noqa: ANN401
    zero: Any,  # noqa: ANN401
    *numbers: int,
) -> Any:  # noqa: ANN401
    return _custom(context, "quant_embedding", [ids, weight, scale, zero], [*map(int, numbers)], _QUANT_VERSION)


@registry.lower(ferryman.sparse_conv2d.default)  # type: ignore[untyped-decorator]
def _sparse_conv2d(context: Any, x: Any, values: Any, index: Any, bias: Any, add: Any, *numbers: Any) -> Any:  # noqa: ANN401
    channels, kernel, stride, padding, dilation, groups, last_in, last_out, index_bits, low, high = numbers
    out = context.node.args[3].meta["val"].numel()
    window = [channels, out, *kernel, *stride, *dilation, *padding, groups, int(last_in), int(last_out)]
    options = [*window, index_bits, int(add is not None), float(low), float(high)]
    return _custom(context, "sparse_conv2d", [x, values, index, bias, add], options, _SPARSE_VERSION)


@registry.lower(ferryman.sparse_linear.default)  # type: ignore[untyped-decorator]
def _sparse_linear(  # as the schema says
    context: Any,  # noqa: ANN401
    x: Any,  # noqa: ANN401
    values: Any,  # noqa: ANN401
    index: Any,  # noqa: ANN401
    bias: Any,  # noqa: ANN401
    index_bits: int,
    low: float,
    high: float,
) -> Any:  # noqa: ANN401
    options = [_channels(context), context.node.args[3].meta["val"].numel(), index_bits, float(low), float(high)]
    return _custom(context, "sparse_linear", [x, values, index, bias], options, _SPARSE_VERSION)
