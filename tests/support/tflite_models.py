"""Builds small .tflite artifacts that hold ferryman's own operators."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ferryman.converter.bits import pack_weights
from ferryman.converter.tree_bits import pack_tree
from tests.support.kernels import BITS, LAST, SIGNS, Case, check

CONV = "ferryman.binary_conv2d"
TREE = "ferryman.binary_conv2d_tree"
LINEAR = "ferryman.binary_linear"
VERSION = 2
_TYPES = {
    np.dtype(dtype): getattr(schema.TensorType, dtype.upper())
    for dtype in ("float32", "float16", "int8", "uint8", "int32", "int64")
}
_CUSTOM = schema.BuiltinOperator.CUSTOM


class Graph:
    """One subgraph; tensors are numbers, given out in order."""

    def __init__(self) -> None:
        self.subgraph = schema.SubGraphT()
        self.subgraph.tensors, self.subgraph.operators = [], []
        self.subgraph.inputs, self.subgraph.outputs = [], []
        self.codes: list[tuple[int, str | None]] = []
        self.buffers = [schema.BufferT()]

    def tensor(self, shape: Sequence[int], dtype: type = np.float32, *, dynamic: Sequence[int] | None = None) -> int:
        """A tensor that some operator writes; `dynamic` is its shape with -1 where sizes may change."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), _TYPES[np.dtype(dtype)], 0
        tensor.name = f"t{len(self.subgraph.tensors)}"
        tensor.shapeSignature = None if dynamic is None else list(dynamic)
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def input(self, shape: Sequence[int], dtype: type = np.float32, *, dynamic: Sequence[int] | None = None) -> int:
        self.subgraph.inputs.append(self.tensor(shape, dtype, dynamic=dynamic))
        return self.subgraph.inputs[-1]

    def constant(self, array: np.ndarray) -> int:
        index = self.tensor(array.shape, array.dtype.type)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self.buffers.append(buffer)
        self.subgraph.tensors[index].buffer = len(self.buffers) - 1
        return index

    def custom(self, name: str, options: bytes, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        operator = self._operator((_CUSTOM, name), inputs, outputs)
        operator.customOptions = np.frombuffer(options, np.uint8)

    def reshape(self, x: int, shape: int, rank: int) -> int:
        """RESHAPE to what the tensor `shape` holds when it runs: the output is dynamic."""
        output = self.tensor([1] * rank)
        self._operator((schema.BuiltinOperator.RESHAPE, None), [x, shape], [output])
        return output

    def float_conv(self, x: int, weight: np.ndarray, bias: np.ndarray, shape: Sequence[int]) -> int:
        """CONV_2D, stride 1 and no padding; weight[out, kh, kw, in]."""
        output = self.tensor(shape)
        code = (schema.BuiltinOperator.CONV_2D, None)
        operator = self._operator(code, [x, self.constant(weight), self.constant(bias)], [output])
        options = schema.Conv2DOptionsT()
        options.padding = schema.Padding.VALID
        options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
        operator.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
        operator.builtinOptions = options
        return output

    def output(self, *indices: int) -> Graph:
        self.subgraph.outputs.extend(indices)
        return self

    def build(self) -> bytes:
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = 3, [self.subgraph], self.buffers
        model.operatorCodes = [_code(*key) for key in self.codes]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _operator(self, key: tuple[int, str | None], inputs: Sequence[int], outputs: Sequence[int]) -> schema.OperatorT:
        if key not in self.codes:
            self.codes.append(key)
        operator = schema.OperatorT()
        operator.opcodeIndex = self.codes.index(key)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        self.subgraph.operators.append(operator)
        return operator


def _code(builtin: int, custom: str | None) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, 127)
    code.customCode = custom
    code.version = 1
    return code


def numbers(*values: int) -> bytes:
    """Custom options."""
    return struct.pack(f"<{len(values)}i", *values)


def conv_numbers(case: Case, kind: int = SIGNS, layout: int = LAST, *, bits_out: bool = False) -> list[int]:
    conv = case.conv(kind, layout, bits_out=bits_out)
    return [VERSION, *(getattr(conv, name) for name, _ in conv._fields_[3:])]


def linear_numbers(case: Case, kind: int = SIGNS, *, bits_out: bool = False) -> list[int]:
    out, channels = case.weight.shape[:2]
    return [VERSION, channels, out, kind, int(bits_out)]


def parameters(case: Case, *, bits_out: bool = False, tree: bool = False) -> list[np.ndarray]:
    """The constants of an operator, in order."""
    weights = pack_tree(case.weight).words if tree else pack_weights(case.weight, case.groups)
    return [weights, case.threshold] if bits_out else [weights, case.scale, case.bias]


def channels_last(x: np.ndarray, kind: int = SIGNS) -> tuple[tuple[int, ...], type]:
    """Shape and dtype of an operator's input for x[batch, channels, height, width]."""
    batch, channels, height, width = x.shape
    return (batch, height, width, -(-channels // 32) if kind == BITS else channels), dtype_of(bits=kind == BITS)


def dtype_of(*, bits: bool) -> type:
    return np.int32 if bits else np.float32


def add_conv(graph: Graph, x: int, case: Case, kind: int = SIGNS, *, bits_out: bool = False, tree: bool = False) -> int:
    """The convolution of `case` on tensor x."""
    sizes = check(case.conv(kind, bits_out=bits_out))
    shape = (case.x.shape[0], sizes.out_height, sizes.out_width, _last(case, bits_out=bits_out))
    options = numbers(*conv_numbers(case, kind, bits_out=bits_out))
    inputs = [x, *_constants(graph, case, bits_out=bits_out, tree=tree)]
    return _add(graph, TREE if tree else CONV, options, inputs, shape, bits_out=bits_out)


def add_linear(
    graph: Graph, x: int, leading: Sequence[int], case: Case, kind: int = SIGNS, *, bits_out: bool = False
) -> int:
    """The linear layer of `case` (a 1x1 convolution) on tensor x[*leading, channels]."""
    shape = (*leading, _last(case, bits_out=bits_out))
    options = numbers(*linear_numbers(case, kind, bits_out=bits_out))
    return _add(graph, LINEAR, options, [x, *_constants(graph, case, bits_out=bits_out)], shape, bits_out=bits_out)


def _last(case: Case, *, bits_out: bool) -> int:
    out = case.weight.shape[0]
    return -(-out // 32) if bits_out else out


def _constants(graph: Graph, case: Case, *, bits_out: bool, tree: bool = False) -> list[int]:
    return [graph.constant(array) for array in parameters(case, bits_out=bits_out, tree=tree)]


def _add(
    graph: Graph, name: str, options: bytes, inputs: Sequence[int], shape: Sequence[int], *, bits_out: bool
) -> int:
    output = graph.tensor(shape, dtype_of(bits=bits_out))
    graph.custom(name, options, inputs, [output])
    return output
