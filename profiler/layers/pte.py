"""Makes what operators of a `.pte` write outputs: program.fbs of ExecuTorch 1.5.1; fields go by their number.

Inside XNNPACK's delegates each internal value becomes one of the delegate's outputs. Memory is planned so that tensors
take the place of those that nobody reads any more; what is to be read at the end gets a place of its own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ferryman.profiler.flatbuffer_head import Node, Numbers, Old, Tables, copy, put_before
from ferryman.profiler.flatbuffer_head import Table as New
from ferryman.profiler.layers.exposed import Exposed, Stored, Value
from ferryman.profiler.layers.xnnpack import Inner, rebuild
from ferryman.profiler.operators.kinds import kind_of
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.flatbuffer import Data, Table, number

_MAGIC, _HEADER, _HEADER_BYTES = b"ET12", b"eh00", 32
_PROGRAM, _PLANS, _INLINE, _SEGMENTS = "IOOOOOOO", 1, 3, 4
_PLAN, _NAME, _VALUES, _INPUTS, _OUTPUTS, _CHAINS, _KERNELS, _DELEGATES, _SIZES = "OOOOOOOOOO", 0, 2, 3, 4, 5, 6, 7, 8
_CHAIN, _INSTRUCTIONS = "OOOO", 2
_KERNEL_CALL, _DELEGATE_CALL, _FREE_CALL = 1, 2, 5
_INT, _DOUBLE, _TENSOR, _TENSOR_LIST, _OPTIONAL_LIST = 2, 4, 5, 10, 11
_TENSOR_LAYOUT, _DTYPE, _SHAPE, _ORDER, _CONSTANT, _PLACE, _DYNAMISM, _EXTRA = "biOO?IObbO", 0, 2, 3, 5, 6, 8, 9
_ITEM_BYTES = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 11: 1}
_FLOATS = (5, 6)
_CHAR = 1
_XNNPACK = "XnnpackBackend"
_QUANT_CONV, _QUANT_ARGS = "ferryman::quant_conv2d", slice(15, 19)
"""out_scale, out_zero, out_low, out_high."""
_CHANNELS = {
    "ferryman::quant_conv2d": 11,
    "ferryman::quant_linear": None,
    "ferryman::binary_linear": None,
    "ferryman::sparse_linear": None,
}
"""Operators with a weight for each channel; the argument that says whether floats have them last."""
_SHARED = "its memory is shared with an input, or nobody planned it"
_PAGE = 4096
_ALIGN = 64


@dataclass
class _Plan:
    """A method while it is changed."""

    table: Table
    values: list[Table]
    sizes: list[int]
    """Bytes of each planned buffer."""
    dynamic: bool
    added: list[New] = field(default_factory=list)
    """Further values."""
    moved: dict[int, New] = field(default_factory=dict)
    """Value -> its new place."""
    latest: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Old place -> the value last written there."""
    written: set[int] = field(default_factory=set)
    outputs: list[int] = field(default_factory=list)
    exposed: list[Value] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many values were come by."""
        return len(self.exposed) + len(self.left_out)

    def kind(self, index: int) -> int:
        return self.values[index].integer(0, "B")

    def tensor(self, index: int) -> Table | None:
        return self.values[index].table(1) if self.kind(index) == _TENSOR else None

    def tensors(self, args: Sequence[int]) -> Iterator[int]:
        """Tensors among arguments, those in lists too."""
        for index in args:
            held = self.values[index].table(1) if index >= 0 else None
            if held is None:
                continue
            if self.kind(index) == _TENSOR:
                yield index
            elif self.kind(index) in (_TENSOR_LIST, _OPTIONAL_LIST):
                yield from (one for one in held.integers(0) if one >= 0 and self.kind(one) == _TENSOR)

    def new_place(self, shape: Sequence[int], dtype: int) -> New:
        """Memory that nothing else is in."""
        start = -(-self.sizes[-1] // _ALIGN) * _ALIGN
        self.sizes[-1] = start + math.prod(shape) * _ITEM_BYTES[dtype] + _ALIGN  # XNNPACK reads past the end
        low, high = start & 0xFFFFFFFF, start >> 32
        return New({0: ("I", len(self.sizes) - 1), 1: ("I", low), 2: ("I", high)})

    def place(self, index: int) -> tuple[int, ...] | None:
        """Where a tensor is planned; None: it is constant, or someone else's."""
        tensor = self.tensor(index)
        where = tensor.table(_PLACE) if tensor is not None else None
        if tensor is None or where is None or tensor.integer(_CONSTANT, "I"):
            return None
        return tuple(where.integer(slot, "I") for slot in range(3))

    def read(self, index: int) -> None:
        """A tensor that nobody wrote is a view of what was last written to its place, and moves along."""
        place = self.place(index)
        if place is not None and index not in self.written and self.latest.get(place) in self.moved:
            self.moved[index] = New(self.moved[self.latest[place]].fields)  # one of its own: each lies behind its user

    def write(self, index: int) -> bool:
        """Note that a tensor is written; whether it can be read at the end."""
        place = self.place(index)
        self.written.add(index)
        if place is None:
            return False
        self.latest[place] = index
        tensor = self.values[index].table(1)
        fixed = {*self.table.integers(_INPUTS), *self.table.integers(_OUTPUTS)}
        if tensor is None or tensor.table(_EXTRA) is not None or index in fixed:
            return index in self.table.integers(_OUTPUTS)
        if tensor.integer(_DTYPE, "b") in _ITEM_BYTES and index not in self.moved:
            self.moved[index] = self.new_place(tensor.integers(_SHAPE), tensor.integer(_DTYPE, "b"))
        return index in self.moved

    def add(self, inner: Inner) -> int:
        """A further value, for one that was inside a delegate."""
        fields: dict[int, tuple[str, float] | Node] = {
            _DTYPE: ("b", inner.dtype),
            _SHAPE: Numbers("i", inner.shape),
            _ORDER: Numbers("B", range(len(inner.shape))),
            _PLACE: self.new_place(inner.shape, inner.dtype),
            _DYNAMISM: ("b", int(self.dynamic)),
        }
        self.added.append(New({0: ("B", _TENSOR), 1: New(fields)}))
        return len(self.values) + len(self.added) - 1

    def rebuilt_values(self) -> Tables:
        items: list[Node] = []
        for index, value in enumerate(self.values):
            tensor = value.table(1)
            if index in self.moved and tensor is not None:
                moved = copy(tensor, _TENSOR_LAYOUT, **{f"_{_PLACE}": self.moved[index]})
                items.append(New({0: ("B", _TENSOR), 1: moved}))
            else:
                items.append(Old(value.at))
        return Tables([*items, *self.added])


