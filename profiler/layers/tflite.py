"""Makes what operators of a `.tflite` write outputs: TFLite's schema.fbs; fields go by their number."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ferryman.profiler.flatbuffer_head import Node, Numbers, Old, Tables, Text, copy, put_before
from ferryman.profiler.flatbuffer_head import Table as New
from ferryman.profiler.layers.exposed import Exposed, Stored, Value
from ferryman.profiler.operators.kinds import kind_of
from ferryman.profiler.operators.tflite_graph import name_of
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.flatbuffer import Data, Table
from ferryman.runtime.sessions.tflite import natural

_MAGIC = b"TFL3"
_MODEL, _CODES, _SUBGRAPHS, _BUFFERS, _SIGNATURES = "IOOOOOOO", 1, 2, 4, 7
_SUBGRAPH, _TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = "OOOOOI", 0, 1, 2, 3
_SIGNATURE, _SIGNED_OUTPUTS, _KEY, _SIGNED_SUBGRAPH = "OOOOI", 1, 2, 4
_FLOATS = (0, 1)
_INT8 = 9
_ENDS = {3: (0, 255), 7: (-32768, 32767), _INT8: (-128, 127)}
"""Types of quantized numbers: uint8, int16, int8."""
_QUANT_CONV, _QUANT_OPTIONS = "ferryman.quant_conv2d", 4 * 18
"""Where its options hold out_scale, out_zero, out_low, out_high."""
_LAST_OPTION = 4 * 14
"""And whether its floats have channels last; bytes always have."""
_LAST_AXIS = frozenset(
    (
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "TRANSPOSE_CONV",
        "ferryman.binary_linear",
        "ferryman.quant_linear",
        "ferryman.sparse_linear",
    )
)
"""Operators with a weight for each channel, the last axis."""


def expose(data: Data, entry: str | None, origins: Mapping[str, str]) -> Exposed:
    """A copy with further outputs.

    Args:
        data: the artifact.
        entry: key of one of its signatures; None: the first.
        origins: operator's number -> path of the module it came from.

    Raises:
        ValueError: the file is damaged, or has parts that cannot be moved.
        CallerError: it has no such entry.
    """
    model = Table.root(data, _MAGIC)
    if any(buffer.integer(1, "Q") > 1 for buffer in model.tables(_BUFFERS)):
        raise ValueError("its weights lie behind the FlatBuffer, and would move")
    signatures = model.tables(_SIGNATURES)
    chosen = _choose([(one.text(_KEY) or "") for one in signatures], entry)
    number = 0 if chosen is None else signatures[chosen].integer(_SIGNED_SUBGRAPH, "I")
    subgraphs = model.tables(_SUBGRAPHS)
    subgraph = subgraphs[number]
    found, left_out = _values(model, subgraph, origins)
    own = _own_outputs(subgraph, None if chosen is None else signatures[chosen])
    further = [index for index in found if index not in own]
    outputs = Numbers("i", (*subgraph.integers(_OUTPUTS), *further))
    changed: dict[str, Node] = {
        f"_{_SUBGRAPHS}": _replaced(subgraphs, number, copy(subgraph, _SUBGRAPH, **{f"_{_OUTPUTS}": outputs}))
    }
    if chosen is not None:
        signature = signatures[chosen]
        named = [Old(one.at) for one in signature.tables(_SIGNED_OUTPUTS)]
        # In the order of a signature's names, and behind those of the artifact, which begin with small letters.
        added = [New({0: Text(f"~{order:05}"), 1: ("I", index)}) for order, index in enumerate(further)]
        signed = copy(signature, _SIGNATURE, **{f"_{_SIGNED_OUTPUTS}": Tables([*named, *added])})
        changed[f"_{_SIGNATURES}"] = _replaced(signatures, chosen, signed)
    front = put_before(copy(model, _MODEL, **changed), _MAGIC)
    places = {index: place for place, index in enumerate([*own, *further])}
    return Exposed(
        front=bytes(front),
        tail=b"",
        values=tuple(found.values()),
        outputs=tuple(places[index] for index in found),
        left_out=tuple(left_out),
    )


def _own_outputs(subgraph: Table, signature: Table | None) -> list[int]:
    """Tensors that are outputs already, in the order of the call."""
    if signature is None:
        return list(subgraph.integers(_OUTPUTS))
    named = [(one.text(0) or "", one.integer(1, "I")) for one in signature.tables(_SIGNED_OUTPUTS)]
    return [index for _, index in sorted(named, key=lambda one: natural(one[0]))]


def _replaced(tables: object, number: int, new: New) -> Tables:
    return Tables([new if index == number else Old(one.at) for index, one in enumerate(tables)])  # type: ignore[arg-type, var-annotated]


def _choose(keys: list[str], entry: str | None) -> int | None:
    if entry is None:
        return 0 if keys else None
    if entry not in keys:
        raise CallerError(f"no entry `{entry}`; there are: {', '.join(keys)}")
    return keys.index(entry)


def _values(model: Table, subgraph: Table, origins: Mapping[str, str]) -> tuple[dict[int, Value], list[str]]:
    """Tensor's number -> what it is, in the order they are written."""
    tensors = subgraph.tables(_TENSORS)
    codes = list(model.tables(_CODES))
    found: dict[int, Value] = {}
    left_out: list[str] = []
    for number, operator in enumerate(subgraph.tables(_OPERATORS)):
        code = codes[operator.integer(0, "I")]
        for index in operator.integers(2):
            if index < 0 or index in found:
                continue
            tensor = tensors[index]
            kind, rank = tensor.integer(1, "b"), tensor.count(0, 4)
            name = f"{number} {kind_of(name_of(code))}"
            stored = _stored(tensor, kind, code, operator)
            if kind not in _FLOATS and stored is None:
                left_out.append(f"{name}: no numbers of activations (TFLite's dtype {kind})")
                continue
            found[index] = Value(name, origins.get(str(number)), _channels(code, operator, rank, stored), stored)
    return found, left_out


def _channels(code: Table, operator: Table, rank: int, stored: Stored | None) -> int | None:
    name = name_of(code)
    if name == _QUANT_CONV:
        (last,) = struct.unpack_from("<i", operator.bytes_of(5), _LAST_OPTION)
        return rank - 1 if last or stored is not None else 1
    return rank - 1 if rank and name in _LAST_AXIS else None


def _stored(tensor: Table, kind: int, code: Table, operator: Table) -> Stored | None:
    if kind == _INT8 and name_of(code) == _QUANT_CONV:
        scale, zero, least, most = struct.unpack_from("<fiii", operator.bytes_of(5), _QUANT_OPTIONS)
        return Stored(scale, zero, least, most)
    quantization = tensor.table(4)
    if kind not in _ENDS or quantization is None:
        return None
    scales, zeros = quantization.integers(2, "f"), quantization.integers(3, "q")
    return Stored(scales[0], zeros[0] if zeros else 0, *_ENDS[kind]) if len(scales) == 1 else None
