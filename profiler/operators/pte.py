"""Reads a `.pte`: the instructions of a method, and what they compute.

Schemas: program.fbs and xnnpack's schema.fbs of ExecuTorch 1.5.1. The names are its own; fields go by their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ferryman.profiler.operators.kinds import kind_of
from ferryman.profiler.operators.node import Node, Tensor, bytes_of, counted, own_macs, unblocked
from ferryman.profiler.operators.xnnpack import read_graph
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.flatbuffer import BrokenError, Data, Table, Tables, number

_PROGRAM = b"ET12"
_HEADER = b"eh00"
_PLANS, _INLINE, _SEGMENTS = 1, 3, 4
_PLAN_NAME, _PLAN_VALUES, _PLAN_CHAINS, _PLAN_OPERATORS, _PLAN_DELEGATES = 0, 2, 5, 6, 7
_CHAIN_INSTRUCTIONS = 2
_KERNEL_CALL, _DELEGATE_CALL = 1, 2
_INT, _TENSOR, _INT_LIST, _TENSOR_LIST, _OPTIONAL_LIST = 2, 5, 7, 10, 11
_DELEGATE_ID, _DELEGATE_DATA = 0, 1
_XNNPACK = "XnnpackBackend"
_ITEM_BYTES = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 11: 1, 15: 2}
"""Of ExecuTorch's ScalarType numbers."""
_CHAR = 1
_LEAST_TENSORS = 2
_HELD_MAX = 1 << 20
"""Values and instructions that a method may have."""


@dataclass(frozen=True)
class Step:
    """One instruction that takes time."""

    node: Node
    """Of a delegate: all of it."""
    inside: tuple[Node, ...] = ()
    """What the delegate was given, in order."""


class _Value(NamedTuple):
    tensor: Tensor | None = None
    dtype: int = -1
    integer: int | None = None
    integers: tuple[int, ...] | None = None
    several: tuple[int, ...] = ()


def read_method(data: Data, entry: str | None, origins: Mapping[str, str]) -> dict[int, Step]:
    """Instruction -> what it does.

    Args:
        data: the file.
        entry: the method; None: the only one, or `forward`.
        origins: `Variant.origins`.

    Raises:
        RuntimeFault: it is damaged, or has no such method.
    """
    try:
        return _read_method(data, entry, origins)
    except (BrokenError, IndexError, ValueError, StopIteration) as error:
        raise RuntimeFault(f"the .pte file is damaged: {error}") from error


def _read_method(data: Data, entry: str | None, origins: Mapping[str, str]) -> dict[int, Step]:
    root = Table.root(data, _PROGRAM)
    plan = _choose(root.tables(_PLANS), entry)
    values = _values(plan.tables(_PLAN_VALUES))
    names = [".".join(filter(None, (one.text(0), one.text(1)))) for one in plan.tables(_PLAN_OPERATORS)]
    delegates = plan.tables(_PLAN_DELEGATES)
    read: dict[int, Step] = {}
    steps = {}
    for chain in plan.tables(_PLAN_CHAINS):
        for index, instruction in enumerate(_few(chain.tables(_CHAIN_INSTRUCTIONS))):
            call, kind = instruction.table(1), instruction.integer(0, "B")
            if call is None:
                continue
            if kind == _KERNEL_CALL:
                steps[index] = Step(_kernel(names[call.integer(0)], call.integers(1), values, origins.get(f"@{index}")))
            elif kind == _DELEGATE_CALL:
                which = call.integer(0)
                if which not in read:
                    read[which] = _delegate(data, root, delegates[which], origins)
                steps[index] = read[which]
    return steps


def _few(tables: Tables) -> Tables:
    if len(tables) > _HELD_MAX:
        raise BrokenError(f"a method of {len(tables):,} values or instructions")
    return tables


def _choose(plans: Tables, entry: str | None) -> Table:
    names = [plan.text(_PLAN_NAME) for plan in plans]
    wanted = entry if entry is not None else names[0] if len(names) == 1 else "forward"
    if wanted not in names:
        raise RuntimeFault(f"the .pte file has no method `{wanted}`; there are: {', '.join(map(str, names))}")
    return plans[names.index(wanted)]


def _values(held: Tables) -> list[_Value]:
    return [_value(one.integer(0, "B"), one.table(1)) for one in _few(held)]