def expose(data: Data, entry: str | None, origins: Mapping[str, str]) -> Exposed:
    """A copy with further outputs.

    Args:
        data: the artifact.
        entry: the method; None: the only one, or `forward`.
        origins: XNNPACK's debug handle, or `@` and an instruction's number -> path of the module it came from.

    Raises:
        ValueError: the file is damaged, or takes branches.
        CallerError: it has no such entry.
    """
    program = Table.root(data, _MAGIC)
    if bytes(data[8:12]) != _HEADER:
        raise ValueError("it has no extended header")
    plans = program.tables(_PLANS)
    chosen = _choose([plan.text(_NAME) or "" for plan in plans], entry)
    plan = _read_plan(plans[chosen])
    segments = _Segments(data, program)
    chains = plan.table.tables(_CHAINS)
    if len(chains) != 1:
        raise ValueError(f"it has {len(chains)} chains of instructions")
    instructions, delegates = _walk(plan, segments, chains[0], origins)
    for index in plan.table.integers(_OUTPUTS):
        plan.read(index)
    chain = copy(chains[0], _CHAIN, **{f"_{_INSTRUCTIONS}": Tables(instructions)})
    changed = copy(
        plan.table,
        _PLAN,
        **{
            f"_{_VALUES}": plan.rebuilt_values(),
            f"_{_OUTPUTS}": Numbers("i", (*plan.table.integers(_OUTPUTS), *plan.outputs)),
            f"_{_CHAINS}": Tables([chain]),
            f"_{_DELEGATES}": Tables(delegates),
            f"_{_SIZES}": Numbers("q", plan.sizes),
        },
    )
    root = copy(
        program,
        _PROGRAM,
        **{
            f"_{_PLANS}": Tables([changed if i == chosen else Old(one.at) for i, one in enumerate(plans)]),
            f"_{_SEGMENTS}": segments.rebuilt(),
        },
    )
    front = put_before(root, _MAGIC, room=_HEADER_BYTES, align=_PAGE)
    front[8 : 8 + _HEADER_BYTES] = segments.header(len(front))
    own = len(plan.table.integers(_OUTPUTS))
    return Exposed(
        front=bytes(front),
        tail=bytes(segments.tail),
        values=tuple(plan.exposed),
        outputs=tuple(range(own, own + len(plan.exposed))),
        left_out=tuple(plan.left_out),
    )


def _choose(names: list[str], entry: str | None) -> int:
    wanted = entry if entry is not None else names[0] if len(names) == 1 else "forward"
    if wanted not in names:
        raise CallerError(f"no entry `{wanted}`; there are: {', '.join(names)}")
    return names.index(wanted)


def _read_plan(table: Table) -> _Plan:
    plan = _Plan(table, list(table.tables(_VALUES)), list(table.integers(_SIZES, "q")), dynamic=False)
    inputs = [plan.tensor(index) for index in table.integers(_INPUTS)]
    plan.dynamic = any(tensor is not None and tensor.integer(_DYNAMISM, "b") for tensor in inputs)
    if len(plan.sizes) == 1:  # the first is no buffer
        plan.sizes.append(0)
    return plan


def _walk(plan: _Plan, segments: _Segments, chain: Table, origins: Mapping[str, str]) -> tuple[list[Node], list[Node]]:
    """Instructions and delegates, those written anew that have to be."""
    kernels = [kernel.text(0) or "" for kernel in plan.table.tables(_KERNELS)]
    delegates: list[Node] = [Old(one.at) for one in plan.table.tables(_DELEGATES)]
    instructions: list[Node] = []
    for number_, instruction in enumerate(chain.tables(_INSTRUCTIONS)):
        kind, call = instruction.integer(0, "B"), instruction.table(1)
        instructions.append(Old(instruction.at))
        if kind == _FREE_CALL:
            continue
        if kind not in (_KERNEL_CALL, _DELEGATE_CALL) or call is None:
            raise ValueError("it takes branches")
        args: Sequence[int] = call.integers(1)
        if kind == _KERNEL_CALL:
            written = set(plan.tensors(args[-1:]))  # what it returns, which stands among its arguments as well
            for index in set(plan.tensors(args)) - written:
                plan.read(index)
            for index in plan.tensors(args[-1:]):
                _expose_kernel(plan, kernels[call.integer(0)], args, index, origins.get(f"@{number_}"))
            continue
        which = call.integer(0)
        delegate = plan.table.tables(_DELEGATES)[which]
        delegates[which], args = _expose_delegate(plan, segments, delegate, args, origins)
        instructions[-1] = New({0: ("B", _DELEGATE_CALL), 1: New({0: ("i", which), 1: Numbers("i", args)})})
    return instructions, delegates


def _expose_kernel(plan: _Plan, name: str, args: Sequence[int], index: int, module: str | None) -> None:
    tensor = plan.tensor(index)
    called = f"{plan.count} {kind_of(name)}"
    if not plan.write(index) or tensor is None:
        plan.left_out.append(f"{called}: {_SHARED}")
        return
    rank = len(tensor.integers(_SHAPE))
    dtype = tensor.integer(_DTYPE, "b")
    stored = _stored(plan, args) if name == _QUANT_CONV and dtype == _CHAR else None
    if tensor.integers(_ORDER, "B") not in ((), tuple(range(rank))):
        plan.left_out.append(
            f"{called}: its memory is in another order than its dimensions, which sessions do not read"
        )
    elif dtype in _FLOATS or stored is not None:
        plan.outputs.append(index)
        plan.exposed.append(Value(called, module, _channels(plan, name, args, rank, dtype), stored))
    else:
        plan.left_out.append(f"{called}: no numbers of activations (ExecuTorch's dtype {dtype})")