def _value(kind: int, held: Table | None) -> _Value:
    if held is None:
        return _Value()
    if kind == _TENSOR:
        dtype = held.integer(0, "b")
        shape = held.integers(2)
        item = _ITEM_BYTES.get(dtype)
        moves = held.integer(8, "b") != 0  # its size is an upper bound
        return _Value(Tensor(shape, None if item is None or moves else item * math.prod(shape)), dtype)
    if kind == _INT:
        return _Value(integer=held.integer(0, "q"))
    if kind == _INT_LIST:
        return _Value(integers=held.integers(0, "q"))
    if kind in (_TENSOR_LIST, _OPTIONAL_LIST):
        return _Value(several=held.integers(0))
    return _Value()


def _kernel(name: str, args: Sequence[int], values: Sequence[_Value], module: str | None) -> Node:
    if args[-1:] == args[-2:-1]:  # where the output goes, and what is returned
        args = args[:-1]
    given = [values[index] for index in args if index >= 0]
    places = dict.fromkeys(index for index in args if index >= 0 and values[index].tensor is not None)
    for value in given:
        places.update(dict.fromkeys(i for i in value.several if 0 <= i < len(values)))
    kind = kind_of(name)
    own = name.startswith("ferryman::")
    tensors = [value for value in given if value.tensor is not None]
    macs = _own(kind, name, given, values) if own else _aten(kind, name, tensors)
    return Node(
        name=name,
        kind=kind,
        delegate="ferryman" if own else None,
        module=module,
        bytes_moved=bytes_of([values[index].tensor for index in places]),
        macs=counted(kind, macs),
    )


def _aten(kind: str, name: str, tensors: Sequence[_Value]) -> int | None:
    shapes = [value.tensor.shape for value in tensors if value.tensor is not None]
    if len(shapes) < 3:  # noqa: PLR2004  # two inputs and an output
        return None
    out = math.prod(shapes[-1])
    if kind == "conv2d" and "transpose" not in name:
        return out * math.prod(shapes[1][1:])
    if kind in ("linear", "matmul"):
        first = shapes[1] if "addmm" in name else shapes[0]
        return out * (first[-1] if first else 1)
    return None


def _own(kind: str, name: str, given: Sequence[_Value], values: Sequence[_Value]) -> int | None:
    """Arguments are in the order of the schemas in converter/operators.py and its neighbours."""
    tensors = [(value.tensor, value.dtype) for value in given if value.tensor is not None]
    if len(tensors) < _LEAST_TENSORS:
        raise BrokenError(f"{name} has {len(tensors)} tensors")
    (x, dtype), (output, _) = tensors[0], tensors[-1]
    if "conv2d" in kind:
        numbers = [value.integer for value in given if value.integer is not None]
        kernel, *_ = [value.integers for value in given if value.integers is not None]
        height, width = (values[index].integer or 0 for index in kernel)
        out = tensors[3 if kind.startswith("sparse") else 2][0].size
        return own_macs(kind, x, output, numbers[0], out, (height, width, numbers[1]))
    last = x.shape[-1] if x.shape else 1
    channels = unblocked(last) if dtype == _CHAR else last
    if kind == "binary_linear":
        channels = next(value.integer for value in given if value.integer is not None)
    return own_macs(kind, x, output, channels, tensors[-2][0].size, None)


def _delegate(data: Data, root: Table, delegate: Table, origins: Mapping[str, str]) -> Step:
    name = delegate.text(_DELEGATE_ID) or "delegate"
    if name != _XNNPACK:
        return Step(Node(name, "delegate", name.removesuffix("Backend").lower()))
    where = delegate.table(_DELEGATE_DATA)
    if where is None:
        raise BrokenError("a delegate has no data")
    nodes = read_graph(_blob(data, root, where), origins)
    return Step(Node(name, "delegate", "xnnpack"), tuple(nodes))


def _blob(data: Data, root: Table, where: Table) -> bytes:
    index = where.integer(1, "I")
    if where.integer(0, "b") == 0:
        return root.tables(_INLINE)[index].bytes_of(0)
    segment = root.tables(_SEGMENTS)[index]
    base = number(data, "<Q", 24) if bytes(data[8:12]) == _HEADER else 0
    start, size = base + segment.integer(0, "Q"), segment.integer(1, "Q")
    if start + size > len(data):
        raise BrokenError("a segment goes beyond the end")
    return bytes(data[start : start + size])