def _channels(plan: _Plan, name: str, args: Sequence[int], rank: int, dtype: int) -> int | None:
    if name not in _CHANNELS:
        return None
    says = _CHANNELS[name]
    last = says is None or dtype == _CHAR or _scalar(plan, args[says])
    return rank - 1 if last else 1


def _stored(plan: _Plan, args: Sequence[int]) -> Stored:
    scale, zero, least, most = (_scalar(plan, index) for index in args[_QUANT_ARGS])
    return Stored(float(scale), int(zero), int(least), int(most))


def _scalar(plan: _Plan, index: int) -> float:
    held = plan.values[index].table(1)
    at = held.place(0) if held is not None else None
    if held is None or at is None:
        return 0
    form = {_INT: "<q", _DOUBLE: "<d"}.get(plan.kind(index), "<?")
    return float(struct.unpack_from(form, held.data, at)[0])


def _expose_delegate(
    plan: _Plan, segments: _Segments, delegate: Table, args: Sequence[int], origins: Mapping[str, str]
) -> tuple[Node, Sequence[int]]:
    """The delegate and its arguments, written anew."""
    where = delegate.table(1)
    if delegate.text(0) != _XNNPACK or where is None:
        raise ValueError(f"nothing shows what delegate {delegate.text(0)} writes")
    blob, inside = rebuild(segments.blob(where), origins)
    for position in inside.inputs:
        plan.read(args[position])
    args = list(args)
    for inner in inside.values:
        if inner.outer:
            index = args[inner.external]
            readable = plan.write(index)
        else:
            index, readable = plan.add(inner), True
            args.append(index)
        called = f"{plan.count} {inner.kind}"
        if readable:
            plan.outputs.append(index)
            plan.exposed.append(Value(called, inner.module, inner.channels, inner.stored))
        else:
            plan.left_out.append(f"{called}: {_SHARED}")
    plan.left_out += inside.left_out
    processed = New({0: ("b", 1), 1: ("I", segments.append(blob))})
    return copy(delegate, "OOO", _1=processed), args


class _Segments:
    """What lies behind the program in the file, and what is put behind that."""

    def __init__(self, data: Data, program: Table) -> None:
        self._data, self._program = data, program
        self._program_bytes, self._base = (number(data, "<Q", at) for at in (16, 24))
        self._tables = program.tables(_SEGMENTS)
        self._end = len(data)
        if not self._base:
            self._base = -(-self._end // _PAGE) * _PAGE
        self._added: list[New] = []
        self.tail = bytearray()

    def blob(self, where: Table) -> bytes:
        """A delegate's data."""
        index = where.integer(1, "I")
        if where.integer(0, "b") == 0:
            return self._program.tables(_INLINE)[index].bytes_of(0)
        start = self._base + self._tables[index].integer(0, "Q")
        size = self._tables[index].integer(1, "Q")
        if start + size > self._end:
            raise ValueError("a segment goes beyond the end")
        return bytes(self._data[start : start + size])

    def append(self, blob: bytes) -> int:
        """One more segment; returns its number."""
        start = -(-max(self._end + len(self.tail), self._base) // _PAGE) * _PAGE
        self.tail += bytes(start - self._end - len(self.tail)) + blob
        self._added.append(New({0: ("Q", start - self._base), 1: ("Q", len(blob))}))
        return len(self._tables) + len(self._added) - 1

    def rebuilt(self) -> Tables:
        """The vector of all."""
        return Tables([*(Old(one.at) for one in self._tables), *self._added])

    def header(self, moved: int) -> bytes:
        """The extended header, once everything old has moved by so many bytes."""
        size = max(self._end + len(self.tail) - self._base, 0)
        return struct.pack("<4sIQQQ", _HEADER, _HEADER_BYTES, moved + self._program_bytes, moved + self._base, size)
